"""A native segment bound to shapes: its launches, and the CUDA graph that repeats them."""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from dovetail.core.dims import run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import DeviceError, ExecutionError, PlanFormatError
from dovetail.core.log import logger
from dovetail.device.cuda import libraries
from dovetail.device.cuda.driver import (
    MAX_ELEMENTS,
    Arguments,
    Driver,
    Graph,
    Launch,
    Node,
    TensorMap,
)
from dovetail.device.cuda.libraries import LibraryCall
from dovetail.engine.plan import Arg, Buffer, KernelRef, NativeSegment, Step
from dovetail.runtime.cuda.queue import Queue
from dovetail.runtime.stage import STATIC_KINDS, Bound, Layout, Resources, extents_of, reached

PLACED_KINDS = ("arena", "workspace", "counters")
"""Buffers that a stage places; inputs, outputs and host buffers are where the run says."""

_log = logger("runtime")
_MAX_GRID = ((1 << 31) - 1, 65535, 65535)


class CudaResources(Resources, ABC):
    """Read-only data with addresses on the device, too."""

    __slots__ = ()

    @abstractmethod
    def on_device(self, buffer: Buffer) -> Any:
        """The `DeviceView` of a static buffer, or None where it is on the host alone."""

    @abstractmethod
    def device(self, buffer: Buffer) -> tuple[int, int]:
        """Address and bytes of a static buffer on the device.

        Raises:
            PlanFormatError: nothing has that name.
        """


@dataclass(slots=True)
class Prepared:
    """A step with its dims evaluated: `scratch` bytes of global memory of its own, `workspace` bytes that library calls share."""

    step: Step
    ref: KernelRef
    dims: list[int]
    grid: tuple[int, int, int]
    scratch: int = 0
    workspace: int = 0
    call: LibraryCall | None = None
    scratch_address: int = 0


def prepare(
    segment: NativeSegment, env: Mapping[str, int], kernels: Mapping[str, tuple[Any, KernelRef]], driver: Driver
) -> list[Prepared]:
    """The steps of a segment for these symbols.

    Raises:
        ExecutionError: a grid that no device has.
    """
    found = []
    for step in segment.steps:
        ref = kernels[step.kernel][1]
        dims = [run_program(d, env) for d in step.dims]
        if ref.library:
            call = libraries.prepare(ref.library, driver, ref.call, dims)
            found.append(Prepared(step, ref, dims, (1, 1, 1), workspace=call.workspace, call=call))
            continue
        if ref.launch is None:
            raise PlanFormatError(f"plan: kernel {ref.entry} has no launch, expected one in a plan for a GPU; rebuild the engine")
        x, y, z = (run_program(d, env) for d in step.grid)
        if any(not -MAX_ELEMENTS <= d <= MAX_ELEMENTS for d in dims):
            raise ExecutionError(f"{_origin(step)}: got sizes of {dims}, expected at most {MAX_ELEMENTS} on a GPU; use smaller shapes")
        grid = (x * ref.launch.cluster, y, z)
        if any(not 0 <= n <= limit for n, limit in zip(grid, _MAX_GRID, strict=True)):
            raise ExecutionError(
                f"{_origin(step)}: got a grid of {grid} blocks, expected at most {_MAX_GRID}; use smaller shapes"
            )
        found.append(Prepared(step, ref, dims, grid, scratch=ref.launch.scratch * math.prod(grid)))
    return found


@dataclass(slots=True, eq=False)
class _Item:
    """One launch or library call; `node` is where the graph has it.

    `launch` says whether it may start early where all steps follow one another in one stream, `early` where each lane has its
    own. `waits` are items of other lanes that must be over, `joined` is the number of the event by which others wait for this one.
    """

    launch: Launch | None
    call: LibraryCall | None = None
    pointers: list[int] = field(default_factory=list)
    workspace: int = 0
    maps: dict[int, TensorMap] = field(default_factory=dict)
    node: Node = None
    empty: bool = False  # no programs: nothing to launch
    lane: int = 0
    waits: tuple[int, ...] = ()
    early: bool = False
    joined: int = -1


