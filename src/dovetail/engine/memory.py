"""Memory planning: lifetimes of a program's buffers, and offsets for them in one arena.

Lifetimes follow from the segments alone, so a plan cannot state wrong ones. Offsets are assigned
when shapes are bound, since sizes are known only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dovetail.engine.order import Clock, clocks, lanes_of
from dovetail.engine.plan import HostSegment, NativeSegment, Program

ALIGNMENT = 64

Ints = NDArray[np.int64]

_REPAIRS = 16


@dataclass(frozen=True, slots=True)
class Lifetime:
    """First and last position (inclusive) at which a buffer is in use, in program order.

    Where steps run in several lanes: per lane, `since` which position all steps before are over when it first comes into use, and
    `until` which position it is in use; both empty else.
    """

    first: int
    last: int
    since: tuple[int, ...] = ()
    until: tuple[int, ...] = ()

    def joined(self, other: Lifetime) -> Lifetime:
        """The lifetime of what is in use in both."""
        return Lifetime(
            min(self.first, other.first), max(self.last, other.last), tuple(map(min, self.since, other.since)),
            tuple(map(max, self.until, other.until)),
        )  # fmt: skip


def roots(program: Program) -> list[int]:
    """For each buffer the one whose storage it uses: itself, or the end of its alias chain."""
    result = []
    for buffer in program.buffers:
        root = buffer.id
        while (alias := program.buffers[root].alias) is not None:
            root = alias
        result.append(root)
    return result


def lifetimes(program: Program) -> dict[int, Lifetime]:
    """Lifetimes of root buffers (see `roots`); a buffer that nothing uses has none.

    A position is a segment or a step of a native segment.
    """
    root = roots(program)
    found: dict[int, Lifetime] = {}
    lanes = max((lanes_of(s.steps) for s in program.segments if isinstance(s, NativeSegment)), default=1)

    def use(buffer: int, position: int, lane: int = 0, before: Clock | None = None) -> None:
        life = Lifetime(position, position)
        if lanes > 1:
            # What is outside of native segments follows everything ahead of it.
            until = tuple(position + 1 if n == lane else 0 for n in range(lanes))
            life = Lifetime(position, position, before or (position,) * lanes, until)
        known = found.get(root[buffer])
        found[root[buffer]] = life if known is None else known.joined(life)

    position = 0
    for port in program.inputs:
        use(port.tensor.buffer, position)
    for segment in program.segments:
        position += 1
        if isinstance(segment, NativeSegment):
            clock = clocks(segment.steps, lanes).before if lanes > 1 else [()] * len(segment.steps)
            for number, step in enumerate(segment.steps):
                before = tuple(position + c for c in clock[number])
                for arg in step.args:
                    use(arg.buffer, position + number, step.lane, before)
            position += len(segment.steps)
        else:
            for ref in segment.inputs + segment.outputs:
                if ref is not None:
                    use(ref.buffer, position)
            if isinstance(segment, HostSegment) and segment.defines:
                position += 1
    for port in program.outputs:
        use(port.tensor.buffer, position + 1)
    return found


def lower_bound(sizes: Sequence[int], lives: Sequence[Lifetime]) -> int:
    """The most bytes that are in use at one position in program order; no placement needs less."""
    changes: dict[int, int] = {}
    for size, life in zip(sizes, lives, strict=True):
        padded = _align(size)
        changes[life.first] = changes.get(life.first, 0) + padded
        changes[life.last + 1] = changes.get(life.last + 1, 0) - padded
    peak = level = 0
    for position in sorted(changes):
        level += changes[position]
        peak = max(peak, level)
    return peak


def place(sizes: Sequence[int], lives: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets such that buffers alive together do not overlap, and the arena's size.

    Greedy: one buffer after the other, each into the smallest gap that fits among the placed buffers that it is alive
    with. Which order packs best differs from program to program, so several are tried until one reaches the lower
    bound: by size, by the load of the fullest position, by birth; then the best of them again with what lies on top
    placed first. Offsets are multiples of `ALIGNMENT`; the same buffers get the same offsets.
    """
    count = len(sizes)
    padded = [_align(size) for size in sizes]
    bound = lower_bound(sizes, lives)
    first = np.array([life.first for life in lives], np.int64)
    last = np.array([life.last for life in lives], np.int64)
    since, until = first[:, None], last[:, None] + 1
    if count and lives[0].until:
        since, until = (np.array([getattr(life, name) for life in lives], np.int64) for name in ("since", "until"))
    orders: tuple[Callable[[], list[int]], ...] = (
        lambda: sorted(range(count), key=lambda i: (-padded[i], first[i], i)),
        lambda: _by_load(padded, first, last),
        lambda: sorted(range(count), key=lambda i: (first[i], -padded[i], i)),
        lambda: sorted(range(count), key=lambda i: (-padded[i] * int(last[i] - first[i] + 1), i)),
    )
    best, best_total = np.zeros(count, np.int64), -1
    best_order: list[int] = []
    for make in orders:
        order = make()
        offsets, total = _place_in(order, padded, since, until)
        if best_total < 0 or total < best_total:
            best, best_total, best_order = offsets, total, order
        if best_total <= bound:
            break
    order, offsets, total = best_order, best, best_total
    for _ in range(_REPAIRS if best_total > bound else 0):
        top = [i for i in order if offsets[i] + padded[i] == total]
        order = top + [i for i in order if i not in top]
        offsets, total = _place_in(order, padded, since, until)
        if total < best_total:
            best, best_total = offsets, total
        if best_total <= bound:
            break
    return best.tolist(), max(best_total, 0)


