"""A client's `IProgressMonitor` told of the stages of a build, which it may cancel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dovetail.tensorrt.hooks import IProgressMonitor, call
from dovetail.tensorrt.logger import Reporter

ROOT = "Building Engine"
_STEPS = ("define", "compile", "write")
_TITLES = {
    "build": "Optimizing the graph",
    "tune": "Timing tactics",
    "compile": "Compiling kernels",
    "refine": "Timing tactics in the network",
    "branches": "Timing plans",
    "verify": "Verifying the engine",
}


class Cancelled(Exception):
    """The monitor has asked to end the build."""


class Phases:
    """Tells a monitor, if there is one, of the phases of one build.

    The root phase has one step each for the definition of the network, its compilation and its serialization. The stages of the
    compilation are phases inside of it, one after the other or one inside of the other.
    """

    def __init__(self, monitor: IProgressMonitor | None, reporter: Reporter) -> None:
        self._monitor, self._reporter = monitor, reporter
        self._open: list[tuple[str, int]] = []  # stage, steps that it has
        self._done: dict[str, int] = {}
        self._root_step = 0

    @contextmanager
    def building(self) -> Iterator[None]:
        """The root phase; all that are open end with it, when the build fails or is cancelled, too."""
        self._start(ROOT, None, len(_STEPS))
        try:
            yield
        finally:
            while self._open:
                self._close(self._open[-1][0])
            self._finish(ROOT)

    def step(self) -> None:
        """A step of the root phase is done.

        Raises:
            Cancelled: the monitor wants no more.
        """
        while self._open:
            self._close(self._open[-1][0])
        self._complete(ROOT, self._root_step)
        self._root_step += 1

    def stage(self, stage: str, done: int, total: int) -> None:
        """How far a stage of `dovetail.build` is, as its `progress` says.

        Raises:
            Cancelled: the monitor wants no more.
        """
        if self._monitor is None or total < 1:
            return
        names = [name for name, _ in self._open]
        if stage in names and done == total < dict(self._open)[stage]:
            done = total = dict(self._open)[stage]  # it has nothing more to do
        elif stage in names and (total != dict(self._open)[stage] or done < self._done[stage]):
            self._close(stage)  # it starts anew
        if stage not in [name for name, _ in self._open]:
            if done >= total and not done:
                return
            self._start(_TITLES.get(stage, stage), _TITLES.get(self._open[-1][0]) if self._open else ROOT, total)
            self._open.append((stage, total))
            self._done[stage] = 0
        while self._open and self._open[-1][0] != stage:
            self._close(self._open[-1][0])  # what was inside of it is over
        for step in range(self._done[stage], min(done, total)):
            self._done[stage] = step + 1
            self._complete(_TITLES.get(stage, stage), step)
        if done >= total:
            self._close(stage)

    def _close(self, stage: str) -> None:
        """End a stage and those inside of it."""
        while any(name == stage for name, _ in self._open):
            name, _ = self._open.pop()
            del self._done[name]
            self._finish(_TITLES.get(name, name))

    def _start(self, name: str, parent: str | None, steps: int) -> None:
        if self._monitor is not None:
            call(self._reporter, "phase_start", self._monitor.phase_start, name, parent, steps, default=None)

    def _complete(self, name: str, step: int) -> None:
        if self._monitor is not None and not call(self._reporter, "step_complete", self._monitor.step_complete, name, step, default=False):
            raise Cancelled(name)

    def _finish(self, name: str) -> None:
        if self._monitor is not None:
            call(self._reporter, "phase_finish", self._monitor.phase_finish, name, default=None)
