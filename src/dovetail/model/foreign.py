"""Models of other libraries: from and to `onnx_ir.Model` and `onnx_graphsurgeon.Graph`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dovetail.core.errors import ModelError
from dovetail.core.optional import require
from dovetail.frontend.reader import read_tensor
from dovetail.model.model import Model
from dovetail.model.weights import is_external, read_in

_EXTRA = "edit"


def from_onnx_ir(source: Any) -> Model:
    """The model in an `onnx_ir.Model`; weights that it has in files stay there.

    Raises:
        ModelError: it cannot be written as ONNX.
    """
    ir = require("onnx_ir", _EXTRA, "a model of onnx_ir")
    try:
        proto = ir.to_proto(source)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(f"onnx_ir.Model: cannot be written as ONNX ({error}); give every value and attribute a type") from error
    folders = [Path(v.const_value.base_dir or ".") for v in source.graph.initializers.values() if hasattr(v.const_value, "base_dir")]
    return _gathered(Model(proto, folders[0] if folders else None), _by_name(source))


def _by_name(source: Any) -> dict[str, Path]:
    values = source.graph.initializers.items()
    return {n: Path(v.const_value.base_dir or ".") for n, v in values if hasattr(v.const_value, "base_dir")}


def to_onnx_ir(model: Model) -> Any:
    """The model as an `onnx_ir.Model`; external weights stay memory-mapped in their files.

    Raises:
        UsageError: onnx_ir is not installed.
        ModelError: onnx_ir cannot read it.
    """
    ir = require("onnx_ir", _EXTRA, "a model of onnx_ir")
    proto = model.copy().proto
    try:
        result = ir.from_proto(proto)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelError(f"onnx_ir: cannot read this model ({error})") from error
    if model.folder is not None:
        require("onnx_ir.external_data", _EXTRA, "a model of onnx_ir").set_base_dir(result.graph, model.folder)
    return result


def from_graphsurgeon(source: Any) -> Model:
    """The model in an `onnx_graphsurgeon.Graph`, whose nodes are sorted if they have to be; the graph itself stays as it is.

    Raises:
        ModelError: it cannot be written as ONNX: a cycle, an input or output without a type.
    """
    gs = require("onnx_graphsurgeon", _EXTRA, "a graph of onnx-graphsurgeon")
    ordered = source.copy()
    try:
        ordered.toposort()
        proto = gs.export_onnx(ordered, do_type_check=True)
    except Exception as error:  # graphsurgeon raises kinds of its own, and AttributeError for what is half made
        raise ModelError(f"onnx_graphsurgeon.Graph: cannot be written as ONNX ({error}); is every input and output typed?") from error
    mapped = {t.name: t._values.folder for t in source.tensors().values() if hasattr(getattr(t, "_values", None), "folder")}
    return _gathered(Model(proto, next(iter(mapped.values()), None)), mapped)


def to_graphsurgeon(model: Model) -> Any:
    """The model as an `onnx_graphsurgeon.Graph`; weights in files are read when their `values` are asked for.

    Raises:
        UsageError: onnx-graphsurgeon is not installed.
        ModelError: graphsurgeon cannot read it.
    """
    gs = require("onnx_graphsurgeon", _EXTRA, "a graph of onnx-graphsurgeon")
    lazy: Any = require("onnx_graphsurgeon.ir.tensor", _EXTRA, "a graph of onnx-graphsurgeon").LazyValues
    folder = model.folder

    class MappedValues(lazy):  # type: ignore[misc]  # a class of a library that may be missing
        """Values in a file beside the model, memory-mapped."""

        def __init__(self, tensor: Any) -> None:
            super().__init__(tensor)
            self.folder = folder

        def load(self) -> Any:
            return read_tensor(self.tensor, self.folder)

    try:
        graph = gs.import_onnx(model.copy().proto)
    except Exception as error:  # see from_graphsurgeon
        raise ModelError(f"onnx_graphsurgeon: cannot read this model ({error})") from error
    for scope in (graph, *graph.subgraphs(recursive=True)):
        for tensor in scope.tensors().values():
            values = getattr(tensor, "_values", None)
            if isinstance(values, lazy) and is_external(values.tensor):
                tensor._values = MappedValues(values.tensor)
    return graph


def _gathered(model: Model, folders: dict[str, Path]) -> Model:
    """The model, with what lies in other folders than most of it read into memory."""
    for tensor in model.proto.graph.initializer:
        folder = folders.get(tensor.name)
        if folder is not None and folder != model.folder:
            read_in(tensor, folder)
    return model
