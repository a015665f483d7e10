"""`dovetail inspect` of an ONNX model."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.cli import output
from dovetail.frontend.reader import dtype_name, read_model, read_tensor

_SHOWN = 20
_CHUNK = 1 << 20


def inspect_model(args: argparse.Namespace) -> int:
    """Print inputs, outputs, operators and weights."""
    model, folder = read_model(args.file)
    data = describe(model, folder)
    output.show(args, {"model": args.file, **data}, _text(args, data))
    return 0


def describe(model: onnx.ModelProto, folder: Path | None) -> dict[str, Any]:
    """Everything that inspect shows, with stable keys."""
    weights = list(_weights(model.graph))
    names = {t.name for t in weights}
    operators = Counter(_operators(model.graph.node))
    return {
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "opsets": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "functions": [f"{f.domain}:{f.name}" for f in model.functions],
        "inputs": [_value(v) for v in model.graph.input if v.name not in names],
        "outputs": [_value(v) for v in model.graph.output],
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "nodes": sum(operators.values()),
        "weights": [_describe_weight(t, folder) for t in weights],
    }


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and tensors of Constant nodes, of subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                tensor = onnx.TensorProto()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                yield tensor
            for inner in _graphs(attribute):
                yield from _weights(inner)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _operators(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from _operators(inner.node)


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.WhichOneof("value") or "untyped"
    if kind != "tensor_type":
        return {"name": value.name, "dtype": kind.removesuffix("_type"), "shape": None}
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype_name(tensor.elem_type), "shape": shape}


def _describe_weight(tensor: onnx.TensorProto, folder: Path | None) -> dict[str, Any]:
    array = read_tensor(tensor, folder)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    return {
        "name": tensor.name,
        "dtype": dtype_name(tensor.data_type),
        "shape": list(tensor.dims),
        "bytes": _stored_bytes(tensor, array),
        "external": external,
        **statistics(array),
    }


def _stored_bytes(tensor: onnx.TensorProto, array: np.ndarray[Any, Any]) -> int:
    if array.dtype == object:
        return sum(len(str(s).encode()) for s in array.reshape(-1))
    name = dtype_name(tensor.data_type)
    bits = 4 if name in ("int4", "uint4", "float4e2m1") else 2 if name in ("int2", "uint2") else array.itemsize * 8
    return math.ceil(array.size * bits / 8)


def statistics(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """min, max, mean, std over finite elements, and counts of zeros, NaN and infinities; None for strings.

    Works through the array in pieces, so a memory-mapped weight is never copied whole.
    """
    empty: dict[str, Any] = dict.fromkeys(("min", "max", "mean", "std"))
    if array.dtype == object or array.dtype.kind in "SU":
        return empty | {"zeros": None, "nan": None, "inf": None}
    flat = array.reshape(-1)
    low, high, total, squares, count = math.inf, -math.inf, 0.0, 0.0, 0
    zeros = nan = inf = 0
    shift: float | None = None
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        wide = chunk.real.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        nan += int(np.isnan(wide).sum())
        inf += int(np.isinf(wide).sum())
        zeros += int((wide == 0).sum())
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            # Sums around the first piece's mean do not cancel.
            shift = float(finite.mean()) if shift is None else shift
            total += float((finite - shift).sum())
            squares += float(np.square(finite - shift).sum())
            count += finite.size
    counts = {"zeros": zeros, "nan": nan, "inf": inf}
    if not count or shift is None:
        return empty | counts
    mean = total / count
    std = math.sqrt(max(0.0, squares / count - mean * mean))
    return {"min": low, "max": high, "mean": shift + mean, "std": std, **counts}


def _text(args: argparse.Namespace, data: dict[str, Any]) -> str:
    opsets = ", ".join(f"{k} {v}" for k, v in data["opsets"].items())
    total = sum(w["bytes"] for w in data["weights"])
    lines = [
        f"{args.file}: IR version {data['ir_version']}, opset {opsets}" + (f", by {data['producer']}" if data["producer"] else ""),
        *(f"  input   {v['name']}: {v['dtype']}{output.shape_text(v['shape'])}" for v in data["inputs"]),
        *(f"  output  {v['name']}: {v['dtype']}{output.shape_text(v['shape'])}" for v in data["outputs"]),
        "",
        output.table(["operator", "nodes"], [*data["operators"].items(), ("total", data["nodes"])]),
    ]
    if data["functions"]:
        lines.append("functions: " + ", ".join(data["functions"]))
    weights = data["weights"] if args.weights else sorted(data["weights"], key=lambda w: -w["bytes"])[:_SHOWN]
    if weights:
        lines += ["", output.table(_HEAD, [_row(w) for w in weights])]
    left = len(data["weights"]) - len(weights)
    more = f"; {left} more with --weights" if left else ""
    lines.append(f"{len(data['weights'])} weights, {output.size(total)}{more}")
    return "\n".join(lines)


_HEAD = ("weight", "dtype", "shape", "size", "min", "max", "mean", "std", "zeros", "nan/inf")


def _row(weight: dict[str, Any]) -> list[str]:
    values = ["" if weight[k] is None else f"{weight[k]:.4g}" for k in ("min", "max", "mean", "std")]
    bad = "" if weight["nan"] is None else f"{weight['nan']}/{weight['inf']}"
    zeros = "" if weight["zeros"] is None else str(weight["zeros"])
    size = output.size(weight["bytes"]) + (" ext" if weight["external"] else "")
    return [weight["name"], weight["dtype"], output.shape_text(weight["shape"]), size, *values, zeros, bad]
