"""NumPy meaning of arithmetic: unary math, binary arithmetic, bit operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev

from dovetail.core.dtypes import DType
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, narrow, widen


def _register_unary(name: str, function: Callable[[Array], Array]) -> None:
    def unary(x: Array) -> Array:
        with np.errstate(all="ignore"):
            return narrow(np.asarray(function(widen(x))), x)

    unary.__name__ = name.lower()
    unary.__doc__ = f"{name} of every element. ONNX {name}."
    reference(name)(unary)


# erf has no NumPy function. Both pieces are interpolated once, at import, from math.erf and
# math.erfc at Chebyshev nodes: erf(x)/x over x*x in [0, 1], and erfc(x)*exp(x*x) over
# t = 2/(1 + x) - 1, which maps x in [1, limit] to [low, 0].
_ERF_NEAR_DEGREE = 14
_ERF_FAR_DEGREE = 32
_ERF_LIMIT = 6.0  # erf rounds to 1 in float64 from here on
_ERF_LOW = 2 / (1 + _ERF_LIMIT) - 1
_FP32_TAIL = 1e-10  # coefficients below this cannot be seen in an fp32 result


def _erf_near(u: Array) -> Array:
    roots = np.sqrt((u + 1) / 2)
    return np.array([math.erf(r) / r if r else 2 / math.sqrt(math.pi) for r in roots])


def _erf_far(u: Array) -> Array:
    t = _ERF_LOW * (1 - u) / 2
    return np.array([math.erfc(v) * math.exp(v * v) for v in 2 / (t + 1) - 1])


_interpolate: Callable[[Callable[[Array], Array], int], Array] = chebyshev.chebinterpolate
_ERF_NEAR = _interpolate(_erf_near, _ERF_NEAR_DEGREE)
_ERF_FAR = _interpolate(_erf_far, _ERF_FAR_DEGREE)


def _visible(coefficients: Array, fp64: bool) -> Array:
    return coefficients if fp64 else chebyshev.chebtrim(coefficients, _FP32_TAIL)


def _erf_pieces(x: Array, fp64: bool) -> tuple[Array, Array, Array]:
    """Where |x| < 1, erf(|x|) there, and erfc(|x|) elsewhere, in float64."""
    size = np.minimum(np.abs(x), _ERF_LIMIT)
    near, far = np.minimum(size, 1.0), np.maximum(size, 1.0)
    body = near * chebyshev.chebval(2 * near * near - 1, _visible(_ERF_NEAR, fp64))
    u = 1 - 2 * (2 / (1 + far) - 1) / _ERF_LOW
    tail = chebyshev.chebval(u, _visible(_ERF_FAR, fp64)) * np.exp(-far * far)
    return size < 1, body, tail


def erf_values(x: Array, *, fp64: bool = True) -> Array:
    """erf of a float64 array, to about 1e-15, or 1e-9 without `fp64`."""
    close, body, tail = _erf_pieces(x, fp64)
    return np.where(np.isnan(x), x, np.copysign(np.where(close, body, 1 - tail), x))


def erfc_values(x: Array, *, fp64: bool = True) -> Array:
    """1 - erf of a float64 array without cancellation, relative errors as `erf_values`."""
    close, body, tail = _erf_pieces(x, fp64)
    beyond = np.where(x > 0, tail, 2 - tail)
    return np.where(np.isnan(x), x, np.where(close, 1 - np.copysign(body, x), beyond))


def _erf(x: Array) -> Array:
    return erf_values(x.astype(np.float64), fp64=x.dtype == np.float64).astype(x.dtype)


_UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs,
    "Acos": np.arccos,
    "Acosh": np.arccosh,
    "Asin": np.arcsin,
    "Asinh": np.arcsinh,
    "Atan": np.arctan,
    "Atanh": np.arctanh,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Erf": _erf,
    "Exp": np.exp,
    "Floor": np.floor,
    "Log": np.log,
    "Neg": np.negative,
    "Round": np.rint,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Sqrt": np.sqrt,
    "Tan": np.tan,
    "Tanh": np.tanh,
}
for _name, _function in _UNARY.items():
    _register_unary(_name, _function)


def _register_binary(name: str, function: Callable[[Array, Array], Array]) -> None:
    def binary(a: Array, b: Array) -> Array:
        with np.errstate(all="ignore"):
            return narrow(np.asarray(function(widen(a), widen(b))), a)

    binary.__name__ = name.lower()
    binary.__doc__ = f"{name} of two arrays that broadcast, in their common dtype. ONNX {name}."
    reference(name)(binary)


def _divide(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.floating):
        return np.asarray(a / b)
    return divide_truncating(a, b)


def divide_truncating(a: Array, b: Array) -> Array:
    """Integer quotient rounded towards zero, as C and ONNX do; division by zero gives 0."""
    quotient = np.floor_divide(a, b)
    if not np.issubdtype(a.dtype, np.signedinteger):
        return np.asarray(quotient)
    inexact = (quotient * b != a) & (b != 0)
    return np.asarray(quotient + (inexact & ((a < 0) != (b < 0))).astype(a.dtype))


_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Max": np.maximum,
    "Min": np.minimum,
}
for _name, _binary in _BINARY.items():
    _register_binary(_name, _binary)


@reference("Reciprocal")
def reciprocal(x: Array) -> Array:
    """1 / x. ONNX Reciprocal-13."""
    wide = widen(x)
    with np.errstate(all="ignore"):
        return narrow(np.asarray(np.ones((), wide.dtype) / wide), x)


@reference("Mod")
def mod(a: Array, b: Array, *, fmod: bool = False) -> Array:
    """Remainder with the sign of b, or with `fmod` the sign of a. ONNX Mod-28."""
    with np.errstate(all="ignore"):
        function = np.fmod if fmod else np.mod
        return narrow(np.asarray(function(widen(a), widen(b))), a)


@reference("Pow")
def pow_(base: Array, exponent: Array) -> Array:
    """Base ** exponent in the dtype of the base; the exponent may have another. ONNX Pow-15.

    Integers to a negative power are computed in float64 and truncated.
    """
    a, b = widen(base), widen(exponent)
    with np.errstate(all="ignore"):
        if np.issubdtype(a.dtype, np.integer):
            if np.issubdtype(b.dtype, np.integer) and not (b < 0).any():
                return np.asarray(np.power(a, b.astype(a.dtype)))
            return np.asarray(np.power(a.astype(np.float64), b).astype(base.dtype))
        common = np.float64 if b.dtype in (np.float64, np.int64) else a.dtype
        return narrow(np.asarray(np.power(a.astype(common), b.astype(common))), base)


@reference("BitShift")
def bit_shift(x: Array, amount: Array, *, direction: str) -> Array:
    """Shift LEFT or RIGHT (arithmetically for signed types). ONNX BitShift-28.

    Amounts that are negative or reach the width give 0, or -1 for a negative x shifted right.
    """
    width = x.dtype.itemsize * 8
    beyond = (amount < 0) | (amount >= width)
    safe = np.where(beyond, 0, amount).astype(x.dtype)
    if direction == "LEFT":
        unsigned = np.dtype(f"u{x.dtype.itemsize}")
        shifted = np.left_shift(x.view(unsigned), safe.astype(unsigned)).view(x.dtype)
        return np.where(beyond, np.zeros((), x.dtype), shifted)
    fill = np.where(x < 0, -1, 0).astype(x.dtype)
    return np.where(beyond, fill, np.right_shift(x, safe))


@reference("BitwiseAnd")
def bitwise_and(a: Array, b: Array) -> Array:
    """Bits set in both. ONNX BitwiseAnd-18."""
    return np.asarray(np.bitwise_and(a, b))


@reference("BitwiseOr")
def bitwise_or(a: Array, b: Array) -> Array:
    """Bits set in either. ONNX BitwiseOr-18."""
    return np.asarray(np.bitwise_or(a, b))


@reference("BitwiseXor")
def bitwise_xor(a: Array, b: Array) -> Array:
    """Bits set in exactly one. ONNX BitwiseXor-18."""
    return np.asarray(np.bitwise_xor(a, b))


@reference("BitwiseNot")
def bitwise_not(x: Array) -> Array:
    """Every bit flipped. ONNX BitwiseNot-18."""
    return np.asarray(np.bitwise_not(x))


@reference("BitCast")
def bit_cast(x: Array, *, to: DType) -> Array:
    """The same bits read as another dtype of the same width. ONNX BitCast-26."""
    # A 0-d array cannot be viewed as another sub-byte dtype, so go through a flat copy.
    flat = np.ascontiguousarray(x).reshape(-1)
    if to.kind == "bool" or x.dtype == np.bool_:
        return flat.view(np.uint8).view(to.numpy).reshape(x.shape)
    result: Array = flat.view(to.numpy).reshape(x.shape)
    return result


@reference("Det")
def det(x: Array) -> Array:
    """Determinant of the last two axes. ONNX Det-22."""
    value: Any = np.linalg.det(widen(x).astype(np.float64))
    return np.asarray(value).astype(x.dtype)
