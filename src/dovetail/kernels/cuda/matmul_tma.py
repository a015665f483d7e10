"""Text of large matrix products for Hopper: operands come as tiles from the copy engine (TMA), one program per multiprocessor takes many.

Descriptors say how the operands lie, so that a load is one instruction of one thread and knows the tensor's ends by itself. Programs walk
through the tiles in a fixed order; results leave through the copy engine, too, where there is one dense result.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.codegen import triton_scalar
from dovetail.codegen.index import is_multiple
from dovetail.codegen.kernel import Kernel, TensorMap
from dovetail.codegen.tactic import Config, Group, Operand
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div, minimum
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.configuration import Configuration
from dovetail.kernels.cuda.dot import dot
from dovetail.kernels.cuda.matmul import (
    Store,
    blocks,
    column_indices,
    epilogue,
    more_steps,
    prefetch,
    tile_indices,
)
from dovetail.kernels.cuda.matmul_problem import Problem, by_axis, traffic
from dovetail.kernels.cuda.writer import (
    ALIGNMENT,
    Rows,
    Writer,
    is_aligned,
    known_early,
)
from dovetail.kernels.fused import broadcast_strides


@dataclass(frozen=True)
class Tile(Configuration):
    """A configuration.

    Attributes:
        bm, bn, bk, warps, stages, group: as of `matmul.Tile`.
        persistent: 1: as many programs as multiprocessors, each walks through tiles; 0: one program per tile.
        flatten: 1: a program loads its next tile's first steps while it finishes a tile.
        store: 1: results leave through the copy engine.
        ahead: 1 prefetches the constant right operand while the kernel ahead still runs.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group: int = 8
    persistent: int = 1
    flatten: int = 0
    store: int = 0
    ahead: int = 0


@dataclass(frozen=True)
class Side:
    """One operand as the copy engine sees it: a matrix whose last axis is dense.

    Attributes:
        shape, strides: of that matrix.
        depth_last: whether the dense axis is the depth.
    """

    shape: tuple[Dim, Dim]
    strides: tuple[Dim, Dim]
    depth_last: bool


def side(p: Problem, type_: TensorType, right: bool, rank: int) -> Side | None:
    """An operand as a matrix for the copy engine; None where it is not one: uneven rows, neither axis dense, not aligned."""
    if not is_aligned(type_):
        return None
    if right:
        step: Dim | None = p.column.right
        extent = p.column.extent
    else:
        rows = Rows("rm", p.row_axes)
        step, extent = rows.step(by_axis(p.rows, False, rank)), p.n_rows
    depth_step = p.right_step if right else p.left_step
    if step is None:
        return None
    found = Side((extent, p.depth), (step, 1), True) if depth_step == 1 else Side((p.depth, extent), (depth_step, 1), False)
    dense = depth_step == 1 or step == 1
    pitch = found.strides[0]
    if not dense or pitch == 0 or not is_multiple(pitch * type_.dtype.itemsize, ALIGNMENT):
        return None
    return found


def sides_of(group: Group, p: Problem) -> tuple[Side, Side] | None:
    """Both operands for the copy engine, or None."""
    assert group.anchor is not None
    rank = group.anchor.output.tensor.rank
    left = side(p, group.inputs[p.left].tensor, False, rank)
    right = side(p, group.inputs[p.right].tensor, True, rank)
    return None if left is None or right is None else (left, right)


def reason(group: Group, p: Problem, target: CudaTarget) -> str | None:
    """None if the copy engine can load the operands, else the reason why not."""
    if target.capability < 90:
        return "tiles by the copy engine need compute capability 9.0"
    if p.batch:
        return "the right operand changes along a batch"
    if p.dtype.bits != 16:
        return f"operands of {p.dtype}, expected 16 bits"
    if sides_of(group, p) is None:
        return "an operand is no aligned matrix with a dense axis"
    return None


def stored(group: Group, p: Problem) -> TensorMap | None:
    """The only result as a matrix for the copy engine without its block; None where it is not one."""
    if len(group.outputs) != 1 or group.anchor is None or p.column.axis is None:
        return None
    kind = group.outputs[0].tensor
    strides = broadcast_strides(kind, group.anchor.output.tensor.rank)
    pitch = Rows("rm", p.row_axes).step(strides)
    if strides[p.column.axis] != 1 or pitch is None or pitch == 0 or not is_aligned(kind):
        return None
    if not is_multiple(pitch * kind.dtype.itemsize, ALIGNMENT) or kind.dtype.name not in ("f16", "bf16", "f32"):
        return None
    return TensorMap((p.n_rows, p.column.extent), (pitch, 1), ())


