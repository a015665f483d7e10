"""Importers of arithmetic, comparison, logic, activations and conversions."""

from __future__ import annotations

import numpy as np

from dovetail.core.dtypes import dtype
from dovetail.frontend.onnx.shorthand import (
    cast,
    dtype_attribute,
    normal_axis,
    required,
    reshape,
    scalar,
)
from dovetail.frontend.reader import element_type
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value

# Attributes that old opsets carry and that change nothing in a program without in-place updates.
_OBSOLETE = frozenset({"consumed_inputs", "is_test"})
_FLAGS = frozenset({"fmod", "detect_negative", "detect_positive"})


@onnx_op(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp",
    "Floor", "Log", "Neg", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BitShift", "Mod", "Det",
    "Not", "IsNaN", "IsInf", "Where",
    "Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Selu",
    "Shrink", "Sigmoid", "Softplus", "Softsign", "Swish", "ThresholdedRelu",
)  # fmt: skip
def by_name(ctx: Context, node: OnnxNode) -> Value:
    """Ops that are the same in the IR: the attributes go over, obsolete ones are dropped."""
    attributes = {
        key: bool(value) if key in _FLAGS else value
        for key, value in node.attrs.items()
        if key not in _OBSOLETE
    }
    result: Value = ctx.emit(node.op_type, *node.inputs, **attributes)
    return result


@onnx_op(
    "Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "LessOrEqual", "Greater",
    "GreaterOrEqual", "And", "Or", "Xor",
)  # fmt: skip
def binary(ctx: Context, node: OnnxNode) -> Value:
    """Two inputs that broadcast; before opset 7 the second is aligned by the attribute `axis`."""
    a, b = required(ctx, node, 0), required(ctx, node, 1)
    if node.opset < 7 and node.attr("axis") is not None and node.attr("broadcast", 0):
        axis = normal_axis(ctx, node.attr("axis"), a.tensor.rank)
        trailing = a.tensor.rank - axis - b.tensor.rank
        b = reshape(ctx, b, (*b.tensor.shape, *(1,) * max(trailing, 0)))
    result: Value = ctx.emit(node.op_type, a, b)
    return result


def _chain(ctx: Context, op: str, values: list[Value | None]) -> Value:
    present = [v for v in values if v is not None]
    if not present:
        ctx.unsupported("there are no inputs", "give it at least one")
    result = present[0]
    for value in present[1:]:
        result = ctx.emit(op, result, value)
    return result


@onnx_op("Max", "Min")
def extreme(ctx: Context, node: OnnxNode) -> Value:
    """Any number of inputs, folded from the left."""
    return _chain(ctx, node.op_type, node.inputs)


@onnx_op("Sum")
def sum_(ctx: Context, node: OnnxNode) -> Value:
    """Any number of inputs, added from the left."""
    return _chain(ctx, "Add", node.inputs)


@onnx_op("Mean")
def mean(ctx: Context, node: OnnxNode) -> Value:
    """The sum divided by the number of inputs."""
    total = _chain(ctx, "Add", node.inputs)
    count = scalar(ctx, len(node.inputs), total.tensor.dtype)
    result: Value = ctx.emit("Div", total, count) if len(node.inputs) > 1 else total
    return result


@onnx_op("PRelu")
def prelu(ctx: Context, node: OnnxNode) -> Value:
    """Before opset 7 a slope vector runs along axis 1."""
    x, slope = required(ctx, node, 0), required(ctx, node, 1)
    if node.opset < 7 and slope.tensor.rank == 1 and slope.tensor.shape != (1,) and x.tensor.rank > 1:
        slope = reshape(ctx, slope, (*slope.tensor.shape, *(1,) * (x.tensor.rank - 2)))
    result: Value = ctx.emit("PRelu", x, slope)
    return result


@onnx_op("SwiGLU")
def swiglu(ctx: Context, node: OnnxNode) -> Value:
    """swish(gate) * value."""
    gate = ctx.emit("Swish", required(ctx, node, 0), alpha=node.attr("alpha", 1.0))
    result: Value = ctx.emit("Mul", gate, required(ctx, node, 1))
    return result


@onnx_op("Clip")
def clip_attributes(ctx: Context, node: OnnxNode) -> Value:
    """Bounds are attributes before opset 11; the largest float means no bound."""
    largest = float(np.finfo(np.float32).max)
    low, high = node.attr("min"), node.attr("max")
    low = None if low is None or low <= -largest else float(low)
    high = None if high is None or high >= largest else float(high)
    return _clip(ctx, required(ctx, node, 0), low, high)


def _clip(ctx: Context, x: Value, low: float | None, high: float | None) -> Value:
    if low is None and high is None:
        return x
    result: Value = ctx.emit("Clip", x, min=low, max=high)
    return result


