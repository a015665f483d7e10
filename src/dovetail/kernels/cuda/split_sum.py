"""Sums that several programs share: each writes its part to the workspace, and the last one to arrive adds all parts in order.

An atomic counter per tile says who is last, so nobody waits; results do not depend on who it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovetail.codegen.tactic import Operand
from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32, I32
from dovetail.kernels.cuda.writer import Writer


@dataclass(frozen=True)
class Finish:
    """How a program gets from its sum, or its part of one, to results.

    Attributes:
        lines: the statements.
        counters, workspace: how many counters and bytes of workspace they need.
    """

    lines: Sequence[str]
    counters: int = 0
    workspace: int = 0


def last_arrival(
    w: Writer, split: int, total: Dim, size: int, tile: str, write: Callable[[str], list[str]], add: Callable[[str, str], list[str]]
) -> Finish:
    """What stands behind a partial sum: write it, count, and go on if all others have arrived.

    Args:
        w: the kernel; gets a workspace and one counter per tile.
        split: parts of a sum.
        total: tiles of the whole grid.
        size: fp32 elements of one part.
        tile: variable that numbers the tiles.
        write: statements that store this program's part, given the workspace.
        add: what the last program does, given the workspace and the statement that makes the counter zero again.
    """
    assert isinstance(total, int), "a sum is cut into parts only where the number of tiles is known"
    parts = w.pointer(Operand("workspace", 0), F32)
    lines = [*write(parts), *arrival(w, split, tile, lambda clear: add(parts, clear))]
    return Finish(lines, total, total * split * size * 4)


def arrival(w: Writer, split: int, tile: str, then: Callable[[str], list[str]]) -> list[str]:
    """What stands behind the stores of a part: count, and go on if all others have arrived.

    Args:
        then: what the last program does, given the statement that makes the counter zero again.
    """
    counters = w.pointer(Operand("counters", 0), I32)
    return [
        # All threads of the program have written before one of them says so.
        "tl.debug_barrier()",
        f'arrived = tl.atomic_add({counters} + {tile}, 1, sem="acq_rel")',
        f"if arrived == {split - 1}:",
        *("    " + line for line in then(f"tl.store({counters} + {tile}, 0)")),
    ]
