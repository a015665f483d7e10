"""Other names: of tensors (inputs, outputs and weights are tensors), nodes and dimensions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import onnx

from dovetail.core.errors import UsageError
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.names import expect
from dovetail.model.edit.value_types import shape_of
from dovetail.model.model import Model
from dovetail.model.proto_graph import all_graphs, made_names

GROUPS = ("inputs", "outputs", "weights", "intermediate", "tensors", "nodes", "dims")
"""What a regular expression or a prefix can apply to; "tensors" are the first four."""


def rename(
    model: Model,
    *,
    tensors: Mapping[str, str] | None = None,
    nodes: Mapping[str, str] | None = None,
    dims: Mapping[str, str] | None = None,
    pattern: tuple[str, str] | None = None,
    prefix: str = "",
    of: Iterable[str] = ("tensors", "nodes"),
) -> Model:
    """The model with other names; what it computes stays.

    Args:
        tensors: new names by old ones, for inputs, outputs, weights and values, in bodies of If, Loop and Scan, too.
        nodes: likewise for nodes.
        dims: likewise for named dimensions.
        pattern: a regular expression and what to put for it (`re.sub`), applied to all names of the groups `of`.
        prefix: put before all names of the groups `of`.
        of: which names `pattern` and `prefix` apply to, of `GROUPS`.

    Raises:
        UsageError: unknown names, an expression that is none, names that would be taken twice, or nothing to rename.
    """
    draft = Draft(model, "rename")
    groups = expect(of, GROUPS, "rename", "group") if pattern or prefix else []
    known_tensors = list(dict.fromkeys(name for graph in all_graphs(draft.graph) for name in made_names(graph)))
    known_nodes = list(dict.fromkeys(n.name for graph in all_graphs(draft.graph) for n in graph.node if n.name))
    known_dims = _dims(draft)
    by_name: dict[str, dict[str, str]] = {}
    for what, given, known in (("tensor", tensors, known_tensors), ("node", nodes, known_nodes), ("dim", dims, known_dims)):
        by_name[what] = dict(given or {})
        if given:
            expect(given, known, "rename", what)
            if empty := [old for old, new in given.items() if not new]:
                raise draft.fail(f"got an empty name for {empty[0]!r}, expected a name")
    members = _members(draft, known_tensors, known_nodes, known_dims)
    for group in groups:
        for what, name in members[group]:
            new = prefix + _substitute(pattern, name)
            if not new:
                raise draft.fail(f"the expression leaves nothing of {name!r}, expected a name")
            if new != name:
                by_name[what].setdefault(name, new)
    if not any(old != new for names in by_name.values() for old, new in names.items()):
        raise draft.fail("nothing to rename; give names (--tensors, --nodes, --dims), or an expression or a prefix that changes some")
    _unambiguous(draft, "tensor", by_name["tensor"], known_tensors)
    _unambiguous(draft, "node", by_name["node"], known_nodes)
    for graph in all_graphs(draft.graph):
        _apply(graph, by_name["tensor"], by_name["node"], by_name["dim"])
    return draft.finish()


def _substitute(pattern: tuple[str, str] | None, name: str) -> str:
    if pattern is None:
        return name
    try:
        return re.sub(pattern[0], pattern[1], name)
    except (re.error, IndexError) as error:
        raise UsageError(f"rename: got the expression {pattern[0]!r} with {pattern[1]!r}, which is none of Python's re: {error}") from error


def _dims(draft: Draft) -> list[str]:
    """Names of dimensions, those in expressions such as "N + 1", too."""
    found: dict[str, None] = {}
    for value in (*draft.graph.input, *draft.graph.output, *draft.graph.value_info):
        for dim in shape_of(value.type) or ():
            if isinstance(dim, str):
                found[dim] = None
                found |= dict.fromkeys(re.findall(r"[A-Za-z_]\w*", dim))
    return list(found)


def _members(draft: Draft, tensors: list[str], nodes: list[str], dims: list[str]) -> dict[str, list[tuple[str, str]]]:
    inputs, outputs, weights = list(draft.inputs()), list(draft.outputs()), list(draft.weights())
    border = {*inputs, *outputs, *weights}
    groups = {"inputs": inputs, "outputs": outputs, "weights": weights, "intermediate": [t for t in tensors if t not in border]}
    named = {group: [("tensor", name) for name in names] for group, names in groups.items()}
    return {**named, "tensors": [("tensor", t) for t in tensors], "nodes": [("node", n) for n in nodes], "dims": [("dim", d) for d in dims]}


def _unambiguous(draft: Draft, what: str, names: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse two things of one name."""
    counts = Counter(names.get(name, name) for name in known)
    taken = {new: [old for old in known if names.get(old, old) == new] for new in names.values() if counts[new] > 1}
    if taken:
        new, olds = next(iter(taken.items()))
        raise draft.fail(f"{' and '.join(map(repr, olds[:4]))} would both be the {what} {new!r}; choose names that are free")


def _apply(graph: onnx.GraphProto, tensors: Mapping[str, str], nodes: Mapping[str, str], dims: Mapping[str, str]) -> None:
    for node in graph.node:
        node.name = nodes.get(node.name, node.name)
        node.input[:] = [tensors.get(name, name) for name in node.input]
        node.output[:] = [tensors.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = tensors.get(value.name, value.name)
        if dims and value.type.WhichOneof("value") == "tensor_type":
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = dims.get(dim.dim_param) or re.sub(r"[A-Za-z_]\w*", lambda m: dims.get(m[0], m[0]), dim.dim_param)
    for tensor in graph.initializer:
        tensor.name = tensors.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = tensors.get(sparse.values.name, sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = tensors.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = tensors.get(entry.value, entry.value)
