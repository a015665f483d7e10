"""Stands for `cuda.bindings.driver` where there is no GPU: memory, streams, events and contexts, on host memory.

Every function returns a tuple, the error first. `cuInit` comes first, as with a real driver. There is no code to run:
modules and launches give `CUDA_ERROR_NOT_SUPPORTED`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from dovetail.tensorrt.standins import contexts as _contexts
from dovetail.tensorrt.standins import device as _device
from dovetail.tensorrt.standins import enums as _enums
from dovetail.tensorrt.standins.handles import Handle, StreamHandle, address


def _enum(name: str, members: dict[str, int]) -> Any:
    return _enums.enumeration(name, members, __name__)


CUresult = _enum("CUresult", _enums.DRIVER_ERRORS)
CUdevice_attribute = _enum("CUdevice_attribute", _enums.DRIVER_ATTRIBUTES)
CUctx_flags = _enum(
    "CUctx_flags",
    {"CU_CTX_SCHED_AUTO": 0, "CU_CTX_SCHED_SPIN": 1, "CU_CTX_SCHED_YIELD": 2, "CU_CTX_SCHED_BLOCKING_SYNC": 4, "CU_CTX_MAP_HOST": 8},
)
CUstream_flags = _enum("CUstream_flags", {"CU_STREAM_DEFAULT": 0, "CU_STREAM_NON_BLOCKING": 1})
CUevent_flags = _enum(
    "CUevent_flags", {"CU_EVENT_DEFAULT": 0, "CU_EVENT_BLOCKING_SYNC": 1, "CU_EVENT_DISABLE_TIMING": 2, "CU_EVENT_INTERPROCESS": 4}
)
CUmemorytype = _enum(
    "CUmemorytype", {"CU_MEMORYTYPE_HOST": 1, "CU_MEMORYTYPE_DEVICE": 2, "CU_MEMORYTYPE_ARRAY": 3, "CU_MEMORYTYPE_UNIFIED": 4}
)
CUmemAttach_flags = _enum("CUmemAttach_flags", {"CU_MEM_ATTACH_GLOBAL": 1, "CU_MEM_ATTACH_HOST": 2, "CU_MEM_ATTACH_SINGLE": 4})

CU_STREAM_LEGACY, CU_STREAM_PER_THREAD = 1, 2
CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_WRITECOMBINED = 1, 2, 4
CUDA_VERSION = 12080


class CUdevice(Handle):
    """A device."""


class CUcontext(Handle):
    """A context."""


class CUstream(StreamHandle):
    """A stream."""


class CUevent(Handle):
    """An event."""


class CUdeviceptr(Handle):
    """An address of device memory."""


class cuuint32_t(Handle):
    """A number of 32 bits."""


class cuuint64_t(Handle):
    """A number of 64 bits."""


def _call(name: str, *arguments: Any) -> Any:
    """Call the runtime's function; its errors have the same numbers here, where both have them."""
    if not _contexts.initialized.is_set():
        return CUresult.CUDA_ERROR_NOT_INITIALIZED
    return CUresult(_device.call(name, *arguments))


def _handle(kind: Any, name: str, *arguments: Any) -> tuple[Any, Any]:
    result = ctypes.c_void_p()
    code = _call(name, ctypes.byref(result), *arguments)
    return code, None if code else kind(result.value or 0)


