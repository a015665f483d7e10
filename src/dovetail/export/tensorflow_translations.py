"""Translations of TensorFlow's operators that users registered (`@dovetail.export.symbolic("tf::Lgamma")`), as handlers of tf2onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import UsageError
from dovetail.export.onnx_calls import Known, Operand, proto_attributes
from dovetail.export.tensorflow_math import OPSET, TRANSLATIONS
from dovetail.export.tensorflow_runtime import require_module
from dovetail.export.translation_calls import Argument, call
from dovetail.export.translations import TENSORFLOW, Translation, chosen
from dovetail.frontend.arguments import type_code
from dovetail.frontend.reader import element_type


def handlers(opset: int) -> dict[str, Any]:
    """Handlers of the translations that an export to an opset uses, for `tf2onnx.tfonnx.process_tf_graph`: this package's, and users'.

    Raises:
        UsageError: one is registered with an overload, which TensorFlow's operators do not have.
    """
    found: dict[str, Any] = {}
    if opset >= OPSET:
        found = {name: (_handler(made, name, opset), []) for name, made in TRANSLATIONS.items()}
    for made in chosen(opset):
        space, _, name = made.op.partition("::")
        if space != TENSORFLOW:
            continue
        if made.overload:
            raise UsageError(f"{made}: got the overload {made.overload!r}, expected {made.op}; operators of TensorFlow have none")
        found[name] = (_handler(made, name, opset), [])
    return found


def _handler(made: Translation, op: str, opset: int) -> Any:
    def translate(ctx: Any, node: Any, name: str, args: Any) -> None:
        outputs = list(node.output)
        shapes, dtypes = [ctx.get_shape(o) for o in outputs], [ctx.get_dtype(o) for o in outputs]
        results = call(made, _Writer(ctx, opset), _arguments(ctx, node, op), len(outputs))
        ctx.remove_node(name)
        for output, result, shape, kind in zip(outputs, results, shapes, dtypes, strict=True):
            # The results get the names that others read the operator's under; tf2onnx's optimizers take the node away.
            ctx.make_node("Identity", [result.native], outputs=[output], shapes=[shape], dtypes=[kind])

    return translate


def _arguments(ctx: Any, node: Any, op: str) -> list[Argument]:
    """The operator's inputs, then its attributes but for those that only repeat the types of its inputs."""
    definition = definition_of(op)
    inputs = [_operand(ctx, name) for name in node.input]
    given = {key: onnx.helper.get_attribute_value(value) for key, value in node.attr.items() if not key.startswith("_")}
    if definition is None:  # of TFLite, or of a library that is not loaded
        names = [f"x{i}" for i in range(len(inputs))]
        return [Argument(n, x, False) for n, x in zip(names, inputs, strict=True)] + [
            Argument(key, _plain(value), False) for key, value in given.items()
        ]
    inferred = inferred_attributes(definition)
    named = [arg.name for arg in definition.input_arg]
    if len(named) != len(inputs):  # one of them is a list of tensors
        named = [f"x{i}" for i in range(len(inputs))]
    found = [Argument(name, x, False) for name, x in zip(named, inputs, strict=True)]
    for attribute in definition.attr:
        if attribute.name not in inferred and attribute.name in given:
            value = _plain(given[attribute.name])
            found.append(Argument(attribute.name, value, attribute.HasField("default_value") and value == default_of(attribute)))
    return found


def definition_of(op: str) -> Any:
    """The definition (OpDef) of an operator of TensorFlow; None where it has none of that name."""
    return require_module("tensorflow.python.framework.op_def_registry").get(op)


def inferred_attributes(definition: Any) -> set[str]:
    """The attributes of an operator that only repeat the types and the number of its inputs."""
    return {a for arg in definition.input_arg for a in (arg.type_attr, arg.number_attr, arg.type_list_attr)}


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def default_of(attribute: Any) -> Any:
    """The default of an attribute in an operator's definition; None where it has none, or one that is no number or text."""
    kind = attribute.default_value.WhichOneof("value")
    return _plain(getattr(attribute.default_value, kind)) if kind in ("s", "i", "f", "b") else None


def _operand(ctx: Any, name: str) -> Operand:
    code, shape = ctx.get_dtype(name), ctx.get_shape(name)
    producer = ctx.get_node_by_output(name)
    array = producer.get_tensor_value(as_list=False) if producer is not None and producer.is_const() else None
    return Operand(
        name,
        None if not code else element_type(code, f"translation: {name}"),
        None if shape is None else tuple(d if d >= 0 else None for d in shape),
        array,
    )


class _Writer:
    """Adds nodes to a graph of tf2onnx; see `onnx_calls.Writer`."""

    exporter = "tf2onnx"

    def __init__(self, ctx: Any, opset: int) -> None:
        self._ctx, self.opset = ctx, opset

    def node(
        self, domain: str, op: str, inputs: Sequence[Any], attributes: Mapping[str, Any], types: Sequence[Known]
    ) -> Sequence[Any]:
        """Add a node, with as many results as `types`."""
        made = self._ctx.make_node(
            op, ["" if name is None else name for name in inputs], attr=proto_attributes(attributes), output_count=len(types), domain=domain
        )
        for output, (kind, shape) in zip(made.output, types, strict=True):
            if kind is not None:
                self._ctx.set_dtype(output, type_code(kind))
            if shape is not None:
                self._ctx.set_shape(output, [d if isinstance(d, int) else -1 for d in shape])
        return list(made.output)

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """Add a constant."""
        names = require_module("tf2onnx.utils")
        return self._ctx.make_const(names.make_name("translated"), array).output[0]
