"""Times choices in the network as a whole: all groups in order in one CUDA graph, over memory laid out as an engine lays it out.

What is fastest alone is not always fastest between its neighbours: caches hold what the kernel ahead wrote, and the next kernel
starts while this one ends. Weights have memory of their own and results share an arena by lifetime, so that caches see
what they will see later; nothing is computed from real data.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from dovetail.core.errors import ExecutionError
from dovetail.device.cuda.driver import Driver, Graph, Stream
from dovetail.device.cuda.memory import DeviceMemory, parts
from dovetail.engine.memory import Lifetime, place
from dovetail.ir.graph import Time, Value
from dovetail.ops.registry import SELECT, find
from dovetail.passes.views import is_view
from dovetail.tuner.cuda_choose import Contender, Machine, Placed
from dovetail.tuner.cuda_launch import Functions, calls, own_bytes
from dovetail.tuner.cuda_pool import aligned, fill, own_addresses, span

_INTEGER_OPS = frozenset({"Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements"})


def problem(groups: Sequence[Placed]) -> str | None:
    """None if the network can be timed, else why not: addresses that the data decide could lead anywhere."""
    for placed in groups:
        addressed = any(n.op in _INTEGER_OPS or ((s := find(n.op)) is not None and s.kind == SELECT) for n in placed.group.body.nodes)
        if addressed and any(_root(v).producer is not None and v.time == Time.RUN and v.tensor.dtype.is_int for v in placed.group.inputs):
            return f"{placed.group.node.where} reads at addresses that the run computes"
    return None


def _root(value: Value) -> Value:
    while value.producer is not None and is_view(value.producer):
        value = value.producer.input(0)
    return value


class Network:
    """All groups of a model on one device.

    Args:
        driver, stream: the device; its context is active.
        groups: in order, with what competes for each.
        machine: machine code of all contenders.

    Raises:
        ExecutionError: the network cannot be timed without its data.
        DeviceError: not enough memory.
    """

    def __init__(self, driver: Driver, stream: Stream, groups: Sequence[Placed], machine: Machine) -> None:
        reason = problem(groups)
        if reason is not None:
            raise ExecutionError(f"network: {reason}; its groups are timed alone only")
        self.driver, self.stream, self.groups = driver, stream, groups
        self.functions = Functions(driver, machine)
        with driver.active():
            self._events = (driver.create_event(True), driver.create_event(True))
            self._allocate()

    def _allocate(self) -> None:
        driver, stream = self.driver, self.stream
        roots, weights = self._measure()
        floats = [r for r in roots if r.tensor.dtype.is_float]
        integers = [r for r in roots if not r.tensor.dtype.is_float]
        lives = self._lifetimes()
        offsets, total = place([roots[r] for r in floats], [lives[r] for r in floats])
        own = max((sum(map(aligned, own_bytes(c.emitted, self.functions, p.sizes))) for p in self.groups for c in p.contenders), default=0)
        starts, size = parts([total, own, own, *(roots[r] for r in integers), *weights.values()])
        self._memory = DeviceMemory(driver, size)
        fill(driver, stream, self._memory.address, size)
        arena, self._own, self._counters, *rest = (self._memory.address + s for s in starts)
        driver.zero(self._counters, own, stream)
        self._base: dict[object, int] = {r: arena + o for r, o in zip(floats, offsets, strict=True)}
        self._base |= dict(zip(integers, rest, strict=False))
        for root in integers:
            driver.zero(self._base[root], roots[root], stream)
        self._base |= dict(zip(weights, rest[len(integers) :], strict=True))
        driver.synchronize(stream)

    def _measure(self) -> tuple[dict[Value, int], dict[tuple[Value, int], int]]:
        """Bytes of each root of run-time values, and of each weight operand as the largest contender wants it."""
        roots: dict[Value, int] = {}
        weights: dict[tuple[Value, int], int] = {}
        for placed in self.groups:
            for value in (*placed.group.inputs, *placed.group.outputs):
                if value.time == Time.RUN:
                    root = _root(value)
                    roots[root] = max(roots.get(root, 0), *(span(v.tensor, placed.sizes).size for v in (root, value)))
            for contender in placed.contenders:
                for position, (outer, packed) in enumerate(zip(placed.group.inputs, contender.group.inputs, strict=True)):
                    if outer.time != Time.RUN:
                        key = (outer, position)
                        weights[key] = max(weights.get(key, 0), span(packed.tensor, placed.sizes).size)
        return roots, weights

    def _lifetimes(self) -> dict[Value, Lifetime]:
        lives: dict[Value, Lifetime] = {}
        for position, placed in enumerate(self.groups):
            for value in (*placed.group.inputs, *placed.group.outputs):
                if value.time == Time.RUN:
                    root = _root(value)
                    known = lives.get(root)
                    lives[root] = Lifetime(position if known is None else known.first, position)
        return lives

    def _addresses(self, placed: Placed, contender: Contender) -> list[int]:
        found = []
        for position, (outer, packed) in enumerate(zip(placed.group.inputs, contender.group.inputs, strict=True)):
            key: object = _root(outer) if outer.time == Time.RUN else (outer, position)
            found.append(self._base[key] + span(packed.tensor, placed.sizes).origin)
        for value in placed.group.outputs:
            found.append(self._base[_root(value)] + span(value.tensor, placed.sizes).origin)
        return found

    def capture(self, chosen: Mapping[str, Contender]) -> Graph:
        """The graph of all groups with these contenders, by the key of the group.

        Raises:
            DeviceError: a launch failed.
        """
        steps = []
        for placed in self.groups:
            contender = chosen[placed.key]
            addresses = self._addresses(placed, contender)
            count = len(placed.group.inputs)
            own = own_addresses(contender.emitted, own_bytes(contender.emitted, self.functions, placed.sizes), self._own, self._counters)
            steps += calls(contender.emitted, self.functions, placed.sizes, addresses[:count], addresses[count:], own)
        driver, stream = self.driver, self.stream
        driver.begin_capture(stream)
        try:
            for step in steps:
                step(stream)
        except BaseException:
            driver.abandon_capture(stream)
            raise
        return driver.end_capture(stream)

    def compare(self, choices: Sequence[Mapping[str, Contender]], replays: int) -> list[float]:
        """Microseconds of the network with each of several choices: medians of interleaved replays.

        Raises:
            DeviceError: a launch failed.
        """
        driver = self.driver
        with driver.active():
            graphs: list[Graph] = []
            try:
                for chosen in choices:
                    graphs.append(self.capture(chosen))
                samples: list[list[float]] = [[] for _ in graphs]
                for turn in range(replays + 1):
                    for graph, times in zip(graphs, samples, strict=True):
                        us = self._replay(graph)
                        if turn:  # the first replay of a graph uploads it
                            times.append(us)
                return [statistics.median(times) for times in samples]
            finally:
                for graph in graphs:
                    driver.destroy_graph(graph)

    def _replay(self, graph: Graph) -> float:
        driver, stream, (start, end) = self.driver, self.stream, self._events
        driver.record(start, stream)
        driver.launch_graph(graph, stream)
        driver.record(end, stream)
        driver.synchronize_event(end)
        return driver.elapsed_ns(start, end) / 1e3
