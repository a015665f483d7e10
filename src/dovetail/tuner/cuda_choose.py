"""Chooses tactics and configurations for a GPU: what compiles without spilling, and of that what is fastest.

Candidates of all distinct groups are written and compiled together, in parallel processes. With a GPU, a `Timer` measures them;
without one, the first candidate in order of preference that compiles is taken, and the engine is marked untuned. From the
same times the choice is always the same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_compiler import Compiled, Overdue, compile_kernels, triton_version
from dovetail.core import dims
from dovetail.core.errors import CompileError, DeviceError, DeviceLostError, Error
from dovetail.core.log import logger
from dovetail.ir.fingerprint import fingerprint
from dovetail.ir.graph import Time
from dovetail.passes.layout import fulfils
from dovetail.tuner.launch import sizes_of
from dovetail.tuner.measure import Candidate
from dovetail.tuner.timing_cache import TimingCache, template_version, users_code

NOISE = 0.02
"""Times closer than this share count as equal."""

UNABLE = 1e9
"""Stands for the time of a candidate that does not compile or run."""

# What is compared in the network: so many of a contest, if they are this close to its winner; a change must gain this share.
_RIVALS, _CLOSE, _GAIN, _REPLAYS = 4, 1.15, 0.0015, 15

# Candidates of one group that are compiled at optimization levels 0 to 5.
CANDIDATES = (1, 4, 10, 24, 48, 96)
_COMPILE_SHARE = 0.85  # of the budget; without the rest, what was compiled could not be measured
_FIRST = 8  # candidates of each tactic that are compiled before the others of any group
_log = logger("tune")

Decision = tuple[Tactic, Config, tuple[tuple[str, float], ...]]
Machine = Mapping[str, Compiled | str]


@dataclass(frozen=True)
class Contender:
    """A candidate with its kernels."""

    candidate: Candidate
    group: Group
    emitted: Emitted

    @property
    def name(self) -> str:
        """Tactic and configuration."""
        return self.candidate.name

    @property
    def kernels(self) -> list[Kernel]:
        """Its kernels in order."""
        return [step.kernel for step in self.emitted.steps]


@dataclass(frozen=True)
class Placed:
    """A group where it stands in a model, with what competes for it; equal groups have equal keys."""

    key: str
    group: Group
    contenders: Sequence[Contender]
    sizes: Mapping[str, int]


class Fatal(str):
    """The reason why a candidate must never run again: it did not end, or ended the device's context."""

    __slots__ = ()


