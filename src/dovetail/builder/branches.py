"""Branches: steps of a GPU's plan that do not depend on each other get lanes of their own, where that pays.

A kernel of a small layer leaves most of a GPU idle, and one behind the other they cost their latencies in turn. Inception modules,
detection heads, shortcuts and gates have others that could run meanwhile. Forking is not free either: across lanes a kernel waits
until the other one has ended, in its own it may start early. So lanes are assigned by a model of both, and whether the whole
plan is faster for it is measured, or without a GPU estimated with a margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core import dims
from dovetail.core.dims import Dim
from dovetail.core.text import counted
from dovetail.engine import memory, order
from dovetail.engine.plan import (
    ControlSegment,
    KernelRef,
    NativeSegment,
    Plan,
    Program,
    Segment,
    Step,
)
from dovetail.kernels.cuda import cost
from dovetail.tuner.launch import DEFAULT_SIZE

_CROSSING_US = 1.2
_FULL = 0.75  # of the multiprocessors: a kernel that takes so many gains nothing beside another
_RULE = (0.85, 5.0)  # the model must see this share of the time, and this many microseconds less
_GAIN = 0.01  # what measured lanes must gain
_LIBRARY_FILL = 0.5  # nobody says how many blocks a library launches
_UNIT_SHARE = 0.5  # of the peak


@dataclass(frozen=True)
class Cost:
    """Microseconds of a step behind another one of its lane, and the share of the GPU's multiprocessors that it occupies."""

    us: float
    fill: float


@dataclass(frozen=True)
class Spread:
    """How steps are given lanes.

    Attributes:
        lanes: most of them; 1 is one step after the other.
        crossing_us: what it is thought to cost to wait for a step of another lane, beyond one of the same: the more, the fewer forks.
    """

    lanes: int = 1
    crossing_us: float = _CROSSING_US

    def __str__(self) -> str:
        eager = "" if self.crossing_us == _CROSSING_US else f", few forks ({self.crossing_us:g} us each)"
        return f"{counted(self.lanes, 'lane')}{eager}"


VARIANTS = (Spread(4), Spread(2), Spread(order.MAX_LANES), Spread(4, 3 * _CROSSING_US))
"""What competes where it is measured; the rule takes the first one."""


@dataclass(frozen=True)
class Decision:
    """How a plan's steps got their lanes, and why.

    Attributes:
        spread: the way.
        reason: for the report.
        measured_us: (what, microseconds of a run) of what was measured.
        modelled_us: microseconds by the model, one after the other and with these lanes (or those that the rule thought of).
    """

    spread: Spread
    reason: str
    measured_us: tuple[tuple[str, float], ...] = ()
    modelled_us: tuple[float, float] = (0.0, 0.0)

    @property
    def lanes(self) -> int:
        """Most lanes of the plan."""
        return self.spread.lanes

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "lanes": self.lanes, "crossing_us": self.spread.crossing_us, "reason": self.reason,
            "measured_us": [list(item) for item in self.measured_us], "modelled_us": [round(us, 1) for us in self.modelled_us],
        }  # fmt: skip

    @staticmethod
    def parse(stored: object) -> Spread | None:
        """The way that a report states; None where it does not."""
        if not isinstance(stored, dict):
            return None
        lanes, crossing = stored.get("lanes"), stored.get("crossing_us", _CROSSING_US)
        if type(lanes) is not int or not 1 <= lanes <= order.MAX_LANES or not isinstance(crossing, int | float):
            return None
        return Spread(lanes, float(crossing))


Measure = Callable[[Sequence[Plan]], Sequence[float] | None]
"""Microseconds of a run of each of several plans of one model; None where they cannot be measured."""


