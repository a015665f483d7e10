"""From the names of a source to the names of an engine's weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dovetail.api.recipes import Recipe, WeightName
from dovetail.api.weight_sources import Weights
from dovetail.core.errors import RefitError
from dovetail.engine.plan import Plan
from dovetail.runtime.weights import unknown

Array = np.ndarray[Any, Any]
WeightNames: TypeAlias = Mapping[str, WeightName] | Callable[[str], WeightName | None]
"""By weight of the engine what it is in the source; a function gives None for weights that the source calls the same or lacks."""

# Wrappers of torch that put a component of their own into every name.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Counters that batch normalisation keeps for training.
_COUNTERS = ".num_batches_tracked"


class WeightMap(dict[str, WeightName]):
    """What `match_weights` found, for `refit(names=…)`: by weight of the engine what it is in the source.

    Attributes:
        missing: weights of the engine that nothing in the source is equal to.
        ambiguous: by weight, names of several arrays that are equal to it, and of which none is nearer by its name.
        unused: names of the source that no weight follows from; a refit with this map leaves them aside.
    """

    def __init__(
        self, found: Mapping[str, WeightName], missing: Collection[str] = (), ambiguous: Mapping[str, Collection[str]] | None = None,
        unused: Collection[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(found)
        self.missing = tuple(missing)
        self.ambiguous = {k: tuple(v) for k, v in (ambiguous or {}).items()}
        self.unused = tuple(unused)

    def __str__(self) -> str:
        lines = [f"{name} = {recipe}" for name, recipe in self.items()]
        lines += [f"{name}: ambiguous, {' or '.join(of)}" for name, of in self.ambiguous.items()]
        lines += [f"{name}: missing" for name in self.missing]
        return "\n".join(lines + [f"unused: {name}" for name in self.unused])


class _Reading(Mapping[str, Array]):
    """A source as a function sees it: what it reads is used."""

    def __init__(self, source: Weights, used: set[str]) -> None:
        self._source, self._used = source, used

    def __getitem__(self, name: str) -> Array:
        found = self._source[name]
        self._used.add(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


@dataclass
class Resolved:
    """The changes of a refit, and what is wrong with the names."""

    changes: dict[str, Array] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def required(plan: Plan, constants: Collection[str] = ()) -> list[str]:
    """The weights that a complete source has: all but guarded ones, those of the compiler, and constants of nodes."""
    fixed = {g.weight for g in plan.guards}.union(constants)
    return [s.name for s in plan.weights if s.name not in fixed and not s.name.startswith("~")]


def resolve(
    plan: Plan, source: Weights, *, names: WeightNames | None = None, ignore: Collection[str] = (),
    exported: Callable[[], Mapping[str, Recipe]] = dict, dropped: Collection[str] = (),
) -> Resolved:  # fmt: skip
    """The arrays of a source by the engine's names.

    What `names` says comes first, then equal names, then names without torch's wrappers (`module.`, `_orig_mod.`) or with a prefix that
    all have in common, then `exported`: what the exporter did to the weights that it renamed.

    Args:
        ignore: patterns of names in the source to leave aside.
        dropped: weights of the model that the engine does without.
    """
    result = Resolved()
    known = {spec.name for spec in plan.weights}
    left = [n for n in source if not any(fnmatch.fnmatchcase(n, pattern) for pattern in ignore)]
    used = _by_given_names(plan, source, names, set(left), result)
    unused = set(names.unused) if isinstance(names, WeightMap) else set()
    rest: list[str] = []
    for name in left:
        if name in used or name in unused:
            continue
        if name in known and name not in result.changes:
            result.changes[name] = source[name]
        elif name not in known:
            rest.append(name)
    whole = not used and not result.changes  # no name is the engine's: perhaps all have a prefix more or less
    rest = _without_wrappers(rest, known, source, result, whole)
    if rest and not source.model:
        rest = _as_exported(rest, exported(), source, result)
    taken = set(left).difference(rest) if rest else set()
    tied = {_memory(source, n) for n in taken} - {None}
    for name in rest:
        if name in dropped or name.endswith(_COUNTERS) or _memory(source, name) in tied:
            continue
        result.problems.append(unknown(plan, name, source[name], hint=len(result.problems) < 20))
    return result


def _by_given_names(plan: Plan, source: Weights, names: WeightNames | None, left: set[str], result: Resolved) -> set[str]:
    """Take what the user's `names` say; returns the names of the source that they use."""
    used: set[str] = set()
    if names is None:
        return used
    specs = [s.name for s in plan.weights]
    if isinstance(names, Mapping):
        strange = [n for n in names if n not in set(specs)]
        result.problems += [f"names: {unknown(plan, n)}" for n in strange]
        pairs = [(n, names[n]) for n in names if n not in strange]
    else:
        pairs = [(n, found) for n in specs if (found := names(n)) is not None]
    strict = isinstance(names, Mapping) and not isinstance(names, WeightMap)
    for name, given in pairs:
        if isinstance(given, str) or (isinstance(given, tuple) and given and isinstance(given[0], str)):
            given = Recipe("arrange", (given,)) if isinstance(given, str) else Recipe("arrange", (given[0],), axes=tuple(given[1]))
        if not callable(given):
            raise RefitError(
                f"names[{name!r}]: got {given!r}, expected a name, a name with the axes of a transposition, or a function of the source"
            )
        if isinstance(given, Recipe):
            absent = [n for n in given.inputs if n not in left]
            if absent:
                if strict or len(absent) < len(given.inputs):
                    result.problems.append(f"weight {name!r}: got no {absent[0]!r} in the source, expected it for {given}")
                continue
        reading = _Reading(source, used)
        try:
            result.changes[name] = np.asarray(given(reading))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            what = given if isinstance(given, Recipe) else getattr(given, "__name__", "names")
            result.problems.append(f"weight {name!r}: {what} failed ({type(error).__name__}: {error})")
    return used