def _needs_init(function: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> tuple[Any, ...]:
        if _contexts.initialized.is_set():
            return function(*arguments, **options)
        return (CUresult.CUDA_ERROR_NOT_INITIALIZED,)

    return checked


# ---- the driver and its device


def cuInit(Flags: int) -> tuple[Any]:
    """Begin."""
    if Flags:
        return (CUresult.CUDA_ERROR_INVALID_VALUE,)
    _contexts.initialized.set()
    return (CUresult.CUDA_SUCCESS,)


def cuDriverGetVersion() -> tuple[Any, Any]:
    """The version of the driver that is stood in for."""
    return CUresult.CUDA_SUCCESS, CUDA_VERSION


@_needs_init
def cuDeviceGetCount() -> tuple[Any, ...]:
    """The number of devices: 1."""
    return CUresult.CUDA_SUCCESS, 1


@_needs_init
def cuDeviceGet(ordinal: int) -> tuple[Any, ...]:
    """Device 0."""
    return (CUresult.CUDA_ERROR_INVALID_DEVICE, None) if ordinal else (CUresult.CUDA_SUCCESS, CUdevice(0))


@_needs_init
def cuDeviceGetName(length: int, dev: Any) -> tuple[Any, ...]:
    """The device's name, filled with zeros."""
    return CUresult.CUDA_SUCCESS, _device.NAME.encode()[: max(length - 1, 0)].ljust(length, b"\0")


@_needs_init
def cuDeviceTotalMem(dev: Any) -> tuple[Any, ...]:
    """Bytes of memory of the device."""
    return CUresult.CUDA_SUCCESS, _device.total_memory()


@_needs_init
def cuDeviceGetAttribute(attrib: Any, dev: Any) -> tuple[Any, ...]:
    """An attribute of the device; 0 for what a CPU has nothing of."""
    numbers = {_enums.RUNTIME_ATTRIBUTES[name]: value for name, value in _device.attributes().items()}
    return CUresult.CUDA_SUCCESS, numbers.get(int(attrib), 0)


@_needs_init
def cuDeviceComputeCapability(dev: Any) -> tuple[Any, ...]:
    """Major and minor version: 0 and 0."""
    return CUresult.CUDA_SUCCESS, 0, 0


# ---- contexts


def cuCtxCreate(*arguments: Any) -> tuple[Any, ...]:
    """A context, current to this thread. Arguments: flags and device, with or without parameters ahead of them."""
    if not _contexts.initialized.is_set():
        return CUresult.CUDA_ERROR_NOT_INITIALIZED, None
    if not 2 <= len(arguments) <= 4:
        raise TypeError(f"cuCtxCreate() takes 2 to 4 positional arguments ({len(arguments)} given)")
    if int(arguments[-1]):
        return CUresult.CUDA_ERROR_INVALID_DEVICE, None
    record = _contexts.make()
    _contexts.push(record)
    return CUresult.CUDA_SUCCESS, CUcontext(record.number)


def _record(ctx: Any) -> _contexts.ContextRecord | None:
    return _contexts.known(int(ctx or 0))


@_needs_init
def cuCtxDestroy(ctx: Any) -> tuple[Any, ...]:
    """End a context."""
    record = _record(ctx)
    if record is None:
        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
    _contexts.end(record)
    return (CUresult.CUDA_SUCCESS,)


@_needs_init
def cuCtxPushCurrent(ctx: Any) -> tuple[Any, ...]:
    """Make a context current to this thread."""
    record = _record(ctx)
    if record is None:
        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
    _contexts.push(record)
    return (CUresult.CUDA_SUCCESS,)


@_needs_init
def cuCtxPopCurrent() -> tuple[Any, ...]:
    """Take the current context off this thread."""
    record = _contexts.pop()
    return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None) if record is None else (CUresult.CUDA_SUCCESS, CUcontext(record.number))


@_needs_init
def cuCtxSetCurrent(ctx: Any) -> tuple[Any, ...]:
    """Put a context, or none, in place of the current one."""
    record = _record(ctx)
    if record is None and int(ctx or 0):
        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
    _contexts.replace(record)
    return (CUresult.CUDA_SUCCESS,)


@_needs_init
def cuCtxGetCurrent() -> tuple[Any, ...]:
    """This thread's current context; number 0 for none."""
    record = _contexts.current()
    return CUresult.CUDA_SUCCESS, CUcontext(0 if record is None else record.number)


@_needs_init
def cuCtxGetDevice() -> tuple[Any, ...]:
    """The device of the current context."""
    return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None) if _contexts.current() is None else (CUresult.CUDA_SUCCESS, CUdevice(0))


@_needs_init
def cuCtxSynchronize() -> tuple[Any, ...]:
    """Wait for the current context, in which all is done."""
    return (CUresult.CUDA_ERROR_INVALID_CONTEXT if _contexts.current() is None else CUresult.CUDA_SUCCESS,)


@_needs_init
def cuDevicePrimaryCtxRetain(dev: Any) -> tuple[Any, ...]:
    """The device's primary context."""
    return CUresult.CUDA_SUCCESS, CUcontext(_contexts.primary().number)


@_needs_init
def cuDevicePrimaryCtxRelease(dev: Any) -> tuple[Any, ...]:
    """Give the primary context back; it stays."""
    return (CUresult.CUDA_SUCCESS,)


# ---- memory


