"""ONNX importers of sequences and optionals.

A sequence whose structure is known here is the SequenceConstruct that made it: the ops on it become ops on its elements,
and no list is ever built. Others become host steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from dovetail.core.dtypes import F32, dtype
from dovetail.core.errors import TypeInferenceError
from dovetail.frontend.onnx.movement import split_values
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.shape_inputs import known_dims, normal_axis, required
from dovetail.ir.graph import Value
from dovetail.ir.types import SequenceType, TensorType
from dovetail.ops.sequences import VARIES

# A longer static sequence is cheaper as one host step than as that many slices.
_MAX_PARTS = 64


def _input(node: OnnxNode, index: int) -> Value:
    value = node.input(index)
    if value is None:
        raise TypeInferenceError(f"{node.op_type}: input {index}, got none, expected a value; connect it")
    return value


def _elements(value: Value) -> tuple[Value, ...] | None:
    """The elements of a sequence of known structure."""
    producer = value.producer
    if producer is None or producer.op not in ("SequenceConstruct", "SequenceEmpty"):
        return None
    return producer.operands


def _place(ctx: Context, node: OnnxNode, index: int, count: int, last: int) -> int | None:
    """A position known at import, counted from the front; None where it is run-time data."""
    value = node.input(index)
    if value is None:
        return last
    known = known_dims(ctx, value)
    if known is None or not isinstance(known[0], int):
        return None
    if not -count <= known[0] <= last:
        raise TypeInferenceError(
            f"{node.op_type}: position, got {known[0]} for {count} elements, expected a value in "
            f"[{-count}, {last}]; correct the position"
        )
    return known[0] % count if known[0] < 0 else known[0]


def _construct(ctx: Context, node: OnnxNode, values: Sequence[Value], kind: Any) -> Value:
    if values:
        result: Value = ctx.emit("SequenceConstruct", *values)
    else:
        result = ctx.emit("SequenceEmpty", dtype=kind)
    return result


@onnx_op("SequenceConstruct")
def sequence_construct(ctx: Context, node: OnnxNode) -> Any:
    """SequenceConstruct-11."""
    return ctx.emit("SequenceConstruct", *(required(node, i) for i in range(len(node.inputs))))


@onnx_op("SequenceEmpty")
def sequence_empty(ctx: Context, node: OnnxNode) -> Any:
    """SequenceEmpty-11."""
    given = node.attr("dtype")
    return ctx.emit("SequenceEmpty", dtype=F32 if given is None else _kind(given))


def _kind(number: int) -> Any:
    return dtype(onnx.helper.tensor_dtype_to_np_dtype(number))


@onnx_op("SequenceInsert")
def sequence_insert(ctx: Context, node: OnnxNode) -> Any:
    """SequenceInsert-11."""
    sequence, x = _input(node, 0), required(node, 1)
    values = _elements(sequence)
    if values is not None:
        place = _place(ctx, node, 2, len(values), len(values))
        if place is not None:
            return ctx.emit("SequenceConstruct", *values[:place], x, *values[place:])
    return ctx.emit("SequenceInsert", sequence, x, node.input(2))


@onnx_op("SequenceErase")
def sequence_erase(ctx: Context, node: OnnxNode) -> Any:
    """SequenceErase-11."""
    sequence = _input(node, 0)
    values = _elements(sequence)
    if values:
        place = _place(ctx, node, 1, len(values), len(values) - 1)
        if place is not None:
            return _construct(ctx, node, values[:place] + values[place + 1 :], values[0].tensor.dtype)
    return ctx.emit("SequenceErase", sequence, node.input(1))


@onnx_op("SequenceAt")
def sequence_at(ctx: Context, node: OnnxNode) -> Any:
    """SequenceAt-11."""
    sequence = _input(node, 0)
    values = _elements(sequence)
    if values:
        place = _place(ctx, node, 1, len(values), len(values) - 1)
        if place is not None:
            return values[place]
    return ctx.emit("SequenceAt", sequence, required(node, 1), symbols=_symbols(ctx, sequence, 0))


def _symbols(ctx: Context, sequence: Value, more: int) -> tuple[str, ...]:
    """A fresh name for each extent that varies among the elements, and for `more` others."""
    if not isinstance(sequence.type, SequenceType):
        return ()
    varying = sum(d == VARIES for d in sequence.type.element.shape)
    return tuple(ctx.fresh("element") for _ in range(varying + more))


@onnx_op("SequenceLength")
def sequence_length(ctx: Context, node: OnnxNode) -> Any:
    """SequenceLength-11."""
    sequence = _input(node, 0)
    values = _elements(sequence)
    if values is not None:
        return ctx.const(np.array(len(values), np.int64))
    return ctx.emit("SequenceLength", sequence)


@onnx_op("SplitToSequence")
def split_to_sequence(ctx: Context, node: OnnxNode) -> Any:
    """SplitToSequence-11, 24; slices where the number of parts is known."""
    x, sizes = required(node, 0), node.input(1)
    axis = normal_axis("SplitToSequence", node.attr("axis", 0), x.tensor.rank)
    keep = bool(node.attr("keepdims", 1))
    extent = x.tensor.shape[axis]
    parts: tuple[Any, ...] | None = None
    if sizes is None:
        parts = (1,) * extent if isinstance(extent, int) else None
    else:
        known = known_dims(ctx, sizes)
        if known is not None and sizes.tensor.rank == 0 and isinstance(extent, int) and isinstance(known[0], int):
            parts = tuple(min(known[0], extent - start) for start in range(0, extent, max(known[0], 1)))
        elif known is not None and sizes.tensor.rank == 1:
            parts = known
    if parts is None or not 0 < len(parts) <= _MAX_PARTS:
        return ctx.emit("SplitToSequence", x, sizes, axis=axis, keepdims=keep)
    values: Sequence[Value] = split_values(ctx, x, axis, parts, len(parts))
    if sizes is None and not keep:
        shape = (*x.tensor.shape[:axis], *x.tensor.shape[axis + 1 :])
        values = [ctx.emit("Reshape", v, shape=shape) for v in values]
    return ctx.emit("SequenceConstruct", *values)


@onnx_op("ConcatFromSequence")
def concat_from_sequence(ctx: Context, node: OnnxNode) -> Any:
    """ConcatFromSequence-11."""
    sequence, new_axis = _input(node, 0), bool(node.attr("new_axis", 0))
    if not isinstance(sequence.type, SequenceType):
        raise TypeInferenceError(
            f"ConcatFromSequence: input, got a tensor {sequence.type}, expected a sequence; construct one first"
        )
    rank = sequence.type.element.rank + new_axis
    axis = normal_axis("ConcatFromSequence", node.attr("axis"), rank)
    values = _elements(sequence)
    if not values:
        element = sequence.type.element.shape
        joins_fixed = not new_axis and element[axis] != VARIES
        symbols = _symbols(ctx, sequence, int(new_axis or joins_fixed))
        return ctx.emit("ConcatFromSequence", sequence, axis=axis, new_axis=new_axis, symbols=symbols)
    if new_axis:
        values = tuple(
            ctx.emit("Reshape", v, shape=(*v.tensor.shape[:axis], 1, *v.tensor.shape[axis:])) for v in values
        )
    return values[0] if len(values) == 1 else ctx.emit("Concat", *values, axis=axis)


# ---------------------------------------------------------------------- optionals
@onnx_op("Optional")
def optional(ctx: Context, node: OnnxNode) -> Any:
    """Optional-15, 28: a value stands for the optional that holds it."""
    value = node.input(0)
    if value is not None:
        return value
    proto = node.attr("type")
    tensor = proto.sequence_type.elem_type.tensor_type if proto.HasField("sequence_type") else proto.tensor_type
    return ctx.emit("OptionalEmpty", dtype=_kind(tensor.elem_type))


@onnx_op("OptionalHasElement")
def optional_has_element(ctx: Context, node: OnnxNode) -> Any:
    """OptionalHasElement-15, 18, 28."""
    value = node.input(0)
    if value is None or isinstance(value.type, TensorType):
        return ctx.const(np.array(value is not None))
    return ctx.emit("OptionalHasElement", value)


@onnx_op("OptionalGetElement")
def optional_get_element(ctx: Context, node: OnnxNode) -> Any:
    """OptionalGetElement-15, 18, 28: the value itself."""
    value = _input(node, 0)
    if value.producer is not None and value.producer.op == "OptionalEmpty":
        ctx.unsupported("it takes the element of an empty optional", "test it with OptionalHasElement first")
    return value
