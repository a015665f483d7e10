"""Which steps of a native segment follow which: lanes and waits as a partial order, and what must be ordered.

Steps of one lane follow one another; a step also follows those that it waits for, and all that these follow. Two steps that
neither follows from may run at the same time, so one must not write what the other touches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dovetail.engine.plan import Buffer, KernelRef, Postfix, Step

MAX_LANES = 8
"""Most lanes of a segment."""

Pairs = Iterable[tuple[int, int]]
"""Steps that must follow one another, the earlier one first."""

Clock = tuple[int, ...]
"""Per lane the number of the segment's steps, counted in program order, before which all of that lane's are over."""


class Clocks:
    """The order of some steps, grown step by step.

    Args:
        lanes: how many there are.
    """

    def __init__(self, lanes: int) -> None:
        self.before: list[Clock] = []  # per step, what is over when it starts
        self._lane: list[int] = []
        self._after: list[Clock] = [(0,) * lanes] * lanes  # per lane, what is over when its last step is

    def add(self, lane: int, waits: Sequence[int]) -> None:
        """Append a step that waits for earlier ones."""
        clock = self._after[lane]
        for wait in waits:
            clock = later(clock, self.after(wait))
        self._lane.append(lane)
        self.before.append(clock)
        self._after[lane] = self.after(len(self.before) - 1)

    def last(self, lane: int) -> Clock:
        """What is over when the last step of a lane is."""
        return self._after[lane]

    def after(self, step: int) -> Clock:
        """What is over when a step is."""
        clock, lane = self.before[step], self._lane[step]
        return (*clock[:lane], step + 1, *clock[lane + 1 :])

    def precedes(self, first: int, second: int) -> bool:
        """Whether a step is over before another one starts."""
        return self.before[second][self._lane[first]] > first


def later(a: Clock, b: Clock) -> Clock:
    """What is over when both are."""
    return tuple(map(max, a, b))


def lanes_of(steps: Sequence[Step]) -> int:
    """How many lanes some steps have."""
    return 1 + max((s.lane for s in steps), default=0)


def clocks(steps: Sequence[Step], lanes: int = 0) -> Clocks:
    """The order of a segment's steps, over at least as many lanes as they have."""
    found = Clocks(max(lanes, lanes_of(steps)))
    for step in steps:
        found.add(step.lane, step.waits)
    return found


def barriers(steps: Sequence[Step]) -> list[bool]:
    """Per step, whether those behind it wait for it where steps run in program order: a CPU's team need not between independent ones."""
    if lanes_of(steps) == 1:
        return [True] * len(steps)
    order, start = clocks(steps), 0
    found = []
    for number in range(len(steps)):
        stands = number + 1 == len(steps) or any(order.precedes(i, number + 1) for i in range(start, number + 1))
        found.append(stands)
        start = number + 1 if stands else start
    return found


# --- what must be ordered -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """That a step touches the storage of a root buffer, at an offset; `part`: of a buffer that several steps may fill in parts."""

    step: int
    writes: bool
    offset: Postfix
    part: bool

    def conflicts(self, other: Use) -> bool:
        """Whether two steps must not do this at the same time. Parts of one buffer may be written beside each other."""
        if not self.writes and not other.writes:
            return False
        parts = self.part and other.part and self.writes and other.writes
        return not (parts and self.offset != other.offset)


def uses(
    steps: Sequence[Step], buffers: Sequence[Buffer], roots: Sequence[int], kernels: Mapping[str, KernelRef]
) -> dict[int, list[Use]]:
    """By root buffer, who touches it, in order; storage that nobody writes is left out.

    A kernel that does not say which of its pointers it writes may write them all.
    """
    updated = {roots[b.id] for b in buffers if b.kind == "output"}
    found: dict[int, list[Use]] = {}
    for number, step in enumerate(steps):
        writes = kernels[step.kernel].writes
        for position, arg in enumerate(step.args):
            root = roots[arg.buffer]
            kind = buffers[root].kind
            if kind in ("weight", "packed", "shape") or (kind == "input" and root not in updated):
                continue
            found.setdefault(root, []).append(
                Use(number, writes is None or position in writes, arg.offset, kind in ("arena", "output"))
            )
    return found


def conflicts(found: Mapping[int, Sequence[Use]]) -> Iterator[tuple[int, int]]:
    """Pairs of steps (earlier, later) that must follow one another."""
    for same in found.values():
        for position, later in enumerate(same):
            for earlier in same[:position]:
                if earlier.step != later.step and earlier.conflicts(later):
                    yield earlier.step, later.step