class CandidateLostError(DeviceLostError):
    """A candidate has ended the context that this process has of the device; `index` is its number among those given."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class NetworkTimer(Protocol):
    """Times choices for all groups of a model between their neighbours."""

    def compare(self, choices: Sequence[Mapping[str, Contender]], replays: int) -> list[float | str]:
        """Microseconds of the whole with each of several choices (contender by key), or why there are none.

        Raises:
            CandidateLostError: nothing can be measured any more.
            DeviceError: the network cannot be run.
        """
        ...

    def close(self) -> None:
        """Give code and memory back."""
        ...


class Timer(Protocol):
    """Measures contenders on a device."""

    environment: str
    """All of the device and its libraries that times depend on."""

    def start(self) -> None:
        """Prepare for measuring, beside whatever the caller does meanwhile."""
        ...

    def measure(self, contenders: Sequence[Contender], machine: Machine, sizes: Mapping[str, int]) -> list[float | str]:
        """Microseconds of each; the reason for one that failed to run, `Fatal` where it must not run again.

        Raises:
            CandidateLostError: nothing can be measured any more.
            DeviceError: nothing could be measured.
        """
        ...

    def network(self, groups: Sequence[Placed], machine: Machine) -> NetworkTimer:
        """All groups of a model in order.

        Raises:
            ExecutionError: the network cannot be timed.
        """
        ...


@dataclass
class _Contest:
    """A distinct group with its contenders, in order of preference."""

    key: str
    group: Group
    contenders: list[Contender]
    sizes: Mapping[str, int]
    times: dict[str, float]
    count: int = 1
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    preferred: str = ""

    @property
    def weight(self) -> int:
        """Work of all occurrences, for the order of measuring."""
        kernels = self.contenders[0].kernels
        return self.count * sum(dims.evaluate(k.flops, self.sizes) // 64 + dims.evaluate(k.bytes, self.sizes) for k in kernels)


class CudaTuner:
    """Decides for all groups of a model at once; a `Chooser`.

    Args:
        timer: measures on a GPU; None chooses by order of preference.
        budget_s: seconds that compiling and measuring may take.
        level: optimization level, 0 to 5: how many candidates compete.
        cache: known times.
        sizes: values of shape symbols to measure at; others are taken as 1 for the first axis and 64 elsewhere.
        progress: called as progress(stage, done, total).
        jobs: compiler processes.
    """

    def __init__(
        self,
        timer: Timer | None,
        budget_s: float,
        level: int = 3,
        cache: TimingCache | None = None,
        sizes: Mapping[str, int] | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        jobs: int | None = None,
    ) -> None:
        self.timer, self.budget_s, self.level, self.jobs = timer, budget_s, level, jobs
        self.given, self.progress = dict(sizes or {}), progress
        self.cache = TimingCache() if cache is None else cache
        self.sizes: dict[str, int] = {}
        self.interrupted = False

    def __call__(
        self, groups: Sequence[tuple[Group, list[Tactic]]], target: Target, sizes: Mapping[str, int]
    ) -> list[Decision]:
        """One decision per group, in order; `sizes` are those to measure at, where the tuner was given no others.

        Raises:
            CompileError: a group of which no candidate compiles.
        """
        cuda = CudaTarget.of(target)
        self.sizes = {**sizes, **self.given}
        contests: dict[str, _Contest] = {}
        keys: list[str] = []
        for group, able in groups:
            key, own = self._key(group, cuda)
            keys.append(key)
            if key in contests:
                contests[key].count += 1
            else:
                contenders = self._contenders(group, able, cuda)
                contests[key] = _Contest(key, group, contenders, own, self.cache.get(key), failed=self.cache.failed(key))
        start = time.monotonic()
        if self.timer is not None and self.level > 0:
            self._tune(list(contests.values()), cuda, start)
            if self.level > 1 and not self.interrupted:
                order = [(key, group) for key, (group, _) in zip(keys, groups, strict=True)]
                self._refine(order, contests, cuda, start)
        chosen = self._settle(list(contests.values()), cuda)
        decisions: list[Decision] = []
        for key in keys:
            contest, contender = contests[key], chosen[key]
            times = tuple((c.name, contest.times[c.name]) for c in contest.contenders if c.name in contest.times)
            decisions.append((contender.candidate.tactic, contender.candidate.config, times))
        return decisions

    # ------------------------------------------------------------------ candidates
    def _key(self, group: Group, target: CudaTarget) -> tuple[str, dict[str, int]]:
        sizes = sizes_of(group, self.sizes)
        outer = ";".join(f"{v.type} {v.time.name} {v.producer is None}" for v in (*group.inputs, *group.outputs))
        environment = "" if self.timer is None else self.timer.environment
        parts = (
            fingerprint(group.body, sizes), outer, repr(target), environment, triton_version(), template_version(), str(self.level),
            *users_code(group),
        )  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40], sizes

    def _contenders(self, group: Group, able: Sequence[Tactic], target: CudaTarget) -> list[Contender]:
        fitting = [t for t in able if t is able[0] or _accepts(t, group, target)]
        found: list[Contender] = []
        for tactic in fitting:
            limit = CANDIDATES[min(self.level, len(CANDIDATES) - 1)]
            # Without times only the order counts; a few more stand by in case the first ones do not compile.
            count = limit if self.timer is not None and self.level > 0 else 6
            for config in list(tactic.configs(group, target))[:count]:
                candidate = Candidate(tactic, tuple(config))
                packed, emitted = candidate.emit(group, target)
                found.append(Contender(candidate, packed, emitted))
        return found

    # ------------------------------------------------------------------ measuring
    def _tune(self, contests: list[_Contest], target: CudaTarget, start: float) -> None:
        assert self.timer is not None
        open_ = [c for c in contests if any(x.name not in c.times for x in c.contenders) and len(c.contenders) > 1]
        open_ = [c for c in open_ if self.cache.skipped(c.key) < self.budget_s]
        open_.sort(key=lambda c: (-c.weight, c.key))
        done = 0
        if open_:
            self.timer.start()
        try:
            # All at once: processes are never idle. The likely winners of heavy groups come first, so that a small budget goes to them.
            order = [(position >= _FIRST, number, x) for number, c in enumerate(open_) for position, x in _positions(c.contenders)]
            kernels = [k for *_, x in sorted(order, key=lambda item: item[:2]) for k in x.kernels]
            machine = compile_kernels(
                kernels, target, jobs=self.jobs, deadline=start + _COMPILE_SHARE * self.budget_s,
                done=lambda done, total: self.progress("compile", done, total),
            )  # fmt: skip
            for contest in open_:
                self.progress("tune", done, len(open_))
                compiled = [x for x in contest.contenders if all(k.launch is None or k.entry in machine for k in x.kernels)]
                if compiled[:1] != contest.contenders[:1] or time.monotonic() - start >= self.budget_s:  # its default, at least
                    break
                self._measure(contest, compiled, machine, target)
                done += 1
            for contest in open_[done:]:
                self.cache.skip(contest.key, self.budget_s)
        except KeyboardInterrupt:
            # What has been measured counts; the rest is chosen by preference, so the engine is whole.
            self.interrupted = True
            _log.warning("interrupted: %d of %d groups are tuned, the others take their default", done, len(open_))
        finally:
            self.cache.flush()
        self.progress("tune", len(open_), len(open_))
        _log.info("measured %d of %d groups in %.1f s", done, len(open_), time.monotonic() - start)

    def _measure(self, contest: _Contest, compiled: Sequence[Contender], machine: Machine, target: CudaTarget) -> None:
        assert self.timer is not None
        able = []
        for contender in compiled:
            reason = contest.failed.get(contender.name) or refused(contender, machine, target)
            if reason is None:
                able.append(contender)
            else:
                contest.refused[contender.name] = reason
        try:
            found = self.timer.measure(able, machine, contest.sizes) if able else []
        except CandidateLostError as error:
            raise self._lost(contest, able[error.index], error) from None
        except DeviceError as error:
            _log.warning("%s: nothing could be measured, it takes its default: %s", contest.group.node.where, error)
            return
        contest.refused |= {c.name: t for c, t in zip(able, found, strict=True) if isinstance(t, str)}
        self._leave_out(contest, zip(able, found, strict=True))
        us = [UNABLE if isinstance(t, str) else t for t in found]
        if able and min(us) >= UNABLE:
            # Nothing ran, which says more of the device (too little memory) than of the candidates: nothing to remember.
            _log.warning("%s: none of %d candidates could be run here; it takes its default", contest.group.node.where, len(able))
            return
        # A compiler that had no CPU says nothing of its kernel: the next build tries again.
        overdue = {c.name for c in compiled if isinstance(contest.refused.get(c.name), Overdue)}
        contest.times = {c.name: UNABLE for c in compiled if c.name not in overdue}
        contest.times |= {c.name: round(min(t, UNABLE), 3) for c, t in zip(able, us, strict=True)}
        skipped_s = None if len(compiled) == len(contest.contenders) else self.budget_s
        self.cache.put(contest.key, contest.times, skipped_s, contest.failed)
        _log.debug("%s: %s; refused: %s", contest.group.node.where, contest.times, contest.refused)

    def _lost(self, contest: _Contest, contender: Contender, error: DeviceLostError) -> DeviceLostError:
        """The error of a build whose device is lost; the next one leaves out what did that."""
        self._leave_out(contest, [(contender, Fatal(error))])
        return DeviceLostError(
            f"{contest.group.node.where}: the candidate {contender.name} ended the device's context: {error}; build again: it is left out "
            "from now on"
        )

    def _leave_out(self, contest: _Contest, found: Iterable[tuple[Contender, float | str]]) -> None:
        """Remember what hung or ended the device's context, at once: nobody knows what comes next."""
        lost = {contender.name: str(reason) for contender, reason in found if isinstance(reason, Fatal)}
        for name, reason in lost.items():
            _log.warning("%s: %s is left out from now on: %s", contest.group.node.where, name, reason)
            contest.times[name] = UNABLE
        if lost:
            contest.failed |= lost
            skipped_s = self.cache.skipped(contest.key)
            self.cache.put(contest.key, contest.times, None if skipped_s < 0 else skipped_s, contest.failed)
            self.cache.flush()

    # ------------------------------------------------------------------ in the network
    def _refine(self, order: Sequence[tuple[str, Group]], contests: Mapping[str, _Contest], target: CudaTarget, start: float) -> None:
        """Let the best few of each contest compete once more, between the neighbours that they will have."""
        assert self.timer is not None
        rivals = {key: self._rivals(contest) for key, contest in contests.items()}
        known = self.cache.records.get(_network_key(order, rivals))
        preferred = known.get("preferred") if known is not None else None
        if not isinstance(preferred, dict) and any(len(found) > 1 for found in rivals.values()):
            preferred = self._compare(order, contests, rivals, target, start)
            if preferred is not None:
                rivals = {key: self._rivals(contest) for key, contest in contests.items()}  # less what has failed
                self.cache.records.put(_network_key(order, rivals), {"preferred": preferred})
                self.cache.flush()
        for key, name in (preferred or {}).items():
            if key in contests:
                contests[key].preferred = str(name)

    def _rivals(self, contest: _Contest) -> list[Contender]:
        """The winner of a contest, and the others that come close to it."""
        ranking = self._ranking(contest)
        known = [c for c in ranking if contest.times.get(c.name, UNABLE) < UNABLE]
        if not known:
            return ranking[:1]
        limit = contest.times[known[0].name] * _CLOSE + 0.3
        return [c for c in known if contest.times[c.name] <= limit][:_RIVALS]

    def _compare(
        self, order: Sequence[tuple[str, Group]], contests: Mapping[str, _Contest], rivals: Mapping[str, list[Contender]],
        target: CudaTarget, start: float,
    ) -> dict[str, str] | None:  # fmt: skip
        """The names of what is best in the network, where that is not what is best alone; None if it was not measured to the end."""
        assert self.timer is not None
        if time.monotonic() - start >= self.budget_s:
            return None
        placed = [Placed(key, group, rivals[key], contests[key].sizes) for key, group in order]
        kernels = [k for found in rivals.values() for c in found for k in c.kernels]
        open_ = sorted((c for c in contests.values() if len(rivals[c.key]) > 1), key=lambda c: (-c.weight, c.key))
        chosen = {key: found[0] for key, found in rivals.items()}
        preferred: dict[str, str] = {}
        stack = ExitStack()
        try:
            machine = compile_kernels(kernels, target, jobs=self.jobs)
            if any(refused(found[0], machine, target) is not None for found in rivals.values()):
                return None  # what is chosen in its place shows only later
            network = self.timer.network(placed, machine)
            stack.callback(network.close)
            for done, contest in enumerate(open_):
                self.progress("refine", done, len(open_))
                if time.monotonic() - start >= self.budget_s:
                    return None
                options = [chosen | {contest.key: c} for c in rivals[contest.key]]
                try:
                    found = network.compare(options, _REPLAYS)
                except CandidateLostError as error:
                    raise self._lost(contest, rivals[contest.key][error.index], error) from None
                self._leave_out(contest, zip(rivals[contest.key], found, strict=True))
                us = [UNABLE if isinstance(t, str) else t for t in found]
                best = min(range(len(us)), key=lambda i: us[i])
                if us[best] < us[0] * (1 - _GAIN):
                    chosen[contest.key] = rivals[contest.key][best]
                    preferred[contest.key] = chosen[contest.key].name
                    _log.debug("%s: %s in the network, %s us for %s", contest.group.node.where, preferred[contest.key], us[best], us[0])
        except KeyboardInterrupt:
            self.interrupted = True
            _log.warning("interrupted: each group keeps what is best alone")
            return None
        except DeviceLostError:
            raise
        except Error as error:
            _log.warning("the network could not be timed as a whole: %s", error)
            return None
        finally:
            stack.close()
            self.progress("refine", len(open_), len(open_))
        return preferred

    # ------------------------------------------------------------------ deciding
    def _settle(self, contests: Sequence[_Contest], target: CudaTarget) -> dict[str, Contender]:
        """The winner of each contest: the fastest within the noise, else the first that compiles without spilling."""
        waiting = {c.key: self._ranking(c) for c in contests}
        failed = {c.key: c.failed for c in contests}
        chosen: dict[str, Contender] = {}
        reasons: dict[str, list[str]] = {c.key: [] for c in contests}
        spilling: dict[str, Contender] = {}
        while waiting:
            kernels = [k for ranking in waiting.values() for k in ranking[0].kernels]
            machine = compile_kernels(kernels, target, jobs=self.jobs, done=lambda done, total: self.progress("compile", done, total))
            for key in list(waiting):
                contender = waiting[key].pop(0)
                reason = failed[key].get(contender.name) or refused(contender, machine, target)
                if reason is None:
                    chosen[key] = contender
                else:
                    reasons[key].append(f"{contender.name}: {reason}")
                    if reason.startswith("spills"):
                        spilling.setdefault(key, contender)
                if reason is not None and not waiting[key] and key in spilling:
                    chosen[key] = spilling[key]  # slow, but right
                if key in chosen:
                    del waiting[key]
                elif not waiting[key]:
                    where = next(c.group.node.where for c in contests if c.key == key)
                    raise CompileError(f"{where}: no candidate compiles and runs for {target}; tried {'; '.join(reasons[key])}")
        return chosen

    @staticmethod
    def _ranking(contest: _Contest) -> list[Contender]:
        """Contenders, the one to take first: measured ones by time with ties in order of preference, then the others."""
        times = contest.times
        finite = [t for t in times.values() if t < UNABLE]
        known = [c for c in contest.contenders if c.name in times and times[c.name] in finite]
        unknown = [c for c in contest.contenders if c.name not in times]
        limit = min(finite, default=0.0) * (1 + NOISE)
        first = [c for c in known if times[c.name] <= limit][:1]
        rest = sorted((c for c in known if c not in first), key=lambda c: times[c.name])
        ranking = [*first, *rest, *unknown] or list(contest.contenders)
        return sorted(ranking, key=lambda c: c.name != contest.preferred)


