"""`dovetail inspect --tensor NAME`, and `dovetail inspect` of a file of arrays."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from dovetail.api.weight_sources import open_weights
from dovetail.cli import options, output
from dovetail.cli.inspect_weights import suspicions_text, tensor_text, weights_text
from dovetail.core.dtypes import DTYPES
from dovetail.core.errors import Error, UsageError
from dovetail.engine.file import EngineFile
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import read_model, read_tensor
from dovetail.ir.graph import Graph, Module, Value
from dovetail.ir.parser import parse_module
from dovetail.ir.types import TensorType
from dovetail.model.description import (
    describe_arrays,
    describe_value,
    describe_weight,
    weight_tensors,
)
from dovetail.model.layers import channel_axes, plain_dim
from dovetail.model.model import Model
from dovetail.model.proto_graph import subgraphs
from dovetail.model.statistics import suspicions

Array = np.ndarray[Any, Any]

_VALUES = 64
_NEAR = 5


def inspect_arrays(args: argparse.Namespace) -> int:
    """Print the arrays of a file with their statistics."""
    weights = describe_arrays(open_weights(args.file))
    found = [s.json() for s in suspicions(weights)]
    text = [f"{args.file}: {len(weights)} arrays", *suspicions_text(found, weights), *weights_text(weights, args.weights)]
    output.show(args, {"arrays": args.file, "suspicious": found, "weights": weights}, "\n".join(text))
    return 0


def inspect_tensor(args: argparse.Namespace, kind: str) -> int:
    """Print one tensor of a model, an engine or a file of arrays."""
    data = {"model": _of_model, "engine": _of_engine, "arrays": _of_arrays}[kind](args)
    array = data.pop("array", None)
    if array is not None:
        data["values"] = [_plain(v) for v in array.reshape(-1)[:_VALUES].tolist()]
    head = [f"{data['name']}: {data['dtype']}{output.shape_text(data['shape'])}, {data['role']}"]
    if data.get("producer"):
        head.append(f"  made by   {data['producer']['name']} ({data['producer']['op']})")
    head += [f"  read by   {n['name']} ({n['op']})" for n in data.get("consumers", ())]
    statistics = data.get("statistics")
    output.show(args, {"file": args.file, **data}, "\n".join([*head, *(tensor_text(statistics, array) if statistics else [])]))
    return 0


def _plain(value: Any) -> Any:
    """A value as JSON has it: what is not finite as text."""
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)


# ---------------------------------------------------------------------- an ONNX model
def _of_model(args: argparse.Namespace) -> dict[str, Any]:
    model, folder = read_model(args.file)
    name = args.tensor
    producer, consumers = None, []
    for node in _nodes(model.graph):
        entry = {"name": node.name or next((o for o in node.output if o), node.op_type), "op": node.op_type}
        if name in node.output:
            producer = entry
        if name in node.input:
            consumers.append(entry)
    inputs = {v.name: v for v in model.graph.input}
    outputs = {v.name for v in model.graph.output}
    weight = next((t for t in weight_tensors(model.graph) if t.name == name), None)
    if weight is not None:
        found = describe_weight(weight, folder, channel_axes(model.graph).get(name))
        array = None if found["stripped"] else read_tensor(weight, folder)
        return {
            "name": name, "dtype": found["dtype"], "shape": found["shape"], "role": _role("a weight", name in outputs),
            "producer": producer, "consumers": consumers, "statistics": found, "array": array,
        }  # fmt: skip
    if producer is None and name not in inputs:
        known = {n for node in _nodes(model.graph) for n in (*node.input, *node.output) if n} | set(inputs)
        _no_such(name, args.file, known)
    role = _role("an input" if name in inputs else "computed by a node", name in outputs)
    return {"name": name, **_type_of(args, model, folder), "role": role, "producer": producer, "consumers": consumers}


def _role(what: str, is_output: bool) -> str:
    return f"{what} and an output of the model" if is_output else what


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner)


def _type_of(args: argparse.Namespace, model: onnx.ModelProto, folder: Path | None) -> dict[str, Any]:
    """dtype and shape as import finds them out; of a model that is not supported, as the model states them."""
    try:
        module = import_onnx(Model(model, folder), options.shapes(args))
    except Error:
        if args.shapes:
            raise
    else:
        value = next((v for v in _values(module.main) if v.name == args.tensor), None)
        if value is not None and isinstance(value.type, TensorType):
            return _type(value)
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    stated = next((describe_value(v) for v in infos if v.name == args.tensor), {"dtype": "type not known ", "shape": None})
    return {"dtype": stated["dtype"], "shape": stated["shape"]}


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.values()
    for node in graph.nodes:
        for region in node.regions:
            yield from _values(region)


def _type(value: Value) -> dict[str, Any]:
    return {"dtype": value.tensor.dtype.name, "shape": [plain_dim(d) for d in value.tensor.shape]}


# ---------------------------------------------------------------------- an engine, a file of arrays
def _of_engine(args: argparse.Namespace) -> dict[str, Any]:
    file = EngineFile(args.file)
    weights = stored_weights(file)
    module: Module = parse_module(file.graph)
    values = {v.name: v for v in _values(module.main)}
    value = values.get(args.tensor)
    if value is None and args.tensor not in weights:
        _no_such(args.tensor, args.file, {n for n in (*weights, *values) if not n.startswith("~")})
    data: dict[str, Any] = {"name": args.tensor, "producer": None, "consumers": []}
    if value is not None and isinstance(value.type, TensorType):
        data |= _type(value)
        if value.producer is not None and value.producer.op != "Constant":
            data["producer"] = {"name": ", ".join(value.producer.origin) or value.producer.op, "op": value.producer.op}
        data["consumers"] = [{"name": ", ".join(n.origin) or n.op, "op": n.op} for n in value.consumers]
        role = "an input" if data["producer"] is None and value.producer is None else "computed by a node"
        data["role"] = _role(role, value.is_output)
    if args.tensor in weights:
        return data | _array(args.tensor, weights[args.tensor])
    return {"dtype": "no tensor", "shape": None, "role": "computed by a node"} | data


def stored_weights(file: EngineFile) -> Mapping[str, Array]:
    """The weights that an engine file holds; of one without weights those few that it keeps."""
    weights = file.weights()
    return file.fixed_weights() if weights is None else weights


def _of_arrays(args: argparse.Namespace) -> dict[str, Any]:
    weights = open_weights(args.file)
    if args.tensor not in weights:
        _no_such(args.tensor, args.file, weights)
    return {"name": args.tensor} | _array(args.tensor, weights[args.tensor])


def _array(name: str, array: Array) -> dict[str, Any]:
    (found,) = describe_arrays({name: array})
    names = {d.numpy: d.name for d in DTYPES.values()}
    kind = names.get(array.dtype, str(array.dtype))
    return {"dtype": kind, "shape": list(array.shape), "role": "a weight", "statistics": found, "array": array}


def _no_such(name: str, where: str, known: Iterable[str]) -> NoReturn:
    near = difflib.get_close_matches(name, sorted(known), _NEAR, 0.4)
    inside = [k for k in sorted(known) if name and name in k][:_NEAR]
    some = ", ".join(dict.fromkeys([*inside, *near])) or ", ".join(sorted(known)[:_NEAR])
    raise UsageError(f"--tensor: got {name!r}, expected a tensor of {where}, such as {some}")
