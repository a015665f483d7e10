"""Importers of generators: constants, ranges, identity matrices, random numbers, windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dovetail.core.dims import Dim, ceil_div, maximum
from dovetail.core.dtypes import F32, F64, I32, I64, DType, dtype
from dovetail.frontend.onnx.shorthand import (
    cast,
    dtype_attribute,
    required,
    reshape,
    scalar,
)
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value


@onnx_op("Constant")
def constant(ctx: Context, node: OnnxNode) -> Value:
    """A named weight, given in any of the attribute forms."""
    for name, kind in (
        ("value", None),
        ("sparse_value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_string", object),
        ("value_strings", object),
    ):
        value = node.attr(name)
        if value is not None:
            return ctx.weight(node.outputs[0], np.asarray(value, kind))
    ctx.unsupported("there is no value attribute", "give it one, e.g. value")


def _plain(element: np.ndarray) -> int | float | bool | str:
    kind = dtype(element.dtype)
    if kind.kind == "string":
        text = element.item()
        return text.decode() if isinstance(text, bytes) else str(text)
    if kind.is_float:
        return float(element.astype(np.float64).item())
    return bool(element.item()) if kind.kind == "bool" else int(element.item())


@onnx_op("ConstantOfShape")
def constant_of_shape(ctx: Context, node: OnnxNode) -> Value:
    """Full; 0.0 in fp32 without a value."""
    shape = ctx.dims(required(ctx, node, 0))
    value = np.asarray(node.attr("value", np.zeros(1, np.float32))).reshape(-1)[:1].reshape(())
    result: Value = ctx.emit("Full", shape=shape, value=_plain(value), dtype=dtype(value.dtype))
    return result


@onnx_op("Range")
def range_(ctx: Context, node: OnnxNode) -> Value:
    """Start + delta * (0, 1, …), in fp32 for narrower floats."""
    start, limit, delta = (reshape(ctx, required(ctx, node, i), ()) for i in range(3))
    kind = start.tensor.dtype
    size = _range_size(ctx, node, start, limit, delta)
    wide = F32 if kind.is_float and kind.bits < 32 else kind
    steps = ctx.emit("Iota", size=size, dtype=wide)
    if not _is(ctx, delta, 1, node):
        steps = ctx.emit("Mul", steps, cast(ctx, delta, wide))
    if not _is(ctx, start, 0, node):
        steps = ctx.emit("Add", steps, cast(ctx, start, wide))
    return cast(ctx, steps, kind)


def _is(ctx: Context, value: Value, number: int, node: OnnxNode) -> bool:
    """Whether a scalar is this constant; the guard keeps a refit from changing it unseen."""
    array = ctx.constant(value, f"{node.name} starts at 0 or steps by 1")
    return array is not None and bool(array.reshape(()) == number)


def _contents(value: Value) -> Dim | float | None:
    return None if value.contents is None else value.contents.reshape(-1)[0]


def _range_size(ctx: Context, node: OnnxNode, start: Value, limit: Value, delta: Value) -> Dim:
    ends = [_contents(v) for v in (start, limit, delta)]
    if start.tensor.dtype.is_int and all(e is not None for e in ends) and isinstance(ends[2], int):
        # Reads the contents through ctx.dims, which records what the shape depends on.
        first, last, step = (ctx.dims(v)[0] for v in (start, limit, delta))
        assert isinstance(step, int)
        if step == 0:
            ctx.unsupported("delta is 0", "give a delta that is not zero")
        span = last - first if step > 0 else first - last
        return maximum(ceil_div(span, abs(step)), 0)
    known = [ctx.constant(v, f"size of {node.name}") for v in (start, limit, delta)]
    if all(k is not None for k in known):
        first_f, last_f, step_f = (float(k.astype(np.float64).reshape(())) for k in known if k is not None)
        if step_f == 0:
            ctx.unsupported("delta is 0", "give a delta that is not zero")
        return max(math.ceil((last_f - first_f) / step_f), 0)
    span_value = ctx.emit("Sub", cast(ctx, limit, F64), cast(ctx, start, F64))
    steps = ctx.emit("Ceil", ctx.emit("Div", span_value, cast(ctx, delta, F64)))
    count = cast(ctx, ctx.emit("Max", steps, scalar(ctx, 0.0, F64)), I64)
    return ctx.dims(reshape(ctx, count, (1,)))[0]


@onnx_op("EyeLike")
def eye_like(ctx: Context, node: OnnxNode) -> Value:
    """One where column = row + k."""
    x = required(ctx, node, 0)
    if x.tensor.rank != 2:
        ctx.unsupported(f"the input has rank {x.tensor.rank}, expected 2", "reshape it to a matrix")
    rows, columns = x.tensor.shape
    down = reshape(ctx, ctx.emit("Iota", size=rows), (rows, 1))
    if node.attr("k", 0):
        down = ctx.emit("Add", down, scalar(ctx, int(node.attr("k")), I64))
    hit = ctx.emit("Equal", down, ctx.emit("Iota", size=columns))
    return cast(ctx, hit, dtype_attribute(node, "dtype", x.tensor.dtype))


def _seed(node: OnnxNode) -> float | None:
    seed = node.attr("seed")
    return None if seed is None else float(seed)


def _random(ctx: Context, node: OnnxNode, shape: Sequence[Dim], kind: DType) -> Value:
    if "Uniform" in node.op_type:
        names = {"low": 0.0, "high": 1.0}
    else:
        names = {"mean": 0.0, "scale": 1.0}
    parameters = {name: float(node.attr(name, default)) for name, default in names.items()}
    op = node.op_type.removesuffix("Like")
    result: Value = ctx.emit(op, shape=tuple(shape), dtype=kind, seed=_seed(node), **parameters)
    return result


@onnx_op("RandomUniform", "RandomNormal")
def random(ctx: Context, node: OnnxNode) -> Value:
    """The shape is an attribute."""
    return _random(ctx, node, node.attr("shape", []), dtype_attribute(node, "dtype", F32))


@onnx_op("RandomUniformLike", "RandomNormalLike")
def random_like(ctx: Context, node: OnnxNode) -> Value:
    """The shape, and by default the dtype, are the input's."""
    like = required(ctx, node, 0).tensor
    return _random(ctx, node, like.shape, dtype_attribute(node, "dtype", like.dtype))


