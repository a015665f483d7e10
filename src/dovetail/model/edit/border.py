"""What comes in and goes out: outputs marked and unmarked, inputs made weights and weights made inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.extract import interface
from dovetail.model.model import Model

Types = Mapping[str, tuple[str, Sequence[int | str]]]


def mark_output(model: Model, names: Iterable[str], *, types: Types | None = None) -> Model:
    """The model with more outputs, after those that it has: values that nodes compute.

    Raises:
        UsageError: unknown names, what is an output already, an input or a weight; or a type that is not known (see `types`).
    """
    draft = Draft(model, "mark-output")
    wanted = draft.names(names, "tensor")
    if already := [name for name in wanted if name in draft.outputs()]:
        raise draft.fail(f"{already[0]!r} is an output of the model already")
    if unmade := [name for name in wanted if name not in draft.producers()]:
        raise draft.fail(f"got {unmade[0]!r}, expected what a node computes; it is an input or a weight")
    interface(draft, list(draft.inputs()), [*draft.outputs(), *wanted], types or {})
    return draft.finish()


def unmark_output(model: Model, names: Iterable[str]) -> Model:
    """The model without some of its outputs, and without what only they needed; inputs stay.

    Raises:
        UsageError: names that are no outputs, or no output left.
    """
    draft = Draft(model, "unmark-output")
    gone = draft.names(names, "output", draft.outputs())
    left = [name for name in draft.outputs() if name not in gone]
    if not left:
        raise draft.fail("no output would be left, expected one at least")
    interface(draft, list(draft.inputs()), left, {})
    draft.drop_dead()
    return draft.finish()


def freeze(model: Model, values: Mapping[str, Any]) -> Model:
    """The model with inputs made weights of given values.

    Raises:
        UsageError: names that are no inputs, or values of another type or shape.
    """
    draft = Draft(model, "freeze")
    inputs = draft.inputs()
    draft.names(values, "input", inputs)
    for name, given in values.items():
        kind = inputs[name].type
        if kind.WhichOneof("value") != "tensor_type":
            raise draft.fail(f"input {name!r} is {kinds.text(kind)}, expected a tensor")
        array = np.asarray(given)
        wanted = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))
        if isinstance(given, int | float | list | tuple):
            array = array.astype(wanted)
        shape = kinds.shape_of(kind)
        fits = shape is None or (
            len(shape) == array.ndim and all(a == b for a, b in zip(shape, array.shape, strict=True) if isinstance(a, int))
        )
        if array.dtype != wanted or not fits:
            raise draft.fail(f"got {array.dtype}{list(array.shape)} for {name!r}, expected {kinds.text(kind)}")
    elements = {name: inputs[name].type.tensor_type.elem_type for name in values}
    for position in reversed(range(len(draft.graph.input))):
        if draft.graph.input[position].name in values and draft.proto.ir_version >= 4:
            del draft.graph.input[position]
    for name, given in values.items():
        array = np.array(given, onnx.helper.tensor_dtype_to_np_dtype(elements[name]), order="C")
        draft.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    draft.forget_types(outputs=True)
    return draft.finish()


def to_input(model: Model, names: Iterable[str]) -> Model:
    """The model with weights made inputs, after those that it has; their values are dropped.

    Raises:
        UsageError: names that are no weights.
    """
    draft = Draft(model, "to-input")
    wanted = draft.names(names, "weight", draft.weights())
    interface(draft, [*draft.inputs(), *wanted], list(draft.outputs()), {})
    return draft.finish()
