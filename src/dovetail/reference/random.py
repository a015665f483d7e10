"""NumPy meaning of the random generators: same distribution as any kernel, not the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovetail.core.dtypes import F32, DType
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, widen


def _generator(seed: float | None) -> np.random.Generator:
    """A fresh stream; the same one on every call for a given seed (a float in ONNX)."""
    if seed is None:
        return np.random.default_rng()
    return np.random.default_rng(int(np.float32(seed).view(np.uint32)))


@reference("RandomUniform")
def random_uniform(
    *,
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    dtype: DType = F32,
) -> Array:
    """Independent uniform numbers in [low, high). ONNX RandomUniform-22."""
    numbers = _generator(seed).random(tuple(shape))
    return np.asarray(low + numbers * (high - low)).astype(dtype.numpy)


@reference("RandomNormal")
def random_normal(
    *,
    shape: Sequence[int],
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    dtype: DType = F32,
) -> Array:
    """Independent normal numbers. ONNX RandomNormal-22."""
    numbers = _generator(seed).standard_normal(tuple(shape))
    return np.asarray(mean + numbers * scale).astype(dtype.numpy)


@reference("Multinomial")
def multinomial(
    log_weights: Array, *, sample_size: int, seed: float | None = None, dtype: DType
) -> Array:
    """`sample_size` class numbers per row, drawn by unnormalised log weights [N, C]. ONNX Multinomial-22."""
    wide = widen(log_weights).astype(np.float64)
    weights = np.exp(wide - wide.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    draws = _generator(seed).random((wide.shape[0], sample_size)) * cumulative[:, -1:]
    found = (draws[:, :, None] >= cumulative[:, None, :]).sum(axis=2)
    return np.asarray(np.minimum(found, wide.shape[1] - 1)).astype(dtype.numpy)
