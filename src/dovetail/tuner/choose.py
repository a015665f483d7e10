"""Chooses a tactic and configuration per group from measured times.

Equal groups are measured once, the most expensive first, until the budget is spent; what is left is
chosen by rule, now and in later builds with no larger budget. The order of preference breaks ties: a
candidate is passed over only for one that is faster by more than the noise. From the same times the
choice is always the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dovetail.codegen.compiler import compile_many
from dovetail.codegen.kernel import Kernel, translation_unit
from dovetail.codegen.tactic import Emitted, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.core import dims
from dovetail.core.dims import evaluate
from dovetail.core.env import env
from dovetail.core.log import logger
from dovetail.device.cpu import KernelLibrary
from dovetail.ir.graph import Time
from dovetail.ops.registry import CONTRACTION, find
from dovetail.passes.layout import fulfils
from dovetail.tuner.launch import amount, host_pool, sizes_of
from dovetail.tuner.measure import Candidate, measure
from dovetail.tuner.timing_cache import TimingCache, timing_key

NOISE = 0.03
"""Times closer than this share count as equal."""

# Below this many operations a run costs less than the differences that could be measured.
_MIN_FLOPS = 2_000_000
_MAX_CANDIDATES = 6
_log = logger("tune")

Decision = tuple[Tactic, tuple[tuple[str, int | str], ...], tuple[tuple[str, float], ...]]


@dataclass
class _Contest:
    """A distinct group with its candidates."""

    group: Group
    candidates: list[Candidate]
    sizes: Mapping[str, int]
    key: str
    times: dict[str, float]
    count: int = 1
    weight: float = 0.0


class Tuner:
    """Decides for all groups of a model at once.

    Args:
        threads: team size to measure with.
        budget_s: seconds that compiling and measuring candidates may take.
        sizes: values of shape symbols to measure at; others are taken as 1 for the first axis of
            an operand and 64 elsewhere.
        progress: called as progress("tune", groups done, groups).
    """

    def __init__(
        self,
        threads: int,
        budget_s: float,
        cache: TimingCache | None = None,
        sizes: Mapping[str, int] | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self.threads, self.budget_s, self.given, self.progress = threads, budget_s, dict(sizes or {}), progress
        self.cache = TimingCache() if cache is None else cache
        self.sizes: dict[str, int] = {}

    def __call__(
        self, groups: Sequence[tuple[Group, list[Tactic]]], target: Target, sizes: Mapping[str, int]
    ) -> list[Decision]:
        """One decision per group, in order; `sizes` are those to measure at, where the tuner was given no others."""
        self.sizes = {**sizes, **self.given}
        contests: dict[str, _Contest] = {}
        keys: list[str | None] = []
        for group, able in groups:
            found = self._contest(group, able, target)
            keys.append(None if found is None else found.key)
            if found is not None:
                contests.setdefault(found.key, found).count += found.key in contests
        open_ = [
            c for c in contests.values()
            if any(x.name not in c.times for x in c.candidates) and self.cache.skipped(c.key) < self.budget_s
        ]  # fmt: skip
        if open_ and target.supports_host():
            self._measure(sorted(open_, key=lambda c: (-c.weight * c.count, c.key)), target)
        decisions = []
        for (group, able), key in zip(groups, keys, strict=True):
            contest = contests[key] if key is not None else None
            decisions.append(_by_rule(group, able, target) if contest is None else decide(contest.candidates, contest.times))
        return decisions

    def _contest(self, group: Group, able: list[Tactic], target: Target) -> _Contest | None:
        """The candidates of a group that is worth measuring; None if there is nothing to choose."""
        if group.anchor is None or (spec := find(group.anchor.op)) is None or (spec.kind != CONTRACTION and group.kind != "plugin"):
            return None
        found = candidates(group, able, target)
        if len(found) < 2:
            return None
        sizes = sizes_of(group, self.sizes)
        flops = _plugin_work(group, found[0], sizes, target) if group.kind == "plugin" else _flops(group, sizes)
        if flops < _MIN_FLOPS:
            return None
        key = timing_key(group, sizes, target, self.threads)
        return _Contest(group, found, sizes, key, self.cache.get(key), weight=float(flops))

    def _measure(self, contests: list[_Contest], target: Target) -> None:
        start = time.monotonic()
        batch = max(1, env().jobs)
        done = 0
        try:
            while done < len(contests):
                self.progress("tune", done, len(contests))
                # The next batch will take about as long as the ones before did on average.
                elapsed = time.monotonic() - start
                expected = elapsed / done * batch if done else 0.0
                if elapsed + expected > self.budget_s:
                    break
                self._measure_batch(contests[done : done + batch], target)
                done += batch
            for contest in contests[done:]:
                self.cache.skip(contest.key, self.budget_s)
        finally:
            self.cache.flush()  # an interrupted build keeps what it has measured
        self.progress("tune", len(contests), len(contests))
        _log.info("measured %d of %d groups in %.1f s", min(done, len(contests)), len(contests), time.monotonic() - start)

    def _measure_batch(self, contests: list[_Contest], target: Target) -> None:
        emitted = [[c.emit(contest.group, target) for c in contest.candidates] for contest in contests]
        units = [translation_unit(_kernels(codes), target) for codes in emitted]
        workers = host_pool(target)
        # Nothing else runs while times are taken: the whole batch is compiled first.
        for contest, codes, path in zip(contests, emitted, compile_many(units, target), strict=True):
            library = KernelLibrary(path)
            us = measure(codes, contest.sizes, library.address, workers, self.threads)
            contest.times = {c.name: round(t, 2) for c, t in zip(contest.candidates, us, strict=True)}
            self.cache.put(contest.key, contest.times)
            _log.debug("%s: %s", contest.group.node.where, contest.times)


def candidates(group: Group, able: Sequence[Tactic], target: Target) -> list[Candidate]:
    """What competes for a group, in order of preference: tactics that accept its layouts, with their configurations.

    A fallback tactic competes only where nothing else is able.
    """
    fitting = [t for t in able if t is able[0] or (not t.fallback and _accepts(t, group, target))]
    found: list[Candidate] = []
    for tactic in fitting:
        found += [Candidate(tactic, tuple(c)) for c in tactic.configs(group, target)]
    return found[:_MAX_CANDIDATES]


def decide(found: Sequence[Candidate], times: Mapping[str, float]) -> Decision:
    """The first candidate, in order of preference, that is as fast as the fastest within the noise."""
    known = {c.name: times[c.name] for c in found if c.name in times}
    measured = tuple(known.items())
    limit = min(known.values(), default=0.0) * (1 + NOISE)
    for candidate in found:
        if len(known) < len(found) or known[candidate.name] <= limit:
            return candidate.tactic, candidate.config, measured
    raise AssertionError("the fastest candidate is within its own limit")


def _by_rule(group: Group, able: Sequence[Tactic], target: Target) -> Decision:
    return able[0], tuple(next(iter(able[0].configs(group, target)))), ()


def _accepts(tactic: Tactic, group: Group, target: Target) -> bool:
    """Whether the operands already lie as a tactic wants them; constants are packed anyway."""
    wanted_inputs, wanted_outputs = tactic.layouts(group, target)
    inputs = all(v.time != Time.RUN or fulfils(w, v.tensor) for v, w in zip(group.inputs, wanted_inputs, strict=True))
    return inputs and all(fulfils(w, v.tensor) for v, w in zip(group.outputs, wanted_outputs, strict=True))


def _kernels(emitted: Sequence[tuple[Group, Emitted]]) -> list[Kernel]:
    return [step.kernel for _, code in emitted for step in code.steps]


def _plugin_work(group: Group, first: Candidate, sizes: Mapping[str, int], target: Target) -> int:
    """Operations that a plugin's kernel states, or what moving its operands costs in their place."""
    flops, moved = amount([step.kernel for step in first.emit(group, target)[1].steps], sizes)
    return max(flops, 8 * moved)


def _flops(group: Group, sizes: Mapping[str, int]) -> int:
    """Operations of the anchor: two per multiply-add."""
    anchor = group.anchor
    assert anchor is not None
    if anchor.op == "MatMul":
        inner = anchor.input(0).tensor.shape[-1]
        return 2 * evaluate(anchor.output.tensor.size * inner, sizes)
    weight = anchor.input(1).tensor.shape
    per_output = dims.product(weight[1:]) if anchor.op == "Conv" else dims.product(weight) // weight[0]
    return 2 * evaluate(anchor.output.tensor.size * per_output, sizes)


__all__ = ["NOISE", "Decision", "Tuner", "candidates", "decide"]
