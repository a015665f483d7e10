"""Timing on the GPU over the driver alone: events, captured graphs, interleaved rounds.

Works beside torch in one process: both use the device's primary context, and a stream is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ROUND_MS = 12.0
"""Device time that a candidate gets in one round."""

_MIN_CALLS, _MAX_CALLS = 5, 400


def driver() -> Any:
    """The driver bindings."""
    from cuda.bindings import driver as found

    return found


def check(result: Any, what: str = "CUDA") -> Any:
    """The values of a driver call.

    Raises:
        RuntimeError: the call failed.
    """
    code, *values = result if isinstance(result, tuple) else (result,)
    if int(code) != 0:
        name = driver().cuGetErrorString(code)[1]
        raise RuntimeError(f"{what}: CUDA error {int(code)}, {name.decode() if name else 'unknown'}")
    return values[0] if len(values) == 1 else tuple(values) if values else None


def use_device(index: int = 0) -> int:
    """Make the primary context of a device current; returns the device.

    Raises:
        RuntimeError: no driver, or no such device.
    """
    drv = driver()
    check(drv.cuInit(0), "cuInit")
    device = check(drv.cuDeviceGet(index))
    check(drv.cuCtxSetCurrent(check(drv.cuDevicePrimaryCtxRetain(device))))
    return int(device)


@dataclass
class Candidate:
    """What is timed.

    Attributes:
        name: in tables.
        call: enqueues one run on `stream`.
        stream: the stream's handle.
    """

    name: str
    call: Callable[[], object]
    stream: int = 0


@dataclass
class Times:
    """Milliseconds per run of one candidate: one mean over the calls of each round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median over the rounds; NaN without any."""
        return float(np.median(self.rounds)) if self.rounds else math.nan

    @property
    def low(self) -> float:
        """Lower quartile."""
        return float(np.percentile(self.rounds, 25)) if self.rounds else math.nan

    @property
    def high(self) -> float:
        """Upper quartile."""
        return float(np.percentile(self.rounds, 75)) if self.rounds else math.nan

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {"median_ms": self.median, "q25_ms": self.low, "q75_ms": self.high, "rounds": len(self.rounds), "samples_ms": self.rounds}


class Clock:
    """Times work on a stream by a pair of events."""

    def __init__(self) -> None:
        drv = driver()
        self._start, self._end = (check(drv.cuEventCreate(0)) for _ in range(2))

    def ms(self, candidate: Candidate, calls: int) -> float:
        """Milliseconds per call, `calls` of them back to back."""
        drv = driver()
        stream = drv.CUstream(candidate.stream)
        check(drv.cuEventRecord(self._start, stream))
        for _ in range(calls):
            candidate.call()
        check(drv.cuEventRecord(self._end, stream))
        check(drv.cuEventSynchronize(self._end))
        return float(check(drv.cuEventElapsedTime(self._start, self._end))) / calls

    def close(self) -> None:
        """Free the events."""
        for event in (self._start, self._end):
            check(driver().cuEventDestroy(event))


def interleaved(
    candidates: Sequence[Candidate], *, rounds: int = 15, round_ms: float = ROUND_MS, failed: Callable[[str, Exception], None] | None = None
) -> dict[str, Times]:
    """Time the candidates in rounds, all of them in each, in rotating order.

    Args:
        failed: told of a candidate whose call raises, which is then left out; without it the error goes through.
    """
    clock = Clock()
    times: dict[str, Times] = {}
    calls: dict[str, int] = {}
    alive: list[Candidate] = []
    for candidate in candidates:
        try:
            for _ in range(3):
                clock.ms(candidate, 1)
            one = min(clock.ms(candidate, 3) for _ in range(3))
        except Exception as error:
            if failed is None:
                raise
            failed(candidate.name, error)
            continue
        calls[candidate.name] = min(_MAX_CALLS, max(_MIN_CALLS, round(round_ms / max(one, 1e-4))))
        times[candidate.name] = Times()
        alive.append(candidate)
    for round_ in range(rounds):
        turn = round_ % len(alive) if alive else 0
        for candidate in alive[turn:] + alive[:turn]:
            clock.ms(candidate, 2)
            times[candidate.name].rounds.append(clock.ms(candidate, calls[candidate.name]))
    clock.close()
    return times


def ratio(times: Mapping[str, Times], base: str, others: Sequence[str]) -> tuple[str, float, float, float]:
    """(fastest other, its time over the base's: median over rounds, lower and upper quartile); NaN without others.

    The faster other of each round counts, so that none is favoured by one lucky round.
    """
    known = [o for o in others if o in times and times[o].rounds]
    if not known or base not in times or not times[base].rounds:
        return "", math.nan, math.nan, math.nan
    per_round = np.minimum.reduce([np.array(times[o].rounds) for o in known]) / np.array(times[base].rounds)
    low, high = np.percentile(per_round, [25, 75])
    return min(known, key=lambda o: times[o].median), float(np.median(per_round)), float(low), float(high)


class Graph:
    """Work captured once and launched any number of times."""

    def __init__(self, record: Callable[[int], None]) -> None:
        """`record(stream)` enqueues the work on a stream that is being captured."""
        drv = driver()
        flags = drv.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = check(drv.cuStreamCreate(flags))
        check(drv.cuStreamBeginCapture(self._stream, drv.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
        try:
            record(int(self._stream))
        finally:
            graph = check(drv.cuStreamEndCapture(self._stream), "capture")
        self._exec = check(drv.cuGraphInstantiate(graph, 0))
        check(drv.cuGraphDestroy(graph))
        check(drv.cuGraphUpload(self._exec, self._stream))
        check(drv.cuStreamSynchronize(self._stream))

    @property
    def stream(self) -> int:
        """The handle of the stream it is launched on."""
        return int(self._stream)

    def __call__(self) -> None:
        """Launch once."""
        check(driver().cuGraphLaunch(self._exec, self._stream))

    def candidate(self, name: str) -> Candidate:
        """This graph as something to time."""
        return Candidate(name, self, self.stream)

    def close(self) -> None:
        """Free graph and stream."""
        check(driver().cuGraphExecDestroy(self._exec))
        check(driver().cuStreamDestroy(self._stream))


class Memory:
    """Device memory that is freed together."""

    def __init__(self) -> None:
        self._blocks: list[Any] = []

    def allocate(self, nbytes: int) -> int:
        """The address of fresh memory."""
        block = check(driver().cuMemAlloc(max(nbytes, 256)))
        self._blocks.append(block)
        return int(block)

    def upload(self, array: np.ndarray[Any, Any]) -> int:
        """The address of a copy of an array."""
        dense = np.ascontiguousarray(array)
        address = self.allocate(dense.nbytes)
        check(driver().cuMemcpyHtoD(address, dense.ctypes.data, dense.nbytes))
        return address

    def close(self) -> None:
        """Free all."""
        for block in self._blocks:
            check(driver().cuMemFree(block))
        self._blocks.clear()


def download(address: int, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    """A copy on the host of an array on the device."""
    result = np.empty(tuple(shape), dtype)
    if result.nbytes:
        check(driver().cuMemcpyDtoH(result.ctypes.data, address, result.nbytes))
    return result
