"""Reading ONNX files: path, bytes, ModelProto, or a model of another library, with external data memory-mapped."""

from __future__ import annotations

import importlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import ModelError, UsageError
from dovetail.frontend.foreign_files import describe_file, describe_folder
from dovetail.ir.graph import Module


class Definition(ABC):
    """A model that is defined in Python instead of read."""

    @abstractmethod
    def module(self, shapes: ShapeOverride | None = None) -> Module:
        """A module of its own, with other input shapes where some are given."""


class OnnxSource(ABC):
    """Something that holds an ONNX model, or can be turned into one."""

    @property
    @abstractmethod
    def proto(self) -> onnx.ModelProto:
        """The model; external weights may still be in their files."""

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """Where the files of external weights are; None where it has none."""


ShapeOverride: TypeAlias = Mapping[str, Sequence[int | str]]
ModelSource: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxSource | Definition | Any
"""What `read_model` and `import_onnx` take; models of other libraries (`CONVERTERS`) are Any here."""

CONVERTERS = {
    "onnx_ir.Model": "dovetail.model.foreign:from_onnx_ir",
    "onnx_graphsurgeon.Graph": "dovetail.model.foreign:from_graphsurgeon",
    "keras.Model": "dovetail.export.from_tensorflow:tensorflow",
    "tensorflow.ConcreteFunction": "dovetail.export.from_tensorflow:tensorflow",
    "tensorflow.PolymorphicFunction": "dovetail.export.from_tensorflow:tensorflow",
}
"""Classes of other libraries ("package.Class") to the function ("module:name") that makes an `OnnxSource` of an instance.

The library is never imported to find out: who has an instance has imported it. The function is, when it is needed.
"""


def converter(source: Any) -> Callable[[Any], OnnxSource] | None:
    """What makes an `OnnxSource` of another library's object; None if it is of no class in `CONVERTERS`."""
    for base in type(source).__mro__:
        found = CONVERTERS.get(f"{base.__module__.partition('.')[0]}.{base.__name__}")
        if found is not None:
            module, _, name = found.partition(":")
            function: Callable[[Any], OnnxSource] = getattr(importlib.import_module(module), name)
            return function
    return None


def is_model(source: Any) -> bool:
    """Whether `import_onnx` takes it, as far as its type says."""
    return isinstance(source, str | os.PathLike | bytes | onnx.ModelProto | OnnxSource | Definition) or converter(source) is not None


def read_model(source: ModelSource) -> tuple[onnx.ModelProto, Path | None]:
    """(model, folder of its external data) from a path, serialized bytes, a ModelProto, or a model of `CONVERTERS`.

    Raises:
        ModelError: missing file, not an ONNX model, or no graph in it.
        UsageError: a network defined in Python, where only ONNX will do; or nothing that is a model.
    """
    folder: Path | None = None
    name = "model"
    if isinstance(source, Definition):
        raise UsageError(f"model: got a {type(source).__name__}, expected ONNX (path, bytes or ModelProto); this reads ONNX only")
    if not is_model(source):
        raise UsageError(
            f"model: got a {type(source).__name__}, expected a path, bytes, ModelProto, dovetail.Model, onnx_ir.Model or "
            "onnx_graphsurgeon.Graph"
        )
    convert = converter(source)
    if convert is not None:
        source = convert(source)
    if isinstance(source, OnnxSource):
        model, folder = source.proto, source.folder
    elif isinstance(source, onnx.ModelProto):
        model = source
    else:
        path: Path | None = None
        if isinstance(source, bytes):
            data = source
        else:
            path = Path(source)
            folder, name = path.parent, str(path)
            try:
                data = path.read_bytes()
            except IsADirectoryError:
                raise ModelError(f"{path}: {describe_folder(path)}") from None
            except OSError as error:
                raise ModelError(f"{path}: cannot be read, {error.strerror}; check the path") from error
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except (DecodeError, ValueError) as error:
            raise ModelError(f"{name}: {describe_file(path, data, str(error))}") from error
        if not data:
            raise ModelError(f"{name}: {describe_file(path, data, '')}")
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{name}: got no graph or no opset in it, expected an ONNX ModelProto; the file may be truncated")
    _check_names(model.graph)
    return model, folder


