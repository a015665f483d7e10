"""Stands for `cuda.bindings.runtime` where there is no GPU: the functions that clients of TensorRT call, on host memory.

Every function returns a tuple, the error first. What is done is done at once, in order; streams and events exist, and are
checked, but nothing waits. A stream that is captured keeps what is asked of it for the launches of its graph (`graphs.py`).
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from dovetail.tensorrt.standins import device as _device
from dovetail.tensorrt.standins import enums as _enums
from dovetail.tensorrt.standins import graphs as _graphs
from dovetail.tensorrt.standins.handles import Handle, StreamHandle, address


def _enum(name: str, members: dict[str, int]) -> Any:
    return _enums.enumeration(name, members, __name__)


def _numbered(name: str, prefix: str, *members: str) -> Any:
    return _enum(name, {prefix + member: number for number, member in enumerate(members)})


cudaError_t = _enum("cudaError_t", _enums.RUNTIME_ERRORS)
cudaDeviceAttr = _enum("cudaDeviceAttr", _enums.RUNTIME_ATTRIBUTES)
cudaMemPoolAttr = _enum("cudaMemPoolAttr", _enums.POOL_ATTRIBUTES)
cudaMemcpyKind = _numbered(
    "cudaMemcpyKind", "cudaMemcpy", "HostToHost", "HostToDevice", "DeviceToHost", "DeviceToDevice", "Default"
)
cudaMemoryType = _numbered("cudaMemoryType", "cudaMemoryType", "Unregistered", "Host", "Device", "Managed")
cudaStreamCaptureMode = _numbered("cudaStreamCaptureMode", "cudaStreamCaptureMode", "Global", "ThreadLocal", "Relaxed")
cudaStreamCaptureStatus = _numbered("cudaStreamCaptureStatus", "cudaStreamCaptureStatus", "None", "Active", "Invalidated")
cudaMemAllocationType = _numbered("cudaMemAllocationType", "cudaMemAllocationType", "Invalid", "Pinned", "Managed")
cudaMemLocationType = _numbered("cudaMemLocationType", "cudaMemLocationType", "Invalid", "Device", "Host", "HostNuma")
cudaMemAllocationHandleType = _enum(
    "cudaMemAllocationHandleType",
    {"cudaMemHandleTypeNone": 0, "cudaMemHandleTypePosixFileDescriptor": 1, "cudaMemHandleTypeFabric": 8},
)

cudaStreamDefault, cudaStreamNonBlocking = 0, 1
cudaStreamLegacy, cudaStreamPerThread = 1, 2
cudaEventDefault, cudaEventBlockingSync, cudaEventDisableTiming, cudaEventInterprocess = 0, 1, 2, 4
cudaHostAllocDefault, cudaHostAllocPortable, cudaHostAllocMapped, cudaHostAllocWriteCombined = 0, 1, 2, 4
cudaHostRegisterDefault, cudaHostRegisterPortable, cudaHostRegisterMapped, cudaHostRegisterReadOnly = 0, 1, 2, 8
cudaMemAttachGlobal, cudaMemAttachHost, cudaMemAttachSingle = 1, 2, 4
CUDART_VERSION = 12080


class cudaStream_t(StreamHandle):
    """A stream."""


class cudaEvent_t(Handle):
    """An event."""


class cudaMemPool_t(Handle):
    """A memory pool."""


class cudaGraph_t(Handle):
    """A graph."""


class cudaGraphExec_t(Handle):
    """A graph that can be launched."""


class cudaMemPoolProps:
    """What a memory pool is made for; kept, and of no effect."""

    def __init__(self, _ptr: int = 0) -> None:
        self.allocType = cudaMemAllocationType.cudaMemAllocationTypeInvalid
        self.handleTypes = cudaMemAllocationHandleType.cudaMemHandleTypeNone
        self.location = SimpleNamespace(type=cudaMemLocationType.cudaMemLocationTypeInvalid, id=0)
        self.maxSize = 0
        self.usage = 0


class cudaPointerAttributes:
    """Where a pointer points: `type`, `device`, `devicePointer`, `hostPointer`."""

    def __init__(self, kind: int = 0, at: int = 0) -> None:
        self.type = cudaMemoryType(kind)
        self.device = 0 if kind else -2
        self.devicePointer = at if kind else 0
        self.hostPointer = at if kind in (0, 1, 3) else 0


class cudaDeviceProp:
    """The properties of the stand-in's device."""

    def __init__(self) -> None:
        values = _device.attributes()

        def value(name: str) -> int:
            return values[f"cudaDevAttr{name}"]

        self.name = _device.NAME.encode()
        self.totalGlobalMem = _device.total_memory()
        self.major, self.minor = value("ComputeCapabilityMajor"), value("ComputeCapabilityMinor")
        self.multiProcessorCount = value("MultiProcessorCount")
        self.maxThreadsPerBlock = value("MaxThreadsPerBlock")
        self.maxThreadsDim = [value(f"MaxBlockDim{axis}") for axis in "XYZ"]
        self.maxGridSize = [value(f"MaxGridDim{axis}") for axis in "XYZ"]
        self.warpSize = value("WarpSize")
        self.integrated = value("Integrated")
        self.canMapHostMemory = value("CanMapHostMemory")
        self.unifiedAddressing = value("UnifiedAddressing")
        self.managedMemory = value("ManagedMemory")
        self.concurrentKernels = value("ConcurrentKernels")
        self.memoryPoolsSupported = value("MemoryPoolsSupported")
        self.textureAlignment = value("TextureAlignment")
        self.sharedMemPerBlock = self.sharedMemPerMultiprocessor = self.regsPerBlock = 0
        self.l2CacheSize = self.memoryBusWidth = self.asyncEngineCount = self.totalConstMem = 0
        self.maxThreadsPerMultiProcessor = self.computePreemptionSupported = self.ECCEnabled = 0
        self.pciBusID = self.pciDeviceID = self.pciDomainID = 0
        self.uuid = SimpleNamespace(bytes=bytes(16))


