"""Packing of constant operands for CPU templates: what selection inserts before a kernel.

Weights pass through these ops at load and again on refit; the results are flat buffers.
"""

from __future__ import annotations

from dovetail.core.dims import Dim, ceil_div, product
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import MOVEMENT, op


def packed_columns(columns: Dim, width: int, lanes: int) -> Dim:
    """Columns after cutting into panels of `width`, the last one rounded up to `lanes`."""
    rest = columns % width
    return columns - rest + ceil_div(rest, lanes) * lanes


def _need_rank(where: str, t: TensorType, least: int) -> None:
    if t.rank < least:
        raise TypeInferenceError(f"{where}: got {t}, expected rank {least} or more; reshape it")


@op("PackGemmB", MOVEMENT)
def pack_gemm_b(b: TensorType, *, width: int, lanes: int, transposed: bool = False) -> TensorType:
    """Right operand [..., K, N] ([..., N, K] if `transposed`) as panels of `width` columns: [..., K * packed columns]."""
    _need_rank("PackGemmB", b, 2)
    depth, columns = b.shape[-2:][::-1] if transposed else b.shape[-2:]
    return b.with_shape((*b.shape[:-2], depth * packed_columns(columns, width, lanes)))


@op("PackConv", MOVEMENT)
def pack_conv(w: TensorType, *, group: int, width: int, lanes: int) -> TensorType:
    """Filters [M, C/group, k...] as [group, panels of (k..., C/group, width)]."""
    _need_rank("PackConv", w, 3)
    depth = product(w.shape[1:])
    return w.with_shape((group, depth * packed_columns(w.shape[0] // group, width, lanes)))


@op("PackDepthwise", MOVEMENT)
def pack_depthwise(w: TensorType, *, lanes: int) -> TensorType:
    """Depthwise filters [C, 1, k...] as [taps, C rounded up to `lanes`]."""
    _need_rank("PackDepthwise", w, 3)
    return w.with_shape((product(w.shape[2:]), ceil_div(w.shape[0], lanes) * lanes))


@op("PackWinograd", MOVEMENT)
def pack_winograd(w: TensorType, *, width: int, lanes: int, tile: int = 4) -> TensorType:
    """Filters [M, C, 3, 3] transformed for F(tile x tile, 3x3): [(tile + 2)^2, panels of (C, width)]."""
    if w.rank != 4 or w.shape[2:] != (3, 3):
        raise TypeInferenceError(f"PackWinograd: got {w}, expected [M, C, 3, 3]; use PackConv")
    if tile not in (2, 4):
        raise TypeInferenceError(f"PackWinograd: tile, got {tile}, expected 2 or 4")
    return w.with_shape(((tile + 2) ** 2, w.shape[1] * packed_columns(w.shape[0], width, lanes)))


@op("PackRecurrent", MOVEMENT)
def pack_recurrent(w: TensorType, *, phases: tuple[int, ...], vectors: int, lanes: int) -> TensorType:
    """Weights [D, gates * H, K] as panels [K, vectors * lanes] with all gates of some units: [D, panels * K * vectors * lanes].

    `phases` are the gates that a step computes together, in order; each phase has panels of its own, cut as in
    `recurrent_panels`. Columns of a panel: gate, then unit; missing units are zero.
    """
    if w.rank != 3 or not isinstance(w.shape[1], int) or w.shape[1] % sum(phases):
        raise TypeInferenceError(f"PackRecurrent: got {w}, expected [D, {sum(phases)} * H, K] with a known H; use PackGemmB")
    panels = sum(recurrent_panels(w.shape[1] // sum(phases), phases, vectors, lanes))
    return w.with_shape((w.shape[0], panels * vectors * lanes * w.shape[2]))


def recurrent_panels(hidden: int, phases: tuple[int, ...], vectors: int, lanes: int) -> tuple[int, ...]:
    """Panels of each phase: one holds `vectors // gates` vectors of units."""
    if any(vectors % gates for gates in phases):
        raise TypeInferenceError(f"PackRecurrent: vectors, got {vectors}, expected a multiple of each of {phases}; change it")
    return tuple(-(-hidden // (vectors // gates * lanes)) for gates in phases)
