"""OpSpecs of comparison, logic and selection by mask."""

from __future__ import annotations

from dovetail.core.dtypes import BOOL
from dovetail.ir.types import TensorType
from dovetail.ops.arithmetic import BOOLEAN, FLOAT, check_dtype, check_same_dtype
from dovetail.ops.registry import POINTWISE, broadcast, op


def _declare_comparison(name: str, expected: str | None, doc: str) -> None:
    def compare(a: TensorType, b: TensorType) -> TensorType:
        check_same_dtype(name, a, b)
        if expected is not None:
            check_dtype(name, a.dtype, expected)
        return TensorType(BOOL, broadcast(a.shape, b.shape))

    compare.__doc__ = doc
    op(name, POINTWISE)(compare)


for _name, _expected, _doc in (
    ("Equal", None, "a == b, strings too; NaN equals nothing. ONNX Equal-19."),
    ("Less", None, "a < b. ONNX Less-13."),
    ("LessOrEqual", None, "a <= b. ONNX LessOrEqual-16."),
    ("Greater", None, "a > b. ONNX Greater-13."),
    ("GreaterOrEqual", None, "a >= b. ONNX GreaterOrEqual-16."),
    ("And", BOOLEAN, "Both. ONNX And-7."),
    ("Or", BOOLEAN, "Either. ONNX Or-7."),
    ("Xor", BOOLEAN, "Exactly one. ONNX Xor-7."),
):
    _declare_comparison(_name, _expected, _doc)


@op("Not", POINTWISE)
def not_(x: TensorType) -> TensorType:
    """The opposite truth value. ONNX Not-1."""
    check_dtype("Not", x.dtype, BOOLEAN)
    return TensorType(BOOL, x.shape)


@op("Where", POINTWISE)
def where(condition: TensorType, a: TensorType, b: TensorType) -> TensorType:
    """A where the condition holds, else b; all three broadcast. ONNX Where-16."""
    check_dtype("Where", condition.dtype, BOOLEAN)
    check_same_dtype("Where", a, b)
    return TensorType(a.dtype, broadcast(condition.shape, a.shape, b.shape))


@op("IsNaN", POINTWISE)
def is_nan(x: TensorType) -> TensorType:
    """Whether each element is not a number. ONNX IsNaN-20."""
    check_dtype("IsNaN", x.dtype, FLOAT)
    return TensorType(BOOL, x.shape)


@op("IsInf", POINTWISE)
def is_inf(
    x: TensorType, *, detect_negative: bool = True, detect_positive: bool = True
) -> TensorType:
    """Whether each element is an infinity of a sign asked for. ONNX IsInf-20."""
    check_dtype("IsInf", x.dtype, FLOAT)
    return TensorType(BOOL, x.shape)
