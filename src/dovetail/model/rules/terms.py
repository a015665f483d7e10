"""What a pattern is made of: terms, which tracing a user's pattern function gives."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import RuleError
from dovetail.frontend.protos import domain_of

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Max", "Min", "Sum", "Mean"})
"""ONNX's operators whose inputs may be in any order."""


class Term:
    """A part of a pattern that stands for a value."""

    def shared(self) -> Term:
        """Only what a node computes may be shared."""
        raise RuleError(f"got .shared() on {self}, expected it on what a node computes; drop it")


@dataclass(eq=False)
class Variable(Term):
    """Any value; the same one wherever the pattern uses it."""

    name: str
    optional: bool = False
    variadic: bool = False

    def __str__(self) -> str:
        return f"the input {self.name!r}"

    def __iter__(self) -> Iterator[Any]:
        raise RuleError(f"got an unpacked {self.name!r}, expected it as it is; several inputs are a parameter *{self.name}")


@dataclass(eq=False)
class Constant(Term):
    """A constant: of a given value, or any one, captured by its name."""

    value: np.ndarray[Any, Any] | None = None
    name: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"a constant ({self.name!r})"
        return f"the constant {np.array2string(self.value.reshape(-1)[:8], threshold=8) if self.value.ndim else self.value}"


@dataclass(eq=False)
class AnyOf(Term):
    """One of several terms; the first that fits."""

    alternatives: tuple[Term, ...]

    def __str__(self) -> str:
        return " or ".join(str(a) for a in self.alternatives)


@dataclass(eq=False)
class Operator:
    """A node of a pattern."""

    op_type: str
    domain: str
    inputs: tuple[Term | None, ...]
    attributes: dict[str, Any]
    n_outputs: int
    is_shared: bool = False

    @property
    def title(self) -> str:
        """The op as users write it."""
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type


@dataclass(eq=False)
class Result(Term):
    """An output of a node of a pattern."""

    operator: Operator
    index: int
    label: str = ""

    def named(self, label: str) -> Result:
        """Give the value a name, by which the replacement finds it: `match["label"]`."""
        self.label = label
        return self

    def shared(self) -> Result:
        """Let nodes outside of the match read this value, too: its node then stays where it is still needed."""
        self.operator.is_shared = True
        return self

    def __str__(self) -> str:
        return f"what {self.operator.title} computes"


@dataclass(frozen=True)
class AttributePattern:
    """An attribute: captured by a name, held against a predicate, or both."""

    name: str = ""
    where: Callable[[Any], Any] | None = None


class PatternBuilder:
    """The `op` that pattern functions get: every attribute of it is an ONNX operator."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.call(op_type, *inputs, **attributes)

    def call(self, title: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node of an operator by its full name, such as "my.domain::Op"; several `outputs` come as a tuple."""
        domain, _, op_type = title.rpartition("::")
        _check_spelling(op_type, domain_of(domain), attributes)
        terms = tuple(as_term(x) for x in inputs)
        if any(isinstance(t, Variable) and t.variadic for t in terms[:-1]):
            raise RuleError(f"{title}: got *inputs ahead of another input, expected them last")
        operator = Operator(op_type, domain_of(domain), terms, attributes, outputs)
        made = [Result(operator, index) for index in range(outputs)]
        self.results += made
        return made[0] if outputs == 1 else tuple(made)

    def constant(self, name: str = "") -> Constant:
        """Any constant; by this name the replacement gets it."""
        return Constant(name=name)

    def any_of(self, *alternatives: Any) -> AnyOf:
        """One of several forms of a value; the first that fits counts."""
        if len(alternatives) < 2:
            raise RuleError(f"any_of: got {len(alternatives)} alternatives, expected two or more")
        terms = [as_term(a) for a in alternatives]
        return AnyOf(tuple(t for t in terms if t is not None))

    def maybe(self, value: Result) -> AnyOf:
        """A node that may be missing: `op.maybe(op.Cast(x, to=1))` is the Cast of x, or x itself."""
        if not isinstance(value, Result) or not value.operator.inputs or value.operator.inputs[0] is None:
            raise RuleError(f"maybe: got {value!r}, expected what a node with an input computes, such as op.maybe(op.Identity(x))")
        return AnyOf((value, value.operator.inputs[0]))

    def attribute(self, name: str = "", where: Callable[[Any], Any] | None = None) -> AttributePattern:
        """An attribute's value: captured as `name`, and only where `where(value)` is true."""
        return AttributePattern(name, where)


