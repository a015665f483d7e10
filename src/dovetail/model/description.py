"""What an ONNX model is, as plain data: inputs, outputs, operators, layers with their work, weights with statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.core.dims import Dim
from dovetail.core.errors import Error, UnsupportedOpError
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import STRIPPED, OnnxSource, ShapeOverride, dtype_name, read_tensor
from dovetail.model.layers import (
    Layer,
    channel_axes,
    layers,
    plain_dim,
    usual_sizes,
    work_at,
    work_total,
)
from dovetail.model.model import Model
from dovetail.model.proto_graph import subgraphs
from dovetail.model.statistics import statistics, suspicions
from dovetail.model.training import training_nodes


def describe(model: onnx.ModelProto, folder: Path | None, shapes: ShapeOverride | None = None) -> dict[str, Any]:
    """Everything that `dovetail inspect` shows of a model, with stable keys.

    Args:
        folder: of external weights.
        shapes: replaces input shapes, for the arithmetic; without it that is in terms of the symbols.
    """
    tensors = list(weight_tensors(model.graph))
    names = {t.name for t in tensors}
    operators = Counter(operator_names(model.graph.node))
    found, sizes, reason = _layers(Model(model, folder), shapes)
    axes = channel_axes(model.graph)
    weights = [describe_weight(t, folder, axes.get(t.name)) for t in tensors]
    flops = work_total(found)
    return {
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "opsets": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "functions": [f"{f.domain}:{f.name}" for f in model.functions],
        "inputs": [describe_value(v) for v in model.graph.input if v.name not in names],
        "outputs": [describe_value(v) for v in model.graph.output],
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "nodes": sum(operators.values()),
        "parameters": _parameters(tensors),
        "flops": None if reason else plain_dim(flops),
        "flops_at": sizes,
        "flops_unknown": reason,
        "work": _by_operator(found, sizes),
        "layers": [layer.json() for layer in found],
        "training": training_nodes(model),
        "suspicious": [s.json() for s in suspicions(weights)],
        "weights": weights,
    }


def _layers(source: OnnxSource, shapes: ShapeOverride | None) -> tuple[list[Layer], dict[str, int], str]:
    """The layers, usual values of the symbols in their work; and why that is not known, if it is not."""
    try:
        module = import_onnx(source, shapes)
        return layers(source.proto, module), usual_sizes(module), ""
    except UnsupportedOpError as error:
        more = f" and {len(error.problems) - 1} more" if len(error.problems) > 1 else ""
        return layers(source.proto, None), {}, f"{error.problems[0]}{more}"
    except Error as error:
        if shapes:
            raise
        return layers(source.proto, None), {}, str(error).partition("\n")[0]


def _by_operator(found: Sequence[Layer], sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Operations and parameters per operator, most work at these sizes first."""
    sums: dict[str, list[Layer]] = {}
    for layer in found:
        sums.setdefault(layer.op, []).append(layer)
    works: dict[str, Dim] = {op: work_total(group) for op, group in sums.items()}
    order = sorted(sums, key=lambda op: (-work_at(works[op], sizes), -sum(x.parameters for x in sums[op]), op))
    return {
        op: {"layers": len(sums[op]), "flops": plain_dim(works[op]), "parameters": sum(layer.parameters for layer in sums[op])}
        for op in order
    }


def _parameters(tensors: Iterable[onnx.TensorProto]) -> int:
    """Elements of float weights: integers are shapes and indices."""
    return sum(math.prod(t.dims) for t in tensors if dtype_name(t.data_type).startswith(("float", "double", "bfloat")))


def weight_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and tensors of Constant nodes, of subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                tensor = onnx.TensorProto()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                yield tensor
        for inner in subgraphs(node):
            yield from weight_tensors(inner)


def operator_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """The operator of every node, those of subgraphs too; with its domain where that is not ONNX's own."""
    for node in nodes:
        yield node.op_type if not domain_of(node.domain) else f"{node.domain}:{node.op_type}"
        for inner in subgraphs(node):
            yield from operator_names(inner.node)


def describe_value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """name, dtype and shape of a value; shape None where the rank is not known, or of what is no tensor."""
    kind = value.type.WhichOneof("value") or "untyped"
    if kind != "tensor_type":
        return {"name": value.name, "dtype": kind.removesuffix("_type"), "shape": None}
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype_name(tensor.elem_type), "shape": shape}


def describe_weight(tensor: onnx.TensorProto, folder: Path | None, channel_axis: int | None = None) -> dict[str, Any]:
    """name, dtype, shape, size and statistics of a weight; of one whose values were stripped, no statistics."""
    stripped = any(p.key == STRIPPED for p in tensor.metadata_props)
    array = np.empty(0, object) if stripped else read_tensor(tensor, folder)
    return {
        "name": tensor.name,
        "dtype": dtype_name(tensor.data_type),
        "shape": list(tensor.dims),
        "bytes": _stored_bytes(tensor, array),
        "external": tensor.data_location == onnx.TensorProto.EXTERNAL,
        "stripped": stripped,
        **statistics(array, channel_axis),
    }


def describe_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> list[dict[str, Any]]:
    """The same of arrays by name, such as an engine's weights or those of a file."""
    return [
        {
            "name": name, "dtype": str(array.dtype), "shape": list(array.shape), "bytes": int(array.nbytes),
            "external": False, "stripped": False, **statistics(array, 0 if array.ndim > 2 else None),
        }
        for name, array in arrays.items()
    ]  # fmt: skip


def _stored_bytes(tensor: onnx.TensorProto, array: np.ndarray[Any, Any]) -> int:
    if array.dtype == object:
        return sum(len(str(s).encode()) for s in array.reshape(-1))
    name = dtype_name(tensor.data_type)
    bits = 4 if name in ("int4", "uint4", "float4e2m1") else 2 if name in ("int2", "uint2") else array.itemsize * 8
    return math.ceil(array.size * bits / 8)
