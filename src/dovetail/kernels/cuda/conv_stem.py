"""Convolution of images with few channels, as at the entrance of a network: the text of one Triton kernel.

The sum runs over (tap, channel) as one index that is cut into blocks, so that three channels do not become a block of sixteen. Elements
are gathered wherever they lie: the image may have any strides and any float type, and casts or scales ahead of it are computed as it is
loaded. Filters are the rows of the tile and output positions its columns, so that neighbouring lanes read neighbouring pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.index import power_of_two
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import (
    ANY,
    Config,
    Emitted,
    Group,
    Operand,
    Pack,
    Tactic,
    single,
    tactic,
)
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_scalar import tensor_type
from dovetail.core.dims import ceil_div
from dovetail.core.dtypes import F32
from dovetail.ir.graph import Node
from dovetail.kernels.cuda.conv import MAX_TAPS, Tile, inside_words, tile_rows
from dovetail.kernels.cuda.conv_config import TYPICAL
from dovetail.kernels.cuda.conv_prologue import Factor, Prologue, find_prologue, producer_reason
from dovetail.kernels.cuda.conv_shape import (
    Convolution,
    conv_reason,
    convolution_of,
    corner,
    image_layouts,
)
from dovetail.kernels.cuda.dot import dot
from dovetail.kernels.cuda.writer import Rows, Writer, scaled, tile_epilogue, typical
from dovetail.kernels.fused import in_place, sides

MAX_DEPTH, MAX_SUM = 12, 1024
"""Channels, and products per result, up to which gathering single elements pays."""

_UNROLLED = 8


def stem(group: Group, tile: Tile, target: CudaTarget, name: str) -> Kernel:
    """The kernel of a convolution without groups whose image has few channels."""
    conv = convolution_of(group)
    window, prologue = conv.window, find_prologue(group)
    assert isinstance(prologue, Prologue)
    w = Writer(target)
    x = w.pointer(Operand("in", prologue.image.index), window.x)
    f = w.pointer(Operand("in", conv.weights), group.inputs[conv.weights].tensor)
    columns = -(-conv.filters // tile.bn)
    lines = ["tile = tl.program_id(0)", f"row_tile = tile // {columns}" if columns > 1 else "row_tile = tile"]
    inner, rows, row_mask = tile_rows(w, window, tile.bm, lines)
    start = f"(tile % {columns}) * {tile.bn} + " if columns > 1 else ""
    lines.append(f"rn = {start}tl.arange(0, {tile.bn})")
    column_mask = "" if conv.filters % tile.bn == 0 else f"rn < {conv.filters}"
    lines.append("rf = rn" if not column_mask else f"rf = tl.minimum(rn, {conv.filters - 1})")
    lines.append(f"rk = tl.arange(0, {tile.bk})")
    guarded = [axis for axis, padded in enumerate(window.padded) if padded]
    offset, starts = corner(w, window, inner, lines, guarded)
    inside = inside_words(w, window, starts, lines)
    image = _image_index(w, prologue, inner, lines)
    epilogue = tile_epilogue(w, group, rows, (1, "rn"), "acc", row_mask, column_mask, bias=conv.bias, transposed=True)
    lines += [*epilogue.early, *w.wait, *w.release, f"acc = tl.zeros(({tile.bn}, {tile.bm}), dtype=tl.float32)"]
    total = window.taps * conv.depth
    steps = -(-total // tile.bk)
    body = _step(w, group, conv, prologue, tile, (x, f, offset, image), inside, target)
    if steps == 1:
        lines += ["kk = rk", *body]
    else:
        # Products on plain lanes are long enough as they are.
        loop = "tl.static_range" if steps <= _UNROLLED and not _exact(conv, target) else "range"
        lines += [f"for k in {loop}(0, {steps}):", f"    kk = k * {tile.bk} + rk", *("    " + line for line in body)]
    lines += epilogue.late
    return w.kernel(
        lines, grid=(ceil_div(window.pixels, tile.bm) * columns, 1, 1), warps=tile.warps, stages=tile.stages, tactic=name,
        config=tile.config, flops=conv.flops, bytes=conv.bytes,
    )  # fmt: skip


def _image_index(w: Writer, prologue: Prologue, rows: Rows, lines: list[str]) -> str:
    """The variable of each row's image, where a factor differs between images."""
    return rows.split(w, lines)[0] if any(f.strides[0] != 0 for f in prologue.factors) else "0"