def decide(
    plan: Plan,
    kernels: Mapping[str, Kernel],
    target: Target,
    asked: int | None,
    *,
    recorded: Spread | None = None,
    optima: Mapping[str, int] | None = None,
    measure: Measure | None = None,
) -> tuple[Plan, Decision]:
    """A plan with as many lanes as asked for, recorded, measured to be fastest, or sensible by rule, in this order.

    Args:
        kernels: what the plan's steps call, by entry.
        asked: most lanes; None leaves it to measuring or to the rule.
        recorded: how an earlier build of the same decided.
        optima: sizes of symbols that count.
        measure: times plans; None where there is no GPU.
    """
    if not isinstance(target, CudaTarget):
        return plan, Decision(Spread(), "a CPU's threads share each step")
    costs = _Costs(kernels, target, sizes_of(plan, optima or {}))
    fixed = recorded if recorded is not None else None if asked is None else Spread(asked)
    if fixed is not None:
        made, modelled = spread(plan, costs, fixed)
        return made, Decision(fixed, "asked for" if recorded is None else "recorded", (), modelled)
    plans: list[Plan] = []
    found: list[tuple[Spread, tuple[float, float]]] = []
    for variant in VARIANTS:
        made, modelled = spread(plan, costs, variant)
        if made != plan and made not in plans:
            plans.append(made)
            found.append((variant, modelled))
    if not plans:
        return plan, Decision(Spread(), "no steps that gain by running beside each other")
    first, modelled = found[0]
    us = measure([plan, *plans]) if measure is not None else None
    if us is not None:
        measured = tuple(zip((str(Spread()), *(str(v) for v, _ in found)), (round(t, 2) for t in us), strict=True))
        best = min(range(len(plans)), key=lambda i: us[i + 1])
        if us[best + 1] < us[0] * (1 - _GAIN):
            return plans[best], Decision(found[best][0], "measured to be fastest", measured, found[best][1])
        return plan, Decision(Spread(), "measured: branches beside each other gain nothing", measured, modelled)
    share, gain = _RULE
    if modelled[1] <= modelled[0] * share and modelled[0] - modelled[1] >= gain:
        return plans[0], Decision(first, "by rule: small kernels that leave most of the GPU idle", (), modelled)
    return plan, Decision(Spread(), "by rule: too little to gain", (), modelled)


def sizes_of(plan: Plan, optima: Mapping[str, int]) -> dict[str, int]:
    """The sizes of symbols to think of: the optimum, or what tuning takes them for, within the bounds."""
    first = {str(p.tensor.shape[0][0])[1:] for p in plan.main.inputs if p.tensor.shape}
    found = {}
    for symbol in plan.symbols:
        size = max(symbol.lower, optima.get(symbol.name, 1 if symbol.name in first else DEFAULT_SIZE))
        found[symbol.name] = size if symbol.upper is None else min(size, symbol.upper)
    return found


class _Costs:
    """Costs of steps at given sizes."""

    def __init__(self, kernels: Mapping[str, Kernel], target: CudaTarget, sizes: Mapping[str, int]) -> None:
        self._kernels, self._target, self._sizes = kernels, target, sizes
        self._known: dict[str, Cost] = {}

    def __call__(self, step: Step) -> Cost:
        """The cost of a step."""
        if step.kernel not in self._known:
            self._known[step.kernel] = self._cost(self._kernels[step.kernel])
        return self._known[step.kernel]

    def _value(self, dim: Dim) -> int:
        return dims.evaluate(dim, {s: self._sizes.get(s, DEFAULT_SIZE) for s in dims.symbols(dim)})

    def _cost(self, kernel: Kernel) -> Cost:
        rates, count = cost.machine(self._target), self._target.multiprocessors
        if kernel.launch is None:
            fill, narrow = _LIBRARY_FILL, True
        else:
            fill = min(1.0, math.prod(map(self._value, kernel.launch.grid)) / count)
            narrow = any(t in ("fp16", "bf16") for t in kernel.launch.types)
        unit = "mma" if narrow else "tf32" if self._target.tf32 else "fma"
        busy = max(1.0, fill * count)
        work = self._value(kernel.flops) / (rates.flops[unit] * _UNIT_SHARE * busy)
        moved = self._value(kernel.bytes) / min(rates.dram, rates.fetch * busy)
        return Cost(rates.launch + rates.latency + max(work, moved), fill)


