"""OpSpecs of reductions, arg-extrema, cumulative sums and products, and softmax."""

from __future__ import annotations

from dovetail.core.dims import sym
from dovetail.core.dtypes import I64
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.arithmetic import FLOAT, NUMBER, check_dtype
from dovetail.ops.registry import HOST, REDUCTION, ROW, op

REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")


def _check_axis(name: str, axis: int, rank: int) -> None:
    if not 0 <= axis < rank:
        raise TypeInferenceError(
            f"{name}: got axis {axis} for an input of rank {rank}, expected 0 <= axis < {rank}; "
            "normalise negative axes at import"
        )


def _reduced(name: str, x: TensorType, axes: tuple[int, ...], keepdims: bool) -> TensorType:
    for axis in axes:
        _check_axis(name, axis, x.rank)
    if tuple(sorted(set(axes))) != tuple(axes):
        raise TypeInferenceError(
            f"{name}: got axes {axes}, expected them sorted and distinct; normalise them at import"
        )
    if keepdims:
        return x.with_shape(tuple(1 if i in axes else d for i, d in enumerate(x.shape)))
    return x.with_shape(tuple(d for i, d in enumerate(x.shape) if i not in axes))


def _declare_reduction(name: str, doc: str, *, bools: bool = False) -> None:
    def reduction(x: TensorType, *, axes: tuple[int, ...], keepdims: bool = True) -> TensorType:
        if not (bools and x.dtype.kind == "bool"):
            check_dtype(name, x.dtype, NUMBER)
        return _reduced(name, x, axes, keepdims)

    reduction.__doc__ = doc
    op(name, REDUCTION)(reduction)


for _name, _doc, _bools in (
    ("ReduceSum", "Sum over `axes`; an empty sum is 0. ONNX ReduceSum-13.", False),
    ("ReduceMean", "Mean over `axes`; integers round towards zero. ONNX ReduceMean-18.", False),
    ("ReduceMax", "Maximum over `axes`; NaN wins. ONNX ReduceMax-20.", True),
    ("ReduceMin", "Minimum over `axes`; NaN wins. ONNX ReduceMin-20.", True),
    ("ReduceProd", "Product over `axes`; an empty product is 1. ONNX ReduceProd-18.", False),
):
    _declare_reduction(_name, _doc, bools=_bools)


def _declare_arg(name: str, doc: str) -> None:
    def arg(
        x: TensorType, *, axis: int = 0, keepdims: bool = True, select_last_index: bool = False
    ) -> TensorType:
        check_dtype(name, x.dtype, NUMBER)
        _check_axis(name, axis, x.rank)
        return _reduced(name, x, (axis,), keepdims).with_dtype(I64)

    arg.__doc__ = doc
    op(name, REDUCTION)(arg)


_declare_arg("ArgMax", "Index of the maximum along `axis`, first or last of equals. ONNX ArgMax-13.")
_declare_arg("ArgMin", "Index of the minimum along `axis`, first or last of equals. ONNX ArgMin-13.")


@op("ReduceAt", HOST)
def reduce_at(
    x: TensorType,
    axes: TensorType,
    *,
    function: str,
    keepdims: bool = True,
    symbols: tuple[str, ...],
) -> TensorType:
    """The reduction `function` over axes that are data (integer vector, negative from the end).

    `symbols` names the extents of the output.
    """
    if function not in REDUCTIONS:
        raise TypeInferenceError(
            f"ReduceAt: got function {function!r}, expected one of {', '.join(REDUCTIONS)}; fix the attribute"
        )
    return x.with_shape(tuple(sym(name) for name in symbols))


def _declare_cumulative(name: str, doc: str) -> None:
    def cumulative(
        x: TensorType, *, axis: int, exclusive: bool = False, reverse: bool = False
    ) -> TensorType:
        check_dtype(name, x.dtype, NUMBER)
        _check_axis(name, axis, x.rank)
        return TensorType(x.dtype, x.shape)

    cumulative.__doc__ = doc
    op(name, ROW)(cumulative)


_declare_cumulative("CumSum", "Running sum along `axis`. ONNX CumSum-14.")
_declare_cumulative("CumProd", "Running product along `axis`. ONNX CumProd-26.")


@op("CumulateAt", HOST)
def cumulate_at(
    x: TensorType, axis: TensorType, *, function: str, exclusive: bool = False, reverse: bool = False
) -> TensorType:
    """CumSum or CumProd (`function`) along an axis that is data, negative from the end."""
    if function not in ("CumSum", "CumProd"):
        raise TypeInferenceError(
            f"CumulateAt: got function {function!r}, expected CumSum or CumProd; fix the attribute"
        )
    return TensorType(x.dtype, x.shape)


@op("Softmax", ROW)
def softmax(x: TensorType, *, axis: int = -1) -> TensorType:
    """exp(x) normalised to sum 1 along `axis`. ONNX Softmax-13."""
    check_dtype("Softmax", x.dtype, FLOAT)
    _check_axis("Softmax", axis + x.rank if axis < 0 else axis, x.rank)
    return TensorType(x.dtype, x.shape)


@op("LogSoftmax", ROW)
def log_softmax(x: TensorType, *, axis: int = -1) -> TensorType:
    """log(softmax(x)) along `axis`. ONNX LogSoftmax-13."""
    check_dtype("LogSoftmax", x.dtype, FLOAT)
    _check_axis("LogSoftmax", axis + x.rank if axis < 0 else axis, x.rank)
    return TensorType(x.dtype, x.shape)
