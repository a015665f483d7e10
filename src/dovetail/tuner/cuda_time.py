"""Times candidates on a GPU: launches captured in CUDA graphs, weights from outside the L2 cache, successive halving."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dovetail.core.errors import DeviceError, DeviceLostError, Error
from dovetail.core.log import logger
from dovetail.device.cuda.driver import Driver, Event, Graph, Stream
from dovetail.tuner.cuda_choose import UNABLE, CandidateLostError, Contender, Machine, Placed
from dovetail.tuner.cuda_launch import Functions, calls, own_bytes
from dovetail.tuner.cuda_network import Network
from dovetail.tuner.cuda_pool import Pool, aligned, own_addresses
from dovetail.tuner.cuda_trial import NetworkTrial, Trial, network_trial, trial

# Weights of one graph's launches together exceed the L2 cache; results of the layer before are usually still in it.
_COLD_BYTES = 96 << 20
_SETS = 32
_LAUNCHES = 24
# Rounds of successive halving: (share of the best time that stays in, at most so many, replays of each).
_ROUNDS = ((1.35, 8, 3), (1.10, 4, 9), (1.0, 4, 21))
_log = logger("tune")

At = Callable[[int], None]
"""Called with the index of what is run next."""


def environment(driver: Driver, libraries: str = "") -> str:
    """All of a device and its libraries that times depend on, for the key of the timing cache."""
    found = driver.properties
    return f"{found.name} sm{found.capability} x{found.multiprocessors} driver {found.driver_version} {libraries}"


class Meter:
    """Measures trials on one device, in this process; keeps a pool of memory while it lives.

    Args:
        driver: the device.
        pool_bytes: memory to begin with.
    """

    def __init__(self, driver: Driver, pool_bytes: int = 1 << 30) -> None:
        self.driver, self._pool_bytes = driver, pool_bytes
        self._pool: Pool | None = None
        with driver.active():
            self._stream: Stream = driver.create_stream()
            self._events: tuple[Event, Event] = (driver.create_event(True), driver.create_event(True))

    def measure(self, trials: Sequence[Trial], machine: Machine, at: At = lambda index: None) -> list[float | str]:
        """Microseconds of each; the reason of one that failed to run.

        Raises:
            DeviceLostError: one has ended the device's context: that of the last call of `at`.
        """
        driver = self.driver
        functions = Functions(driver, machine)
        graphs: dict[int, _Timed] = {}
        result: list[float | str] = [UNABLE] * len(trials)
        with driver.active():
            try:
                for index, one in enumerate(trials):
                    at(index)
                    try:
                        graphs[index] = self._capture(one, functions)
                    except DeviceLostError:
                        raise
                    except Error as error:
                        _log.debug("%s: %s", one.name, error)
                        result[index] = str(error)
                        driver.synchronize(self._stream)  # what it queued may end the context, too
                self._halve(graphs, result, at)
            finally:
                if not driver.lost:
                    for entry in graphs.values():
                        driver.destroy_graph(entry.graph)
                    functions.close()
        return result

    def network(self, given: NetworkTrial, machine: Machine) -> Network:
        """All groups of a model, to time choices between their neighbours.

        Raises:
            DeviceError: not enough memory.
        """
        self._pool = None  # what is not needed meanwhile
        return Network(self.driver, self._stream, given, machine)

    # ------------------------------------------------------------------ graphs
    def _capture(self, given: Trial, functions: Functions) -> _Timed:
        driver, emitted = self.driver, given.emitted
        operands = list(zip(given.spans, given.integers, given.known, strict=True))
        own = own_bytes(emitted, functions, {})
        own_total = sum(map(aligned, own))
        cold = sum(aligned(s.size) for s, _, known in operands if known)
        warm = sum(aligned(s.size) for s, _, known in operands if not known)
        sets = max(1, min(_SETS, -(-_COLD_BYTES // cold))) if cold else 2
        pool = self._memory(sets * cold + 2 * (warm + 2 * aligned(own_total)))
        pool.restart()
        shared = [[0 if known else pool.take(s, zero) for s, zero, known in operands] for _ in range(2)]
        # Two of everything that kernels write, in turns: neighbours may overlap where kernels are launched early.
        own_at = [own_addresses(emitted, own, pool.memory(own_total), pool.zeros(own_total)) for _ in range(2)]
        launches = []
        for number in range(sets):
            turn = number % 2
            found = [pool.take(s, zero) if known else shared[turn][i] for i, (s, zero, known) in enumerate(operands)]
            launches.append(calls(emitted, functions, {}, found[: given.inputs], found[given.inputs :], own_at[turn]))
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
                if need >= self._pool_bytes or self.driver.lost:
                    raise
                self._pool = Pool(self.driver, self._stream, need)  # others use the device, too
        return self._pool

    # ------------------------------------------------------------------ times
    def _halve(self, graphs: Mapping[int, _Timed], result: list[float | str], at: At) -> None:
        times: dict[int, float] = {}

        def replay(index: int) -> float:
            at(index)
            return self._replay(graphs[index])

        for index in graphs:
            times[index] = min(replay(index) for _ in range(2))
        alive = list(graphs)
        for share, most, replays in _ROUNDS:
            alive.sort(key=lambda i: times[i])
            best = times[alive[0]] if alive else UNABLE
            alive = [i for i in alive[:most] if times[i] <= best * max(share, 1.05)]
            samples: dict[int, list[float]] = {i: [] for i in alive}
            for _ in range(replays):
                for index in alive:  # interleaved, so that a change of clocks hits all alike
                    samples[index].append(replay(index))
            for index in alive:
                times[index] = statistics.median(samples[index])
        for index, us in times.items():
            result[index] = us

    def _replay(self, entry: _Timed) -> float:
        driver, stream, (start, end) = self.driver, self._stream, self._events
        driver.record(start, stream)
        driver.launch_graph(entry.graph, stream)
        driver.record(end, stream)
        driver.synchronize_event(end)
        return driver.elapsed_ns(start, end) / 1e3 / entry.launches


@dataclass(frozen=True)
class _Timed:
    """A graph of so many launches of one trial."""

    graph: Graph
    launches: int


class GraphTimer:
    """Measures contenders in this process: for devices whose kernels cannot harm it, and where no other process may use the device.

    Args:
        driver: the device.
        libraries: versions of libraries that tactics may call, for the key of the timing cache.
        pool_bytes: memory to begin with.
    """

    def __init__(self, driver: Driver, libraries: str = "", pool_bytes: int = 1 << 30) -> None:
        self.driver, self.environment = driver, environment(driver, libraries)
        self._meter = Meter(driver, pool_bytes)

    def start(self) -> None:
        """Nothing to prepare."""

    def measure(self, contenders: Sequence[Contender], machine: Machine, sizes: Mapping[str, int]) -> list[float | str]:
        """See `cuda_choose.Timer`."""
        trials = [trial(c, sizes) for c in contenders]
        return _named(lambda at: self._meter.measure(trials, machine, at))

    def network(self, groups: Sequence[Placed], machine: Machine) -> GraphNetwork:
        """See `cuda_choose.Timer`."""
        return GraphNetwork(self._meter.network(network_trial(groups), machine), groups)


class GraphNetwork:
    """A network that is timed in this process; see `cuda_choose.NetworkTimer`."""

    def __init__(self, network: Network, groups: Sequence[Placed]) -> None:
        self._network, self._groups = network, groups

    def compare(self, choices: Sequence[Mapping[str, Contender]], replays: int) -> list[float | str]:
        """See `cuda_choose.NetworkTimer`."""
        numbered = numbers_of(self._groups, choices)
        return _named(lambda at: self._network.compare(numbered, replays, at))

    def close(self) -> None:
        """Give code and memory back."""
        self._network.close()


def numbers_of(groups: Sequence[Placed], choices: Sequence[Mapping[str, Contender]]) -> list[dict[str, int]]:
    """Choices by number among the contenders of each group."""
    found = []
    for chosen in choices:
        found.append({p.key: next(i for i, c in enumerate(p.contenders) if c is chosen[p.key]) for p in groups})
    return found


def _named(run: Callable[[At], list[float | str]]) -> list[float | str]:
    """What `run` gives.

    Raises:
        CandidateLostError: one of the candidates has ended the context.
    """
    current = -1

    def at(index: int) -> None:
        nonlocal current
        current = index

    try:
        return run(at)
    except DeviceLostError as error:
        if current < 0:
            raise
        raise CandidateLostError(current, str(error)) from None
