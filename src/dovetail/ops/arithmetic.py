"""OpSpecs of arithmetic: unary math, binary arithmetic, bit operations, determinant."""

from __future__ import annotations

from collections.abc import Callable

from dovetail.core.dtypes import DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import HOST, POINTWISE, broadcast, op

FLOAT = "a float dtype"
NUMBER = "a number dtype"
SIGNED = "a signed dtype"
INTEGER = "an integer dtype"
BOOLEAN = "bool"

_ACCEPTS: dict[str, Callable[[DType], bool]] = {
    FLOAT: lambda t: t.is_float,
    NUMBER: lambda t: t.is_float or t.is_int,
    SIGNED: lambda t: t.is_float or t.kind == "int",
    INTEGER: lambda t: t.is_int,
    BOOLEAN: lambda t: t.kind == "bool",
}


def check_dtype(op_name: str, dtype: DType, expected: str) -> None:
    """Raise TypeInferenceError unless `dtype` is what `expected` (FLOAT, NUMBER, …) says."""
    if not _ACCEPTS[expected](dtype):
        raise TypeInferenceError(
            f"{op_name}: got dtype {dtype}, expected {expected}; insert a Cast before it"
        )


def check_same_dtype(op_name: str, *types: TensorType) -> None:
    """Raise TypeInferenceError unless all `types` have one dtype."""
    kinds = list(dict.fromkeys(t.dtype for t in types))
    if len(kinds) > 1:
        raise TypeInferenceError(
            f"{op_name}: got dtypes {' and '.join(map(str, kinds))}, expected one dtype; "
            "insert a Cast on one of the inputs"
        )


def _declare_unary(name: str, expected: str, doc: str) -> None:
    def unary(x: TensorType) -> TensorType:
        check_dtype(name, x.dtype, expected)
        return TensorType(x.dtype, x.shape)

    unary.__doc__ = doc
    op(name, POINTWISE)(unary)


def _declare_binary(name: str, expected: str, doc: str) -> None:
    def binary(a: TensorType, b: TensorType) -> TensorType:
        check_same_dtype(name, a, b)
        check_dtype(name, a.dtype, expected)
        return TensorType(a.dtype, broadcast(a.shape, b.shape))

    binary.__doc__ = doc
    op(name, POINTWISE)(binary)


for _name, _expected, _doc in (
    ("Abs", NUMBER, "|x|. ONNX Abs-13."),
    ("Acos", FLOAT, "Inverse cosine. ONNX Acos-22."),
    ("Acosh", FLOAT, "Inverse hyperbolic cosine. ONNX Acosh-22."),
    ("Asin", FLOAT, "Inverse sine. ONNX Asin-22."),
    ("Asinh", FLOAT, "Inverse hyperbolic sine. ONNX Asinh-22."),
    ("Atan", FLOAT, "Inverse tangent. ONNX Atan-22."),
    ("Atanh", FLOAT, "Inverse hyperbolic tangent. ONNX Atanh-22."),
    ("Ceil", FLOAT, "The smallest whole number >= x. ONNX Ceil-13."),
    ("Cos", FLOAT, "Cosine. ONNX Cos-22."),
    ("Cosh", FLOAT, "Hyperbolic cosine. ONNX Cosh-22."),
    ("Erf", NUMBER, "The error function. ONNX Erf-13."),
    ("Exp", FLOAT, "e ** x. ONNX Exp-13."),
    ("Floor", FLOAT, "The largest whole number <= x. ONNX Floor-13."),
    ("Log", FLOAT, "Natural logarithm. ONNX Log-13."),
    ("Neg", SIGNED, "-x. ONNX Neg-13."),
    ("Reciprocal", FLOAT, "1 / x. ONNX Reciprocal-13."),
    ("Round", FLOAT, "The nearest whole number, halves to even. ONNX Round-22."),
    ("Sign", NUMBER, "-1, 0 or 1; NaN stays NaN. ONNX Sign-13."),
    ("Sin", FLOAT, "Sine. ONNX Sin-22."),
    ("Sinh", FLOAT, "Hyperbolic sine. ONNX Sinh-22."),
    ("Sqrt", FLOAT, "Square root. ONNX Sqrt-13."),
    ("Tan", FLOAT, "Tangent. ONNX Tan-22."),
    ("Tanh", FLOAT, "Hyperbolic tangent. ONNX Tanh-13."),
    ("BitwiseNot", INTEGER, "Every bit flipped. ONNX BitwiseNot-18."),
):
    _declare_unary(_name, _expected, _doc)

for _name, _expected, _doc in (
    ("Add", NUMBER, "a + b; integers wrap. ONNX Add-14."),
    ("Sub", NUMBER, "a - b; integers wrap. ONNX Sub-14."),
    ("Mul", NUMBER, "a * b; integers wrap. ONNX Mul-14."),
    ("Div", NUMBER, "a / b; integers round towards zero. ONNX Div-14."),
    ("Max", NUMBER, "The larger; NaN wins. ONNX Max-13 of two."),
    ("Min", NUMBER, "The smaller; NaN wins. ONNX Min-13 of two."),
    ("BitwiseAnd", INTEGER, "Bits set in both. ONNX BitwiseAnd-18."),
    ("BitwiseOr", INTEGER, "Bits set in either. ONNX BitwiseOr-18."),
    ("BitwiseXor", INTEGER, "Bits set in exactly one. ONNX BitwiseXor-18."),
):
    _declare_binary(_name, _expected, _doc)


@op("Mod", POINTWISE)
def mod(a: TensorType, b: TensorType, *, fmod: bool = False) -> TensorType:
    """Remainder with the sign of b, or with `fmod` the sign of a. ONNX Mod-28."""
    check_same_dtype("Mod", a, b)
    check_dtype("Mod", a.dtype, NUMBER)
    return TensorType(a.dtype, broadcast(a.shape, b.shape))


@op("Pow", POINTWISE)
def pow_(base: TensorType, exponent: TensorType) -> TensorType:
    """Base ** exponent in the dtype of the base; the exponent may have another. ONNX Pow-15."""
    check_dtype("Pow", base.dtype, NUMBER)
    check_dtype("Pow", exponent.dtype, NUMBER)
    return TensorType(base.dtype, broadcast(base.shape, exponent.shape))


@op("BitShift", POINTWISE)
def bit_shift(x: TensorType, amount: TensorType, *, direction: str) -> TensorType:
    """Shift LEFT or RIGHT, arithmetically for signed types. ONNX BitShift-28.

    Amounts that are negative or reach the width give 0, or -1 for a negative x shifted right.
    """
    check_same_dtype("BitShift", x, amount)
    check_dtype("BitShift", x.dtype, INTEGER)
    if direction not in ("LEFT", "RIGHT"):
        raise TypeInferenceError(
            f"BitShift: got direction {direction!r}, expected LEFT or RIGHT; fix the attribute"
        )
    return TensorType(x.dtype, broadcast(x.shape, amount.shape))


@op("Det", HOST)
def det(x: TensorType) -> TensorType:
    """Determinant of the last two axes. ONNX Det-22."""
    check_dtype("Det", x.dtype, FLOAT)
    if x.rank < 2:
        raise TypeInferenceError(
            f"Det: got an input of rank {x.rank}, expected rank >= 2; give it square matrices"
        )
    return TensorType(x.dtype, x.shape[:-2])
