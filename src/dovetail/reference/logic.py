"""NumPy meaning of comparison, logic and selection by mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, widen


def _register_comparison(name: str, function: Callable[[Array, Array], Array]) -> None:
    def compare(a: Array, b: Array) -> Array:
        return np.asarray(function(widen(a), widen(b))).astype(np.bool_)

    compare.__name__ = name.lower()
    compare.__doc__ = f"{name} of two arrays that broadcast; bool. ONNX {name}."
    reference(name)(compare)


for _name, _function in {
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}.items():
    _register_comparison(_name, _function)


@reference("Not")
def not_(x: Array) -> Array:
    """The opposite truth value. ONNX Not-1."""
    return np.asarray(np.logical_not(x))


@reference("Where")
def where(condition: Array, a: Array, b: Array) -> Array:
    """A where the condition holds, else b; all three broadcast. ONNX Where-16."""
    return np.where(condition, a, b).astype(a.dtype)


@reference("IsNaN")
def is_nan(x: Array) -> Array:
    """Whether each element is not a number. ONNX IsNaN-20."""
    return np.asarray(np.isnan(widen(x)))


@reference("IsInf")
def is_inf(x: Array, *, detect_negative: bool = True, detect_positive: bool = True) -> Array:
    """Whether each element is an infinity of a sign asked for. ONNX IsInf-20."""
    wide = widen(x)
    found = np.zeros(x.shape, np.bool_)
    if detect_positive:
        found = found | np.isposinf(wide)
    if detect_negative:
        found = found | np.isneginf(wide)
    return np.asarray(found)
