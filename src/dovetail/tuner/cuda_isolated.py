"""Times candidates on a GPU in a process of their own: one that hangs, or ends the device's context, costs itself alone.

A process that says nothing for `SILENCE_S` seconds, or that dies, is replaced; the candidate that had its turn is `Fatal`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from dovetail.codegen.triton_compiler import Compiled
from dovetail.core.env import env, inherited
from dovetail.core.errors import DeviceError
from dovetail.core.log import logger
from dovetail.device.cuda.driver import Driver
from dovetail.tuner.cuda_choose import Contender, Fatal, Machine, NetworkTimer, Placed
from dovetail.tuner.cuda_time import GraphTimer, environment, numbers_of
from dovetail.tuner.cuda_trial import NetworkTrial, Trial, network_trial, trial

COMMAND = (sys.executable, "-m", "dovetail.tuner.cuda_worker")

SILENCE_S = 60.0
"""Seconds without a word after which a candidate counts as hanging: it runs for much less, libraries may compile meanwhile."""

_OPENING_S = 120.0  # imports from a slow disk, and the context of a device that others use
_ENDING_S = 30.0
_TURNS = 2  # processes that may die before any candidate had its turn
_log = logger("tune")


class _Ended(Exception):
    """A process has ended, or was ended; `turn` is the index of the candidate that it ran."""

    def __init__(self, turn: int | None, reason: str) -> None:
        super().__init__(reason)
        self.turn = turn


class _Unusable(Exception):
    """A process that cannot use the device, and why."""


class _Process:
    """One measuring process."""

    def __init__(self, ordinal: int, command: Sequence[str]) -> None:
        self._connection, theirs = Pipe()
        self._messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        here = env()
        environment = inherited(DOVETAIL_CACHE=str(here.cache), DOVETAIL_CUBLASLT=here.cublaslt, DOVETAIL_CUDNN=here.cudnn)
        paths = (str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(ordinal)], pass_fds=(theirs.fileno(),), stdin=subprocess.PIPE,
                stdout=self._messages, stderr=self._messages, env=environment,
                start_new_session=True,  # an interrupt is for this process, which ends the other
            )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._process, self._connection, self._messages)
        self._ready = False

    def ask(self, silence_s: float, *request: Any) -> Any:
        """The answer to a request.

        Raises:
            _Unusable: it cannot use the device.
            _Ended: it hung or died.
            DeviceError: what was asked for failed.
        """
        try:
            if not self._ready:
                try:
                    self._answer(_OPENING_S)
                except (DeviceError, _Ended) as error:
                    raise _Unusable(str(error)) from None
                self._ready = True
            try:
                self._connection.send(request)
            except OSError:
                raise _Ended(None, f"the measuring process ended{self._last_words()}") from None
            return self._answer(silence_s)
        except DeviceError:
            raise
        except BaseException:  # an interrupt, too: nobody knows what it would answer next
            self.close()
            raise

    def _answer(self, silence_s: float) -> Any:
        turn: int | None = None
        while True:
            try:
                if not self._connection.poll(silence_s):
                    raise _Ended(turn, f"it did not end within {silence_s:g} s")
                kind, value = self._connection.recv()
            except (EOFError, OSError):
                raise _Ended(turn, f"the measuring process ended{self._last_words()}") from None
            if kind == "at":
                turn = int(value)
            elif kind == "lost":
                raise _Ended(turn, str(value))
            elif kind == "error":
                raise DeviceError(str(value))
            else:
                return value

    def _last_words(self) -> str:
        """The code that a process ended with, and the last line that it wrote."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_S)
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return f" with code {self._process.returncode}" + (f": {lines[-1]}" if lines else "")

    @property
    def closed(self) -> bool:
        """Whether it was ended."""
        return not self._end.alive

    def close(self) -> None:
        """End the process, whatever it does."""
        self._end()


def _end(process: subprocess.Popen[bytes], connection: Connection, messages: IO[bytes]) -> None:
    connection.close()
    messages.close()
    process.kill()
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        _log.warning("the measuring process %d does not end: the device may need a reset", process.pid)


