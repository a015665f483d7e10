"""Nodes of a model that compute as in training: exported without evaluation mode, or of ONNX's training operators."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import numpy_helper

from dovetail.frontend.protos import domain_of
from dovetail.model.proto_graph import subgraphs


def training_nodes(model: onnx.ModelProto) -> list[str]:
    """What each such node does, by its name and operator; an empty list for a model to run.

    BatchNormalization with `training_mode`, Dropout whose third input is a constant true, and the domain ai.onnx.preview.training.
    Bodies of If, Loop and Scan are searched, too.
    """
    return list(_found(model.graph, {}))


def _found(graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]) -> Iterator[str]:
    constants = outer | {t.name: t for t in graph.initializer}
    for node in graph.node:
        attributes = {a.name: a for a in node.attribute}
        where = f"{node.name or next(iter(node.output), '?')} ({node.op_type})"
        if node.op_type == "Constant" and "value" in attributes:
            constants[node.output[0]] = attributes["value"].t
        elif domain_of(node.domain) == "ai.onnx.preview.training":
            yield f"{where}: an operator of training"
        elif not domain_of(node.domain):
            mode = attributes.get("training_mode")
            if node.op_type == "BatchNormalization" and mode is not None and mode.i:
                yield f"{where}: statistics of the batch in the place of the trained ones"
            if node.op_type == "Dropout" and len(node.input) > 2 and _is_true(constants.get(node.input[2])):
                yield f"{where}: drops values at random"
        for body in subgraphs(node):
            yield from _found(body, constants)


def _is_true(tensor: onnx.TensorProto | None) -> bool:
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    return bool(numpy_helper.to_array(tensor).reshape(-1)[:1].any())