def _call(name: str, *arguments: Any) -> Any:
    return cudaError_t(_device.call(name, *arguments))


def _submit(name: str, stream: Any, *arguments: Any) -> tuple[Any]:
    """Call a function whose last parameter is a stream, now or at the launches of the graph that the stream is captured into."""
    at = address(stream)
    if _graphs.record(at, lambda: int(_call(name, *arguments, at))):
        return (cudaError_t.cudaSuccess,)
    return (_call(name, *arguments, at),)


def _wait(name: str, stream: Any) -> tuple[Any]:
    """Call a function that waits for a stream, which cannot be done while it is captured."""
    at = address(stream)
    if _graphs.break_capture(at):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    return (_call(name, at),)


def _out(kind: Any, name: str, *arguments: Any) -> tuple[Any, Any]:
    """Call a function whose first parameter takes its result; None in place of the result of a call that failed."""
    result = kind()
    code = _call(name, ctypes.byref(result), *arguments)
    return code, None if code else result.value


def _handle(kind: Any, name: str, *arguments: Any) -> tuple[Any, Any]:
    code, value = _out(ctypes.c_void_p, name, *arguments)
    return code, None if code else kind(value)


def _pointer(name: str, *arguments: Any) -> tuple[Any, Any]:
    code, value = _out(ctypes.c_void_p, name, *arguments)
    return code, None if code else value or 0


def _kind(kind: Any) -> int:
    if not isinstance(kind, cudaMemcpyKind):
        raise TypeError(f"Argument 'kind' has incorrect type (expected cudaMemcpyKind, got {type(kind).__name__})")
    return int(kind)


# ---- memory


def cudaMalloc(size: int) -> tuple[Any, Any]:
    """Device memory; its address."""
    return _pointer("cudaMalloc", size)


def cudaMallocManaged(size: int, flags: int = cudaMemAttachGlobal) -> tuple[Any, Any]:
    """Memory for both sides; its address."""
    return _pointer("cudaMallocManaged", size, flags)


def cudaMallocHost(size: int) -> tuple[Any, Any]:
    """Page-locked host memory; its address."""
    return _pointer("cudaMallocHost", size)


def cudaHostAlloc(size: int, flags: int) -> tuple[Any, Any]:
    """Page-locked host memory; its address."""
    return _pointer("cudaHostAlloc", size, flags)


def cudaMallocAsync(size: int, hStream: Any) -> tuple[Any, Any]:
    """Device memory in the order of a stream; its address."""
    return _pointer("cudaMallocAsync", size, address(hStream))


def cudaMallocFromPoolAsync(size: int, memPool: Any, stream: Any) -> tuple[Any, Any]:
    """Device memory from a pool; its address."""
    return _pointer("cudaMallocFromPoolAsync", size, address(memPool), address(stream))


