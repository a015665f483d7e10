"""ONNX to smaller ONNX: constant folding, shape arithmetic, identities, batch norms, duplicates, dead nodes.

Works on the proto, so that opset, IR version, metadata and the names of what remains are the user's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from dovetail.core.dtypes import dtype
from dovetail.core.errors import Error
from dovetail.core.log import logger
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import read_tensor
from dovetail.model.proto_graph import ProtoGraph, attribute, subgraphs

_log = logger("simplify")

FOLD_LIMIT_BYTES = 1 << 20
"""A folded constant may be this large, or as large as what it was computed from."""

_MAX_ROUNDS = 20
_PROTO_LIMIT = (1 << 31) - 1
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
# Quantised weights stay quantised, and control flow is not ours to run here.
_NEVER_FOLD = _RANDOM | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan", "Constant"}


def simplify(model: onnx.ModelProto, *, skip: frozenset[str] = frozenset(), infer_shapes: bool = True) -> onnx.ModelProto:
    """A smaller model with the same inputs, outputs and meaning; `model` itself is not changed.

    Args:
        model: weights must be in it (load external data first).
        skip: names of `REWRITES` to leave out.
        infer_shapes: add the inferred types of intermediate values.

    Raises:
        ModelError: the model is invalid.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = ProtoGraph(result)
    graph.clean()
    for _ in range(_MAX_ROUNDS):
        changes = 0
        for name, rewrite in REWRITES.items():
            if name not in skip:
                count = rewrite(graph)
                graph.clean()
                changes += count
                if count:
                    _log.debug("%s: %d changes", name, count)
        if not changes:
            break
    if infer_shapes and result.ByteSize() < _PROTO_LIMIT:
        result = onnx.shape_inference.infer_shapes(result, data_prop=True)
    return result


# ---------------------------------------------------------------------- constants
def constants_to_initializers(graph: ProtoGraph) -> int:
    """Constant nodes become initializers of the same name."""
    done = []
    for node in graph.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            value = _constant_value(node)
            if value is not None and node.output[0] not in graph.output_names:
                graph.add_constant(node.output[0], value)
                done.append(node)
    graph.remove_nodes(done)
    return len(done)


def _constant_value(node: onnx.NodeProto) -> np.ndarray[Any, Any] | None:
    for proto in node.attribute:
        if proto.name == "value":
            return read_tensor(proto.t, None)
        value = onnx.helper.get_attribute_value(proto)
        if proto.name in ("value_float", "value_floats"):
            return np.array(value, np.float32)
        if proto.name in ("value_int", "value_ints"):
            return np.array(value, np.int64)
    return None


def fold_constants(graph: ProtoGraph) -> int:
    """Nodes that read constants alone are computed now, unless the result would be large."""
    folded = []
    for node in list(graph.graph.node):
        if _foldable(graph, node):
            values = _evaluate(graph, node)
            if values is not None:
                for name, value in values.items():
                    graph.add_constant(name, value)
                folded.append(node)
    graph.remove_nodes(folded)
    return len(folded)


def _foldable(graph: ProtoGraph, node: onnx.NodeProto) -> bool:
    known = all(name in graph.constants for name in node.input if name)
    ours = node.domain in ("", "ai.onnx") and node.op_type not in _NEVER_FOLD and not list(subgraphs(node))
    free = not any(name in graph.output_names for name in node.output)
    return known and ours and free and bool(node.input) and _estimated_bytes(graph, node) <= FOLD_LIMIT_BYTES


def _estimated_bytes(graph: ProtoGraph, node: onnx.NodeProto) -> float:
    """Size of the result of the ops whose result can be far larger than their inputs."""
    if node.op_type in ("ConstantOfShape", "Expand"):
        target = graph.array(node.input[-1]).reshape(-1)
        return math.prod(int(d) for d in target) * 8.0
    if node.op_type == "Tile":
        repeats = graph.array(node.input[1]).reshape(-1)
        return math.prod(int(r) for r in repeats) * float(graph.array(node.input[0]).nbytes)
    if node.op_type == "Range":
        start, limit, delta = (float(graph.array(name)) for name in node.input)
        return abs((limit - start) / delta) * 8 if delta else 0.0
    return 0.0


def _evaluate(graph: ProtoGraph, node: onnx.NodeProto) -> dict[str, np.ndarray[Any, Any]] | None:
    """The outputs of one node on constants, by ONNX's own evaluator; None if that is not possible."""
    used = [graph.constants[name] for name in dict.fromkeys(node.input) if name]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
    alone = onnx.helper.make_graph([node], "fold", [], outputs, initializer=used)
    model = onnx.helper.make_model(alone, opset_imports=graph.model.opset_import, ir_version=max(4, graph.model.ir_version))
    from onnx.reference import ReferenceEvaluator

    try:
        results = ReferenceEvaluator(model).run(None, {})
    except (NotImplementedError, ValueError, TypeError, RuntimeError, IndexError) as error:
        _log.debug("cannot fold %s %s: %s", node.op_type, node.name, error)
        return None
    arrays = {name: np.asarray(x) for name, x in zip((n for n in node.output if n), results, strict=True)}
    budget = max(FOLD_LIMIT_BYTES, sum(read_tensor(t, None).nbytes for t in used))
    return arrays if sum(a.nbytes for a in arrays.values()) <= budget else None


