"""What the runtime asks of a GPU, as a protocol, and the records that it speaks in.

Two drivers exist: `driver_cuda.CudaDriver` over NVIDIA's driver API, and `driver_host.HostDriver`, which runs kernels that are
Python functions on host memory. Streams, events, functions and graphs are handles that only their driver understands;
device addresses are ints. Every method but `active` wants to be called inside `with driver.active()`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import DeviceError
from dovetail.device.cpu.memory import address, aligned_bytes

ALIGNMENT = 16
"""What kernels may take for granted of every address: wide loads and the copy engine need it."""

MAP_BYTES = 128
"""Size of an encoded tensor map (CUtensorMap)."""

MAX_ELEMENTS = (1 << 31) - (1 << 20)
"""Elements that an operand of a kernel may reach: offsets are int32, and the masks of a last block count beyond the end."""

Function = Any
Stream = int
Event = Any
Graph = Any
Node = Any


@dataclass(frozen=True)
class Properties:
    """A device: ordinal, name, compute capability (10 * major + minor), multiprocessors, bytes of memory, CUDA version of the driver."""

    ordinal: int
    name: str
    capability: int
    multiprocessors: int
    memory: int
    driver_version: int


@dataclass(frozen=True)
class TensorMap:
    """A tensor behind a descriptor: shape and strides in elements (the last stride is 1), and how the copy engine cuts it.

    `kind` is the element type as Triton numbers it, `element` its bytes, `box` the tile of one hardware copy, `swizzle` as
    CUtensorMapSwizzle numbers it.
    """

    address: int
    kind: int
    element: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int


class Arguments:
    """Values of a kernel's parameters, packed once so that a launch hands over one address.

    A parameter is a pointer, an int32, or a tensor descriptor: the encoded map by value, then its shape (int32 each) and its
    strides (int64 each). Triton appends two pointers, of global scratch and of profiling memory, to every kernel.
    """

    __slots__ = ("_maps", "_memory", "_slots", "_table", "_words", "maps", "pointers")

    def __init__(self, ranks: Sequence[int], integers: Sequence[int], scratch: int = 0) -> None:
        """`ranks` has one entry per parameter: 0 for a pointer, or the rank of a descriptor; `integers` follow them."""
        kinds: list[str] = []
        self.pointers: list[int] = []  # slot of each parameter
        for rank in ranks:
            self.pointers.append(len(kinds))
            kinds += ["map", *["shape"] * rank, *["stride"] * rank] if rank else ["pointer"]
        kinds += [*["integer"] * len(integers), "scratch", "profile"]
        sizes = [MAP_BYTES if k == "map" else 8 for k in kinds]
        starts = np.zeros(len(kinds), np.uint64)
        at = 0
        for i, size in enumerate(sizes):
            at = -(-at // size) * size
            starts[i] = at
            at += size
        # Maps are aligned to their size, which is more than the hardware asks.
        memory = aligned_bytes(at + MAP_BYTES)
        memory[:] = 0
        skip = -address(memory) % MAP_BYTES
        self._memory = memory[skip : skip + at]
        self._words = self._memory[: at // 8 * 8].view(np.int64).data
        self._slots = tuple(int(s) // 8 for s in starts)
        self._table = starts + np.uint64(address(self._memory))
        self.maps: dict[int, TensorMap] = {}
        self._maps = [kinds[slot] == "map" for slot in self.pointers]
        first = len(kinds) - 2 - len(integers)
        for i, value in enumerate(integers):
            self._words[self._slots[first + i]] = value
        self._words[self._slots[-2]] = scratch

    @property
    def table(self) -> int:
        """Address of the array of parameter addresses, as `cuLaunchKernelEx` takes it."""
        return address(self._table)

    def set_pointer(self, parameter: int, value: int) -> None:
        """The address that a pointer parameter has."""
        self._words[self._slots[self.pointers[parameter]]] = value

    def set_map(self, parameter: int, described: TensorMap, encoded: bytes) -> None:
        """The tensor that a descriptor parameter describes, and the same encoded by the driver."""
        slot = self.pointers[parameter]
        start = self._slots[slot] * 8
        self._memory[start : start + MAP_BYTES] = np.frombuffer(encoded, np.uint8)
        rank = len(described.shape)
        for i, value in enumerate((*described.shape, *described.strides)):
            self._words[self._slots[slot + 1 + i]] = value
        assert len(described.strides) == rank
        self.maps[parameter] = described

    def values(self) -> list[int | TensorMap]:
        """What the kernel's source sees: a pointer or a tensor map per parameter, then the integers."""
        found: list[int | TensorMap] = []
        for i, slot in enumerate(self.pointers):
            found.append(self.maps[i] if self._maps[i] else self._words[self._slots[slot]])
        last = self.pointers[-1] + 1 if self.pointers else 0
        if self.pointers and self._maps[-1]:
            last += 2 * len(self.maps[len(self.pointers) - 1].shape)
        return [*found, *(self._words[s] for s in self._slots[last:-2])]


