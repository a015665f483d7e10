"""Control flow that is known, and functions of the model: their bodies take the place of the call."""

from __future__ import annotations

import onnx
import onnx.inliner

from dovetail.core.errors import ModelError
from dovetail.model.proto_graph import attribute, subgraphs
from dovetail.model.simplify.scope import Scope, describe
from dovetail.model.weights import skeleton


def inline_ifs(scope: Scope) -> list[str]:
    """An If with a constant condition becomes the branch that it takes."""
    texts = []
    for position, node in reversed(list(enumerate(scope.graph.node))):
        if not scope.is_op(node, "If"):
            continue
        condition = scope.constant(node.input[0])
        if condition is None or condition.size != 1:
            continue
        branch = attribute(node, "then_branch" if condition.reshape(-1)[0] else "else_branch")
        if branch is None or len(branch.output) != len(node.output) or branch.input:
            continue
        texts.append(f"{describe(node)}: {'then' if condition.reshape(-1)[0] else 'else'}_branch")
        _splice(scope, position, node, branch)
    scope.refresh()
    return texts


def _splice(scope: Scope, position: int, node: onnx.NodeProto, branch: onnx.GraphProto) -> None:
    """Put a branch in the place of its If; its values get names that are new in the model."""
    own = {t.name for t in branch.initializer} | {t.values.name for t in branch.sparse_initializer}
    own |= {name for n in branch.node for name in n.output if name}
    names = {name: scope.unique(f"{node.output[0]}.{name}") for name in sorted(own)}
    body = onnx.GraphProto()
    body.CopyFrom(branch)
    _rename(body, names)
    scope.graph.initializer.extend(body.initializer)
    scope.graph.sparse_initializer.extend(body.sparse_initializer)
    added = list(body.node)
    for result, output in zip(node.output, body.output, strict=True):
        if result:
            added.append(onnx.helper.make_node("Identity", [output.name], [result]))
    del scope.graph.node[position]
    for offset, inner in enumerate(added):
        scope.graph.node.insert(position + offset, inner)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values of a graph, in the graphs in it, too, as far as those do not use the names themselves."""
    for field in (graph.initializer, graph.output, graph.value_info):
        for value in field:
            value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = names.get(name, name)
        for inner in subgraphs(node):
            bound = {v.name for v in inner.input} | {t.name for t in inner.initializer} | {o for n in inner.node for o in n.output}
            _rename(inner, {old: new for old, new in names.items() if old not in bound})


def inline_functions(model: onnx.ModelProto) -> list[str]:
    """Calls of the model's own functions become their bodies, in place.

    Raises:
        ModelError: ONNX cannot inline them.
    """
    if not model.functions:
        return []
    texts = [f"{f.domain}::{f.name}" for f in model.functions]
    try:
        inlined = onnx.inliner.inline_local_functions(skeleton(model))
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"model: its functions cannot be inlined ({error}); leave them with --skip inline_functions") from error
    del model.functions[:]
    del model.graph.node[:]
    model.graph.node.extend(inlined.graph.node)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inlined.graph.value_info)
    kept = {t.name for t in model.graph.initializer}
    model.graph.initializer.extend(t for t in inlined.graph.initializer if t.name not in kept)
    del model.opset_import[:]
    model.opset_import.extend(inlined.opset_import)
    return texts
