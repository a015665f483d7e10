"""Tables of what data select: coordinates of non-zero elements, boxes that survive suppression; and how much of them is used.

Each program writes where the counts of the programs before it say, so that the order is that of the reference; what no entry
takes is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.codegen import triton_scalar
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Emitted, Operand, Step
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div, maximum, product
from dovetail.core.dtypes import F32, I32, I64
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.writer import Writer

_BLOCK = 1024  # elements of one program
_COUNTS = 1024  # counts read at a time
_BOXES = 1024  # boxes looked at at a time
_ROWS = 256  # rows of a table written at a time


def _step(kernel: Kernel) -> Step:
    return Step(kernel, tuple(Operand(p.role, p.index) for p in kernel.params))


def _sums(counts: str, number: str, own: str) -> list[str]:
    """Statements for `base`, the sum of the counts before `own`, and `total`, that of all."""
    return [
        "base = tl.full((), 0, tl.int32)",
        "total = tl.full((), 0, tl.int32)",
        f"for first in range(0, {number}, {_COUNTS}):",
        f"    c = first + tl.arange(0, {_COUNTS})",
        f"    each = tl.load({counts} + c, mask=c < {number}, other=0)",
        f"    base += tl.sum(tl.where(c < {own}, each, 0), 0)",
        "    total += tl.sum(each, 0)",
    ]


def non_zero(x: TensorType, target: CudaTarget, tactic: str) -> Emitted:
    """Count per block, then write; one kernel where there is one block only."""
    blocks = maximum(ceil_div(x.size, _BLOCK), 1)
    alone = blocks == 1
    write = _coordinates(x, alone, blocks, target, tactic)
    if alone:
        return Emitted((_step(write),))
    return Emitted((_step(_counted(x, blocks, target, tactic)), _step(write)), (blocks * 4,))


def _found(x: TensorType, w: Writer) -> list[str]:
    size = w.dim(x.size)
    loaded = triton_scalar.widen(f"tl.load({w.pointer(Operand('in', 0), x)} + i, mask=i < {size}, other=0)", x.dtype)
    return [
        *w.wait,
        "pid = tl.program_id(0)",
        f"i = pid * {_BLOCK} + tl.arange(0, {_BLOCK})",
        f"found = (({loaded} != 0) & (i < {size})).to(tl.int32)",
    ]


def _counted(x: TensorType, blocks: Dim, target: CudaTarget, tactic: str) -> Kernel:
    w = Writer(target)
    lines = _found(x, w)
    lines.append(f"tl.store({w.pointer(Operand('temp', 0), I32)} + pid, tl.sum(found, 0))")
    return w.kernel([*lines, *w.release], grid=(blocks, 1, 1), warps=4, stages=1, tactic=tactic, bytes=x.size * x.dtype.itemsize)


def _coordinates(x: TensorType, alone: bool, blocks: Dim, target: CudaTarget, tactic: str) -> Kernel:
    w = Writer(target)
    lines = _found(x, w)
    size = w.dim(x.size)
    if alone:
        lines += ["base = 0", "total = tl.sum(found, 0)"]
    else:
        lines += _sums(w.pointer(Operand("temp", 0), I32), w.dim(blocks), "pid")
    table = w.pointer(Operand("out", 0), TensorType(I64, (x.rank, x.size)))
    count = w.pointer(Operand("out", 1), TensorType(I64, (1,)))
    lines.append("at = base + tl.cumsum(found, 0) - found")
    rest = "i"
    for axis in reversed(range(x.rank)):
        name = f"x{axis}"
        extent = w.dim(x.shape[axis])
        lines.append(f"{name} = {rest} % {extent}" if axis else f"{name} = {rest}")
        if axis:
            lines.append(f"r{axis} = {rest} // {extent}")
            rest = f"r{axis}"
        lines.append(f"tl.store({table} + {axis} * {size} + at, {name}.to(tl.int64), mask=found != 0)")
        lines.append(
            f"tl.store({table} + {axis} * {size} + i, tl.full(({_BLOCK},), 0, tl.int64), mask=(i < {size}) & (i >= total))"
        )
    lines.append(f"tl.store({count}, total.to(tl.int64), mask=pid == 0)")
    moved = x.size * (x.dtype.itemsize + 8 * x.rank)
    return w.kernel([*lines, *w.release], grid=(blocks, 1, 1), warps=4, stages=1, tactic=tactic, bytes=moved)


@dataclass(frozen=True)
class Suppression:
    """A SuppressionTable of row-major operands.

    Attributes:
        boxes, scores, most, overlap, floor: types of the operands, None where absent.
        positions: of these operands among the group's inputs.
        center: boxes are centres and sizes.
        limit: rows per batch and class.
    """

    boxes: TensorType
    scores: TensorType
    most: TensorType
    overlap: TensorType | None
    floor: TensorType | None
    positions: tuple[int, ...]
    center: bool
    limit: Dim

    @property
    def pairs(self) -> Dim:
        """(batch, class) pairs."""
        return product(self.scores.shape[:2])

    @property
    def count(self) -> Dim:
        """Boxes of a batch."""
        return self.scores.shape[2]


def suppression(shape: Suppression, target: CudaTarget, tactic: str) -> Emitted:
    """Greedy selection by one program per batch and class, then the table.

    Temporary buffers: what is left of the scores, the boxes kept per pair, and how many.
    """
    steps = (_step(_select(shape, target, tactic)), _step(_rows(shape, target, tactic)))
    return Emitted(steps, (4 * shape.pairs * shape.count, 4 * shape.pairs * shape.limit, 4 * shape.pairs))


def _corners(center: bool, prefix: str) -> list[str]:
    """From four loaded numbers to the low and high corners."""
    lines = []
    for axis in range(2):
        a, b = f"{prefix}{axis}", f"{prefix}{axis + 2}"
        low, high = (f"{a} - {b} / 2", f"{a} + {b} / 2") if center else (f"tl.minimum({a}, {b})", f"tl.maximum({a}, {b})")
        lines += [f"{prefix}l{axis} = {low}", f"{prefix}h{axis} = {high}"]
    return lines


def _select(shape: Suppression, target: CudaTarget, tactic: str) -> Kernel:
    """One pass over the boxes per box that is kept: what overlaps with the last one leaves, the best of the rest is next."""
    w = Writer(target)
    n, limit, classes = w.dim(shape.count), w.dim(shape.limit), w.dim(shape.scores.shape[1])

    def given(which: int, type_: TensorType | None, absent: str) -> str:
        return absent if type_ is None else f"tl.load({w.pointer(Operand('in', shape.positions[which]), type_)})"

    infinity = "float('-inf')"
    boxes = w.pointer(Operand("in", shape.positions[0]), shape.boxes)
    scores = w.pointer(Operand("in", shape.positions[1]), shape.scores)
    left, kept, counts = (w.pointer(Operand("temp", i), F32 if i == 0 else I32) for i in range(3))
    lines = [
        *w.wait,
        "pair = tl.program_id(0)",
        f"boxes = {boxes} + pair // {classes} * {n} * 4",
        f"left = {left} + pair * {n}",
        f"most = tl.minimum(tl.maximum({given(2, shape.most, '0')}, 0), {limit}).to(tl.int32)",
        f"overlap = {given(3, shape.overlap, '0.0')}",
        f"floor = {given(4, shape.floor, infinity)}",
        f"for first in range(0, {n}, {_BOXES}):",
        f"    i = first + tl.arange(0, {_BOXES})",
        f"    s = tl.load({scores} + pair * {n} + i, mask=i < {n}, other=float('-inf'))",
        f"    tl.store(left + i, tl.where(s > floor, s, float('-inf')), mask=i < {n})",
        "tl.debug_barrier()",
        "number = tl.full((), 0, tl.int32)",
        "best = tl.full((), -1, tl.int32)",
        *(f"b{name} = tl.full((), 0.0, tl.float32)" for name in ("l0", "l1", "h0", "h1")),
        "area = tl.full((), 0.0, tl.float32)",
        "more = (most > 0).to(tl.int32)",
        "while more != 0:",
    ]
    inner = [
        "top = tl.full((), float('-inf'), tl.float32)",
        "place = tl.full((), -1, tl.int32)",
        f"for first in range(0, {n}, {_BOXES}):",
    ]
    body = [
        f"i = first + tl.arange(0, {_BOXES})",
        f"s = tl.load(left + i, mask=i < {n}, other=float('-inf'))",
        *(f"a{c} = tl.load(boxes + i * 4 + {c}, mask=i < {n}, other=0.0)" for c in range(4)),
        *_corners(shape.center, "a"),
        *(f"w{x} = tl.maximum(tl.minimum(ah{x}, bh{x}) - tl.maximum(al{x}, bl{x}), 0.0)" for x in range(2)),
        # Products are rounded before they are added, as the reference does, so that equal overlaps stay equal.
        "shared = libdevice.mul_rn(w0, w1)",
        "union = libdevice.mul_rn(ah0 - al0, ah1 - al1) + area - shared",
        "ratio = tl.where(union > 0, libdevice.div_rn(shared, tl.where(union > 0, union, 1.0)), 0.0)",
        "gone = (best >= 0) & ((i == best) | ((ratio <= overlap) == 0))",
        "s = tl.where(gone, float('-inf'), s)",
        f"tl.store(left + i, s, mask=i < {n})",
        "high = tl.max(s, 0)",
        f"where = tl.min(tl.where(s == high, i, {n}), 0)",
        "place = tl.where(high > top, where, place)",
        "top = tl.maximum(top, high)",
    ]
    inner += ["    " + line for line in body]
    inner += [
        "tl.debug_barrier()",
        "best = place",
        "some = best >= 0",
        f"tl.store({kept} + pair * {limit} + number, best, mask=some)",
        *(f"n{c} = tl.load(boxes + best * 4 + {c}, mask=some, other=0.0)" for c in range(4)),
        *_corners(shape.center, "n"),
        *(f"b{name} = n{name}" for name in ("l0", "l1", "h0", "h1")),
        "area = libdevice.mul_rn(bh0 - bl0, bh1 - bl1)",
        "number = number + some.to(tl.int32)",
        "more = (some & (number < most)).to(tl.int32)",
    ]
    lines += ["    " + line for line in inner]
    lines += [*w.release, f"tl.store({counts} + pair, number)"]
    work = shape.pairs * shape.count
    # Products of sizes that data define have thousands of terms; an estimate does without them.
    rounds = shape.limit if isinstance(shape.limit, int) else 1
    return w.kernel(lines, grid=(shape.pairs, 1, 1), warps=8, stages=1, tactic=tactic, flops=work * 20 * rounds, bytes=work * 20)


def _rows(shape: Suppression, target: CudaTarget, tactic: str) -> Kernel:
    """The rows (batch, class, box) of each pair behind those of the pairs before it."""
    w = Writer(target)
    pairs, limit, classes = w.dim(shape.pairs), w.dim(shape.limit), w.dim(shape.scores.shape[1])
    kept, counts = w.pointer(Operand("temp", 1), I32), w.pointer(Operand("temp", 2), I32)
    table = w.pointer(Operand("out", 0), TensorType(I64, (shape.pairs * shape.limit, 3)))
    count = w.pointer(Operand("out", 1), TensorType(I64, (1,)))
    lines = [*w.wait, "pair = tl.program_id(0)", *_sums(counts, pairs, "pair")]
    lines += [
        f"own = tl.load({counts} + pair, mask=pair < {pairs}, other=0)",
        f"for first in range(0, {limit}, {_ROWS}):",
        f"    j = first + tl.arange(0, {_ROWS})",
        f"    box = tl.load({kept} + pair * {limit} + j, mask=j < own, other=0)",
        f"    row = {table} + (base + j) * 3",
        f"    tl.store(row, (j * 0 + pair // {classes}).to(tl.int64), mask=j < own)",
        f"    tl.store(row + 1, (j * 0 + pair % {classes}).to(tl.int64), mask=j < own)",
        "    tl.store(row + 2, box.to(tl.int64), mask=j < own)",
        f"    e = pair * {limit} + j",
        f"    unused = (j < {limit}) & (e >= total) & (e < {w.dim(shape.pairs * shape.limit)})",
        "    for c in range(3):",
        f"        tl.store({table} + e * 3 + c, tl.full(({_ROWS},), 0, tl.int64), mask=unused)",
        f"tl.store({count}, total.to(tl.int64), mask=pair == 0)",
    ]
    grid = (maximum(shape.pairs, 1), 1, 1)
    return w.kernel([*lines, *w.release], grid=grid, warps=4, stages=1, tactic=tactic, bytes=shape.pairs * shape.limit * 28)
