"""Algebraic identities of pointwise ops: neutral operands, exact cast chains, nested clips; results without elements."""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.core.dtypes import STR, DType
from dovetail.ir.graph import Node, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.ir.types import TensorType
from dovetail.ops.registry import POINTWISE, broadcast, find
from dovetail.passes.clean import replace, used_once
from dovetail.passes.constants import guard, reads, scalar

# op -> (the neutral number, whether it may also stand on the left)
_NEUTRAL: dict[str, tuple[int, bool]] = {
    "Add": (0, True), "Sub": (0, False), "Mul": (1, True), "Div": (1, False), "Pow": (1, False),
}  # fmt: skip


@rule(*_NEUTRAL)
def drop_neutral_operand(node: Node, rewrite: Rewrite) -> str | None:
    """x + 0, x - 0, x * 1, x / 1 and x ** 1 are x."""
    number, both = _NEUTRAL[node.op]
    sides = ((0, 1), (1, 0)) if both else ((0, 1),)
    for keep, drop in sides:
        x = node.input(keep)
        if x.type == node.output.type and reads(rewrite.module, node.input(drop), number, f"{node.op} by {number}"):
            replace(rewrite, node, x)
            return None
    return "no operand is a neutral number that leaves the type as it is"


@rule("Pow")
def expand_power(node: Node, rewrite: Rewrite) -> str | None:
    """x ** 2 is x * x, x ** 0.5 is sqrt(x), x ** -1 is 1 / x."""
    x, exponent = node.input(0), node.input(1)
    if x.type != node.output.type or not x.tensor.dtype.is_float:
        return "not a float power that keeps its type"
    number = scalar(rewrite.module, exponent)
    if number not in (2, 0.5, -1):
        return f"the exponent is {number}"
    guard(rewrite.module, exponent, f"power {number}")
    if number == 2:
        y = rewrite.emit("Mul", x, x, name=node.output.name)
    else:
        y = rewrite.emit("Sqrt" if number == 0.5 else "Reciprocal", x, name=node.output.name)
    replace(rewrite, node, y)
    return None


# How many significant bits and which exponents a float type has: (precision, smallest, largest exponent).
_FLOAT_RANGE = {
    "f64": (53, -1074, 1023), "f32": (24, -149, 127), "f16": (11, -24, 15), "bf16": (8, -133, 127),
    "f8e4m3": (4, -9, 8), "f8e5m2": (3, -16, 15), "f8e4m3fnuz": (4, -10, 7), "f8e5m2fnuz": (3, -17, 15),
    "f4e2m1": (2, -1, 2), "f8e8m0": (1, -127, 127),
}  # fmt: skip


def is_exact_cast(source: DType, to: DType) -> bool:
    """Whether every value of `source` is a value of `to`."""
    if source == to:
        return True
    if source.kind == "bool":
        return to.is_float or to.is_int
    if source.is_int and to.is_int:
        if source.kind == to.kind:
            return to.bits >= source.bits
        return source.kind == "uint" and to.bits > source.bits
    if source.is_int and to.name in _FLOAT_RANGE:
        magnitude = source.bits - (source.kind == "int")
        precision, _, largest = _FLOAT_RANGE[to.name]
        return magnitude <= precision and magnitude <= largest
    if source.name in _FLOAT_RANGE and to.name in _FLOAT_RANGE:
        a, b = _FLOAT_RANGE[source.name], _FLOAT_RANGE[to.name]
        # The 8-bit types differ in how they treat infinities, NaN and negative zero, so only standard targets count.
        return to.name in ("f64", "f32", "f16", "bf16") and a[0] <= b[0] and a[1] >= b[1] and a[2] <= b[2]
    return False


@rule("Cast")
def simplify_cast(node: Node, rewrite: Rewrite) -> str | None:
    """A cast to the own type vanishes; a cast of an exact cast starts from the first value."""
    x = node.input(0)
    if x.tensor.dtype == node.attrs["to"]:
        replace(rewrite, node, x)
        return None
    inner = x.producer
    if inner is None or inner.op != "Cast":
        return "the operand is no cast"
    source = inner.input(0)
    if not is_exact_cast(source.tensor.dtype, inner.attrs["to"]):
        return f"the cast from {source.tensor.dtype} to {inner.attrs['to']} rounds"
    if source.tensor.dtype == node.attrs["to"]:
        replace(rewrite, node, source)
    else:
        replace(rewrite, node, rewrite.emit("Cast", source, name=node.output.name, **node.attrs))
    return None


@rule("Neg", "Not", "Relu", "Abs")
def drop_repeated_unary(node: Node, rewrite: Rewrite) -> str | None:
    """-(-x) and not not x are x; Relu of Relu and Abs of Abs are one."""
    inner = node.input(0).producer
    if inner is None or inner.op != node.op:
        return "the operand is another op"
    replace(rewrite, node, inner.input(0) if node.op in ("Neg", "Not") else inner.output)
    return None