def _network_key(order: Sequence[tuple[str, Group]], rivals: Mapping[str, Sequence[Contender]]) -> str:
    """The key under which the timing cache has what is preferred in a network."""
    names = {key: [c.name for c in found] for key, found in rivals.items()}
    return hashlib.sha256(repr(([key for key, _ in order], names)).encode()).hexdigest()[:40]


def _positions(contenders: Sequence[Contender]) -> list[tuple[int, Contender]]:
    """Each contender with its position among those of its tactic."""
    counts: dict[str, int] = {}
    found = []
    for contender in contenders:
        name = contender.candidate.tactic.name
        found.append((counts.get(name, 0), contender))
        counts[name] = counts.get(name, 0) + 1
    return found


def refused(contender: Contender, machine: Machine, target: CudaTarget) -> str | None:
    """None if all kernels of a contender compiled well, else the reason why it is out."""
    for kernel in contender.kernels:
        compiled = machine.get(kernel.entry)
        if kernel.launch is None:
            continue
        if compiled is None:
            return "was not compiled"
        if isinstance(compiled, str):
            return compiled
        if compiled.shared > target.shared_bytes:
            return f"takes {compiled.shared} bytes of shared memory, {target} has {target.shared_bytes}"
        if compiled.stack:
            return f"spills: {compiled.stack} bytes of local memory a thread"
    return None


def _accepts(tactic: Tactic, group: Group, target: Target) -> bool:
    """Whether the operands already lie as a tactic wants them; constants are packed anyway."""
    wanted_inputs, wanted_outputs = tactic.layouts(group, target)
    inputs = all(v.time != Time.RUN or fulfils(w, v.tensor) for v, w in zip(group.inputs, wanted_inputs, strict=True))
    return inputs and all(fulfils(w, v.tensor) for v, w in zip(group.outputs, wanted_outputs, strict=True))


__all__ = ["CANDIDATES", "NOISE", "UNABLE", "Contender", "CudaTuner", "Fatal", "Timer", "refused"]
