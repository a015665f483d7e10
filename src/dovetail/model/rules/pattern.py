"""The matcher: finds where a pattern fits into a graph, and says what did not where it nearly does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx

from dovetail.core.dtypes import dtype
from dovetail.frontend.protos import domain_of
from dovetail.model.rules.scope import Scope, attribute_or_default, title
from dovetail.model.rules.terms import (
    COMMUTATIVE,
    AnyOf,
    AttributePattern,
    Constant,
    Operator,
    Pattern,
    Result,
    Term,
    Variable,
    flatten,
)

_ROUNDING = {"f16": 2e-3, "bf16": 2e-2}
_ROUNDING_ELSE = 1e-5
_PERMUTED = 4


class Found(NamedTuple):
    """A pattern's terms as values and nodes of a graph; its dicts are never changed, only replaced."""

    values: Mapping[str, str | list[str] | None] = MappingProxyType({})
    nodes: Mapping[Operator, int] = MappingProxyType({})
    attributes: Mapping[str, Any] = MappingProxyType({})
    labels: Mapping[str, str] = MappingProxyType({})
    reads: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a pattern does not fit: the reason of the attempt that matched most nodes, or of those the one that came closest."""

    matched: int
    reason: str
    close: bool = False


class Matcher:
    """Matches one pattern in one graph; holds the best failure of the current attempt."""

    def __init__(self, pattern: Pattern, scope: Scope, opsets: dict[str, int]) -> None:
        self.pattern, self.scope, self.opsets = pattern, scope, opsets
        self._failure = Failure(0, "")

    def at(self, number: int) -> Found | Failure:
        """The match whose first output is computed by a node, or why there is none."""
        self._failure = Failure(0, "")
        node = self.scope.nodes[number]
        for root in self.pattern.roots():
            if root.operator.op_type != node.op_type or root.operator.domain != domain_of(node.domain):
                continue
            if root.index >= len(node.output) or not node.output[root.index]:
                continue
            for state in self._node(root.operator, number, self._labelled(root, node.output[root.index], Found())):
                begun = state._replace(outputs=(node.output[root.index],))
                for whole in self._rest(self.pattern.outputs[1:], begun):
                    if self._alone(whole):
                        return whole
        return self._failure

    # ------------------------------------------------------------------ outputs
    def _rest(self, outputs: Sequence[Term], state: Found) -> Iterator[Found]:
        """The pattern's other outputs, each found from what is matched already."""
        if not outputs:
            yield state
            return
        for result in flatten(outputs[0]):
            if result.operator in state.nodes:
                starts = [state.nodes[result.operator]]
            else:
                near = {n for v in state.values.values() for n in ([v] if isinstance(v, str) else v or [])}
                near |= {o for k in state.nodes.values() for o in self.scope.nodes[k].output if o}
                readers = {k for name in near for k in self.scope.readers.get(name, ())}
                starts = [k for k in sorted(readers) if self.scope.nodes[k].op_type == result.operator.op_type]
                if not starts:
                    self._fail(state, f"got no {result.operator.title} beside it, expected one that reads the same values")
            for number in starts:
                names = self.scope.nodes[number].output
                if result.index >= len(names) or not names[result.index] or names[result.index] in state.outputs:
                    continue
                for found in self._node(result.operator, number, self._labelled(result, names[result.index], state)):
                    yield from self._rest(outputs[1:], found._replace(outputs=(*found.outputs, names[result.index])))

    def _alone(self, state: Found) -> bool:
        """Whether what the match computes inside is read by nothing outside, where the pattern does not allow it."""
        members = set(state.nodes.values())
        for operator, number in state.nodes.items():
            for name in self.scope.nodes[number].output:
                if not name or name in state.outputs:
                    continue
                outside = [k for k in self.scope.readers.get(name, ()) if k not in members]
                stays = operator.is_shared and not set(state.outputs) & set(self.scope.nodes[number].output)
                if (outside or name in self.scope.outputs) and not stays:
                    by = f"by {self.scope.where(outside[0])}" if outside else "as an output of the graph"
                    self._fail(
                        state,
                        f"got {name!r} of {self.scope.where(number)} read {by}, too, expected it inside of the match alone; "
                        "mark it .shared() in the pattern where that is no harm",
                    )
                    return False
        inside = {o for k in members for o in self.scope.nodes[k].output}
        if len(state.outputs) > 1 and self._feeds(set(state.outputs), members, inside):
            self._fail(state, "got an output that another one depends on by way of nodes outside, expected outputs beside each other")
            return False
        return True

    def _feeds(self, outputs: set[str], members: set[int], inside: set[str]) -> bool:
        """Whether something outside leads from an output back into the match."""
        entered = {k for name in outputs for k in self.scope.readers.get(name, ())} - members
        seen: set[int] = set()
        last = max(members)
        while entered:
            number = entered.pop()
            if number in seen or number > last:
                continue
            seen.add(number)
            for name in self.scope.nodes[number].output:
                readers = set(self.scope.readers.get(name, ()))
                if readers & members and name not in inside:
                    return True
                entered |= readers
        return False

    # ------------------------------------------------------------------ terms
    def _value(self, term: Term | None, name: str, where: tuple[int, int], state: Found) -> Iterator[Found]:
        """States in which `name`, which stands at `where`, is what a term says."""
        if term is None:
            if not name:
                yield state
            else:
                self._fail(state, f"{self._at(where)}: got {name!r}, expected no input there")
        elif isinstance(term, Variable):
            yield from self._variable(term, name, where, state)
        elif not name:
            self._fail(state, f"{self._at(where)}: got no input, expected {term}")
        elif isinstance(term, AnyOf):
            for alternative in term.alternatives:
                yield from self._value(alternative, name, where, state)
        elif isinstance(term, Constant):
            yield from self._constant(term, name, where, state)
        elif isinstance(term, Result):
            number = self.scope.producers.get(name)
            if number is None:
                kind = "a constant" if self.scope.is_constant(name) else "a value from outside of this graph"
                self._fail(state, f"{self._at(where)}: got {name!r}, {kind}, expected {term}")
                return
            node = self.scope.nodes[number]
            if (node.op_type, domain_of(node.domain)) != (term.operator.op_type, term.operator.domain):
                self._fail(state, f"{self._at(where)}: got {name!r} of {self.scope.where(number)}, expected {term}")
            elif term.index >= len(node.output) or node.output[term.index] != name:
                self._fail(state, f"{self._at(where)}: got {name!r}, expected output {term.index} of {self.scope.where(number)}")
            else:
                yield from self._node(term.operator, number, self._labelled(term, name, state))

    def _variable(self, term: Variable, name: str, where: tuple[int, int], state: Found) -> Iterator[Found]:
        if not name and not term.optional:
            self._fail(state, f"{self._at(where)}: got no input, expected {term}; where it may be absent, give it a default in the pattern")
            return
        bound = state.values.get(term.name, name or None)
        if bound != (name or None):
            self._fail(state, f"{self._at(where)}: got {name!r}, expected {bound!r}, which the pattern calls {term.name!r}, too")
            return
        yield state._replace(values={**state.values, term.name: name or None})

    def _constant(self, term: Constant, name: str, where: tuple[int, int], state: Found) -> Iterator[Found]:
        if not self.scope.is_constant(name):
            self._fail(state, f"{self._at(where)}: got {name!r}, which is computed at run time, expected {term}")
            return
        values = {**state.values, term.name: name} if term.name else state.values
        if term.value is None:
            if state.values.get(term.name, name) == name:
                yield state._replace(values=values)
            return
        found = self.scope.constant(name)
        assert found is not None
        weight, array = found
        if not _equal(array, term.value):
            shown = np.array2string(array.reshape(-1)[:8], threshold=8) if array.ndim else str(array)
            self._fail(state, f"{self._at(where)}: got the constant {shown} ({name!r}), expected {term}", close=True)
            return
        yield state._replace(values=values, reads=(*state.reads, weight))

    def _node(self, operator: Operator, number: int, state: Found) -> Iterator[Found]:
        if operator in state.nodes:
            if state.nodes[operator] == number:
                yield state
            else:
                self._fail(
                    state,
                    f"got {self.scope.where(number)}, expected {self.scope.where(state.nodes[operator])}, which the pattern uses twice",
                )
            return
        node = self.scope.nodes[number]
        state = state._replace(nodes={**state.nodes, operator: number})
        captured = self._attributes(operator, number, state)
        if captured is None:
            return
        if operator.n_outputs < sum(bool(o) for o in node.output) and operator.n_outputs > 1:
            self._fail(state, f"{self.scope.where(number)}: got {len(node.output)} outputs, expected {operator.n_outputs}")
            return
        state = state._replace(attributes=captured)
        given = list(node.input)
        while given and not given[-1]:
            given.pop()
        for order in self._orders(operator, given):
            yield from self._inputs(operator, number, order, state)

    def _orders(self, operator: Operator, given: list[str]) -> Iterator[list[str]]:
        free = any(isinstance(t, Variable) and t.variadic for t in operator.inputs)
        if operator.op_type in COMMUTATIVE and not operator.domain and not free and 2 <= len(given) <= _PERMUTED:
            yield from (list(order) for order in itertools.permutations(given))
        else:
            yield given

    def _inputs(self, operator: Operator, number: int, given: list[str], state: Found) -> Iterator[Found]:
        terms = list(operator.inputs)
        if terms and isinstance(terms[-1], Variable) and terms[-1].variadic:
            last = terms.pop()
            assert isinstance(last, Variable)
            rest = given[len(terms) :]
            bound = state.values.get(last.name, rest)
            if bound != rest:
                where = self.scope.where(number)
                self._fail(state, f"{where}: got inputs {rest}, expected {bound}, which the pattern calls {last.name!r}, too")
                return
            state = state._replace(values={**state.values, last.name: rest})
            given = given[: len(terms)]
        if len(given) > len(terms):
            self._fail(
                state, f"{self.scope.where(number)}: got {len(given)} inputs, expected {len(terms)}; a parameter …=None may be absent"
            )
            return
        names = given + [""] * (len(terms) - len(given))
        yield from self._each(terms, names, 0, number, state)

    def _each(self, terms: list[Term | None], names: list[str], position: int, number: int, state: Found) -> Iterator[Found]:
        if position == len(terms):
            yield state
            return
        for found in self._value(terms[position], names[position], (position, number), state):
            yield from self._each(terms, names, position + 1, number, found)

    def _at(self, where: tuple[int, int]) -> str:
        """An input of a node as messages name it."""
        return f"input {where[0]} of {self.scope.where(where[1])}"

    def _attributes(self, operator: Operator, number: int, state: Found) -> dict[str, Any] | None:
        """What attributes are captured; None where one does not fit."""
        node, found = self.scope.nodes[number], dict(state.attributes)
        opset = self.opsets.get(operator.domain, 1)

        def place() -> str:
            return f"{self.scope.where(number)}: attribute {name!r}"

        for name, wanted in operator.attributes.items():
            value = attribute_or_default(node, name, opset)
            if isinstance(wanted, AttributePattern):
                if wanted.name:
                    if wanted.name in found and not same_attribute(found[wanted.name], value):
                        before = f"{found[wanted.name]!r}, which the pattern calls {wanted.name!r}, too"
                        self._fail(state, f"{place()}: got {value!r}, expected {before}")
                        return None
                    found[wanted.name] = value
                wanted = wanted.where
            if callable(wanted):
                if value is None or not _holds(wanted, value):
                    self._fail(state, f"{place()}: got {value!r}, which the pattern's condition refuses")
                    return None
            elif name in operator.attributes and not isinstance(operator.attributes[name], AttributePattern):
                if wanted is ...:
                    if value is None:
                        self._fail(state, f"{place()}: got none, expected one")
                        return None
                elif not same_attribute(wanted, value):
                    self._fail(state, f"{place()}: got {value!r}, expected {wanted!r}")
                    return None
        return found

    def _labelled(self, result: Result, name: str, state: Found) -> Found:
        return state._replace(labels={**state.labels, result.label: name}) if result.label else state

    def _fail(self, state: Found, reason: str, close: bool = False) -> None:
        """Note why an attempt ends; `close` where what is there is of the right kind."""
        if (len(state.nodes), close) > (self._failure.matched, self._failure.close) or not self._failure.reason:
            self._failure = Failure(len(state.nodes), reason, close)


