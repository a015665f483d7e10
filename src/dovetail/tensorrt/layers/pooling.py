"""Pooling, padding and local response normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.ir.graph import Value
from dovetail.tensorrt.dims import DimsHW
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType, PaddingMode, PoolingType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.layers.window import WindowLayer, window_attributes, window_defaults
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import (
    Setting,
    boolean,
    dims_setting,
    extents,
    integer,
    number,
    of,
    pair,
    pair_setting,
)
from dovetail.tensorrt.tensor import ITensor


class IPoolingLayer(WindowLayer):
    """The largest element, the mean, or a blend of both, of each window."""

    __slots__ = ()
    _layer_type, _label = LayerType.POOLING, "Pooling"
    type = Setting[PoolingType](of(PoolingType), PoolingType.MAX, "What is made of a window.")  # type: ignore[assignment]
    window_size_nd = dims_setting((1, 1), "The size of the window, per spatial axis.")
    window_size = pair_setting("window_size_nd", "The old name of `window_size_nd`.")
    blend_factor = Setting[float](number, 0.0, "The share of the mean in a blend: 0 to 1.")
    average_count_excludes_padding = Setting[bool](boolean, True, "Whether a mean leaves out the padding.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        (x,) = inputs
        assert x is not None
        window, excludes = tuple(self.window_size_nd), self.average_count_excludes_padding
        kind: PoolingType = self.type
        # Elements beyond the padding never count; ceil_mode knows them apart from it.
        by_ceil = self.padding_mode is PaddingMode.CAFFE_ROUND_UP
        results = []
        if kind is not PoolingType.AVERAGE:
            attributes = window_attributes(self, rounds_up_by_padding=not by_ceil)
            results.append(net.op("MaxPool", x, kernel_shape=window, **attributes))
        if kind is not PoolingType.MAX:
            attributes = window_attributes(self, rounds_up_by_padding=not by_ceil and excludes)
            results.append(net.op("AveragePool", x, kernel_shape=window, count_include_pad=int(not excludes), **attributes))
        if len(results) == 1:
            return results
        share, (largest, mean) = self.blend_factor, results
        return [net.op("Add", net.op("Mul", largest, net.number(1 - share, x)), net.op("Mul", mean, net.number(share, x)))]


class IPaddingLayer(ILayer):
    """Zeros around the last two axes; negative padding cuts off."""

    __slots__ = ()
    _layer_type, _label = LayerType.PADDING, "Padding"
    pre_padding_nd = dims_setting((0, 0), "How much goes before the first element, per spatial axis.")
    post_padding_nd = dims_setting((0, 0), "How much goes after the last element, per spatial axis.")
    pre_padding = pair_setting("pre_padding_nd", "The old name of `pre_padding_nd`.")
    post_padding = pair_setting("post_padding_nd", "The old name of `post_padding_nd`.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        (x,) = inputs
        assert x is not None
        before, after = tuple(self.pre_padding_nd), tuple(self.post_padding_nd)
        ahead = (0,) * (len(x.shape) - len(before))
        return [net.op("Pad", x, np.array((*ahead, *before, *ahead, *after), np.int64))]


class ILRNLayer(ILayer):
    """Local response normalization across channels: x / (k + alpha * mean of squares)^beta."""

    __slots__ = ()
    _layer_type, _label = LayerType.LRN, "LRN"
    window_size = Setting[int](integer, 1, "The number of channels of a window, odd.")
    alpha = Setting[float](number, 1e-4, "The factor of the mean of squares.")
    beta = Setting[float](number, 0.75, "The exponent.")
    k = Setting[float](number, 1.0, "What is added.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("LRN", *inputs, size=self.window_size, alpha=self.alpha, beta=self.beta, bias=self.k)]


class AddPooling(NetworkBase):
    """The `add_*` methods of this family."""

    def add_pooling_nd(self, input: ITensor, type: PoolingType, window_size: Any) -> IPoolingLayer | None:
        """Pool windows of the last axes."""
        window = extents(window_size, "add_pooling_nd: window_size")
        expect(ITensor, input, "add_pooling_nd: input")
        expect(PoolingType, type, "add_pooling_nd: type")
        if not window or min(window) < 1:
            self._refuse(f"add_pooling_nd: got the window {window}, expected positive numbers")
            return None
        return self._add(IPoolingLayer, [input], type=type, window_size_nd=window, **window_defaults(len(window)))

    def add_pooling(self, input: ITensor, type: PoolingType, window_size: Any) -> IPoolingLayer | None:
        """The old, two-dimensional name of `add_pooling_nd`."""
        return self.add_pooling_nd(input, type, DimsHW(pair(window_size, "add_pooling: window_size")))

    def add_padding_nd(self, input: ITensor, pre_padding: Any, post_padding: Any) -> IPaddingLayer | None:
        """Pad the last two axes with zeros."""
        return self._add(
            IPaddingLayer,
            [expect(ITensor, input, "add_padding_nd: input")],
            pre_padding_nd=pair(pre_padding, "add_padding_nd: pre_padding"),
            post_padding_nd=pair(post_padding, "add_padding_nd: post_padding"),
        )

    def add_padding(self, input: ITensor, pre_padding: Any, post_padding: Any) -> IPaddingLayer | None:
        """The old name of `add_padding_nd`."""
        return self.add_padding_nd(input, pre_padding, post_padding)

    def add_lrn(self, input: ITensor, window: int, alpha: float, beta: float, k: float) -> ILRNLayer | None:
        """Normalize across channels."""
        return self._add(
            ILRNLayer,
            [expect(ITensor, input, "add_lrn: input")],
            window_size=integer(window, "add_lrn: window"),
            alpha=number(alpha, "add_lrn: alpha"),
            beta=number(beta, "add_lrn: beta"),
            k=number(k, "add_lrn: k"),
        )
