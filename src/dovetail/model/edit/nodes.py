"""Nodes put in and taken out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx

from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.names import describe, matching, nearest
from dovetail.model.edit.replace import Attributes, check_operator
from dovetail.model.model import Model
from dovetail.model.proto_graph import redirect


def insert(
    model: Model,
    tensor: str,
    op: str,
    *,
    domain: str = "",
    version: int = 1,
    attributes: Attributes | None = None,
    inputs: Sequence[Any] = (),
    before: Iterable[str] = (),
    name: str = "",
) -> Model:
    """The model with a node on a tensor: it reads the tensor, and what read that reads the node's result.

    Args:
        tensor: an input, a weight or a node's result; an output of the model keeps its name, which is then the new node's.
        inputs: the node's inputs after the first: names of tensors; arrays, or numbers and lists (which take the type that the
            operator wants there), become weights.
        before: names or patterns of the nodes that read the new result; default all, and the model's output.

    Raises:
        UsageError: unknown names, operator or attributes; or a result that is not valid.
    """
    draft = Draft(model, "insert")
    draft.names([tensor], "tensor")
    check_operator(draft, op, domain, attributes or {})
    extra = [
        x if isinstance(x, str) else draft.add_weight(f"{tensor}_{op.lower()}_{i}", _constant(draft, op, domain, tensor, i, x))
        for i, x in enumerate(inputs, 1)
    ]
    draft.names([x for x in dict.fromkeys(extra) if x] or [tensor], "tensor")
    source, result = splice(draft, tensor, f"{tensor}_{op.lower()}", before)
    draft.add_node(op, [source, *extra], [result], name, domain, **(attributes or {}))
    draft.forget_types()
    if domain:
        draft.use_domain(domain, version)
        if tensor in draft.types:  # as good a guess as any, and the user may say otherwise with set-dtype
            draft.graph.value_info.append(kinds.value_info(result, draft.types[tensor]))
    draft.retype_outputs()
    return draft.finish()


def _constant(draft: Draft, op: str, domain: str, tensor: str, position: int, given: Any) -> np.ndarray[Any, Any]:
    """An operand as an array: numbers are of the tensor's type where the operator takes one type for both, or of the one that it takes."""
    array = np.asarray(given)
    if isinstance(given, np.ndarray | np.generic) or not onnx.defs.has(op, draft.opset(domain), domain):
        return array.astype(np.float32) if isinstance(given, float) else array
    schema = onnx.defs.get_schema(op, draft.opset(domain), domain)
    formal = [schema.inputs[min(i, len(schema.inputs) - 1)].type_str for i in (0, position)]
    element = kinds.element_of(draft.types.get(tensor))
    if formal[0] == formal[1] and element:
        return array.astype(onnx.helper.tensor_dtype_to_np_dtype(element))
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def insert_qdq(model: Model, tensor: str, scale: float, zero_point: int = 0, dtype: str = "int8", *, before: Iterable[str] = ()) -> Model:
    """The model with QuantizeLinear and DequantizeLinear on a tensor.

    Raises:
        UsageError: an unknown tensor, a scale that is not positive, or a zero point that the type does not hold.
    """
    draft = Draft(model, "insert")
    draft.names([tensor], "tensor")
    code = kinds.element_code(dtype, "insert")
    if not (np.isfinite(scale) and scale > 0):
        raise draft.fail(f"got the scale {scale}, expected a positive number")
    kind = onnx.helper.tensor_dtype_to_np_dtype(code)
    if kind not in (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16)):
        raise draft.fail(f"got the type {dtype!r}, expected int8, uint8, int16 or uint16")
    if not np.iinfo(kind).min <= zero_point <= np.iinfo(kind).max:
        raise draft.fail(f"got the zero point {zero_point}, expected one that {dtype} holds")
    element = kinds.element_of(draft.types.get(tensor)) or onnx.TensorProto.FLOAT
    width = np.asarray(scale, onnx.helper.tensor_dtype_to_np_dtype(element))
    source, result = splice(draft, tensor, f"{tensor}_dequantized", before)
    parameters = [draft.add_weight(f"{tensor}_scale", width), draft.add_weight(f"{tensor}_zero_point", np.asarray(zero_point, kind))]
    quantized = draft.unique(f"{tensor}_quantized")
    draft.add_node("QuantizeLinear", [source, *parameters], [quantized])
    draft.add_node("DequantizeLinear", [quantized, *parameters], [result])
    return draft.finish()


