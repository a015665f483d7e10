"""Where new weights come from: mappings, state dicts, safetensors, NPZ and ONNX files, all as arrays by name.

Tensors of other libraries are taken by what they can do (`detach`, `cpu`, `numpy`, DLPack); nothing is imported for them.
"""

from __future__ import annotations

import mmap
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dovetail.core.dtypes import DTYPES
from dovetail.core.errors import Error, PlanFormatError, RefitError
from dovetail.engine import tensors

if TYPE_CHECKING:  # whoever refits from arrays needs no onnx
    import onnx

Array = np.ndarray[Any, Any]
WeightSource: TypeAlias = "Mapping[str, Any] | str | os.PathLike[str] | onnx.ModelProto | Any"
"""A mapping from names to arrays or tensors, a path, a ModelProto, a `Model`, or anything with `state_dict()`."""

# Types that NumPy lacks, as torch names them.
_NARROW = {
    "bfloat16": "bf16", "float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2", "float8_e4m3fnuz": "f8e4m3fnuz",
    "float8_e5m2fnuz": "f8e5m2fnuz", "float8_e8m0fnu": "f8e8m0",
}  # fmt: skip


class Weights(Mapping[str, Array]):
    """Arrays by name, each converted when it is first asked for.

    `where` names the source in errors; `model` says that it is an ONNX model.
    """

    def __init__(self, values: Mapping[str, Any], where: str, model: bool = False) -> None:
        self._values, self.where, self.model = values, where, model
        self._arrays: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        found = self._arrays.get(name)
        if found is None:
            found = self._arrays[name] = as_array(self._values[name], f"{self.where}: weight {name!r}")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def given(self, name: str) -> Any:
        """The value as it was given, not converted."""
        return self._values[name]


def open_weights(source: WeightSource, *, numbered: bool = False) -> Weights:
    """The weights of a source.

    Args:
        numbered: the engine's model uses one name in several subgraphs ("w", "w#1"), so an ONNX source must be
            read in the order in which a build would.

    Raises:
        RefitError: it cannot be read, or is no kind of source.
        ModelError: a damaged ONNX model.
    """
    if isinstance(source, Weights):
        return source
    if isinstance(source, Mapping):
        return Weights(_flat(source), "weights")
    if type(source).__name__ == "ModelProto" or (hasattr(source, "proto") and hasattr(source, "folder")):
        return Weights(_of_model(source, numbered), "model", model=True)
    if isinstance(source, str | os.PathLike):
        return _of_file(Path(source), numbered)
    if callable(getattr(source, "state_dict", None)):
        return Weights(source.state_dict(), "state_dict")
    raise RefitError(
        f"refit: got {type(source).__name__} as weights, expected a mapping of names to arrays, a path (.safetensors, .npz, .onnx), "
        "a ModelProto or a state_dict"
    )


def as_array(value: Any, where: str) -> Array:
    """A value as a NumPy array: arrays and buffers as they are, tensors without their gradient and from the host.

    Raises:
        RefitError: it is nothing like an array.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "detach"):
            tensor = value.detach().cpu()
            kind = _NARROW.get(str(tensor.dtype).rpartition(".")[2])
            # The values are of the narrow type, so the way through fp32 is exact.
            return np.asarray(tensor.numpy() if kind is None else tensor.float().numpy().astype(DTYPES[kind].numpy))
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as error:
        raise RefitError(f"{where}: got {type(value).__name__}, which is no array ({error}); give a NumPy array") from error
    if array.dtype == object and not isinstance(value, list | tuple):
        raise RefitError(f"{where}: got {type(value).__name__}, expected an array or a tensor")
    return array


def _flat(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict that a checkpoint holds under a key of its own."""
    for key in ("state_dict", "model_state_dict", "model"):
        inner = source.get(key)
        if isinstance(inner, Mapping) and not any(hasattr(v, "shape") for v in source.values()):
            return inner
    return source


def _of_file(path: Path, numbered: bool) -> Weights:
    kind = path.suffix.lower()
    if kind == ".onnx":
        return Weights(_of_model(path, numbered), str(path), model=True)
    try:
        if kind == ".safetensors":
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            return Weights(tensors.read(memoryview(data), str(path)), str(path))
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                if isinstance(stored, np.ndarray):
                    raise RefitError(f"{path}: got one array, expected an .npz with one array per weight; write it with numpy.savez")
                return Weights({name: stored[name] for name in stored.files}, str(path))
    except OSError as error:
        raise RefitError(f"{path}: cannot be read, {error.strerror or error}; check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile, PlanFormatError) as error:
        raise RefitError(f"{path}: got data that cannot be read ({error}); write the file again") from error
    raise RefitError(
        f"{path}: got a file of the kind {kind or 'without a suffix'!r}, expected .safetensors, .npz or .onnx; "
        "load a pickled checkpoint with its library and pass the state_dict"
    )


def _of_model(source: Any, numbered: bool) -> dict[str, Array]:
    """The weights of an ONNX model: initializers and constants of nodes, those of subgraphs too."""
    from dovetail.frontend.importer import import_onnx
    from dovetail.frontend.reader import read_model

    if numbered:
        return {n: a for n, a in import_onnx(source).weights.items() if not n.startswith("~")}
    model, folder = read_model(source)
    found: dict[str, Array] = {}
    try:
        _collect(model.graph, folder, found)
    except Error:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise RefitError(f"model: got damaged weights ({error}); export the model again") from error
    return found


def _collect(graph: onnx.GraphProto, folder: Path | None, found: dict[str, Array]) -> None:
    from dovetail.frontend.protos import densify
    from dovetail.frontend.reader import read_tensor
    from dovetail.model.proto_graph import constant_value, subgraphs

    for tensor in graph.initializer:
        found.setdefault(tensor.name, read_tensor(tensor, folder))
    for sparse in graph.sparse_initializer:
        found.setdefault(sparse.values.name, densify(sparse, folder))
    for node in graph.node:
        value = constant_value(node, folder)
        if value is not None:
            found.setdefault(node.output[0], value)
        for inner in subgraphs(node):
            _collect(inner, folder, found)
