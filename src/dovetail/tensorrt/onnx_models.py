"""Models as the parser's and the refitter's clients give them: bytes or files, and values for single initializers."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import ModelError
from dovetail.frontend.reader import element_type, read_model
from dovetail.runtime.arrays import at_address


def model_of(model: Any, path: str | None) -> tuple[onnx.ModelProto, Path | None]:
    """A model and the folder of its external data.

    Args:
        model: a buffer, or the path of a file.
        path: of the model's file, for a buffer.

    Raises:
        ModelError: no model.
        TypeError: neither a buffer nor a path.
    """
    if isinstance(model, Path):
        return read_model(model)
    if isinstance(model, str):
        raise TypeError("model: got a str, expected the bytes of a serialized model; parse_from_file takes a path")
    proto, _ = read_model(bytes(memoryview(model)))
    return proto, None if path is None else Path(path).parent


def given_array(model: onnx.ModelProto, name: str, data: Any, size: int) -> np.ndarray[Any, Any]:
    """The values for an initializer of a model, flat.

    Args:
        data: the address of the values in host memory, or a buffer.
        size: in bytes.

    Raises:
        ModelError: the model has no such initializer, or one of another size.
    """
    tensor = next((t for t in model.graph.initializer if t.name == name), None)
    if tensor is None:
        raise ModelError(f"initializer {name!r}: the model has none of that name")
    kind = element_type(tensor.data_type, f"initializer {name!r}").numpy
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if operator.index(size) != count * kind.itemsize:
        raise ModelError(f"initializer {name!r}: got {size} bytes, expected {count * kind.itemsize}")
    try:
        address = operator.index(data)
    except TypeError:
        return np.frombuffer(data, kind, count).reshape(tuple(tensor.dims))
    return at_address(address, tuple(tensor.dims), kind)
