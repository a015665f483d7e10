"""NumPy meaning of the activation functions."""

from __future__ import annotations

import math

import numpy as np

from dovetail.reference.arithmetic import erfc_values
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, narrow, widen


def sigmoid_values(x: Array) -> Array:
    """1 / (1 + exp(-x)) of a float array, without overflow on either side."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def softplus_values(x: Array) -> Array:
    """log(1 + exp(x)) of a float array, without overflow."""
    return np.asarray(np.logaddexp(x, np.zeros((), x.dtype)))


@reference("Relu")
def relu(x: Array) -> Array:
    """max(x, 0). ONNX Relu-14."""
    return narrow(np.asarray(np.maximum(widen(x), widen(x).dtype.type(0))), x)


@reference("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """Y = x if x >= 0 else alpha * x. ONNX LeakyRelu-16."""
    wide = widen(x)
    return narrow(np.where(wide < 0, wide * wide.dtype.type(alpha), wide), x)


@reference("PRelu")
def prelu(x: Array, slope: Array) -> Array:
    """Y = x if x >= 0 else slope * x; the slope broadcasts to x. ONNX PRelu-16."""
    wide = widen(x)
    return narrow(np.where(wide < 0, wide * widen(slope), wide), x)


@reference("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """Y = x if x > alpha else 0. ONNX ThresholdedRelu-22."""
    wide = widen(x)
    return narrow(np.where(wide > wide.dtype.type(alpha), wide, wide.dtype.type(0)), x)


@reference("Elu")
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """Y = x if x >= 0 else alpha * (exp(x) - 1). ONNX Elu-22."""
    wide = widen(x)
    negative = wide.dtype.type(alpha) * np.expm1(np.minimum(wide, 0))
    return narrow(np.where(wide < 0, negative, wide), x)


@reference("Selu")
def selu(x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Array:
    """Y = gamma * (x if x > 0 else alpha * (exp(x) - 1)). ONNX Selu-22."""
    wide = widen(x)
    kind = wide.dtype.type
    negative = kind(alpha) * np.expm1(np.minimum(wide, 0))
    return narrow(np.asarray(kind(gamma) * np.where(wide > 0, wide, negative)), x)


@reference("Celu")
def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """Y = max(0, x) + min(0, alpha * (exp(x / alpha) - 1)). ONNX Celu-28."""
    wide = widen(x)
    kind = wide.dtype.type
    negative = np.minimum(kind(alpha) * np.expm1(np.minimum(wide / kind(alpha), 0)), 0)
    return narrow(np.asarray(np.maximum(wide, 0) + negative, wide.dtype), x)


@reference("Gelu")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """X * Phi(x), with Phi exact ("none") or by the tanh formula ("tanh"). ONNX Gelu-20."""
    wide = widen(x).astype(np.float64)
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return np.asarray(0.5 * wide * (1 + np.tanh(inner))).astype(x.dtype)
    tail = erfc_values(wide / -math.sqrt(2), fp64=x.dtype == np.float64)
    return np.asarray(0.5 * wide * tail).astype(x.dtype)


@reference("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """max(0, min(1, alpha * x + beta)). ONNX HardSigmoid-22."""
    wide = widen(x)
    kind = wide.dtype.type
    return narrow(np.asarray(np.clip(wide * kind(alpha) + kind(beta), kind(0), kind(1))), x)


@reference("HardSwish")
def hard_swish(x: Array) -> Array:
    """X * max(0, min(1, x / 6 + 1 / 2)). ONNX HardSwish-22."""
    wide = widen(x)
    kind = wide.dtype.type
    return narrow(np.asarray(wide * np.clip(wide / kind(6) + kind(0.5), kind(0), kind(1))), x)


@reference("Mish")
def mish(x: Array) -> Array:
    """X * tanh(log(1 + exp(x))). ONNX Mish-22."""
    wide = widen(x)
    return narrow(np.asarray(wide * np.tanh(softplus_values(wide))), x)


@reference("Sigmoid")
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)). ONNX Sigmoid-13."""
    return narrow(sigmoid_values(widen(x)), x)


@reference("Swish")
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """X * sigmoid(alpha * x). ONNX Swish-24."""
    wide = widen(x)
    return narrow(np.asarray(wide * sigmoid_values(wide * wide.dtype.type(alpha))), x)


@reference("Shrink")
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """Y = x + bias below -lambd, x - bias above lambd, else 0; any numeric dtype. ONNX Shrink-9."""
    wide = widen(x)
    if np.issubdtype(wide.dtype, np.integer):
        wide = wide.astype(np.float64)
    kind = wide.dtype.type
    above = np.where(wide > kind(lambd), wide - kind(bias), kind(0))
    below = np.where(wide < -kind(lambd), wide + kind(bias), above)
    return np.asarray(below).astype(x.dtype)


@reference("Softplus")
def softplus(x: Array) -> Array:
    """log(1 + exp(x)). ONNX Softplus-22."""
    return narrow(softplus_values(widen(x)), x)


@reference("Softsign")
def softsign(x: Array) -> Array:
    """X / (1 + |x|). ONNX Softsign-22."""
    wide = widen(x)
    return narrow(np.asarray(wide / (1 + np.abs(wide))), x)


@reference("Clip")
def clip(x: Array, *, min: int | float | None = None, max: int | float | None = None) -> Array:
    """min(max(x, min), max); either bound may be absent, NaN stays NaN. ONNX Clip-13."""
    wide = widen(x)
    result = wide
    if min is not None:
        result = np.maximum(result, wide.dtype.type(min))
    if max is not None:
        result = np.minimum(result, wide.dtype.type(max))
    return narrow(np.asarray(result), x)