def _step(
    w: Writer, group: Group, conv: Convolution, prologue: Prologue, tile: Tile, names: tuple[str, str, str, str],
    inside: list[tuple[str, Sequence[int]]], target: CudaTarget,
) -> list[str]:  # fmt: skip
    """The statements of a block of (tap, channel), numbered by `kk`."""
    window, strides = conv.window, conv.window.x_strides
    x, f, offset, image = names
    total = window.taps * conv.depth
    lines: list[str] = []
    channel, tap = "0", "kk"
    if conv.depth > 1:
        lines += [f"channel = kk % {conv.depth}", f"tap = kk // {conv.depth}"]
        channel, tap = "channel", "tap"
    index: dict[int, str] = {}
    rest = tap
    for axis in reversed([axis for axis, k in enumerate(window.kernel) if k > 1]):
        if all(k == 1 for k in window.kernel[:axis]):
            index[axis] = rest
            break
        lines += [f"t{axis} = {rest} % {window.kernel[axis]}", f"u{axis} = {rest} // {window.kernel[axis]}"]
        index[axis], rest = f"t{axis}", f"u{axis}"
    terms = [scaled(w, channel, strides[1]), *(scaled(w, i, window.dilations[a] * strides[a + 2]) for a, i in index.items())]
    lines.append(f"ko = {' + '.join(t for t in terms if t != '0') or 'kk * 0'}")
    masks = [] if total % tile.bk == 0 else [f"(kk < {total})[:, None]"]
    for word, axes in inside:
        bit = tap if len(axes) == window.rank else index.get(axes[0], "0")
        masks.append(f"((({word}[None, :] >> {bit}[:, None]) & 1) != 0)" if bit != "0" else f"(({word} & 1) != 0)[None, :]")
    mask = " & ".join(masks)
    if mask:
        lines.append(f"ok = {mask}")
    rows = f"({offset})[None, :]" if offset != "0" else "(rm * 0)[None, :]"
    lines.append(f"x0 = tl.load({x} + (ko[:, None] + {rows}){', mask=ok, other=0.0' if mask else ''})")

    def at(factor: Factor) -> tuple[str, str]:
        per_image, per_channel = scaled(w, image, factor.strides[0]), scaled(w, channel, factor.strides[1])
        terms = [t for t in (per_image != "0" and f"({per_image})[None, :]", per_channel != "0" and f"({per_channel})[:, None]") if t]
        return "(" + (" + ".join(terms) or "0") + ")", ""

    value = prologue.apply(w, group, lines, "x0", at)
    if not prologue.is_plain:
        kind = tensor_type(conv.dtype)
        lines.append(f"x1 = tl.where(ok, {value}, 0.0).to({kind})" if mask else f"x1 = {value}")
        value = "x1"
    guard = "" if total % tile.bk == 0 else f", mask=(kk < {total})[None, :], other=0.0"
    lines.append(f"f0 = tl.load({f} + kk[None, :] * {conv.filters} + rf[:, None]{guard})")
    lines.append(f"acc = {dot('f0', value, 'acc', conv.dtype, target)}")
    return lines


def _exact(conv: Convolution, target: CudaTarget) -> bool:
    """Whether products are fp32's own, which no tensor core computes."""
    return conv.dtype == F32 and not target.tf32


@tactic
class Stem(Tactic):
    """Convolution of images with few channels, which may lie anyhow and be cast or scaled on the way."""

    name = "stem"
    device = "cuda"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Few channels, no groups, short sums."""
        reason = conv_reason(group, prologue=True)
        if reason is not None:
            return reason
        conv = convolution_of(group)
        aligned = conv.window.taps == 1 and conv.depth % 8 == 0
        if conv.groups != 1 or conv.depth > MAX_DEPTH or conv.depth * conv.window.taps > MAX_SUM or aligned:
            return "blocks of channels are better"
        if any(k > MAX_TAPS for k in conv.window.kernel):
            return f"an axis of the filters has more than {MAX_TAPS} taps"
        return None

    def prologue(self, anchor: Node, producer: Node, target: Target) -> str | None:
        """Pointwise nodes that read one image and operands of its channels."""
        channels, taps = anchor.input(0).tensor.shape[1], anchor.input(1).tensor.shape[2:]
        known = isinstance(channels, int) and channels <= MAX_DEPTH and all(isinstance(k, int) for k in taps)
        if not known or anchor.attrs.get("group", 1) != 1:
            return "the image has many channels"
        return producer_reason(anchor, producer)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Any image; channels last for the rest."""
        return image_layouts(group, ANY)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Tiles of pixels by all filters; smaller ones where there are few pixels."""
        conv = convolution_of(group)
        total = conv.window.taps * conv.depth
        pixels = typical(conv.window.pixels, TYPICAL)
        exact = _exact(conv, CudaTarget.of(target))
        bn = max(16, min(64 if exact else 128, power_of_two(conv.filters)))
        columns = -(-conv.filters // bn)
        depths = [bk for bk in ((32, 16) if exact else (32, 64, 16)) if bk < 2 * total or bk == 16]
        found = []
        for bm, warps in ((128, 4), (128, 8), (256, 8), (64, 4), (64, 8), (32, 4)):
            for bk in depths[:2]:
                if 256 * warps <= bm * bn <= (64 * 64 if exact else 2048 * warps):
                    found.append(Tile(bm, bn, bk, warps, 2))
        # Enough programs for all multiprocessors first.
        busy = CudaTarget.of(target).multiprocessors
        found.sort(key=lambda t: (-(-pixels // t.bm) * columns < busy, -t.bm if pixels // 128 > busy else t.bm))
        return [t.config for t in found or [Tile(32, 16, 16, 1, 2)]]

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """Filters as a matrix [taps * channels, M]."""
        conv = convolution_of(group)
        rank = conv.window.rank + 2
        return (
            Pack(conv.weights, "Transpose", (("perm", (*range(2, rank), 1, 0)),)),
            Pack(conv.weights, "Reshape", (("shape", (conv.window.taps * conv.depth, conv.filters)),)),
        )

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        kernel = stem(group, Tile.of(config), CudaTarget.of(target), self.name)
        return single(kernel, in_place(group, sides(group)))