def _by_load(padded: Sequence[int], first: Ints, last: Ints) -> list[int]:
    """The fullest position's buffers first, the largest of them first; then those of the next position."""
    if not len(first):
        return []
    begin = int(first.min())
    load = np.zeros(int(last.max()) - begin + 1, np.int64)
    for size, low, high in zip(padded, first - begin, last - begin, strict=True):
        load[low : high + 1] += size
    rank = np.empty(len(load), np.int64)
    rank[np.argsort(-load, kind="stable")] = np.arange(len(load))
    when = [int(rank[low : high + 1].min()) for low, high in zip(first - begin, last - begin, strict=True)]
    return sorted(range(len(padded)), key=lambda i: (when[i], -padded[i], i))


def _place_in(order: Sequence[int], padded: Sequence[int], since: Ints, until: Ints) -> tuple[Ints, int]:
    """Offsets when buffers are placed in this order, and the arena's size; times are per buffer and lane."""
    at = np.asarray(order, np.int64)
    begin, end = since[at], until[at]
    starts, ends, offsets = (np.zeros(len(at), np.int64) for _ in range(3))
    for rank, index in enumerate(order):
        clash = _follow(begin[:rank], end[rank]) & _follow(begin[rank], end[:rank])
        begins = starts[:rank][clash]
        by_start = np.argsort(begins, kind="stable")
        size = padded[index]
        offset = _best_gap(begins[by_start].tolist(), ends[:rank][clash][by_start].tolist(), size)
        starts[rank], ends[rank] = offset, offset + size
        offsets[index] = offset
    return offsets, int(ends.max(initial=0))


def _follow(since: Ints, until: Ints) -> NDArray[np.bool_]:
    """Whether a use may come before the end of another one, which need not be over in some lane."""
    if since.shape[-1] == 1:
        return since[..., 0] < until[..., 0]
    return np.any(since < until, axis=-1)  # type: ignore[no-any-return]  # never a scalar: one side has a row per buffer


def _best_gap(begins: list[int], ends: list[int], size: int) -> int:
    """Start of the smallest gap of at least `size` bytes, or the end of the last interval."""
    best, best_room, top = -1, 0, 0
    for begin, end in zip(begins, ends, strict=True):
        room = begin - top
        if room >= size and (best < 0 or room < best_room):
            best, best_room = top, room
        top = max(top, end)
    return best if best >= 0 else top


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
