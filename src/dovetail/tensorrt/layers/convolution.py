"""Convolution, deconvolution and fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dims import DimsHW
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType, WeightsRole
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.layers.window import WindowLayer, window_attributes, window_defaults
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import (
    Setting,
    dims_setting,
    elements,
    extents,
    integer,
    pair_setting,
    weights_setting,
)
from dovetail.tensorrt.tensor import ITensor
from dovetail.tensorrt.weights import Weights


class _Convolution(WindowLayer):
    """What convolutions and deconvolutions share."""

    __slots__ = ()
    _most_inputs = 3
    num_output_maps = Setting[int](integer, 0, "The number of channels of the output.")
    kernel_size_nd = dims_setting((1, 1), "The size of the kernel, per spatial axis.")
    kernel_size = pair_setting("kernel_size_nd", "The old name of `kernel_size_nd`.")
    dilation_nd = dims_setting((1, 1), "The distance between elements of the kernel, per spatial axis.")
    num_groups = Setting[int](integer, 1, "The number of groups of channels.")
    kernel = weights_setting("The weights; empty where input 1 gives them.")
    bias = weights_setting("The bias per channel of the output; empty for none, or where input 2 gives it.")

    def _weights(self) -> dict[WeightsRole, Weights]:
        kept = self._record.values
        return {WeightsRole.KERNEL: kept["kernel"], WeightsRole.BIAS: kept["bias"]}


def _operands(layer: _Convolution, net: Scope, inputs: list[Value | None]) -> list[Value | None]:
    """The image, the kernel in its shape, and the bias or None."""
    x, kernel, bias = (*inputs, None, None)[:3]
    assert x is not None
    kept, maps, window = layer._record.values, layer.num_output_maps, tuple(layer.kernel_size_nd)
    rank = len(window) + 2
    if len(x.shape) != rank:
        raise ModelError(f"{layer.name}: got an input of {len(x.shape)} dimensions, expected {rank} for a kernel of {len(window)}")
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise ModelError(f"{layer.name}: got {channels} channels, expected a number that is known before the run")
    groups = layer.num_groups
    shape = (channels, maps // groups, *window) if isinstance(layer, IDeconvolutionLayer) else (maps, channels // groups, *window)
    if kernel is None:
        kernel = net.weight(layer, kept["kernel"], WeightsRole.KERNEL, shape, x.dtype)
    if bias is None and kept["bias"].size:
        bias = net.weight(layer, kept["bias"], WeightsRole.BIAS, (maps,), x.dtype)
    return [x, kernel, bias]



C = TypeVar("C", bound=_Convolution)


class IConvolutionLayer(_Convolution):
    """A convolution of images with 1, 2 or 3 spatial axes."""

    __slots__ = ()
    _layer_type, _label = LayerType.CONVOLUTION, "Convolution"
    dilation = pair_setting("dilation_nd", "The old name of `dilation_nd`.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        attributes = window_attributes(self, rounds_up_by_padding=True)
        operands = _operands(self, net, inputs)
        return [net.op("Conv", *operands, dilations=tuple(self.dilation_nd), group=self.num_groups, **attributes)]


class IDeconvolutionLayer(_Convolution):
    """A transposed convolution; padding is cut off the result."""

    __slots__ = ()
    _layer_type, _label = LayerType.DECONVOLUTION, "Deconvolution"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        # The size of the result is not divided, so nothing is rounded.
        attributes = window_attributes(self, rounds_up_by_padding=False)
        attributes.pop("ceil_mode", None)
        operands = _operands(self, net, inputs)
        return [net.op("ConvTranspose", *operands, dilations=tuple(self.dilation_nd), group=self.num_groups, **attributes)]


class IFullyConnectedLayer(ILayer):
    """A product of the last three axes, flattened, with a matrix: (…, C, H, W) gives (…, K, 1, 1)."""

    __slots__ = ()
    _layer_type, _label, _most_inputs = LayerType.FULLY_CONNECTED, "Fully Connected", 3
    num_output_channels = Setting[int](integer, 0, "The number of rows of the matrix.")
    kernel = weights_setting("The matrix, of `num_output_channels` rows; empty where input 1 gives it.")
    bias = weights_setting("The bias per row; empty for none, or where input 2 gives it.")

    def _weights(self) -> dict[WeightsRole, Weights]:
        kept = self._record.values
        return {WeightsRole.KERNEL: kept["kernel"], WeightsRole.BIAS: kept["bias"]}

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, kernel, bias = (*inputs, None, None)[:3]
        assert x is not None
        kept, rows = self._record.values, self.num_output_channels
        if len(x.shape) < 3:
            raise ModelError(f"{self.name}: got an input of {len(x.shape)} dimensions, expected at least 3")
        outer, inner = x.shape[:-3], x.shape[-3:]
        columns = 1
        for extent in inner:
            if not isinstance(extent, int):
                raise ModelError(f"{self.name}: got the shape {x.shape}, expected a last three axes that are known before the run")
            columns *= extent
        if kernel is None:
            kernel = net.weight(self, kept["kernel"], WeightsRole.KERNEL, (rows, columns), x.dtype)
        else:
            kernel = net.reshape(kernel, (rows, columns))
        if bias is None and kept["bias"].size:
            bias = net.weight(self, kept["bias"], WeightsRole.BIAS, (rows,), x.dtype)
        product = net.op("MatMul", net.reshape(x, (*outer, columns)), net.op("Transpose", kernel, perm=(1, 0)))
        if bias is not None:
            product = net.op("Add", product, bias)
        return [net.reshape(product, (*outer, rows, 1, 1))]


class AddConvolutions(NetworkBase):
    """The `add_*` methods of this family."""

    def add_convolution_nd(
        self, input: ITensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> IConvolutionLayer | None:
        """Convolve; the kernel is ordered as (maps, channels / groups, …)."""
        return self._add_convolution(IConvolutionLayer, "add_convolution_nd", input, num_output_maps, kernel_shape, kernel, bias)

    def add_deconvolution_nd(
        self, input: ITensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> IDeconvolutionLayer | None:
        """Convolve the other way; the kernel is ordered as (channels, maps / groups, …)."""
        return self._add_convolution(IDeconvolutionLayer, "add_deconvolution_nd", input, num_output_maps, kernel_shape, kernel, bias)

    def add_convolution(
        self, input: ITensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> IConvolutionLayer | None:
        """The old, two-dimensional name of `add_convolution_nd`."""
        shape = DimsHW(tuple(extents(kernel_shape, "add_convolution: kernel_shape")))
        return self._add_convolution(IConvolutionLayer, "add_convolution", input, num_output_maps, shape, kernel, bias)

    def add_deconvolution(
        self, input: ITensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any = None
    ) -> IDeconvolutionLayer | None:
        """The old, two-dimensional name of `add_deconvolution_nd`."""
        shape = DimsHW(tuple(extents(kernel_shape, "add_deconvolution: kernel_shape")))
        return self._add_convolution(IDeconvolutionLayer, "add_deconvolution", input, num_output_maps, shape, kernel, bias)

    def _add_convolution(
        self, kind: type[C], where: str, input: ITensor, num_output_maps: int, kernel_shape: Any, kernel: Any, bias: Any
    ) -> C | None:
        window = extents(kernel_shape, f"{where}: kernel_shape")
        maps = integer(num_output_maps, f"{where}: num_output_maps")
        given = [elements(kernel, f"{where}: kernel"), elements(bias, f"{where}: bias")]
        expect(ITensor, input, f"{where}: input")
        if not window or min(window) < 1 or maps < 1:
            self._refuse(f"{where}: got {maps} maps and the window {window}, expected positive numbers")
            return None
        rank = len(window)
        return self._add(
            kind, [input], num_output_maps=maps, kernel_size_nd=window, kernel=given[0], bias=given[1], dilation_nd=(1,) * rank,
            **window_defaults(rank),
        )  # fmt: skip

    def add_fully_connected(
        self, input: ITensor, num_outputs: int, kernel: Any, bias: Any = None
    ) -> IFullyConnectedLayer | None:
        """Multiply the last three axes with a matrix of `num_outputs` rows."""
        return self._add(
            IFullyConnectedLayer,
            [expect(ITensor, input, "add_fully_connected: input")],
            num_output_channels=integer(num_outputs, "add_fully_connected: num_outputs"),
            kernel=elements(kernel, "add_fully_connected: kernel"),
            bias=elements(bias, "add_fully_connected: bias"),
        )
