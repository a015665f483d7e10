"""Text of matrix products on tensor cores: tiles of the result, operands by pointers, optionally with the sum cut into parts.

A program computes a tile [bm, bn] in steps of bk. Rows and columns beyond the end wrap around to the first ones, so that loads need no
masks; only stores have some. With `split` > 1, that many programs share a tile: each writes its partial sum to the workspace, and the
last one to arrive (an atomic counter says which) adds them up in order, so that results do not depend on who was last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dovetail.codegen.index import is_multiple, power_of_two
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Group, Operand
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div, floor_div
from dovetail.kernels.cuda.configuration import Configuration
from dovetail.kernels.cuda.dot import dot
from dovetail.kernels.cuda.matmul_problem import Axis, Problem, by_axis, traffic
from dovetail.kernels.cuda.split_sum import Finish, last_arrival
from dovetail.kernels.cuda.writer import (
    LINE_BYTES,
    MAX_LINES,
    Rows,
    TileEpilogue,
    Writer,
    known_early,
    scaled,
    tile_epilogue,
)

Store = Callable[[str, int, int], str]


@dataclass(frozen=True)
class Tile(Configuration):
    """A configuration.

    Attributes:
        bm, bn, bk: rows and columns of a tile, depth of a step. All but `bn` are powers of two.
        warps, stages: of the program, and steps in flight.
        split: programs that share the sum of a tile.
        group: row tiles that share their columns' loads while these are in the L2 cache.
        swap: 1 computes the tile the other way round, so that few rows become the narrow side of a wide instruction.
        ahead: 1 prefetches the constant right operand while the kernel ahead still runs.
        early: 1 lets the next kernel start its preparations before the main loop, 0 after it.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    split: int = 1
    group: int = 8
    swap: int = 0
    ahead: int = 0
    early: int = 1


def outside(extent: Dim, block: int) -> bool:
    """Whether the last block of an axis may hang over its end."""
    return not is_multiple(extent, block)


def batch_indices(w: Writer, batch: tuple[Axis, ...], index: str) -> tuple[list[str], list[tuple[int, str]]]:
    """(statements, (logical axis, variable) per batch axis) that take a linear batch index apart."""
    lines: list[str] = []
    base: list[tuple[int, str]] = []
    for position in reversed(range(len(batch))):
        axis = batch[position]
        assert axis.axis is not None
        name = f"z{axis.axis}"
        if position == 0:
            lines.append(f"{name} = {index}")
        else:
            lines += [f"{name} = {index} % {w.dim(axis.extent)}", f"{index} = {index} // {w.dim(axis.extent)}"]
        base.append((axis.axis, name))
    return lines, base


def base_offset(w: Writer, batch: tuple[Axis, ...], base: list[tuple[int, str]], right: bool) -> str:
    """The element offset of a batch in one operand, as text to append: " + z0 * 64"."""
    strides = {axis.axis: axis.right if right else axis.left for axis in batch}
    terms = [scaled(w, name, strides[axis]) for axis, name in base]
    return "".join(f" + {t}" for t in terms if t != "0")


def tile_indices(w: Writer, p: Problem, bm: int, bn: int, group: int) -> tuple[list[str], Dim, Dim]:
    """(statements that make `pm` and `pn` of `tile`, row tiles, column tiles).

    Tiles go down `group` rows before they go to the next column, so that programs that run together share loads.
    """
    tiles_m, tiles_n = ceil_div(p.n_rows, bm), ceil_div(p.column.extent, bn)
    if tiles_m == 1:
        return ["pm = 0", "pn = tile"], tiles_m, tiles_n
    if tiles_n == 1:
        return ["pm = tile", "pn = 0"], tiles_m, tiles_n
    if isinstance(tiles_m, int) and tiles_m <= group:
        return [f"pm = tile % {tiles_m}", f"pn = tile // {tiles_m}"], tiles_m, tiles_n
    if group == 1:
        return [f"pm = tile // {w.dim(tiles_n)}", f"pn = tile % {w.dim(tiles_n)}"], tiles_m, tiles_n
    band = w.dim(tiles_n * group)
    lines = [f"first = (tile // {band}) * {group}"]
    if outside(tiles_m, group):
        lines.append(f"height = tl.minimum({w.dim(tiles_m)} - first, {group})")
        return [*lines, f"pm = first + (tile % {band}) % height", f"pn = (tile % {band}) // height"], tiles_m, tiles_n
    return [*lines, f"pm = first + (tile % {band}) % {group}", f"pn = (tile % {band}) // {group}"], tiles_m, tiles_n


