"""What a run can record besides its results: times per step, taps, the first NaN."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import ExecutionError
from dovetail.engine.plan import Step


@dataclass(frozen=True, slots=True)
class Record:
    """Time of one step: `origin` are the user's node names, `kind` is native or host."""

    origin: tuple[str, ...]
    tactic: str
    kernel: str
    kind: str
    nanoseconds: float


class Observer:
    """Collects what was asked for during one run; slower, same results.

    `taps` names values to copy out (a region gives one array per iteration); `check_nan` looks at
    every value that the plan can tap.
    """

    def __init__(
        self,
        nanoseconds_per_tick: float = 0.0,
        taps: Collection[str] = (),
        check_nan: bool = False,
    ) -> None:
        self.records: list[Record] = []
        self.taps: dict[str, list[NDArray[Any]]] = {}
        self._tick = nanoseconds_per_tick
        self._taps = frozenset(taps)
        self._check_nan = check_nan

    def wants(self, name: str) -> bool:
        """Whether the value of that name must be shown to `value`."""
        return self._check_nan or name in self._taps

    def native(self, steps: Sequence[Step], stamps: NDArray[np.int64]) -> None:
        """Record a table's stamps."""
        for step, ticks in zip(steps, np.diff(stamps).tolist(), strict=True):
            self.records.append(
                Record(step.origin, step.tactic, step.kernel, "native", ticks * self._tick)
            )

    def host(self, origin: tuple[str, ...], op: str, nanoseconds: int) -> None:
        """Record a host or control segment."""
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