class CudaCode(Bound):
    """See the module.

    The first run launches step by step, the second captures a graph; from then on one call queues all of it. Where an input
    or output moves, the nodes that use it get new arguments; library calls cannot be changed and are captured again.
    Steps that are launched one by one follow one another; in graphs each lane has a stream of its own.
    """

    __slots__ = (
        "__weakref__", "_destroy", "_driver", "_dynamic", "_graph", "_items", "_known", "_stale", "_static", "_used",
        "fixed", "outer", "roots", "watched", "written",
    )  # fmt: skip

    def __init__(
        self,
        segment: NativeSegment,
        layout: Layout,
        env: Mapping[str, int],
        sizes: Sequence[int | None],
        base: Sequence[int],
        kernels: Mapping[str, tuple[Any, KernelRef]],
        prepared: Sequence[Prepared],
        workspaces: Mapping[int, int],
        driver: Driver,
    ) -> None:
        """`workspaces` are addresses of what library calls share, by lane."""
        super().__init__(segment)
        self._driver = driver
        self._items: list[_Item] = []
        self._dynamic: dict[int, list[tuple[int, int, int]]] = {}  # root -> (item, parameter, byte offset)
        self._static: list[tuple[int, int, Buffer, int, int]] = []  # item, parameter, buffer, offset, bytes
        self._known: dict[int, int] = {}  # root -> the address that the items have
        self._stale: set[int] = set()  # items that changed since the graph was made
        self._graph: Graph = None
        self._destroy: Any = None
        self._used = False
        roots: set[int] = set()
        ahead = False  # the launch before is a kernel of ours, so that this one may wait for it by itself
        for number, one in enumerate(prepared):
            item = self._item(one, kernels, workspaces.get(one.step.lane, 0), ahead)
            self._items.append(item)
            if not item.empty:
                ahead = item.launch is not None
            reach = extents_of(one.ref, one.dims)
            descriptors = iter(one.ref.launch.descriptors if one.ref.launch is not None else ())
            for position, arg in enumerate(one.step.args):
                root = layout.root[arg.buffer]
                roots.add(root)
                buffer = layout.program.buffers[root]
                offset, size = reached(one.step, arg, env, sizes, reach[position] if reach else 0)
                _check_elements(one.step, layout.program.buffers[arg.buffer], size)
                if arg.map is not None and one.call is None:
                    item.maps[position] = _tensor_map(one.step, arg, next(descriptors, None), env)
                if buffer.kind in STATIC_KINDS:
                    self._static.append((number, position, buffer, offset, size))
                elif buffer.kind in PLACED_KINDS:
                    self._set(number, position, base[root] + offset)
                else:
                    self._dynamic.setdefault(root, []).append((number, position, offset))
        self._link()
        self.roots = frozenset(roots)
        self.watched: tuple[int, ...] | None = None  # filled in by the program's runner: what it keeps track of
        self.written: tuple[int, ...] = ()
        self.outer = tuple(self._dynamic)
        # Inputs and outputs of library calls: the graph is captured again when these move.
        self.fixed = {r for r, uses in self._dynamic.items() if any(self._items[i].call is not None for i, _, _ in uses)}

    def _item(self, one: Prepared, kernels: Mapping[str, tuple[Any, KernelRef]], workspace: int, ahead: bool) -> _Item:
        count = len(one.step.args)
        if one.call is not None:
            return _Item(None, one.call, [0] * count, workspace, lane=one.step.lane, waits=one.step.waits)
        launch = one.ref.launch
        assert launch is not None
        ranks = [0 if a.map is None else len(a.map.shape) for a in one.step.args]
        arguments = Arguments(ranks, one.dims, one.scratch_address)
        if 0 in one.grid:
            return _Item(None, empty=True, pointers=[0] * count, lane=one.step.lane, waits=one.step.waits)
        function = kernels[one.step.kernel][0]
        return _Item(
            Launch(function, one.grid, launch.threads, launch.shared, arguments, launch.pdl and ahead, launch.cluster),
            lane=one.step.lane, waits=one.step.waits, early=launch.pdl,
        )  # fmt: skip

    def _link(self) -> None:
        """Number the events that lanes wait for; a kernel that waits for none starts early behind one of ours in its lane."""
        waited = sorted({w for item in self._items for w in item.waits})
        for event, number in enumerate(waited):
            self._items[number].joined = event
        ahead: dict[int, bool] = {}  # by lane
        for item in self._items:
            if item.waits:
                ahead[item.lane] = False
            item.early = item.early and ahead.get(item.lane, False)
            if not item.empty:
                ahead[item.lane] = item.launch is not None

    def _set(self, number: int, parameter: int, pointer: int) -> None:
        item = self._items[number]
        if item.launch is None:
            item.pointers[parameter] = pointer
        elif parameter in item.maps:
            described = replace(item.maps[parameter], address=pointer)
            item.maps[parameter] = described
            item.launch.arguments.set_map(parameter, described, self._driver.encode(described))
        else:
            item.launch.arguments.set_pointer(parameter, pointer)
        self._stale.add(number)

    def point_to(self, resources: Resources) -> None:
        """Fill in the addresses of weights and shape results."""
        assert isinstance(resources, CudaResources)
        for number, parameter, buffer, offset, size in self._static:
            pointer, room = resources.device(buffer)
            if room < size:
                raise PlanFormatError(
                    f"plan: {buffer.kind} {buffer.name!r} has {room} bytes, expected {size}; rebuild the engine"
                )
            self._set(number, parameter, pointer + offset)

    def move(self, addresses: Sequence[int]) -> None:
        """Take note of where inputs and outputs are, by root buffer."""
        known = self._known
        for root in self.outer:
            pointer = addresses[root]
            if known.get(root) != pointer:
                known[root] = pointer
                for number, parameter, offset in self._dynamic[root]:
                    self._set(number, parameter, pointer + offset)

    def run(self, addresses: Sequence[int], queue: Queue) -> None:
        """Queue the segment."""
        self.move(addresses)
        if queue.capturing:  # for a graph of the caller
            self._fork(queue, queue.stream)
            return
        if not self._used:
            self._used = True
            self.launch(queue, 0, len(self._items))
            return
        if self._graph is not None and self._stale and not self._update():
            self._drop()
        if self._graph is None:
            self._graph = self._capture(queue)
            self._destroy = weakref.finalize(self, _destroy, self._driver, self._graph)
            self._destroy.atexit = False
        self._driver.launch_graph(self._graph, queue.stream)

    def launch(self, queue: Queue, start: int, stop: int) -> None:
        """Queue some steps one by one."""
        for item in self._items[start:stop]:
            self._launch(item, queue.stream, early=item.launch is not None and item.launch.pdl)

    def timed(self, queue: Queue, start: int, stop: int) -> list[float]:
        """Run some steps and wait for them; returns the nanoseconds of each.

        The time stamps are nodes of a graph, so that the host's launch times do not show.
        """
        driver, stream = self._driver, queue.own
        events = [driver.create_event(timing=True) for _ in range(stop - start + 1)]
        queue.synchronize()
        driver.begin_capture(stream)
        try:
            driver.record(events[0], stream, external=True)
            for item, event in zip(self._items[start:stop], events[1:], strict=True):
                # A time stamp stands before each kernel: none may start early.
                self._launch(item, stream, early=False)
                driver.record(event, stream, external=True)
        except BaseException:
            driver.abandon_capture(stream)
            raise
        graph = driver.end_capture(stream)
        driver.launch_graph(graph, stream)
        driver.synchronize(stream)
        times = [driver.elapsed_ns(a, b) for a, b in pairwise(events)]
        driver.destroy_graph(graph)
        for event in events:
            driver.destroy_event(event)
        return times

    def _launch(self, item: _Item, stream: int, early: bool) -> None:
        if item.launch is not None:
            launch = item.launch
            self._driver.launch(launch if launch.pdl == early else replace(launch, pdl=early), stream)
        elif item.call is not None:
            item.call.launch(item.pointers, item.workspace, stream)

    def _capture(self, queue: Queue) -> Graph:
        # The legacy default stream cannot be captured, the context's own always can.
        driver, stream = self._driver, queue.own
        driver.begin_capture(stream)
        try:
            self._fork(queue, stream)
        except BaseException:
            driver.abandon_capture(stream)
            raise
        self._stale.clear()
        return driver.end_capture(stream)

    def _fork(self, queue: Queue, stream: int) -> None:
        """Record all steps, each lane in a stream of its own that leaves the given one and joins it again."""
        driver = self._driver
        lanes = {0: stream}
        events = 1 + max((item.joined for item in self._items), default=-1)
        if any(item.lane for item in self._items):
            driver.record(queue.event(events), stream)
        for item in self._items:
            where = lanes.get(item.lane)
            if where is None:
                where = lanes[item.lane] = queue.side(item.lane - 1)
                driver.wait(where, queue.event(events))
            for number in item.waits:
                driver.wait(where, queue.event(self._items[number].joined))
            self._launch(item, where, item.early)
            if item.launch is not None and not queue.capturing:
                item.node = driver.captured(where)
            if item.joined >= 0:
                driver.record(queue.event(item.joined), where)
        for lane, where in lanes.items():
            if lane:
                driver.record(queue.event(events + lane), where)
                driver.wait(stream, queue.event(events + lane))

    def _update(self) -> bool:
        """Bring the graph up to date; False where it must be captured again."""
        changed = [self._items[i] for i in self._stale if not self._items[i].empty]
        if any(item.launch is None for item in changed) or 2 * len(changed) > len(self._items) + 4:
            return False
        try:
            for item in changed:
                assert item.launch is not None
                self._driver.update(self._graph, item.node, item.launch)
        except DeviceError as error:
            _log.warning("graph is captured again, for it cannot be changed: %s", error)
            return False
        self._stale.clear()
        return True

    def _drop(self) -> None:
        self._destroy()
        self._graph = self._destroy = None


