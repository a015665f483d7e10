"""Where the time of a run goes, per step and in the user's node names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.runtime.observe import Record

if TYPE_CHECKING:
    from dovetail.view.graph import GraphStep

_SHOWN = 40


@dataclass(frozen=True)
class ProfileRow:
    """One step: the nodes it computes, what computes them, microseconds, share of the sum, and the lane that it runs in."""

    origin: tuple[str, ...]
    kind: str
    tactic: str
    kernel: str
    us: float
    share: float
    lane: int = 0


@dataclass(frozen=True)
class Profile:
    """Times per step in execution order; `str` shows the slowest first.

    Attributes:
        rows: one per step (of a loop: one per iteration).
        runs: how many runs the medians are over.
        threads: size of the team.
        total_us: sum of the steps.
        device: where it ran, such as "cuda:0"; steps of a GPU are timed one by one, so that none starts early.
        work: gives the engine's steps at the sizes of the run, with their bytes and arithmetic.
    """

    rows: tuple[ProfileRow, ...]
    runs: int
    threads: int
    total_us: float
    device: str = "cpu"
    work: Callable[[], Sequence[GraphStep]] | None = field(default=None, repr=False, compare=False)

    def trace(self, path: str | os.PathLike[str] | None = None, title: str = "") -> dict[str, Any]:
        """The profile as a trace of Chrome's format, for chrome://tracing and ui.perfetto.dev: one event per step, lanes as threads.

        Args:
            path: where to write it, as JSON.
            title: what the engine is called there.

        Raises:
            UsageError: no file can be written in that folder.
            OSError: the disk is full; nothing is left behind.
        """
        from dovetail.view.page import write_text
        from dovetail.view.trace import chrome_trace

        found = chrome_trace(self.json(), [] if self.work is None else self.work(), title)
        if path is not None:
            write_text(path, json.dumps(found))
        return found

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "total_us": self.total_us,
            "runs": self.runs,
            "threads": self.threads,
            "device": self.device,
            "rows": [
                {
                    "origin": list(r.origin), "kind": r.kind, "tactic": r.tactic, "kernel": r.kernel,
                    "us": r.us, "share": r.share, "lane": r.lane,
                }
                for r in self.rows
            ],
        }  # fmt: skip

    def by_tactic(self) -> dict[str, float]:
        """Microseconds per tactic, largest first."""
        sums: dict[str, float] = {}
        for row in self.rows:
            name = row.tactic.partition(".")[0] if row.kind == "native" else f"host {row.kernel}"
            sums[name] = sums.get(name, 0.0) + row.us
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dovetail.view.notebook import profile_html

        return profile_html(self.json(), self.by_tactic())

    def __str__(self) -> str:
        where = f"{self.threads} thread(s)" if self.device == "cpu" else f"one by one on {self.device}"
        lines = [
            f"{self.total_us:.1f} us in {len(self.rows)} steps, {where}, median of {self.runs} runs",
            f"{'us':>10} {'share':>7}  {'tactic':<18} nodes",
        ]
        slowest = sorted(self.rows, key=lambda r: -r.us)
        for row in slowest[:_SHOWN]:
            what = row.tactic if row.kind == "native" else f"host {row.kernel}"
            lines.append(f"{row.us:>10.1f} {100 * row.share:>6.1f}%  {what:<18} {_nodes(row.origin)}")
        if len(slowest) > _SHOWN:
            rest = sum(r.us for r in slowest[_SHOWN:])
            lines.append(f"{rest:>10.1f} {100 * rest / (self.total_us or 1):>6.1f}%  {len(slowest) - _SHOWN} more steps")
        lines += [f"{us:>10.1f} {100 * us / (self.total_us or 1):>6.1f}%  all of {name}" for name, us in self.by_tactic().items()]
        return "\n".join(lines)


def _nodes(origin: tuple[str, ...]) -> str:
    shown = ", ".join(origin[:3])
    return f"{shown} and {len(origin) - 3} more" if len(origin) > 3 else shown


def summarise(
    runs: Sequence[Sequence[Record]], threads: int, device: str = "cpu", work: Callable[[], Sequence[GraphStep]] | None = None
) -> Profile:
    """The median of several runs; runs whose number of steps differs (data-dependent loops) are left out."""
    last = runs[-1]
    same = [r for r in runs if len(r) == len(last)]
    times = np.median(np.array([[s.nanoseconds for s in r] for r in same]), axis=0) / 1e3 if last else np.zeros(0)
    total = float(times.sum())
    rows = tuple(
        ProfileRow(r.origin, r.kind, r.tactic, r.kernel, float(us), float(us) / total if total else 0.0, r.lane)
        for r, us in zip(last, times, strict=True)
    )
    return Profile(rows, len(same), threads, total, device, work)
