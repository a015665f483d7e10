"""A MatMul group as the GPU templates see it: which axes are rows, columns, depth and batches, and the strides along each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.codegen.tactic import Group
from dovetail.codegen.triton_epilogue import epilogue_reason
from dovetail.core.dims import Dim, product
from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.ir.graph import Value
from dovetail.kernels.fused import broadcast_strides

OPERANDS = (F16, BF16, F32)


@dataclass(frozen=True)
class Axis:
    """One axis of the product.

    Attributes:
        axis: the result's logical axis; None where the result has none (operands of rank 1).
        extent: its extent.
        left, right: element strides of the operands along it.
    """

    axis: int | None
    extent: Dim
    left: Dim
    right: Dim


@dataclass(frozen=True)
class Problem:
    """result[batch, rows, column] = sum over depth of left[batch, rows, depth] * right[batch, depth, column].

    Batch axes along which `right` stays the same count as rows. Where MatMul's first operand is the one that stays the same, or the
    second one has a single column, the operands change places: `left` is then MatMul's second one.

    Attributes:
        batch: axes along which both operands move, or only `right`.
        rows: axes of the tile's rows, outermost first; empty for a single row.
        column: the axis of its columns.
        depth: extent of the sum.
        left, right: input positions of the group.
        left_step, right_step: strides along the depth.
        dtype: of both operands.
    """

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    column: Axis
    depth: Dim
    left: int
    right: int
    left_step: Dim
    right_step: Dim
    dtype: DType

    @property
    def n_rows(self) -> Dim:
        """Rows of one batch."""
        return product(axis.extent for axis in self.rows)

    @property
    def row_axes(self) -> tuple[tuple[int, Dim], ...]:
        """(logical axis of the result, extent) of the rows, outermost first."""
        return tuple((x.axis, x.extent) for x in self.rows if x.axis is not None)

    @property
    def n_batch(self) -> Dim:
        """Products of their own."""
        return product(axis.extent for axis in self.batch)

    @property
    def flops(self) -> Dim:
        """Arithmetic operations."""
        return self.n_batch * self.n_rows * self.column.extent * self.depth * 2


def problem_reason(group: Group) -> str | None:
    """None if a group is a product with an epilogue that the GPU templates compute, else the reason why not."""
    anchor = group.anchor
    if anchor is None or anchor.op != "MatMul":
        return "the group is not built around a MatMul"
    if any(v.producer is not None for v in anchor.operands):
        return "an operand of MatMul is computed inside the group"
    dtypes = {v.tensor.dtype for v in anchor.operands}
    if len(dtypes) != 1 or not dtypes <= set(OPERANDS):
        return f"operands of {', '.join(sorted(map(str, dtypes)))}, expected one of {', '.join(map(str, OPERANDS))}"
    shape = anchor.output.tensor.shape
    for value in group.body.outputs:
        if value.tensor.shape != shape:
            return f"output {value.name} has another shape than {anchor.op}"
    if any(d == 0 for v in (anchor.output, *anchor.operands) for d in v.tensor.shape):
        return "an extent is zero"
    return epilogue_reason(group.body, anchor)


def problem(group: Group) -> Problem:
    """The axes of a group that `problem_reason` accepts."""
    anchor = group.anchor
    assert anchor is not None
    a, b = anchor.input(0), anchor.input(1)
    rank = max(a.tensor.rank, b.tensor.rank, 2) - 2
    a_strides, b_strides = _strides(group, a, rank), _strides(group, b, rank)
    a_all, b_all = a_strides, b_strides
    if a.tensor.rank == 1:
        a_all = (*a_strides[:-1], 0, a_strides[-1])
    if b.tensor.rank == 1:
        b_all = (*b_strides, 0)
    shape = anchor.output.tensor.shape
    has_m, has_n = a.tensor.rank > 1, b.tensor.rank > 1
    row = Axis(rank if has_m else None, a.tensor.shape[-2] if has_m else 1, a_all[-2], 0)
    column = Axis(rank + has_m if has_n else None, b.tensor.shape[-1] if has_n else 1, 0, b_all[-1])
    batch = [Axis(n, shape[n], a_all[n], b_all[n]) for n in range(rank) if shape[n] != 1]
    shared_left = bool(batch) and all(x.left == 0 for x in batch) and any(x.right != 0 for x in batch)
    found = Problem((), (), column, a.tensor.shape[-1], a.index, b.index, a_all[-1], b_all[-2], a.tensor.dtype)
    if shared_left or (column.extent == 1 and not batch):
        batch = [Axis(x.axis, x.extent, x.right, x.left) for x in batch]
        row, column = Axis(column.axis, column.extent, column.right, 0), Axis(row.axis, row.extent, 0, row.left)
        found = Problem((), (row,), column, found.depth, b.index, a.index, b_all[-2], a_all[-1], found.dtype)
    merged = tuple(x for x in batch if x.right == 0)
    rows = tuple(x for x in (*merged, row) if x.axis is not None)
    return Problem(
        tuple(x for x in batch if x.right != 0), rows, column, found.depth, found.left, found.right, found.left_step,
        found.right_step, found.dtype,
    )  # fmt: skip


def _strides(group: Group, value: Value, rank: int) -> tuple[Dim, ...]:
    """Strides along [batch..., own matrix axes] of a MatMul operand, where it lies outside the group."""
    return broadcast_strides(group.inputs[value.index].tensor, rank + min(value.tensor.rank, 2))


def by_axis(axes: Sequence[Axis], right: bool, rank: int) -> list[Dim]:
    """Strides of one operand along the logical axes of a result of `rank`."""
    strides: list[Dim] = [0] * rank
    for axis in axes:
        if axis.axis is not None:
            strides[axis.axis] = axis.right if right else axis.left
    return strides


def traffic(group: Group, p: Problem) -> Dim:
    """Bytes of the product's operands and of the results."""
    operands = [group.inputs[p.left], group.inputs[p.right]]
    return sum((v.tensor.size * v.tensor.dtype.itemsize for v in (*operands, *group.outputs)), 0)
