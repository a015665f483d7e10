"""What a run can record besides its results: times per step, taps, the first NaN."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import ExecutionError
from dovetail.engine.plan import Step, Tap
from dovetail.runtime import nvtx
from dovetail.runtime.nvtx import Ranges


@dataclass(frozen=True, slots=True)
class Record:
    """Time of one step: `origin` are the user's node names, `kind` is native or host; that of a loop or a branch is without its steps'."""

    origin: tuple[str, ...]
    tactic: str
    kernel: str
    kind: str
    nanoseconds: float
    lane: int = 0


class Observer:
    """Collects what was asked for during one run; slower, same results.

    `taps` names values to copy out (a region gives one array per iteration); `check_nan` looks at
    every value that the plan can tap; `ranges` marks every step for a profiler of NVIDIA's.
    """

    def __init__(
        self,
        nanoseconds_per_tick: float = 0.0,
        taps: Collection[str] = (),
        check_nan: bool = False,
        ranges: Ranges | None = None,
    ) -> None:
        self.records: list[Record] = []
        self.taps: dict[str, list[NDArray[Any]]] = {}
        self._tick = nanoseconds_per_tick
        self._taps = frozenset(taps)
        self._check_nan = check_nan
        self.ranges = ranges

    def cuts(self, count: int, taps: Iterable[Tap]) -> list[int]:
        """Where a table of so many steps is cut into pieces: behind what is tapped, and behind every step where each is marked."""
        if self.ranges is not None:
            return list(range(1, count + 1))
        return sorted({t.step + 1 for t in taps if self.wants(t.name)} | {count})

    def around(self, steps: Sequence[Step]) -> AbstractContextManager[None]:
        """Marks the launch of some steps, where that is asked for."""
        return nullcontext() if self.ranges is None else self.ranges.around(nvtx.steps_name(steps))

    def wants(self, name: str) -> bool:
        """Whether the value of that name must be shown to `value`."""
        return self._check_nan or name in self._taps

    def native(self, steps: Sequence[Step], stamps: NDArray[np.int64]) -> None:
        """Record a table's stamps."""
        for step, ticks in zip(steps, np.diff(stamps).tolist(), strict=True):
            self.records.append(
                Record(step.origin, step.tactic, step.kernel, "native", ticks * self._tick, step.lane)
            )

    def host(self, origin: tuple[str, ...], op: str, nanoseconds: int, since: int | None = None) -> None:
        """Record a host or control segment; `since` is how many records there were before it, whose time is not its own."""
        nanoseconds -= int(sum(r.nanoseconds for r in self.records[since:])) if since is not None else 0
        nanoseconds = max(0, nanoseconds)
        self.records.append(Record(origin, "host", op, "host", float(nanoseconds)))

    def value(self, name: str, value: Any, origin: tuple[str, ...]) -> None:
        """Take a copy of a tapped value, and look for NaN.

        Raises:
            ExecutionError: NaN where `check_nan` forbids it.
        """
        if not isinstance(value, np.ndarray):
            return
        if self._check_nan and value.dtype.kind not in "biuOUS":
            bad = int(np.isnan(value.astype(np.float64)).sum())
            if bad:
                raise ExecutionError(
                    f"{', '.join(origin) or name}: got {bad} NaN of {value.size} elements in "
                    f"{name!r}, expected none (check_nan is on); look at the inputs of this step"
                )
        if name in self._taps:
            self.taps.setdefault(name, []).append(np.array(value, order="C"))
