"""Lower precision: run-time fp32 values become fp16 or bf16 where that is safe, with Casts where it is not.

Every run-time node that touches fp32 is *narrow* (operands and result in the narrow type) or *wide* (fp32). A value is
stored as its producer made it, and a reader of the other kind gets a Cast. Kernels compute in fp32 inside whatever they
load, so a Cast next to a fused op costs nothing; only what is stored rounds. Weights stay as they are: where the run
reads one, a weight-time Cast gives the narrow copy, and refit goes on to work.

Wide are ops whose values leave the narrow range or whose meaning is in their low bits: coordinates and other whole
numbers (Iota, casts from wide integers, the grids and boxes of GridSample, RoiAlign, NonMaxSuppression), running sums,
sums and products over axes, powers, exponentials and logarithms outside of recognised forms, squares that are averaged
and the means that are subtracted from their own operand (a variance that no norm was recognised in), angles,
quantisation, comparisons and TopK, and the user's own Casts to fp32. What is computed from wide values alone stays wide
(*level* RANGE or COORDINATE) until an op bounds it or joins it with a narrow value; that op is computed in fp32 and
stored narrow. Contractions, norms, softmax, attention, activations, pooling and movement are narrow. Recurrent ops are
narrow, too: gates saturate, and their references and kernels keep the state in fp32 within the op.

Finite numbers beyond the range (masks of -3.4e38) become its ends, never infinities; infinities stay, for they hide.
Values that a run in fp32 has shown to be too large for fp16 (`Kept`) are stored in fp32: what computes them and what reads
them is wide. A contraction of narrow operands goes on to multiply these, and only its result is widened before it is stored.
Inputs, outputs and regions of control flow keep their types.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.types import TensorType
from dovetail.ops.infer import infer
from dovetail.ops.registry import OpKind, find
from dovetail.passes.identities import is_exact_cast

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
NARROW = {"fp16": F16, "bf16": BF16}
"""The element type of the precisions that this pass lowers to."""

LARGEST = {F16: 65504.0, BF16: 2.0**127 * (2 - 2.0**-7)}
"""The largest finite number of an element type."""


class Level(enum.IntEnum):
    """How much a value needs fp32: not at all, for its range, for its low bits."""

    NONE = 0
    RANGE = 1
    COORDINATE = 2


class Wish(enum.Enum):
    """What the readers of a value read."""

    NARROW = enum.auto()
    MIXED = enum.auto()
    WIDE = enum.auto()


@dataclass(frozen=True)
class Kept:
    """Values that are kept in fp32 because of their size.

    Attributes:
        largest: name of a value → the largest magnitude that was seen of it.
        strict: those of them that a contraction gives and nothing widens as it is stored; the whole contraction is then wide.
        nodes: names of nodes of the model that are computed in fp32 because the user says so; "*" stands for anything.
    """

    largest: Mapping[str, float] = field(default_factory=dict)
    strict: frozenset[str] = frozenset()
    nodes: Sequence[str] = ()

    def named(self, node: Node) -> str:
        """The first name or pattern that means a node, or ""."""
        return next((p for p in self.nodes if any(n == p or fnmatchcase(n, p) for n in node.origin)), "")


@dataclass
class PrecisionLog:
    """What the pass did.

    Attributes:
        precision: the one asked for.
        narrow: number of nodes that take and give narrow values.
        kept: (node, reason) of the nodes kept in fp32.
        casts: number of run-time Casts inserted.
    """

    precision: str
    narrow: int = 0
    kept: list[tuple[str, str]] = field(default_factory=list)
    casts: int = 0


# op -> (level of the result, why it is computed in fp32)
_WIDE: dict[str, tuple[Level, str]] = {
    "Exp": (Level.RANGE, "exponentials overflow"),
    "Sinh": (Level.RANGE, "exponentials overflow"),
    "Cosh": (Level.RANGE, "exponentials overflow"),
    "Pow": (Level.RANGE, "powers overflow"),
    "Log": (Level.RANGE, "small arguments underflow"),
    "Reciprocal": (Level.NONE, "small arguments overflow"),
    "Sin": (Level.NONE, "angles need their low bits"),
    "Cos": (Level.NONE, "angles need their low bits"),
    "Tan": (Level.NONE, "angles need their low bits"),
    "Mod": (Level.COORDINATE, "remainders need the low bits"),
    "CumSum": (Level.RANGE, "running sums overflow"),
    "CumProd": (Level.RANGE, "running products overflow"),
    "ReduceSum": (Level.RANGE, "sums overflow"),
    "ReduceProd": (Level.RANGE, "products overflow"),
    "LpPool": (Level.RANGE, "sums of powers overflow"),
    "Col2Im": (Level.RANGE, "sums overflow"),
    "TopK": (Level.RANGE, "rounding would change the order"),
    "Iota": (Level.COORDINATE, "whole numbers"),
    "AffineGrid": (Level.COORDINATE, "coordinates"),
    "NonMaxSuppression": (Level.NONE, "boxes are coordinates"),
    "DequantizeLinear": (Level.NONE, "scales are fp32"),
    "QuantizeLinear": (Level.NONE, "scales are fp32"),
}
# Operands that hold coordinates, whatever the others are.
_COORDINATES = {"GridSample": (1,), "RoiAlign": (1,), "MaxRoiPool": (1,), "Resize": (1, 2), "DeformConv": (2,)}
# Functions with bounded results.
_BOUNDED = frozenset({"Sigmoid", "Tanh", "Erf", "Softsign", "HardSigmoid", "Sign", "Atan"})
# Movements that a Cast may change places with at no cost: every element is read once and written once.
_REORDERINGS = frozenset({"Reshape", "Transpose", "Concat"})
_WIDENINGS = frozenset({"Expand", "Tile", "Pad"})
_WINDOWS = frozenset({"MaxPool", "AveragePool", "LRN"})
_DATA_SELECTS = frozenset({"Resize", "GridSample", "RoiAlign", "MaxRoiPool", "MaxUnpool", "OneHot"})
# Contractions whose kernels store what follows them: a Cast to fp32 right behind one is its epilogue.
_WIDENED = frozenset({"Conv", "ConvTranspose", "MatMul"})
_CLAMPED_ATTRIBUTES = ("value", "min", "max", "extrapolation_value")
_SEARCH = 64


def lower_precision(module: Module, precision: str, kept: Kept = Kept()) -> PrecisionLog:
    """Retype the run-time fp32 values of the main graph in place; tf32 and fp32 change nothing.

    Args:
        precision: one of `PRECISIONS`.
        kept: values that must not be rounded to the narrow type.
    """
    log = PrecisionLog(precision)
    if precision in NARROW:
        _Lowering(module.main, NARROW[precision], log, kept).run()
    return log


def split_casts(graph: Graph, kept: Collection[str] = ()) -> None:
    """Give every reader of a widening Cast one of its own, so that each can compute it inside its fusion.

    Shared, it would become a kernel that writes fp32; widening a value on each load costs nothing.

    Args:
        kept: names of values that are to be widened before they are stored; their Casts stay as they are.
    """
    for node in list(graph.nodes):
        for region in node.regions:
            split_casts(region)
        if node.op == "Cast" and node.input(0).name in kept:
            continue
        if node.op != "Cast" or graph.time_of(node) != Time.RUN:
            continue
        source, result = node.input(0).tensor.dtype, node.output
        if not (source.is_float and source.bits == 16 and result.tensor.dtype == F32):
            continue
        keep = node if result.is_output else None
        for reader in result.consumers:
            if keep is None:
                keep = reader
            elif reader is not keep:
                copy = graph.add(
                    "Cast", node.inputs, node.attrs, types=[result.type], names=[result.name], origin=node.origin, before=reader
                )
                for position, value in enumerate(reader.inputs):
                    if value is result:
                        graph.set_input(reader, position, copy.output)


def _is_wide_float(value: Value | None) -> bool:
    return value is not None and isinstance(value.type, TensorType) and value.type.dtype == F32


class _Lowering:
    def __init__(self, graph: Graph, narrow: DType, log: PrecisionLog, kept: Kept) -> None:
        self.graph, self.narrow, self.log, self.kept = graph, narrow, log, kept
        graph.update_times()
        self.nodes = [
            n
            for n in graph.nodes
            if graph.time_of(n) == Time.RUN and any(_is_wide_float(v) for v in (*n.operands, *n.outputs))
        ]
        self.level: dict[Value, Level] = {}
        self.fixed: dict[Node, str | None] = {}  # None: narrow, else why it is wide; absent: as its readers wish
        self.wide: dict[Node, str] = {}  # with the reason
        self.hopeful: set[Node] = set()  # wide only because their readers are
        self.originals = {v for v in graph.values() if _is_wide_float(v)}
        self.exports: set[Value] = set()  # results of wide nodes that are stored narrow
        self.casts: dict[Value, Value] = {}

    def run(self) -> None:
        """Decide, then retype."""
        for node in self.nodes:
            self._classify(node)
        for node in reversed(self.nodes):
            self._decide(node)
        changed = True
        while changed:
            changed = False
            for node in reversed(self.nodes):
                changed |= node in self.hopeful and self._reconsider(node)
        for node in self.nodes:
            self._count(node)
        for node in self.nodes:
            self._retype(node)
        self._outputs()
        self.graph.update_times()

    # ------------------------------------------------------------------ forward: what must be wide
    def _levels(self, node: Node) -> list[Level]:
        """Levels of the fp32 operands that only the run knows."""
        return [self.level.get(v, Level.NONE) for v in node.operands if _is_wide_float(v) and v.time == Time.RUN]

    def _classify(self, node: Node) -> None:
        levels = self._levels(node)
        level, reason = self._rule(node, levels)
        reason = ("fp32_nodes says so" if self.kept.named(node) else self._too_large(node)) or reason
        if reason != "":
            self.fixed[node] = reason
        for value in node.outputs:
            self.level[value] = level

    def _too_large(self, node: Node) -> str:
        """Why a node that gives or reads values beyond the narrow range is wide; "" for others."""
        largest, given = self.kept.largest, [v.name for v in node.outputs if v.name in self.kept.largest]
        read = [v.name for v in node.operands if v.name in largest]
        if read:
            return f"reads values of up to {max(largest[n] for n in read):.2g}, beyond the safe range of {self.narrow}"
        if not given or (node.op in _WIDENED and not self.kept.strict.intersection(given)):
            return ""
        return f"gives values of up to {max(largest[n] for n in given):.2g}, beyond the safe range of {self.narrow}"

    def _rule(self, node: Node, levels: list[Level]) -> tuple[Level, str | None]:
        """(level of the results, why the node is wide; None: it is narrow; "": either)."""
        spec = find(node.op)
        if node.regions or spec is None or not all(isinstance(v.type, TensorType) for v in (*node.operands, *node.outputs)):
            return Level.NONE, "control flow and sequences keep fp32"
        if node.op in _WIDE:
            level, reason = _WIDE[node.op]
            return max(level, min(levels)) if node.op == "Reciprocal" else level, reason
        if node.op == "Cast":
            return self._cast_rule(node)
        if not any(_is_wide_float(v) for v in node.outputs):
            return Level.NONE, f"{node.op} reads fp32"
        lowest, highest = min(levels, default=Level.NONE), max(levels, default=Level.NONE)
        if spec.kind is OpKind.CONTRACTION:
            if node.op == "MatMul" and lowest is Level.COORDINATE and _feeds_angles(node.output):
                return Level.COORDINATE, "computes angles from positions"
            return Level.NONE, None
        if spec.kind in (OpKind.ROW, OpKind.RECURRENT) or node.op in _WINDOWS:
            return Level.NONE, None
        if spec.kind is OpKind.POINTWISE:
            return self._pointwise_rule(node, lowest, highest)
        if spec.kind is OpKind.REDUCTION:
            if node.op == "ReduceMean" and (lowest or _is_square(node.input(0)) or _is_subtracted(node)):
                return max(lowest, Level.RANGE), "a variance, or the mean of one"
            return lowest, ""
        if node.op in _DATA_SELECTS:
            return Level.NONE, None
        if spec.kind is OpKind.MOVEMENT or (spec.kind is OpKind.SELECT and len(node.outputs) == 1):
            return lowest, ""
        return Level.NONE, f"{node.op} is computed in fp32"

    def _cast_rule(self, node: Node) -> tuple[Level, str | None]:
        source, to = node.input(0).tensor.dtype, node.attrs["to"]
        if to != F32:
            return Level.NONE, "the user's Cast"
        if source.is_float:
            return Level.RANGE, "the user's Cast to fp32"
        if is_exact_cast(source, self.narrow):
            return Level.NONE, None
        return Level.COORDINATE, "whole numbers"

    def _pointwise_rule(self, node: Node, lowest: Level, highest: Level) -> tuple[Level, str | None]:
        if node.op == "Div" and node.input(1).time != Time.RUN:
            return lowest, "the divisor may underflow"
        if highest is Level.NONE:
            return Level.NONE, ""
        if lowest is Level.NONE:
            return Level.NONE, "an operand is kept in fp32"
        return Level.NONE if node.op in _BOUNDED else highest, "its operands are kept in fp32"

    # ------------------------------------------------------------------ backward: what its readers make of it
    def _wish(self, value: Value) -> Wish:
        wide = [self._reads_wide(node, position) for node, position in value.uses]
        if value.is_output:
            wide.append(True)
        if not wide or not any(wide):
            return Wish.NARROW
        return Wish.WIDE if all(wide) else Wish.MIXED

    def _reads_wide(self, node: Node, position: int) -> bool:
        return node in self.wide or position in _COORDINATES.get(node.op, ())

    def _decide(self, node: Node) -> None:
        floats = [v for v in node.outputs if _is_wide_float(v)]
        wishes = {self._wish(v) for v in floats}
        wish = wishes.pop() if len(wishes) == 1 else Wish.MIXED
        level = max((self.level[v] for v in floats), default=Level.NONE)
        if node in self.fixed:
            reason = self.fixed[node]
        elif level is not Level.NONE:
            before = node.op in _REORDERINGS or node.op in _WIDENINGS
            reason = None if wish is Wish.NARROW and before else "its operands are kept in fp32"
        else:
            spec = find(node.op)
            pointwise, moves = spec is not None and spec.kind is OpKind.POINTWISE, _moves_data(node)
            reason = "its result is read in fp32 only" if wish is Wish.WIDE and (pointwise or moves) else None
            if reason is not None:
                self.hopeful.add(node)
        if reason is not None:
            self.wide[node] = reason

    def _reconsider(self, node: Node) -> bool:
        """Make a node narrow again where a reader has become so, and a movement of what others read narrow, too.

        Widening a value ahead of a movement would store all of it once more.
        """
        values = [*node.outputs]
        if _moves_data(node):
            values += [v for v in node.operands if v.time == Time.RUN and v.producer is not None]
        if all(self._wish(v) is Wish.WIDE for v in values if _is_wide_float(v)):
            return False
        self.hopeful.discard(node)
        del self.wide[node]
        return True

    def _count(self, node: Node) -> None:
        if node not in self.wide:
            self.log.narrow += 1
            return
        self.log.kept.append((node.where, self.wide[node]))
        for value in node.outputs:
            if not _is_wide_float(value) or self.level[value] is not Level.NONE or value.name in self.kept.largest:
                continue
            if self._wish(value) is not Wish.WIDE and value.uses:
                self.exports.add(value)

    # ------------------------------------------------------------------ retyping
    def _stored(self, value: Value) -> Value:
        """What holds a value: itself, or the narrow copy of the result of a wide node."""
        return self._cast(value, self.narrow) if value in self.exports else value

    def _fetch(self, value: Value, to: DType) -> Value:
        """A value that was fp32 before this pass, as a reader takes it."""
        stored = self._stored(value)
        return stored if stored.tensor.dtype == to else self._cast(stored, to)

    def _cast(self, value: Value, to: DType) -> Value:
        """The value in another type: a Cast right behind its producer, one for all readers."""
        if value in self.casts:
            return self.casts[value]
        node, type_ = value.producer, value.tensor.with_dtype(to)
        name = [f"{value.name}.{to}"]
        if node is not None and node.op == "Full":
            attrs = node.attrs | {"dtype": to, "value": self._in_range(node.attrs.get("value", 0))}
            made = self.graph.add("Full", (), attrs, types=[type_], names=name, origin=node.origin, before=node.next)
        else:
            before = next(iter(self.graph.nodes), None) if node is None else node.next
            attrs = {"to": to} | ({"clamp": True} if to == self.narrow else {})
            origin = node.origin if node is not None else ()
            made = self.graph.add("Cast", (value,), attrs, types=[type_], names=name, origin=origin, before=before)
            self.log.casts += value.time == Time.RUN
        self.casts[value] = made.output
        return made.output

    def _in_range(self, number: Any) -> Any:
        """A number of an attribute, moved into the narrow type's range unless it is infinite."""
        limit = LARGEST[self.narrow]
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            return number
        return number if abs(number) <= limit else math.copysign(limit, number)

    def _retype(self, node: Node) -> None:
        to = F32 if node in self.wide else self.narrow
        for position, value in enumerate(node.inputs):
            if value is not None and value in self.originals:
                wanted = F32 if position in _COORDINATES.get(node.op, ()) else to
                self.graph.set_input(node, position, self._fetch(value, wanted))
        if to == F32:
            return
        changed = {k: self._in_range(node.attrs[k]) for k in _CLAMPED_ATTRIBUTES if node.attrs.get(k) is not None}
        changed |= {k: to for k in ("to", "dtype") if node.attrs.get(k) == F32}
        node.attrs.update(changed)
        for value, type_ in zip(node.outputs, infer(node.op, node.inputs, node.attrs), strict=True):
            value.type = type_

    def _outputs(self) -> None:
        """Outputs of the model keep type and name."""
        graph, outputs = self.graph, list(self.graph.outputs)
        for position, value in enumerate(outputs):
            if value in self.originals and value.tensor.dtype != F32:
                wide = self._cast(value, F32)
                if not any(o is wide for o in outputs):
                    name, value.name = value.name, graph.unique(value.name)
                    wide.name = name
                outputs[position] = wide
        graph.set_outputs(outputs)