# --- lanes ----------------------------------------------------------------------------------------


def spread(plan: Plan, costs: Callable[[Step], Cost], how: Spread) -> tuple[Plan, tuple[float, float]]:
    """A plan with its steps in lanes, and microseconds of its main program by the model: one after the other, and so."""
    main, us = _program(plan.main, {k.entry: k for k in plan.kernels}, costs, how)
    return replace(plan, main=main), us


def _program(
    program: Program, kernels: Mapping[str, KernelRef], costs: Callable[[Step], Cost], how: Spread
) -> tuple[Program, tuple[float, float]]:
    roots = memory.roots(program)
    segments: list[Segment] = []
    before = after = 0.0
    for segment in program.segments:
        if isinstance(segment, NativeSegment):
            found = order.conflicts(order.uses(segment.steps, program.buffers, roots, kernels))
            steps, us = arranged(segment.steps, found, list(map(costs, segment.steps)), how)
            segment = NativeSegment(tuple(steps))
            before, after = before + us[0], after + us[1]
        elif isinstance(segment, ControlSegment):
            regions = tuple(_program(r, kernels, costs, how)[0] for r in segment.regions)
            segment = replace(segment, regions=regions)
        segments.append(segment)
    return replace(program, segments=tuple(segments)), (before, after)


def arranged(
    steps: Sequence[Step], pairs: order.Pairs, costs: Sequence[Cost], how: Spread
) -> tuple[list[Step], tuple[float, float]]:
    """Steps in lanes, each waiting for what it must follow and for no more; and microseconds, one after the other and so.

    Args:
        pairs: (earlier, later) that must follow one another.
    """
    after: list[set[int]] = [set() for _ in steps]
    for earlier, later in pairs:
        after[later].add(earlier)
    lane, us = _schedule(after, costs, how)
    clocks = order.Clocks(how.lanes)
    found = []
    for number, step in enumerate(steps):
        waits: list[int] = []
        over = clocks.last(lane[number])
        for ahead in sorted(after[number], reverse=True):  # what is late has most behind it
            if over[lane[ahead]] <= ahead:
                waits.append(ahead)
                over = order.later(over, clocks.after(ahead))
        clocks.add(lane[number], waits)
        found.append(replace(step, lane=lane[number], waits=tuple(sorted(waits))))
    return found, (sum(c.us for c in costs), us)


def _schedule(after: Sequence[set[int]], costs: Sequence[Cost], how: Spread) -> tuple[list[int], float]:
    """A lane for each step, and microseconds until the last one has ended: each where it can start first.

    A lane of its own must win what crossing costs, there and back. A step that fills the GPU stays in the lane of what it follows.
    """
    ends: list[float] = []  # per step
    lane: list[int] = []
    tails: list[float] = [0.0]  # per lane, when its last step ends
    for number, cost_ in enumerate(costs):

        def start(at: int, number: int = number) -> float:
            free = tails[at] if at < len(tails) else 0.0
            return max([free, *(ends[a] + (how.crossing_us if lane[a] != at else 0.0) for a in after[number])])

        follows = max(after[number], key=lambda a: (ends[a], a), default=None)
        home = 0 if follows is None else lane[follows]
        choice = [home] if cost_.fill >= _FULL else range(min(how.lanes, len(tails) + 1))
        near = {lane[a] for a in after[number]} or {home}
        best = min(choice, key=lambda at: (start(at) + (0.0 if at in near else how.crossing_us), at != home, at))
        when = start(best)
        if best == len(tails):
            tails.append(0.0)
        lane.append(best)
        ends.append(when + cost_.us)
        tails[best] = ends[-1]
    return lane, max(tails)