def emit(group: Group, p: Problem, tile: Tile, target: CudaTarget, tactic: str, config: Config) -> Kernel:
    """The kernel of one configuration."""
    w = Writer(target)
    bm, bn, bk = tile.bm, tile.bn, tile.bk
    both = sides_of(group, p)
    assert both is not None
    left, right = both
    a = _map(w, group, p.left, left, (bm, bk) if left.depth_last else (bk, bm))
    parts = blocks(bn)
    b = {c: _map(w, group, p.right, right, (c.width, bk) if right.depth_last else (bk, c.width)) for c in parts}
    place, tiles_m, tiles_n = tile_indices(w, p, bm, bn, tile.group)
    tiles = tiles_m * tiles_n
    steps = ceil_div(p.depth, bk)

    body = [
        *place,
        f"rm = pm * {bm} + tl.arange(0, {bm})",
        *column_indices(bn),
    ]
    indices = len(body)
    body += [
        *(f"acc{c.name} = tl.zeros(({bm}, {c.width}), tl.float32)" for c in parts),
        # To be flattened, the loop must be known to run at least once.
        f"for k in range(0, {w.dim(steps)}{'' if tile.flatten else more_steps(steps)}):",
        f"    x = {a}.load([pm * {bm}, k * {bk}])" if left.depth_last else f"    x = {a}.load([k * {bk}, pm * {bm}]).T",
        *(f"    y{c.name} = {_right(b[c], right, f'pn * {bn} + {c.first}', f'k * {bk}')}" for c in parts),
        *(f"    acc{c.name} = {dot('x', f'y{c.name}', f'acc{c.name}', p.dtype, target)}" for c in parts),
    ]
    result = stored(group, p) if tile.store else None
    out = epilogue(
        w, group, p, bm, bn, tile.warps, Rows("rm", p.row_axes), store=None if result is None else _store(w, group, tile, result)
    )  # fmt: skip
    programs: Dim = tiles
    if tile.persistent:
        programs = minimum(tiles, target.multiprocessors)
        flat = ", flatten=True" if tile.flatten else ""
        lines = [*w.wait, *w.release, f"for tile in tl.range(tl.program_id(0), {w.dim(tiles)}, tl.num_programs(0){flat}):"]
        lines += [f"    {line}" for line in [*body, *out.early, *out.late]]
    else:
        known = known_early(group, p.right)
        lines = ["tile = tl.program_id(0)", *body[:indices]]
        if tile.ahead and known and len(parts) == 1 and target.programmatic_launch:
            pointer = w.pointer(Operand("in", p.right), group.inputs[p.right].tensor)
            lines += [f"cn = rn % {w.dim(p.column.extent)}", *prefetch(w, p, (bn, bk), 1, pointer, "cn")]
        lines += [*w.wait, *w.release, *body[indices:], *out.early, *out.late]
    return w.kernel(
        lines, grid=(programs, 1, 1), warps=tile.warps, stages=tile.stages, tactic=tactic, config=config, flops=p.flops,
        bytes=traffic(group, p),
    )  # fmt: skip


def _right(name: str, right: Side, column: str, depth: str) -> str:
    """A tile [depth, columns] of the right operand."""
    return f"{name}.load([{column}, {depth}]).T" if right.depth_last else f"{name}.load([{depth}, {column}])"


def _store(w: Writer, group: Group, tile: Tile, result: TensorMap) -> Store:
    """Writes parts of the only result by the copy engine."""
    kind = group.outputs[0].tensor

    def write(value: str, column: int, width: int) -> str:
        name = w.pointer(Operand("out", 0), kind, TensorMap(result.shape, result.strides, (tile.bm, width)))
        return f"{name}.store([pm * {tile.bm}, pn * {tile.bn} + {column}], {triton_scalar.narrow(value, kind.dtype)})"

    return write


def _map(w: Writer, group: Group, position: int, given: Side, block: tuple[int, int]) -> str:
    return w.pointer(Operand("in", position), group.inputs[position].tensor, TensorMap(given.shape, given.strides, block))