def _row_vector(rows: Rows, w: Writer, strides: list[Dim], block: int, lines: list[str]) -> str:
    """The offsets of a tile's rows, always a vector of `block`."""
    offset = rows.offset(w, strides, lines)
    return f"tl.zeros(({block},), tl.int32)" if offset == "0" else offset


def emit(group: Group, p: Problem, tile: Tile, target: CudaTarget, tactic: str, config: Config) -> Kernel:
    """The kernel of one configuration."""
    w = Writer(target)
    anchor = group.anchor
    assert anchor is not None
    rank = anchor.output.tensor.rank
    bm, bn, bk = tile.bm, tile.bn, tile.bk
    a = w.pointer(Operand("in", p.left), group.inputs[p.left].tensor)
    b = w.pointer(Operand("in", p.right), group.inputs[p.right].tensor)

    lines = ["tile = tl.program_id(0)"]
    place, tiles_m, tiles_n = tile_indices(w, p, bm, bn, tile.group)
    tiles = tiles_m * tiles_n
    base: list[tuple[int, str]] = []
    whole = "tile"
    if p.batch:
        taken, base = batch_indices(w, p.batch, "z")
        lines += ["slot = tile", f"z = tile // {w.dim(tiles)}", f"tile = tile % {w.dim(tiles)}", *taken]
        whole = "slot"
    lines += place
    parts = blocks(bn)
    lines += [f"rm = pm * {bm} + tl.arange(0, {bm})", *column_indices(bn), f"rk = tl.arange(0, {bk})"]

    rows = Rows("rm", p.row_axes)
    loaded_rows = rows
    if outside(p.n_rows, bm):
        lines.append(f"am = rm % {w.dim(p.n_rows)}")
        loaded_rows = Rows("am", p.row_axes)
    columns = "rn"
    if outside(p.column.extent, bn):
        lines += [f"bn{c.name} = rn{c.name} % {w.dim(p.column.extent)}" for c in parts]
        columns = "bn"
    # Which way round the tiles of the operands lie: [rows, depth] and [depth, columns], or the transposes.
    row_at, depth_in_left = ("[None, :]", "[:, None]") if tile.swap else ("[:, None]", "[None, :]")
    column_at, depth_in_right = ("[:, None]", "[None, :]") if tile.swap else ("[None, :]", "[:, None]")
    row_vector = _row_vector(loaded_rows, w, by_axis(p.rows, False, rank), bm, lines)
    steps = ceil_div(p.depth, bk)
    part = ceil_div(steps, tile.split)
    first = f"tl.program_id(1) * {w.dim(part)}" if tile.split > 1 else "0"
    a_at = f"{a}{base_offset(w, p.batch, base, False)} + ({row_vector}){row_at}"
    lines += [f"first = {first}"] if tile.split > 1 else []
    lines += [f"a = {a_at} + ({_times(w, 'rk', p.left_step)}){depth_in_left}"]
    for c in parts:
        vector = scaled(w, columns + c.name, p.column.right)
        vector = f"tl.zeros(({c.width},), tl.int32)" if vector == "0" else vector
        b_at = f"{b}{base_offset(w, p.batch, base, True)} + ({vector}){column_at}"
        lines += [f"b{c.name} = {b_at} + ({_times(w, 'rk', p.right_step)}){depth_in_right}"]

    if tile.ahead and target.programmatic_launch and known_early(group, p.right) and len(parts) == 1:
        lines += prefetch(w, p, (bn, bk), tile.split, b, columns, base_offset(w, p.batch, base, True))

    shape = (bn, bm) if tile.swap else (bm, bn)
    out = epilogue(w, group, p, bm, bn, tile.warps, rows, base, swap=bool(tile.swap))
    if tile.split == 1:
        lines += out.early
    lines += [*w.wait, *(w.release if tile.early else [])]
    lines += [f"acc{c.name} = tl.zeros({(c.width, bm) if tile.swap else (bm, c.width)}, tl.float32)" for c in parts]
    lines += _loop(w, p, tile, target, (depth_in_left, depth_in_right))
    lines += [] if tile.early else w.release
    assert tile.split == 1 or len(parts) == 1, "a sum in parts is one block"
    end = finish(w, out, tile.split, tiles * p.n_batch, shape, whole)
    lines += end.lines
    return w.kernel(
        lines, grid=(tiles * p.n_batch, tile.split, 1), warps=tile.warps, stages=tile.stages, tactic=tactic, config=config,
        flops=p.flops, bytes=traffic(group, p), workspace_bytes=end.workspace, counters=end.counters,
    )  # fmt: skip


