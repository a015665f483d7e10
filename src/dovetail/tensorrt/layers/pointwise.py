"""Layers that compute element by element: activation, unary, elementwise, select, scale, cast, identity, parametric ReLU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    ActivationType,
    DataType,
    ElementWiseOperation,
    LayerType,
    ScaleMode,
    UnaryOperation,
    WeightsRole,
)
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, elements, integer, number, of, weights_setting
from dovetail.tensorrt.tensor import ITensor
from dovetail.tensorrt.weights import Weights


class IActivationLayer(ILayer):
    """An activation function, with up to two parameters."""

    __slots__ = ()
    _layer_type, _label = LayerType.ACTIVATION, "Activation"
    type = Setting[ActivationType](of(ActivationType), ActivationType.RELU, "The function.")  # type: ignore[assignment]
    alpha = Setting[float](number, 0.0, "The first parameter, of functions that have one.")
    beta = Setting[float](number, 0.0, "The second parameter, of functions that have one.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        (x,) = inputs
        assert x is not None
        kind: ActivationType = self.type
        return [_ACTIVATIONS[kind](net, x, self.alpha, self.beta)]


def _softplus(net: Scope, x: Value, alpha: float, beta: float) -> Value:
    """alpha * log(exp(beta * x) + 1)."""
    inner = x if beta == 1 else net.op("Mul", x, net.number(beta, x))
    result: Value = net.op("Softplus", inner)
    return result if alpha == 1 else net.op("Mul", result, net.number(alpha, x))


_Activation = Callable[[Scope, Value, float, float], Value]
_ACTIVATIONS: dict[ActivationType, _Activation] = {
    ActivationType.RELU: lambda net, x, a, b: net.op("Relu", x),
    ActivationType.SIGMOID: lambda net, x, a, b: net.op("Sigmoid", x),
    ActivationType.TANH: lambda net, x, a, b: net.op("Tanh", x),
    ActivationType.LEAKY_RELU: lambda net, x, a, b: net.op("LeakyRelu", x, alpha=a),
    ActivationType.ELU: lambda net, x, a, b: net.op("Elu", x, alpha=a),
    ActivationType.SELU: lambda net, x, a, b: net.op("Selu", x, alpha=a, gamma=b),
    ActivationType.SOFTSIGN: lambda net, x, a, b: net.op("Softsign", x),
    ActivationType.SOFTPLUS: _softplus,
    ActivationType.CLIP: lambda net, x, a, b: net.op("Clip", x, net.number(a, x), net.number(b, x)),
    ActivationType.HARD_SIGMOID: lambda net, x, a, b: net.op("HardSigmoid", x, alpha=a, beta=b),
    ActivationType.SCALED_TANH: lambda net, x, a, b: net.op("Mul", net.op("Tanh", net.op("Mul", x, net.number(b, x))), net.number(a, x)),
    ActivationType.THRESHOLDED_RELU: lambda net, x, a, b: net.op("ThresholdedRelu", x, alpha=a),
    ActivationType.GELU_ERF: lambda net, x, a, b: net.op("Gelu", x),
    ActivationType.GELU_TANH: lambda net, x, a, b: net.op("Gelu", x, approximate="tanh"),
}


class IUnaryLayer(ILayer):
    """A function of one element."""

    __slots__ = ()
    _layer_type, _label = LayerType.UNARY, "Unary"
    op = Setting[UnaryOperation](of(UnaryOperation), UnaryOperation.EXP, "The function.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op(_UNARY[self.op], *inputs)]


_UNARY = {operation: operation.name.capitalize() for operation in UnaryOperation.__members__.values()} | {
    UnaryOperation.RECIP: "Reciprocal",
    UnaryOperation.ISINF: "IsInf",
    UnaryOperation.ISNAN: "IsNaN",
}


class IElementWiseLayer(ILayer):
    """A function of two elements; extents of 1 are repeated, ranks must be equal."""

    __slots__ = ()
    _layer_type, _label, _unifies = LayerType.ELEMENTWISE, "ElementWise", True
    op = Setting[ElementWiseOperation](of(ElementWiseOperation), ElementWiseOperation.SUM, "The function.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        a, b = inputs
        assert a is not None and b is not None
        if len(a.shape) != len(b.shape):
            raise ModelError(f"{self.name}: got inputs of {len(a.shape)} and {len(b.shape)} dimensions, expected equally many")
        return [elementwise(net, self.op, a, b)]


_ELEMENTWISE = {
    ElementWiseOperation.SUM: "Add",
    ElementWiseOperation.PROD: "Mul",
    ElementWiseOperation.MAX: "Max",
    ElementWiseOperation.MIN: "Min",
    ElementWiseOperation.SUB: "Sub",
    ElementWiseOperation.DIV: "Div",
    ElementWiseOperation.POW: "Pow",
    ElementWiseOperation.AND: "And",
    ElementWiseOperation.OR: "Or",
    ElementWiseOperation.XOR: "Xor",
    ElementWiseOperation.EQUAL: "Equal",
    ElementWiseOperation.GREATER: "Greater",
    ElementWiseOperation.LESS: "Less",
}


def elementwise(net: Scope, operation: ElementWiseOperation, a: Value, b: Value) -> Value:
    """One operation of two values; integers are divided toward 0 by DIV and downward by FLOOR_DIV."""
    if operation is not ElementWiseOperation.FLOOR_DIV:
        result: Value = net.op(_ELEMENTWISE[operation], a, b)
        return result
    if a.dtype.is_float:
        quotient: Value = net.op("Floor", net.op("Div", a, b))
        return quotient
    # The remainder has the sign of the divisor, so that what is left divides without one.
    exact: Value = net.op("Div", net.op("Sub", a, net.op("Mod", a, b)), b)
    return exact


class ISelectLayer(ILayer):
    """`then` where the condition holds, else `else`, element by element."""

    __slots__ = ()
    _layer_type, _label, _unifies = LayerType.SELECT, "Select", True

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("Where", *inputs)]


class IIdentityLayer(ILayer):
    """Its input; with `set_output_type`, in another element type."""

    __slots__ = ()
    _layer_type, _label = LayerType.IDENTITY, "Identity"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("Identity", *inputs)]


class ICastLayer(ILayer):
    """Its input in another element type."""

    __slots__ = ()
    _layer_type, _label = LayerType.CAST, "Cast"
    to_type = Setting[DataType](of(DataType), DataType.FLOAT, "The element type.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("Cast", *inputs, to=to_dtype(self.to_type))]


class IParametricReLULayer(ILayer):
    """x where it is not negative, else x times a slope; slopes are repeated along extents of 1."""

    __slots__ = ()
    _layer_type, _label, _unifies = LayerType.PARAMETRIC_RELU, "Parametric ReLU", True

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("PRelu", *inputs)]


class IScaleLayer(ILayer):
    """(x * scale + shift) ^ power, with weights for all, per channel, or per element of what follows the channel axis."""

    __slots__ = ()
    _layer_type, _label = LayerType.SCALE, "Scale"
    mode = Setting[ScaleMode](of(ScaleMode), ScaleMode.UNIFORM, "What weights belong to.")
    shift = weights_setting("What is added; empty for nothing.")
    scale = weights_setting("The factor; empty for 1.")
    power = weights_setting("The exponent; empty for 1.")
    channel_axis = Setting[int](integer, 1, "The axis of channels.")

    def _weights(self) -> dict[WeightsRole, Weights]:
        kept = self._record.values
        # A power has no role of its own.
        return {WeightsRole.SHIFT: kept["shift"], WeightsRole.SCALE: kept["scale"], WeightsRole.ANY: kept["power"]}

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        (x,) = inputs
        assert x is not None
        result = x
        steps = ((WeightsRole.SCALE, "Mul"), (WeightsRole.SHIFT, "Add"), (WeightsRole.ANY, "Pow"))
        weights = self._weights()
        for role, op in steps:
            if weights[role].size:
                result = net.op(op, result, _shaped(self, net, x, weights[role], role))
        return [result]


def _shaped(layer: IScaleLayer, net: Scope, x: Value, weights: Weights, role: WeightsRole) -> Value:
    rank, axis = len(x.shape), layer.channel_axis + net.shift
    if not 0 <= axis < rank:
        raise ModelError(f"{layer.name}: got the channel axis {layer.channel_axis}, expected one of an input of shape {x.shape}")
    shape: tuple[Any, ...] = (1,) * rank
    if layer.mode is ScaleMode.CHANNEL:
        shape = (*shape[:axis], x.shape[axis], *shape[axis + 1 :])
    elif layer.mode is ScaleMode.ELEMENTWISE:
        shape = (*shape[:axis], *x.shape[axis:])
    if not all(isinstance(d, int) for d in shape):
        raise ModelError(f"{layer.name}: got an input of shape {x.shape}, expected extents along weights that are known before the run")
    return net.weight(layer, weights, role, shape, x.dtype)



class AddPointwise(NetworkBase):
    """The `add_*` methods of this family."""

    def add_activation(self, input: ITensor, type: ActivationType) -> IActivationLayer | None:
        """Apply an activation function."""
        expect(ActivationType, type, "add_activation: type")
        alpha, beta = _DEFAULTS.get(type, (0.0, 0.0))
        return self._add(IActivationLayer, [expect(ITensor, input, "add_activation: input")], type=type, alpha=alpha, beta=beta)

    def add_unary(self, input: ITensor, op: UnaryOperation) -> IUnaryLayer | None:
        """Apply a function of one element."""
        return self._add(IUnaryLayer, [expect(ITensor, input, "add_unary: input")], op=expect(UnaryOperation, op, "add_unary: op"))

    def add_elementwise(self, input1: ITensor, input2: ITensor, op: ElementWiseOperation) -> IElementWiseLayer | None:
        """Apply a function of two elements, of tensors of equal rank."""
        inputs = [expect(ITensor, input1, "add_elementwise: input1"), expect(ITensor, input2, "add_elementwise: input2")]
        return self._add(IElementWiseLayer, inputs, op=expect(ElementWiseOperation, op, "add_elementwise: op"))

    def add_select(self, condition: ITensor, then_input: ITensor, else_input: ITensor) -> ISelectLayer | None:
        """Choose between two tensors, element by element."""
        named = {"condition": condition, "then_input": then_input, "else_input": else_input}
        return self._add(ISelectLayer, [expect(ITensor, t, f"add_select: {name}") for name, t in named.items()])

    def add_identity(self, input: ITensor) -> IIdentityLayer | None:
        """Pass a tensor on."""
        return self._add(IIdentityLayer, [expect(ITensor, input, "add_identity: input")])

    def add_cast(self, input: ITensor, to_type: DataType) -> ICastLayer | None:
        """Convert to an element type."""
        return self._add(ICastLayer, [expect(ITensor, input, "add_cast: input")], to_type=expect(DataType, to_type, "add_cast: to_type"))

    def add_parametric_relu(self, input: ITensor, slopes: ITensor) -> IParametricReLULayer | None:
        """ReLU with slopes for negative elements."""
        inputs = [expect(ITensor, input, "add_parametric_relu: input"), expect(ITensor, slopes, "add_parametric_relu: slopes")]
        return self._add(IParametricReLULayer, inputs)

    def add_scale(
        self, input: ITensor, mode: ScaleMode, shift: Any = None, scale: Any = None, power: Any = None
    ) -> IScaleLayer | None:
        """(x * scale + shift) ^ power; channels are on the third axis from the end."""
        return self.add_scale_nd(input, mode, shift, scale, power, 0 if self._implicit_batch else 1)

    def add_scale_nd(
        self, input: ITensor, mode: ScaleMode, shift: Any = None, scale: Any = None, power: Any = None, channel_axis: int = 1
    ) -> IScaleLayer | None:
        """(x * scale + shift) ^ power, with channels on any axis."""
        return self._add(
            IScaleLayer,
            [expect(ITensor, input, "add_scale_nd: input")],
            mode=expect(ScaleMode, mode, "add_scale_nd: mode"),
            shift=elements(shift, "add_scale_nd: shift"),
            scale=elements(scale, "add_scale_nd: scale"),
            power=elements(power, "add_scale_nd: power"),
            channel_axis=integer(channel_axis, "add_scale_nd: channel_axis"),
        )


# Parameters that functions have before they are set.
_DEFAULTS: dict[ActivationType, tuple[float, float]] = {
    ActivationType.LEAKY_RELU: (0.01, 0.0),
    ActivationType.ELU: (1.0, 0.0),
    ActivationType.SELU: (float(np.float32(1.6732632)), float(np.float32(1.0507010))),
    ActivationType.SOFTPLUS: (1.0, 1.0),
    ActivationType.CLIP: (-math.inf, math.inf),
    ActivationType.HARD_SIGMOID: (0.2, 0.5),
    ActivationType.SCALED_TANH: (1.0, 1.0),
    ActivationType.THRESHOLDED_RELU: (1.0, 0.0),
}
