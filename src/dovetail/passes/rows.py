"""What treats rows alike: nodes that compute every row of an operand in the same way, wherever it stands among the others.

A *row* is what the last axis runs along. A product with a matrix, a norm over the last axis, and a pointwise op whose other
operands are vectors along the last axis are *row-wise*: merging, splitting or permuting the axes ahead of the last one before
such an op is the same as doing so after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.core.dims import Dim, product
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.rewriter import Rewrite
from dovetail.ops.registry import POINTWISE, find
from dovetail.passes.clean import used_once
from dovetail.passes.split_rules import split_runs

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax"})
_IMAGES = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})
_LONGEST = 16  # how far a rule looks for what a moved op would cancel with


@dataclass(frozen=True)
class RowWise:
    """A node that computes each row of one operand in the same way.

    Attributes:
        last: whether it tells the elements of a row apart; if not, any movement of elements passes it.
    """

    node: Node
    position: int
    last: bool

    @property
    def value(self) -> Value:
        """The operand that holds the rows."""
        return self.node.input(self.position)

    def over(self, rewrite: Rewrite, rows: Value, name: str = "") -> Value:
        """The same op over other rows, whose last axis is the same if `last`."""
        node, attrs = self.node, dict(self.node.attrs)
        rewrite.origin = node.origin
        inputs = [rows if i == self.position else no_wider(rewrite, v, rows) for i, v in enumerate(node.inputs)]
        if node.op in _NORMS:
            attrs["axis"] = rows.tensor.rank - 1
        return rewrite.emit(node.op, *inputs, name=name, **attrs)


def no_wider(rewrite: Rewrite, operand: Value | None, rows: Value) -> Value | None:
    """A vector along the last axis without leading axes that the rows do not have."""
    if operand is None or operand.tensor.rank <= rows.tensor.rank:
        return operand
    return rewrite.emit("Reshape", operand, shape=operand.tensor.shape[-1:])


def row_wise(node: Node, position: int) -> RowWise | str:
    """How a node treats the rows of one operand, or why it does not treat them alike."""
    value = node.inputs[position]
    if value is None or value.time != Time.RUN or value.tensor.rank < 2 or len(node.outputs) != 1:
        return "it has no rows of a run"
    if node.op == "MatMul":
        is_matrix = position == 0 and node.input(1).tensor.rank == 2
        return RowWise(node, position, True) if is_matrix else "it is no product of rows with a matrix"
    if node.op in _NORMS:
        rank = value.tensor.rank
        over_last = position == 0 and node.attrs.get("axis", -1) % rank == rank - 1
        return RowWise(node, position, True) if over_last else "it is not over the last axis alone"
    spec = find(node.op)
    if spec is None or spec.kind is not POINTWISE:
        return f"{node.op} does not treat rows alike"
    others = [v for i, v in enumerate(node.inputs) if v is not None and i != position]
    if any(d != 1 for v in others for d in v.tensor.shape[:-1]) or value.tensor.shape != node.output.tensor.shape:
        return "another operand is no vector along the last axis"
    numbers = all(d == 1 for v in others for d in v.tensor.shape)
    if "axis" in node.attrs and not (numbers and all(v.tensor.rank == 0 for v in others)):
        return f"{node.op} counts axes"
    return RowWise(node, position, not numbers)


def leads_to(value: Value, op: str, keeps_last: bool = True) -> bool:
    """Whether the only way in which a value is read, over row-wise ops, ends in a Reshape or Transpose."""
    for _ in range(_LONGEST):
        if not used_once(value):
            return False
        node, position = value.uses[0]
        if node.op == op:
            return True
        if not (op == "Transpose" and node.op == "Reshape" and only_splits(node)):
            way = row_wise(node, position)
            if isinstance(way, str) or (way.last and not keeps_last):
                return False
        value = node.output
    return False


def only_splits(reshape: Node) -> bool:
    """Whether a Reshape does nothing but split axes."""
    return split_runs(reshape.input(0).tensor.shape, reshape.output.tensor.shape) is not None


def merged_axes(reshape: Node) -> list[list[int]] | None:
    """For each axis of a Reshape's result, the axes of its operand that it merges; None if it does anything but merge."""
    return split_runs(reshape.output.tensor.shape, reshape.input(0).tensor.shape)


def row_wise_above(node: Node) -> RowWise | None:
    """A node as a row-wise op over the first operand whose rows it treats alike."""
    ways = (row_wise(node, i) for i in range(len(node.inputs)))
    return next((way for way in ways if not isinstance(way, str)), None)


def comes_from_transpose(value: Value, keeps_last: bool) -> bool:
    """Whether a value is made from a Transpose, over row-wise ops and merging Reshapes whose results are read once."""
    for _ in range(_LONGEST):
        node = value.producer
        if node is not None and node.op == "Transpose":
            return True
        if node is None or not used_once(value):
            return False
        if node.op == "Reshape" and merged_axes(node) is not None:
            value = node.input(0)
            continue
        way = row_wise_above(node)
        if way is None or (way.last and not keeps_last):
            return False
        value = way.value
    return False


def moves_rows(perm: tuple[int, ...]) -> bool:
    """Whether a Transpose leaves the last axis in its place."""
    return perm[-1] == len(perm) - 1


def is_product(value: Value, longest: int = _LONGEST) -> bool:
    """Whether a value is a product with a matrix and pointwise ops after it, each read once: what fuses into one kernel."""
    node = value.producer
    if node is None or not used_once(value) or not longest:
        return False
    if node.op == "MatMul":
        return node.input(1).tensor.rank == 2
    spec = find(node.op)
    if spec is None or spec.kind is not POINTWISE:
        return False
    return any(is_product(v, longest - 1) for v in node.operands if v.tensor.shape == value.tensor.shape)


def shape_of_rows(x: Value, merged: Value) -> tuple[Dim, ...] | None:
    """The shape of x with its trailing axes merged into the last axis of its Reshape; None if that mixes rows."""
    shape, extent = x.tensor.shape, merged.tensor.shape[-1]
    for at in range(len(shape) - 1, 0, -1):
        if product(shape[at:]) == extent:
            # Where a row has no elements, equally many elements do not say equally many rows.
            known = (isinstance(extent, int) and extent != 0) or product(shape[:at]) == product(merged.tensor.shape[:-1])
            return (*shape[:at], extent) if known else None
    return None


def is_vector(value: Value) -> bool:
    """Whether a value varies along its last axis alone."""
    return all(d == 1 for d in value.tensor.shape[:-1])


def is_image(value: Value) -> bool:
    """Whether a convolution or pooling, and what is computed of its result alone, makes a value."""
    for _ in range(_LONGEST):
        node = value.producer
        if node is None or node.op in _IMAGES:
            return node is not None
        way = None if node.op == "Reshape" else row_wise_above(node)
        if node.op != "Reshape" and (way is None or way.last):
            return False
        value = node.input(0) if way is None else way.value
    return False
