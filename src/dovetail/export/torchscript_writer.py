"""Registered translations in PyTorch's torchscript exporter, which rewrites the graph of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dovetail.core.dtypes import BF16
from dovetail.core.errors import ExportError
from dovetail.core.optional import require
from dovetail.export.onnx_calls import Known, Operand
from dovetail.export.torch_types import is_scalar_type, of_code, of_dtype, to_torch
from dovetail.export.translation_calls import Argument, call
from dovetail.export.translations import Translation

_WHY = "PyTorch's torchscript exporter"


@contextmanager
def registered_at(opset: int, translations: Sequence[Translation], used: list[Translation]) -> Iterator[None]:
    """Register translations with the exporter for one opset, and put back what was there before."""
    onnx = require("torch.onnx", "torch", _WHY)
    registry = require("torch.onnx._internal.torchscript_exporter.registration", "torch", _WHY).registry
    by_op: dict[str, list[Translation]] = {}
    for made in sorted(translations, key=lambda t: not t.overload):  # one for an overload goes before one for all
        by_op.setdefault(made.op, []).append(made)
    before: dict[str, Callable[..., Any] | None] = {}
    try:
        for op, candidates in by_op.items():
            group = registry.get_function_group(op)
            own = None if group is None else group.get(opset)
            functions = None if group is None else group._functions
            before[op] = functions[opset] if functions is not None and functions.overridden(opset) else None
            onnx.register_custom_op_symbolic(op, _translator(candidates, own, used), opset)
        yield
    finally:
        for op, old in before.items():
            onnx.unregister_custom_op_symbolic(op, opset)
            group = registry.get_function_group(op)
            if group is not None and not group._functions:
                registry._registry.pop(op)  # the exporter fails to say that it has none where it has an empty group
            if old is not None:
                onnx.register_custom_op_symbolic(op, old, opset)


def _translator(candidates: Sequence[Translation], own: Callable[..., Any] | None, used: list[Translation]) -> Callable[..., Any]:
    """The function that the exporter calls for an operator; overloads that no translation is for go to the exporter's own."""

    def translate(context: Any, *inputs: Any, **attributes: Any) -> Any:
        node = context.original_node
        kinds = [value.type() for value in node.inputs()]
        values = [_from_native(value, kind) for value, kind in zip(inputs, kinds, strict=True)]
        schema = _schema(node.kind().removesuffix("_") if not _has_schema(node.kind()) else node.kind(), values)
        overload = "" if schema is None else schema.overload_name
        made = next((t for t in candidates if t.overload in ("", overload)), None)
        if made is None:
            if own is None:
                wanted = candidates[0].overload
                raise ExportError(f"{node.kind()}: got its overload {overload or 'default'!r}, expected {wanted!r}; register it for all")
            return own(context, *inputs, **attributes)
        used.append(made)
        returns = list(node.outputs())
        results = call(made, _Writer(context), _arguments(schema, values), len(returns))
        natives = [_typed(result, old, values) for result, old in zip(results, returns, strict=True)]
        return natives[0] if len(natives) == 1 else tuple(natives)

    return translate


def _has_schema(kind: str) -> bool:
    return bool(require("torch", "torch", _WHY)._C._jit_get_schemas_for_operator(kind))


def _schema(kind: str, values: Sequence[Any]) -> Any:
    """The schema of the overload that a node calls; traces keep the arguments alone. None where there is none."""
    schemas = require("torch", "torch", _WHY)._C._jit_get_schemas_for_operator(kind)
    fitting = [s for s in schemas if len(s.arguments) == len(values) and all(map(_fits, s.arguments, values))]
    return fitting[0] if fitting else None


def _fits(argument: Any, value: Any) -> bool:
    kind = str(argument.type)
    if kind.startswith("Optional["):
        if value is None:
            return True
        kind = kind[len("Optional[") : -1]
    if isinstance(value, Operand):
        return kind == "Tensor" or (kind in ("int", "float", "number", "bool") and value.rank == 0)
    if isinstance(value, bool):
        return kind in ("bool", "number", "Tensor")
    if isinstance(value, int | float):
        return kind in ("int", "number", "Tensor", "float") and not (kind == "int" and isinstance(value, float))
    if isinstance(value, list):
        return kind.startswith("List[")
    return isinstance(value, str) and kind in ("str", "Device")


def _arguments(schema: Any, values: Sequence[Any]) -> list[Argument]:
    if schema is None:
        return [Argument(f"argument_{i}", value, False) for i, value in enumerate(values)]
    made = []
    for argument, value in zip(schema.arguments, values, strict=True):
        default = argument.has_default_value() and _same(value, argument.default_value)
        if is_scalar_type(argument) and type(value) is int:
            value = of_code(value)
        made.append(Argument(argument.name, value, default))
    return made