def cuMemAlloc(bytesize: int) -> tuple[Any, Any]:
    """Device memory."""
    return (CUresult.CUDA_ERROR_INVALID_VALUE, None) if not bytesize else _handle(CUdeviceptr, "cudaMalloc", bytesize)


def cuMemAllocAsync(bytesize: int, hStream: Any) -> tuple[Any, Any]:
    """Device memory in the order of a stream."""
    return _handle(CUdeviceptr, "cudaMallocAsync", bytesize, address(hStream))


def cuMemAllocManaged(bytesize: int, flags: int) -> tuple[Any, Any]:
    """Memory for both sides."""
    return _handle(CUdeviceptr, "cudaMallocManaged", bytesize, int(flags))


def cuMemAllocHost(bytesize: int) -> tuple[Any, Any]:
    """Page-locked host memory; its address."""
    return _handle(int, "cudaMallocHost", bytesize)


def cuMemHostAlloc(bytesize: int, Flags: int) -> tuple[Any, Any]:
    """Page-locked host memory; its address."""
    return _handle(int, "cudaHostAlloc", bytesize, Flags)


def cuMemFree(dptr: Any) -> tuple[Any]:
    """Give device memory back."""
    return (_call("cudaFree", address(dptr)),)


def cuMemFreeAsync(dptr: Any, hStream: Any) -> tuple[Any]:
    """Give device memory back in the order of a stream."""
    return (_call("cudaFreeAsync", address(dptr), address(hStream)),)


def cuMemFreeHost(p: Any) -> tuple[Any]:
    """Give page-locked memory back."""
    return (_call("cudaFreeHost", address(p)),)


def cuMemcpyHtoD(dstDevice: Any, srcHost: Any, ByteCount: int) -> tuple[Any]:
    """Copy from host to device."""
    return (_call("cudaMemcpy", address(dstDevice), address(srcHost), ByteCount, 1),)


def cuMemcpyDtoH(dstHost: Any, srcDevice: Any, ByteCount: int) -> tuple[Any]:
    """Copy from device to host."""
    return (_call("cudaMemcpy", address(dstHost, writable=True), address(srcDevice), ByteCount, 2),)


def cuMemcpyDtoD(dstDevice: Any, srcDevice: Any, ByteCount: int) -> tuple[Any]:
    """Copy on the device."""
    return (_call("cudaMemcpy", address(dstDevice), address(srcDevice), ByteCount, 3),)


def cuMemcpy(dst: Any, src: Any, ByteCount: int) -> tuple[Any]:
    """Copy between any two addresses."""
    return (_call("cudaMemcpy", address(dst), address(src), ByteCount, 4),)


def cuMemcpyHtoDAsync(dstDevice: Any, srcHost: Any, ByteCount: int, hStream: Any) -> tuple[Any]:
    """Copy from host to device."""
    return (_call("cudaMemcpyAsync", address(dstDevice), address(srcHost), ByteCount, 1, address(hStream)),)


def cuMemcpyDtoHAsync(dstHost: Any, srcDevice: Any, ByteCount: int, hStream: Any) -> tuple[Any]:
    """Copy from device to host."""
    return (_call("cudaMemcpyAsync", address(dstHost, writable=True), address(srcDevice), ByteCount, 2, address(hStream)),)


def cuMemcpyDtoDAsync(dstDevice: Any, srcDevice: Any, ByteCount: int, hStream: Any) -> tuple[Any]:
    """Copy on the device."""
    return (_call("cudaMemcpyAsync", address(dstDevice), address(srcDevice), ByteCount, 3, address(hStream)),)


def cuMemcpyAsync(dst: Any, src: Any, ByteCount: int, hStream: Any) -> tuple[Any]:
    """Copy between any two addresses."""
    return (_call("cudaMemcpyAsync", address(dst), address(src), ByteCount, 4, address(hStream)),)


def cuMemsetD8(dstDevice: Any, uc: int, N: int) -> tuple[Any]:
    """Set N bytes."""
    return (_call("cudaMemset", address(dstDevice), uc, N),)


def cuMemsetD8Async(dstDevice: Any, uc: int, N: int, hStream: Any) -> tuple[Any]:
    """Set N bytes."""
    return (_call("cudaMemsetAsync", address(dstDevice), uc, N, address(hStream)),)


def cuMemsetD32(dstDevice: Any, ui: int, N: int) -> tuple[Any]:
    """Set N words of 32 bits."""
    return cuMemsetD32Async(dstDevice, ui, N, 0)