@dataclass(slots=True)
class Launch:
    """One launch: `grid` counts blocks, `block` is threads per block, `shared` bytes of dynamic shared memory.

    `pdl`: it may start before the kernel ahead of it has ended; `cluster` counts blocks of a cluster along x.
    """

    function: Function
    grid: tuple[int, int, int]
    block: int
    shared: int
    arguments: Arguments
    pdl: bool = False
    cluster: int = 1


class Driver(Protocol):
    """One device. Methods raise DeviceError: the call, what the driver says, a hint; or DeviceLostError, from then on in every use."""

    properties: Properties
    hazardous: bool
    """Whether a wrong kernel can hang or end the context for the whole process, so that untried ones belong in one of their own."""
    lost: str
    """Why this process cannot use the device any more; "" while it can. Memory, streams and graphs went with the context."""

    def alive(self) -> bool:
        """Whether the context still is, so that what was made in it can be given back."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Makes the device's context the calling thread's, and the one before it again at the end.

        Inside, the thread may allocate, load and wait while other streams are being captured.

        Raises:
            DeviceLostError: there is none any more.
        """
        ...

    # memory
    def allocate(self, size: int) -> int:
        """Device memory, aligned to 256 bytes."""
        ...

    def free(self, pointer: int) -> None:
        """Give memory of `allocate` back; waits for work that is under way."""
        ...

    def allocate_ordered(self, size: int, stream: Stream) -> int:
        """Device memory for work queued in `stream` from here on."""
        ...

    def free_ordered(self, pointer: int, stream: Stream) -> None:
        """Give memory of `allocate_ordered` back once the work queued in `stream` so far is done."""
        ...

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory, freed with the array (and its views)."""
        ...

    def upload(self, pointer: int, source: NDArray[Any], stream: Stream) -> None:
        """Queue a copy of a dense array to the device; pageable memory may change after the call, page-locked memory may not."""
        ...

    def download(self, target: NDArray[Any], pointer: int, stream: Stream) -> None:
        """Queue a copy into a dense array; complete at the next `synchronize`."""
        ...

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy within the device."""
        ...

    def zero(self, pointer: int, size: int, stream: Stream) -> None:
        """Queue zeros."""
        ...

    def owner(self, pointer: int) -> int | None:
        """The ordinal of the device that has this address; None for host memory."""
        ...

    # kernels
    def load(self, code: bytes, entry: str, shared: int) -> Function:
        """A function of a binary, allowed `shared` bytes of dynamic shared memory."""
        ...

    def unload(self, function: Function) -> None:
        """Give a function of `load` back that no work under way and no graph uses."""
        ...

    def launch(self, launch: Launch, stream: Stream) -> None:
        """Queue a kernel; its arguments are copied."""
        ...

    def fence(self, stream: Stream) -> None:
        """Let nothing that is queued from here on start before all that is queued so far has ended, not even what asks to start early."""
        ...

    def encode(self, described: TensorMap) -> bytes:
        """A tensor map as the hardware reads it."""
        ...

    # streams and events
    def create_stream(self) -> Stream:
        """A stream that does not wait for the legacy default stream."""
        ...

    def destroy_stream(self, stream: Stream) -> None:
        """Release a stream when its work is done."""
        ...

    def synchronize(self, stream: Stream) -> None:
        """Wait for all work queued in a stream."""
        ...

    def synchronize_device(self) -> None:
        """Wait for all work queued in any stream of the device."""
        ...

    def create_event(self, timing: bool = False) -> Event:
        """An event."""
        ...

    def destroy_event(self, event: Event) -> None:
        """Release an event."""
        ...

    def record(self, event: Event, stream: Stream, *, external: bool = False) -> None:
        """Mark the work queued so far; `external` in a capture makes it a node of the graph."""
        ...

    def wait(self, stream: Stream, event: Event) -> None:
        """Let later work of a stream wait for an event."""
        ...

    def reached(self, event: Event) -> bool:
        """Whether the work that an event marks is done."""
        ...

    def synchronize_event(self, event: Event) -> None:
        """Wait for an event."""
        ...

    def elapsed_ns(self, start: Event, end: Event) -> float:
        """Nanoseconds between two events with timing."""
        ...

    # graphs
    def is_capturing(self, stream: Stream) -> bool:
        """Whether somebody captures this stream."""
        ...

    def begin_capture(self, stream: Stream) -> None:
        """Record what is queued in a stream instead of running it."""
        ...

    def captured(self, stream: Stream) -> Node:
        """The node of the launch that was captured last."""
        ...

    def end_capture(self, stream: Stream) -> Graph:
        """What was recorded, ready to launch."""
        ...

    def abandon_capture(self, stream: Stream) -> None:
        """End a capture that failed; nothing is kept."""
        ...

    def update(self, graph: Graph, node: Node, launch: Launch) -> None:
        """Give a kernel node other arguments, for later launches of the graph."""
        ...

    def launch_graph(self, graph: Graph, stream: Stream) -> None:
        """Queue all that a graph recorded."""
        ...

    def destroy_graph(self, graph: Graph) -> None:
        """Release a graph; a launch under way finishes first."""
        ...


