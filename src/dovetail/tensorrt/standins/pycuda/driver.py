"""Stands for `pycuda.driver` where there is no GPU: devices, contexts, memory, copies, streams and events, on host memory.

As with pycuda itself, memory needs a current context (`import pycuda.autoinit`), and errors are exceptions. Work is done
before a call returns.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from dovetail.tensorrt.standins import contexts as _contexts
from dovetail.tensorrt.standins import device as _device
from dovetail.tensorrt.standins import enums as _enums
from dovetail.tensorrt.standins.handles import address as _address


class Error(Exception):
    """A call of the driver failed."""


class LogicError(Error):
    """A call was made as it may not be."""


class MemoryError(Error):
    """There is no memory left."""


class LaunchError(Error):
    """A kernel could not be started."""


class RuntimeError(Error):
    """The driver failed."""


class CompileError(Error):
    """A kernel could not be compiled."""


_NAMES = {number: name for name, number in _enums.RUNTIME_ERRORS.items()}
_ATTRIBUTES = {name.removeprefix("CU_DEVICE_ATTRIBUTE_"): number for name, number in _enums.DRIVER_ATTRIBUTES.items()}

device_attribute = _enums.enumeration("device_attribute", _ATTRIBUTES, __name__)
ctx_flags = _enums.enumeration(
    "ctx_flags", {"SCHED_AUTO": 0, "SCHED_SPIN": 1, "SCHED_YIELD": 2, "SCHED_BLOCKING_SYNC": 4, "MAP_HOST": 8}, __name__
)
event_flags = _enums.enumeration("event_flags", {"DEFAULT": 0, "BLOCKING_SYNC": 1, "DISABLE_TIMING": 2, "INTERPROCESS": 4}, __name__)
host_alloc_flags = _enums.enumeration("host_alloc_flags", {"PORTABLE": 1, "DEVICEMAP": 2, "WRITECOMBINED": 4}, __name__)
mem_attach_flags = _enums.enumeration("mem_attach_flags", {"GLOBAL": 1, "HOST": 2, "SINGLE": 4}, __name__)
mem_host_register_flags = _enums.enumeration("mem_host_register_flags", {"PORTABLE": 1, "DEVICEMAP": 2}, __name__)


def _check(name: str, code: int) -> None:
    if code:
        kind = MemoryError if code == 2 else LogicError
        raise kind(f"{name} failed: {_enums.error_text(_NAMES[code])}")


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the stand-in's library; needs a current context.

    Raises:
        LogicError: no context, or the call was refused.
        MemoryError: no memory left.
    """
    if not _contexts.initialized.is_set():
        raise LogicError(f"{name} failed: not initialized")
    if _contexts.current() is None:
        raise LogicError(f"{name} failed: invalid device context - no currently active context?")
    _check(name, _device.call(name, *arguments))


def _made(name: str, *arguments: Any) -> int:
    result = ctypes.c_void_p()
    _call(name, ctypes.byref(result), *arguments)
    return result.value or 0


def _release(name: str, value: int) -> None:
    """Give back what no object refers to any more; whatever is gone already stays gone."""
    if value:
        getattr(_device.library(), name)(value)


# ---- devices and contexts


def init(flags: int = 0) -> None:
    """Begin."""
    _contexts.initialized.set()


def get_version() -> tuple[int, int, int]:
    """The version of CUDA that is stood in for."""
    return (12, 8, 0)


def get_driver_version() -> int:
    """The version of the driver that is stood in for."""
    return 12080