@onnx_op("Bernoulli")
def bernoulli(ctx: Context, node: OnnxNode) -> Value:
    """1 with the probability that the input gives, else 0."""
    x = required(ctx, node, 0)
    noise = ctx.emit("RandomUniform", shape=x.tensor.shape, dtype=F64, seed=_seed(node))
    hit = ctx.emit("Less", noise, cast(ctx, x, F64))
    return cast(ctx, hit, dtype_attribute(node, "dtype", x.tensor.dtype))


@onnx_op("Multinomial")
def multinomial(ctx: Context, node: OnnxNode) -> Value:
    """Class numbers drawn by unnormalised log weights."""
    result: Value = ctx.emit(
        "Multinomial",
        required(ctx, node, 0),
        sample_size=int(node.attr("sample_size", 1)),
        dtype=dtype_attribute(node, "dtype", I32),
        seed=_seed(node),
    )
    return result


_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    # 25/46 and 21/46, as ONNX gives them.
    "HammingWindow": (25.0 / 46.0, 21.0 / 46.0, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@onnx_op(*_WINDOWS)
def window(ctx: Context, node: OnnxNode) -> Value:
    """A - b cos(2 pi n / N) + c cos(4 pi n / N), with N = size if periodic, else size - 1."""
    size = ctx.dims(required(ctx, node, 0))[0]
    base, first, second = _WINDOWS[node.op_type]
    period = size if node.attr("periodic", 1) else maximum(size - 1, 1)
    length = cast(ctx, ctx.emit("DimTensor", values=(period,)), F64)
    turns = ctx.emit("Div", ctx.emit("Iota", size=size, dtype=F64), length)
    angle = ctx.emit("Mul", turns, scalar(ctx, 2 * math.pi, F64))
    wave = ctx.emit("Mul", ctx.emit("Cos", angle), scalar(ctx, first, F64))
    result = ctx.emit("Sub", scalar(ctx, base, F64), wave)
    if second:
        double = ctx.emit("Cos", ctx.emit("Add", angle, angle))
        result = ctx.emit("Add", result, ctx.emit("Mul", double, scalar(ctx, second, F64)))
    return cast(ctx, result, dtype_attribute(node, "output_datatype", F32))
