"""Applies rules to a model until none matches any more, or to nothing at all where one of them fails."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from dovetail.core.errors import Error, RuleError
from dovetail.frontend.reader import ShapeOverride
from dovetail.ir import limit
from dovetail.model.proto_graph import unique_name
from dovetail.model.rules.check import check_types
from dovetail.model.rules.commit import Plan, commit, put_back
from dovetail.model.rules.definition import Rule, RuleSource, failed_at, select
from dovetail.model.rules.log import KEPT, Applied, NearMiss, RuleLog
from dovetail.model.rules.match import Declined, Match, Value
from dovetail.model.rules.pattern import ConditionError, Failure, Matcher, opsets_of
from dovetail.model.rules.replacement import ReplacementBuilder, TooOld
from dovetail.model.rules.scope import Scope, operator_types, scopes
from dovetail.model.rules.types import Types
from dovetail.model.weights import skeleton

if TYPE_CHECKING:
    from dovetail.model.model import Model

Array = np.ndarray[Any, Any]

_GENERATIONS = 100
"""Replacements of replacements of …: more of them than this are a loop."""


def apply_rules(
    model: Model, rules: Iterable[RuleSource] | RuleSource | None = None, *, shapes: ShapeOverride | None = None
) -> RuleLog:
    """Rewrite a model by rules, in place, until none of them matches; a model that a rule fails on stays as it was.

    Args:
        rules: see `definition.select`: None for all registered and shipped ones, files, names, rules, or "none".
        shapes: of inputs, where they are to be taken for something else than the model declares.

    Raises:
        RuleError: a rule cannot be loaded, fails, breaks a type, or never ends.
        UsageError: an unknown rule.
    """
    return rewrite_proto(model.proto, model.folder, select(rules), shapes).log


@dataclass
class Rewriting:
    """What became of a proto.

    Attributes:
        reads: the weights that rules relied on, with their values.
        lost: initializers that nothing reads any more because of rules, with their values.
        proto: the model with the new nodes.
        original: hash of the nodes that the model had; "" where none changed.
    """

    log: RuleLog = field(default_factory=RuleLog)
    reads: dict[str, tuple[Array, tuple[str, ...]]] = field(default_factory=dict)
    lost: dict[str, Array] = field(default_factory=dict)
    proto: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    original: str = ""

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of the initializers that are lost."""
        return tuple(self.lost)


def rewrite_proto(
    proto: onnx.ModelProto, folder: Path | None, rules: Sequence[Rule], shapes: ShapeOverride | None = None, *, copy: bool = False
) -> Rewriting:
    """Rewrite a proto in place; one that nothing matches, or a rule fails on, is not touched.

    Args:
        copy: leave it as it is in any case, and give a copy the new nodes.

    Raises:
        RuleError: as `apply_rules`.
    """
    result = Rewriting(proto=proto)
    result.log.counts = {rule.name: (0, 0) for rule in rules}
    if _present(proto, rules, result.log):
        _Driver(proto, folder, rules, shapes or {}, result, copy).run()
    return result


def _present(proto: onnx.ModelProto, rules: Sequence[Rule], log: RuleLog) -> list[Rule]:
    """The rules whose operators the model has; the others are noted."""
    types = operator_types(proto.graph) if rules else set[str]()
    found = []
    log.skipped.clear()
    for rule in rules:
        lacking = min((sorted(p.required - types) for p in rule.patterns), key=len)
        if lacking:
            log.skipped[rule.name] = f"the model has no {', no '.join(lacking)}"
        else:
            found.append(rule)
    return found