_CHEAP = frozenset({"Add", "Sub", "Mul", "Max", "Min", "Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Abs", "Cast"})
"""Ops that take one register or two per element."""


def epilogue(
    w: Writer, group: Group, p: Problem, bm: int, bn: int, warps: int, rows: Rows, base: list[tuple[int, str]] | None = None,
    swap: bool = False, store: Store | None = None,
) -> TileEpilogue:  # fmt: skip
    """The epilogue of `acc` (or those of the blocks), in halves where its intermediate values would need too many registers beside it.

    Args:
        w, group, p: the kernel and what it computes.
        bm, bn, warps: the tile; `pn` numbers its columns' block, `rn` are they.
        rows, base: as of `tile_epilogue`.
        swap: the tile lies the other way round.
        store: writes the only result instead: of a variable, its first column in the tile and its columns, a statement.
    """
    row_mask = f"{rows.name} < {w.dim(p.n_rows)}" if outside(p.n_rows, bm) else ""

    def of(acc: str, column: str, first: int, width: int) -> TileEpilogue:
        column_mask = f"{column} < {w.dim(p.column.extent)}" if outside(p.column.extent, bn) else ""
        write = None if store is None else lambda value: store(value, first, width)
        return tile_epilogue(
            w, group, rows, (p.column.axis, column), acc, row_mask, column_mask, base or [], transposed=swap, store=write
        )  # fmt: skip

    costly = any(node.op not in _CHEAP for node in group.body.nodes if node is not group.anchor)
    early: list[str] = []
    late: list[str] = []
    for c in blocks(bn):
        if swap or not costly or bm * c.width <= 64 * 32 * warps:
            whole = of(f"acc{c.name}", f"rn{c.name}", c.first, c.width)
            early, late = [*early, *whole.early], [*late, *whole.late]
            continue
        half = c.width // 2
        acc = f"acc{c.name}"
        late.append(f"{acc}0, {acc}1 = tl.split(tl.permute(tl.reshape({acc}, ({bm}, 2, {half})), (0, 2, 1)))")
        for n in range(2):
            first = c.first + n * half
            late.append(f"rn{c.name}{n} = pn * {bn} + {first} + tl.arange(0, {half})")
            part = of(f"{acc}{n}", f"rn{c.name}{n}", first, half)
            late += [*part.early, *part.late]
    return TileEpilogue(early, late)


@dataclass(frozen=True)
class Block:
    """Some columns of a tile; extents of Triton's tensors are powers of two, so that a tile of 192 columns has two.

    Attributes:
        name: what is appended to the names of its variables.
        first, width: its columns.
    """

    name: str
    first: int
    width: int


def blocks(bn: int) -> list[Block]:
    """The columns of a tile in blocks of powers of two, the widest first."""
    widths = [1 << bit for bit in reversed(range(bn.bit_length())) if bn >> bit & 1]
    if len(widths) == 1:
        return [Block("", 0, bn)]
    return [Block("abcdefgh"[n], sum(widths[:n]), width) for n, width in enumerate(widths)]


def column_indices(bn: int) -> list[str]:
    """Statements that make `rn`, the columns of the tile `pn`."""
    return [f"rn{c.name} = pn * {bn} + {f'{c.first} + ' if c.first else ''}tl.arange(0, {c.width})" for c in blocks(bn)]


def more_steps(steps: Dim, least: int = 3) -> str:
    """What to add to a loop's end so that the compiler does not know its trip count; nothing if it is short.

    It would unroll the loop into code too long for the instruction cache. The grid's third axis has one program.
    """
    return " + tl.program_id(2)" if isinstance(steps, int) and steps > least else ""


def _times(w: Writer, index: str, stride: Dim) -> str:
    return f"{index} * {w.dim(stride)}"