_drivers: dict[int, Driver] = {}
_elsewhere: dict[int, Driver] = {}  # in contexts that others made, by the contexts' numbers, which are not used again
_lock = threading.Lock()


def driver(ordinal: int = 0) -> Driver:
    """The driver of a device of this machine; made once, touches no other device.

    It works in the device's primary context, as torch and CUDA's runtime do. Where another context of the device is current in this
    thread, as pycuda makes them, it works in that one: a stream, and most memory, is of use in its own context alone.

    Raises:
        DeviceError: no driver, no such device, or the packages for it are missing.
    """
    from dovetail.device.cuda import driver_cuda

    with _lock:
        here = driver_cuda.current()
        if here is not None and here.ordinal == ordinal and here.context is not None:
            if here.number not in _elsewhere:
                _elsewhere[here.number] = driver_cuda.CudaDriver(ordinal, here)
            return _elsewhere[here.number]
        found = _drivers.get(ordinal)
        if found is None:
            found = _drivers[ordinal] = driver_cuda.CudaDriver(ordinal)
        return found


def current_ordinal() -> int | None:
    """The number of the device whose context is current in this thread; None where there is no context."""
    from dovetail.device.cuda import driver_cuda

    here = driver_cuda.current()
    return None if here is None else here.ordinal


def out_of_memory(ordinal: int, size: int, free: int, total: int) -> DeviceError:
    """The error of an allocation that does not fit."""
    return DeviceError(
        f"cuda:{ordinal}: cannot allocate {size / 2**20:.1f} MiB, {free / 2**20:.1f} of {total / 2**20:.1f} MiB are free; use smaller "
        "shapes, fewer contexts, or free memory of other processes"
    )


def require_capability(where: str, target: str, found: Properties) -> None:
    """Check that a device runs code of a target such as "cuda:sm_90".

    Machine code runs on its own major capability, from its minor one up; code for 9.0 uses features of that part alone.

    Raises:
        DeviceError: it does not.
    """
    isa = target.rpartition(":")[2]
    need = int(isa.removeprefix("sm_")) if isa.removeprefix("sm_").isdigit() else 0
    fits = need == found.capability if need >= 90 else need // 10 == found.capability // 10 and need <= found.capability
    if not fits:
        raise DeviceError(
            f"{where}: got a device of compute capability {found.capability / 10} ({found.name}, cuda:{found.ordinal}), expected one for "
            f"{isa}; build for this device (--device cuda:{found.ordinal}) or choose another that is here"
        )
