"""Registered translations in PyTorch's dynamo exporter, which builds an `onnx_ir` graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.core.dtypes import STR, DType
from dovetail.core.optional import require
from dovetail.export.onnx_calls import Known, Operand
from dovetail.export.translation_calls import Argument, call
from dovetail.export.translations import Installed, Translation
from dovetail.frontend.arguments import type_code
from dovetail.frontend.reader import element_type

_WHY = "PyTorch's dynamo exporter"


def fill(table: Installed, translations: Sequence[Translation]) -> None:
    """Put translations into a table, under the overloads that they are for."""
    torch = require("torch", "torch", _WHY)
    for made in sorted(translations, key=lambda t: bool(t.overload)):  # one for an overload goes before one for all
        space, _, name = made.op.partition("::")
        packet = getattr(getattr(torch.ops, space), name, None)
        for overload in () if packet is None else packet.overloads():
            if made.overload in ("", overload) and not overload.endswith("out"):
                target = getattr(packet, overload)
                table[target] = _translator(made, target, table)


def _translator(made: Translation, target: Any, table: Installed) -> Any:
    """The function that the exporter calls for one overload of an operator."""
    schema = target._schema

    def translate(*args: Any, **kwargs: Any) -> Any:
        table.used.append(made)
        arguments = []
        for position, argument in enumerate(schema.arguments):
            if position < len(args):
                value, given = args[position], True
            else:
                value, given = kwargs.get(argument.name, argument.default_value), argument.name in kwargs
            value = _from_native(value)
            is_default = argument.has_default_value() and (not given or _equal(value, argument.default_value))
            arguments.append(Argument(argument.name, value, is_default))
        returns = [str(r.type) for r in schema.returns]
        results = call(made, _Writer(), arguments, len(returns) if all(r == "Tensor" for r in returns) else None)
        natives = [r.native for r in results]
        return natives[0] if returns == ["Tensor"] else natives

    translate.__name__ = translate.__qualname__ = getattr(made.function, "__name__", "translate")
    return translate


def _equal(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default if isinstance(value, bool | int | float | str | list) else value is default


def _from_native(value: Any) -> Any:
    """What the exporter gives, as translations see it."""
    ir = require("onnx_ir", "torch", _WHY)
    if isinstance(value, ir.Value):
        kind = None if value.dtype is None else _dtype(int(value.dtype))
        shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        return Operand(value, kind, shape)
    if isinstance(value, ir.DataType):
        return _dtype(int(value))
    if isinstance(value, list | tuple):
        return [_from_native(v) for v in value]
    return value


def _dtype(code: int) -> DType | None:
    return None if code == 0 else element_type(code, "translation")


class _Writer:
    """Adds nodes to those that the exporter records while it translates one operator."""

    exporter = "dynamo"

    def __init__(self) -> None:
        self._ir = require("onnx_ir", "torch", _WHY)
        self._recorder = require("onnxscript.evaluator", "torch", _WHY).default()
        self.opset = int(self._recorder.opset.version)

    def node(self, domain: str, op: str, inputs: Sequence[Any], attributes: Mapping[str, Any], types: Sequence[Known]) -> Sequence[Any]:
        """Add a node; see `onnx_calls.Writer`."""
        ir = self._ir
        tensors = {k: ir.tensor(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
        node = ir.Node(
            domain, op, list(inputs), ir.convenience.convert_attributes(tensors), num_outputs=len(types),
            version=1 if domain else self.opset,
        )  # fmt: skip
        for value, (kind, shape) in zip(node.outputs, types, strict=True):
            if kind is not None:
                value.dtype = ir.DataType(type_code(kind))
            if shape is not None:
                value.shape = ir.Shape(list(shape))
        self._recorder.nodes.append(node)
        return list(node.outputs)

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """Add a constant."""
        strings = array.dtype == object
        tensor = self._ir.StringTensor(np.vectorize(str.encode, otypes=[object])(array)) if strings else self._ir.tensor(array)
        kind = STR if strings else element_type(int(tensor.dtype), "constant")
        made = self.node("", "Constant", [], {"value": tensor}, [(kind, array.shape)])[0]
        made.const_value = tensor
        return made