@functools.cache
def _operators() -> dict[str, set[str]]:
    """ONNX's operators, with the attributes that any version of them has."""
    found: dict[str, set[str]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            found.setdefault(schema.name, set()).update(schema.attributes)
    return found


def _check_spelling(op_type: str, domain: str, attributes: Iterable[str]) -> None:
    if domain:
        return
    known = _operators()
    if op_type not in known:
        lower = {name.lower(): name for name in known}
        near = difflib.get_close_matches(op_type.lower(), lower, 1)
        meant = lower[near[0]] if near else "one of ONNX's"
        raise RuleError(
            f"got the operator {op_type!r}, which ONNX has not, expected {meant}; others have a domain: op.call('my.domain::{op_type}', …)"
        )
    if wrong := sorted(set(attributes) - known[op_type]):
        raise RuleError(f"{op_type}: got the attribute {wrong[0]!r}, expected one of {', '.join(sorted(known[op_type])) or 'none'}")


def as_term(value: Any) -> Term | None:
    """A term of what stands at an input: a term, None (absent), or a constant's value."""
    if value is None or isinstance(value, Term):
        return value
    if isinstance(value, bool | int | float | Sequence | np.ndarray | np.generic) and not isinstance(value, str | bytes):
        return Constant(np.asarray(value))
    raise RuleError(f"got {value!r} at an input, expected a value of the pattern, a number, an array or None")


@dataclass
class Pattern:
    """A traced pattern function."""

    outputs: tuple[Term, ...]
    variables: dict[str, Variable]
    constants: dict[str, Constant] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    size: int = 0

    @property
    def names(self) -> set[str]:
        """All that a replacement may ask for by name."""
        return {*self.variables, *self.constants, *self.labels, *self.attributes}

    def roots(self) -> list[Result]:
        """The alternatives of the first output."""
        return list(flatten(self.outputs[0]))

    @functools.cached_property
    def required(self) -> frozenset[str]:
        """Operator types without which nothing matches."""
        known: dict[int, frozenset[str]] = {}
        return frozenset[str]().union(*(_required(t, known) for t in self.outputs))


def flatten(term: Term) -> Iterator[Result]:
    """The results among the alternatives of a term.

    Raises:
        RuleError: one of them is no result of a node.
    """
    if isinstance(term, AnyOf):
        for alternative in term.alternatives:
            yield from flatten(alternative)
    elif isinstance(term, Result):
        yield term
    else:
        raise RuleError(f"got {term} as an output of the pattern, expected what a node computes: a pattern needs a root")


def _required(term: Term | None, known: dict[int, frozenset[str]]) -> frozenset[str]:
    if id(term) not in known:
        found = frozenset[str]()
        if isinstance(term, AnyOf):
            found = frozenset.intersection(*(_required(a, known) for a in term.alternatives))
        elif isinstance(term, Result):
            found = frozenset({term.operator.op_type}).union(*(_required(t, known) for t in term.operator.inputs))
        known[id(term)] = found
    return known[id(term)]


def walk(terms: Sequence[Term | None]) -> Iterator[Term]:
    """All terms below some, each once."""
    seen: set[int] = set()
    pending = list(terms)
    while pending:
        term = pending.pop()
        if term is None or id(term) in seen:
            continue
        seen.add(id(term))
        yield term
        if isinstance(term, AnyOf):
            pending += term.alternatives
        elif isinstance(term, Result):
            pending += term.operator.inputs


def trace(function: Callable[..., Any]) -> Pattern:
    """Call a pattern function once, and keep what it says.

    Raises:
        RuleError: it has no root, an input that nothing leads to, or is no pattern.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise RuleError("got a pattern without parameters, expected (op, x, …)")
    variables: dict[str, Variable] = {}
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            raise RuleError(f"got the keyword parameter {parameter.name!r} of a pattern, expected inputs by position")
        variadic = parameter.kind == parameter.VAR_POSITIONAL
        variables[parameter.name] = Variable(parameter.name, parameter.default is not parameter.empty, variadic)
    builder = PatternBuilder()
    returned = function(builder, *variables.values())
    outputs = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    if not outputs:
        raise RuleError("got a pattern that returns nothing, expected what a node computes: a pattern needs a root")
    for output in outputs:
        if not isinstance(output, Term):
            raise RuleError(f"got {output!r} as an output of the pattern, expected what a node computes: a pattern needs a root")
        list(flatten(output))
    reached = list(walk(outputs))
    lost = [name for name, variable in variables.items() if variable not in reached]
    if lost:
        raise RuleError(f"got inputs that no output of the pattern depends on: {', '.join(lost)}; use them, or take them out")
    operators = {id(t.operator): t.operator for t in reached if isinstance(t, Result)}
    captured = tuple(
        a.name for o in operators.values() for a in o.attributes.values() if isinstance(a, AttributePattern) and a.name
    )
    labels = tuple(t.label for t in builder.results if t.label)
    constants = {t.name: t for t in reached if isinstance(t, Constant) and t.name}
    pattern = Pattern(outputs, variables, constants, labels, captured, len(operators))
    pattern.size = max(_depth(o) for o in outputs)
    return pattern


def _depth(term: Term | None) -> int:
    """How many nodes the largest alternative of a term has, counted as a tree."""
    nodes: dict[int, None] = {}

    def count(current: Term | None, found: dict[int, None]) -> dict[int, None]:
        if isinstance(current, AnyOf):
            return max((count(a, dict(found)) for a in current.alternatives), key=len)
        if isinstance(current, Result) and id(current.operator) not in found:
            found[id(current.operator)] = None
            for inner in current.operator.inputs:
                found = count(inner, found)
        return found

    return len(count(term, nodes))
