"""Convolution whose operands the copy engine fetches by tiles (TMA), for large images and batches: the text of one Triton kernel.

The rows of a tile are a box of output positions, some images by some rows by some columns, so that its operand for a tap is a box of the
input: one copy, and what lies in the padding comes as zeros. With a stride of two the input is seen with an axis for the parity of a
coordinate, and a box with one parity is dense again. A 1x1 convolution is a matrix product over merged rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dovetail.codegen.index import is_multiple
from dovetail.codegen.kernel import Kernel, TensorMap
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Pack, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import Dim, ceil_div, product
from dovetail.core.dtypes import F32
from dovetail.kernels.cuda.conv import Tile, finish_tile, prefetch_sides, step_loop, tap_index
from dovetail.kernels.cuda.conv_config import TYPICAL, rank, with_fetch
from dovetail.kernels.cuda.conv_shape import (
    Convolution,
    Window,
    conv_reason,
    convolution_of,
    image_layouts,
)
from dovetail.kernels.cuda.conv_tactic import epilogue_operands, filter_packs
from dovetail.kernels.cuda.dot import dot
from dovetail.kernels.cuda.writer import (
    ALIGNMENT,
    Rows,
    Writer,
    is_aligned,
    tile_epilogue,
    typical,
)
from dovetail.kernels.fused import in_place, sides

_KEEP = 12
_BOX = 256
"""Extent of a copy's box along one axis at most."""


