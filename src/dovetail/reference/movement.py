"""NumPy meaning of the movement ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dtypes import I64, DType
from dovetail.core.errors import ExecutionError, ShapeError
from dovetail.reference.registry import reference

Array = np.ndarray[Any, Any]


@reference("Reshape")
def reshape(x: Array, *, shape: Sequence[int]) -> Array:
    """The same elements under another shape."""
    if x.size != int(np.prod(shape, dtype=np.int64)):
        raise ShapeError(
            f"Reshape: shape, got {tuple(shape)} for {x.size} elements of {x.shape}, expected a shape with "
            "as many elements; correct the target shape"
        )
    return x.reshape(tuple(shape))


@reference("Transpose")
def transpose(x: Array, *, perm: Sequence[int]) -> Array:
    """Output axis i is input axis perm[i]."""
    return x.transpose(tuple(perm))


@reference("Expand")
def expand(x: Array, *, shape: Sequence[int]) -> Array:
    """Broadcast to `shape`."""
    try:
        return np.broadcast_to(x, tuple(shape)).copy()
    except ValueError as error:
        raise ShapeError(
            f"Expand: shape, got {tuple(shape)} for an input {x.shape}, expected a shape that it broadcasts "
            "to; correct the shape"
        ) from error


@reference("Concat")
def concat(*xs: Array, axis: int) -> Array:
    """Inputs one after another."""
    try:
        return np.concatenate(xs, axis=axis)
    except ValueError as error:
        raise ShapeError(
            f"Concat: inputs, got shapes {', '.join(str(x.shape) for x in xs)}, expected equal extents "
            f"outside axis {axis}; slice, pad or reshape one of them"
        ) from error


@reference("Slice")
def slice_(
    x: Array,
    *,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int],
) -> Array:
    """x[start:end:step] per axis; with a negative step, end -1 means "before element 0"."""
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0 and start < 0:
            index[axis] = slice(0, 0)
        else:
            index[axis] = slice(start, None if step < 0 and end < 0 else end, step)
    return x[tuple(index)]


@reference("Pad")
def pad(
    x: Array, *, pads: Sequence[int], mode: str = "constant", value: int | float | bool | str = 0
) -> Array:
    """Crop by the negative pads, then extend by the positive ones."""
    rank = x.ndim
    low, high = list(pads[:rank]), list(pads[rank:])
    crop = []
    for axis in range(rank):
        first = max(0, -low[axis])
        last = x.shape[axis] - max(0, -high[axis])
        if last < first:
            # The crop runs past the far end: what is left is negative and eats into the other pad.
            missing = first - last
            if low[axis] > 0:
                low[axis] -= missing
            else:
                high[axis] -= missing
            first = last = min(first, x.shape[axis])
        crop.append(slice(first, last))
    widths = [(max(0, lo), max(0, hi)) for lo, hi in zip(low, high, strict=True)]
    cropped = x[tuple(crop)]
    if mode == "constant":
        shape = [extent + lo + hi for extent, (lo, hi) in zip(cropped.shape, widths, strict=True)]
        result = np.full(shape, np.asarray(value).astype(x.dtype), dtype=x.dtype)
        inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(widths, cropped.shape, strict=True))
        result[inner] = cropped
        return result
    for axis, (lo, hi) in enumerate(widths):
        if lo or hi:
            cropped = np.take(cropped, _pad_positions(cropped.shape[axis], lo, hi, mode), axis=axis)
    return cropped


def _pad_positions(extent: int, low: int, high: int, mode: str) -> Array:
    """Which input position each padded position copies."""
    positions = np.arange(-low, extent + high)
    if extent == 0:
        raise ShapeError(
            f"Pad: input, got an empty axis with mode {mode!r}, expected at least one element to copy; "
            "use mode constant"
        )
    if mode == "edge":
        return positions.clip(0, extent - 1)
    if mode == "wrap":
        return positions % extent
    period = max(1, 2 * (extent - 1))  # reflect: 0 1 2 3 2 1 | 0 1 …
    folded = positions % period
    return np.where(folded < extent, folded, period - folded)


@reference("Tile")
def tile(x: Array, *, repeats: Sequence[int]) -> Array:
    """X repeated along every axis."""
    return np.tile(x, tuple(repeats))


@reference("Trilu")
def trilu(x: Array, *, upper: bool = True, k: int = 0) -> Array:
    """Upper or lower triangle of the last two axes, zero elsewhere."""
    rows, columns = x.shape[-2:]
    ahead = np.arange(columns) - np.arange(rows)[:, None]
    keep = ahead >= k if upper else ahead <= k
    return np.where(keep, x, np.zeros((), x.dtype))


@reference("DimTensor")
def dim_tensor(*, values: Sequence[int]) -> Array:
    """The dims as an int64 vector."""
    return np.array(tuple(values), np.int64)


@reference("Iota")
def iota(*, size: int, dtype: DType = I64) -> Array:
    """0, 1, … size - 1."""
    return np.arange(max(0, size)).astype(dtype.numpy)


@reference("Full")
def full(*, shape: Sequence[int], value: Any = 0, dtype: DType) -> Array:
    """An array of one value."""
    return np.full(tuple(shape), value, dtype=dtype.numpy)


@reference("ReverseSequence")
def reverse_sequence(x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    """Reverse the first lengths[b] steps of batch entry b."""
    steps, batch = x.shape[time_axis], x.shape[batch_axis]
    if lengths.shape != (batch,) or (batch and not 0 <= lengths.min() <= lengths.max() <= steps):
        raise ExecutionError(
            f"ReverseSequence: lengths, got {lengths.tolist()}, expected {batch} values in [0, {steps}]; "
            "correct the lengths"
        )
    time = np.arange(steps)
    ends = lengths.astype(np.int64)[:, None]
    source = np.where(time < ends, ends - 1 - time, time)  # (batch, steps)
    shape = [1] * x.ndim
    shape[batch_axis], shape[time_axis] = batch, steps
    if batch_axis > time_axis:
        source = source.T
    return np.take_along_axis(x, np.broadcast_to(source.reshape(shape), x.shape), axis=time_axis)


@reference("TensorScatter")
def tensor_scatter(
    cache: Array,
    update: Array,
    write_indices: Array | None = None,
    *,
    axis: int,
    mode: str = "linear",
) -> Array:
    """Write `update` into a copy of the cache at write_indices[b]."""
    batch, extent, length = cache.shape[0], cache.shape[axis], update.shape[axis]
    starts = np.zeros(batch, np.int64) if write_indices is None else write_indices.astype(np.int64)
    positions = starts[:, None] + np.arange(length)  # (batch, length)
    if mode == "circular":
        positions = positions % extent
    elif positions.size and not 0 <= positions.min() <= positions.max() < extent:
        raise ExecutionError(
            f"TensorScatter: write_indices, got {starts.tolist()} for {length} steps, expected positions inside "
            f"a cache of {extent}; write earlier or use mode circular"
        )
    result = cache.copy()
    shape = [1] * cache.ndim
    shape[0], shape[axis] = batch, length
    np.put_along_axis(result, np.broadcast_to(positions.reshape(shape), update.shape), update, axis=axis)
    return result