def _destroy(driver: Driver, graph: Graph) -> None:
    if not driver.alive():
        return
    with driver.active():
        driver.destroy_graph(graph)


def _tensor_map(step: Step, arg: Arg, record: Mapping[str, Any] | None, env: Mapping[str, int]) -> TensorMap:
    """What a descriptor parameter describes; the address comes later."""
    assert arg.map is not None
    try:
        assert record is not None
        kind, element, swizzle = (_integer(record[k]) for k in ("kind", "element", "swizzle"))
        box = tuple(_integer(n) for n in record["box"])
    except (AssertionError, KeyError, TypeError) as error:
        raise PlanFormatError(
            f"plan: step {step.kernel} has a tensor map that its kernel does not describe ({error!r}); rebuild the engine"
        ) from None
    shape = tuple(run_program(d, env) for d in arg.map.shape)
    strides = tuple(run_program(d, env) for d in arg.map.strides)
    if len(box) != len(shape):
        raise PlanFormatError(
            f"plan: step {step.kernel} has a tensor map of rank {len(shape)} and a box of rank {len(box)}; rebuild the engine"
        )
    return TensorMap(0, kind, element, shape, strides, box, swizzle)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"got {value!r}, expected an integer")
    return value


def _check_elements(step: Step, buffer: Buffer, size: int) -> None:
    """Kernels compute offsets in int32."""
    # A workspace counts bytes, of elements that only its kernel knows.
    itemsize = 4 if buffer.kind == "workspace" else dtype(buffer.dtype).itemsize
    if size > MAX_ELEMENTS * itemsize:
        raise ExecutionError(
            f"{_origin(step)}: got a tensor of {size // itemsize} elements, expected at most {MAX_ELEMENTS} on a GPU; use smaller shapes, "
            "for example a smaller batch"
        )


def _origin(step: Step) -> str:
    return ", ".join(step.origin) or step.kernel
