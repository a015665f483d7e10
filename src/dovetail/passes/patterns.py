"""Small matchers that the recognise rules share: producers by op, products as factors, scalars with guards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dovetail.ir.graph import Module, Node, Value
from dovetail.passes.clean import used_once
from dovetail.passes.constants import guard, scalar


def made_by(value: Value | None, *ops: str) -> Node | None:
    """The producer of a value if it is one of the ops."""
    node = value.producer if value is not None else None
    return node if node is not None and node.op in ops else None


def either_order(node: Node) -> Iterator[tuple[Value, Value]]:
    """The two operands of a commutative node, both ways round."""
    a, b = node.input(0), node.input(1)
    yield a, b
    if a is not b:
        yield b, a


def is_near(number: float | None, wanted: float, tolerance: float = 1e-3) -> bool:
    """Whether a constant is `wanted` up to the rounding that exporters and narrow types apply to it."""
    return number is not None and abs(number - wanted) <= tolerance * abs(wanted)


class Scalars:
    """Scalars that a rule has read; `commit` records the guards once the rule applies."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.used: list[Value] = []

    def number(self, value: Value | None) -> float | None:
        """The number in a one-element WEIGHT-time value, else None."""
        found = scalar(self.module, value)
        if found is None or value is None or isinstance(found, bool):
            return None
        self.used.append(value)
        return float(found)

    def commit(self, rewrite: str) -> None:
        """Record a guard on every scalar that was read."""
        for value in self.used:
            guard(self.module, value, rewrite)


@dataclass
class Product:
    """A value as a number times factors (as often as they occur)."""

    number: float = 1.0
    factors: list[Value] = field(default_factory=list)


def factors_of(value: Value, scalars: Scalars, *, root: bool = True) -> Product:
    """Flatten a tree of Mul, and Div by scalars, of which only this tree reads the inner results."""
    node = made_by(value, "Mul", "Div")
    if node is None or not (root or used_once(value)):
        return Product(1.0, [value])
    if node.op == "Div":
        divisor = scalars.number(node.input(1))
        if divisor is None or divisor == 0:
            return Product(1.0, [value])
        product = factors_of(node.input(0), scalars, root=False)
        product.number /= divisor
        return product
    product = Product()
    for operand in (node.input(0), node.input(1)):
        number = scalars.number(operand)
        if number is not None and operand.tensor.rank <= value.tensor.rank:
            product.number *= number
        else:
            inner = factors_of(operand, scalars, root=False)
            product.number *= inner.number
            product.factors += inner.factors
    return product


def added_number(value: Value, scalars: Scalars) -> tuple[Value, float] | None:
    """(x, c) of x + c with a scalar c."""
    node = made_by(value, "Add")
    if node is None:
        return None
    for x, c in either_order(node):
        number = scalars.number(c)
        if number is not None:
            return x, number
    return None


def trailing_axis(node: Node) -> int | None:
    """The first axis of a reduction that keeps dims and takes all axes from it on."""
    rank = node.input(0).tensor.rank
    axes = tuple(sorted(node.attrs["axes"]))
    if not axes or not node.attrs.get("keepdims", True) or axes != tuple(range(axes[0], rank)):
        return None
    return int(axes[0])
