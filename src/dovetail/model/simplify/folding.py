"""Constants: Constant nodes become initializers, and nodes that read constants alone are computed now."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import Error
from dovetail.core.log import logger
from dovetail.frontend.importer import import_onnx
from dovetail.model.model import Model
from dovetail.model.proto_graph import constant_value, subgraphs
from dovetail.model.simplify.scope import FOLD_LIMIT_BYTES, Array, Scope, describe
from dovetail.model.weights import stored_bytes
from dovetail.ops.evaluate import evaluate

_log = logger("simplify")

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
# Quantised weights stay quantised.
NEVER_FOLD = RANDOM | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant"}


def constants_to_initializers(scope: Scope) -> list[str]:
    """Constant nodes become initializers of the same name."""
    done = []
    for node in scope.graph.node:
        if scope.is_op(node, "Constant") and node.output[0] not in scope.output_names:
            value = constant_value(node, None)
            if value is not None:
                scope.add_constant(node.output[0], value)
                done.append(node)
    texts = list(map(describe, done))
    scope.remove_nodes(done)
    return texts


def fold_constants(scope: Scope) -> list[str]:
    """Nodes that read constants alone are computed now, unless the result would be large."""
    folded = []
    for node in list(scope.graph.node):
        if _foldable(scope, node):
            values = _evaluate(scope, node)
            if values is not None:
                for name, value in values.items():
                    scope.add_constant(name, value)
                folded.append(node)
    texts = list(map(describe, folded))
    scope.remove_nodes(folded)
    return texts


def _foldable(scope: Scope, node: onnx.NodeProto) -> bool:
    known = all(name in scope.constants for name in node.input if name)
    ours = scope.is_op(node, node.op_type) and node.op_type not in NEVER_FOLD and not list(subgraphs(node))
    free = not any(name in scope.output_names for name in node.output)
    return known and ours and free and any(node.input) and _estimated_bytes(scope, node) <= FOLD_LIMIT_BYTES


def _estimated_bytes(scope: Scope, node: onnx.NodeProto) -> float:
    """Size of the result of the ops whose result can be far larger than their inputs."""
    if node.op_type in ("ConstantOfShape", "Expand"):
        target = scope.array(node.input[-1]).reshape(-1)
        return math.prod(int(d) for d in target) * 8.0
    if node.op_type == "Tile" and len(node.input) == 2:
        repeats = scope.array(node.input[1]).reshape(-1)
        return math.prod(int(r) for r in repeats) * float(stored_bytes(scope.constants[node.input[0]]))
    if node.op_type == "Range":
        start, limit, delta = (float(scope.array(name)) for name in node.input)
        return abs((limit - start) / delta) * 8 if delta else 0.0
    return 0.0


def _evaluate(scope: Scope, node: onnx.NodeProto) -> dict[str, Array] | None:
    """The outputs of one node on constants, by the references; None if that is not possible."""
    used = [scope.constants[name] for name in dict.fromkeys(node.input) if name]
    budget = max(FOLD_LIMIT_BYTES, sum(map(stored_bytes, used)))
    if not scope.readings.take(used):
        return None
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
    alone = onnx.helper.make_graph([node], "fold", [], outputs, initializer=used)
    model = onnx.helper.make_model(alone, opset_imports=scope.model.opset_import, ir_version=max(4, scope.model.ir_version))
    try:
        results = evaluate(import_onnx(Model(model, scope.folder)), {})
    except (Error, ValueError, TypeError, OverflowError, IndexError) as error:
        _log.debug("cannot fold %s: %s", describe(node), error)
        return None
    arrays: dict[str, Any] = {o.name: results[o.name] for o in outputs}
    if not all(isinstance(a, np.ndarray | np.generic) for a in arrays.values()):
        return None
    found = {name: np.asarray(a) for name, a in arrays.items()}
    return found if sum(a.nbytes for a in found.values()) <= budget else None
