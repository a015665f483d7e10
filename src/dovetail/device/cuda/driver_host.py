"""A driver without a GPU: device memory is host memory, kernels are Python functions, streams run at once.

For tests, and for trying CUDA engines on machines without a GPU: `run` interprets what `load` was given. It checks what a device
would punish: copies outside of allocations, use without an active context, addresses that are not aligned.
"""

from __future__ import annotations

import bisect
import copy
import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import DeviceError, DeviceLostError
from dovetail.device.cpu.memory import address
from dovetail.device.cuda.driver import (
    Event,
    Function,
    Graph,
    Launch,
    Node,
    Properties,
    Stream,
    TensorMap,
    out_of_memory,
)

Run = Callable[[bytes, str, tuple[int, int, int], Sequence[int | TensorMap]], None]
"""Runs a kernel: its binary, its entry, the grid, then pointers or tensor maps followed by int32 dims."""

_ALIGNMENT = 256
_GARBAGE = 0xCB  # fresh memory holds anything but zeros


class HostGraph:
    """What a capture recorded."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.launches: dict[int, Launch] = {}
        self.marks: dict[Event, Stream] = {}  # events recorded in the capture, and where
        self.loose: set[Stream] = set()  # streams that the capture has spread to and that nobody waits for


class HostDriver:
    """See `driver.Driver`. `log` counts the calls by name; a kernel that raises DeviceLostError ends the device's context."""

    hazardous = False

    def __init__(self, run: Run, ordinal: int = 0, capability: int = 90, memory: int = 1 << 40) -> None:
        self.properties = Properties(ordinal, "host memory", capability, 4, memory, 13000)
        self.lost = ""
        self.log: dict[str, int] = {}
        self.free_bytes = memory
        self._run = run
        self._loaded: dict[str, int] = {}
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._starts: list[int] = []
        self._lock = threading.RLock()  # a collection may free memory while this thread allocates
        self._local = threading.local()
        self._captures: dict[Stream, HostGraph] = {}
        self._origins: dict[int, Stream] = {}
        self._handles = 0
        self._times: dict[int, int] = {}

    def _note(self, name: str) -> None:
        assert getattr(self._local, "depth", 0) > 0, f"{name}: the device's context is not current"
        with self._lock:
            self.log[name] = self.log.get(name, 0) + 1

    def _queue(self, stream: Stream, work: Callable[[], None], *, captured: bool = True) -> None:
        graph = self._captures.get(stream)
        if graph is None:
            work()
            return
        assert captured, "a copy of host memory cannot be captured"
        graph.work.append(work)
        self._spread(graph, stream)

    def _spread(self, graph: HostGraph, stream: Stream) -> None:
        if stream != self._origins[id(graph)]:
            graph.loose.add(stream)

    def alive(self) -> bool:
        """See `Driver.alive`."""
        return not self.lost

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Driver.active`."""
        if self.lost:
            raise DeviceLostError(f"cuda:{self.properties.ordinal}: {self.lost}; the device's context is lost")
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            yield
        finally:
            self._local.depth -= 1

    # --- memory ---------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """See `Driver.allocate`."""
        self._note("allocate")
        with self._lock:
            if size > self.free_bytes:
                raise out_of_memory(self.properties.ordinal, size, self.free_bytes, self.properties.memory)
            raw = np.full(size + _ALIGNMENT, _GARBAGE, np.uint8)
            start = -address(raw) % _ALIGNMENT
            block = raw[start : start + size]
            self.free_bytes -= size
            self._blocks[address(block)] = block
            bisect.insort(self._starts, address(block))
            return address(block)

    def free(self, pointer: int) -> None:
        """See `Driver.free`."""
        self._note("free")
        with self._lock:
            block = self._blocks.pop(pointer)
            self._starts.remove(pointer)
            self.free_bytes += block.nbytes
            block[:] = 0xDD  # whoever reads on gets nonsense

    @property
    def allocations(self) -> int:
        """Allocations that are alive."""
        return len(self._blocks)

    def allocate_ordered(self, size: int, stream: Stream) -> int:
        """See `Driver.allocate_ordered`."""
        return self.allocate(max(size, 1))

    def free_ordered(self, pointer: int, stream: Stream) -> None:
        """See `Driver.free_ordered`."""
        self.free(pointer)

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        """See `Driver.host_memory`."""
        self._note("host_memory")
        return np.full(size, _GARBAGE, np.uint8)

    def view(self, pointer: int, size: int) -> NDArray[np.uint8]:
        """Device memory as an array.

        Raises:
            DeviceError: outside of all allocations.
        """
        with self._lock:
            index = bisect.bisect_right(self._starts, pointer) - 1
            block = self._blocks[self._starts[index]] if index >= 0 else None
            offset = 0 if block is None else pointer - self._starts[index]
        if block is None or offset + size > block.nbytes:
            raise DeviceError(f"cuda:{self.properties.ordinal}: got {size} bytes at {pointer:#x}, which no allocation holds")
        return block[offset : offset + size]

    def upload(self, pointer: int, source: NDArray[Any], stream: Stream) -> None:
        """See `Driver.upload`."""
        self._note("upload")

        def work() -> None:
            self.view(pointer, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

        self._queue(stream, work, captured=False)

    def download(self, target: NDArray[Any], pointer: int, stream: Stream) -> None:
        """See `Driver.download`."""
        self._note("download")

        def work() -> None:
            target.reshape(-1).view(np.uint8)[:] = self.view(pointer, target.nbytes)

        self._queue(stream, work, captured=False)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """See `Driver.copy`."""
        self._note("copy")

        def work() -> None:
            self.view(target, size)[:] = self.view(source, size).copy()

        self._queue(stream, work)

    def zero(self, pointer: int, size: int, stream: Stream) -> None:
        """See `Driver.zero`."""
        self._note("zero")

        def work() -> None:
            self.view(pointer, size)[:] = 0

        self._queue(stream, work)

    def owner(self, pointer: int) -> int | None:
        """See `Driver.owner`."""
        self._note("owner")
        try:
            self.view(pointer, 1)
        except DeviceError:
            return None
        return self.properties.ordinal

    # --- kernels --------------------------------------------------------------------------------

    def load(self, code: bytes, entry: str, shared: int) -> Function:
        """See `Driver.load`."""
        self._note("load")
        with self._lock:
            self._loaded[entry] = self._loaded.get(entry, 0) + 1
        return (code, entry)

    def unload(self, function: Function) -> None:
        """See `Driver.unload`."""
        self._note("unload")
        with self._lock:
            self._loaded[function[1]] -= 1
            if not self._loaded[function[1]]:
                del self._loaded[function[1]]

    @property
    def functions(self) -> int:
        """Functions that are loaded."""
        return sum(self._loaded.values())

    def launch(self, launch: Launch, stream: Stream) -> None:
        """See `Driver.launch`."""
        self._note("launch")
        graph = self._captures.get(stream)
        if graph is None:
            self._execute(launch, launch.arguments.values())
            return
        node = len(graph.work)
        self._record(graph, node, launch)
        graph.work.append(lambda: self._execute(graph.launches[node], graph.launches[node].arguments))
        self._spread(graph, stream)

    def _record(self, graph: HostGraph, node: int, launch: Launch) -> None:
        kept = copy.copy(launch)
        kept.arguments = launch.arguments.values()  # type: ignore[assignment]  # copied, as a capture does
        graph.launches[node] = kept

    def _execute(self, launch: Launch, values: Any) -> None:
        code, entry = launch.function
        assert entry in self._loaded, f"{entry}: it was given back"
        try:
            self._run(code, entry, launch.grid, values)
        except DeviceLostError as error:
            self.lost = str(error)
            raise

    def fence(self, stream: Stream) -> None:
        """See `Driver.fence`; nothing overlaps here."""
        self._note("fence")

    def encode(self, described: TensorMap) -> bytes:
        """See `Driver.encode`."""
        self._note("encode")
        strides = [s * described.element for s in described.strides[:-1]]
        if described.address % 16 or any(s % 16 for s in strides) or described.strides[-1] != 1:
            raise DeviceError(f"cuda:{self.properties.ordinal}: cuTensorMapEncodeTiled failed with CUDA_ERROR_INVALID_VALUE")
        return bytes(128)

    # --- streams and events ---------------------------------------------------------------------

    def _handle(self) -> int:
        with self._lock:
            self._handles += 1
            return 1000 + self._handles

    def create_stream(self) -> Stream:
        """See `Driver.create_stream`."""
        self._note("create_stream")
        return self._handle()

    def destroy_stream(self, stream: Stream) -> None:
        """See `Driver.destroy_stream`."""
        self._note("destroy_stream")

    def synchronize(self, stream: Stream) -> None:
        """See `Driver.synchronize`."""
        self._note("synchronize")
        assert stream not in self._captures, "a stream that is being captured cannot be waited for"

    def synchronize_device(self) -> None:
        """See `Driver.synchronize_device`."""
        self._note("synchronize_device")

    def create_event(self, timing: bool = False) -> Event:
        """See `Driver.create_event`."""
        self._note("create_event")
        return self._handle()

    def destroy_event(self, event: Event) -> None:
        """See `Driver.destroy_event`."""
        self._note("destroy_event")

    def record(self, event: Event, stream: Stream, *, external: bool = False) -> None:
        """See `Driver.record`."""
        self._note("record")
        graph = self._captures.get(stream)
        if graph is not None and not external:
            graph.marks[event] = stream
            return

        def work() -> None:
            self._times[event] = time.perf_counter_ns()

        self._queue(stream, work)

    def wait(self, stream: Stream, event: Event) -> None:
        """See `Driver.wait`."""
        self._note("wait")
        for graph in list(self._captures.values()):
            if event in graph.marks:
                self._captures[stream] = graph
                graph.loose.discard(graph.marks[event])

    def reached(self, event: Event) -> bool:
        """See `Driver.reached`."""
        self._note("reached")
        return True

    def synchronize_event(self, event: Event) -> None:
        """See `Driver.synchronize_event`."""
        self._note("synchronize_event")

    def elapsed_ns(self, start: Event, end: Event) -> float:
        """See `Driver.elapsed_ns`."""
        return float(self._times[end] - self._times[start])

    # --- graphs ---------------------------------------------------------------------------------

    def is_capturing(self, stream: Stream) -> bool:
        """See `Driver.is_capturing`."""
        self._note("is_capturing")
        return stream in self._captures

    def begin_capture(self, stream: Stream) -> None:
        """See `Driver.begin_capture`."""
        self._note("begin_capture")
        assert stream not in self._captures, "one capture at a time"
        graph = self._captures[stream] = HostGraph()
        self._origins[id(graph)] = stream

    def captured(self, stream: Stream) -> Node:
        """See `Driver.captured`."""
        return len(self._captures[stream].work) - 1

    def end_capture(self, stream: Stream) -> Graph:
        """See `Driver.end_capture`."""
        self._note("end_capture")
        graph = self._release(stream)
        assert not graph.loose, "all streams of a capture join the first one before its end"
        return graph

    def _release(self, stream: Stream) -> HostGraph:
        graph = self._captures[stream]
        for other, found in list(self._captures.items()):
            if found is graph:
                del self._captures[other]
        del self._origins[id(graph)]
        return graph

    def abandon_capture(self, stream: Stream) -> None:
        """See `Driver.abandon_capture`."""
        if stream in self._captures:
            self._release(stream)

    def update(self, graph: Graph, node: Node, launch: Launch) -> None:
        """See `Driver.update`."""
        self._note("update")
        self._record(graph, node, launch)

    def launch_graph(self, graph: Graph, stream: Stream) -> None:
        """See `Driver.launch_graph`."""
        self._note("launch_graph")
        for work in graph.work:
            work()

    def destroy_graph(self, graph: Graph) -> None:
        """See `Driver.destroy_graph`."""
        self._note("destroy_graph")


def memory_at(pointer: int, size: int) -> NDArray[np.uint8]:
    """Host memory at an address, for kernels written in Python."""
    if not size:
        return np.empty(0, np.uint8)
    raw: Any = (ctypes.c_uint8 * size).from_address(pointer)
    return np.frombuffer(raw, np.uint8)
