"""What generated scalar code is in every language: element types, functions, ranges, the form of index polynomials.

`c_scalar` and `triton_scalar` say how it is spelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from dovetail.core.dims import Dim, Symbol
from dovetail.core.dtypes import F32, F64, DType

INTEGERS = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64")
"""Names of the integer types of generated code."""

DTYPES = ("f16", "bf16", "f32", "f64", "bool", *INTEGERS)
"""Names of all element types of generated code."""

OPERATORS: Mapping[str, str] = {
    "add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "!=",
    "bitand": "&", "bitor": "|", "bitxor": "^",
}  # fmt: skip
"""Functions of the loop IR that are binary operators."""

FUNCTIONS = frozenset(
    {
        "exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
        "cosh", "asinh", "acosh", "atanh", "pow", "fmod", "floor", "ceil", "rint", "trunc", "copysign",
    }
)  # fmt: skip
"""Functions of the loop IR on floats that a mathematical library computes."""


def integer_name(dtype: DType) -> str:
    """An integer type as most languages write it: "uint8", "int64"."""
    return f"{'u' if dtype.kind == 'uint' else ''}int{dtype.bits}"


def double_reason(fn: str, dtype: DType, known: Collection[str]) -> str | None:
    """None if function `fn` exists on operands of `dtype`, else the reason; `known` are those of `FUNCTIONS` that fp64 has."""
    if dtype == F64 and fn in FUNCTIONS and fn not in known:
        return f"{fn} is not generated in double precision"
    return None


def non_finite(number: float, dtype: DType) -> str:
    """"nan", "inf" or "-inf" where a constant is that in a compute dtype, else ""."""
    if math.isnan(number):
        return "nan"
    if math.isinf(number) or (dtype == F32 and abs(number) >= 2.0**128):
        return "-inf" if number < 0 else "inf"
    return ""


def wraps(operand: DType, dtype: DType) -> bool:
    """Whether a cast goes through int64, so that values beyond the range keep their low bits."""
    return operand.is_float and dtype.is_int and dtype.bits < 64


def neutral(kind: str, dtype: DType) -> float | int | bool:
    """What a reduction ("sum", "prod", "max", "min") starts from: 0, 1, or the far end of the range."""
    if kind in ("sum", "prod"):
        return 0 if kind == "sum" else 1
    low = kind == "max"
    if dtype.is_float:
        return -math.inf if low else math.inf
    if dtype.kind == "bool":
        return not low
    signed = dtype.kind == "int"
    least = -(2 ** (dtype.bits - 1)) if signed else 0
    most = 2 ** (dtype.bits - signed) - 1
    return least if low else most


@dataclass(frozen=True)
class DimSyntax:
    """How a language spells index polynomials.

    Attributes:
        suffix: of every literal.
        quotient, remainder: operators on operands that are not negative.
        floored: `//` or `%` of any two operands, rounded down.
        extreme: the larger ("max") or smaller ("min") one of two operands.
    """

    suffix: str
    quotient: str
    remainder: str
    floored: Callable[[str, str, str], str]
    extreme: Callable[[str, str, str], str]


def dim_text(d: Dim, names: Mapping[str, str], plain: Callable[[Dim], bool], syntax: DimSyntax) -> str:
    """A Dim as an integer expression; `plain(d)` says that d is known not to be negative."""
    if isinstance(d, int):
        return f"{d}{syntax.suffix}" if d >= 0 else f"({d}{syntax.suffix})"
    parts: list[str] = []
    for monomial, factor in d.terms:
        words = [f"{abs(factor)}{syntax.suffix}"] if abs(factor) != 1 or not monomial else []
        for atom in monomial:
            if isinstance(atom, Symbol):
                words.append(names[atom.name])
                continue
            a, b = (dim_text(x, names, plain, syntax) for x in atom.args)
            if atom.op not in ("//", "%"):
                words.append(syntax.extreme(atom.op, a, b))
            elif all(plain(x) for x in atom.args):
                words.append(f"({a} {syntax.quotient if atom.op == '//' else syntax.remainder} {b})")
            else:
                words.append(syntax.floored(atom.op, a, b))
        parts.append(("- " if factor < 0 else "+ ") + " * ".join(words))
    text = " ".join(parts)
    return f"({text[2:]})" if text.startswith("+ ") else f"(0{syntax.suffix} {text})"