class Device:
    """The device; there is number 0 alone.

    Raises:
        LogicError: before `init`, or for another number.
    """

    def __init__(self, number: int = 0) -> None:
        if not _contexts.initialized.is_set():
            raise LogicError("cuDeviceGet failed: not initialized")
        if number:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    @staticmethod
    def count() -> int:
        """The number of devices: 1."""
        return 1

    def name(self) -> str:
        """The device's name."""
        return _device.NAME

    def pci_bus_id(self) -> str:
        """An address on the bus, which the device has none of."""
        return "0000:00:00.0"

    def compute_capability(self) -> tuple[int, int]:
        """(0, 0)."""
        return (0, 0)

    def total_memory(self) -> int:
        """Bytes of memory."""
        return _device.total_memory()

    def get_attribute(self, attr: Any) -> int:
        """An attribute; 0 for what a CPU has nothing of."""
        numbers = {_enums.RUNTIME_ATTRIBUTES[name]: value for name, value in _device.attributes().items()}
        return numbers.get(int(attr), 0)

    def get_attributes(self) -> dict[Any, int]:
        """All attributes."""
        return {attr: self.get_attribute(attr) for attr in device_attribute}

    def make_context(self, flags: int = 0, *others: Any) -> Context:
        """A context, current to this thread."""
        record = _contexts.make()
        _contexts.push(record)
        return Context(record)

    def retain_primary_context(self) -> Context:
        """The primary context, which is not made current."""
        return Context(_contexts.primary())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return hash(Device)


class Context:
    """A context; the static methods are about the one that is current to this thread."""

    def __init__(self, record: _contexts.ContextRecord) -> None:
        self._record = record

    @property
    def alive(self) -> bool:
        """Whether the context has not been detached."""
        return self._record.alive

    @property
    def handle(self) -> int:
        """The context's number."""
        return self._record.number

    def push(self) -> None:
        """Make the context current to this thread.

        Raises:
            LogicError: it has been detached.
        """
        if not self._record.alive:
            raise LogicError("cuCtxPushCurrent failed: invalid device context")
        _contexts.push(self._record)

    def detach(self) -> None:
        """End the context."""
        _contexts.end(self._record)

    @staticmethod
    def pop() -> None:
        """Take the current context off this thread.

        Raises:
            LogicError: there is none.
        """
        if _contexts.pop() is None:
            raise LogicError("cuCtxPopCurrent failed: invalid device context - no currently active context?")

    @staticmethod
    def get_current() -> Context | None:
        """This thread's current context."""
        record = _contexts.current()
        return None if record is None else Context(record)

    @staticmethod
    def get_device() -> Device:
        """The device of the current context.

        Raises:
            LogicError: there is no current context.
        """
        if _contexts.current() is None:
            raise LogicError("cuCtxGetDevice failed: invalid device context")
        return Device(0)

    @staticmethod
    def synchronize() -> None:
        """Wait for the current context, in which all is done."""
        _call("cudaDeviceSynchronize")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and other._record is self._record

    def __hash__(self) -> int:
        return hash(self._record.number)


# ---- memory


class PointerHolderBase:
    """What has an address of device memory: subclasses give it by `get_pointer`."""

    def get_pointer(self) -> int:
        """The address."""
        raise NotImplementedError

    def __int__(self) -> int:
        return self.get_pointer()

    def __index__(self) -> int:
        return self.get_pointer()


class DeviceAllocation(PointerHolderBase):
    """Device memory, given back with its last reference; `int(allocation)` is its address."""

    def __init__(self, pointer: int, size: int, release: str = "cudaFree") -> None:
        self._pointer = pointer
        self._size = size
        self._release = release

    def get_pointer(self) -> int:
        """The address."""
        return self._pointer

    def free(self) -> None:
        """Give the memory back now.

        Raises:
            LogicError: it has been given back.
        """
        if not self._pointer:
            raise LogicError("cuMemFree failed: invalid argument")
        pointer, self._pointer = self._pointer, 0
        _check(self._release, getattr(_device.library(), self._release)(pointer))

    def as_buffer(self, size: int, offset: int = 0) -> memoryview:
        """The memory itself, which is the host's.

        Raises:
            LogicError: beyond its end.
        """
        if not 0 <= offset <= offset + size <= self._size:
            raise LogicError("as_buffer failed: invalid argument")
        return memoryview((ctypes.c_byte * size).from_address(self._pointer + offset)).cast("B")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceAllocation) and other._pointer == self._pointer

    def __hash__(self) -> int:
        return hash(self._pointer)

    def __del__(self) -> None:
        pointer, self._pointer = self._pointer, 0
        _release(self._release, pointer)


class HostAllocation(DeviceAllocation):
    """Page-locked host memory: the `base` of the arrays over it."""


