"""What is known of the types and contents of a model's values: the importer's symbolic shapes, else ONNX's inference."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import onnx

from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import dtype
from dovetail.core.errors import Error
from dovetail.core.log import logger
from dovetail.frontend.importer import ImportContext, main_context
from dovetail.frontend.reader import ShapeOverride
from dovetail.ir.graph import Value
from dovetail.ir.types import TensorType
from dovetail.model.proto_graph import subgraphs
from dovetail.model.rules.scope import Scope

_log = logger("rules")
_SMALL = 1024


class Types:
    """Types of a model's values, found when the first one is asked for."""

    def __init__(
        self, model: onnx.ModelProto, initializers: Iterable[onnx.TensorProto], folder: Path | None, shapes: ShapeOverride
    ) -> None:
        self.model, self.initializers, self.folder, self.shapes = model, list(initializers), folder, shapes
        self._context: ImportContext | None = None
        self._tried = False
        self._inferred: dict[str, TensorType] | None = None

    def of(self, scope: Scope, name: str) -> TensorType | None:
        """The type of a value; None where nothing is known of it."""
        stored = scope.tensor_type(name)
        if stored is not None:
            return TensorType(dtype(onnx.helper.tensor_dtype_to_np_dtype(stored[0])), stored[1])
        value = self._value(scope, name)
        if value is not None and isinstance(value.type, TensorType):
            return value.type
        if self._inferred is None:
            self._inferred = self._by_onnx()
        return self._inferred.get(name)

    def contents(self, scope: Scope, name: str) -> tuple[tuple[Dim, ...], list[str]] | None:
        """(contents of a small integer tensor as dims, the weights that they depend on); None where they are not known."""
        value = self._value(scope, name)
        if value is None or value.contents is None or value.contents.dtype != object:
            return None
        if not isinstance(value.type, TensorType) or not value.type.dtype.is_int:
            return None
        weights: dict[str, None] = {}
        seen = set()
        pending = [value.producer]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            pending += [v.producer for v in node.operands]
            if node.op == "Constant" and not node.attrs["name"].startswith("~"):
                weights[node.attrs["name"]] = None
        return tuple(value.contents.reshape(-1).tolist()), list(weights)

    def _value(self, scope: Scope, name: str) -> Value | None:
        """The importer's value of a name of the main graph."""
        if scope.outer is not None and scope.defines(name):
            return None
        context = self._imported()
        if context is None or not context.defines(name):
            return None
        found = context.look_up(name)
        return found if isinstance(found, Value) else None

    def _imported(self) -> ImportContext | None:
        if not self._tried:
            self._tried = True
            try:
                context = main_context(self.model, self.folder)
                context.initializers.update({t.name: t for t in self.initializers})
                context.import_main(self.shapes)
                self._context = context
            except Error as error:  # a part of the model fits no operator: what ONNX says has to do
                _log.debug("no shapes of the importer: %s", error)
        return self._context

    def _by_onnx(self) -> dict[str, TensorType]:
        """Types by ONNX's shape inference, of inner graphs, too; large weights are left out of the copy that it gets."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        have = {t.name for t in copy.graph.initializer} | {v.name for v in copy.graph.input}
        for tensor in self.initializers:
            if tensor.name in have:
                continue
            size = 1
            for extent in tensor.dims:
                size *= extent
            if size <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
                copy.graph.initializer.append(tensor)
            else:
                copy.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        try:
            copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
        except (RuntimeError, ValueError) as error:
            _log.debug("no shapes of ONNX: %s", error)
        found: dict[str, TensorType] = {}
        pending = [copy.graph]
        while pending:
            graph = pending.pop()
            for info in (*graph.value_info, *graph.input, *graph.output):
                tensor_type = info.type.tensor_type
                if info.type.WhichOneof("value") != "tensor_type" or not tensor_type.HasField("shape"):
                    continue
                shape = tuple(
                    d.dim_value if d.HasField("dim_value") else sym(re.sub(r"\W", "_", d.dim_param or f"{info.name}_{axis}"))
                    for axis, d in enumerate(tensor_type.shape.dim)
                )
                if tensor_type.elem_type not in (0, onnx.TensorProto.STRING):
                    kind = dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
                    found.setdefault(info.name, TensorType(kind, shape))
            for node in graph.node:
                pending += subgraphs(node)
        return found
