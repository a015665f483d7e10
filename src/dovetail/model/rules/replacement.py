"""The `op` of replacement functions: makes ONNX nodes, checked against their schemas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import RuleError
from dovetail.frontend.protos import domain_of
from dovetail.model.rules.match import Declined, Match, Value

_KINDS = {
    AttributeProto.FLOAT: float, AttributeProto.INT: int, AttributeProto.STRING: str,
}  # fmt: skip


class TooOld(Exception):
    """The model's opset has not got an operator of a replacement."""


class ReplacementBuilder:
    """Makes nodes: every attribute of it is an ONNX operator, as in patterns."""

    def __init__(self, match: Match, unique: Callable[[str], str]) -> None:
        self.match, self._unique = match, unique
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str | None] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.call(op_type, *inputs, **attributes)

    def call(self, title: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node of an operator by its full name, such as "my.domain::Op"; several `outputs` come as a tuple.

        Inputs are values, None (absent), or numbers and arrays, which become constants: a number takes the element type of the
        inputs that share its type in ONNX's schema. Attributes are numbers, strings, lists, arrays; an element type may be given
        as "f32" or a NumPy dtype.

        Raises:
            RuleError: inputs or attributes that the operator has not.
        """
        domain, _, op_type = title.rpartition("::")
        domain = domain_of(domain)
        schema = self._schema(op_type, domain)
        for value in inputs:
            if isinstance(value, Declined):
                raise RuleError(f"{title}: got a declined match as an input, expected `return match.decline(…)`")
        if op_type == "Constant" and not domain and (inputs or not attributes):
            raise RuleError(f"Constant: got {len(inputs)} inputs, expected op.constant(value), or the number where it is: op.Mul(x, 2.0)")
        names = [self._input(x, k, inputs, schema, title) for k, x in enumerate(inputs)]
        while names and not names[-1]:
            names.pop()
        node = helper.make_node(op_type, names, [self._unique(f"{self._base()}_{op_type}") for _ in range(outputs)], domain=domain)
        node.name = self._unique(f"{self._base()}/{op_type}")
        for name, value in attributes.items():
            if value is not None:
                node.attribute.append(self._attribute(name, value, schema, title))
        if schema is not None and not schema.min_input <= len(inputs) <= schema.max_input:
            expected = ", ".join(f"{f.name} (optional)" if "Optional" in str(f.option) else f.name for f in schema.inputs)
            raise RuleError(f"{title}: got {len(inputs)} inputs, expected {expected or 'none'} (opset {self.match.opset})")
        return self._added(node, schema, inputs)

    def same(self, value: Value, *inputs: Any) -> Any:
        """The node that computes a value of the match, with its attributes, on other inputs.

        Raises:
            RuleError: no node of this graph computes it.
        """
        source = self.match.producer(value)
        if source is None:
            raise RuleError(f"same: got {value!r}, which no node here computes, expected a named value of the pattern")
        schema = self._schema(source.op_type, domain_of(source.domain))
        node = onnx.NodeProto()
        node.CopyFrom(source)
        del node.input[:], node.output[:]
        node.input.extend(self._input(x, k, inputs, schema, source.op_type) for k, x in enumerate(inputs))
        node.output.extend(self._unique(f"{self._base()}_{source.op_type}") for _ in source.output)
        node.name = self._unique(f"{self._base()}/{source.op_type}")
        return self._added(node, schema, inputs)

    def constant(self, value: Any, dtype_: Any = None) -> Value:
        """A constant of the rule's own (a Constant node: weights of the model stay what they are); floats are fp32 unless told."""
        array = np.asarray(value)
        if dtype_ is not None:
            array = array.astype(dtype(dtype_).numpy)
        elif array.dtype == np.float64 and not isinstance(value, np.ndarray | np.generic):
            array = array.astype(np.float32)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape))
        node = helper.make_node("Constant", [], [self._unique(f"{self._base()}_constant")], value=tensor)
        node.name = self._unique(f"{self._base()}/Constant")
        self.nodes.append(node)
        self.made[node.output[0]] = dtype(array.dtype).name
        return Value(node.output[0], dtype(array.dtype).name)

    # ------------------------------------------------------------------ parts of a node
    def _base(self) -> str:
        # What a rule replaces again and again keeps the name of what was there first.
        return f"{self.match.found.outputs[0].partition(f'/{self.match.rule}_')[0]}/{self.match.rule}"

    def _schema(self, op_type: str, domain: str) -> onnx.defs.OpSchema | None:
        if domain or op_type == "Constant":
            return None
        try:
            return onnx.defs.get_schema(op_type, self.match.opset, domain)
        except onnx.defs.SchemaError:
            pass
        since = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op_type and s.domain == domain]
        if not since:
            raise RuleError(
                f"got the operator {op_type!r}, which ONNX has not, expected one of ONNX's; others have a domain: "
                f"op.call('my.domain::{op_type}', …)"
            )
        raise TooOld(f"{op_type} is in ONNX from opset {min(since)}, the model has {self.match.opset}: convert the model first")

    def _added(self, node: onnx.NodeProto, schema: onnx.defs.OpSchema | None, inputs: Sequence[Any]) -> Any:
        self.nodes.append(node)
        made = []
        for index, name in enumerate(node.output):
            kind = self._result_type(node, schema, index, inputs)
            self.made[name] = kind
            made.append(Value(name, kind))
        return made[0] if len(made) == 1 else tuple(made)

    def _result_type(self, node: onnx.NodeProto, schema: onnx.defs.OpSchema | None, index: int, inputs: Sequence[Any]) -> str | None:
        if node.op_type == "Cast" and not node.domain:
            code = next((a.i for a in node.attribute if a.name == "to"), 0)
            return dtype(helper.tensor_dtype_to_np_dtype(code)).name if code else None
        if schema is None or not schema.outputs:
            return None
        formal = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        return self._shared_type(formal, inputs, schema, -1)

    def _shared_type(self, formal: str, inputs: Sequence[Any], schema: onnx.defs.OpSchema, but: int) -> str | None:
        """The element type of an input of the same type in the schema."""
        for position, value in enumerate(inputs):
            if position == but or not isinstance(value, Value) or not schema.inputs:
                continue
            if schema.inputs[min(position, len(schema.inputs) - 1)].type_str == formal and value.dtype is not None:
                return value.dtype
        return None

    def _input(self, value: Any, position: int, inputs: Sequence[Any], schema: onnx.defs.OpSchema | None, title: str) -> str:
        if value is None:
            return ""
        if isinstance(value, Value):
            return value.name
        if isinstance(value, bool | int | float | list | tuple | np.ndarray | np.generic):
            kind = None
            if schema is not None and schema.inputs and not isinstance(value, np.ndarray | np.generic):
                formal = schema.inputs[min(position, len(schema.inputs) - 1)].type_str
                kind = self._shared_type(formal, inputs, schema, position)
            return self.constant(value, kind).name
        raise RuleError(f"{title}: got {value!r} as input {position}, expected a value, a number, an array or None")

    def _attribute(self, name: str, value: Any, schema: onnx.defs.OpSchema | None, title: str) -> AttributeProto:
        declared = schema.attributes.get(name) if schema is not None else None
        if schema is not None and declared is None:
            known = ", ".join(sorted(schema.attributes)) or "none"
            places = [i for i, formal in enumerate(schema.inputs) if formal.name == name]
            call = f"op.{title}({', '.join(f.name for f in schema.inputs)})"
            hint = f"; in this opset {name!r} is its input {places[0]}: {call}" if places else ""
            raise RuleError(f"{title}: got the attribute {name!r}, expected one of {known} (opset {self.match.opset}){hint}")
        kind = int(declared.type.value) if declared is not None else None
        if kind == AttributeProto.INT and isinstance(value, str | DType | np.dtype | type):
            value = helper.np_dtype_to_tensor_dtype(dtype(value).numpy)
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value, name)
        if isinstance(value, np.generic):
            value = value.item()
        if kind == AttributeProto.FLOATS:
            value = [float(x) for x in value]
        elif kind in _KINDS and isinstance(value, bool | int | float):
            value = _KINDS[kind](value)
        try:
            return helper.make_attribute(name, value, attr_type=kind)
        except (TypeError, ValueError) as error:
            raise RuleError(f"{title}: got {value!r} for the attribute {name!r}, expected what ONNX takes there ({error})") from error
