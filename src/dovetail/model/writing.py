"""Writing ONNX files whole or not at all; large weights go from file to file in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx

from dovetail.core.errors import ModelError, UsageError
from dovetail.core.files import replacing
from dovetail.frontend.reader import element_type, read_tensor
from dovetail.model.weights import all_tensors, is_external, read_in, skeleton, stored_bytes

PROTO_LIMIT = (1 << 31) - 1
"""The most bytes that protobuf writes as one message."""

_CHUNK = 8 << 20
_PAGE, _LINE = 4096, 64


def write_model(model: onnx.ModelProto, folder: Path | None, path: Path, external: bool | None = None) -> onnx.ModelProto | None:
    """Write a model, whose external weights are in `folder`.

    Args:
        external: weights of 1 KiB and more go into PATH.data; default: where they were external, or one file cannot hold them.

    Returns:
        The model as it was written, where its weights are in PATH.data; None where they are in it.

    Raises:
        UsageError: a folder that does not exist; external=False for more than 2 GiB.
        ModelError: a weight cannot be read.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"{path}: got a path in a folder that does not exist, or a folder, expected a file to write")
    size = model.ByteSize() + sum(stored_bytes(t) for t in all_tensors(model) if is_external(t))
    if external is None:
        external = size > PROTO_LIMIT or any(map(is_external, all_tensors(model)))
    if not external:
        if size > PROTO_LIMIT:
            raise UsageError(f"{path}: got {size} bytes, expected at most 2 GiB in one file; leave weights external")
        whole = model
        if any(map(is_external, all_tensors(model))):
            whole = onnx.ModelProto()
            whole.CopyFrom(model)
            for tensor in all_tensors(whole):
                read_in(tensor, folder)
        with replacing(path) as file:
            file.write(whole.SerializeToString())
        return None
    written = skeleton(model)
    data = path.with_name(f"{path.name}.data")
    with replacing(path) as file, replacing(data) as weights:
        for tensor in all_tensors(written):
            read_in(tensor, folder)
        kept = {t.name: t for t in written.graph.initializer}
        del written.graph.initializer[:]
        for tensor in model.graph.initializer:  # in their order
            if tensor.name in kept:
                added = written.graph.initializer.add()
                added.CopyFrom(_loaded(tensor, folder))
            else:
                _reference(written.graph.initializer.add(), tensor, data.name, *_append(weights, tensor, folder))
        file.write(written.SerializeToString())
    return written


def _loaded(tensor: onnx.TensorProto, folder: Path | None) -> onnx.TensorProto:
    if not is_external(tensor):
        return tensor
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    read_in(copy, folder)
    return copy


def _append(file: BinaryIO, tensor: onnx.TensorProto, folder: Path | None) -> tuple[int, int]:
    """Write a tensor's data at an aligned place; (offset, length)."""
    length = stored_bytes(tensor)
    align = _PAGE if length >= (1 << 20) else _LINE
    file.write(bytes(-file.tell() % align))
    offset = file.tell()
    if is_external(tensor):
        read_tensor(tensor, folder)  # refuses what is truncated or leaves the folder
        info = {e.key: e.value for e in tensor.external_data}
        with open(Path(folder or ".") / info["location"], "rb") as source:
            source.seek(int(info.get("offset", 0)))
            left = length
            while left:
                piece = source.read(min(left, _CHUNK))
                if not piece:
                    raise ModelError(f"initializer {tensor.name!r}: its file {info['location']!r} ended early; is it being written?")
                file.write(piece)
                left -= len(piece)
    elif tensor.HasField("raw_data"):
        file.write(tensor.raw_data)
    else:
        packed = onnx.numpy_helper.from_array(read_tensor(tensor, None), tensor.name)
        file.write(packed.raw_data)
    if file.tell() - offset != length:
        kind = element_type(tensor.data_type, tensor.name)
        raise ModelError(f"initializer {tensor.name!r}: got {file.tell() - offset} bytes, expected {length} for {kind}{list(tensor.dims)}")
    return offset, length


def _reference(result: onnx.TensorProto, tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    result.name, result.data_type = tensor.name, tensor.data_type
    if tensor.doc_string:
        result.doc_string = tensor.doc_string
    result.dims.extend(tensor.dims)
    result.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = result.external_data.add()
        entry.key, entry.value = key, str(value)