def _bounds(node: Node) -> tuple[int | float | None, int | float | None]:
    if node.op == "Relu":
        return 0, None
    return node.attrs.get("min"), node.attrs.get("max")


@rule("Clip", "Relu")
def merge_clips(node: Node, rewrite: Rewrite) -> str | None:
    """A Clip (or Relu) of a Clip (or Relu) is one Clip."""
    inner = node.input(0).producer
    if node.op == "Clip" and node.attrs.get("min") is None and node.attrs.get("max") is None:
        replace(rewrite, node, node.input(0))
        return None
    if inner is None or inner.op not in ("Clip", "Relu") or not used_once(inner.output) or inner.op == node.op == "Relu":
        return "the operand is no clip with this one reader"
    (low, high), (outer_low, outer_high) = _bounds(inner), _bounds(node)
    lows = [b for b in (low, outer_low) if b is not None]
    highs = [b for b in (high, outer_high) if b is not None]
    if lows and highs and max(lows) > min(highs):
        return "the ranges do not meet"
    attrs = {}
    if lows:
        attrs["min"] = max(lows)
    if highs:
        attrs["max"] = min(highs)
    if any(isinstance(b, float) for b in attrs.values()) and x_is_int(node.input(0)):
        return "a float bound on integers"
    rewrite.at(node, (*inner.origin, *node.origin))
    replace(rewrite, node, rewrite.emit("Clip", inner.input(0), name=node.output.name, **attrs))
    return None


def x_is_int(value: Value) -> bool:
    """Whether a value holds integers."""
    return value.tensor.dtype.is_int


@rule("Expand")
def expand_to_own_shape(node: Node, rewrite: Rewrite) -> str | None:
    """Expand to the shape that x has is x."""
    if node.input(0).tensor.shape != node.output.tensor.shape:
        return "it widens its input"
    replace(rewrite, node, node.input(0))
    return None


@rule()
def drop_expand_before_broadcast(node: Node, rewrite: Rewrite) -> str | None:
    """A pointwise op broadcasts by itself, so an Expand of one operand that another makes up for can go."""
    spec = find(node.op)
    if spec is None or spec.kind is not POINTWISE or len(node.operands) < 2 or len(node.outputs) != 1:
        return "not a pointwise op of several operands"
    for position, value in enumerate(node.inputs):
        if value is None or value.producer is None or value.producer.op != "Expand":
            continue
        source = value.producer.input(0)
        others = [v.tensor.shape for i, v in enumerate(node.inputs) if v is not None and i != position]
        if broadcast(source.tensor.shape, *others) == node.output.tensor.shape and _is_certain(value, others):
            inputs = [source if i == position else v for i, v in enumerate(node.inputs)]
            rewrite.at(node, (*value.producer.origin, *node.origin))
            replace(rewrite, node, rewrite.emit(node.op, *inputs, name=node.output.name, **node.attrs))
            return None
    return "no operand is an Expand that the others make up for"


def _is_certain(value: Value, others: list[tuple[Dim, ...]]) -> bool:
    """Whether some other operand has exactly the expanded extent on every axis the Expand changed."""
    expand = value.producer
    assert expand is not None
    source, wide = expand.input(0).tensor.shape, value.tensor.shape
    for back in range(1, len(wide) + 1):
        changed = back > len(source) or source[-back] != wide[-back]
        if changed and wide[-back] != 1 and not any(len(o) >= back and o[-back] == wide[-back] for o in others):
            return False
    return True


@rule()
def fill_empty_results(node: Node, rewrite: Rewrite) -> str | None:
    """A result with an extent of 0 has no elements to compute, so nothing need be read for it: it is a Full."""
    spec = find(node.op)
    if node.op in ("Full", "Constant", "Plugin") or node.attrs.get("impure") or (spec is not None and spec.impure):
        return f"{node.op} stays as it is"
    if node.attrs.get("symbols"):
        return "it defines symbols"
    read = [v for v in node.outputs if v.uses or v.is_output]
    if not read or not all(_is_empty(v) for v in read):
        return "a result is not known to be empty, or is no tensor of numbers"
    made = {v: rewrite.emit("Full", name=v.name, shape=v.tensor.shape, value=0, dtype=v.tensor.dtype) for v in read}
    replace(rewrite, node, *(made.get(v, v) for v in node.outputs))
    return None


def _is_empty(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype != STR and 0 in value.type.shape


IDENTITY_RULES = (
    fill_empty_results,
    drop_neutral_operand,
    expand_power,
    simplify_cast,
    drop_repeated_unary,
    merge_clips,
    expand_to_own_shape,
    drop_expand_before_broadcast,
)