def cudaFree(devPtr: Any) -> tuple[Any]:
    """Give device memory back; None or 0 is nothing."""
    return (_call("cudaFree", address(devPtr)),)


def cudaFreeHost(ptr: Any) -> tuple[Any]:
    """Give page-locked memory back; None or 0 is nothing."""
    return (_call("cudaFreeHost", address(ptr)),)


def cudaFreeAsync(devPtr: Any, hStream: Any) -> tuple[Any]:
    """Give device memory back in the order of a stream."""
    return (_call("cudaFreeAsync", address(devPtr), address(hStream)),)


def cudaHostRegister(ptr: Any, size: int, flags: int) -> tuple[Any]:
    """Make known a range of host memory."""
    return (_call("cudaHostRegister", address(ptr), size, flags),)


def cudaHostUnregister(ptr: Any) -> tuple[Any]:
    """Forget a range of host memory that was made known."""
    return (_call("cudaHostUnregister", address(ptr)),)


def cudaHostGetDevicePointer(pHost: Any, flags: int) -> tuple[Any, Any]:
    """The device's address of page-locked memory: the same."""
    return _pointer("cudaHostGetDevicePointer", address(pHost), flags)


def cudaMemcpy(dst: Any, src: Any, count: int, kind: Any) -> tuple[Any]:
    """Copy `count` bytes; cudaErrorInvalidValue where an end lies outside its allocation or is of the wrong kind."""
    return (_call("cudaMemcpy", address(dst, writable=True), address(src), count, _kind(kind)),)


def cudaMemcpyAsync(dst: Any, src: Any, count: int, kind: Any, stream: Any) -> tuple[Any]:
    """As `cudaMemcpy`; done when it returns."""
    return _submit("cudaMemcpyAsync", stream, address(dst, writable=True), address(src), count, _kind(kind))


def cudaMemcpy2D(dst: Any, dpitch: int, src: Any, spitch: int, width: int, height: int, kind: Any) -> tuple[Any]:
    """Copy `height` rows of `width` bytes, `dpitch` and `spitch` bytes apart."""
    return (_call("cudaMemcpy2D", address(dst, writable=True), dpitch, address(src), spitch, width, height, _kind(kind)),)


def cudaMemset(devPtr: Any, value: int, count: int) -> tuple[Any]:
    """Set `count` bytes of device memory."""
    return (_call("cudaMemset", address(devPtr), value, count),)


def cudaMemsetAsync(devPtr: Any, value: int, count: int, stream: Any) -> tuple[Any]:
    """As `cudaMemset`."""
    return _submit("cudaMemsetAsync", stream, address(devPtr), value, count)


def cudaMemGetInfo() -> tuple[Any, Any, Any]:
    """Bytes of memory that are free, and all of them."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    code = _call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return code, free.value, total.value


def cudaPointerGetAttributes(ptr: Any) -> tuple[Any, Any]:
    """What memory an address is of."""
    at = address(ptr)
    found = _device.find(at)
    kind = 0 if found is None else found[0]
    return cudaError_t(0), cudaPointerAttributes(1 if kind == 4 else kind, at)


# ---- memory pools


def cudaMemPoolCreate(poolProps: Any) -> tuple[Any, Any]:
    """A memory pool."""
    if not isinstance(poolProps, cudaMemPoolProps):
        raise TypeError(f"Argument 'poolProps' has incorrect type (expected cudaMemPoolProps, got {type(poolProps).__name__})")
    return _handle(cudaMemPool_t, "cudaMemPoolCreate", None)


def cudaMemPoolDestroy(memPool: Any) -> tuple[Any]:
    """End a memory pool; what was taken from it stays."""
    return (_call("cudaMemPoolDestroy", address(memPool)),)


def cudaMemPoolTrimTo(memPool: Any, minBytesToKeep: int) -> tuple[Any]:
    """Give back what a pool keeps: nothing."""
    return (_call("cudaMemPoolTrimTo", address(memPool), minBytesToKeep),)


def cudaMemPoolSetAttribute(memPool: Any, attr: Any, value: Any) -> tuple[Any]:
    """Set an attribute of a pool; pools here keep nothing, so none has an effect."""
    cudaMemPoolAttr(attr), int(value)
    return (_call("cudaMemPoolTrimTo", address(memPool), 0),)


def cudaDeviceGetDefaultMemPool(device: int) -> tuple[Any, Any]:
    """The device's own memory pool."""
    return _handle(cudaMemPool_t, "cudaDeviceGetDefaultMemPool", device)