def splice(draft: Draft, tensor: str, name: str, before: Iterable[str] = ()) -> tuple[str, str]:
    """(what a new node on the tensor reads, what it makes); readers are redirected.

    Raises:
        UsageError: `before` names nodes that do not read the tensor.
    """
    readers = draft.users().get(tensor, [])
    patterns = list(before)
    if patterns:
        chosen = matching(draft.graph.node, patterns, draft.verb)
        known = {id(node) for node in readers}
        if wrong := [node for node in chosen if id(node) not in known]:
            there = ", ".join(describe(node) for node in readers[:8]) or "no node"
            raise draft.fail(f"{describe(wrong[0])} does not read {tensor!r}; {there} does")
        result = draft.unique(name)
        redirect(chosen, {tensor: result})
        return tensor, result
    if tensor in draft.outputs():
        if tensor not in draft.producers():
            raise draft.fail(f"{tensor!r} is an input and an output of the model; name the nodes with --before")
        source = draft.unique(f"{tensor}_before")
        draft.rename_result(tensor, source)
        return source, tensor
    result = draft.unique(name)
    redirect(readers, {tensor: result})
    return tensor, result


def delete(model: Model, nodes: Iterable[str] = (), *, op: str | None = None) -> Model:
    """The model without some nodes; what read their result reads their input, where the types fit.

    Nodes that are deleted together are skipped together: QuantizeLinear and DequantizeLinear, say.

    Args:
        nodes: names or patterns (`/head/drop*`) of nodes, or names of what they make.
        op: delete all nodes of an operator.

    Raises:
        UsageError: no such node; or one whose result is needed and no or several inputs could stand for it, with what would be open.
    """
    draft = Draft(model, "delete")
    patterns = list(nodes)
    chosen = matching(draft.graph.node, patterns, "delete") if patterns else []
    if op is not None:
        of_kind = [node for node in (chosen if patterns else draft.graph.node) if node.op_type == op]
        if not of_kind:
            raise draft.fail(f"no node is a {op}; {nearest(op, [n.op_type for n in draft.graph.node])}")
        chosen = of_kind
    if not chosen:
        raise draft.fail("got neither names nor an operator, expected what to delete")
    gone = {id(node) for node in chosen}
    makers = {name: node for node in chosen for name in node.output if name}
    outside = {name for name, users in draft.users().items() if any(id(u) not in gone for u in users)} | set(draft.outputs())
    problems, instead = [], {}
    for name, node in makers.items():
        if name in outside:
            found = _stand_in(draft, name, makers)
            if isinstance(found, str):
                instead[name] = found
            else:
                problems.append(f"{describe(node)} leaves {name!r} open: " + found[0])
    if problems:
        raise draft.fail("; ".join(problems) + "; delete what needs them, too, or replace instead")
    draft.remove_nodes(chosen)
    redirect(draft.graph.node, instead)
    taken: dict[str, str] = {}
    for name in draft.outputs():
        if name in instead:
            source = taken.get(instead[name], instead[name])
            if _take_name(draft, source, name):
                taken[source] = name
    draft.drop_unused_weights()
    return draft.finish()


def _stand_in(draft: Draft, name: str, makers: dict[str, onnx.NodeProto]) -> str | tuple[str]:
    """The tensor that can be read instead of a deleted node's result; else (the reason why none can,)."""
    weights, constant_value, reached, reasons = draft.weights(), draft.constants(), [name], list[str]()
    found: list[str] = []
    constants: list[str] = []  # stand for it only where nothing that is computed does
    seen: set[str] = set()
    while reached:
        node = makers[reached.pop()]
        for read in node.input:
            if read in makers:
                if read not in seen:
                    seen.add(read)
                    reached.append(read)
            elif read:
                constant = read in weights or constant_value(read) is not None
                chosen = constants if constant else found
                if problem := _misfit(draft, read, name):
                    if not constant:
                        reasons.append(problem)
                elif read not in chosen:
                    chosen.append(read)
    if not reasons:
        found = found or constants
    if len(found) == 1:
        return found[0]
    if found:
        return (f"{' and '.join(map(repr, found))} could both stand for it",)
    return ("; ".join(reasons) or "it has no input but weights",)


def _misfit(draft: Draft, read: str, made: str) -> str | None:
    a, b = draft.types.get(read), draft.types.get(made)
    one, two = kinds.shape_of(a), kinds.shape_of(b)
    same_type = not kinds.element_of(a) or not kinds.element_of(b) or kinds.element_of(a) == kinds.element_of(b)
    same_shape = one is None or two is None or (
        len(one) == len(two) and all(x == y for x, y in zip(one, two, strict=True) if isinstance(x, int) and isinstance(y, int))
    )
    return None if same_type and same_shape else f"{read!r} is {kinds.text(a)}, {made!r} was {kinds.text(b)}"


def _take_name(draft: Draft, source: str, output: str) -> bool:
    """Let the output of the model be what `source` is; whether `source` is called that now."""
    if source in draft.producers() and source not in draft.outputs():
        draft.rename_result(source, output)
        redirect(draft.graph.node, {source: output})
        return True
    draft.add_node("Identity", [source], [output])
    return False
