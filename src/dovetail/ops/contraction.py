"""MatMul, Conv, ConvTranspose: multiply-accumulate over an axis or a window."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dims import Dim, compare, floor_div
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import CONTRACTION, broadcast, op

Dims = tuple[Dim, ...]


def same_dtype(where: str, *types: TensorType | None) -> None:
    """Check that all present tensors have one dtype; raises TypeInferenceError."""
    present = [t for t in types if t is not None]
    for t in present[1:]:
        if t.dtype != present[0].dtype:
            raise TypeInferenceError(
                f"{where}: element types, got {present[0].dtype} and {t.dtype}, expected one type; add a Cast"
            )


def same_dim(where: str, what: str, a: Dim, b: Dim) -> None:
    """Check that two dims can be equal (two different numbers cannot); raises TypeInferenceError."""
    if isinstance(a, int) and isinstance(b, int) and a != b:
        raise TypeInferenceError(f"{where}: {what}, got {a} and {b}, expected equal extents; fix the shapes")


@op("MatMul", CONTRACTION)
def matmul(a: TensorType, b: TensorType) -> TensorType:
    """Matrix product over the last axis of `a` and the second last of `b`, other axes broadcast. ONNX MatMul-13.

    Rank-1 operands act as a row (left) or column (right) that is dropped from the result.
    """
    same_dtype("MatMul", a, b)
    if a.rank == 0 or b.rank == 0:
        raise TypeInferenceError(f"MatMul: got {a} and {b}, expected ranks of at least 1; use Mul for scalars")
    inner = b.shape[-2] if b.rank > 1 else b.shape[-1]
    same_dim("MatMul", "inner extents", a.shape[-1], inner)
    rows, columns = a.shape[-2:-1], b.shape[-1:] if b.rank > 1 else ()
    return a.with_shape((*broadcast(a.shape[:-2], b.shape[:-2]), *rows, *columns))


def window_extent(size: Dim, kernel: Dim, stride: int, low: Dim, high: Dim, dilation: int) -> Dim:
    """Number of windows that fit along one axis."""
    span = (kernel - 1) * dilation + 1
    return floor_div(size + low + high - span, stride) + 1


def check_window(where: str, rank: int, **lists: Sequence[object]) -> None:
    """Check that window attributes have one entry per spatial axis (two for pads)."""
    for name, values in lists.items():
        wanted = 2 * rank if name == "pads" else rank
        if len(values) != wanted:
            raise TypeInferenceError(
                f"{where}: {name}, got {len(values)} entries {tuple(values)}, expected {wanted} "
                f"for {rank} spatial axes; give one per axis"
            )


def check_fits(where: str, extents: Sequence[Dim]) -> None:
    """Reject windows larger than their padded input where that is certain."""
    for axis, extent in enumerate(extents):
        if compare(extent, 0) == -1 and extent != 0:
            raise TypeInferenceError(
                f"{where}: spatial axis {axis}, got output extent {extent}, expected at least 0; "
                "the window is larger than its padded input"
            )


@op("Conv", CONTRACTION)
def conv(
    x: TensorType,
    w: TensorType,
    bias: TensorType | None = None,
    *,
    strides: tuple[int, ...],
    pads: Dims,
    dilations: tuple[int, ...],
    group: int = 1,
) -> TensorType:
    """Convolution [N, C, in...] * [M, C/group, k...] (+ [M]) -> [N, M, out...]; pads are lows, then highs. ONNX Conv-22."""
    same_dtype("Conv", x, w, bias)
    rank = x.rank - 2
    if rank < 1 or w.rank != x.rank:
        raise TypeInferenceError(f"Conv: got x {x} and w {w}, expected equal ranks of at least 3; reshape one")
    check_window("Conv", rank, strides=strides, pads=pads, dilations=dilations)
    same_dim("Conv", "channels of x and of w times group", x.shape[1], w.shape[1] * group)
    if isinstance(w.shape[0], int) and w.shape[0] % group:
        raise TypeInferenceError(f"Conv: group, got {group}, expected a divisor of {w.shape[0]} outputs; fix group")
    if bias is not None:
        same_dim("Conv", "bias and output channels", bias.shape[0], w.shape[0])
    out = tuple(
        window_extent(x.shape[2 + i], w.shape[2 + i], strides[i], pads[i], pads[rank + i], dilations[i])
        for i in range(rank)
    )
    check_fits("Conv", out)
    return x.with_shape((x.shape[0], w.shape[0], *out))


def transposed_extent(
    size: Dim, kernel: Dim, stride: int, low: Dim, high: Dim, dilation: int, extra: Dim
) -> Dim:
    """Output extent of a transposed convolution along one axis."""
    return (size - 1) * stride + (kernel - 1) * dilation + 1 + extra - low - high


@op("ConvTranspose", CONTRACTION)
def conv_transpose(
    x: TensorType,
    w: TensorType,
    bias: TensorType | None = None,
    *,
    strides: tuple[int, ...],
    pads: Dims,
    dilations: tuple[int, ...],
    group: int = 1,
    output_padding: Dims,
) -> TensorType:
    """Transposed convolution [N, C, in...] * [C, M/group, k...] (+ [M]) -> [N, M, out...]. ONNX ConvTranspose-22.

    out = (in - 1) * stride + (k - 1) * dilation + 1 + output_padding - low - high.
    """
    same_dtype("ConvTranspose", x, w, bias)
    rank = x.rank - 2
    if rank < 1 or w.rank != x.rank:
        raise TypeInferenceError(
            f"ConvTranspose: got x {x} and w {w}, expected equal ranks of at least 3; reshape one"
        )
    check_window(
        "ConvTranspose", rank, strides=strides, pads=pads, dilations=dilations, output_padding=output_padding
    )
    same_dim("ConvTranspose", "channels of x and w", x.shape[1], w.shape[0])
    if bias is not None:
        same_dim("ConvTranspose", "bias and output channels", bias.shape[0], w.shape[1] * group)
    out = tuple(
        transposed_extent(
            x.shape[2 + i], w.shape[2 + i], strides[i], pads[i], pads[rank + i], dilations[i], output_padding[i]
        )
        for i in range(rank)
    )
    check_fits("ConvTranspose", out)
    return x.with_shape((x.shape[0], w.shape[1] * group, *out))
