"""Short constructors of scalar expressions for lowering functions; numbers stand for constants."""

from __future__ import annotations

from dovetail.codegen.loop_ir import Call, Const, Expr, call, const
from dovetail.core.dtypes import BOOL, DType

Operand = Expr | float | int | bool


def _pair(a: Operand, b: Operand) -> tuple[Expr, Expr]:
    if isinstance(a, Expr):
        return a, b if isinstance(b, Expr) else const_of(b, a.dtype)
    assert isinstance(b, Expr)
    return const_of(a, b.dtype), b


def const_of(value: float | int | bool, dtype: DType) -> Expr:
    """A number as a constant of a compute dtype."""
    if dtype == BOOL:
        return const(bool(value), dtype)
    return const(float(value) if dtype.is_float else int(value), dtype)


def binary(fn: str, a: Operand, b: Operand) -> Expr:
    """A function of two operands of one dtype, with a result of that dtype."""
    x, y = _pair(a, b)
    return call(fn, (x, y), x.dtype)


def compare(fn: str, a: Operand, b: Operand) -> Expr:
    """A comparison (lt, le, eq, ne)."""
    return call(fn, _pair(a, b), BOOL)


def add(a: Operand, b: Operand) -> Expr:
    """a + b."""
    return binary("add", a, b)


def sub(a: Operand, b: Operand) -> Expr:
    """a - b."""
    return binary("sub", a, b)


def mul(a: Operand, b: Operand) -> Expr:
    """a * b."""
    return binary("mul", a, b)


def div(a: Operand, b: Operand) -> Expr:
    """a / b; integers truncate."""
    return binary("div", a, b)


def maximum(a: Operand, b: Operand) -> Expr:
    """The larger operand; NaN wins."""
    return binary("max", a, b)


def minimum(a: Operand, b: Operand) -> Expr:
    """The smaller operand; NaN wins."""
    return binary("min", a, b)


def lt(a: Operand, b: Operand) -> Expr:
    """a < b."""
    return compare("lt", a, b)


def le(a: Operand, b: Operand) -> Expr:
    """a <= b."""
    return compare("le", a, b)


def eq(a: Operand, b: Operand) -> Expr:
    """a == b."""
    return compare("eq", a, b)


def ne(a: Operand, b: Operand) -> Expr:
    """a != b."""
    return compare("ne", a, b)


def both(a: Expr, b: Expr) -> Expr:
    """Logical and."""
    return call("and", (a, b), BOOL)


def either(a: Expr, b: Expr) -> Expr:
    """Logical or."""
    return call("or", (a, b), BOOL)


def negate(a: Expr) -> Expr:
    """Logical not."""
    return call("not", (a,), BOOL)


def select(condition: Expr, a: Operand, b: Operand) -> Expr:
    """a where the condition holds, else b."""
    x, y = _pair(a, b)
    return call("select", (condition, x, y), x.dtype)


def unary(fn: str, x: Expr) -> Expr:
    """A function of one operand, with a result of its dtype."""
    return call(fn, (x,), x.dtype)


def cast(x: Expr, dtype: DType) -> Expr:
    """x converted to another compute dtype."""
    if x.dtype == dtype:
        return x
    if isinstance(x, Const) and dtype.is_float and not isinstance(x.value, bool):
        return const(float(x.value), dtype)
    return call("cast", (x,), dtype)


def calls(x: Expr) -> int:
    """Nested calls above loads; a measure of how costly an element is."""
    return 1 + sum(calls(a) for a in x.args) if isinstance(x, Call) else 0
