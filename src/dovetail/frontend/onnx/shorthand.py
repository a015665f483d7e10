"""What many importers say: constants of a dtype, reshapes, normalised axes, work in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32, F64, DType
from dovetail.frontend.reader import element_type
from dovetail.frontend.registry import Context, OnnxNode
from dovetail.ir.graph import Value


def required(ctx: Context, node: OnnxNode, index: int) -> Value:
    """Input `index`, which the op cannot do without."""
    value = node.input(index)
    if value is None:
        ctx.unsupported(f"input {index} is missing", "connect it, the operator requires it")
    return value


def scalar(ctx: Context, number: float | int | bool, dtype: DType, hint: str = "") -> Value:
    """A constant of rank 0."""
    return ctx.const(np.array(number).astype(dtype.numpy), hint)


def reshape(ctx: Context, x: Value, shape: Sequence[Dim]) -> Value:
    """X in another shape; x itself if it has that shape."""
    if tuple(shape) == x.tensor.shape:
        return x
    result: Value = ctx.emit("Reshape", x, shape=tuple(shape))
    return result


def cast(ctx: Context, x: Value, to: DType) -> Value:
    """X converted to a dtype; x itself if it has that dtype."""
    if x.tensor.dtype == to:
        return x
    result: Value = ctx.emit("Cast", x, to=to)
    return result


def normal_axis(ctx: Context, axis: int, rank: int) -> int:
    """`axis` counted from the front; gives up on the node if it is out of range."""
    if not -rank <= axis < max(rank, 1):
        ctx.unsupported(f"axis {axis} does not exist in rank {rank}", "correct the axis")
    return axis % rank if rank else 0


def dtype_attribute(node: OnnxNode, name: str, default: DType) -> DType:
    """The dtype that an ONNX element type code in attribute `name` stands for."""
    code = node.attr(name)
    return element_type(int(code), f"{node.name} ({node.op_type})") if code else default


def constant_ints(ctx: Context, value: Value, why: str) -> list[int] | None:
    """The integers in a value known at import, else None."""
    array = ctx.constant(value, why)
    return None if array is None else [int(v) for v in array.reshape(-1)]


def in_wide_float(ctx: Context, x: Value, compute: Callable[[Value], Value]) -> Value:
    """compute(x) with at least fp32 inside, and one conversion back to the dtype of x at the end.

    Wide integers go through float64, so that what float64 can hold is exact.
    """
    kind = x.tensor.dtype
    wide = kind if kind in (F32, F64) else F64 if kind.is_int and kind.bits >= 32 else F32
    return cast(ctx, compute(cast(ctx, x, wide)), kind)


def all_of(values: Sequence[Any]) -> bool:
    """Whether no value is None."""
    return all(v is not None for v in values)