class ConditionError(Exception):
    """A pattern's condition on an attribute raised something, its cause."""

    def __init__(self, condition: Callable[[Any], Any], value: Any) -> None:
        super().__init__(condition, value)
        self.condition, self.value = condition, value


def _holds(condition: Callable[[Any], Any], value: Any) -> bool:
    try:
        return bool(condition(value))
    except Exception as error:
        raise ConditionError(condition, value) from error


def same_attribute(wanted: Any, value: Any) -> bool:
    """Whether an attribute has a value, floats within the rounding of fp32."""
    if wanted is None or value is None:
        return wanted is None and value is None
    if isinstance(wanted, str) or isinstance(value, str):
        return bool(wanted == value)
    try:
        a, b = np.asarray(wanted), np.asarray(value)
        if a.dtype.kind in "iub" and b.dtype.kind in "iub":
            return a.shape == b.shape and bool((a == b).all())
        return a.shape == b.shape and bool(np.allclose(a, b, rtol=_ROUNDING_ELSE, atol=0.0))
    except (TypeError, ValueError):
        return bool(wanted == value)


def _equal(array: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    """Whether a constant is what a pattern says: numbers within what its type rounds to, of any rank where it is one number."""
    if array.size != wanted.size or (wanted.ndim > 1 and array.shape != wanted.shape) or array.dtype.kind in "OSU":
        return False
    kind = dtype(array.dtype)
    a, b = array.reshape(-1), wanted.reshape(-1)
    if not kind.is_float:
        return bool((a.astype(np.int64) == b).all())
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=_ROUNDING.get(kind.name, _ROUNDING_ELSE), atol=0.0))


def opsets_of(model: onnx.ModelProto) -> dict[str, int]:
    """Versions of a model's operator domains."""
    return {domain_of(o.domain): o.version for o in model.opset_import}


__all__ = ["ConditionError", "Failure", "Found", "Matcher", "opsets_of", "title"]
