"""Slice layers, whose modes say what lies outside of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim, maximum
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType, SampleMode
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, dims_setting, extents, of, optional
from dovetail.tensorrt.tensor import ITensor


class ISliceLayer(ILayer):
    """Elements `start + i * stride` for i below `shape`, per axis.

    Inputs 1 to 3 give start, shape and stride where these are known at run time only, input 4 the value of FILL, input 5 the axes.
    """

    __slots__ = ()
    _layer_type, _label, _most_inputs, _shape_inputs = LayerType.SLICE, "Slice", 6, (1, 2, 3, 5)
    start = dims_setting((), "The first index, per axis.")
    shape = dims_setting((), "The shape of the result.")
    stride = dims_setting((), "The distance between elements, per axis; may be negative.")
    mode = Setting[SampleMode](of(SampleMode), SampleMode.STRICT_BOUNDS, "What lies outside of the input.")
    axes = Setting[Dims | None](optional(extents), None, "The axes that start, shape and stride are for; never set, all.", show=Dims)

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, start, shape, stride, fill, axes = (*inputs, *[None] * 6)[:6]
        assert x is not None
        kept, rank = self._record.values, len(x.shape) - net.shift
        given = [
            kept[key] if value is None else net.dims(value)
            for key, value in (("start", start), ("shape", shape), ("stride", stride))
        ]
        chosen = kept.get("axes") if axes is None else net.dims(axes)
        places = list(range(rank)) if chosen is None else [int(str(a)) % rank for a in chosen]
        if any(len(g) != len(places) for g in given):
            raise ModelError(f"{self.name}: got start, shape and stride {given}, expected as many numbers as axes: {len(places)}")
        spans = [_Span(a + net.shift, *(g[i] for g in given)) for i, a in enumerate(places)]
        if self.mode is SampleMode.STRICT_BOUNDS:
            return [_taken(net, x, spans)]
        if self.mode is SampleMode.FILL:
            return [_filled(net, x, spans, fill)]
        for span in spans:
            if not span.is_whole(x.shape[span.axis]):
                x = net.op("Gather", x, span.indices(net, x.shape[span.axis], self.mode), axis=span.axis)
        return [x]


class _Span:
    """What is taken of one axis."""

    def __init__(self, axis: int, start: Dim, size: Dim, stride: Dim) -> None:
        self.axis, self.start, self.size, self.stride = axis, start, size, stride

    def is_whole(self, extent: Dim) -> bool:
        """Whether it is the axis as it lies."""
        return self.start == 0 and self.size == extent and self.stride == 1

    @property
    def last(self) -> Dim:
        """The index of the last element."""
        return self.start + (self.size - 1) * self.stride

    def indices(self, net: Scope, extent: Dim, mode: SampleMode) -> Value:
        """The indices within the axis."""
        start, size, stride, extent_value = (net.extents([d]) for d in (self.start, self.size, self.stride, extent))
        steps = net.op("Range", np.int64(0), net.op("Squeeze", size, [0]), np.int64(1))
        index = net.op("Add", net.op("Mul", steps, stride), start)
        if mode is SampleMode.STRICT_BOUNDS:
            plain: Value = index
            return plain
        if mode is SampleMode.CLAMP:
            zero, one = np.int64(0), np.int64(1)
            clamped: Value = net.op("Max", net.op("Min", index, net.op("Sub", extent_value, one)), zero)
            return clamped
        if mode is SampleMode.WRAP:
            wrapped: Value = net.op("Mod", index, extent_value)
            return wrapped
        # Reflected at the first and the last element, which are not repeated.
        period = net.op("Max", net.op("Mul", net.op("Sub", extent_value, np.int64(1)), np.int64(2)), np.int64(1))
        folded = net.op("Mod", index, period)
        reflected: Value = net.op("Min", folded, net.op("Sub", period, folded))
        # An axis of one element has nothing but that.
        return net.op("Min", reflected, net.op("Sub", extent_value, np.int64(1)))  # type: ignore[no-any-return]


_FAR = np.iinfo(np.int64).max


def _sliced(net: Scope, x: Value, spans: list[_Span]) -> Value:
    if not spans:
        return x
    ends: list[Dim] = []
    for span in spans:
        if not isinstance(span.stride, int) or span.stride == 0:
            raise ModelError(f"slice: got the stride {span.stride} on axis {span.axis}, expected a constant that is not 0")
        end = span.start + span.size * span.stride
        # Before the first element there is no index for ONNX; -1 would be the last one.
        ends.append(-_FAR if span.stride < 0 and isinstance(end, int) and end < 0 else end)
    given: list[list[Dim]] = [[s.start for s in spans], ends, [s.axis for s in spans], [s.stride for s in spans]]
    made: Value = net.op("Slice", x, *(net.extents(g) for g in given))
    return made


def _taken(net: Scope, x: Value, spans: list[_Span]) -> Value:
    """What lies inside."""
    partial = [s for s in spans if not s.is_whole(x.shape[s.axis])]
    # Backward from a place that only a run knows, the end may be before the first element, which Slice cannot say.
    gathered = [s for s in partial if isinstance(s.stride, int) and s.stride < 0 and not isinstance(s.start + s.size * s.stride, int)]
    x = _sliced(net, x, [s for s in partial if s not in gathered])
    for span in gathered:
        x = net.op("Gather", x, span.indices(net, x.shape[span.axis], SampleMode.STRICT_BOUNDS), axis=span.axis)
    return x


def _filled(net: Scope, x: Value, spans: list[_Span], fill: Value | None) -> Value:
    """Pads what lies outside, then slices."""
    before: list[Dim] = [0] * len(x.shape)
    after: list[Dim] = [0] * len(x.shape)
    inside = []
    for span in spans:
        low, high = _ends(span)
        extent = x.shape[span.axis]
        lead = maximum(0, 0 - low)
        before[span.axis] = lead
        after[span.axis] = maximum(0, high + 1 - extent)
        inside.append(_Span(span.axis, span.start + lead, span.size, span.stride))
    padded = net.op("Pad", x, net.extents([*before, *after]), None if fill is None else net.cast(net.reshape(fill, ()), x.dtype))
    return _taken(net, padded, inside)


def _ends(span: _Span) -> tuple[Dim, Dim]:
    """The smallest and the largest index."""
    if not isinstance(span.stride, int):
        raise ModelError(f"slice: got the stride {span.stride} on axis {span.axis}, expected a number that is known before the run")
    return (span.start, span.last) if span.stride >= 0 else (span.last, span.start)


class AddSlicing(NetworkBase):
    """The `add_*` method of this family."""

    def add_slice(self, input: ITensor, start: Any, shape: Any, stride: Any) -> ISliceLayer | None:
        """Take a part of a tensor."""
        return self._add(
            ISliceLayer,
            [expect(ITensor, input, "add_slice: input")],
            start=extents(start, "add_slice: start"),
            shape=extents(shape, "add_slice: shape"),
            stride=extents(stride, "add_slice: stride"),
        )
