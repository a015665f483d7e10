"""Resize and grid-sample layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    InterpolationMode,
    LayerType,
    ResizeCoordinateTransformation,
    ResizeRoundMode,
    ResizeSelector,
    SampleMode,
)
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Convert, Setting, boolean, dims_setting, number, of
from dovetail.tensorrt.tensor import ITensor


def _scales(value: Any, where: str) -> tuple[float, ...]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{where}: got {value!r}, expected a sequence of numbers")
    return tuple(number(v, where) for v in value)


_of_scales: Convert = _scales


class IResizeLayer(ILayer):
    """Its input in another size, given by `shape`, by `scales`, or by input 1 where that is known at run time only."""

    __slots__ = ()
    _layer_type, _label, _most_inputs, _shape_inputs = LayerType.RESIZE, "Resize", 2, (1,)
    shape = dims_setting(None, "The size of the result.")
    scales = Setting[list[float]](_of_scales, None, "The factor per axis, of all axes.", show=list)
    resize_mode = Setting[InterpolationMode](of(InterpolationMode), InterpolationMode.NEAREST, "How elements between come about.")
    coordinate_transformation = Setting[ResizeCoordinateTransformation](
        of(ResizeCoordinateTransformation), ResizeCoordinateTransformation.ASYMMETRIC, "How places of the result map to the input."
    )
    selector_for_single_pixel = Setting[ResizeSelector](
        of(ResizeSelector), ResizeSelector.FORMULA, "What an axis of one element reads: what the formula says, or the first."
    )
    nearest_rounding = Setting[ResizeRoundMode](of(ResizeRoundMode), ResizeRoundMode.FLOOR, "How NEAREST rounds.")
    exclude_outside = Setting[bool](boolean, False, "Whether CUBIC leaves out what lies outside.")
    cubic_coeff = Setting[float](number, -0.75, "The coefficient of CUBIC.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, wanted = (*inputs, None)[:2]
        assert x is not None
        kept = self._record.values
        mode, rounding = self.resize_mode, _ROUNDING[self.nearest_rounding]
        attributes: dict[str, Any] = {"mode": mode.name.lower()}
        if mode is InterpolationMode.NEAREST:
            attributes["nearest_mode"] = rounding
        if mode is InterpolationMode.CUBIC:
            attributes |= {"cubic_coeff_a": self.cubic_coeff, "exclude_outside": int(self.exclude_outside)}
        sizes: tuple[Dim, ...] | None = kept.get("shape") if wanted is None else net.dims(wanted)
        if sizes is None and kept.get("scales") is None:
            raise ModelError(f"{self.name}: got neither a shape nor scales, expected one of them; set shape, scales or input 1")
        given: list[Any] = [None, None]
        if sizes is None:
            given = [np.array((1.0,) * net.shift + kept["scales"], np.float32), None]
            rank = len(given[0])
        else:
            given = [None, net.extents((*x.shape[: net.shift], *sizes))]
            rank = len(sizes) + net.shift
        if rank != len(x.shape):
            raise ModelError(f"{self.name}: got a size of {rank} axes, expected {len(x.shape)}")
        transformation = _TRANSFORMATIONS[self.coordinate_transformation]
        return [_resized(self, net, x, given, attributes | {"coordinate_transformation_mode": transformation})]


def _resized(layer: IResizeLayer, net: Scope, x: Value, given: list[Any], attributes: dict[str, Any]) -> Value:
    made: Value = net.op("Resize", x, None, *given, **attributes)
    if layer.selector_for_single_pixel is ResizeSelector.FORMULA:
        return made
    # Axes of one element read the first one of the input.
    alone = [axis for axis, (to, of) in enumerate(zip(made.shape, x.shape, strict=True)) if to == 1 and of != 1]
    if not alone:
        return made
    first = net.op("Slice", x, [0] * len(alone), [1] * len(alone), alone)
    if given[1] is not None:
        return net.op("Resize", first, None, None, given[1], **attributes)  # type: ignore[no-any-return]
    scales = np.array([1.0 if axis in alone else s for axis, s in enumerate(given[0])], np.float32)
    return net.op("Resize", first, None, scales, **attributes)  # type: ignore[no-any-return]



_ROUNDING = {
    ResizeRoundMode.HALF_UP: "round_prefer_ceil",
    ResizeRoundMode.HALF_DOWN: "round_prefer_floor",
    ResizeRoundMode.FLOOR: "floor",
    ResizeRoundMode.CEIL: "ceil",
}
_TRANSFORMATIONS = {
    ResizeCoordinateTransformation.ALIGN_CORNERS: "align_corners",
    ResizeCoordinateTransformation.ASYMMETRIC: "asymmetric",
    ResizeCoordinateTransformation.HALF_PIXEL: "half_pixel",
}


class IGridSampleLayer(ILayer):
    """Elements of images at places of a grid, which run from -1 to 1."""

    __slots__ = ()
    _layer_type, _label = LayerType.GRID_SAMPLE, "GridSample"
    interpolation_mode = Setting[InterpolationMode](of(InterpolationMode), InterpolationMode.LINEAR, "How elements between come about.")
    align_corners = Setting[bool](boolean, False, "Whether -1 and 1 are the middles of the outer elements, not their edges.")
    sample_mode = Setting[SampleMode](of(SampleMode), SampleMode.FILL, "What lies outside: FILL, CLAMP or REFLECT.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        if self.sample_mode not in _PADDING:
            raise ModelError(f"{self.name}: got {self.sample_mode}, expected one of {', '.join(str(m) for m in _PADDING)}")
        mode = self.interpolation_mode.name.lower()
        return [net.op("GridSample", *inputs, mode=mode, padding_mode=_PADDING[self.sample_mode], align_corners=int(self.align_corners))]


_PADDING = {SampleMode.FILL: "zeros", SampleMode.CLAMP: "border", SampleMode.REFLECT: "reflection"}


class AddSampling(NetworkBase):
    """The `add_*` methods of this family."""

    def add_resize(self, input: ITensor) -> IResizeLayer | None:
        """Resize, as the layer's properties say."""
        return self._add(IResizeLayer, [expect(ITensor, input, "add_resize: input")])

    def add_grid_sample(self, input: ITensor, grid: ITensor) -> IGridSampleLayer | None:
        """Sample images at the places of a grid."""
        inputs = [expect(ITensor, input, "add_grid_sample: input"), expect(ITensor, grid, "add_grid_sample: grid")]
        return self._add(IGridSampleLayer, inputs)