@onnx_op("Clip", since=11)
def clip(ctx: Context, node: OnnxNode) -> Value:
    """Constant bounds become attributes, others a Max and a Min."""
    x = required(ctx, node, 0)
    is_float = x.tensor.dtype.is_float
    constants: list[float | None] = []
    for value in (node.input(1), node.input(2)):
        array = None if value is None else ctx.constant(value, f"clip bound of {node.name}")
        number = None if array is None else array.reshape(-1)[0]
        if number is None or (is_float and not np.isfinite(np.float64(number))):
            constants.append(None)
        else:
            constants.append(float(number) if is_float else int(number))
    bounds: list[Value | None] = [
        value if number is None else None
        for value, number in zip((node.input(1), node.input(2)), constants, strict=True)
    ]
    if bounds == [None, None]:
        return _clip(ctx, x, constants[0], constants[1])
    x = _clip(ctx, x, constants[0], None)
    if bounds[0] is not None:
        x = ctx.emit("Max", x, bounds[0])
    x = _clip(ctx, x, None, constants[1])
    if bounds[1] is not None:
        x = ctx.emit("Min", x, bounds[1])
    return x


@onnx_op("Cast")
def cast_(ctx: Context, node: OnnxNode) -> Value:
    """`to` is an element type code, before opset 6 its name."""
    x, code = required(ctx, node, 0), node.attr("to")
    if isinstance(code, str):
        to = dtype(code.lower().replace("float", "float32") if code == "FLOAT" else code.lower())
    else:
        to = element_type(int(code), f"{node.name} (Cast)")
    if x.tensor.dtype == to:
        return x
    result: Value = ctx.emit("Cast", x, to=to, **_cast_options(node))
    return result


def _cast_options(node: OnnxNode) -> dict[str, bool | str]:
    return {
        "saturate": bool(node.attr("saturate", 1)),
        "round_mode": node.attr("round_mode", "up"),
    }


@onnx_op("CastLike")
def cast_like(ctx: Context, node: OnnxNode) -> Value:
    """A Cast to the dtype of the second input."""
    x, to = required(ctx, node, 0), required(ctx, node, 1).tensor.dtype
    if x.tensor.dtype == to:
        return x
    result: Value = ctx.emit("Cast", x, to=to, **_cast_options(node))
    return result


@onnx_op("BitCast")
def bit_cast(ctx: Context, node: OnnxNode) -> Value:
    """`to` is an element type code."""
    x = required(ctx, node, 0)
    to = dtype_attribute(node, "to", x.tensor.dtype)
    result: Value = x if to == x.tensor.dtype else ctx.emit("BitCast", x, to=to)
    return result


@onnx_op("Identity")
def identity(ctx: Context, node: OnnxNode) -> tuple[Value | None, ...]:
    """The input itself."""
    return (node.inputs[0],)


@onnx_op("Dropout")
def dropout(ctx: Context, node: OnnxNode) -> tuple[Value, ...]:
    """Inference: the input itself and a mask of ones (bool from opset 10 on)."""
    x = required(ctx, node, 0)
    if node.n_outputs < 2:
        return (x,)
    kind = dtype("bool") if node.opset >= 10 else x.tensor.dtype
    return x, ctx.emit("Full", shape=x.tensor.shape, value=1, dtype=kind)


@onnx_op("Dropout", since=12)
def dropout_training(ctx: Context, node: OnnxNode) -> tuple[Value, ...]:
    """With training_mode, elements are dropped by `ratio`; the mode may be known at run time only."""
    x, ratio, training = required(ctx, node, 0), node.input(1), node.input(2)
    known = None if training is None else ctx.constant(training, f"training mode of {node.name}")
    if training is None or (known is not None and not known.reshape(-1)[0]):
        mask = ctx.emit("Full", shape=x.tensor.shape, value=True, dtype=dtype("bool"))
        return (x, mask) if node.n_outputs > 1 else (x,)
    if known is not None:
        ctx.trains("drops values at random")
    kind = x.tensor.dtype
    drop = scalar(ctx, 0.5, kind) if ratio is None else cast(ctx, ratio, kind)
    drop = ctx.emit("Where", training, drop, scalar(ctx, 0.0, kind))
    seed = node.attr("seed")
    noise = ctx.emit(
        "RandomUniform",
        shape=x.tensor.shape,
        dtype=kind,
        seed=None if seed is None else float(seed),
    )
    mask = ctx.emit("GreaterOrEqual", noise, drop)
    scaled = ctx.emit("Div", x, ctx.emit("Sub", scalar(ctx, 1.0, kind), drop))
    return ctx.emit("Where", mask, scaled, scalar(ctx, 0.0, kind)), mask