def _without_wrappers(rest: list[str], known: set[str], source: Weights, result: Resolved, whole: bool) -> list[str]:
    """Take names that differ by wrappers, or all by one prefix."""
    if not rest:
        return rest
    plain = {name: ".".join(p for p in name.split(".") if p not in WRAPPERS) for name in rest}
    for found in (plain, _prefixed(known, plain) if whole else {}):
        hits = {n: to for n, to in found.items() if to in known and to not in result.changes}
        if len(set(hits.values())) == len(hits):
            result.changes.update({to: source[n] for n, to in hits.items()})
            rest = [n for n in rest if n not in hits]
            plain = {n: plain[n] for n in rest}
    return rest


def _prefixed(known: set[str], plain: Mapping[str, str]) -> dict[str, str]:
    """The names with the one prefix more or less with which all are known; empty if there is none."""
    counted = [n for n in plain.values() if not n.endswith(_COUNTERS)]
    if not counted:
        return {}
    first = counted[0]
    fewer = [first[: i + 1] for i, c in enumerate(first) if c == "."]
    more = [k[: -len(first)] for k in known if k.endswith(f".{first}")]
    for prefix in fewer:
        if all(n.startswith(prefix) and n[len(prefix) :] in known for n in counted):
            return {n: to[len(prefix) :] for n, to in plain.items()}
    for prefix in sorted(more):
        if all(prefix + n in known for n in counted):
            return {n: prefix + to for n, to in plain.items()}
    return {}


def _as_exported(rest: list[str], exported: Mapping[str, Recipe], source: Weights, result: Resolved) -> list[str]:
    """Take what the exporter renamed and transposed."""
    left = set(rest)
    for name, recipe in exported.items():
        if name not in result.changes and left.issuperset(recipe.inputs) and source[recipe.inputs[0]].ndim == 2:
            result.changes[name] = recipe(source)
    used = {n for name, recipe in exported.items() if name in result.changes for n in recipe.inputs}
    return [n for n in rest if n not in used]


def _memory(source: Weights, name: str) -> object:
    """What tells that two names stand for one tensor; None if nothing does."""
    value = source.given(name)
    if isinstance(value, np.ndarray):
        return (value.__array_interface__["data"][0], value.shape, value.strides) if value.size else None
    pointer = getattr(value, "data_ptr", None)
    if callable(pointer):
        return (pointer(), tuple(value.shape), tuple(value.stride())) if value.numel() else None
    return None
