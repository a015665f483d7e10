"""The host library: the compiled form of `pool.c`, called through ctypes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dovetail.core.errors import DeviceError
from dovetail.device.cpu.library import load_shared_object

VERSION = 1

STEP_WORDS = 4
"""A step is four 64-bit words: kernel, pointer table, dims, flags | max_threads << 32."""

NO_BARRIER = 1
"""Flag of a step that the next one does not depend on."""

_P, _I = ctypes.c_void_p, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "dt_version": (_I, []),
    "dt_has_futex": (_I, []),
    "dt_pool_size": (_I, []),
    "dt_job_size": (_I, []),
    "dt_max_workers": (_I, []),
    "dt_ticks": (_I, []),
    "dt_nanoseconds": (_I, []),
    "dt_worker": (None, [_P, _I]),
    "dt_present": (_I, [_P]),
    "dt_stop": (None, [_P]),
    "dt_run": (_I, [_P, _P, _I, _I, _P]),
    "dt_job_init": (None, [_P, _P, _I, _I, _P]),
    "dt_job_enter": (None, [_P, _I]),
    "dt_job_join": (None, [_P]),
}


class HostLibrary:
    """The functions of `pool.c` as attributes without the `dt_` prefix."""

    _loaded: HostLibrary | None = None

    def __init__(self, source: str | Path | bytes | memoryview) -> None:
        self._library, self.name = load_shared_object(source)
        for name, (result, arguments) in _FUNCTIONS.items():
            try:
                function = self._library[name]
            except AttributeError as error:
                raise DeviceError(
                    f"{self.name}: got no {name}, expected a host library; rebuild the engine"
                ) from error
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("dt_"), function)
        if self.version() != VERSION:
            raise DeviceError(
                f"{self.name}: got version {self.version()} of the host library, expected "
                f"{VERSION}; rebuild the engine"
            )
        self._calibration = self._moment()

    version: Callable[..., Any]
    has_futex: Callable[..., Any]
    pool_size: Callable[..., Any]
    job_size: Callable[..., Any]
    max_workers: Callable[..., Any]
    ticks: Callable[..., Any]
    nanoseconds: Callable[..., Any]
    worker: Callable[..., Any]
    present: Callable[..., Any]
    stop: Callable[..., Any]
    run: Callable[..., Any]
    job_init: Callable[..., Any]
    job_enter: Callable[..., Any]
    job_join: Callable[..., Any]

    @classmethod
    def load(cls, source: str | Path | bytes | memoryview) -> HostLibrary:
        """The host library of this process; the first one loaded serves all later callers.

        All engines of a process share one pool, hence one library: versions are checked, and
        binaries of one version are interchangeable.

        Raises:
            DeviceError: not a host library of this version and machine.
        """
        if cls._loaded is None:
            cls._loaded = cls(source)
        return cls._loaded

    @classmethod
    def current(cls) -> HostLibrary | None:
        """The library that `load` loaded, if any."""
        return cls._loaded

    def nanoseconds_per_tick(self, observed_ns: int = 20_000_000) -> float:
        """Length of a tick of the time stamps, measured since the library was loaded.

        Waits until at least `observed_ns` have passed since then; the relative error is about
        100 ns over that.
        """
        ticks, start = self._calibration
        while time.monotonic_ns() - start < observed_ns:
            time.sleep(observed_ns * 0.2e-9)
        now, end = self._moment()
        return (end - start) / (now - ticks) if now > ticks else 0.0

    def _moment(self) -> tuple[int, int]:
        """Ticks and nanoseconds at one time, of the closest of a few readings: another process may run in between."""
        found: list[tuple[int, int, int]] = []
        for _ in range(8):
            before = time.monotonic_ns()
            ticks = self.ticks()
            after = time.monotonic_ns()
            found.append((after - before, ticks, (before + after) // 2))
        _, ticks, middle = min(found)
        return ticks, middle