def _same(value: Any, default: Any) -> bool:
    return not isinstance(value, Operand) and value is default if default is None else bool(value == default)


def _from_native(value: Any, kind: Any) -> Any:
    """An argument as translations see it; `kind` is its type in the trace, which constants lose."""
    node = value.node()
    if node.kind() == "prim::ListConstruct":
        return [_from_native(v, v.type()) for v in node.inputs()]
    if node.kind() == "prim::Constant" and not node.hasAttribute("value"):
        return None
    if node.kind() in ("onnx::Constant", "prim::Constant"):
        constant = getattr(node, node.kindOf("value"))("value")
        if isinstance(constant, str) or not hasattr(constant, "dtype"):
            return constant
        if constant.dim() == 0:
            return constant.item()
        if kind.kind() == "ListType":
            return constant.tolist()
        return _operand(value, constant)
    return _operand(value)


def _operand(value: Any, constant: Any = None) -> Operand:
    kind = value.type()
    if kind.kind() != "TensorType":
        return Operand(value)
    sizes = kind.varyingSizes()
    shape = None if sizes is None else tuple(sizes)
    array = None
    if constant is not None and of_dtype(constant.dtype) not in (None, BF16):
        array = constant.numpy()
    return Operand(value, None if kind.dtype() is None else of_dtype(kind.dtype()), shape, array)


def _typed(result: Operand, old: Any, arguments: Sequence[Any]) -> Any:
    """A result's value, with the type that the trace has seen where ONNX's inference does not know it.

    Extents of the trace are those of the example: they hold where all operands have fixed ones.
    """
    value, seen = result.native, old.type()
    if seen.kind() != "TensorType" or value.type().kind() != "TensorType":
        return value
    if value.type().dtype() is None or value.type().varyingSizes() is None:
        fixed = all(v.shape is not None and None not in v.shape for v in arguments if isinstance(v, Operand))
        sizes = seen.sizes()
        value.setType(seen if fixed or sizes is None else seen.with_sizes([None] * len(sizes)))
    return value


class _Writer:
    """Adds nodes to the graph that the exporter writes."""

    exporter = "torchscript"

    def __init__(self, context: Any) -> None:
        self._context = context
        self._torch = require("torch", "torch", _WHY)
        self.opset = int(context.opset)

    def node(self, domain: str, op: str, inputs: Sequence[Any], attributes: Mapping[str, Any], types: Sequence[Known]) -> Sequence[Any]:
        """Add a node; see `onnx_calls.Writer`."""
        given = [self._absent() if v is None else v for v in inputs]
        named = {f"{k}_{_suffix(v)}": self._tensor(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
        made = self._context.op(f"{domain}::{op}" if domain else op, *given, outputs=len(types), **named)
        values = [made] if len(types) == 1 else list(made)
        for value, (kind, shape) in zip(values, types, strict=True):
            if kind is not None and (value.type().kind() != "TensorType" or value.type().dtype() is None):
                known = self._torch._C.TensorType.get().with_dtype(to_torch(kind))
                value.setType(known if shape is None else known.with_sizes([d if isinstance(d, int) else None for d in shape]))
        return values

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """Add a constant."""
        if array.dtype == object:
            raise ExportError("constant: got text, expected numbers; the torchscript exporter has no constants of text")
        return self._context.op("Constant", value_t=self._tensor(array))

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        kind = of_array(array)
        if kind is not None:
            return self._torch.from_numpy(array.view(kind[0]).copy()).view(kind[1])
        return self._torch.from_numpy(np.array(array))

    def _absent(self) -> Any:
        made = self._context.op("prim::Constant")
        made.setType(self._torch._C.OptionalType.ofTensor())
        return made


def of_array(array: np.ndarray[Any, Any]) -> tuple[Any, Any] | None:
    """For element types that NumPy does not have: an integer type of that size, and PyTorch's type."""
    from dovetail.core.dtypes import dtype

    kind = dtype(array.dtype)
    if kind.name == "bf16" or kind.name.startswith("f8"):
        return (np.int16 if kind.bits == 16 else np.uint8), to_torch(kind)
    return None


def _suffix(value: Any) -> str:
    """How the exporter marks the type of an attribute."""
    one = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(one, np.ndarray):
        return "t"
    if isinstance(one, str | bytes):
        return "s"
    if isinstance(value, list | tuple) and any(isinstance(v, float) for v in value):
        return "f"
    return "f" if isinstance(one, float) else "i"