class _Driver:
    """Rounds of matching and replacing over a copy of a model's nodes; weights are never copied."""

    def __init__(
        self, proto: onnx.ModelProto, folder: Path | None, rules: Sequence[Rule], shapes: ShapeOverride, result: Rewriting, copy: bool
    ) -> None:
        self.copy = copy
        self.proto, self.folder, self.rules, self.shapes, self.result = proto, folder, rules, shapes, result
        self.work = proto
        self.made: dict[str, tuple[str, ...]] = {}  # by name of a value that a rule computes: the rules that led to it
        self.taken: set[str] = set()

    def run(self) -> None:
        """Until nothing matches; then the proto gets the nodes."""
        while True:
            graphs = scopes(self.work, self.proto.graph.initializer, self.folder)
            types = Types(self.work, self.proto.graph.initializer, self.folder, self.shapes)
            self.taken = {n for s in graphs for n in (*s.producers, *s.inputs, *s.tensors, *s.readers)}
            plans, misses = self._round(graphs, types)
            plans = plans[: limit.remaining(len(plans))]
            if not plans:
                break
            if self.work is self.proto:
                self.work = skeleton(self.proto, 0)  # no weight is copied
                continue  # the plans are numbers of nodes, but scopes hold the protos of one model
            commit(self.work, graphs, plans)
            self._note(plans)
        self._finish(misses)

    # ------------------------------------------------------------------ a round
    def _round(self, graphs: list[Scope], types: Types) -> tuple[list[Plan], list[NearMiss]]:
        """What to replace now, no node twice; and what nearly matched."""
        plans: list[Plan] = []
        misses: list[NearMiss] = []
        claimed: dict[int, set[int]] = {k: set() for k in range(len(graphs))}
        for rule in _present(self.work, self.rules, self.result.log):  # rules may write what others look for
            roots = {r.operator.op_type for p in rule.patterns for r in p.roots()}
            for k, scope in enumerate(graphs):
                matchers = [Matcher(p, scope, opsets_of(self.work)) for p in rule.patterns]
                # From the end: what ends later may be a larger form of what ends earlier.
                for number in sorted((n for t in roots for n in scope.by_type.get(t, ())), reverse=True):
                    if number in claimed[k]:
                        continue
                    outcome = self._attempt(rule, matchers, scope, number, types, claimed[k])
                    if isinstance(outcome, Plan):
                        plans.append(outcome)
                        claimed[k] |= outcome.members
                    elif outcome is not None:
                        misses.append(outcome)
        return plans, misses

    def _attempt(
        self, rule: Rule, matchers: list[Matcher], scope: Scope, number: int, types: Types, claimed: set[int]
    ) -> Plan | NearMiss | None:
        best = Failure(0, "")
        size, declined = 0, False
        for matcher in matchers:
            try:
                found = matcher.at(number)
            except ConditionError as error:
                cause = error.__cause__
                assert cause is not None
                raise RuleError(
                    f"rule {rule.name!r} at {scope.where(number)}: its condition at {failed_at(cause, error.condition)} failed on "
                    f"{error.value!r} ({type(cause).__name__}: {cause}); correct the rule"
                ) from cause
            if isinstance(found, Failure):
                if found.matched > best.matched:
                    best, size = found, matcher.pattern.size
                continue
            members = set(found.nodes.values())
            if members & claimed:
                return None  # the next round sees what is there then
            match = Match(rule.name, found, scope, types, opsets_of(self.work))
            outcome = self._replace(rule, match)
            if isinstance(outcome, Plan):
                return outcome
            if len(members) >= best.matched:
                best, size, declined = Failure(len(members), f"declined: {outcome.reason}"), len(members), True
        # What rules wrote nearly fits many a pattern.
        written = any(scope.path + o in self.made for o in scope.nodes[number].output)
        if not best.reason or written or (best.matched < rule.near and not declined):
            return None
        return NearMiss(rule.name, scope.where(number), best.matched, size, best.reason)

    def _replace(self, rule: Rule, match: Match) -> Plan | Declined:
        """Call the user's function, and check what it gives."""
        builder = ReplacementBuilder(match, self._unique)
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for name in rule.parameters:
            if name == rule.variadic:
                positional += match.argument(name) or []
            elif name in match or name == "match" or name not in rule.defaults:
                if rule.variadic and not named and name != "match":
                    positional.append(match.argument(name))
                else:
                    named[name] = match.argument(name)
        try:
            returned = rule.replacement(builder, *positional, **named)
        except TooOld as reason:
            return Declined(str(reason))
        except RuleError as error:
            raise match.problem(f"({failed_at(error, rule.replacement)}) {error}") from error
        except Error as error:
            raise match.problem(f"({failed_at(error, rule.replacement)}) {type(error).__name__}: {error}") from error
        except Exception as error:
            raise match.problem(
                f"its replacement failed at {failed_at(error, rule.replacement)} ({type(error).__name__}: {error}); correct the rule"
            ) from error
        if isinstance(returned, Declined):
            return returned
        values = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
        if len(values) != len(match.found.outputs):
            raise match.problem(
                f"its replacement returned {len(values)} values, expected {len(match.found.outputs)} as the pattern has ({rule.place})"
            )
        for position, value in enumerate(values):
            if not isinstance(value, Value):
                raise match.problem(
                    f"its replacement returned {value!r} as output {position}, expected a value, or `return match.decline(\"reason\")` "
                    f"({rule.place})"
                )
        results = [v.name for v in values]
        needed = _needed(builder.nodes, results)
        unchecked = check_types(match, needed, results, self.work)
        return Plan(match, needed, results, unchecked, self._generation(rule, match))

    def _generation(self, rule: Rule, match: Match) -> tuple[str, ...]:
        """The rules that led here, this one last.

        Raises:
            RuleError: so many that they will not end.
        """
        names = [o for k in match.found.nodes.values() for o in match.scope.nodes[k].output if o]
        chain = (*max((self.made.get(match.scope.path + n, ()) for n in names), key=len, default=()), rule.name)
        if len(chain) > _GENERATIONS:
            loop = tuple(dict.fromkeys(chain[-10:]))
            who = f"rule {loop[0]!r} matches" if len(loop) == 1 else f"rules {', '.join(map(repr, loop))} match"
            raise RuleError(
                f"{who} what {'it' if len(loop) == 1 else 'they'} wrote, {_GENERATIONS} times over (last at {match.nodes[-1]}): got rules "
                "that never end, expected a replacement that no pattern of theirs fits; make the pattern narrower, or decline"
            )
        return chain

    def _unique(self, name: str) -> str:
        """A name that nothing in the model has."""
        return unique_name(name, self.taken)

    # ------------------------------------------------------------------ results
    def _note(self, plans: list[Plan]) -> None:
        """Write down what a round replaced."""
        for plan in plans:
            match = plan.match
            for name in {o for n in plan.nodes for o in n.output} | set(match.found.outputs):
                self.made[match.scope.path + name] = plan.chain
            gone = sorted(plan.gone)
            limit.made(f"rewrite rule {match.rule!r}", ", ".join(match.names(gone)))
            self.result.log.matches.append(
                Applied(
                    match.rule, match.names(gone), tuple(match.scope.nodes[k].op_type for k in gone), match.found.outputs,
                    tuple(n.op_type for n in plan.nodes if n.op_type != "Constant"), tuple(sorted(match.reads)), plan.unchecked,
                )
            )  # fmt: skip
            for name, array in match.reads.items():
                rules = self.result.reads.get(name, (array, ()))[1]
                self.result.reads[name] = (array, tuple(dict.fromkeys((*rules, match.rule))))

    def _finish(self, misses: list[NearMiss]) -> None:
        """Count, and give the proto its new nodes."""
        log = self.result.log
        for rule in self.rules:
            if any(m.rule == rule.name for m in log.matches):
                log.skipped.pop(rule.name, None)
            mine = [m for m in misses if m.rule == rule.name]
            log.counts[rule.name] = (sum(m.rule == rule.name for m in log.matches), len(mine))
            log.near_misses += sorted(mine, key=lambda m: -m.matched)[:KEPT]
        log.near_misses.sort(key=lambda m: -m.matched / max(m.size, 1))
        if log.matches:
            nodes = hashlib.sha256()
            for node in self.proto.graph.node:
                nodes.update(node.SerializeToString(deterministic=True))
            self.result.original = nodes.hexdigest()
            if self.copy:
                self.result.proto = onnx.ModelProto()
                self.result.proto.CopyFrom(self.proto)
            self.result.lost = put_back(self.work, self.result.proto, self.folder)


def _needed(nodes: Sequence[onnx.NodeProto], results: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that results depend on."""
    wanted, kept = set(results), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]