def fold_shapes(graph: ProtoGraph) -> int:
    """Shape arithmetic whose result is known although shapes are partly symbolic becomes a constant."""
    if not any(node.op_type in ("Shape", "Size") for node in graph.graph.node):
        return 0
    if any(t.name in graph.inputs for t in graph.graph.initializer) and not graph.initializers_are_inputs:
        return 0  # a caller may override an initializer, whose contents the importer would rely on
    try:
        module = import_onnx(graph.model)
    except Error as error:
        _log.debug("no shape folding: %s", error)
        return 0
    known = {v.name: v for v in module.main.values() if v.contents is not None and v.producer is not None}
    replacements, done = {}, 0
    for node in graph.graph.node:
        if node.op_type in _NEVER_FOLD or len(node.output) != 1 or node.output[0] in graph.output_names:
            continue
        value = known.get(node.output[0])
        if value is None or value.contents is None or not all(isinstance(d, int) for d in value.contents.reshape(-1)):
            continue
        kind = value.tensor.dtype
        if kind != dtype("i64") and kind != dtype("i32"):
            continue
        name = graph.unique(f"{node.output[0]}_value")
        graph.add_constant(name, np.array(value.contents.tolist(), kind.numpy).reshape(value.contents.shape))
        replacements[node.output[0]] = name
        done += 1
    graph.replace_all(replacements)
    return done


# ---------------------------------------------------------------------- nodes that do nothing
def remove_identities(graph: ProtoGraph) -> int:
    """Identity, inference Dropout, and Cast, Transpose, Pad, Concat and Expand that change nothing disappear."""
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.graph.input, *graph.graph.value_info)}
    types |= {t.name: t.data_type for t in graph.graph.initializer}
    replacements: dict[str, str] = {}
    dead = []
    for node in graph.graph.node:
        if not _does_nothing(graph, node, types):
            continue
        source, result = node.input[0], node.output[0]
        if result not in graph.output_names:
            replacements[result] = source
            dead.append(node)
        elif _take_over_name(graph, source, result):
            dead.append(node)
            break  # names have moved: look at the rest in the next round
    graph.remove_nodes(dead)
    graph.replace_all(replacements)
    return len(dead)


def _does_nothing(graph: ProtoGraph, node: onnx.NodeProto, types: dict[str, int]) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input or not node.input[0]:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = len(node.input) > 2 and node.input[2] != ""
        return not training and sum(bool(n) for n in node.output) == 1 and attribute(node, "is_test", 1) != 0
    if node.op_type == "Cast":
        return bool(types.get(node.input[0]) == attribute(node, "to"))
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return perm is not None and list(perm) == sorted(perm)
    if node.op_type == "Concat":
        return len(node.input) == 1
    if node.op_type == "Pad" and len(node.input) > 1 and node.input[1] in graph.constants:
        return not graph.array(node.input[1]).any()
    if node.op_type == "Expand" and node.input[1] in graph.constants:
        # A shorter or equal list of ones broadcasts nothing only if the rank cannot grow.
        return graph.array(node.input[1]).size == 0
    return False


def _take_over_name(graph: ProtoGraph, source: str, result: str) -> bool:
    """Let the producer of `source` make the graph output `result` itself."""
    producer = graph.producers.get(source)
    if producer is None or source in graph.output_names:
        return False
    for position, name in enumerate(producer.output):
        if name == source:
            producer.output[position] = result
    graph.replace_all({source: result})
    return True


def merge_duplicates(graph: ProtoGraph) -> int:
    """Of nodes with the same operator, attributes and inputs, the first stays."""
    seen: dict[Any, onnx.NodeProto] = {}
    replacements: dict[str, str] = {}
    dead = []
    for node in graph.graph.node:
        inputs = tuple(replacements.get(name, name) for name in node.input)
        if node.op_type in _RANDOM or list(subgraphs(node)) or graph.output_names & set(node.output):
            continue
        attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
        key = (node.domain, node.op_type, inputs, attributes, tuple(bool(n) for n in node.output))
        first = seen.setdefault(key, node)
        if first is not node:
            replacements |= {old: new for old, new in zip(node.output, first.output, strict=True) if old}
            dead.append(node)
    graph.remove_nodes(dead)
    graph.replace_all(replacements)
    return len(dead)


# ---------------------------------------------------------------------- batch normalization
def fold_batch_norms(graph: ProtoGraph) -> int:
    """BatchNormalization after a Conv with constant weights becomes part of the weights."""
    dead = []
    for norm in graph.graph.node:
        conv = graph.producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" and norm.input else None
        if conv is None or conv.op_type != "Conv" or not _fits(graph, conv, norm):
            continue
        scale, shift, mean, variance = (graph.array(n).astype(np.float64) for n in norm.input[1:5])
        factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        weight = graph.array(conv.input[1])
        bias = graph.array(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else 0.0
        folded = weight * factor.reshape(-1, *([1] * (weight.ndim - 1)))
        names = [graph.unique(f"{conv.input[1]}_folded"), graph.unique(f"{norm.input[2]}_folded")]
        graph.add_constant(names[0], folded.astype(weight.dtype))
        graph.add_constant(names[1], ((bias - mean) * factor + shift).astype(weight.dtype))
        conv.input[:] = [conv.input[0], *names]
        conv.output[0] = norm.output[0]
        dead.append(norm)
    graph.remove_nodes(dead)
    return len(dead)


def _fits(graph: ProtoGraph, conv: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
    constants = [*conv.input[1:], *norm.input[1:5]]
    known = all(name in graph.constants for name in constants if name)
    alone = graph.uses[conv.output[0]] == 1 and sum(bool(n) for n in norm.output) == 1
    return known and alone and not attribute(norm, "training_mode", 0)


REWRITES: dict[str, Callable[[ProtoGraph], int]] = {
    "constants_to_initializers": constants_to_initializers,
    "remove_identities": remove_identities,
    "fold_constants": fold_constants,
    "fold_shapes": fold_shapes,
    "merge_duplicates": merge_duplicates,
    "fold_batch_norms": fold_batch_norms,
}
"""Rewrites by name, in the order in which each round applies them."""
