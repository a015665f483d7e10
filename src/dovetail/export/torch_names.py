"""Names in an exported model: weights as in the state dict, nodes and values by the place in the module that they come from."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
from onnx import numpy_helper

from dovetail.core.errors import ExportError
from dovetail.model.proto_graph import all_nodes, subgraphs, unique_name

_SCOPES = "pkg.torch.onnx.name_scopes"
_PREFIXES = ("pkg.torch.", "pkg.onnxscript.", "namespace")


def own_weights(proto: onnx.ModelProto, weights: Mapping[str, Any]) -> None:
    """Give initializers the names of the module's parameters and buffers.

    TorchScript's exporter keeps one of several weights with equal values and copies it by Identity nodes: each gets its own again,
    so that new values can be given to one of them. Tied weights stay one initializer.
    """
    graph = proto.graph
    initializers = {t.name: t for t in graph.initializer}
    kept = []
    for node in graph.node:
        source = node.input[0] if node.input else ""
        result = node.output[0] if node.output else ""
        if node.op_type == "Identity" and source in initializers and result in weights and result not in initializers:
            if _same(weights, source, result):
                _rename(graph, {result: source})
            else:
                graph.initializer.append(numpy_helper.from_array(array_of(weights[result]), result))
                initializers[result] = graph.initializer[-1]
            continue
        kept.append(node)
    if len(kept) < len(graph.node):
        _keep(graph, kept)
    strange = [t for t in graph.initializer if t.name not in weights and t.raw_data and len(t.raw_data) > 8]
    missing = [name for name in weights if name not in initializers]
    if strange and missing:
        by_contents: dict[Any, list[str]] = {}
        for name in missing:
            array = array_of(weights[name])
            by_contents.setdefault((array.shape, _digest(array.tobytes())), []).append(name)
        renames = {}
        for tensor in strange:
            names = by_contents.get((tuple(tensor.dims), _digest(tensor.raw_data)), [])
            if len(names) == 1:
                renames[tensor.name] = names.pop()
        _rename(graph, renames)


def _same(weights: Mapping[str, Any], a: str, b: str) -> bool:
    """Whether two names are of one tensor."""
    first, second = weights.get(a), weights[b]
    return first is not None and first.data_ptr() == second.data_ptr() and first.shape == second.shape and first.numel() > 0


def array_of(tensor: Any) -> Any:
    """A tensor as a NumPy array; bfloat16 and the like in their ml_dtypes types."""
    from dovetail.core.dtypes import DTYPES

    tensor = tensor.detach().cpu().contiguous()
    name = str(tensor.dtype).rpartition(".")[2]
    narrow = {"bfloat16": "bf16", "float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2"}.get(name)
    # The values are of the narrow type, so the way through fp32 is exact.
    return tensor.numpy() if narrow is None else tensor.float().numpy().astype(DTYPES[narrow].numpy)


def without_prefix(proto: onnx.ModelProto, module: str) -> None:
    """Take the name of an outer module's only part out of the names of weights, values and nodes."""
    graph, start, inside = proto.graph, f"{module}.", f"/{module}/"
    names = {t.name: t.name.removeprefix(start) for t in graph.initializer}
    for node in all_nodes(graph):
        node.name = node.name.replace(inside, "/")
        names |= {name: name.replace(inside, "/").removeprefix(start) for name in (*node.input, *node.output)}
    names |= {v.name: v.name.replace(inside, "/").removeprefix(start) for v in graph.output}
    _rename(graph, {old: new for old, new in names.items() if old != new})