class IsolatedTimer:
    """Measures contenders in a process of its own, which is replaced where one of them ends it; see `cuda_choose.Timer`.

    Args:
        driver: the device, for its properties and for measuring here where it lets no other process in.
        libraries: versions of libraries that tactics may call, for the key of the timing cache.
        command: what starts the process; a connection and the device's ordinal follow.
        silence_s: seconds without a word after which a candidate counts as hanging.
    """

    def __init__(self, driver: Driver, libraries: str = "", command: Sequence[str] = COMMAND, silence_s: float = SILENCE_S) -> None:
        self.driver, self.environment = driver, environment(driver, libraries)
        self._libraries, self._command, self._silence_s = libraries, command, silence_s
        self.process: _Process | None = None
        self._here: GraphTimer | None = None

    def start(self) -> None:
        """Start the process; it opens the device beside whatever the caller does."""
        if (self.process is None or self.process.closed) and self._here is None:
            self.process = _Process(self.driver.properties.ordinal, self._command)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.close()

    def measure(self, contenders: Sequence[Contender], machine: Machine, sizes: Mapping[str, int]) -> list[float | str]:
        """See `cuda_choose.Timer`."""
        trials = [trial(c, sizes) for c in contenders]

        def ask(left: Sequence[int]) -> list[float | str]:
            found: list[float | str] = self.ask("measure", [trials[i] for i in left], _code(trials, machine))
            return found

        try:
            return self.surviving(len(trials), ask)
        except _Unusable:
            assert self._here is not None
            return self._here.measure(contenders, machine, sizes)

    def network(self, groups: Sequence[Placed], machine: Machine) -> NetworkTimer:
        """See `cuda_choose.Timer`."""
        given = network_trial(groups)
        made = _IsolatedNetwork(self, groups, given, _code(given.trials, machine))
        try:
            made.open()
        except _Unusable:
            assert self._here is not None
            return self._here.network(groups, machine)
        except _Ended as error:
            raise DeviceError(f"network: {error}") from None
        return made

    def surviving(self, count: int, ask: Callable[[Sequence[int]], list[float | str]]) -> list[float | str]:
        """What `ask` says of candidates by number; those that end the process are `Fatal`, and the others are asked for again.

        Raises:
            DeviceError: processes end before any candidate has its turn.
        """
        result: list[float | str] = [""] * count
        left = list(range(count))
        early = 0
        while left:
            try:
                found = ask(left)
            except _Ended as error:
                if error.turn is not None:
                    result[left.pop(error.turn)] = Fatal(error)
                    continue
                early += 1
                if early == _TURNS:
                    raise DeviceError(f"cuda:{self.driver.properties.ordinal}: {error}, before it ran anything") from None
                continue
            for index, value in zip(left, found, strict=True):
                result[index] = value
            break
        return result

    def ask(self, *request: Any) -> Any:
        """The answer of the process, which is started where there is none.

        Raises:
            _Unusable: no process can use the device.
            _Ended: it hung or died.
            DeviceError: what was asked for failed.
        """
        if self._here is not None:
            raise _Unusable("candidates are measured in this process")
        self.start()
        assert self.process is not None
        try:
            return self.process.ask(self._silence_s, *request)
        except _Unusable as error:
            _log.warning("no other process can use the device (%s): candidates are measured in this one, which a bad one would end", error)
            self._here = GraphTimer(self.driver, self._libraries)
            raise


class _IsolatedNetwork:
    """A network in the measuring process; see `cuda_choose.NetworkTimer`."""

    def __init__(self, timer: IsolatedTimer, groups: Sequence[Placed], given: NetworkTrial, code: Machine) -> None:
        self._timer, self._groups, self._given, self._code = timer, groups, given, code
        self._process: _Process | None = None  # the one that has it

    def open(self) -> None:
        """Send it to a process that does not have it yet."""
        if self._process is None or self._process.closed:
            self._timer.ask("network", self._given, self._code)
            self._process = self._timer.process

    def compare(self, choices: Sequence[Mapping[str, Contender]], replays: int) -> list[float | str]:
        """See `cuda_choose.NetworkTimer`."""
        numbered = numbers_of(self._groups, choices)

        def ask(left: Sequence[int]) -> list[float | str]:
            self.open()
            found: list[float | str] = self._timer.ask("compare", [numbered[i] for i in left], replays)
            return found

        try:
            return self._timer.surviving(len(numbered), ask)
        except _Unusable as error:
            raise DeviceError(f"network: {error}") from None

    def close(self) -> None:
        """Give code and memory back."""
        if self._process is not None and not self._process.closed:
            with contextlib.suppress(_Ended):  # and all with it
                self._timer.ask("close")
        self._process = None


def _code(trials: Sequence[Trial], machine: Machine) -> dict[str, Compiled | str]:
    """The machine code of trials."""
    entries = {step.kernel.entry for t in trials for step in t.emitted.steps}
    return {entry: machine[entry] for entry in sorted(entries) if entry in machine}