def mem_alloc(bytes: int) -> DeviceAllocation:
    """Device memory.

    Raises:
        LogicError: no bytes, or no context.
        MemoryError: none left.
    """
    if bytes <= 0:
        raise LogicError("cuMemAlloc failed: invalid argument")
    return DeviceAllocation(_made("cudaMalloc", int(bytes)), int(bytes))


def mem_alloc_pitch(width: int, height: int, access_size: int) -> tuple[DeviceAllocation, int]:
    """Device memory of `height` rows and the distance of their beginnings, in bytes."""
    pitch = -(-width // 512) * 512
    return mem_alloc(pitch * height), pitch


def mem_get_info() -> tuple[int, int]:
    """Bytes of memory that are free, and all of them."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def extents_of(shape: Any) -> tuple[int, ...]:
    """A shape given as a number or as several."""
    return (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(extent) for extent in shape)


def _array(shape: Any, dtype: Any, order: str, name: str, *flags: int) -> np.ndarray[Any, Any]:
    kind = np.dtype(dtype)
    extents = extents_of(shape)
    size = int(np.prod(extents, dtype=np.int64)) * kind.itemsize
    owner = HostAllocation(_made(name, max(size, 1), *flags), max(size, 1), "cudaFreeHost" if name == "cudaHostAlloc" else "cudaFree")
    memory = (ctypes.c_byte * size).from_address(int(owner))
    memory._owner = owner  # arrays keep the buffer, and the buffer keeps the allocation
    result: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8).view(kind)
    return result.reshape(extents, order="F" if order == "F" else "C")


def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray[Any, Any]:
    """An array in page-locked host memory."""
    return _array(shape, dtype, order, "cudaHostAlloc", int(mem_flags))


def pagelocked_zeros(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray[Any, Any]:
    """An array of zeros in page-locked host memory."""
    result = pagelocked_empty(shape, dtype, order, mem_flags)
    result.fill(0)
    return result


def pagelocked_empty_like(array: np.ndarray[Any, Any], mem_flags: int = 0) -> np.ndarray[Any, Any]:
    """An array of another's shape and type in page-locked host memory."""
    return pagelocked_empty(array.shape, array.dtype, "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C", mem_flags)


def pagelocked_zeros_like(array: np.ndarray[Any, Any], mem_flags: int = 0) -> np.ndarray[Any, Any]:
    """An array of zeros, of another's shape and type, in page-locked host memory."""
    result = pagelocked_empty_like(array, mem_flags)
    result.fill(0)
    return result


def managed_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 1) -> np.ndarray[Any, Any]:
    """An array in memory for both sides."""
    return _array(shape, dtype, order, "cudaMallocManaged", int(mem_flags) or 1)


def managed_zeros(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 1) -> np.ndarray[Any, Any]:
    """An array of zeros in memory for both sides."""
    result = managed_empty(shape, dtype, order, mem_flags)
    result.fill(0)
    return result


def register_host_memory(ary: np.ndarray[Any, Any], flags: int = 0) -> np.ndarray[Any, Any]:
    """An array whose memory is treated as page-locked: all host memory is."""
    return ary


# ---- copies


def _host(buffer: Any, writable: bool) -> tuple[int, int]:
    """Address and bytes of a contiguous host buffer."""
    if isinstance(buffer, np.ndarray):
        if not (buffer.flags.c_contiguous or buffer.flags.f_contiguous):
            raise ValueError("ndarray is not contiguous")
        if writable and not buffer.flags.writeable:
            raise ValueError("buffer source array is read-only")
        return int(buffer.ctypes.data), buffer.nbytes
    if isinstance(buffer, np.generic):
        raise TypeError(f"got a NumPy scalar ({type(buffer).__name__}), expected an array or a buffer")
    with memoryview(buffer) as view:
        return _address(view, writable), view.nbytes


def _stream(stream: Any) -> int:
    return 0 if stream is None else stream.handle


def memcpy_htod(dest: Any, src: Any) -> None:
    """Copy a host buffer, all of it, to device memory."""
    memcpy_htod_async(dest, src, None)


def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
    """Copy a host buffer, all of it, to device memory."""
    at, size = _host(src, writable=False)
    _call("cudaMemcpyAsync", int(dest), at, size, 1, _stream(stream))