def cuMemsetD32Async(dstDevice: Any, ui: int, N: int, hStream: Any) -> tuple[Any]:
    """Set N words of 32 bits."""
    words = (ctypes.c_uint32 * int(N))(*[ui] * int(N))
    return (_call("cudaMemcpyAsync", address(dstDevice), ctypes.addressof(words), 4 * N, 1, address(hStream)),)


@_needs_init
def cuMemGetInfo() -> tuple[Any, ...]:
    """Bytes of memory that are free, and all of them."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    code = _call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return code, free.value, total.value


# ---- streams and events


def cuStreamCreate(Flags: int) -> tuple[Any, Any]:
    """A stream."""
    return _handle(CUstream, "cudaStreamCreateWithFlags", int(Flags))


def cuStreamDestroy(hStream: Any) -> tuple[Any]:
    """End a stream."""
    return (_call("cudaStreamDestroy", address(hStream)),)


def cuStreamSynchronize(hStream: Any) -> tuple[Any]:
    """Wait for a stream, in which all is done."""
    return (_call("cudaStreamSynchronize", address(hStream)),)


def cuStreamQuery(hStream: Any) -> tuple[Any]:
    """Whether all is done in a stream, as it always is."""
    return (_call("cudaStreamQuery", address(hStream)),)


def cuStreamWaitEvent(hStream: Any, hEvent: Any, Flags: int) -> tuple[Any]:
    """Make a stream wait for an event, which is past."""
    return (_call("cudaStreamWaitEvent", address(hStream), address(hEvent), Flags),)


def cuEventCreate(Flags: int) -> tuple[Any, Any]:
    """An event."""
    return _handle(CUevent, "cudaEventCreateWithFlags", int(Flags))


def cuEventDestroy(hEvent: Any) -> tuple[Any]:
    """End an event."""
    return (_call("cudaEventDestroy", address(hEvent)),)


def cuEventRecord(hEvent: Any, hStream: Any) -> tuple[Any]:
    """Note the time."""
    return (_call("cudaEventRecord", address(hEvent), address(hStream)),)


def cuEventSynchronize(hEvent: Any) -> tuple[Any]:
    """Wait for an event, which is past."""
    return (_call("cudaEventSynchronize", address(hEvent)),)


def cuEventQuery(hEvent: Any) -> tuple[Any]:
    """Whether an event is past, as all are."""
    return (_call("cudaEventQuery", address(hEvent)),)


def cuEventElapsedTime(hStart: Any, hEnd: Any) -> tuple[Any, Any]:
    """Milliseconds between the times of two events."""
    value = ctypes.c_float()
    code = _call("cudaEventElapsedTime", ctypes.byref(value), address(hStart), address(hEnd))
    return code, None if code else value.value


# ---- code, of which there is none


def cuModuleLoadData(image: Any) -> tuple[Any, None]:
    """Not possible here: CUDA_ERROR_NOT_SUPPORTED."""
    return CUresult.CUDA_ERROR_NOT_SUPPORTED, None


def cuModuleLoad(fname: bytes) -> tuple[Any, None]:
    """Not possible here: CUDA_ERROR_NOT_SUPPORTED."""
    return CUresult.CUDA_ERROR_NOT_SUPPORTED, None


def cuLaunchKernel(*arguments: Any) -> tuple[Any]:
    """Not possible here: CUDA_ERROR_NOT_SUPPORTED."""
    return (CUresult.CUDA_ERROR_NOT_SUPPORTED,)


# ---- errors


def cuGetErrorName(error: Any) -> tuple[Any, Any]:
    """The name of an error."""
    return _described(error, lambda code: str(code.name))


def cuGetErrorString(error: Any) -> tuple[Any, Any]:
    """What an error means."""

    def text(code: Any) -> str:
        shared = {number: name for name, number in _enums.RUNTIME_ERRORS.items()}.get(int(code))
        return _enums.error_text(shared) if shared else code.name.removeprefix("CUDA_ERROR_").replace("_", " ").lower()

    return _described(error, text)


def _described(error: Any, describe: Callable[[Any], str]) -> tuple[Any, Any]:
    try:
        code = CUresult(int(error))
    except ValueError:
        return CUresult.CUDA_ERROR_INVALID_VALUE, None
    return CUresult.CUDA_SUCCESS, describe(code).encode()


__dovetail_standin__ = True
__all__ = [name for name in dir() if name.startswith(("cu", "CU"))]
