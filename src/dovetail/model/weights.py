"""The weights of a model: arrays by name, read where they lie; and protos without their large ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dovetail.core.errors import ModelError
from dovetail.frontend.reader import element_type, read_tensor

Array = np.ndarray[Any, Any]

LARGE_BYTES = 1024
"""Tensors of at least this size count as weights that are better kept out of protos."""


class Weights(Mapping[str, Array]):
    """The initializers of a model by name, as read-only arrays; those in other files are memory-mapped when they are read.

    `weights[name] = array` replaces (or adds) an initializer in memory; its type is the array's.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path | None) -> None:
        self._graph, self._folder = model.graph, folder
        self._places: dict[str, int] = {}

    def __getitem__(self, name: str) -> Array:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        array = read_tensor(found, self._folder)
        array.flags.writeable = False
        return array

    def __setitem__(self, name: str, value: Array) -> None:
        found = self._find(name)
        array = np.asarray(value)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        if found is None:
            self._graph.initializer.append(tensor)
        else:
            found.CopyFrom(tensor)

    def __iter__(self) -> Iterator[str]:
        return (t.name for t in self._graph.initializer)

    def __len__(self) -> int:
        return len(self._graph.initializer)

    def nbytes(self, name: str) -> int:
        """Size of a weight, without reading it."""
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return stored_bytes(found)

    def _find(self, name: str) -> onnx.TensorProto | None:
        """The tensor of that name, which may have moved since it was asked for last."""
        tensors = self._graph.initializer
        place = self._places.get(name, len(tensors))
        if place >= len(tensors) or tensors[place].name != name:
            self._places = {t.name: i for i, t in enumerate(tensors)}
            place = self._places.get(name, len(tensors))
        return tensors[place] if place < len(tensors) else None


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Size of a tensor's data in a file; strings count as nothing."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return 0
    bits = element_type(tensor.data_type, f"initializer {tensor.name!r}").bits
    return (math.prod(map(int, tensor.dims)) * bits + 7) // 8


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's data is in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, and those in attributes, of subgraphs and functions too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)


def skeleton(model: onnx.ModelProto, least: int = LARGE_BYTES) -> onnx.ModelProto:
    """A copy without the main graph's initializers of at least `least` bytes, which are never copied."""
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if field.name in ("opset_import", "metadata_props", "functions", "training_info", "configuration"):
            getattr(copy, field.name).extend(value)
        else:
            setattr(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name == "initializer":
            copy.graph.initializer.extend(t for t in value if stored_bytes(t) < least)
        elif isinstance(value, str | bytes):
            setattr(copy.graph, field.name, value)
        else:
            getattr(copy.graph, field.name).extend(value)
    return copy


def with_weights_as_inputs(model: onnx.ModelProto, least: int = LARGE_BYTES) -> onnx.ModelProto:
    """A small model of the same graph: large weights are inputs. For tools that look at types alone."""
    small = skeleton(model, least)
    inputs = {v.name for v in small.graph.input}
    for tensor in model.graph.initializer:
        if stored_bytes(tensor) >= least and tensor.name not in inputs:
            small.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return small


def load_small(model: onnx.ModelProto, folder: Path | None, below: int = LARGE_BYTES) -> None:
    """Move external tensors smaller than `below` bytes, and all that are no initializers of the main graph, into the model.

    Raises:
        ModelError: a file is missing or too short.
    """
    large = [t for t in model.graph.initializer if stored_bytes(t) >= below]  # held, so that the identities below mean these
    kept = set(map(id, large))
    for tensor in all_tensors(model):
        if is_external(tensor) and id(tensor) not in kept:
            read_in(tensor, folder)


def read_in(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """Put a tensor's external data into it.

    Raises:
        ModelError: the file is missing or too short.
    """
    if not is_external(tensor):
        return
    array = read_tensor(tensor, folder)
    loaded = numpy_helper.from_array(np.asarray(array), tensor.name)
    if loaded.data_type != tensor.data_type:
        raise ModelError(f"initializer {tensor.name!r}: got element type {tensor.data_type}, which this release cannot load")
    if tensor.doc_string:
        loaded.doc_string = tensor.doc_string
    tensor.CopyFrom(loaded)
