"""NumPy meaning of the normalisations; statistics are always accumulated in fp32 or wider."""

from __future__ import annotations

import math

import numpy as np

from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, narrow, widen


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean over `axes`, which stay as extents of one; of no elements NaN."""
    count, total = math.prod(x.shape[a] for a in axes), x.sum(axis=axes, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / x.dtype.type(count))


def _standardise(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """(normalised, mean, 1/std) of `x` over `axes`, which stay as extents of one."""
    mean = _mean(x, axes)
    centred = x - mean
    variance = _mean(np.square(centred), axes)
    inverse = (1.0 / np.sqrt(variance + x.dtype.type(epsilon))).astype(x.dtype)
    return centred * inverse, mean, inverse


@reference("LayerNormalization")
def layer_normalization(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int,
    epsilon: float = 1e-5,
    outputs: int = 1,
) -> Array | tuple[Array, ...]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the axes from `axis` on.

    Outputs 2 and 3 are the mean and 1/std in fp32 (fp64 for fp64 input). Source: ONNX LayerNormalization-17.
    """
    axes = tuple(range(axis, x.ndim))
    y, mean, inverse = _standardise(widen(x), axes, epsilon)
    if scale is not None:
        y = y * widen(scale)
    if bias is not None:
        y = y + widen(bias)
    results = (narrow(y, x), mean, inverse)
    return results[0] if outputs == 1 else results[:outputs]


@reference("RMSNormalization")
def rms_normalization(
    x: Array, scale: Array | None = None, *, axis: int, epsilon: float = 1e-5
) -> Array:
    """x / sqrt(mean(x * x) + epsilon) * scale over the axes from `axis` on. Source: ONNX RMSNormalization-23."""
    wide = widen(x)
    mean = _mean(np.square(wide), tuple(range(axis, x.ndim)))
    y = wide / np.sqrt(mean + wide.dtype.type(epsilon))
    return narrow(y if scale is None else y * widen(scale), x)


def _per_channel(v: Array, rank: int) -> Array:
    return widen(v).reshape(-1, *[1] * (rank - 2))


@reference("InstanceNormalization")
def instance_normalization(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5) -> Array:
    """Normalise every channel of every sample over space. Source: ONNX InstanceNormalization-22."""
    y, _, _ = _standardise(widen(x), tuple(range(2, x.ndim)), epsilon)
    return narrow(y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim), x)


@reference("GroupNormalization")
def group_normalization(
    x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float = 1e-5
) -> Array:
    """Normalise groups of channels over their channels and space; scale and bias per channel.

    Source: ONNX GroupNormalization-21.
    """
    groups = widen(x).reshape(x.shape[0], num_groups, -1)
    y = _standardise(groups, (2,), epsilon)[0].reshape(x.shape)
    return narrow(y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim), x)


@reference("LRN")
def lrn(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta. Source: ONNX LRN-13."""
    wide = widen(x)
    low, high = math.floor((size - 1) / 2), math.ceil((size - 1) / 2)
    # Channel c sums squares from c - low to c + high: a difference of two running sums would lose
    # accuracy, so the (short) windows are added as they are.
    squares = np.pad(np.square(wide), [(0, 0), (low, high)] + [(0, 0)] * (x.ndim - 2))
    total = np.lib.stride_tricks.sliding_window_view(squares, size, axis=1).sum(-1)
    return narrow(wide / (bias + alpha / size * total) ** beta, x)
