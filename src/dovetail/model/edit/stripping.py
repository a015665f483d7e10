"""Models without the values of their weights, and the values put back.

A stripped weight keeps its name, type and shape; in the place of its values it has their SHA-256. Other tools refuse such a file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dovetail.core.errors import ModelError, PlanFormatError, UsageError
from dovetail.engine import tensors as safetensors
from dovetail.frontend.reader import STRIPPED, OnnxSource, read_model, read_tensor
from dovetail.model.edit.names import nearest
from dovetail.model.model import Model
from dovetail.model.weights import LARGE_BYTES, load_small, stored_bytes

Array = np.ndarray[Any, Any]


def digest(value: Array) -> str:
    """SHA-256 of an array's element type, shape and contents, whatever its order in memory."""
    found = hashlib.sha256(f"{value.dtype.name} {list(value.shape)}\n".encode())
    if value.dtype == object:  # strings
        found.update("\0".join(map(str, value.reshape(-1))).encode())
        return found.hexdigest()
    found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b"")
    return found.hexdigest()


def stripped(model: onnx.ModelProto) -> dict[str, str]:
    """SHA-256 of the weights without values, by name."""
    return {t.name: p.value for t in model.graph.initializer for p in t.metadata_props if p.key == STRIPPED}


def strip(model: Model, *, least: int = LARGE_BYTES) -> Model:
    """The model without the values of its weights of at least `least` bytes (1 KiB is the least): kilobytes, to be restored later.

    Raises:
        UsageError: no weight is that large, or they are stripped already.
        ModelError: a weight cannot be read.
    """
    if stripped(model.proto):
        raise UsageError("strip: the model is stripped already; restore it first")
    if least < LARGE_BYTES:
        raise UsageError(f"strip: got {least} bytes, expected at least {LARGE_BYTES}: types depend on smaller tensors, on sizes and axes")
    proto = onnx.ModelProto()
    for field, value in model.proto.ListFields():  # without the weights, whose values are not copied
        if field.name != "graph":
            part = onnx.ModelProto()
            target = getattr(part, field.name)
            target.extend(value) if hasattr(target, "extend") else setattr(part, field.name, value)
            proto.MergeFrom(part)
    for field, value in model.proto.graph.ListFields():
        if field.name == "initializer":
            for tensor in value:
                outside = tensor.data_location == onnx.TensorProto.EXTERNAL and stored_bytes(tensor) >= LARGE_BYTES
                if outside or stored_bytes(tensor) >= least:
                    bare = proto.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                    if tensor.doc_string:
                        bare.doc_string = tensor.doc_string
                    bare.metadata_props.add(key=STRIPPED, value=digest(read_tensor(tensor, model.folder)))
                else:
                    proto.graph.initializer.append(tensor)
        elif isinstance(value, str | bytes):
            setattr(proto.graph, field.name, value)
        else:
            getattr(proto.graph, field.name).extend(value)
    if not stripped(proto):
        raise UsageError(f"strip: no weight has {least} bytes or more: there is nothing to strip")
    load_small(proto, model.folder)
    return Model(proto)


def restore(model: Model, weights: Any, *, names: Mapping[str, str] | None = None, verify: bool = True) -> Model:
    """The stripped model with its weights' values again.

    Args:
        weights: the original model (path, proto or `Model`), a .safetensors or .npz file, or arrays by name.
        names: what weights are called there, where that is not as in the model.
        verify: refuse values whose SHA-256 is not that of the values that were stripped.

    Raises:
        UsageError: the model is not stripped, or weights are missing or differ in type, shape or values: all of them are listed.
        ModelError: the weights cannot be read.
    """
    wanted = stripped(model.proto)
    if not wanted:
        raise UsageError("restore: the model has all its weights: there is nothing to restore")
    unknown = [name for name in names or {} if name not in wanted]
    if unknown:
        raise UsageError(f"restore: got a name for {unknown[0]!r}, which is not stripped; {nearest(unknown[0], wanted)}")
    found, folder = _tensors(weights)
    result = model.copy()
    problems = []
    for tensor in result.proto.graph.initializer:
        if tensor.name not in wanted:
            continue
        source = (names or {}).get(tensor.name, tensor.name)
        if source not in found:
            problems.append(f"{source!r} is missing; {nearest(source, found)}")
            continue
        given = found[source]
        problem = _problem(tensor, given, folder, wanted[tensor.name] if verify else None)
        if problem:
            problems.append(f"{source!r} {problem}")
        elif not problems:
            name, text = tensor.name, tensor.doc_string
            tensor.CopyFrom(given if isinstance(given, onnx.TensorProto) else numpy_helper.from_array(np.array(given, order="C"), name))
            tensor.name = name
            if text:
                tensor.doc_string = text
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        listed = "".join(f"\n  {p}" for p in problems[:20])
        raise UsageError(f"restore: {len(problems)} of {len(wanted)} weights do not fit:{listed}{more}")
    return Model(result.proto, folder or model.folder)


def _problem(tensor: onnx.TensorProto, given: onnx.TensorProto | Array, folder: Path | None, wanted: str | None) -> str | None:
    if isinstance(given, onnx.TensorProto) and stripped_tensor(given):
        return "is stripped there, too"
    array = read_tensor(given, folder) if isinstance(given, onnx.TensorProto) else given
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if array.dtype != kind or array.shape != tuple(tensor.dims):
        return f"is {array.dtype}{list(array.shape)}, expected {kind}{list(tensor.dims)}"
    if wanted is not None and digest(array) != wanted:
        return "has other values than were stripped (SHA-256 differs); --no-hash takes them all the same"
    return None


def stripped_tensor(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's values were stripped."""
    return any(p.key == STRIPPED for p in tensor.metadata_props)


def _tensors(source: Any) -> tuple[Mapping[str, onnx.TensorProto | Array], Path | None]:
    """Weights by name, and the folder of those that are in files of their own."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() in (".safetensors", ".npz"):
            return _arrays(path), None
    if isinstance(source, Mapping):
        return {name: np.asarray(value) for name, value in source.items()}, None
    if not isinstance(source, str | os.PathLike | bytes | onnx.ModelProto | OnnxSource):
        raise UsageError(f"restore: got a {type(source).__name__}, expected a model, a .safetensors or .npz file, or arrays by name")
    proto, folder = read_model(source)
    return {t.name: t for t in proto.graph.initializer}, folder


def _arrays(path: Path) -> dict[str, Array]:
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        return safetensors.read(memoryview(data), str(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read, {error.strerror or error}; check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile, PlanFormatError) as error:
        raise ModelError(f"{path}: got data that cannot be read ({error}); write the file again") from error
