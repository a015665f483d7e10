"""Times choices in the network as a whole: all groups in order in one CUDA graph, over memory laid out as an engine lays it out.

What is fastest alone is not always fastest between its neighbours: caches hold what the kernel ahead wrote, and the next kernel
starts while this one ends. Weights have memory of their own and results share an arena by lifetime, so that caches see
what they will see later; nothing is computed from real data.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from dovetail.device.cuda.driver import Driver, Graph, Stream
from dovetail.device.cuda.memory import DeviceMemory, parts
from dovetail.engine.memory import place
from dovetail.tuner.cuda_launch import Functions, Machine, calls, own_bytes
from dovetail.tuner.cuda_pool import aligned, fill, own_addresses
from dovetail.tuner.cuda_trial import NetworkTrial, Site, Trial


class Network:
    """All groups of a model on one device.

    Args:
        driver, stream: the device; its context is active.
        given: the groups in order, with what competes for each.
        machine: machine code of all trials.

    Raises:
        DeviceError: not enough memory.
    """

    def __init__(self, driver: Driver, stream: Stream, given: NetworkTrial, machine: Machine) -> None:
        self.driver, self.stream, self.given = driver, stream, given
        self.functions = Functions(driver, machine)
        with driver.active():
            self._events = (driver.create_event(True), driver.create_event(True))
            self._allocate()

    def _allocate(self) -> None:
        driver, stream, regions = self.driver, self.stream, self.given.regions
        by_kind = {kind: [i for i, r in enumerate(regions) if r.kind == kind] for kind in ("float", "integer", "weight")}
        floats = by_kind["float"]
        offsets, total = place([regions[i].size for i in floats], [regions[i].life for i in floats])
        own = max((sum(map(aligned, own_bytes(t.emitted, self.functions, {}))) for t in self.given.trials), default=0)
        apart = by_kind["integer"] + by_kind["weight"]
        starts, size = parts([total, own, own, *(regions[i].size for i in apart)])
        self._memory = DeviceMemory(driver, size)
        fill(driver, stream, self._memory.address, size)
        arena, self._own, self._counters, *rest = (self._memory.address + s for s in starts)
        driver.zero(self._counters, own, stream)
        self._base = dict(zip(floats, (arena + o for o in offsets), strict=True)) | dict(zip(apart, rest, strict=True))
        for index in by_kind["integer"]:
            driver.zero(self._base[index], regions[index].size, stream)
        driver.synchronize(stream)

    def _steps(self, site: Site, trial: Trial) -> list[Callable[[Stream], None]]:
        found = [self._base[region] + s.origin for region, s in zip(site.regions, trial.spans, strict=True)]
        own = own_addresses(trial.emitted, own_bytes(trial.emitted, self.functions, {}), self._own, self._counters)
        return calls(trial.emitted, self.functions, {}, found[: trial.inputs], found[trial.inputs :], own)

    def capture(self, chosen: Mapping[str, int]) -> Graph:
        """The graph of all groups with these trials, by the key of the site.

        Raises:
            DeviceError: a launch failed.
        """
        steps = [step for site in self.given.sites for step in self._steps(site, site.trials[chosen[site.key]])]
        driver, stream = self.driver, self.stream
        driver.begin_capture(stream)
        try:
            for step in steps:
                step(stream)
        except BaseException:
            driver.abandon_capture(stream)
            raise
        return driver.end_capture(stream)

    def compare(
        self, choices: Sequence[Mapping[str, int]], replays: int, at: Callable[[int], None] = lambda index: None
    ) -> list[float | str]:
        """Microseconds of the network with each of several choices: medians of interleaved replays.

        Args:
            at: called with the index of a choice before it is run.

        Raises:
            DeviceError: a launch failed.
        """
        driver = self.driver
        with driver.active():
            graphs: list[Graph] = []
            try:
                for index, chosen in enumerate(choices):
                    at(index)
                    graphs.append(self.capture(chosen))
                samples: list[list[float]] = [[] for _ in graphs]
                for turn in range(replays + 1):
                    for index, (graph, times) in enumerate(zip(graphs, samples, strict=True)):
                        at(index)
                        us = self._replay(graph)
                        if turn:  # the first replay of a graph uploads it
                            times.append(us)
                return [statistics.median(times) for times in samples]
            finally:
                if not driver.lost:
                    for graph in graphs:
                        driver.destroy_graph(graph)

    def close(self) -> None:
        """Give code and memory back."""
        with self.driver.active():
            self.functions.close()
            for event in self._events:
                self.driver.destroy_event(event)
        del self._memory

    def _replay(self, graph: Graph) -> float:
        driver, stream, (start, end) = self.driver, self.stream, self._events
        driver.record(start, stream)
        driver.launch_graph(graph, stream)
        driver.record(end, stream)
        driver.synchronize_event(end)
        return driver.elapsed_ns(start, end) / 1e3
