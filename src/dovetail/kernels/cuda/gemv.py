"""Text of a matrix times one vector: no tensor cores, the matrix streams through registers once.

A program computes `bn` results. Each step multiplies a block of the matrix by the vector's part, element by element, and only the end
adds across threads. A constant matrix is read before the kernel ahead has ended, as far as registers hold it. With `split` > 1, programs
share the sum as in `matmul`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.codegen import triton_scalar
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Group, Operand
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import ceil_div
from dovetail.kernels.cuda.configuration import Configuration
from dovetail.kernels.cuda.matmul import base_offset, batch_indices, finish, outside
from dovetail.kernels.cuda.matmul_problem import Problem, traffic
from dovetail.kernels.cuda.writer import Rows, Writer, known_early, scaled, tile_epilogue

UNROLLED = 8
"""So many steps become straight code, so that their loads do not wait for each other."""

TOGETHER = 4
"""Steps of a longer loop that are loaded together."""


@dataclass(frozen=True)
class Strip(Configuration):
    """A configuration: `bn` results, `bk` elements of the sum per step, `split` programs for each sum."""

    bn: int
    bk: int
    warps: int
    split: int = 1


def emit(group: Group, p: Problem, strip: Strip, target: CudaTarget, tactic: str, config: Config) -> Kernel:
    """The kernel of one configuration of a problem with a single row."""
    w = Writer(target)
    bn, bk = strip.bn, strip.bk
    vector = w.pointer(Operand("in", p.left), group.inputs[p.left].tensor)
    matrix = w.pointer(Operand("in", p.right), group.inputs[p.right].tensor)
    tiles = ceil_div(p.column.extent, bn)
    lines = ["tile = tl.program_id(0)", "pn = tile"]
    base: list[tuple[int, str]] = []
    if p.batch:
        taken, base = batch_indices(w, p.batch, "z")
        lines += [f"z = tile // {w.dim(tiles)}", f"pn = tile % {w.dim(tiles)}", *taken]
    lines += ["rm = tl.zeros((1,), tl.int32)", f"rn = pn * {bn} + tl.arange(0, {bn})", f"rk = tl.arange(0, {bk})"]
    columns = "rn"
    if outside(p.column.extent, bn):
        lines.append(f"bn = rn % {w.dim(p.column.extent)}")
        columns = "bn"
    # The axis whose neighbours are neighbours in memory lies along the threads: the last one of the block.
    along = p.right_step == 1
    column_at, depth_at, axis = ("[:, None]", "[None, :]", 1) if along else ("[None, :]", "[:, None]", 0)
    shape = (bn, bk) if along else (bk, bn)
    steps = ceil_div(p.depth, bk)
    part = ceil_div(steps, strip.split)
    column_vector = scaled(w, columns, p.column.right)
    if column_vector == "0":
        column_vector = f"tl.zeros(({bn},), tl.int32)"
    lines += [
        f"x = {vector}{base_offset(w, p.batch, base, False)} + rk * {w.dim(p.left_step)}",
        f"w = {matrix}{base_offset(w, p.batch, base, True)} + ({column_vector}){column_at} + (rk * {w.dim(p.right_step)}){depth_at}",
    ]
    unrolled = isinstance(part, int) and part <= UNROLLED
    together = TOGETHER if isinstance(part, int) and not unrolled else 1
    if together > 1:
        part = ceil_div(part, together) * together
    # Steps beyond the end are masked: unless all parts are equal, and end with a whole turn of the loop.
    masked = outside(p.depth, bk * strip.split * together)
    start = "first + " if strip.split > 1 else ""
    if strip.split > 1:
        lines.append(f"first = tl.program_id(1) * {w.dim(part)}")

    def load_matrix(name: str, k: str) -> str:
        mask = f", mask=(rk < {w.dim(p.depth)} - ({k}) * {bk}){depth_at}, other=0" if masked else ""
        return f"{name} = tl.load(w + ({k}) * {w.dim(p.right_step * bk)}{mask})"

    def add(name: str, k: str) -> list[str]:
        mask = f", mask=rk < {w.dim(p.depth)} - ({k}) * {bk}, other=0" if masked else ""
        loaded = f"tl.load(x + ({k}) * {w.dim(p.left_step * bk)}{mask})"
        left, right = triton_scalar.widen(loaded, p.dtype), triton_scalar.widen(name, p.dtype)
        return [f"v = {left}", f"sums += {right} * v{depth_at}"]

    out = tile_epilogue(
        w, group, Rows("rm", p.row_axes), (p.column.axis, "rn"), "acc", "",
        f"rn < {w.dim(p.column.extent)}" if outside(p.column.extent, bn) else "", base,
    )  # fmt: skip
    if strip.split == 1:
        lines += out.early
    begin = [f"sums = tl.zeros({shape}, tl.float32)"]
    if unrolled:
        assert isinstance(part, int)
        matrices = [load_matrix(f"w{k}", f"{start}{k}") for k in range(part)]
        early = _ahead(strip, p, part) if known_early(group, p.right) else 0
        lines += [*matrices[:early], *w.wait, *w.release, *matrices[early:], *begin]
        for k in range(part):
            lines += add(f"w{k}", f"{start}{k}")
    else:
        last = f"{start}{w.dim(part)}"
        lines += [*w.wait, *w.release, *begin, f"for k in range({'first' if strip.split > 1 else 0}, {last}, {together}):"]
        lines += [f"    {load_matrix(f'w{n}', f'k + {n}')}" for n in range(together)]
        lines += [f"    {line}" for n in range(together) for line in add(f"w{n}", f"k + {n}")]
    lines.append(f"acc = tl.sum(sums, {axis})[None, :]")
    end = finish(w, out, strip.split, tiles * p.n_batch, (1, bn), "tile")
    lines += end.lines
    return w.kernel(
        lines, grid=(tiles * p.n_batch, strip.split, 1), warps=strip.warps, stages=1, tactic=tactic, config=config, flops=p.flops,
        bytes=traffic(group, p), workspace_bytes=end.workspace, counters=end.counters,
    )  # fmt: skip


def _ahead(strip: Strip, p: Problem, steps: int) -> int:
    """Steps whose blocks of the matrix fit into a thread's registers (half of them) before they are used."""
    words = max(1, strip.bn * strip.bk * p.dtype.itemsize // (4 * 32 * strip.warps))
    return min(steps, max(1, 96 // words))
