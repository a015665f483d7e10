"""1x1 convolution of images of very few pixels, as between the layers of a squeeze-excite block: dot products on plain lanes.

A program has one pixel and some filters. Its filters are known before the run, so that it loads all of them while the kernel ahead still
runs; what is left afterwards is one load of the pixel's channels, a product and a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.codegen.index import power_of_two
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_scalar import widen
from dovetail.kernels.cuda.configuration import Configuration
from dovetail.kernels.cuda.conv_config import TYPICAL
from dovetail.kernels.cuda.conv_shape import conv_reason, convolution_of, corner, image_layouts
from dovetail.kernels.cuda.writer import Writer, known_early, tile_epilogue, typical
from dovetail.kernels.fused import in_place, sides

_PIXELS, _CHUNK, _CHUNKS = 32, 2048, 4
"""Pixels up to which this pays; channels that a program takes at once, and how often."""

_HELD = 96
"""Filter elements that a lane holds at most."""


@dataclass(frozen=True)
class _Part(Configuration):
    """A configuration: filters of a program, and its warps."""

    bn: int
    warps: int


def vector(group: Group, part: _Part, target: CudaTarget, name: str) -> Kernel:
    """The kernel of a 1x1 convolution of few pixels."""
    conv = convolution_of(group)
    window, anchor = conv.window, group.anchor
    assert anchor is not None
    w = Writer(target)
    x = w.pointer(Operand("in", anchor.input(0).index), window.x)
    kind = group.inputs[conv.weights].tensor
    f = w.pointer(Operand("in", conv.weights), kind)
    bk, chunks = _cut(conv.depth)
    columns = -(-conv.filters // part.bn)
    lines = ["tile = tl.program_id(0)", f"rm = tile // {columns} + tl.arange(0, 1)" if columns > 1 else "rm = tile + tl.arange(0, 1)"]
    lines.append(f"rn = (tile % {columns}) * {part.bn} + tl.arange(0, {part.bn})" if columns > 1 else f"rn = tl.arange(0, {part.bn})")
    column_mask = "" if conv.filters % part.bn == 0 else f"rn < {conv.filters}"
    lines.append(f"rf = tl.minimum(rn, {conv.filters - 1})" if column_mask else "rf = rn")
    lines.append(f"rk = tl.arange(0, {bk})")
    rows = window.rows("rm")
    offset, _ = corner(w, window, rows, lines, ())
    mask = ["" if (c + 1) * bk <= conv.depth else f"rk < {conv.depth - c * bk}" for c in range(chunks)]
    filters = []
    for c in range(chunks):
        guard = f", mask=({mask[c]})[None, :], other=0.0" if mask[c] else ""
        filters.append(f"f{c} = tl.load({f} + {c * bk} + (rf * {conv.depth})[:, None] + rk[None, :]{guard})")
    epilogue = tile_epilogue(w, group, rows, (1, "rn"), "acc", "", column_mask, bias=conv.bias)
    ready = [*w.wait, *w.release]
    lines += [*epilogue.early, *((*filters, *ready) if known_early(group, conv.weights) else (*ready, *filters))]
    for c in range(chunks):
        guard = f", mask=({mask[c]})[None, :], other=0.0" if mask[c] else ""
        lines.append(f"x{c} = tl.load({x} + {c * bk} + ({offset} + rm * 0)[:, None] + rk[None, :]{guard})")
    products = [f"{widen(f'f{c}', conv.dtype)} * {widen(f'x{c}', window.x.dtype)}" for c in range(chunks)]
    lines.append(f"acc = tl.sum({' + '.join(products)}, axis=1)[None, :]")
    lines += epilogue.late
    return w.kernel(
        lines, grid=(window.pixels * columns, 1, 1), warps=part.warps, stages=2, tactic=name, config=part.config,
        flops=conv.flops, bytes=conv.bytes,
    )  # fmt: skip


def _cut(depth: int) -> tuple[int, int]:
    """(channels of a chunk, chunks)."""
    bk = min(_CHUNK, max(16, power_of_two(depth)))
    return bk, -(-depth // bk)


@tactic
class Vector(Tactic):
    """1x1 convolution of very few pixels."""

    name = "vector"
    device = "cuda"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """One tap, no groups, few pixels and not too many channels."""
        reason = conv_reason(group)
        if reason is not None:
            return reason
        conv = convolution_of(group)
        window = conv.window
        if window.taps > 1 or conv.groups > 1 or any(window.padded):
            return "it is no 1x1 convolution"
        if typical(window.pixels, TYPICAL) > _PIXELS:
            return "tiles of pixels are better"
        if conv.depth > _CHUNK * _CHUNKS:
            return "it has too many channels"
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """As many filters as lanes can hold, where that leaves enough programs."""
        conv, found = convolution_of(group), list[tuple[float, _Part]]()
        bk, chunks = _cut(conv.depth)
        pixels = typical(conv.window.pixels, TYPICAL)
        busy = CudaTarget.of(target).multiprocessors
        for bn in (1, 2, 4, 8, 16, 32):
            for warps in (1, 2, 4, 8):
                held = bn * bk * chunks // (32 * warps)
                if held > _HELD or bn >= 2 * conv.filters or (held < 8 and warps > 1):
                    continue
                programs = -(-conv.filters // bn) * pixels
                # One wave, wide loads, and little for each lane.
                score = max(1.0, programs / (4 * busy)) * (24 + max(8, held)) + 3 * max(0, 8 - held) + 2 * warps + bn
                found.append((score, _Part(bn, warps)))
        return [part.config for _, part in sorted(found, key=lambda item: item[0])[:8]]

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        part = _Part.of(config)
        return single(vector(group, part, CudaTarget.of(target), self.name), in_place(group, sides(group)))