def cudaDeviceGetMemPool(device: int) -> tuple[Any, Any]:
    """The device's current memory pool: its own."""
    return cudaDeviceGetDefaultMemPool(device)


# ---- streams


def cudaStreamCreate() -> tuple[Any, Any]:
    """A stream."""
    return _handle(cudaStream_t, "cudaStreamCreate")


def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, Any]:
    """A stream."""
    return _handle(cudaStream_t, "cudaStreamCreateWithFlags", flags)


def cudaStreamCreateWithPriority(flags: int, priority: int) -> tuple[Any, Any]:
    """A stream; all have the same priority."""
    return _handle(cudaStream_t, "cudaStreamCreateWithPriority", flags, priority)


def cudaStreamDestroy(stream: Any) -> tuple[Any]:
    """End a stream."""
    return (_call("cudaStreamDestroy", address(stream)),)


def cudaStreamSynchronize(stream: Any) -> tuple[Any]:
    """Wait for a stream, in which all is done."""
    return _wait("cudaStreamSynchronize", stream)


def cudaStreamQuery(stream: Any) -> tuple[Any]:
    """Whether all is done in a stream, as it always is."""
    return _wait("cudaStreamQuery", stream)


def cudaStreamWaitEvent(stream: Any, event: Any, flags: int) -> tuple[Any]:
    """Make a stream wait for an event, which is past."""
    return (_call("cudaStreamWaitEvent", address(stream), address(event), flags),)


# ---- graphs


def cudaStreamIsCapturing(stream: Any) -> tuple[Any, Any]:
    """Whether a stream is captured."""
    code = _call("cudaStreamQuery", address(stream))
    return code, None if code else cudaStreamCaptureStatus(_graphs.status(address(stream)))


def cudaStreamBeginCapture(stream: Any, mode: Any) -> tuple[Any]:
    """Capture what follows in a stream, other than the default stream."""
    cudaStreamCaptureMode(mode)
    at = address(stream)
    code = _call("cudaStreamQuery", at)
    if code:
        return (code,)
    if at in (0, cudaStreamLegacy):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    return (cudaError_t.cudaSuccess if _graphs.begin(at) else cudaError_t.cudaErrorIllegalState,)


def cudaStreamEndCapture(stream: Any) -> tuple[Any, Any]:
    """The graph of what was captured."""
    number = _graphs.end(address(stream))
    if not number:
        return cudaError_t.cudaErrorIllegalState if number is None else cudaError_t.cudaErrorStreamCaptureInvalidated, None
    return cudaError_t.cudaSuccess, cudaGraph_t(number)


def cudaGraphInstantiate(graph: Any, flags: int) -> tuple[Any, Any]:
    """A graph that can be launched."""
    number = _graphs.instantiate(address(graph))
    return (cudaError_t.cudaErrorInvalidValue, None) if number is None else (cudaError_t.cudaSuccess, cudaGraphExec_t(number))


def cudaGraphInstantiateWithFlags(graph: Any, flags: int) -> tuple[Any, Any]:
    """A graph that can be launched."""
    return cudaGraphInstantiate(graph, flags)


def cudaGraphExecUpdate(hGraphExec: Any, hGraph: Any) -> tuple[Any, Any]:
    """Give a graph that can be launched what another graph does."""
    code = cudaError_t(0 if _graphs.update(address(hGraphExec), address(hGraph)) else 1)
    return code, None if code else SimpleNamespace(result=0, errorNode=None, errorFromNode=None)


def cudaGraphUpload(graphExec: Any, stream: Any) -> tuple[Any]:
    """Prepare a launch, for which nothing is to be done."""
    return (_call("cudaStreamQuery", address(stream)),)


def cudaGraphLaunch(graphExec: Any, stream: Any) -> tuple[Any]:
    """Do what was captured; the first error ends it."""
    code = _call("cudaStreamQuery", address(stream))
    result = None if code else _graphs.launch(address(graphExec), address(stream))
    return (code or cudaError_t(1 if result is None else result),)


def cudaGraphDestroy(graph: Any) -> tuple[Any]:
    """End a graph; what was made of it stays."""
    return (cudaError_t(0 if _graphs.forget(address(graph)) else 1),)


def cudaGraphExecDestroy(graphExec: Any) -> tuple[Any]:
    """End a graph that can be launched."""
    return cudaGraphDestroy(graphExec)


