"""Memory planning: lifetimes of a program's buffers, and offsets for them in one arena.

Lifetimes follow from the segments alone, so a plan cannot state wrong ones. Offsets are assigned
when shapes are bound, since sizes are known only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.engine.plan import HostSegment, NativeSegment, Program

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Lifetime:
    """First and last position (inclusive) at which a buffer is in use."""

    first: int
    last: int


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

    A position is a segment or, within a native segment, a maximal run of steps that no barrier
    separates: these may overlap in time, so their buffers must not share memory.
    """
    root = roots(program)
    found: dict[int, Lifetime] = {}

    def use(buffer: int, position: int) -> None:
        known = found.get(root[buffer])
        first = position if known is None else known.first
        found[root[buffer]] = Lifetime(first, position)

    position = 0
    for port in program.inputs:
        use(port.tensor.buffer, position)
    for segment in program.segments:
        position += 1
        if isinstance(segment, NativeSegment):
            for step in segment.steps:
                for arg in step.args:
                    use(arg.buffer, position)
                position += step.barrier
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
    """The most bytes that are in use at one position; no placement needs less."""
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

    Greedy: the largest buffer first, each into the smallest gap that fits among the buffers it is
    alive with. Offsets are multiples of `ALIGNMENT`; ties keep the given order.
    """
    count = len(sizes)
    offsets = [0] * count
    order = sorted(range(count), key=lambda i: (-sizes[i], lives[i].first, i))
    first = np.array([lives[i].first for i in order], np.int64)
    last = np.array([lives[i].last for i in order], np.int64)
    starts = np.zeros(count, np.int64)
    ends = np.zeros(count, np.int64)
    total = 0
    for rank, index in enumerate(order):
        size = _align(sizes[index])
        clash = (first[:rank] <= last[rank]) & (last[:rank] >= first[rank])
        begins = starts[:rank][clash]
        by_start = np.argsort(begins, kind="stable")
        offset = _best_gap(begins[by_start].tolist(), ends[:rank][clash][by_start].tolist(), size)
        starts[rank], ends[rank] = offset, offset + size
        offsets[index] = offset
        total = max(total, offset + size)
    return offsets, total


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
