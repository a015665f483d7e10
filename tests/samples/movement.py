"""Samples of the movement, selection and vision families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from dovetail.core import dtypes as d
from tests.samples.sample import Array, Sample

Shape = tuple[int, ...]


def drawn(*shapes: Shape, dtype: Any = np.float32) -> Callable[[np.random.Generator], list[Array | None]]:
    """Inputs of whole numbers (so that every dtype holds them exactly) of the given shapes."""
    return lambda rng: [np.asarray(rng.integers(-50, 50, shape)).astype(dtype) for shape in shapes]


def normal(*shapes: Shape, dtype: Any = np.float32) -> Callable[[np.random.Generator], list[Array | None]]:
    """Inputs of normal numbers."""
    return lambda rng: [np.asarray(rng.normal(0, 1, shape)).astype(dtype) for shape in shapes]


def indexed(
    shape: Shape, indices: Shape, low: int, high: int, updates: Shape | None = None, dtype: Any = np.float32
) -> Callable[[np.random.Generator], list[Array | None]]:
    """Data, positions in [low, high), and updates."""

    def make(rng: np.random.Generator) -> list[Array | None]:
        arrays: list[Array | None] = [
            rng.normal(0, 1, shape).astype(dtype),
            np.asarray(rng.integers(low, high, indices)).astype(np.int64),
        ]
        if updates is not None:
            arrays.append(rng.normal(0, 1, updates).astype(dtype))
        return arrays

    return make


def _distinct_rows(shape: Shape, count: int, width: int, updates: Shape) -> Callable[[np.random.Generator], list[Array | None]]:
    """Data, `count` different coordinate rows of `width`, and updates: the result does not depend on an order."""

    def make(rng: np.random.Generator) -> list[Array | None]:
        places = rng.permutation(int(np.prod(shape[:width])))[:count]
        rows = np.stack(np.unravel_index(places, shape[:width]), axis=-1).astype(np.int64)
        return [rng.normal(0, 1, shape).astype(np.float32), rows, rng.normal(0, 1, updates).astype(np.float32)]

    return make


def _boxes(rng: np.random.Generator) -> list[Array | None]:
    centres, sizes = rng.uniform(0, 10, (2, 17, 2)), rng.uniform(1, 5, (2, 17, 2))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 3, 17)).astype(np.float32)
    return [boxes, scores, np.array([5], np.int64), np.array([0.3], np.float32), np.array([0.2], np.float32)]


def _rois(batch_column: bool) -> Callable[[np.random.Generator], list[Array | None]]:
    def make(rng: np.random.Generator) -> list[Array | None]:
        x = rng.normal(0, 1, (2, 3, 11, 13)).astype(np.float32)
        corners = np.sort(rng.uniform(-2, 14, (5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
        batch = rng.integers(0, 2, 5)
        if batch_column:
            return [x, np.concatenate([batch[:, None].astype(np.float32), corners], axis=1)]
        return [x, corners, batch.astype(np.int64)]

    return make


def _deformed(group: int, offset_group: int, mask: bool) -> Callable[[np.random.Generator], list[Array | None]]:
    def make(rng: np.random.Generator) -> list[Array | None]:
        x = rng.normal(0, 1, (2, 4, 7, 6)).astype(np.float32)
        weight = rng.normal(0, 1, (6, 4 // group, 3, 2)).astype(np.float32)
        offset = rng.normal(0, 1, (2, offset_group * 12, 4, 7)).astype(np.float32)
        bias = rng.normal(0, 1, 6).astype(np.float32)
        weights = rng.uniform(0, 1, (2, offset_group * 6, 4, 7)).astype(np.float32) if mask else None
        return [x, weight, offset, bias, weights]

    return make


def _unpooled(rng: np.random.Generator) -> list[Array | None]:
    return [
        rng.normal(0, 1, (1, 2, 3, 3)).astype(np.float32),
        rng.permutation(1 * 2 * 6 * 6)[:18].reshape(1, 2, 3, 3).astype(np.int64),
    ]


def _cached(rng: np.random.Generator) -> list[Array | None]:
    cache, update = rng.normal(0, 1, (3, 2, 7, 4)), rng.normal(0, 1, (3, 2, 3, 4))
    return [cache.astype(np.float32), update.astype(np.float32), np.array([0, 2, 4], np.int64)]


def _lengths(rng: np.random.Generator) -> list[Array | None]:
    return [rng.normal(0, 1, (5, 3, 2)).astype(np.float32), np.array([5, 0, 3], np.int64)]


def _hot(rng: np.random.Generator) -> list[Array | None]:
    return [rng.integers(-9, 9, (2, 3)).astype(np.int64), np.array([2.5, -1.0], np.float32)]


MOVEMENT = [
    *(
        Sample("Reshape", drawn(shape), {"shape": target}, exact=True)
        for shape, target in (((2, 3), (6,)), ((6,), (1, 3, 2)), ((), (1, 1)), ((0, 3), (3, 0, 2)), ((1,), ()))
    ),
    *(
        Sample("Transpose", drawn(shape, dtype=dtype), {"perm": perm}, exact=True)
        for shape, perm, dtype in (
            ((3, 5), (1, 0), np.float32),
            ((2, 3, 5), (2, 0, 1), np.int8),
            ((1, 17, 3, 2), (0, 2, 3, 1), ml_dtypes.bfloat16),
            ((0, 4), (1, 0), np.float16),
            ((), (), np.float32),
        )
    ),
    *(
        Sample("Expand", drawn(shape), {"shape": target}, exact=True)
        for shape, target in (((1, 3), (5, 3)), ((), (2, 2)), ((3, 1), (2, 3, 7)), ((1,), (0,)), ((4,), (4,)))
    ),
    Sample("Concat", drawn((2, 3), (2, 1), (2, 0)), {"axis": 1}, exact=True),
    Sample("Concat", drawn((1, 3), (7, 3), dtype=np.int64), {"axis": 0}, exact=True),
    Sample("Concat", drawn((5,)), {"axis": 0}, exact=True),
    *(
        Sample("Slice", drawn((7, 5, 3)), {"starts": s, "ends": e, "axes": a, "steps": p}, exact=True)
        for s, e, a, p in (
            ((1,), (6,), (0,), (1,)),
            ((0, 1), (7, 5), (0, 1), (2, 3)),
            ((6,), (-1,), (0,), (-1,)),
            ((4, 2), (0, -1), (1, 2), (-2, -1)),
            ((3,), (3,), (1,), (1,)),
            ((5,), (2,), (0,), (1,)),
        )
    ),
    *(
        Sample("Pad", drawn((3, 4)), {"pads": pads, "mode": mode, "value": 1.5}, exact=True)
        for mode in ("constant", "reflect", "edge", "wrap")
        for pads in ((1, 2, 0, 3), (-1, 0, 2, -2), (0, 0, 0, 0), (5, 0, 4, 6))
    ),
    Sample("Pad", drawn((0, 2)), {"pads": (1, 0, 1, 1), "value": 2.0}, exact=True),
    Sample("Pad", lambda rng: [rng.random(4) < 0.5], {"pads": (1, 1), "value": True}, exact=True),
    *(
        Sample("Tile", drawn(shape), {"repeats": repeats}, exact=True)
        for shape, repeats in (((2, 3), (2, 1)), ((1,), (7,)), ((2, 2), (0, 3)), ((), ()))
    ),
    *(
        Sample("Trilu", drawn((2, 4, 5)), {"upper": upper, "k": k}, exact=True)
        for upper in (True, False)
        for k in (-7, -1, 0, 2, 9)
    ),
    Sample("DimTensor", lambda rng: [], {"values": (2, 0, 5)}, exact=True),
    Sample("DimTensor", lambda rng: [], {"values": ()}, exact=True),
    Sample("Iota", lambda rng: [], {"size": 7, "dtype": d.I64}, exact=True),
    Sample("Iota", lambda rng: [], {"size": 0, "dtype": d.F32}, exact=True),
    Sample("Full", lambda rng: [], {"shape": (2, 3), "value": 2.5, "dtype": d.F16}, exact=True),
    Sample("Full", lambda rng: [], {"shape": (), "value": True, "dtype": d.BOOL}, exact=True),
    Sample("ReverseSequence", _lengths, {"batch_axis": 1, "time_axis": 0}, exact=True),
    Sample(
        "ReverseSequence",
        lambda rng: [drawn((3, 5))(rng)[0], np.array([1, 5, 2], np.int64)],
        {"batch_axis": 0, "time_axis": 1},
        exact=True,
    ),
    Sample("TensorScatter", _cached, {"axis": 2, "mode": "linear"}, exact=True),
    Sample("TensorScatter", lambda rng: [*_cached(rng)[:2], np.array([5, 6, 0])], {"axis": 2, "mode": "circular"}, exact=True),
]

SELECTION = [
    Sample("Gather", indexed((5, 3), (2, 2), -5, 5), {"axis": 0}, exact=True),
    Sample("Gather", indexed((2, 7, 3), (), 0, 7), {"axis": 1}, exact=True),
    Sample("Gather", indexed((2, 3), (0,), 0, 3), {"axis": 1}, exact=True),
    Sample("GatherElements", indexed((5, 3), (2, 3), -5, 5), {"axis": 0}, exact=True),
    Sample("GatherElements", indexed((4, 7, 2), (3, 9, 1), 0, 7), {"axis": 1}, exact=True),
    Sample("GatherND", indexed((3, 4, 5), (2, 2), 0, 3), {}, exact=True),
    Sample("GatherND", indexed((3, 4, 5), (3, 2, 1), -4, 4), {"batch_dims": 1}, exact=True),
    Sample("GatherND", indexed((3, 4), (2,), 0, 3), {}, exact=True),
    *(
        Sample("ScatterElements", indexed((5, 3), (4, 2), -5, 5, (4, 2)), {"axis": 0, "reduction": reduction})
        for reduction in ("add", "mul", "max", "min")
    ),
    Sample("ScatterElements", indexed((4, 7), (4, 1), 0, 7, (4, 1)), {"axis": 1}, exact=True),
    *(
        Sample("ScatterND", indexed((4, 5, 2), (3, 2), 0, 4, (3, 2)), {"reduction": reduction})
        for reduction in ("add", "mul", "max", "min")
    ),
    Sample("ScatterND", _distinct_rows((4, 5), 6, 2, (6,)), {}, exact=True),
    Sample("ScatterND", _distinct_rows((7, 3), 3, 1, (3, 3)), {}, exact=True),
    Sample("OneHot", _hot, {"depth": 5, "axis": 2}, exact=True),
    Sample("OneHot", _hot, {"depth": 4, "axis": 0}, exact=True),
    *(
        Sample("TopK", drawn((3, 11), dtype=dtype), {"k": k, "axis": 1, "largest": largest}, exact=True)
        for dtype in (np.float32, np.uint8, np.float16)
        for k, largest in ((3, True), (11, False), (0, True))
    ),
    Sample("TopK", drawn((5, 2)), {"k": 1, "axis": 0}, exact=True),
    Sample("NonZero", lambda rng: [(rng.random((3, 1, 5)) < 0.4).astype(np.float32)], {"symbols": ("n",)}, exact=True),
    Sample("NonZero", lambda rng: [np.zeros((0, 2), np.int64)], {"symbols": ("n",)}, exact=True),
    Sample(
        "Compress",
        lambda rng: [drawn((3, 5))(rng)[0], np.array([True, False, True])],
        {"axis": 0, "symbols": ("n",)},
        exact=True,
    ),
    Sample("Compress", lambda rng: [drawn((3, 2))(rng)[0], rng.random(6) < 0.5], {"symbols": ("n",)}, exact=True),
    *(
        Sample(
            "Unique",
            lambda rng: [np.asarray(rng.integers(0, 3, (6, 2))).astype(np.float32)],
            {"axis": axis, "sorted": ordered, "symbols": ("n",)},
            exact=True,
        )
        for axis in (None, 0, 1)
        for ordered in (True, False)
    ),
    Sample("NonZeroTable", lambda rng: [(rng.random((3, 1, 5)) < 0.4).astype(np.float32)], exact=True),
    Sample("SuppressionTable", _boxes, {"limit": 3}, exact=True),
    Sample("NonMaxSuppression", _boxes, {"symbols": ("n",)}, exact=True),
    Sample("NonMaxSuppression", lambda rng: _boxes(rng)[:3], {"center_point_box": True, "symbols": ("n",)}, exact=True),
    Sample("BindSymbols", lambda rng: [np.array([3, 0], np.int64)], {"symbols": ("a", "b")}, exact=True),
]

_ROI = np.array([0.0, 0.0, 0.1, -0.2, 1.0, 1.0, 0.8, 1.1], np.float32)

VISION = [
    *(
        Sample("Resize", normal((1, 2, 5, 7)), {"sizes": (1, 2, *sizes), "mode": mode, "coordinate_transformation_mode": how})
        for mode in ("nearest", "linear", "cubic")
        for how in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
        for sizes in ((10, 3), (1, 7))
    ),
    *(
        Sample("Resize", normal((1, 1, 5, 4)), {"sizes": (1, 1, 7, 3), "nearest_mode": how}, exact=True)
        for how in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        Sample("Resize", normal((1, 2, 9, 8)), {"sizes": (1, 2, 4, 3), "mode": mode, "antialias": True, "exclude_outside": out})
        for mode in ("linear", "cubic")
        for out in (False, True)
    ),
    Sample(
        "Resize",
        lambda rng: [rng.normal(0, 1, (1, 1, 5, 6)).astype(np.float32), _ROI],
        {
            "sizes": (1, 1, 4, 7),
            "mode": "linear",
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "extrapolation_value": 9.0,
        },
    ),
    *(
        Sample(
            "GridSample",
            lambda rng: [rng.normal(0, 1, (2, 3, 5, 4)).astype(np.float32), rng.uniform(-1.4, 1.4, (2, 3, 7, 2)).astype(np.float32)],
            {"mode": mode, "padding_mode": padding, "align_corners": align},
        )
        for mode in ("linear", "nearest", "cubic")
        for padding in ("zeros", "border", "reflection")
        for align in (False, True)
    ),
    Sample(
        "GridSample",
        lambda rng: [rng.normal(0, 1, (1, 2, 3, 4, 5)).astype(np.float32), rng.uniform(-1.2, 1.2, (1, 2, 3, 2, 3)).astype(np.float32)],
        {"mode": "linear"},
    ),
    *(
        Sample(
            "RoiAlign",
            _rois(False),
            {"output_height": 3, "output_width": 2, "sampling_ratio": ratio, "spatial_scale": 0.7, "mode": mode,
             "coordinate_transformation_mode": how},
        )
        for ratio in (0, 2)
        for mode in ("avg", "max")
        for how in ("half_pixel", "output_half_pixel")
    ),
    Sample("MaxRoiPool", _rois(True), {"pooled_shape": (3, 2), "spatial_scale": 0.8}),
    Sample("MaxUnpool", _unpooled, {"pooled_from": (1, 2, 6, 6), "sizes": (1, 2, 6, 7)}, exact=True),
    *(
        Sample(
            "DeformConv",
            _deformed(group, offset_group, mask),
            {"strides": (2, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": group, "offset_group": offset_group},
        )
        for group, offset_group, mask in ((1, 1, False), (2, 2, True), (1, 4, True))
    ),
    Sample("AffineGrid", normal((2, 2, 3)), {"size": (2, 1, 3, 5), "align_corners": True}),
    Sample("AffineGrid", normal((1, 3, 4)), {"size": (1, 1, 2, 3, 1)}),
    Sample(
        "Col2Im",
        normal((2, 12, 16)),
        {"image_shape": (5, 4), "block_shape": (2, 3), "dilations": (1, 1), "pads": (0, 1, 0, 1), "strides": (1, 1)},
    ),
    Sample(
        "Col2Im",
        normal((1, 3, 3)),
        {"image_shape": (9,), "block_shape": (3,), "dilations": (2,), "pads": (0, 0), "strides": (2,)},
    ),
]

SAMPLES = [*MOVEMENT, *SELECTION, *VISION]
