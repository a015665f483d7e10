"""A part of a model replaced: by one operator, by another model, or every node of an operator by another operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx

from dovetail.core.errors import UsageError
from dovetail.frontend.reader import read_tensor
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.extract import region
from dovetail.model.edit.names import describe, nearest
from dovetail.model.model import Model
from dovetail.model.proto_graph import all_graphs, made_names, redirect, subgraphs

Attributes = Mapping[str, Any]


def replace(
    model: Model,
    inputs: Iterable[str],
    outputs: Iterable[str],
    op: str,
    *,
    domain: str = "",
    version: int = 1,
    name: str = "",
    attributes: Attributes | None = None,
) -> Model:
    """The model with one node in the place of all that computes `outputs` from `inputs`.

    Nodes of the part that something else still needs stay. Weights may be among the inputs.

    Args:
        op: operator of ONNX's own or, with `domain`, of anybody's (`version` is that domain's, where the model imports none of it).
        attributes: int, float, str, arrays, or lists of these.

    Raises:
        UsageError: unknown names or operator or attribute, inputs that do not cut, or a result that is not valid.
    """
    draft = Draft(model, "replace")
    starts, ends = _part(draft, inputs, outputs)
    check_operator(draft, op, domain, attributes or {})
    _detach(draft, ends)
    draft.add_node(op, starts, ends, name, domain, **(attributes or {}))
    draft.forget_types()
    if domain:
        draft.use_domain(domain, version)
        _keep_types(draft, ends)
    draft.retype_outputs()
    draft.drop_dead()
    return draft.finish()


def replace_by_model(
    model: Model,
    inputs: Iterable[str],
    outputs: Iterable[str],
    other: Model,
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
) -> Model:
    """The model with another model's graph in the place of all that computes `outputs` from `inputs`.

    Args:
        names: which tensor of the model stands for which input or output of the other; default in the order given.
        prefix: put before the names of the other model's tensors and nodes; names that are taken get a number.

    Raises:
        UsageError: names that do not match, opsets or element types that differ, or a result that is not valid.
    """
    draft = Draft(model, "replace")
    starts, ends = _part(draft, inputs, outputs)
    guest = Draft(other, "replace")
    border = {
        **_match(draft, "input", list(guest.inputs()), starts, names or {}),
        **_match(draft, "output", list(guest.outputs()), ends, names or {}),
    }
    _same_types(draft, guest, border)
    _adopt_opsets(draft, guest)
    _detach(draft, ends)
    _rename_guest(draft, guest, border, prefix)
    draft.graph.node.extend(guest.graph.node)
    for tensor in guest.graph.initializer:
        added = draft.graph.initializer.add()
        if tensor.data_location == onnx.TensorProto.EXTERNAL and guest.folder != draft.folder:
            added.CopyFrom(onnx.numpy_helper.from_array(read_tensor(tensor, guest.folder), tensor.name))
        else:
            added.CopyFrom(tensor)
        if draft.proto.ir_version < 4:
            draft.graph.input.append(kinds.value_info(tensor.name, kinds.tensor_type(tensor.data_type, list(tensor.dims))))
    draft.graph.sparse_initializer.extend(guest.graph.sparse_initializer)
    known = {(f.domain, f.name) for f in draft.proto.functions}
    draft.proto.functions.extend(f for f in guest.proto.functions if (f.domain, f.name) not in known)
    draft.proto.ir_version = max(draft.proto.ir_version, guest.proto.ir_version)
    draft.forget_types()
    draft.retype_outputs()
    draft.drop_dead()
    return draft.finish()


def replace_op(
    model: Model,
    old: str,
    new: str,
    *,
    old_domain: str = "",
    domain: str = "",
    version: int = 1,
    attributes: Attributes | None = None,
    attribute_names: Mapping[str, str | None] | None = None,
) -> Model:
    """The model with every node of one operator turned into another, in bodies of If, Loop and Scan, too.

    Args:
        attributes: set on every such node.
        attribute_names: new names of attributes that the nodes have; None drops one. The others stay.

    Raises:
        UsageError: the model has no such node, or the new operator does not have such attributes.
    """
    draft = Draft(model, "replace")
    same = ("", "ai.onnx") if old_domain in ("", "ai.onnx") else (old_domain,)
    nodes = [n for graph in all_graphs(draft.graph) for n in graph.node if n.op_type == old and n.domain in same]
    if not nodes:
        there = [n.op_type for graph in all_graphs(draft.graph) for n in graph.node]
        raise draft.fail(f"no node is a {old_domain + '::' if old_domain else ''}{old}; {nearest(old, there)}")
    renamed = attribute_names or {}
    for node in nodes:
        kept = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
        moved = {renamed.get(k, k): v for k, v in kept.items()}
        merged = {k: v for k, v in {**moved, **(attributes or {})}.items() if k is not None}
        check_operator(draft, new, domain, merged, describe(node))
        made = onnx.helper.make_node(new, list(node.input), list(node.output), node.name, node.doc_string, domain, **merged)
        node.CopyFrom(made)
    draft.forget_types()
    if domain:
        draft.use_domain(domain, version)
        _keep_types(draft, [name for node in nodes for name in node.output])
    draft.retype_outputs()
    return draft.finish()


def check_operator(draft: Draft, op: str, domain: str, attributes: Attributes, where: str = "") -> None:
    """Check an operator of ONNX's domains, and its attributes, against the schema of the model's opset.

    Raises:
        UsageError: no such operator or attribute, with the nearest ones.
    """
    if domain not in ("", "ai.onnx", "ai.onnx.ml"):
        return
    domain = "" if domain == "ai.onnx" else domain
    prefix = f"{where}: " if where else ""
    opset = draft.opset(domain)
    known = [s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain]
    if op not in known:
        raise draft.fail(f"{prefix}got the operator {op!r}, which ONNX does not have; {nearest(op, known)}; --domain names another's")
    try:
        schema = onnx.defs.get_schema(op, opset or 1, domain)
    except onnx.defs.SchemaError as error:
        first = min(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and s.domain == domain)
        raise draft.fail(f"{prefix}{op} is not in opset {opset}, it came with {first}; convert-opset first") from error
    if unknown := sorted(set(attributes) - set(schema.attributes)):
        raise draft.fail(f"{prefix}{op} has no attribute {unknown[0]!r}; {nearest(unknown[0], schema.attributes)}")
    missing = sorted(name for name, a in schema.attributes.items() if a.required and name not in attributes)
    if missing:
        meaning = schema.attributes[missing[0]].description.split(".")[0].strip()
        raise draft.fail(f"{prefix}{op} needs the attribute {missing[0]!r}: {meaning}")


def _part(draft: Draft, inputs: Iterable[str], outputs: Iterable[str]) -> tuple[list[str], list[str]]:
    starts, ends = draft.names(inputs, "tensor"), draft.names(outputs, "tensor")
    if unmade := [name for name in ends if name not in draft.producers()]:
        raise draft.fail(f"got {unmade[0]!r} as output, expected what a node computes; it is an input or a weight")
    region(draft, starts, ends, all_needed=False)  # what takes the place may read more than the part did
    return starts, ends


def _detach(draft: Draft, ends: Sequence[str]) -> None:
    """Free the names of the outputs: what made them makes something that nothing reads."""
    for name in ends:
        draft.rename_result(name, draft.unique(f"{name}_replaced"))


def _keep_types(draft: Draft, made: Iterable[str]) -> None:
    """Say what type results have, where an operator without schema makes them."""
    said = {v.name for v in (*draft.graph.value_info, *draft.graph.output)}
    for name in made:
        if name in draft.types and name not in said:
            draft.graph.value_info.append(kinds.value_info(name, draft.types[name]))


def _match(draft: Draft, what: str, theirs: Sequence[str], ours: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """Their name to ours, by what the user says and else in order."""
    said = {a: b for a, b in names.items() if b in ours or a in theirs}
    for a, b in said.items():
        if a not in theirs and b in ours:
            raise draft.fail(f"got {a!r} for {b!r}, expected an {what} of the other model; {nearest(a, theirs)}")
        if a in theirs and b not in ours:
            raise draft.fail(f"got {b!r} for the other model's {what} {a!r}, expected one of {list(ours)}")
    left = [b for b in ours if b not in said.values()]
    open_names = [a for a in theirs if a not in said]
    if len(open_names) != len(left):
        raise draft.fail(
            f"the other model has the {what}s {list(theirs)}, got {list(ours)} to stand for them; expected as many"
        )
    return {**said, **dict(zip(open_names, left, strict=True))}


def _same_types(draft: Draft, guest: Draft, border: Mapping[str, str]) -> None:
    for theirs, ours in border.items():
        a, b = guest.types.get(theirs), draft.types.get(ours)
        if kinds.element_of(a) and kinds.element_of(b) and kinds.element_of(a) != kinds.element_of(b):
            raise draft.fail(f"{ours!r} is {kinds.text(b)}, the other model's {theirs!r} is {kinds.text(a)}; change one with set-dtype")
        here, there = kinds.shape_of(b), kinds.shape_of(a)
        if here is not None and there is not None and len(here) != len(there):
            raise draft.fail(f"{ours!r} is {kinds.text(b)}, the other model's {theirs!r} is {kinds.text(a)}; expected the same rank")


def _adopt_opsets(draft: Draft, guest: Draft) -> None:
    for opset in guest.proto.opset_import:
        here = draft.opset(opset.domain)
        if not here:
            draft.use_domain(opset.domain, opset.version)
        elif here != opset.version:
            raise draft.fail(
                f"the other model is of {opset.domain or 'opset'} {opset.version}, this one of {here}; expected one version: "
                f"dovetail edit convert-opset --opset {max(here, opset.version)}"
            )


def _rename_guest(draft: Draft, guest: Draft, border: Mapping[str, str], prefix: str) -> None:
    """Give the other graph's tensors and nodes names that are free here, and those at the border ours."""
    names = dict(border)
    for name in made_names(guest.graph):
        if name not in names:
            names[name] = draft.unique(prefix + name)
    both = {theirs for theirs in guest.outputs() if theirs in guest.inputs()}
    if both:
        raise UsageError(f"replace: the other model hands its input {min(both)!r} on as an output; expected outputs that it computes")
    _rename_inner(draft, guest.graph, prefix)
    redirect(guest.graph.node, names)
    for node in guest.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        if node.name:
            node.name = draft.unique(prefix + node.name)
    for tensor in guest.graph.initializer:
        tensor.name = names[tensor.name]
    for sparse in guest.graph.sparse_initializer:
        sparse.values.name = names[sparse.values.name]


def _rename_inner(draft: Draft, graph: onnx.GraphProto, prefix: str) -> None:
    """Free names for what bodies define, which may not be those of tensors around them."""
    for node in graph.node:
        for body in subgraphs(node):
            names = {name: draft.unique(prefix + name) for name in dict.fromkeys(made_names(body))}
            redirect(body.node, names)
            for inner in body.node:
                inner.output[:] = [names.get(name, name) for name in inner.output]
                if inner.name:
                    inner.name = draft.unique(prefix + inner.name)
            for value in (*body.input, *body.output, *body.value_info, *body.initializer):
                value.name = names.get(value.name, value.name)
            _rename_inner(draft, body, prefix)
