"""NumPy meaning of the image and region ops."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.errors import ExecutionError, ShapeError
from dovetail.reference.registry import reference

Array = np.ndarray[Any, Any]


def _widen(x: Array) -> Array:
    return x if x.dtype.itemsize >= 4 else x.astype(np.float32)


@reference("GridSample")
def grid_sample(
    x: Array,
    grid: Array,
    *,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Array:
    """Sample x (N, C, D1…Dr) at normalised positions, x coordinate first."""
    batch, channels, *extents = x.shape
    rank = len(extents)
    places = _widen(grid).reshape(batch, -1, rank)[..., ::-1]  # (N, P, r), slowest axis first
    data = _widen(x).reshape(batch, channels, -1)
    taps: list[list[tuple[Array, Array]]] = []
    for axis, extent in enumerate(extents):
        ends = (0.0, extent - 1.0) if align_corners else (-0.5, extent - 0.5)
        n = places[..., axis]
        where = (n + 1) / 2 * (extent - 1) if align_corners else ((n + 1) * extent - 1) / 2
        if mode == "nearest":
            where = np.rint(where)
        # Cubic taps reach beyond the edge anyway: they are moved inside one by one, as PyTorch does.
        if mode != "cubic" and padding_mode == "border":
            where = np.where((where < ends[0]) | (where > ends[1]), where.clip(0, extent - 1), where)
        elif mode != "cubic" and padding_mode == "reflection":
            where = _reflect(where, *ends)
        taps.append(_axis_taps(where, extent, ends, mode, padding_mode))
    result = np.zeros((batch, channels, places.shape[1]), data.dtype)
    for corner in itertools.product(*taps):
        flat = np.zeros(places.shape[:2], np.int64)
        weight = np.ones(places.shape[:2], data.dtype)
        for (position, factor), extent in zip(corner, extents, strict=True):
            flat = flat * extent + position
            weight = weight * factor
        result += np.take_along_axis(data, flat[:, None, :], axis=2) * weight[:, None, :]
    return result.reshape(batch, channels, *grid.shape[1:-1]).astype(x.dtype)


def _reflect(where: Array, low: float, high: float) -> Array:
    """Fold coordinates back and forth between `low` and `high`."""
    span = high - low
    if span <= 0:
        return np.full_like(where, low)
    beyond = np.where(where < low, low - where, where - high)
    turns = np.trunc(beyond / span)
    rest = beyond - turns * span
    even = turns % 2 == 0
    below = np.where(even, low + rest, high - rest)
    above = np.where(even, high - rest, low + rest)
    return np.where(where < low, below, np.where(where > high, above, where)).astype(where.dtype)


def _axis_taps(
    where: Array, extent: int, ends: tuple[float, float], mode: str, padding_mode: str
) -> list[tuple[Array, Array]]:
    """(position, weight) pairs along one axis; positions outside weigh nothing under zeros."""
    if mode == "nearest":
        offsets, base = [0], where
        weights = [np.ones_like(where)]
    else:
        base = np.floor(where)
        t = where - base
        if mode == "linear":
            offsets, weights = [0, 1], [1 - t, t]
        else:
            offsets, weights = [-1, 0, 1, 2], _cubic_weights(t)
    taps = []
    for offset, weight in zip(offsets, weights, strict=True):
        position = base + offset
        if padding_mode == "reflection":
            position = _reflect(position, *ends)
        inside = (position >= 0) & (position < extent)
        if padding_mode == "zeros":
            weight = np.where(inside, weight, 0)
        finite = np.nan_to_num(position, nan=0.0, posinf=extent - 1.0, neginf=0.0)
        taps.append((finite.clip(0, extent - 1).astype(np.int64), weight.astype(where.dtype)))
    return taps


def _cubic_weights(t: Array, a: float = -0.75) -> list[Array]:
    def far(d: Array) -> Array:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    def near(d: Array) -> Array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


@reference("AffineGrid")
def affine_grid(theta: Array, *, size: Sequence[int], align_corners: bool = False) -> Array:
    """Sampling positions of the affine maps theta (N, r, r + 1)."""
    batch, _, *extents = size
    axes = []
    for extent in extents:
        steps = np.arange(extent, dtype=np.float64)
        if align_corners:
            axes.append(steps * 2 / max(extent - 1, 1) - 1)
        else:
            axes.append((2 * steps + 1) / extent - 1)
    mesh = np.meshgrid(*axes, indexing="ij")
    points = np.stack([*(m.reshape(-1) for m in reversed(mesh)), np.ones(mesh[0].size)])  # (r + 1, P)
    grid = np.swapaxes(theta.astype(np.float64) @ points, 1, 2)
    return grid.reshape(batch, *extents, len(extents)).astype(theta.dtype)


@reference("RoiAlign")
def roi_align(
    x: Array,
    rois: Array,
    batch_indices: Array,
    *,
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    mode: str = "avg",
    coordinate_transformation_mode: str = "half_pixel",
) -> Array:
    """Average or maximum of bilinear samples in a grid of bins over each region."""
    half_pixel = coordinate_transformation_mode == "half_pixel"
    _, channels, height, width = x.shape
    data = _widen(x)
    boxes = _widen(rois) * np.asarray(spatial_scale, _widen(rois).dtype) - (0.5 if half_pixel else 0)
    result = np.zeros((len(rois), channels, output_height, output_width), data.dtype)
    if batch_indices.size and not 0 <= batch_indices.min() <= batch_indices.max() < len(x):
        raise ExecutionError(
            f"RoiAlign: batch_indices, got {batch_indices.tolist()}, expected values in [0, {len(x)}); "
            "correct them"
        )
    for index, (box, image) in enumerate(zip(boxes, batch_indices.tolist(), strict=True)):
        rows = _bin_samples(box[1], box[3], output_height, height, sampling_ratio, half_pixel)
        columns = _bin_samples(box[0], box[2], output_width, width, sampling_ratio, half_pixel)
        if mode == "avg":
            left, right = _averaging(rows, height), _averaging(columns, width)
            result[index] = left.astype(data.dtype) @ data[image] @ right.T.astype(data.dtype)
        else:
            result[index] = _largest_sample(data[image], rows, columns)
    return result.astype(x.dtype)


# Positions (bins, samples, 2) and weights (bins, samples, 2) of the two neighbours of each sample.
_Samples = tuple[Array, Array]


def _bin_samples(
    start: float, end: float, bins: int, extent: int, ratio: int, half_pixel: bool
) -> _Samples:
    size = end - start if half_pixel else max(end - start, 1.0)
    step = size / bins
    count = ratio if ratio > 0 else max(int(np.ceil(step)), 0)
    inner = (np.arange(count) + 0.5) * step / max(count, 1)
    where = start + np.arange(bins)[:, None] * step + inner
    outside = (where < -1) | (where > extent)
    where = where.clip(0, extent - 1)
    low = where.astype(np.int64)
    t = where - low
    positions = np.stack([low, np.minimum(low + 1, extent - 1)], axis=-1)
    weights = np.where(outside[..., None], 0, np.stack([1 - t, t], axis=-1))
    return positions, weights


def _averaging(samples: _Samples, extent: int) -> Array:
    """Matrix (bins, extent) that averages the samples of each bin."""
    positions, weights = samples
    bins, count, _ = positions.shape
    table = np.zeros((bins, extent))
    rows = np.broadcast_to(np.arange(bins)[:, None, None], positions.shape)
    np.add.at(table, (rows, positions), weights)
    averaged: Array = table / max(count, 1)
    return averaged


def _largest_sample(image: Array, rows: _Samples, columns: _Samples) -> Array:
    """The largest weighted neighbour over all samples of each bin (ONNX's definition of mode max)."""
    (row_at, row_weight), (column_at, column_weight) = rows, columns
    bins = (row_at.shape[0], column_at.shape[0])
    if row_at.shape[1] * column_at.shape[1] == 0:
        return np.zeros((image.shape[0], *bins), image.dtype)
    best: Array | None = None
    for i, j in itertools.product(range(2), range(2)):
        at_rows = row_at[:, None, :, None, i]
        at_columns = column_at[None, :, None, :, j]
        weight = row_weight[:, None, :, None, i] * column_weight[None, :, None, :, j]
        value = (image[:, at_rows, at_columns] * weight.astype(image.dtype)).max(axis=(3, 4))
        best = value if best is None else np.maximum(best, value)
    assert best is not None
    return best


@reference("MaxRoiPool")
def max_roi_pool(
    x: Array, rois: Array, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Array:
    """Maximum over a grid of whole-pixel bins; empty bins give 0."""
    result = np.zeros((len(rois), x.shape[1], *pooled_shape), x.dtype)
    scaled = np.floor(_widen(rois)[:, 1:] * spatial_scale + 0.5).astype(np.int64)
    for index, (x1, y1, x2, y2) in enumerate(scaled.tolist()):
        image = x[int(rois[index, 0])]
        rows = _pool_bins(y1, y2, pooled_shape[0], x.shape[2])
        columns = _pool_bins(x1, x2, pooled_shape[1], x.shape[3])
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                if bottom > top and right > left:
                    result[index, :, i, j] = image[:, top:bottom, left:right].max(axis=(1, 2))
    return result


def _pool_bins(first: int, last: int, bins: int, extent: int) -> list[tuple[int, int]]:
    step = max(last - first + 1, 1) / bins
    edges = []
    for i in range(bins):
        low = first + int(np.floor(i * step))
        high = first + int(np.ceil((i + 1) * step))
        edges.append((min(max(low, 0), extent), min(max(high, 0), extent)))
    return edges


@reference("MaxUnpool")
def max_unpool(x: Array, indices: Array, *, pooled_from: Sequence[int], sizes: Sequence[int]) -> Array:
    """Elements of x at flat positions of an array of shape pooled_from, zero-padded to `sizes`."""
    total = int(np.prod(pooled_from, dtype=np.int64))
    if indices.size and not 0 <= indices.min() <= indices.max() < total:
        raise ExecutionError(
            f"MaxUnpool: indices, got values from {indices.min()} to {indices.max()}, expected values in "
            f"[0, {total}); pass the indices that MaxPool returned"
        )
    flat = np.zeros(total, x.dtype)
    flat[indices.reshape(-1)] = x.reshape(-1)
    result = np.zeros(tuple(sizes), x.dtype)
    kept = tuple(slice(0, min(a, b)) for a, b in zip(pooled_from, sizes, strict=True))
    result[kept] = flat.reshape(tuple(pooled_from))[kept]
    return result


@reference("DeformConv")
def deform_conv(
    x: Array,
    weight: Array,
    offset: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int = 1,
    offset_group: int = 1,
) -> Array:
    """Convolution over bilinear samples at moved positions, zeros outside the image."""
    batch, channels, _, _ = x.shape
    filters, _, kernel_h, kernel_w = weight.shape
    rows, columns = offset.shape[2:]
    kernel, points = kernel_h * kernel_w, rows * columns
    if offset.shape[1] != offset_group * kernel * 2:
        raise ShapeError(
            f"DeformConv: offset, got {offset.shape[1]} channels, expected {offset_group * kernel * 2} "
            "(2 per kernel element and offset group); correct the offsets"
        )
    moved = _widen(offset).reshape(batch, offset_group, kernel_h, kernel_w, 2, rows, columns)
    base_h = np.arange(kernel_h)[:, None, None, None] * dilations[0] - pads[0]
    base_w = np.arange(kernel_w)[:, None, None] * dilations[1] - pads[1]
    at_h = moved[..., 0, :, :] + base_h + np.arange(rows)[:, None] * strides[0]
    at_w = moved[..., 1, :, :] + base_w + np.arange(columns) * strides[1]
    data = _widen(x).reshape(batch * offset_group, channels // offset_group, *x.shape[2:])
    flat = (batch * offset_group, kernel * points)
    sampled = _bilinear(data, at_h.reshape(flat), at_w.reshape(flat))
    if mask is not None:
        sampled = sampled * _widen(mask).reshape(batch * offset_group, 1, kernel * points)
    patches = sampled.reshape(batch, group, channels // group * kernel, points)
    filters_by_group = _widen(weight).reshape(1, group, filters // group, channels // group * kernel)
    result = (filters_by_group @ patches).reshape(batch, filters, rows, columns)
    if bias is not None:
        result = result + _widen(bias).reshape(1, -1, 1, 1)
    return result.astype(x.dtype)


def _bilinear(x: Array, at_h: Array, at_w: Array) -> Array:
    """Samples (B, C, P) of x (B, C, H, W) at fractional positions (B, P), zeros outside."""
    height, width = x.shape[2:]
    data = x.reshape(*x.shape[:2], -1)
    low_h, low_w = np.floor(at_h), np.floor(at_w)
    result = np.zeros((*x.shape[:2], at_h.shape[1]), x.dtype)
    for i, j in itertools.product(range(2), range(2)):
        h, w = low_h + i, low_w + j
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        share = (1 - np.abs(at_h - h)) * (1 - np.abs(at_w - w))
        share = np.where(inside, share, 0).astype(x.dtype)
        flat = np.where(inside, h * width + w, 0).astype(np.int64)
        result += np.take_along_axis(data, flat[:, None, :], axis=2) * share[:, None, :]
    return result


@reference("Col2Im")
def col2im(
    x: Array,
    *,
    image_shape: Sequence[int],
    block_shape: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    strides: Sequence[int],
) -> Array:
    """Add up sliding blocks (N, C * block, L) into an image."""
    rank = len(image_shape)
    padded = [image_shape[i] + pads[i] + pads[rank + i] for i in range(rank)]
    counts = [
        (padded[i] - dilations[i] * (block_shape[i] - 1) - 1) // strides[i] + 1 for i in range(rank)
    ]
    block = int(np.prod(block_shape, dtype=np.int64))
    if x.shape[2] != int(np.prod(counts, dtype=np.int64)) or x.shape[1] % block:
        raise ShapeError(
            f"Col2Im: input, got {x.shape}, expected a multiple of {block} channels and "
            f"{int(np.prod(counts, dtype=np.int64))} columns (blocks {counts}); check the block attributes"
        )
    columns = _widen(x).reshape(x.shape[0], x.shape[1] // block, *block_shape, *counts)
    image = np.zeros((*columns.shape[:2], *padded), columns.dtype)
    for corner in itertools.product(*(range(extent) for extent in block_shape)):
        window = tuple(
            slice(c * dilations[i], c * dilations[i] + (counts[i] - 1) * strides[i] + 1, strides[i])
            for i, c in enumerate(corner)
        )
        target: Any = (..., *window)
        source: Any = (slice(None), slice(None), *corner)
        image[target] += columns[source]
    inner = tuple(slice(pads[i], pads[i] + image_shape[i]) for i in range(rank))
    kept: Any = (..., *inner)
    result: Array = image[kept].astype(x.dtype)
    return result