def memcpy_dtoh(dest: Any, src: Any) -> None:
    """Fill a host buffer from device memory."""
    memcpy_dtoh_async(dest, src, None)


def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
    """Fill a host buffer from device memory."""
    at, size = _host(dest, writable=True)
    _call("cudaMemcpyAsync", at, int(src), size, 2, _stream(stream))


def memcpy_dtod(dest: Any, src: Any, size: int) -> None:
    """Copy on the device."""
    memcpy_dtod_async(dest, src, size, None)


def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Any = None) -> None:
    """Copy on the device."""
    _call("cudaMemcpyAsync", int(dest), int(src), size, 3, _stream(stream))


def memset_d8(dest: Any, data: int, count: int) -> None:
    """Set `count` bytes."""
    memset_d8_async(dest, data, count, None)


def memset_d8_async(dest: Any, data: int, count: int, stream: Any = None) -> None:
    """Set `count` bytes."""
    _call("cudaMemsetAsync", int(dest), int(data), count, _stream(stream))


def memset_d16(dest: Any, data: int, count: int) -> None:
    """Set `count` words of 16 bits."""
    memcpy_htod(dest, np.full(count, data, np.uint16))


def memset_d32(dest: Any, data: int, count: int) -> None:
    """Set `count` words of 32 bits."""
    memcpy_htod(dest, np.full(count, data, np.uint32))


def to_device(bf_obj: Any) -> DeviceAllocation:
    """Device memory with what a host buffer holds."""
    result = mem_alloc(_host(bf_obj, writable=False)[1])
    memcpy_htod(result, bf_obj)
    return result


def from_device(devptr: Any, shape: Any, dtype: Any, order: str = "C") -> np.ndarray[Any, Any]:
    """An array of what device memory holds."""
    result: np.ndarray[Any, Any] = np.empty(shape, dtype, "F" if order == "F" else "C")
    memcpy_dtoh(result, devptr)
    return result


def from_device_like(devptr: Any, other_ary: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array, of another's shape and type, of what device memory holds."""
    result = np.empty_like(other_ary)
    memcpy_dtoh(result, devptr)
    return result


# ---- streams and events


class Stream:
    """A stream; `handle` is its address."""

    def __init__(self, flags: int = 0) -> None:
        self.handle = _made("cudaStreamCreateWithFlags", int(flags))

    def synchronize(self) -> None:
        """Wait for the stream, in which all is done."""
        _call("cudaStreamSynchronize", self.handle)

    def is_done(self) -> bool:
        """Whether all is done, as it always is."""
        _call("cudaStreamQuery", self.handle)
        return True

    def wait_for_event(self, evt: Event) -> None:
        """Make the stream wait for an event, which is past."""
        _call("cudaStreamWaitEvent", self.handle, evt.handle, 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.handle == self.handle

    def __hash__(self) -> int:
        return hash(self.handle)

    def __del__(self) -> None:
        _release("cudaStreamDestroy", self.__dict__.pop("handle", 0))


class Event:
    """An event, which keeps the time at which it was recorded."""

    def __init__(self, flags: int = 0) -> None:
        self.handle = _made("cudaEventCreateWithFlags", int(flags))

    def record(self, stream: Stream | None = None) -> Event:
        """Note the time."""
        _call("cudaEventRecord", self.handle, _stream(stream))
        return self

    def synchronize(self) -> Event:
        """Wait for the event, which is past."""
        _call("cudaEventSynchronize", self.handle)
        return self

    def query(self) -> bool:
        """Whether the event is past, as it always is."""
        _call("cudaEventQuery", self.handle)
        return True

    def time_since(self, event: Event) -> float:
        """Milliseconds since another event."""
        value = ctypes.c_float()
        _call("cudaEventElapsedTime", ctypes.byref(value), event.handle, self.handle)
        return value.value

    def time_till(self, event: Event) -> float:
        """Milliseconds till another event."""
        return event.time_since(self)

    def __del__(self) -> None:
        _release("cudaEventDestroy", self.__dict__.pop("handle", 0))


__dovetail_standin__ = True
