"""Times candidates on a GPU: launches captured in CUDA graphs, weights from outside the L2 cache, successive halving."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovetail.core.errors import DeviceError, Error
from dovetail.core.log import logger
from dovetail.device.cuda.driver import Driver, Event, Graph, Stream
from dovetail.ir.graph import Time
from dovetail.tuner.cuda_choose import UNABLE, Contender, Machine, Placed
from dovetail.tuner.cuda_launch import Functions, calls, own_bytes
from dovetail.tuner.cuda_network import Network
from dovetail.tuner.cuda_pool import Pool, aligned, own_addresses, span

# Weights of one graph's launches together exceed the L2 cache; results of the layer before are usually still in it.
_COLD_BYTES = 96 << 20
_SETS = 32
_LAUNCHES = 24
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
        self._pool: Pool | None = None
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

    def network(self, groups: Sequence[Placed], machine: Machine) -> Network:
        """All groups of a model in order, to time choices between their neighbours."""
        return Network(self.driver, self._stream, groups, machine)

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
        spans = [span(v.tensor, sizes) for v in values]
        own = own_bytes(emitted, functions, sizes)
        own_total = sum(map(aligned, own))
        known = [v.time != Time.RUN for v in contender.group.inputs] + [False] * len(contender.group.outputs)
        cold = sum(aligned(s.size) for s, k in zip(spans, known, strict=True) if k)
        warm = sum(aligned(s.size) for s, k in zip(spans, known, strict=True) if not k)
        sets = max(1, min(_SETS, -(-_COLD_BYTES // cold))) if cold else 2
        pool = self._memory(sets * cold + 2 * (warm + 2 * aligned(own_total)))
        pool.restart()
        shared = [[0 if k else pool.take(s, v.tensor) for v, s, k in zip(values, spans, known, strict=True)] for _ in range(2)]
        # Two of everything that kernels write, in turns: neighbours may overlap where kernels are launched early.
        own_at = [own_addresses(emitted, own, pool.memory(own_total), pool.zeros(own_total)) for _ in range(2)]
        n = len(contender.group.inputs)
        launches = []
        for number in range(sets):
            turn = number % 2
            found = [
                pool.take(s, v.tensor) if k else shared[turn][i] for i, (v, s, k) in enumerate(zip(values, spans, known, strict=True))
            ]
            launches.append(calls(emitted, functions, sizes, found[:n], found[n:], own_at[turn]))
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

    def _memory(self, need: int) -> Pool:
        if self._pool is None or self._pool.size < need:
            self._pool = None  # the old one first, so that both need not fit
            try:
                self._pool = Pool(self.driver, self._stream, max(need, self._pool_bytes))
            except DeviceError:
                if need >= self._pool_bytes:
                    raise
                self._pool = Pool(self.driver, self._stream, need)  # others use the device, too
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