def _check_names(graph: onnx.GraphProto) -> None:
    """Refuse names that are not UTF-8, which protobuf hands out as bytes."""
    names = [v.name for field in (graph.input, graph.output, graph.initializer, graph.value_info) for v in field]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                _check_names(inner)
    damaged = next((name for name in names if not isinstance(name, str)), None)
    if damaged is not None:
        raise ModelError(f"model: got the name {damaged!r}, expected UTF-8 text; the file is damaged, export the model again")


STRIPPED = "dovetail.sha256"
"""Key of a tensor's metadata: its values were taken out (`dovetail edit strip`), and this is their SHA-256."""


def dtype_name(code: int) -> str:
    """ONNX's name of an element type, in lower case: float, bfloat16, float8e4m3fn, int4, string."""
    known: dict[int, str] = {v: k.lower() for k, v in onnx.TensorProto.DataType.items()}
    return known.get(code, f"unknown({code})")


def element_type(code: int, where: str) -> DType:
    """The DType of an ONNX element type code.

    Raises:
        ModelError: unknown code.
    """
    if code == onnx.TensorProto.STRING:
        return dtype("str")
    try:
        return dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{where}: got element type {code}, which this release does not know; upgrade onnx") from error


def read_tensor(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray[Any, Any]:
    """The array of a TensorProto; external data is memory-mapped, not read.

    Raises:
        ModelError: damaged tensor, missing external file, or a path that leaves the model's folder.
    """
    where = f"initializer {tensor.name!r}"
    kind = element_type(tensor.data_type, where)
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{where}: got shape {tuple(tensor.dims)}, expected no negative sizes; export the model again")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _read_external(tensor, kind, folder, where)
    if any(entry.key == STRIPPED for entry in tensor.metadata_props):
        raise ModelError(f"{where}: its values were stripped; put them back: dovetail edit restore MODEL --weights ORIGINAL -o NEW")
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{where}: got damaged data ({error}); export the model again") from error
    if kind.name == "str":
        array = np.array([s.decode() if isinstance(s, bytes) else s for s in array.reshape(-1)], object).reshape(array.shape)
    return np.asarray(array)


def _read_external(tensor: onnx.TensorProto, kind: DType, folder: Path | None, where: str) -> np.ndarray[Any, Any]:
    info = {e.key: e.value for e in tensor.external_data}
    location = info.get("location", "")
    if folder is None:
        raise ModelError(f"{where}: its data is in {location!r} beside the model, but the model came without a path; pass the path")
    path = folder / location
    if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{where}: external data at {location!r} leaves the model's folder; refusing to read it")
    count = math.prod(tensor.dims)
    sub_byte = kind.bits < 8
    length = (count * kind.bits + 7) // 8
    try:
        offset = int(info.get("offset", 0))
        size = path.stat().st_size
    except ValueError as error:
        raise ModelError(f"{where}: got offset {info.get('offset')!r}, expected an integer") from error
    except OSError as error:
        raise ModelError(f"{where}: external data file {path} cannot be read, {error.strerror}; put it beside the model") from error
    if offset < 0 or offset + length > size:
        raise ModelError(f"{where}: expected {length} bytes at {offset} of {path}, which has {size}; the file is truncated")
    if length == 0:
        return np.empty(tuple(tensor.dims), kind.numpy)
    raw = np.memmap(path, np.uint8, "r", offset, (length,))
    if sub_byte:
        copy = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=raw.tobytes())
        return np.asarray(numpy_helper.to_array(copy))
    return raw.view(kind.numpy).reshape(tuple(tensor.dims))
