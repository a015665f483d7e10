"""Element types of inputs, outputs and stored weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from dovetail.frontend.reader import dtype_name, read_tensor
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.model import Model
from dovetail.model.proto_graph import redirect

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""The floats that "all" inputs and outputs, or weights, are converted between."""

_STORED_FROM = 64  # elements; scalars and short vectors are not worth a Cast


def set_dtype(model: Model, dtypes: Mapping[str, str] | str | None = None, *, weights: str | None = None) -> Model:
    """The model with other element types of inputs and outputs, or of stored weights; it computes in the types that it did.

    A Cast stands between an input or output and what computes with it; a stored weight is cast back when it is used.

    Args:
        dtypes: element types by input or output, or one for all that are floats.
        weights: float16 or bfloat16, to store fp32 weights of at least 64 elements in; those beyond its range (a mask of
            attention, say) stay as they are: `wide_weights` lists them.

    Raises:
        UsageError: unknown names or types, nothing to change, a type that does not cast, or no weight within the type's range.
    """
    draft = Draft(model, "set-dtype")
    border = {**draft.inputs(), **draft.outputs()}
    if isinstance(dtypes, str):
        dtypes = {name: dtypes for name, value in border.items() if kinds.element_of(value.type) in FLOATS}
    if not dtypes and weights is None:
        raise draft.fail("got nothing to change, expected element types of inputs and outputs, or of weights")
    if dtypes:
        draft.names(dtypes, "input or output", border)
    for name, wanted in (dtypes or {}).items():
        code, old = kinds.element_code(wanted, "set-dtype"), kinds.element_of(border[name].type)
        if not old:
            raise draft.fail(f"{name!r} is {kinds.text(border[name].type)}, expected a tensor of known type")
        if TensorProto.STRING in (code, old):
            raise draft.fail(f"{name!r} is {kinds.text(border[name].type)}: strings and numbers are not cast into each other")
        if code != old:
            _convert(draft, name, old, code)
    if weights is not None:
        _store(draft, kinds.element_code(weights, "set-dtype"))
    return draft.finish()


def _convert(draft: Draft, name: str, old: int, new: int) -> None:
    """Put a Cast at an input, an output, or both where a tensor is both."""
    if name in draft.inputs():
        if name in draft.outputs():
            raise draft.fail(f"{name!r} is an input and an output of the model; rename one of them apart first")
        inside = draft.unique(f"{name}_{dtype_name(old)}")
        redirect(draft.graph.node, {name: inside})
        draft.add_node("Cast", [name], [inside], to=old)
        draft.inputs()[name].type.tensor_type.elem_type = new
        return
    inside = draft.unique(f"{name}_{dtype_name(old)}")
    draft.rename_result(name, inside)
    redirect(draft.graph.node, {name: inside})
    draft.add_node("Cast", [inside], [name], to=new)
    draft.outputs()[name].type.tensor_type.elem_type = new


def _store(draft: Draft, code: int) -> None:
    """Keep fp32 weights in a narrow type, and cast them back where they are used."""
    if code not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        raise draft.fail(f"got {dtype_name(code)} for weights, expected float16 or bfloat16")
    narrow = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    listed = {v.name: v for v in draft.graph.input}
    beyond: list[str] = []
    done: dict[str, str] = {}
    outputs = draft.outputs()
    for tensor in draft.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < _STORED_FROM or tensor.name in outputs:
            continue
        value = read_tensor(tensor, draft.folder)
        with np.errstate(over="ignore"):
            stored = value.astype(narrow)
        if not np.array_equal(np.isfinite(value), np.isfinite(stored.astype(np.float32))):
            beyond.append(f"{tensor.name!r} (up to {np.abs(value[np.isfinite(value)]).max():.3g})")
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(stored, name))
        if name in listed:
            listed[name].type.tensor_type.elem_type = code
        done[name] = draft.unique(f"{name}_float")
    if beyond and not done:
        raise draft.fail(f"weights beyond the range of {dtype_name(code)}: {', '.join(beyond[:8])}; store them in bfloat16")
    if not done:
        raise draft.fail(f"no fp32 weight has {_STORED_FROM} elements or more: nothing to store in {dtype_name(code)}")
    redirect(draft.graph.node, done)
    for name, inside in done.items():
        draft.add_node("Cast", [name], [inside], to=TensorProto.FLOAT)


def wide_weights(model: Model) -> list[str]:
    """Weights of at least 64 elements that are stored in fp32."""
    return [t.name for t in model.proto.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) >= _STORED_FROM]
