"""Times candidates on a GPU: launches captured in CUDA graphs, weights from outside the L2 cache, successive halving."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.core.dims import evaluate
from dovetail.core.errors import Error
from dovetail.core.log import logger
from dovetail.device.cuda.driver import Driver, Event, Graph, Stream
from dovetail.device.cuda.memory import DeviceMemory
from dovetail.ir.graph import Time
from dovetail.ir.types import TensorType
from dovetail.tuner.cuda_choose import UNABLE, Contender, Machine
from dovetail.tuner.cuda_launch import Functions, calls, own_bytes

# Weights of one graph's launches together exceed the L2 cache; results of the layer before are usually still in it.
_COLD_BYTES = 96 << 20
_SETS = 32
_LAUNCHES = 24
_ALIGNMENT = 256
# Rounds of successive halving: (share of the best time that stays in, at most so many, replays of each).
_ROUNDS = ((1.35, 8, 3), (1.10, 4, 9), (1.0, 4, 21))
_log = logger("tune")


class GraphTimer:
    """Measures contenders on one device; keeps a pool of memory while it lives.

    Args:
        driver: the device.
        libraries: versions of libraries that tactics may call, for the key of the timing cache.
        pool_bytes: memory to begin with.
    """

    def __init__(self, driver: Driver, libraries: str = "", pool_bytes: int = 1 << 30) -> None:
        self.driver, self._pool_bytes = driver, pool_bytes
        properties = driver.properties
        self.environment = (
            f"{properties.name} sm{properties.capability} x{properties.multiprocessors} driver {properties.driver_version} {libraries}"
        )
        self._pool: _Pool | None = None
        with driver.active():
            self._stream: Stream = driver.create_stream()
            self._events: tuple[Event, Event] = (driver.create_event(True), driver.create_event(True))

    def measure(self, contenders: Sequence[Contender], machine: Machine, sizes: Mapping[str, int]) -> list[float]:
        """Microseconds of each; `UNABLE` for one that failed to run."""
        functions = Functions(self.driver, machine)
        with self.driver.active():
            timed = [self._timed(c, functions, sizes) for c in contenders]
            try:
                return self._halve(timed)
            finally:
                for entry in timed:
                    if entry is not None:
                        self.driver.destroy_graph(entry.graph)

    # ------------------------------------------------------------------ graphs
    def _timed(self, contender: Contender, functions: Functions, sizes: Mapping[str, int]) -> _Timed | None:
        try:
            return self._capture(contender, functions, sizes)
        except Error as error:
            _log.debug("%s: %s", contender.name, error)
            return None

    def _capture(self, contender: Contender, functions: Functions, sizes: Mapping[str, int]) -> _Timed:
        driver, emitted = self.driver, contender.emitted
        values = [*contender.group.inputs, *contender.group.outputs]
        spans = [_span(v.tensor, sizes) for v in values]
        own = own_bytes(emitted, functions, sizes)
        known = [v.time != Time.RUN for v in contender.group.inputs] + [False] * len(contender.group.outputs)
        cold = sum(s.size for s, k in zip(spans, known, strict=True) if k)
        warm = sum(s.size for s, k in zip(spans, known, strict=True) if not k)
        sets = max(1, min(_SETS, -(-_COLD_BYTES // max(cold, 1)) if cold else 1))
        need = sets * (cold + _ALIGNMENT * len(values)) + 2 * (warm + _ALIGNMENT * len(values)) + sum(own) + _ALIGNMENT * len(own)
        pool = self._memory(need)
        pool.restart()
        shared = [[None if k else pool.take(s, v.tensor) for v, s, k in zip(values, spans, known, strict=True)] for _ in range(2)]
        own_at = [pool.zeros(size) for size in own]
        launches = []
        for number in range(sets):
            found = [
                pool.take(s, v.tensor) if k else shared[number % 2][i]
                for i, (v, s, k) in enumerate(zip(values, spans, known, strict=True))
            ]
            addresses = [a for a in found if a is not None]
            n = len(contender.group.inputs)
            launches.append(calls(emitted, functions, sizes, addresses[:n], addresses[n:], own_at))
        stream = self._stream
        for call in launches[0]:  # loads code lazily, and shows a failure where it can still be handled
            call(stream)
        driver.synchronize(stream)
        count = max(sets, _LAUNCHES)
        driver.begin_capture(stream)
        try:
            for number in range(count):
                for call in launches[number % sets]:
                    call(stream)
        except BaseException:
            driver.abandon_capture(stream)
            raise
        return _Timed(driver.end_capture(stream), count)

    def _memory(self, need: int) -> _Pool:
        if self._pool is None or self._pool.size < need:
            self._pool = None  # the old one first, so that both need not fit
            self._pool = _Pool(self.driver, self._stream, max(need, self._pool_bytes))
        return self._pool

    # ------------------------------------------------------------------ times
    def _halve(self, timed: Sequence[_Timed | None]) -> list[float]:
        result = [UNABLE] * len(timed)
        alive = [i for i, entry in enumerate(timed) if entry is not None]
        for index in alive:
            result[index] = min(self._replay(timed[index]) for _ in range(2))
        for share, most, replays in _ROUNDS:
            alive.sort(key=lambda i: result[i])
            best = result[alive[0]] if alive else UNABLE
            alive = [i for i in alive[:most] if result[i] <= best * max(share, 1.05)]
            samples: dict[int, list[float]] = {i: [] for i in alive}
            for _ in range(replays):
                for index in alive:  # interleaved, so that a change of clocks hits all alike
                    samples[index].append(self._replay(timed[index]))
            for index in alive:
                result[index] = statistics.median(samples[index])
        return result

    def _replay(self, entry: _Timed | None) -> float:
        assert entry is not None
        driver, stream, (start, end) = self.driver, self._stream, self._events
        driver.record(start, stream)
        driver.launch_graph(entry.graph, stream)
        driver.record(end, stream)
        driver.synchronize_event(end)
        return driver.elapsed_ns(start, end) / 1e3 / entry.launches


@dataclass(frozen=True)
class _Timed:
    """A graph of so many launches of one contender."""

    graph: Graph
    launches: int


@dataclass(frozen=True)
class _Span:
    """Bytes that a value takes, and how far in its logical origin lies."""

    size: int
    origin: int


def _span(type_: TensorType, sizes: Mapping[str, int]) -> _Span:
    layout, item = type_.placement, type_.dtype.itemsize
    shape = [evaluate(d, sizes) for d in type_.shape]
    strides = [evaluate(s, sizes) for s in layout.strides(type_.shape)]
    if 0 in shape:
        return _Span(_ALIGNMENT, 0)
    first = sum(min(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
    last = sum(max(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
    base = evaluate(layout.base(type_.shape), sizes) * item % _ALIGNMENT
    # The origin is congruent to the layout's own, so that what the template takes for aligned is.
    origin = -(first * item // _ALIGNMENT) * _ALIGNMENT + base
    return _Span(origin + (last + 1) * item, origin)


class _Pool:
    """Device memory with ordinary numbers in it, handed out piece by piece: zeros and NaNs would be timed, not the kernel."""

    def __init__(self, driver: Driver, stream: Stream, size: int) -> None:
        self.size = size
        self._driver, self._stream = driver, stream
        self._memory = DeviceMemory(driver, size)
        numbers: np.ndarray[Any, Any] = np.random.default_rng(0).standard_normal(1 << 22, np.float32).astype(np.float16)
        filled = min(size, numbers.nbytes)
        driver.upload(self._memory.address, numbers.view(np.uint8)[:filled], stream)
        while filled < size:
            step = min(filled, size - filled)
            driver.copy(self._memory.address + filled, self._memory.address, step, stream)
            filled += step
        driver.synchronize(stream)
        self._at = 0

    def restart(self) -> None:
        """Hand everything out again."""
        self._at = 0

    def _piece(self, size: int) -> int:
        start = self._memory.address + self._at
        self._at += -(-size // _ALIGNMENT) * _ALIGNMENT
        return start

    def take(self, span: _Span, type_: TensorType) -> int:
        """The address of a value's logical origin; integers are zero, as they may be indices."""
        start = self._piece(span.size)
        if not type_.dtype.is_float:
            self._driver.zero(start, span.size, self._stream)
        return start + span.origin

    def zeros(self, size: int) -> int:
        """A piece of zeros."""
        start = self._piece(size)
        self._driver.zero(start, size, self._stream)
        return start
