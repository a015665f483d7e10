"""Translations of small operators of TensorFlow that tf2onnx lacks, in ONNX operators; users' own of the same name take their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dovetail.export.translations import Translation

OPSET = 11
"""Comparisons of floats for equality came with it."""


def log1p(op: Any, x: Any) -> Any:
    """log(1 + x), exact near 0: the rounding of 1 + x is taken out again (Kahan)."""
    total = op.Add(x, 1.0)
    plain = op.Log(total)
    near = op.Where(op.Equal(total, 1.0), x, op.Div(op.Mul(plain, x), op.Sub(total, 1.0)))
    return op.Where(op.Less(op.Abs(x), 1.0), near, plain)


def expm1(op: Any, x: Any) -> Any:
    """exp(x) - 1, exact near 0: there by way of tanh(x / 2)."""
    half = op.Tanh(op.Mul(x, 0.5))
    near = op.Div(op.Mul(half, 2.0), op.Sub(1.0, half))
    return op.Where(op.Less(op.Abs(x), 0.5), near, op.Sub(op.Exp(x), 1.0))


def _zero_where(op: Any, zero: Any, value: Any) -> Any:
    return op.Where(op.Equal(zero, 0.0), op.Mul(zero, 0.0), value)


def xlogy(op: Any, x: Any, y: Any) -> Any:
    """x * log(y), 0 where x is."""
    return _zero_where(op, x, op.Mul(x, op.Log(y)))


def xlog1py(op: Any, x: Any, y: Any) -> Any:
    """x * log(1 + y), 0 where x is."""
    return _zero_where(op, x, op.Mul(x, log1p(op, y)))


def xdivy(op: Any, x: Any, y: Any) -> Any:
    """x / y, 0 where x is."""
    return _zero_where(op, x, op.Div(x, y))


def mul_no_nan(op: Any, x: Any, y: Any) -> Any:
    """x * y, 0 where y is, whatever x is."""
    return _zero_where(op, y, op.Mul(x, y))


def l2_loss(op: Any, t: Any) -> Any:
    """Half of the sum of squares."""
    return op.Mul(op.ReduceSum(op.Mul(t, t), keepdims=0), 0.5)


def euclidean_norm(op: Any, input: Any, reduction_indices: Any, keep_dims: bool = False) -> Any:
    """The root of the sum of squares over axes, which have to be constant below opset 13."""
    square = op.Mul(input, input)
    if op.opset >= 13:
        return op.Sqrt(op.ReduceSum(square, op.Cast(reduction_indices, to="i64"), keepdims=int(keep_dims)))
    axes = [int(axis) for axis in np.atleast_1d(reduction_indices.array)]
    return op.Sqrt(op.ReduceSum(square, axes=axes, keepdims=int(keep_dims)))


def truncate_mod(op: Any, x: Any, y: Any) -> Any:
    """The remainder with the sign of x."""
    return op.Mod(x, y, fmod=1)


def inv(op: Any, x: Any) -> Any:
    """1 / x."""
    return op.Reciprocal(x)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "EuclideanNorm": euclidean_norm, "Expm1": expm1, "Inv": inv, "L2Loss": l2_loss, "Log1p": log1p, "MulNoNan": mul_no_nan,
    "TruncateMod": truncate_mod, "Xdivy": xdivy, "Xlog1py": xlog1py, "Xlogy": xlogy,
}  # fmt: skip

TRANSLATIONS = {name: Translation(f"tf::{name}", "", OPSET, None, made, f"{__name__}.{made.__name__}") for name, made in _FUNCTIONS.items()}
"""By operator."""
