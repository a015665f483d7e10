"""Convolution of channels-last images as an implicit matrix product: the text of one Triton kernel.

Rows are output positions of all images, columns are filters, and the sum runs over taps and blocks of channels: a row's operand for a
tap lies at a fixed distance from its operand for the first tap. What lies in the padding is loaded as zero: per row one bit for each
tap says whether it is inside. A 1x1 convolution without stride and padding is a plain matrix product over merged rows.

Groups of channels are blocks of columns with a range of channels of their own. Where groups are narrow, a program takes several of
them: filters are then zero outside of their group's channels.

With `split` the sum is cut into parts of one program each; the last one to arrive adds all parts in order, so that results never vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from dovetail.codegen.index import is_multiple, power_of_two
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Group, Operand
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div
from dovetail.kernels.cuda.configuration import Configuration
from dovetail.kernels.cuda.conv_prologue import Factor, Prologue, find_prologue
from dovetail.kernels.cuda.conv_shape import Convolution, Window, convolution_of, corner
from dovetail.kernels.cuda.dot import dot
from dovetail.kernels.cuda.matmul import more_steps
from dovetail.kernels.cuda.split_sum import Finish, last_arrival
from dovetail.kernels.cuda.writer import (
    LINE_BYTES,
    MAX_LINES,
    Rows,
    Writer,
    known_early,
    scaled,
    tile_epilogue,
)
from dovetail.kernels.fused import sides

MAX_TAPS = 31
"""Taps of an axis whose bits fit one word."""


@dataclass(frozen=True)
class Tile(Configuration):
    """A configuration.

    Attributes:
        bm, bn, bk: output positions, filters and channels of a tile.
        warps, stages: of the program and its pipeline.
        split: programs that share one tile's sum.
        pack: groups of channels that one program takes together.
        swap: 1 computes the tile the other way round, so that few output positions become the narrow side of a wide instruction.
        ahead: 1 prefetches the filters while the kernel ahead still runs.
        fetch: 1 prefetches the epilogue's operands before the sum.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    split: int = 1
    pack: int = 1
    swap: int = 0
    ahead: int = 0
    fetch: int = 0

    @property
    def config(self) -> Config:
        """The configuration of a tile; what does nothing is left out."""
        given = ((f, getattr(self, f.name)) for f in fields(self))
        return tuple((f.name, value) for f, value in given if value != f.default)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the accumulator."""
        return (self.bn, self.bm) if self.swap else (self.bm, self.bn)

    @property
    def across(self) -> tuple[str, str]:
        """How a vector along the accumulator's (output positions, filters) becomes part of a tile."""
        return ("[None, :]", "[:, None]") if self.swap else ("[:, None]", "[None, :]")


@dataclass(frozen=True)
class _Tiles:
    """How tiles cover a convolution.

    Attributes:
        rows: tiles of output positions.
        blocks: sets of groups of channels.
        columns: tiles of filters per block.
        depth, width: channels and filters of a block.
        steps: blocks of channels of all taps.
    """

    rows: Dim
    blocks: int
    columns: int
    depth: int
    width: int
    steps: int