# ---------------------------------------------------------------------- what stands around a node
def _moves_data(node: Node) -> bool:
    """Whether a node only moves elements from its first operand, or all of them, to its result."""
    spec = find(node.op)
    return (spec is not None and spec.kind is OpKind.MOVEMENT) or node.op in ("Gather", "GatherElements", "GatherND")


def _reached(value: Value, *, movements_only: bool = False) -> Iterator[Node]:
    """The readers of a value, and those of what movements (and pointwise ops) make of it."""
    pending, seen = [value], set[Node]()
    while pending and len(seen) < _SEARCH:
        for node in pending.pop().consumers:
            if node in seen:
                continue
            seen.add(node)
            yield node
            spec = find(node.op)
            kinds = (OpKind.MOVEMENT,) if movements_only else (OpKind.MOVEMENT, OpKind.POINTWISE)
            if spec is not None and spec.kind in kinds:
                pending += node.outputs


def _feeds_angles(value: Value) -> bool:
    """Whether Sin or Cos reads a value through movements and pointwise ops."""
    return any(n.op in ("Sin", "Cos") for n in _reached(value))


def is_mask(value: Value) -> bool:
    """Whether nothing but softmax sees a value, through additions, choices and movements: there very negative is as good as less."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current.is_output or not current.uses:
            return False
        for node, position in current.uses:
            if node.op == "Softmax" or (node.op == "Attention" and position == 3):
                continue
            spec = find(node.op)
            moves = spec is not None and spec.kind is OpKind.MOVEMENT
            if not moves and node.op not in ("Add", "Where", "Min", "Max") and not (node.op == "Sub" and position == 0):
                return False
            if node.output not in seen:
                seen.add(node.output)
                pending.append(node.output)
    return True


def _is_square(value: Value) -> bool:
    """Whether a value is x * x."""
    node = value.producer
    return node is not None and node.op == "Mul" and node.input(0) is node.input(1)


def _is_subtracted(mean: Node) -> bool:
    """Whether a mean is subtracted from what it is the mean of."""
    x = mean.input(0)
    return any(n.op == "Sub" and any(v is x for v in n.operands) for n in _reached(mean.output, movements_only=True))