def _loop(w: Writer, p: Problem, tile: Tile, target: CudaTarget, depth_at: tuple[str, str]) -> list[str]:
    """The sum over the depth; a depth that is no multiple of a step ends with masked loads."""
    bk = tile.bk

    def product(c: Block) -> str:
        a, b = (f"y{c.name}", "x") if tile.swap else ("x", f"y{c.name}")
        return f"    acc{c.name} = {dot(a, b, f'acc{c.name}', p.dtype, target)}"

    def step(masked: bool) -> list[str]:
        inside = f"rk < {w.dim(p.depth)} - k * {bk}"
        masks = [f", mask=({inside}){at}, other=0" if masked else "" for at in depth_at]
        return [
            f"    x = tl.load(a + k * {w.dim(p.left_step * bk)}{masks[0]})",
            *(f"    y{c.name} = tl.load(b{c.name} + k * {w.dim(p.right_step * bk)}{masks[1]})" for c in blocks(tile.bn)),
            *(product(c) for c in blocks(tile.bn)),
        ]

    steps = ceil_div(p.depth, bk)
    more = more_steps(steps, 3 * tile.split)
    if tile.split > 1:
        part = ceil_div(steps, tile.split)
        assert isinstance(steps, int) and isinstance(part, int), "a sum is cut into parts only where its length is known"
        last = f"first + {part}" if steps % tile.split == 0 else f"tl.minimum(first + {part}, {steps})"
        return [f"for k in range(first, {last}{more}):", *step(outside(p.depth, bk))]
    if isinstance(p.depth, int) or not outside(p.depth, bk):
        return [f"for k in range(0, {w.dim(steps)}{more}):", *step(outside(p.depth, bk))]
    # With an unknown depth, a mask in every step would keep all loads narrow.
    whole, all_ = w.dim(floor_div(p.depth, bk)), w.dim(steps)
    return [f"for k in range(0, {whole}):", *step(False), f"for k in tl.range({whole}, {all_}, num_stages=1):", *step(True)]


def prefetch(w: Writer, p: Problem, block: tuple[int, int], split: int, right: str, columns: str, base: str = "") -> list[str]:
    """Asks for the lines of the right operand that this program will read.

    Args:
        w, p: the kernel and its problem.
        block: columns of the tile, depth of a step.
        split: programs that share a sum; with more than one, `first` is this one's first step.
        right: the operand's pointer.
        columns: variable of the tile's columns, all inside.
        base: what to add to the pointer.
    """
    assert isinstance(p.depth, int)
    bn, bk = block
    per_line = LINE_BYTES // p.dtype.itemsize
    steps = -(-p.depth // bk)
    depth = min(p.depth, -(-steps // split) * bk)
    start = f"first * {bk}" if split > 1 else "0"
    along = p.right_step == 1
    across = bn if along else max(1, bn // per_line)
    count = power_of_two(max(1, -(-depth // per_line) if along else depth))
    count = max(1, min(count, MAX_LINES // across))
    stride_k, stride_n = (per_line, 1) if along else (1, per_line)
    k = f"({start} + tl.arange(0, {count}) * {stride_k}) % {p.depth}" if count > 1 else f"tl.zeros((1,), tl.int32) + {start}"
    n = columns if along else f"(pn * {bn} + tl.arange(0, {across}) * {stride_n}) % {w.dim(p.column.extent)}"
    return [
        f"pk = {k}",
        f"pc = {n}",
        f"prefetch_l2({right}{base} + ({_times(w, 'pk', p.right_step)})[:, None] + ({_times(w, 'pc', p.column.right)})[None, :])",
    ]


def finish(w: Writer, out: TileEpilogue, split: int, total: Dim, shape: tuple[int, int], tile: str) -> Finish:
    """What follows a sum `acc`, or a part of one: the epilogue, once all parts are added up.

    Args:
        w: the kernel.
        out: the epilogue, of the variable `acc`; without parts its early loads stand elsewhere.
        split: parts of a sum, along the grid's second axis.
        total: tiles of the whole grid.
        shape: of `acc`.
        tile: variable that numbers the tiles of the whole grid.
    """
    if split == 1:
        return Finish(out.late)
    size = shape[0] * shape[1]
    spot = f"tl.arange(0, {shape[0]})[:, None] * {shape[1]} + tl.arange(0, {shape[1]})[None, :]"

    # Parts go through the L2 cache, which all programs share.
    def write(parts: str) -> list[str]:
        return [
            f"parts = {parts} + {tile} * {split * size} + {spot}",
            f'tl.store(parts + tl.program_id(1) * {size}, acc, cache_modifier=".cg")',
        ]

    def add(parts: str, clear: str) -> list[str]:
        return [
            'acc = tl.load(parts, cache_modifier=".cg")',
            f"for part in range(1, {split}):",
            f'    acc += tl.load(parts + part * {size}, cache_modifier=".cg")',
            clear,
            *out.early,
            *out.late,
        ]

    return last_arrival(w, split, total, size, tile, write, add)
