"""A part of a model as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import TypeProto

from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.model import Model
from dovetail.model.proto_graph import reads


def extract(
    model: Model,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    *,
    types: Mapping[str, tuple[str, Sequence[int | str]]] | None = None,
) -> Model:
    """The part of a model that computes `outputs` from `inputs`, with the weights that it needs and no others.

    Args:
        inputs: tensors that become the inputs, weights too; default the inputs of the model that are needed.
        outputs: tensors that become the outputs; default the model's.
        types: (element type, shape) of tensors whose type nothing tells, such as results of custom operators.

    Raises:
        UsageError: unknown names (with the nearest), inputs that do not cut the outputs off the model's own inputs (with those
            that are missing), inputs that no output needs, or whose type is not known.
    """
    draft = Draft(model, "extract")
    ends = draft.names(draft.outputs() if outputs is None else outputs, "tensor")
    starts = None if inputs is None else draft.names(inputs, "tensor")
    if both := sorted(set(ends) & set(starts or ())):
        raise draft.fail(f"got {both[0]!r} as input and as output, expected something to compute between them")
    if unmade := [name for name in ends if name not in draft.producers()]:
        raise draft.fail(f"got {unmade[0]!r} as output, expected what a node computes; it is an input or a weight")
    nodes, needed = region(draft, starts, ends)
    keep_inputs = [name for name in draft.inputs() if name in needed] if starts is None else starts
    draft.set_nodes(nodes)
    interface(draft, keep_inputs, ends, types or {})
    draft.drop_unused_weights()
    return draft.finish()


def region(
    draft: Draft, starts: Sequence[str] | None, ends: Sequence[str], *, all_needed: bool = True
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes between tensors, in the graph's order, and the names that they need from outside.

    Raises:
        UsageError: the way back from `ends` reaches inputs of the model that `starts` leaves open; or, with `all_needed`, never
            reaches one of `starts`.
    """
    producers, cut = draft.producers(), set(starts or ())
    wanted, via, alive, outside = list(ends), dict[str, str](), set[int](), set[str]()
    while wanted:
        name = wanted.pop()
        node = None if name in cut else producers.get(name)
        if node is None:
            outside.add(name)
        elif id(node) not in alive:
            alive.add(id(node))
            for read in reads(node):
                via.setdefault(read, node.output[0])
                wanted.append(read)
    if starts is not None:
        if missing := [name for name in draft.inputs() if name in outside and name not in cut]:
            ways = "; ".join(f"{name!r} by way of {_way(name, via)}" for name in missing[:8])
            raise draft.fail(
                f"the inputs {list(starts)} do not cut {list(ends)} off the rest: still needed is {ways}; "
                "add these names, or tensors on the way, to the inputs"
            )
        if all_needed and (idle := [name for name in starts if name not in outside]):
            raise draft.fail(f"{list(ends)} {'do' if len(ends) > 1 else 'does'} not depend on {idle[0]!r}; leave it out of the inputs")
    return [node for node in draft.graph.node if id(node) in alive], outside


def _way(name: str, via: Mapping[str, str]) -> str:
    """The first few tensors from `name` towards the outputs."""
    steps: list[str] = []
    while name in via and len(steps) < 4:
        name = via[name]
        steps.append(repr(name))
    return " → ".join(steps)


def interface(draft: Draft, inputs: Sequence[str], outputs: Sequence[str], types: Mapping[str, tuple[str, Sequence[int | str]]]) -> None:
    """Give the graph these inputs and outputs, in this order; an input that was a weight is none any more.

    Raises:
        UsageError: the type of one is not known.
    """
    weights = set(draft.weights()) - set(inputs)
    declared = {v.name: v for v in (*draft.graph.input, *draft.graph.output)}
    listed = [v for v in draft.graph.input if v.name in weights]
    ins = [kinds.value_info(name, _type(draft, name, types)) if name not in declared else declared[name] for name in inputs]
    outs = [kinds.value_info(name, _type(draft, name, types)) if name not in draft.outputs() else declared[name] for name in outputs]
    kept = onnx.GraphProto()  # holds copies while the lists are emptied
    kept.input.extend([*ins, *listed])
    kept.output.extend(outs)
    del draft.graph.input[:]
    del draft.graph.output[:]
    draft.graph.input.extend(kept.input)
    draft.graph.output.extend(kept.output)
    border = {*inputs, *outputs}
    for field in (draft.graph.value_info, draft.graph.initializer):
        for position in reversed(range(len(field))):
            if field[position].name in (border if field is draft.graph.value_info else set(inputs)):
                del field[position]


def _type(draft: Draft, name: str, types: Mapping[str, tuple[str, Sequence[int | str]]]) -> TypeProto:
    if name in types:
        element, shape = types[name]
        return kinds.tensor_type(kinds.element_code(element, draft.verb), shape)
    kind = draft.types.get(name)
    if kind is None or (kind.WhichOneof("value") == "tensor_type" and kinds.shape_of(kind) is None):
        raise draft.fail(
            f"the type of {name!r} is not known ({kinds.text(kind)}), expected element type and rank; "
            f"say it with --types {name}:float:[N,3]"
        )
    return kind