def _tiles(conv: Convolution, tile: Tile) -> _Tiles:
    depth, width = conv.depth * tile.pack, conv.width * tile.pack
    steps = conv.window.taps * -(-depth // tile.bk)
    return _Tiles(ceil_div(conv.window.pixels, tile.bm), conv.groups // tile.pack, -(-width // tile.bn), depth, width, steps)


def implicit_gemm(group: Group, tile: Tile, target: CudaTarget, name: str) -> Kernel:
    """The kernel of a dense or grouped convolution of channels-last images."""
    conv = convolution_of(group)
    window, tiles = conv.window, _tiles(conv, tile)
    w = Writer(target)
    prologue = find_prologue(group)
    assert isinstance(prologue, Prologue)
    x = w.pointer(Operand("in", prologue.image.index), window.x)
    f = w.pointer(Operand("in", conv.weights), group.inputs[conv.weights].tensor)
    lines = _program(tiles, tile)
    inner, rows, row_mask = tile_rows(w, window, tile.bm, lines)
    column_mask = _columns(conv, tiles, tile, lines)
    lines.append(f"rk = tl.arange(0, {tile.bk})")
    guarded = [axis for axis, padded in enumerate(window.padded) if padded]
    offset, starts = corner(w, window, inner, lines, guarded)
    row_at, column_at = tile.across
    lines.append(f"xo = ({offset if offset != '0' else 'rm * 0'}){row_at} + rk{column_at}")
    if tiles.blocks > 1:
        lines.append(f"xo += block * {tiles.depth}")
    inside = inside_words(w, window, starts, lines)
    weight_mask = _filters(conv, tiles, tile, lines)
    transposed = bool(tile.swap)
    epilogue = tile_epilogue(w, group, rows, (1, "rn"), "acc", row_mask, column_mask, bias=conv.bias, transposed=transposed)
    if tile.ahead and target.programmatic_launch and known_early(group, conv.weights):
        lines += _prefetch(conv, tiles, tile, f)
    lines += [*epilogue.early, *w.wait, *w.release, f"acc = tl.zeros({tile.shape}, dtype=tl.float32)"]
    image = inner.split(w, lines)[0] if any(p.strides[0] != 0 for p in prologue.factors) else "0"

    def compute(body: list[str], channel: str, mask: str) -> str:
        return prologue.apply(w, group, body, "a", lambda p: _factor(w, tile, p, image, channel, mask))

    body = _step(w, conv, tiles, tile, x, f, inside, weight_mask, target, compute)
    if tile.fetch:
        lines += prefetch_sides(w, group, inner, tile)
    lines += step_loop(body, tiles.steps, tile.split)
    total = tiles.rows * tiles.columns * tiles.blocks
    end = finish_tile(w, tile, total, epilogue.late)
    lines += end.lines
    return w.kernel(
        lines, grid=(total, tile.split, 1), warps=tile.warps, stages=tile.stages, tactic=name,
        config=tile.config, flops=conv.flops, bytes=conv.bytes, workspace_bytes=end.workspace, counters=end.counters,
    )  # fmt: skip


def _program(tiles: _Tiles, tile: Tile) -> list[str]:
    """Which tile a program has: columns fastest, so that neighbours read the same rows."""
    lines = ["tile = tl.program_id(0)"]
    across = tiles.columns * tiles.blocks
    if across == 1:
        lines.append("row_tile = tile")
    else:
        lines += [f"row_tile = tile // {across}", f"column_tile = tile % {across}"]
    if tiles.blocks > 1:
        lines.append(f"block = column_tile // {tiles.columns}" if tiles.columns > 1 else "block = column_tile")
        if tiles.columns > 1:
            lines.append(f"column_tile = column_tile % {tiles.columns}")
    if tile.split > 1:
        lines.append("part = tl.program_id(1)")
    return lines


def tile_rows(w: Writer, window: Window, bm: int, lines: list[str]) -> tuple[Rows, Rows, str]:
    """(rows for loads: clamped to the last one; rows for stores; which of those are inside)."""
    lines.append(f"rm = row_tile * {bm} + tl.arange(0, {bm})")
    rows = window.rows("rm")
    if is_multiple(window.pixels, bm):
        return rows, rows, ""
    count = w.dim(window.pixels)
    lines.append(f"rc = tl.minimum(rm, {count} - 1)")
    return window.rows("rc"), rows, f"rm < {count}"


def _columns(conv: Convolution, tiles: _Tiles, tile: Tile, lines: list[str]) -> str:
    """Defines `rn`, the filters of a tile, the `first` of them, and `rl`, their numbers inside the block; returns which are inside."""
    start = f"column_tile * {tile.bn}" if tiles.columns > 1 else "0"
    lines.append(f"rl = {start} + tl.arange(0, {tile.bn})")
    lines.append(f"first = block * {tiles.width} + {start}" if tiles.blocks > 1 else f"first = {start}")
    lines.append(f"rn = block * {tiles.width} + rl" if tiles.blocks > 1 else "rn = rl")
    return "" if tiles.width % tile.bn == 0 else f"rl < {tiles.width}"


def inside_words(w: Writer, window: Window, starts: dict[int, str], lines: list[str]) -> list[tuple[str, Sequence[int]]]:
    """Words whose bit t says whether tap t of a row's window is inside, and the axes that number their taps.

    Args:
        starts: per padded axis the variable of the index of a row's first tap.
    """
    guarded = [axis for axis, padded in enumerate(window.padded) if padded]
    if not guarded:
        return []
    words: dict[int, str] = {}
    for axis in guarded:
        extent, dilation = w.dim(window.space[axis]), window.dilations[axis]
        terms = []
        for t in range(window.kernel[axis]):
            at = f"{starts[axis]} + {t * dilation}" if t else starts[axis]
            ok = f"(({at} >= 0) & ({at} < {extent})).to(tl.int32)"
            terms.append(f"({ok} << {t})" if t else ok)
        words[axis] = w.fresh("v")
        lines.append(f"{words[axis]} = {' + '.join(terms)}")
    if window.taps > MAX_TAPS:
        return [(words[axis], (axis,)) for axis in guarded]
    # One word for all axes: bits of the inner axes, once for each inside tap of the outer ones.
    factors, step = [], 1
    for axis in reversed(range(window.rank)):
        k = window.kernel[axis]
        if axis in guarded:
            spread = words[axis]
            if step > 1 and k > 1:
                spread = w.fresh("v")
                lines.append(f"{spread} = " + " + ".join(f"((({words[axis]} >> {t}) & 1) << {t * step})" for t in range(k)))
            factors.append(spread)
        elif k > 1:
            factors.append(str(sum(1 << (t * step) for t in range(k))))
        step *= k
    lines.append(f"inside = {' * '.join(factors)}")
    return [("inside", tuple(range(window.rank)))]


def _filters(conv: Convolution, tiles: _Tiles, tile: Tile, lines: list[str]) -> list[str]:
    """Defines `fo`, the offsets of the filters of a tile for the first step; returns what masks them, [bk, bn] or broadcast to it."""
    row = conv.window.taps * conv.depth
    clamped = "rn"
    if tiles.width % tile.bn:
        limit = f"block * {tiles.width} + {tiles.width - 1}" if tiles.blocks > 1 else str(tiles.width - 1)
        lines.append(f"rf = tl.minimum(rn, {limit})")
        clamped = "rf"
    depth_at, column_at = tile.across
    lines.append(f"fr = {clamped} * {row}")
    if tile.pack == 1:
        lines.append(f"fo = fr{column_at} + rk{depth_at}")
        return []
    assert tiles.depth <= tile.bk, "packed groups fit one block of channels"
    lines.append(f"fo = fr{column_at} + (rk % {conv.depth}){depth_at}")
    lines.append(f"own = (rk // {conv.depth}){depth_at} == (rl // {conv.width}){column_at}")
    return ["own"]


def _prefetch(conv: Convolution, tiles: _Tiles, tile: Tile, f: str) -> list[str]:
    """Asks for the filters that a program will read, line by line."""
    per_line = LINE_BYTES // conv.dtype.itemsize
    row = conv.window.taps * conv.depth
    share = -(-tiles.steps // tile.split)
    # A part's filters are neighbours where blocks of channels are not cut.
    own = min(row, share * tile.bk) if tile.split > 1 else row
    count = min(power_of_two(-(-own // per_line)), max(1, MAX_LINES // tile.bn))
    start = f"part * {own} + " if tile.split > 1 else ""
    lines = f"({start}tl.arange(0, {count}) * {per_line}) % {row}" if count > 1 else f"{start}tl.zeros((1,), tl.int32)"
    return [f"prefetch_l2({f} + fr[:, None] + ({lines})[None, :])"]


def _step(
    w: Writer, conv: Convolution, tiles: _Tiles, tile: Tile, x: str, f: str, inside: list[tuple[str, Sequence[int]]],
    weight_mask: list[str], target: CudaTarget, compute: Callable[[list[str], str, str], str],
) -> list[str]:  # fmt: skip
    """The statements of step k of the sum."""
    window, strides = conv.window, conv.window.x_strides
    blocks = -(-tiles.depth // tile.bk)
    lines: list[str] = []
    channel = "0"
    if window.taps == 1:
        tap = "0"
        channel = f"k * {tile.bk}" if blocks > 1 else "0"
    elif blocks == 1:
        tap = "k"
    else:
        lines += [f"tap = k // {blocks}", f"c0 = (k % {blocks}) * {tile.bk}"]
        tap, channel = "tap", "c0"
    row_at, column_at = tile.across
    index = tap_index(window, tap, lines)
    terms = [] if channel == "0" else [channel]
    for axis, number in index.items():
        terms.append(f"{number} * {w.dim(window.dilations[axis] * strides[axis + 2])}")
    masks = []
    for word, axes in inside:
        bit = tap if len(axes) == window.rank else index.get(axes[0], "0")
        masks.append(f"((({word} >> {bit}) & 1) != 0){row_at}" if bit != "0" else f"(({word} & 1) != 0){row_at}")
    weights, beyond = list(weight_mask), ""
    if tiles.depth % tile.bk:
        left = f"{tiles.depth} - {channel}" if channel != "0" else str(tiles.depth)
        beyond = f"(rk < {left}){column_at}"
        masks.append(beyond)
        weights.append(f"(rk < {left}){row_at}")
    weight_terms = [t for t in (f"{tap} * {conv.depth}" if tap != "0" else "", channel if channel != "0" else "") if t]
    lines.append(f"a = tl.load({' + '.join([x, *_scalar(terms)])} + xo{_masked(masks)})")
    lines.append(f"b = tl.load({' + '.join([f, *_scalar(weight_terms)])} + fo{_masked(weights)})")
    # Where a prologue makes something of channels beyond the last one, filters are zero.
    image = compute(lines, channel, beyond)
    lines.append(f"acc = {dot(*(('b', image) if tile.swap else (image, 'b')), 'acc', conv.dtype, target)}")
    return lines


def _factor(w: Writer, tile: Tile, factor: Factor, image: str, channel: str, mask: str) -> tuple[str, str]:
    """(offset, mask) of a prologue's operand on a tile."""
    row_at, column_at = tile.across
    per_image, terms = scaled(w, image, factor.strides[0]), []
    if per_image != "0":
        terms.append(f"({per_image}){row_at}")
    if factor.strides[1] == 0:
        return f"({' + '.join(terms) or '0'})", ""
    index = "rk" if channel == "0" else f"({channel} + rk)"
    terms.append(f"({scaled(w, index, factor.strides[1])}){column_at}")
    return f"({' + '.join(terms)})", mask


def _scalar(terms: list[str]) -> list[str]:
    return [f"({' + '.join(terms)})"] if terms else []


def _masked(masks: list[str]) -> str:
    return f", mask={' & '.join(masks)}, other=0.0" if masks else ""


def tap_index(window: Window, tap: str, lines: list[str]) -> dict[int, str]:
    """The index of a tap along each axis with several of them; appends what defines them."""
    axes = [axis for axis, k in enumerate(window.kernel) if k > 1]
    if len(axes) <= 1:
        return dict.fromkeys(axes, tap)
    found: dict[int, str] = {}
    rest = tap
    for axis in reversed(axes):
        if axis == axes[0]:
            found[axis] = rest
            break
        lines.append(f"t{axis} = {rest} % {window.kernel[axis]}")
        lines.append(f"u{axis} = {rest} // {window.kernel[axis]}")
        found[axis], rest = f"t{axis}", f"u{axis}"
    return found


def step_loop(body: list[str], steps: int, split: int) -> list[str]:
    """The loop over all steps k, or over those of `part`."""
    if steps == split == 1:
        return body
    inner = ["    " + line for line in body]
    more = more_steps(steps, 3 * split)
    if split == 1:
        return [f"for k in range(0, {steps}{more}):", *inner]
    share = -(-steps // split)
    end = f"part * {share} + {share}"
    if steps % split:
        end = f"tl.minimum({end}, {steps})"
    return [f"for k in range(part * {share}, {end}{more}):", *inner]


def prefetch_sides(w: Writer, group: Group, rows: Rows, tile: Tile) -> list[str]:
    """Asks for the parts of the epilogue's images that a program will read, from filter `first` on.

    Args:
        rows: output positions, those beyond the last one clamped to it.
    """
    assert group.anchor is not None
    lines: list[str] = []
    for side in sides(group):
        kind = group.inputs[side.position].tensor
        if kind.shape != group.anchor.output.tensor.shape or side.strides[1] != 1:
            continue
        per_line = LINE_BYTES // kind.dtype.itemsize
        offset = rows.offset(w, side.strides, lines)
        count = max(1, tile.bn // per_line)
        pointer = w.pointer(Operand("in", side.position), kind)
        at = f"tl.minimum(first + tl.arange(0, {count}) * {per_line}, {kind.shape[1]} - 1)"
        row = f"({offset})[:, None] + " if offset != "0" else ""
        lines.append(f"prefetch_l2({pointer} + {row}({at})[None, :])")
    return lines


def finish_tile(w: Writer, tile: Tile, total: Dim, late: Sequence[str]) -> Finish:
    """What follows a sum `acc`, or a part of one: `late` makes results of it.

    Args:
        total: number of tiles; this one's is in `tile`, the part's in `part`.
    """
    if tile.split == 1:
        return Finish(late)
    size = tile.bm * tile.bn

    def write(parts: str) -> list[str]:
        return [
            f"po = (tl.arange(0, {tile.shape[0]}) * {tile.shape[1]})[:, None] + tl.arange(0, {tile.shape[1]})[None, :]",
            f"tl.store({parts} + (tile * {tile.split} + part) * {size} + po, acc)",
        ]

    def add(parts: str, clear: str) -> list[str]:
        loads = [
            f'tl.load({parts} + tile * {tile.split * size} + {n * size} + po, cache_modifier=".cg")' for n in range(tile.split)
        ]
        return [clear, f"acc = {loads[0]}", *(f"acc += {load}" for load in loads[1:]), *late]

    return last_arrival(w, tile.split, total, size, "tile", write, add)
