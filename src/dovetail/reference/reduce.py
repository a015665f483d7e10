"""NumPy meaning of reductions, arg-extrema and cumulative sums and products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.reference.arithmetic import divide_truncating
from dovetail.reference.registry import lookup, reference
from dovetail.reference.widen import Array, narrow, widen


def _accumulator(x: Array) -> np.dtype[Any]:
    """Floats accumulate in float64, so that the reference does not depend on the order of sums."""
    return np.dtype(np.float64) if widen(x).dtype.kind == "f" else x.dtype


@reference("ReduceSum")
def reduce_sum(x: Array, *, axes: Sequence[int], keepdims: bool = True) -> Array:
    """Sum over `axes`; an empty sum is 0. ONNX ReduceSum-13."""
    kind = _accumulator(x)
    with np.errstate(all="ignore"):
        total = np.sum(widen(x), axis=tuple(axes), keepdims=keepdims, dtype=kind)
        return np.asarray(total).astype(x.dtype)


@reference("ReduceProd")
def reduce_prod(x: Array, *, axes: Sequence[int], keepdims: bool = True) -> Array:
    """Product over `axes`; an empty product is 1. ONNX ReduceProd-18."""
    kind = _accumulator(x)
    with np.errstate(all="ignore"):
        total = np.prod(widen(x), axis=tuple(axes), keepdims=keepdims, dtype=kind)
        return np.asarray(total).astype(x.dtype)


@reference("ReduceMean")
def reduce_mean(x: Array, *, axes: Sequence[int], keepdims: bool = True) -> Array:
    """Mean over `axes`; integers are divided towards zero, an empty mean is NaN. ONNX ReduceMean-18."""
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    total = np.sum(widen(x), axis=tuple(axes), keepdims=keepdims, dtype=_accumulator(x))
    with np.errstate(all="ignore"):
        if widen(x).dtype.kind == "f":
            return np.asarray(np.asarray(total) / np.float64(count)).astype(x.dtype)
        return np.asarray(divide_truncating(np.asarray(total), np.asarray(count, x.dtype)))


def _lowest(kind: np.dtype[Any]) -> Any:
    if kind.kind == "f":
        return -np.inf
    return False if kind == np.bool_ else np.iinfo(kind).min


def _highest(kind: np.dtype[Any]) -> Any:
    if kind.kind == "f":
        return np.inf
    return True if kind == np.bool_ else np.iinfo(kind).max


@reference("ReduceMax")
def reduce_max(x: Array, *, axes: Sequence[int], keepdims: bool = True) -> Array:
    """Maximum over `axes` (NaN wins); the lowest value of the dtype if empty. ONNX ReduceMax-20."""
    wide = widen(x)
    result = np.max(wide, axis=tuple(axes), keepdims=keepdims, initial=_lowest(wide.dtype))
    return narrow(np.asarray(result, wide.dtype), x)


@reference("ReduceMin")
def reduce_min(x: Array, *, axes: Sequence[int], keepdims: bool = True) -> Array:
    """Minimum over `axes` (NaN wins); the highest value of the dtype if empty. ONNX ReduceMin-20."""
    wide = widen(x)
    result = np.min(wide, axis=tuple(axes), keepdims=keepdims, initial=_highest(wide.dtype))
    return narrow(np.asarray(result, wide.dtype), x)


def _arg(x: Array, axis: int, keepdims: bool, last: bool, largest: bool) -> Array:
    wide = widen(x)
    if last:
        wide = np.flip(wide, axis)
    found = np.argmax(wide, axis=axis) if largest else np.argmin(wide, axis=axis)
    if last:
        found = x.shape[axis] - 1 - found
    found = np.asarray(found, np.int64)
    return np.expand_dims(found, axis) if keepdims else found


@reference("ArgMax")
def arg_max(
    x: Array, *, axis: int = 0, keepdims: bool = True, select_last_index: bool = False
) -> Array:
    """Index of the maximum along `axis`, the first or last of equals; int64. ONNX ArgMax-13."""
    return _arg(x, axis, keepdims, select_last_index, largest=True)


@reference("ArgMin")
def arg_min(
    x: Array, *, axis: int = 0, keepdims: bool = True, select_last_index: bool = False
) -> Array:
    """Index of the minimum along `axis`, the first or last of equals; int64. ONNX ArgMin-13."""
    return _arg(x, axis, keepdims, select_last_index, largest=False)


@reference("ReduceAt")
def reduce_at(x: Array, axes: Array, *, function: str, keepdims: bool = True) -> Array:
    """The reduction `function` over axes that are data: an integer vector, negative from the end."""
    chosen = sorted({int(a) % x.ndim for a in axes.reshape(-1)})
    result: Array = lookup(function)(x, axes=tuple(chosen), keepdims=keepdims)
    return result


def _cumulate(function: np.ufunc, x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
    kind = _accumulator(x)
    lines = np.flip(widen(x), axis) if reverse else widen(x)
    with np.errstate(all="ignore"):
        result = function.accumulate(lines.astype(kind), axis=axis)
    if exclusive:
        first = np.full([1 if i == axis else n for i, n in enumerate(x.shape)], function.identity)
        kept = np.take(result, range(max(x.shape[axis] - 1, 0)), axis=axis)
        result = np.concatenate([first.astype(kind), kept], axis=axis) if x.shape[axis] else result
    if reverse:
        result = np.flip(result, axis)
    return np.ascontiguousarray(result).astype(x.dtype)


@reference("CumSum")
def cum_sum(
    x: Array, *, axis: int, exclusive: bool = False, reverse: bool = False
) -> Array:
    """Running sum along `axis`. ONNX CumSum-14.

    It runs from the end if `reverse`, and leaves out the element itself if `exclusive`.
    """
    return _cumulate(np.add, x, axis % x.ndim, exclusive, reverse)


@reference("CumProd")
def cum_prod(
    x: Array, *, axis: int, exclusive: bool = False, reverse: bool = False
) -> Array:
    """Running product along `axis`. ONNX CumProd-26.

    It runs from the end if `reverse`, and leaves out the element itself if `exclusive`.
    """
    return _cumulate(np.multiply, x, axis % x.ndim, exclusive, reverse)


@reference("CumulateAt")
def cumulate_at(
    x: Array, axis: Array, *, function: str, exclusive: bool = False, reverse: bool = False
) -> Array:
    """CumSum or CumProd (`function`) along an axis that is data, negative from the end."""
    chosen = int(axis.reshape(())) % x.ndim
    result: Array = lookup(function)(x, axis=chosen, exclusive=exclusive, reverse=reverse)
    return result


@reference("Softmax")
def softmax(x: Array, *, axis: int = -1) -> Array:
    """exp(x) normalised to sum 1 along `axis`. ONNX Softmax-13."""
    wide = widen(x)
    if wide.size == 0:
        return x.copy()
    with np.errstate(all="ignore"):
        e = np.exp(wide - wide.max(axis=axis, keepdims=True))
        return narrow(e / e.sum(axis=axis, keepdims=True), x)


@reference("LogSoftmax")
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """log(softmax(x)) along `axis`. ONNX LogSoftmax-13."""
    wide = widen(x)
    if wide.size == 0:
        return x.copy()
    with np.errstate(all="ignore"):
        shifted = wide - wide.max(axis=axis, keepdims=True)
        return narrow(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)), x)
