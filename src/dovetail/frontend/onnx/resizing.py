"""ONNX importers of Resize and Upsample: sizes become dims, scales stay with the coordinate map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from dovetail.core.dims import Dim, floor_div, maximum, minimum
from dovetail.core.dtypes import F32
from dovetail.core.errors import TypeInferenceError
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.shape_inputs import (
    as_i64,
    emit_one,
    ints,
    known_dims,
    normal_axis,
    present,
    required,
    vector,
)
from dovetail.ir.graph import Value

_ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


@onnx_op("Upsample")
def upsample(ctx: Context, node: OnnxNode) -> Any:
    """Upsample-1, 7 (attributes) and 9 (input)."""
    x, mode = required(node, 0), node.attr("mode", "nearest")
    options = {"mode": "linear" if mode == "bilinear" else mode, **_ASYMMETRIC}
    if node.opset >= 9:
        return _by_scales(ctx, x, required(node, 1), list(range(x.tensor.rank)), None, options)
    scales = node.attr("scales")
    if scales is None:
        scales = [1.0, 1.0, node.attr("height_scale"), node.attr("width_scale")]
    return _emit(ctx, x, None, None, _scaled_sizes(x, scales), scales, options)


@onnx_op("Resize", since=10)
def resize_10(ctx: Context, node: OnnxNode) -> Any:
    """Resize-10: scales only, asymmetric coordinates."""
    x = required(node, 0)
    options = {"mode": node.attr("mode", "nearest"), **_ASYMMETRIC}
    return _by_scales(ctx, x, required(node, 1), list(range(x.tensor.rank)), None, options)


@onnx_op("Resize", since=11)
def resize(ctx: Context, node: OnnxNode) -> Any:
    """Resize-11…19."""
    x = required(node, 0)
    rank = x.tensor.rank
    options: dict[str, Any] = {
        "mode": node.attr("mode", "nearest"),
        "coordinate_transformation_mode": node.attr("coordinate_transformation_mode", "half_pixel"),
        "nearest_mode": node.attr("nearest_mode", "round_prefer_floor"),
        "cubic_coeff_a": float(node.attr("cubic_coeff_a", -0.75)),
        "antialias": bool(node.attr("antialias", 0)),
        "exclude_outside": bool(node.attr("exclude_outside", 0)),
        "extrapolation_value": float(node.attr("extrapolation_value", 0.0)),
    }
    axes = [normal_axis("Resize", axis, rank) for axis in node.attr("axes", list(range(rank)))]
    roi = None
    if options["coordinate_transformation_mode"] == "tf_crop_and_resize":
        roi = _full_roi(ctx, required(node, 1), axes, rank)
    scales, sizes = present(node, 2), present(node, 3)
    if scales is not None:
        return _by_scales(ctx, x, scales, axes, roi, options)
    if sizes is None:
        raise TypeInferenceError("Resize: got neither scales nor sizes, expected one of them; connect one")
    return _by_sizes(ctx, x, ctx.dims(sizes), axes, roi, node.attr("keep_aspect_ratio_policy", "stretch"), options)


def _emit(
    ctx: Context,
    x: Value,
    roi: Value | None,
    scales_data: Value | None,
    sizes: Sequence[Dim],
    scales: Sequence[float],
    options: dict[str, Any],
) -> Value:
    return emit_one(ctx, "Resize", x, roi, scales_data, sizes=tuple(sizes), scales=tuple(scales), **options)


def _full_roi(ctx: Context, roi: Value, axes: Sequence[int], rank: int) -> Value:
    """The region of interest over all axes as f32: starts, then ends."""
    roi = roi if roi.tensor.dtype == F32 else ctx.emit("Cast", roi, to=F32)
    if list(axes) == list(range(rank)):
        return roi
    whole = ctx.const(np.array([0.0] * rank + [1.0] * rank, np.float32))
    places = ints(ctx, [*axes, *(rank + axis for axis in axes)])
    return emit_one(ctx, "ScatterElements", whole, places, roi, axis=0, reduction="none")


# ---------------------------------------------------------------------- scales
def _by_scales(
    ctx: Context, x: Value, scales: Value, axes: Sequence[int], roi: Value | None, options: dict[str, Any]
) -> Value:
    rank = x.tensor.rank
    numbers = ctx.constant(scales, "scales of a Resize")
    if numbers is not None:
        full = [1.0] * rank
        for axis, scale in zip(axes, numbers.tolist(), strict=True):
            full[axis] = float(scale)
        return _emit(ctx, x, roi, None, _scaled_sizes(x, full), full, options)
    data = scales if scales.tensor.dtype == F32 else ctx.emit("Cast", scales, to=F32)
    if list(axes) != list(range(rank)):
        ones = ctx.const(np.ones(rank, np.float32))
        data = ctx.emit("ScatterElements", ones, ints(ctx, list(axes)), data, axis=0, reduction="none")
    extents = ctx.emit("Cast", vector(ctx, x.tensor.shape), to=F32)
    sizes = as_i64(ctx, ctx.emit("Floor", ctx.emit("Mul", extents, data)))
    known = known_dims(ctx, sizes)
    bound = list(known if known is not None else ctx.dims(sizes))
    for axis in set(range(rank)) - set(axes):
        bound[axis] = x.tensor.shape[axis]
    return _emit(ctx, x, roi, data, bound, (), options)


def _scaled_sizes(x: Value, scales: Sequence[float]) -> list[Dim]:
    return [scaled_size(extent, scale) for extent, scale in zip(x.tensor.shape, scales, strict=True)]


def scaled_size(extent: Dim, scale: float) -> Dim:
    """floor(extent * scale) as other runtimes compute it, in float32."""
    if isinstance(extent, int):
        return math.floor(np.float32(extent) * np.float32(scale))
    # For a symbol: the simplest fraction that rounds to this float32 stands for what the author meant.
    simple = Fraction(scale).limit_denominator(4096)
    ratio = simple if np.float32(float(simple)) == np.float32(scale) else Fraction(scale)
    return floor_div(extent * ratio.numerator, ratio.denominator)


# ---------------------------------------------------------------------- sizes
def _by_sizes(
    ctx: Context,
    x: Value,
    wanted: Sequence[Dim],
    axes: Sequence[int],
    roi: Value | None,
    policy: str,
    options: dict[str, Any],
) -> Value:
    sizes = list(x.tensor.shape)
    for axis, size in zip(axes, wanted, strict=True):
        sizes[axis] = size
    if policy == "stretch":
        return _emit(ctx, x, roi, None, sizes, (), options)
    if policy not in ("not_larger", "not_smaller"):
        raise TypeInferenceError(
            f"Resize: keep_aspect_ratio_policy, got {policy!r}, expected stretch, not_larger or not_smaller; choose one"
        )
    pairs = [(size, x.tensor.shape[axis]) for size, axis in zip(wanted, axes, strict=True)]
    if all(isinstance(a, int) and isinstance(b, int) and b > 0 for a, b in pairs):
        ratios = [Fraction(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        scales = [1.0] * x.tensor.rank
        for axis in axes:
            extent = x.tensor.shape[axis]
            assert isinstance(extent, int)
            sizes[axis] = math.floor(ratio * extent + Fraction(1, 2))
            scales[axis] = float(ratio)
        return _emit(ctx, x, roi, None, sizes, scales, options)
    # Rounding is monotonic, so the common scale's size is the least (or greatest) over the axes' own scales.
    choose = minimum if policy == "not_larger" else maximum
    for axis in axes:
        extent = x.tensor.shape[axis]
        rounded = [floor_div(2 * size * extent + other, 2 * other) for size, other in pairs]
        best = rounded[0]
        for candidate in rounded[1:]:
            best = choose(best, candidate)
        sizes[axis] = best
    data = _common_scale(ctx, pairs, axes, x.tensor.rank, policy)
    return _emit(ctx, x, roi, data, sizes, (), options)


def _common_scale(
    ctx: Context, pairs: Sequence[tuple[Dim, Dim]], axes: Sequence[int], rank: int, policy: str
) -> Value:
    """The scale shared by `axes`, computed when shapes are known; 1 elsewhere."""
    wanted = ctx.emit("Cast", vector(ctx, [a for a, _ in pairs]), to=F32)
    extents = ctx.emit("Cast", vector(ctx, [b for _, b in pairs]), to=F32)
    reduce = "ReduceMin" if policy == "not_larger" else "ReduceMax"
    scale = ctx.emit(reduce, ctx.emit("Div", wanted, extents), axes=(0,), keepdims=True)
    chosen = ctx.const(np.array([axis in axes for axis in range(rank)]))
    return emit_one(ctx, "Where", chosen, scale, ctx.const(np.ones(1, np.float32)))


