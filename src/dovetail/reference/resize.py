"""NumPy meaning of Resize: one interpolation table per axis, applied by a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dtypes import dtype
from dovetail.core.errors import ShapeError
from dovetail.reference.registry import reference

Array = np.ndarray[Any, Any]


@reference("Resize")
def resize(
    x: Array,
    roi: Array | None = None,
    scales_data: Array | None = None,
    *,
    sizes: Sequence[int],
    scales: Sequence[float] = (),
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: bool = False,
    exclude_outside: bool = False,
    extrapolation_value: float = 0.0,
) -> Array:
    """Resample x to `sizes`; interpolation in float64, rounded once (to even for integers)."""
    factors = _factors(x.shape, sizes, scales if scales_data is None else scales_data.tolist())
    bounds = _regions(x.ndim, roi)
    result: Array = x
    outside = np.zeros((1,) * x.ndim, bool)
    for axis, (size, factor, region) in enumerate(zip(sizes, factors, bounds, strict=True)):
        extent = x.shape[axis]
        if size == extent and factor == 1.0 and region == (0.0, 1.0):
            continue
        if extent == 0 and size:
            raise ShapeError(
                f"Resize: axis {axis}, got no elements to make {size} of, expected at least one; "
                "check the input shape"
            )
        where = source_coordinates(
            extent, size, factor, coordinate_transformation_mode, region, single=mode == "nearest"
        )
        if coordinate_transformation_mode == "tf_crop_and_resize":
            shape = [1] * x.ndim
            shape[axis] = size
            outside = outside | ((where < 0) | (where > extent - 1)).reshape(shape)
        if mode == "nearest":
            positions = nearest_positions(where, extent, nearest_mode)
            result = np.take(result, positions, axis=axis)
        else:
            table = interpolation_matrix(
                where, extent, factor, mode, cubic_coeff_a, antialias, exclude_outside
            )
            moved = np.moveaxis(result.astype(np.float64), axis, -1) @ table.T
            result = np.moveaxis(moved, -1, axis)
    if outside.any():
        result = np.where(outside, np.float64(extrapolation_value), result.astype(np.float64))
    return _round_to(result, x.dtype)


def _round_to(x: Array, target: np.dtype) -> Array:
    if x.dtype == target:
        return x
    if dtype(target).is_int:
        limits = np.iinfo(target)
        return np.rint(x).clip(limits.min, limits.max).astype(target)
    return x.astype(target)


def _factors(shape: Sequence[int], sizes: Sequence[int], scales: Sequence[float]) -> list[float]:
    if len(scales):
        return [float(s) for s in scales]
    return [size / extent if extent else 1.0 for size, extent in zip(sizes, shape, strict=True)]


def _regions(rank: int, roi: Array | None) -> list[tuple[float, float]]:
    if roi is None or roi.size == 0:
        return [(0.0, 1.0)] * rank
    flat = roi.astype(np.float64).reshape(-1)
    return [(float(flat[i]), float(flat[rank + i])) for i in range(rank)]


def source_coordinates(
    extent: int,
    size: int,
    factor: float,
    mode: str,
    region: tuple[float, float] = (0.0, 1.0),
    *,
    single: bool = False,
) -> Array:
    """Where each of `size` output positions lies on the input axis of `extent` elements.

    `factor` is the scale of the axis. With `single` the arithmetic is float32, as other runtimes do
    it, so that nearest-neighbour ties fall the same way.
    """
    number: Any = np.float32 if single else np.float64
    out: Array = np.arange(size, dtype=number)
    scale = number(factor)
    length = scale * number(extent)  # the unrounded output length
    half, one = number(0.5), number(1)
    centre: Array = (out + half) / scale - half
    if mode == "asymmetric":
        centre = out / scale
    elif mode == "tf_half_pixel_for_nn":
        centre = (out + half) / scale
    elif mode == "align_corners":
        centre = np.zeros(size, number) if length == 1 else out * number(extent - 1) / (length - one)
    elif mode == "tf_crop_and_resize":
        start, end = number(region[0]), number(region[1])
        last = number(extent - 1)
        if size == 1:
            centre = np.full(size, half * (start + end) * last)
        else:
            centre = start * last + out * (end - start) * last / (length - one)
    elif mode == "pytorch_half_pixel" and size == 1:
        centre = np.zeros(size, number)
    elif mode == "half_pixel_symmetric":
        # Centre the output canvas on the input when rounding changed the length.
        centre = centre + number(extent) / number(2) * (one - number(size) / length)
    return centre


def nearest_positions(where: Array, extent: int, nearest_mode: str) -> Array:
    """The input position that each coordinate takes, clamped to the axis."""
    floor = np.floor(where)
    if nearest_mode == "floor":
        chosen = floor
    elif nearest_mode == "ceil":
        chosen = np.ceil(where)
    else:
        above = where - floor > 0.5 if nearest_mode == "round_prefer_floor" else where - floor >= 0.5
        chosen = floor + above
    return chosen.astype(np.int64).clip(0, extent - 1)


def interpolation_matrix(
    where: Array,
    extent: int,
    factor: float,
    mode: str,
    cubic_coeff_a: float = -0.75,
    antialias: bool = False,
    exclude_outside: bool = False,
) -> Array:
    """Weights (size, extent) of every input position for every output position.

    Positions outside the axis count for the nearest end, or are dropped with `exclude_outside`.
    """
    # Antialiasing widens the filter when the axis shrinks.
    stretch = min(float(factor), 1.0) if antialias else 1.0
    reach = int(np.ceil((2 if mode == "cubic" else 1) / stretch))
    taps = np.floor(where).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(taps - where[:, None]) * stretch
    weights = _cubic(distance, cubic_coeff_a) if mode == "cubic" else (1 - distance).clip(0)
    if exclude_outside:
        weights = np.where((taps < 0) | (taps >= extent), 0.0, weights)
    if exclude_outside or antialias:
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
    table = np.zeros((len(where), extent))
    rows = np.broadcast_to(np.arange(len(where))[:, None], taps.shape)
    np.add.at(table, (rows, taps.clip(0, extent - 1)), weights)
    return table


def _cubic(distance: Array, a: float) -> Array:
    """Keys' cubic convolution kernel."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
