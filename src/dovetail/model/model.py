"""`dovetail.Model`: an ONNX model to look at, change and write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from dovetail.core.binding import Binding
from dovetail.core.errors import ModelError
from dovetail.frontend.declared import InputTypes
from dovetail.frontend.reader import ModelSource, OnnxSource, read_model, read_tensor
from dovetail.ir.graph import Graph, Module
from dovetail.ir.types import TensorType
from dovetail.model.editing import Editing
from dovetail.model.weights import (
    Weights,
    all_tensors,
    is_external,
    with_weights_as_inputs,
)
from dovetail.model.writing import write_model


class Model(Editing, OnnxSource):
    """An ONNX model in memory; weights that are stored in other files stay there, memory-mapped, until it is written.

        model = dovetail.Model.load("model.onnx")
        model.simplify().save("small.onnx")

    Whatever of Dovetail takes an ONNX model takes a `Model`.
    """

    def __init__(self, proto: onnx.ModelProto, folder: str | os.PathLike[str] | None = None) -> None:
        self._proto = proto
        self._folder = None if folder is None else Path(folder)

    @classmethod
    def load(cls, source: ModelSource) -> Model:
        """Read a model.

        Args:
            source: path, bytes, ModelProto or `Model` (used as they are, not copied), `onnx_ir.Model` or
                `onnx_graphsurgeon.Graph`.

        Raises:
            ModelError: missing file, or not an ONNX model.
            UsageError: nothing that is a model.
        """
        return cls(*read_model(source))

    @property
    def proto(self) -> onnx.ModelProto:
        """The model's proto."""
        return self._proto

    @property
    def folder(self) -> Path | None:
        """Where the files of external weights are; None where there are none."""
        return self._folder

    @property
    def weights(self) -> Weights:
        """The initializers by name; `model.weights[name] = array` replaces one."""
        return Weights(self._proto, self._folder)

    @property
    def inputs(self) -> list[Binding]:
        """What a caller has to give: inputs without an initializer. An open dimension is a symbol."""
        known = {t.name for t in self._proto.graph.initializer}
        return _bindings(v for v in self._proto.graph.input if v.name not in known)

    @property
    def outputs(self) -> list[Binding]:
        """What the model gives; shape None where it says nothing of it."""
        return _bindings(self._proto.graph.output)

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 0 if it imports none."""
        return max((o.version for o in self._proto.opset_import if o.domain in ("", "ai.onnx")), default=0)

    def copy(self) -> Model:
        """An independent copy; weights in files are shared."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        return Model(proto, self._folder)

    def check(self, full: bool = True) -> None:
        """Hold the model against ONNX's own rules, and see that files of external weights are there.

        Args:
            full: infer all types, too.

        Raises:
            ModelError: what ONNX's checker found, or what cannot be read.
        """
        for tensor in all_tensors(self._proto):
            if is_external(tensor):
                read_tensor(tensor, self._folder)
        try:
            onnx.checker.check_model(with_weights_as_inputs(self._proto), full_check=full)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
            raise ModelError(f"model: ONNX's checker refuses it: {error}") from error

    def simplify(
        self,
        *,
        shapes: Mapping[str, Sequence[int | str]] | None = None,
        skip: Iterable[str] = (),
        only: Iterable[str] | None = None,
        rules: Any = None,
        fuse: bool = False,
    ) -> Model:
        """A smaller model with the same inputs, outputs and meaning; this one stays as it is.

        `dovetail.model.simplifier.simplify` also says what it changed, `dovetail.model.equivalence.check` compares the two.

        Args:
            shapes: sizes of inputs to fix, by name.
            skip: names of rewrites to leave out (`dovetail simplify --help` lists them).
            only: the only ones to apply; default: all.
            rules: rewrite rules (`dovetail.rewrite`): files, names, rules or "none"; default: all registered ones and those of
                this package.
            fuse: make Gelu and LayerNormalization of what exporters wrote out, where the opset has them.

        Raises:
            ModelError: the model is invalid.
            UsageError: an unknown rewrite, rule or input.
            RuleError: a rule fails.
        """
        from dovetail.model.simplifier import simplify

        return simplify(self, shapes=shapes, skip=skip, only=only, rules=rules, fuse=fuse).model

    def save(self, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
        """Write the model, whole or not at all. Weights in files are copied in pieces, never as a whole in memory.

        Where this writes over files that hold weights of this model, it refers to the new ones afterwards. Other models whose
        weights are in these files, such as the one that this was simplified from, have to be loaded again.

        Args:
            path: the file to write.
            external: weights of 1 KiB and more go into PATH.data; default: where they were in files of their own, or are too
                many for one file (2 GiB).

        Raises:
            UsageError: the folder does not exist, or external=False for too many weights.
            ModelError: a weight cannot be read.
        """
        target = Path(path)
        used = {self._file(t).resolve() for t in all_tensors(self._proto) if is_external(t)}
        written = write_model(self._proto, self._folder, target, external)
        if used & {target.resolve(), target.with_name(f"{target.name}.data").resolve()}:
            self._proto.CopyFrom(read_model(target)[0] if written is None else written)
            self._folder = target.parent

    def _file(self, tensor: onnx.TensorProto) -> Path:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        return (self._folder or Path()) / location

    # ------------------------------------------------------------------ other libraries
    def to_onnx_ir(self) -> Any:
        """This model as an `onnx_ir.Model`; see `dovetail.model.foreign.to_onnx_ir`."""
        from dovetail.model import foreign

        return foreign.to_onnx_ir(self)

    def to_graphsurgeon(self) -> Any:
        """This model as an `onnx_graphsurgeon.Graph`; see `dovetail.model.foreign.to_graphsurgeon`."""
        from dovetail.model import foreign

        return foreign.to_graphsurgeon(self)

    def __repr__(self) -> str:
        graph = self._proto.graph
        known = {t.name for t in graph.initializer}
        given, made = (
            ", ".join(map(_port_text, ports)) for ports in ((v for v in graph.input if v.name not in known), graph.output)
        )
        return f"Model({given} -> {made}; opset {self.opset}, {len(graph.node)} nodes, {len(graph.initializer)} weights)"


def _port_text(value: onnx.ValueInfoProto) -> str:
    try:
        return str(*_bindings([value]))
    except ModelError:  # what has no type is looked at, too
        return f"{value.name}: ?"


def _bindings(values: Iterable[onnx.ValueInfoProto]) -> list[Binding]:
    fresh: set[str] = set()

    def new(prefix: str) -> str:
        name = re.sub(r"\W", "_", prefix)
        while name in fresh:
            name += "_"
        fresh.add(name)
        return name

    types = InputTypes(Module(Graph("main")), set(), new)
    found = []
    for value in values:
        kind = value.type.WhichOneof("value")
        if kind == "tensor_type" and not value.type.tensor_type.HasField("shape"):
            unranked = onnx.TypeProto()
            unranked.CopyFrom(value.type)
            unranked.tensor_type.shape.SetInParent()
            type_, known = types.declared(unranked, value.name), False
        else:
            type_, known = types.declared(value.type, value.name), True
        if isinstance(type_, TensorType):
            found.append(Binding(value.name, type_.dtype, type_.shape if known else None))
        else:
            found.append(Binding(value.name, type_.element.dtype, None))
    return found