@dataclass(frozen=True)
class _Box:
    """Output positions of a tile: (images, extents per spatial axis), each a power of two."""

    sizes: tuple[int, ...]

    @staticmethod
    def of(window: Window, bm: int) -> _Box:
        """The box of `bm` positions that covers the images with the fewest tiles, wide ones first."""
        extents = [typical(window.batch, TYPICAL), *(typical(d, 64) for d in window.out)]
        powers = [1 << n for n in range(bm.bit_length())]
        best: tuple[int, tuple[int, ...]] | None = None
        for sizes in itertools.product(powers, repeat=len(extents)):
            count = 1
            for size in sizes:
                count *= size
            if count != bm or max(sizes) > _BOX:
                continue
            tiles = 1
            for extent, size in zip(extents, sizes, strict=True):
                tiles *= -(-extent // size)
            key = (tiles, tuple(-size for size in reversed(sizes)))
            if best is None or key < best:
                best = key
        assert best is not None
        return _Box(tuple(-size for size in reversed(best[1])))

    def tiles(self, window: Window) -> tuple[Dim, ...]:
        """Tiles along images and spatial axes."""
        return tuple(ceil_div(extent, size) for extent, size in zip((window.batch, *window.out), self.sizes, strict=True))


def tma(group: Group, tile: Tile, target: CudaTarget, name: str) -> Kernel:
    """The kernel of a convolution without groups."""
    conv = convolution_of(group)
    window, anchor = conv.window, group.anchor
    assert anchor is not None
    w = Writer(target)
    columns = -(-conv.filters // tile.bn)
    lines = ["tile = tl.program_id(0)", f"row_tile = tile // {columns}" if columns > 1 else "row_tile = tile"]
    lines += ["part = tl.program_id(1)"] if tile.split > 1 else []
    lines.append(f"first = (tile % {columns}) * {tile.bn}" if columns > 1 else "first = 0")
    lines.append(f"rn = first + tl.arange(0, {tile.bn})")
    x_operand = Operand("in", anchor.input(0).index)
    blocks = -(-conv.depth // tile.bk)
    if window.in_place():
        count, at = window.pixels, ""
        tiles = ceil_div(count, tile.bm)
        strides = window.x_strides
        step = window.rows("rm").step(strides)
        assert step is not None, "channels-last images have merged rows"
        x = w.pointer(x_operand, window.x, TensorMap((count, window.channels), (step, 1), (tile.bm, tile.bk)))
        lines.append(f"rm = row_tile * {tile.bm} + tl.arange(0, {tile.bm})")
        rows, row_mask = window.rows("rm"), "" if is_multiple(count, tile.bm) else f"rm < {w.dim(count)}"
        clamped = rows
        if row_mask and tile.fetch:
            lines.append(f"rc = tl.minimum(rm, {w.dim(count)} - 1)")
            clamped = window.rows("rc")
        body = [f"a = {x}.load([row_tile * {tile.bm}, k * {tile.bk}])"]
    else:
        box = _Box.of(window, tile.bm)
        tiles = product(box.tiles(window))
        x = w.pointer(x_operand, window.x, _image_map(window, box, tile.bk))
        rows, row_mask = _box_rows(w, window, box, lines)
        clamped = rows
        if row_mask and tile.fetch:
            lines.append(f"rc = tl.minimum(rm, {w.dim(window.pixels)} - 1)")
            clamped = window.rows("rc")
        body, at = _box_load(window, box, tile, x, blocks)
    weights = group.inputs[conv.weights].tensor
    total_depth = window.taps * conv.depth
    f = w.pointer(Operand("in", conv.weights), weights, TensorMap((conv.filters, total_depth), (total_depth, 1), (tile.bn, tile.bk)))
    column_mask = "" if conv.filters % tile.bn == 0 else f"rn < {conv.filters}"
    epilogue = tile_epilogue(w, group, rows, (1, "rn"), "acc", row_mask, column_mask, bias=conv.bias)
    lines += [*epilogue.early, *w.wait, *w.release, f"acc = tl.zeros(({tile.bm}, {tile.bn}), dtype=tl.float32)"]
    body += [f"b = {f}.load([first, {at or f'k * {tile.bk}'}])", f"acc = {dot('a', 'b.T', 'acc', conv.dtype, target)}"]
    steps = window.taps * blocks
    loop = step_loop(body, steps, tile.split)
    if tile.fetch:
        lines += prefetch_sides(w, group, clamped, tile)
    lines += ["k = 0", *loop] if steps == tile.split == 1 else loop
    total = tiles * columns
    end = finish_tile(w, tile, total, epilogue.late)
    lines += end.lines
    return w.kernel(
        lines, grid=(total, tile.split, 1), warps=tile.warps, stages=tile.stages, tactic=name, config=tile.config,
        flops=conv.flops, bytes=conv.bytes, workspace_bytes=end.workspace, counters=end.counters,
    )  # fmt: skip


def _image_map(window: Window, box: _Box, bk: int) -> TensorMap:
    """The image as (images, [rows, row parities] …, columns, channels of all column parities)."""
    strides = window.x_strides
    shape: list[Dim] = [window.batch]
    steps: list[Dim] = [strides[0]]
    block = [box.sizes[0]]
    last = window.rank - 1
    channels: Dim = window.channels
    for axis, (extent, step) in enumerate(zip(window.space, window.strides, strict=True)):
        shape.append(ceil_div(extent, step))
        steps.append(strides[axis + 2] * step)
        block.append(box.sizes[axis + 1])
        if step > 1 and axis < last:
            shape.append(step)
            steps.append(strides[axis + 2])
            block.append(1)
        elif step > 1:
            channels = strides[axis + 2] * (step - 1) + channels
    return TensorMap((*shape, channels), (*steps, 1), (*block, bk))


def _box_rows(w: Writer, window: Window, box: _Box, lines: list[str]) -> tuple[Rows, str]:
    """Defines where a tile starts (`at0` for images, `at1` … for spatial axes); returns its rows and which exist."""
    tiles, rest = box.tiles(window), "row_tile"
    axes = (0, *range(2, window.rank + 2))
    extents = (window.batch, *window.out)
    for n in reversed(range(1, len(tiles))):
        lines.append(f"at{n} = ({rest} % {w.dim(tiles[n])}) * {box.sizes[n]}")
        lines.append(f"left{n} = {rest} // {w.dim(tiles[n])}")
        rest = f"left{n}"
    lines.append(f"at0 = {rest} * {box.sizes[0]}")
    lines.append(f"rr = tl.arange(0, {box.sizes[0] * _volume(box.sizes[1:])})")
    parts, masks, linear = {}, [], "0"
    for n, axis in enumerate(axes):
        inner = _volume(box.sizes[n + 1 :])
        index = f"i{axis}"
        lines.append(f"{index} = at{n} + rr // {inner} % {box.sizes[n]}")
        parts[axis] = index
        if not is_multiple(extents[n], box.sizes[n]):
            masks.append(f"({index} < {w.dim(extents[n])})")
        linear = f"({linear}) * {w.dim(extents[n])} + {index}" if n else index
    lines.append(f"rm = {linear}")
    return Rows("rm", window.rows("rm").axes, parts), " & ".join(masks)


def _box_load(window: Window, box: _Box, tile: Tile, x: str, blocks: int) -> tuple[list[str], str]:
    """(statements of step k that load the image's box, the column of the filters)."""
    lines: list[str] = []
    if blocks == 1:
        lines.append("tap = k")
    else:
        lines += [f"tap = k // {blocks}", f"c0 = (k % {blocks}) * {tile.bk}"]
    channel = "c0" if blocks > 1 else "0"
    index = tap_index(window, "tap", lines) if window.taps > 1 else {}
    coordinates, last = ["at0"], window.rank - 1
    for axis, (step, low) in enumerate(zip(window.strides, window.low, strict=True)):
        moved = f"{index[axis]} * {window.dilations[axis]} - {low}" if axis in index else f"0 - {low}"
        if step == 1:
            coordinates.append(f"at{axis + 1} + {moved}")
            continue
        # Shifted by whole periods, so that division of the machine is the floor's.
        periods = -(-low // step)
        lines.append(f"m{axis} = {moved} + {periods * step}")
        coordinates.append(f"at{axis + 1} + m{axis} // {step} - {periods}")
        if axis < last:
            coordinates.append(f"m{axis} % {step}")
        else:
            channel = f"(m{axis} % {step}) * {window.x_strides[axis + 2]} + {channel}"
    lines.append(f"a = {x}.load([{', '.join([*coordinates, channel])}]).reshape({tile.bm}, {tile.bk})")
    return lines, f"k * {tile.bk}"


def _volume(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


@tactic
class TmaConv(Tactic):
    """Convolution without groups by copies of whole tiles, from capability 9.0."""

    name = "tma_conv"
    device = "cuda"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """16-bit floats whose rows the copy engine can address."""
        if CudaTarget.of(target).capability < 90:
            return "the target copies no tiles"
        reason = conv_reason(group)
        if reason is not None:
            return reason
        conv = convolution_of(group)
        window = conv.window
        if conv.groups != 1 or conv.dtype == F32:
            return "only 16-bit convolutions without groups"
        if conv.depth % 16 or (window.taps > 1 and conv.depth % 32):
            return "blocks of channels would be cut"
        if max(window.strides) > 2 or window.rank + 2 + sum(s > 1 for s in window.strides[:-1]) > 5:
            return "its input is no tensor of five axes"
        if not window.in_place() and any(
            s > 1 and not is_multiple(extent, s) for s, extent in zip(window.strides, window.space, strict=True)
        ):
            return "an axis is no multiple of its stride"
        if window.x_strides[1] == 1 and not _describable(conv):
            return "rows of the image are not aligned"
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Large tiles, as the model of the machine ranks them."""
        conv, cuda = convolution_of(group), CudaTarget.of(target)
        operands = epilogue_operands(group)
        return [t.config for t in with_fetch(conv, rank(conv, _tiles(conv), cuda, operands, _KEEP), operands)]

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The filters, channels inside."""
        return filter_packs(convolution_of(group))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        kernel = tma(group, Tile.of(config), CudaTarget.of(target), self.name)
        return single(kernel, in_place(group, sides(group)))


def _describable(conv: Convolution) -> bool:
    """Whether the copy engine can address an image: aligned rows."""
    size = conv.dtype.itemsize
    return is_aligned(conv.window.x) and all(is_multiple(s * size, ALIGNMENT) for s in conv.window.x_strides if s != 1)


def _tiles(conv: Convolution) -> list[Tile]:
    window, found = conv.window, []
    for bm, bn, warps in ((128, 128, 8), (128, 64, 4), (128, 256, 8), (64, 64, 4), (64, 128, 4), (64, 256, 8), (256, 128, 8), (256, 64, 8)):
        if bn >= 2 * conv.filters and bn > 64:
            continue
        for bk in (64, 32, 128, 16):
            if bk > conv.depth or (conv.depth % bk and window.taps > 1) or (bk < 64 and conv.depth % 64 == 0):
                continue
            for stages in (4, 3, 5, 2):
                found.append(Tile(bm, bn, bk, warps, stages))
    if not isinstance(window.pixels, int):
        return found
    return [s for t in found for s in (t, replace(t, split=2), replace(t, split=4)) if s.split == 1 or _steps(conv, s) >= 3 * s.split]


def _steps(conv: Convolution, t: Tile) -> int:
    return conv.window.taps * -(-conv.depth // t.bk)