# ---- events


def cudaEventCreate() -> tuple[Any, Any]:
    """An event."""
    return _handle(cudaEvent_t, "cudaEventCreate")


def cudaEventCreateWithFlags(flags: int) -> tuple[Any, Any]:
    """An event; all keep their time."""
    return _handle(cudaEvent_t, "cudaEventCreateWithFlags", flags)


def cudaEventDestroy(event: Any) -> tuple[Any]:
    """End an event."""
    return (_call("cudaEventDestroy", address(event)),)


def cudaEventRecord(event: Any, stream: Any) -> tuple[Any]:
    """Note the time."""
    return _submit("cudaEventRecord", stream, address(event))


def cudaEventRecordWithFlags(event: Any, stream: Any, flags: int) -> tuple[Any]:
    """Note the time."""
    return (_call("cudaEventRecordWithFlags", address(event), address(stream), flags),)


def cudaEventSynchronize(event: Any) -> tuple[Any]:
    """Wait for an event, which is past."""
    return (_call("cudaEventSynchronize", address(event)),)


def cudaEventQuery(event: Any) -> tuple[Any]:
    """Whether an event is past, as all are."""
    return (_call("cudaEventQuery", address(event)),)


def cudaEventElapsedTime(start: Any, end: Any) -> tuple[Any, Any]:
    """Milliseconds between the times of two events."""
    return _out(ctypes.c_float, "cudaEventElapsedTime", address(start), address(end))


# ---- the device


def cudaGetDeviceCount() -> tuple[Any, Any]:
    """The number of devices: 1."""
    return _out(ctypes.c_int, "cudaGetDeviceCount")


def cudaSetDevice(device: int) -> tuple[Any]:
    """Choose device 0."""
    return (_call("cudaSetDevice", device),)


def cudaGetDevice() -> tuple[Any, Any]:
    """The device chosen: 0."""
    return _out(ctypes.c_int, "cudaGetDevice")


def cudaSetDeviceFlags(flags: int) -> tuple[Any]:
    """Say how to wait; of no effect."""
    return (_call("cudaSetDeviceFlags", flags),)


def cudaDeviceGetAttribute(attr: Any, device: int) -> tuple[Any, Any]:
    """An attribute of the device; 0 for what a CPU has nothing of."""
    return _out(ctypes.c_int, "cudaDeviceGetAttribute", int(attr), device)


def cudaGetDeviceProperties(device: int) -> tuple[Any, Any]:
    """The properties of device 0."""
    return (cudaError_t.cudaErrorInvalidDevice, None) if device else (cudaError_t.cudaSuccess, cudaDeviceProp())


def cudaDeviceGetStreamPriorityRange() -> tuple[Any, Any, Any]:
    """The least and greatest priority of streams: 0 and 0."""
    least, greatest = ctypes.c_int(), ctypes.c_int()
    code = _call("cudaDeviceGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
    return code, least.value, greatest.value


def cudaDeviceSynchronize() -> tuple[Any]:
    """Wait for the device, which has done everything."""
    return (_call("cudaDeviceSynchronize"),)


def cudaDeviceReset() -> tuple[Any]:
    """Free all memory, streams and events of this process."""
    return (_call("cudaDeviceReset"),)


def cudaRuntimeGetVersion() -> tuple[Any, Any]:
    """The version of the runtime that is stood in for."""
    return _out(ctypes.c_int, "cudaRuntimeGetVersion")


def cudaDriverGetVersion() -> tuple[Any, Any]:
    """The version of the driver that is stood in for."""
    return _out(ctypes.c_int, "cudaDriverGetVersion")


# ---- errors


def cudaGetLastError() -> tuple[Any]:
    """The last error of this process, which is then forgotten."""
    return (_call("cudaGetLastError"),)


def cudaPeekAtLastError() -> tuple[Any]:
    """The last error of this process."""
    return (_call("cudaPeekAtLastError"),)


def cudaGetErrorName(error: Any) -> tuple[Any, bytes]:
    """The name of an error."""
    return cudaError_t(0), _device.library().cudaGetErrorName(int(error))


def cudaGetErrorString(error: Any) -> tuple[Any, bytes]:
    """What an error means."""
    return cudaError_t(0), _device.library().cudaGetErrorString(int(error))


__dovetail_standin__ = True
__all__ = [name for name in dir() if name.startswith(("cuda", "CUDART"))]
