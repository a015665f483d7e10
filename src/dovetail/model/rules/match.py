"""What a replacement sees of its match: values with types, constants and attributes, and the way to decline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from dovetail.core.dims import Dim
from dovetail.core.errors import RuleError
from dovetail.ir.types import TensorType
from dovetail.model.rules.pattern import Found
from dovetail.model.rules.scope import Scope, attribute_or_default, node_name
from dovetail.model.rules.types import Types

Array = np.ndarray[Any, Any]


class Value:
    """A value of the graph: one of the match, or one that the replacement made.

    Attributes:
        name: in the model.
    """

    def __init__(self, name: str, dtype: str | None = None, match: Match | None = None) -> None:
        self.name, self._dtype, self._match = name, dtype, match

    @property
    def dtype(self) -> str | None:
        """Element type by its name, such as "f32" or "i64"; None where it is not known."""
        found = self._match.type_of(self) if self._match is not None else None
        return found.dtype.name if found is not None else self._dtype

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """Sizes, ints or expressions over the names of input sizes; None where they are not known, as for what a replacement made."""
        found = self._match.type_of(self) if self._match is not None else None
        return found.shape if found is not None else None

    @property
    def rank(self) -> int | None:
        """Number of dimensions; None where it is not known."""
        shape = self.shape
        return None if shape is None else len(shape)

    @property
    def type(self) -> str:
        """Element type and sizes for messages, such as "f32[N, 4]"; "?" where they are not known."""
        return f"{self.dtype or '?'}[{', '.join(map(str, self.shape))}]" if self.shape is not None else self.dtype or "?"

    @property
    def is_constant(self) -> bool:
        """Whether the value is a constant; asking for that relies on no value of it."""
        return self._match is not None and self._match.scope.is_constant(self.name)

    @property
    def array(self) -> Array | None:
        """The value of a constant, else None. Who reads it relies on it: a refit that changes this weight is refused, naming the rule."""
        return self._match.read(self) if self._match is not None else None

    @property
    def op(self) -> str | None:
        """The operator of the node that computes the value; None for inputs, weights, and what a replacement made."""
        node = self._match.producer(self) if self._match is not None else None
        return None if node is None else node.op_type

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node that computes the value, with ONNX's default where the node has none, else `default`."""
        node = self._match.producer(self) if self._match is not None else None
        if node is None or self._match is None:
            return default
        found = attribute_or_default(node, name, self._match.opsets.get(node.domain, 1))
        return default if found is None else found

    def __repr__(self) -> str:
        return f"<value {self.name!r}: {self.type}>"


@dataclass(frozen=True)
class Declined:
    """A replacement's refusal of a match."""

    reason: str


class Match:
    """One place where a pattern fits."""

    def __init__(self, rule: str, found: Found, scope: Scope, types: Types, opsets: Mapping[str, int]) -> None:
        self.rule, self.found, self.scope, self.types, self.opsets = rule, found, scope, types, opsets
        self.reads: dict[str, Array] = {}
        for weight in found.reads:
            constant = scope.constant(weight)
            if constant is not None:
                self.reads[constant[0]] = constant[1]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that are replaced, in the graph's order."""
        return self.names(sorted(set(self.found.nodes.values())))

    def names(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """Names of nodes of the graph by number."""
        return tuple(self.scope.path + node_name(self.scope.nodes[k]) for k in numbers)

    @property
    def opset(self) -> int:
        """The model's version of ONNX's operators."""
        return self.opsets.get("", 1)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The values that the replacement has to compute."""
        return tuple(Value(name, None, self) for name in self.found.outputs)

    def decline(self, reason: str) -> Declined:
        """For `return match.decline("…")`: this match stays as it is, and the reason is reported."""
        return Declined(reason)

    def __contains__(self, name: object) -> bool:
        return name in self.found.values or name in self.found.labels or name in self.found.attributes

    def __getitem__(self, name: str) -> Any:
        """An input (a list for *inputs), captured constant or named value; a captured attribute; None for what this match has not."""
        if name in self.found.labels:
            return Value(self.found.labels[name], None, self)
        if name in self.found.values:
            bound = self.found.values[name]
            if isinstance(bound, list):
                return [Value(n, None, self) if n else None for n in bound]
            return None if bound is None else Value(bound, None, self)
        return self.found.attributes.get(name)

    def dims(self, value: Value | None) -> tuple[Dim, ...] | None:
        """The contents of a small integer tensor as sizes, ints or expressions, whether constant or computed from shapes; else None."""
        if value is None:
            return None
        constant = self.read(value)
        if constant is not None:
            return tuple(int(x) for x in constant.reshape(-1)) if constant.dtype.kind in "iu" else None
        found = self.types.contents(self.scope, value.name)
        if found is None:
            return None
        for weight in found[1]:
            read = self.scope.constant(weight)
            if read is not None:
                self.reads[read[0]] = read[1]
        return found[0]

    def readers(self, value: Value) -> tuple[str, ...]:
        """The operators of the nodes that read a value, in the graph's order; "" stands for the graph's output."""
        found = [self.scope.nodes[k].op_type for k in self.scope.readers.get(value.name, ())]
        return (*found, *([""] if value.name in self.scope.outputs else []))

    def read(self, value: Value) -> Array | None:
        """The value of a constant, noted as relied on."""
        found = self.scope.constant(value.name)
        if found is None:
            return None
        self.reads[found[0]] = found[1]
        return found[1]

    def type_of(self, value: Value) -> TensorType | None:
        """The type of a value of the model."""
        return self.types.of(self.scope, value.name)

    def producer(self, value: Value) -> onnx.NodeProto | None:
        """The node of this graph that computes a value."""
        number = self.scope.producers.get(value.name)
        return None if number is None else self.scope.nodes[number]

    def argument(self, name: str) -> Any:
        """What a parameter of the replacement is given."""
        if name == "match":
            return self
        return self[name]

    def problem(self, text: str) -> RuleError:
        """An error that names the rule and the place."""
        return RuleError(f"rule {self.rule!r} at {', '.join(self.nodes)}: {text}")
