"""What importers share: reading shape-driving inputs as dims, axes, and small integer arithmetic at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim, Expr
from dovetail.core.dtypes import I64
from dovetail.core.errors import TypeInferenceError
from dovetail.frontend.registry import Context, OnnxNode
from dovetail.ir.graph import Time, Value
from dovetail.ir.types import TensorType


def emit_one(ctx: Context, op: str, *inputs: Value | None, **attrs: Any) -> Value:
    """Emit an op that has exactly one output."""
    result = ctx.emit(op, *inputs, **attrs)
    assert isinstance(result, Value)
    return result


def required(node: OnnxNode, index: int) -> Value:
    """Input `index` of the node; raises TypeInferenceError when the model does not give it."""
    value = node.input(index)
    if value is None:
        raise TypeInferenceError(
            f"{node.op_type}: input {index}, got none, expected a tensor; connect it"
        )
    if not isinstance(value.type, TensorType):
        raise TypeInferenceError(
            f"{node.op_type}: input {index}, got {value.type}, expected a tensor; take an element of it first"
        )
    return value


def present(node: OnnxNode, index: int) -> Value | None:
    """Input `index`, or None where it is absent or an empty tensor standing for absence."""
    value = node.input(index)
    if value is None or (isinstance(value.type, TensorType) and value.type.size == 0):
        return None
    return value


def normal_axis(where: str, axis: int, rank: int) -> int:
    """`axis` counted from the front; raises TypeInferenceError when it is outside the rank."""
    if not -rank <= axis < rank:
        raise TypeInferenceError(
            f"{where}: axis, got {axis}, expected a value in [{-rank}, {rank}); correct the axis"
        )
    return axis % rank


def known_dims(ctx: Context, value: Value) -> tuple[Dim, ...] | None:
    """The contents of `value` as dims where they are known at import, else None."""
    if value.contents is None and value.time != Time.WEIGHT:
        return None
    return ctx.dims(value)


def fixed_ints(ctx: Context, value: Value, what: str) -> tuple[int, ...]:
    """The contents of `value` as numbers; gives up on the node where they are not known at import."""
    known = known_dims(ctx, value)
    if known is None or any(isinstance(d, Expr) for d in known):
        ctx.unsupported(f"{what} is computed at run time", "make it a constant of the model")
    return tuple(d for d in known if isinstance(d, int))


def length_of(ctx: Context, value: Value, what: str) -> int:
    """The fixed number of elements of a vector; gives up on the node where it is not fixed."""
    size = value.tensor.size
    if not isinstance(size, int):
        ctx.unsupported(f"{what} has no fixed number of elements", "export with a fixed rank")
    return size


def as_i64(ctx: Context, value: Value) -> Value:
    """`value` as int64."""
    return value if value.tensor.dtype == I64 else ctx.emit("Cast", value, to=I64)


def ints(ctx: Context, values: Sequence[int] | int) -> Value:
    """An int64 constant."""
    return ctx.const(np.array(values, np.int64))


def vector(ctx: Context, values: Sequence[Dim]) -> Value:
    """Dims as an int64 vector."""
    return emit_one(ctx, "DimTensor", values=tuple(values))


def scalar(ctx: Context, value: Dim) -> Value:
    """A dim as an int64 scalar."""
    return emit_one(ctx, "Reshape", vector(ctx, (value,)), shape=())


def flat(ctx: Context, value: Value) -> Value:
    """`value` as an int64 vector."""
    value = as_i64(ctx, value)
    return value if value.tensor.rank == 1 else ctx.emit("Reshape", value, shape=(value.tensor.size,))


def wrap_negative(ctx: Context, value: Value, extent: Value) -> Value:
    """`value` plus the extent where value is negative (run-time axes and positions)."""
    negative = ctx.emit("Less", value, ints(ctx, 0))
    return emit_one(ctx, "Where", negative, ctx.emit("Add", value, extent), value)


def spread(ctx: Context, values: Value, axes: Value, default: Value) -> Value:
    """`default` with values[i] put at axes[i] (run-time axes, already non-negative)."""
    return emit_one(ctx, "ScatterElements", default, axes, values, axis=0, reduction="none")


def zero_of(kind: Any) -> int | float | bool | str:
    """The zero of a DType as an attribute value."""
    if kind.kind == "bool":
        return False
    if kind.kind == "string":
        return ""
    return 0.0 if kind.is_float else 0