def name_border(proto: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name inputs and outputs, in order.

    Raises:
        ExportError: there are more or fewer of them.
    """
    known = {t.name for t in proto.graph.initializer}
    for what, values, names in (
        ("inputs", [v for v in proto.graph.input if v.name not in known], inputs), ("outputs", list(proto.graph.output), outputs),
    ):  # fmt: skip
        if len(values) != len(names):
            raise ExportError(
                f"export: got {len(values)} {what} ({', '.join(v.name for v in values)}), expected {len(names)} ({', '.join(names)}), as "
                "the module has tensors; return tensors, and tuples or dicts of them, and give each input once"
            )
        renames = {v.name: name for v, name in zip(values, names, strict=True) if v.name != name}
        if len({v.name for v in values}) < len(values):
            raise ExportError(f"export: two {what} are one value ({', '.join(v.name for v in values)}); return a copy of it (x + 0)")
        taken = _value_names(proto.graph) - set(renames)
        aside = {name: unique_name(f"{name}_value", taken) for name in renames.values() if name in taken}
        _rename(proto.graph, aside)
        _rename(proto.graph, renames)


def name_nodes(proto: onnx.ModelProto) -> None:
    """Call nodes and values by module and operator, such as "/layer1/0/conv1/Conv", where the exporter says whence they come.

    What exporters note of their own work leaves the model; it names files of the machine.
    """
    graph = proto.graph
    border = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    taken: set[str] = set()
    renames: dict[str, str] = {}
    for node in graph.node:
        scopes = _scopes(node)
        if scopes is not None:
            node.name = unique_name(f"/{'/'.join([*scopes, node.op_type])}", taken)
            renames |= {old: f"{node.name}_output_{i}" for i, old in enumerate(node.output) if old and old not in border}
        elif node.name:
            node.name = unique_name(node.name, taken)
    _rename(graph, renames)
    for owner in (proto, graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *all_nodes(graph)):
        rest = [p for p in owner.metadata_props if not p.key.startswith(_PREFIXES)]
        if len(rest) < len(owner.metadata_props):
            copies = [onnx.StringStringEntryProto(key=p.key, value=p.value) for p in rest]
            del owner.metadata_props[:]
            owner.metadata_props.extend(copies)


def name_sizes(proto: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Call dynamic sizes by the user's names wherever the exporter's own are used.

    Raises:
        ExportError: an axis that was to be dynamic has a fixed size.
    """
    renames: dict[str, str] = {}
    for value in proto.graph.input:
        for axis, name in axes.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if not dim.HasField("dim_param"):
                raise ExportError(
                    f"export: axis {axis} of {value.name!r} is {dim.dim_value} in the ONNX model, expected it open, called {name!r}; "
                    "a program keeps what torch.export.export(…, dynamic_shapes=…) was told; a module may fix a size by what it computes"
                )
            if dim.dim_param != name:
                renames[dim.dim_param] = name
    if not renames:
        return
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = _renamed_size(dim.dim_param, renames)


def drop_zero_biases(proto: onnx.ModelProto, weights: Mapping[str, Any]) -> None:
    """Convolutions without a bias are written with one of zeros: leave it out."""
    arrays = {t.name: t for t in proto.graph.initializer if t.name not in weights}
    for node in proto.graph.node:
        with_bias = node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3 and node.input[2] in arrays
        if with_bias and not numpy_helper.to_array(arrays[node.input[2]]).any():
            del node.input[2]
    drop_unused_weights(proto, ())


def drop_unused_weights(proto: onnx.ModelProto, keep: Iterable[str]) -> list[str]:
    """Remove initializers that nothing reads; returns their names."""
    used = {name for node in all_nodes(proto.graph) for name in node.input} | {v.name for v in proto.graph.output} | set(keep)
    for node in all_nodes(proto.graph):
        for inner in subgraphs(node):
            used |= {v.name for v in inner.output}
    dead = [t.name for t in proto.graph.initializer if t.name not in used]
    if dead:
        gone = set(dead)
        rest = [t for t in proto.graph.initializer if t.name not in gone]
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in rest]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(copies)
    return dead


def _scopes(node: onnx.NodeProto) -> list[str] | None:
    """Parts of the module path of a node, as the dynamo exporter notes it: its last scope is the operator's own."""
    noted = next((p.value for p in node.metadata_props if p.key == _SCOPES), None)
    if noted is None:
        return None
    try:
        scopes = [s for s in ast.literal_eval(noted)[:-1] if isinstance(s, str) and s and not s.startswith("_empty_nn_module")]
    except (ValueError, SyntaxError):
        return None
    return [part for part in scopes[-1].split(".") if part] if scopes else []


def _renamed_size(text: str, renames: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda m: renames.get(m[0], m[0]), text)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _keep(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _value_names(graph: onnx.GraphProto) -> set[str]:
    names = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    return names.union(*((*n.input, *n.output) for n in all_nodes(graph)))


def _rename(graph: onnx.GraphProto, renames: Mapping[str, str]) -> None:
    """Rename values of the main graph wherever they are written or read, in subgraphs too (exporters use each name once)."""
    if not renames:
        return
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renames.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                if name in renames:
                    field[i] = renames[name]
        for inner in subgraphs(node):
            _rename(inner, renames)
