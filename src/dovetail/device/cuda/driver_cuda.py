"""The driver of a real device, over cuda-bindings' driver API.

Every call is checked. The primary context of the asked ordinal is retained and pushed around each use, or a context that the client
made; no other device gets a context, and the caller's current context is what it was.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

_PACKAGES = "install with: pip install 'dovetail[cuda]'"
_FREE_SHARED = 48 * 1024  # what every kernel may have without asking

# Triton numbers three element types otherwise than CUtensorMapDataType does: bf16, f64 and flushed f32.
_MAP_KINDS = {8: 10, 9: 8, 10: 9}

_HINTS = {
    "CUDA_ERROR_OUT_OF_MEMORY": "use smaller shapes, fewer contexts, or free memory of other processes",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "build the engine for this device",
    "CUDA_ERROR_INVALID_IMAGE": "the driver may be too old for the compiler that made this code: update it, or rebuild the engine here",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the driver",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "run once outside the capture first",
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": "run once outside the capture first",
    "CUDA_ERROR_INVALID_DEVICE": "choose a device that exists",
    "CUDA_ERROR_NO_DEVICE": "check that the machine has an NVIDIA GPU that this process may see (CUDA_VISIBLE_DEVICES)",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "restart the machine after a driver update",
}

# After these errors every call fails: the context is gone.
_LOST = {
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel reached outside its memory",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "a kernel used an address that is not aligned",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": "a kernel used an address of the wrong kind",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": "a kernel met an instruction that the device does not have",
    "CUDA_ERROR_INVALID_PC": "a kernel jumped outside its code",
    "CUDA_ERROR_HARDWARE_STACK_ERROR": "a kernel ran out of stack",
    "CUDA_ERROR_ASSERT": "a kernel stopped itself",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel failed",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "a kernel took longer than the system lets it",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK": "a kernel left tensor memory behind",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the device's memory is damaged",
    "CUDA_ERROR_CONTAINED": "the device has a fault",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "somebody has ended the context",
}

_ENDED = "the client has ended the CUDA context that he made"


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(
            f"cuda: the package cuda-bindings cannot be imported ({error}), expected it to run on a GPU; {_PACKAGES}"
        ) from None
    if getattr(driver, "__dovetail_standin__", False):
        raise DeviceError("cuda: got the stand-in of dovetail.tensorrt for cuda-bindings, expected NVIDIA's; run without stand-ins")
    return driver


@dataclass(frozen=True)
class Current:
    """The context that is current in a thread.

    Args:
        ordinal: of its device.
        context: its handle; None for the device's primary context.
        number: what no other context of this process has or will have.
    """

    ordinal: int
    context: Any
    number: int


def current() -> Current | None:
    """The context that is current in this thread; None where there is none, or no driver."""
    try:
        api = _bindings()
        ok = api.CUresult.CUDA_SUCCESS
        code, context = api.cuCtxGetCurrent()
        if code != ok or not int(context):
            return None
        _, device = api.cuCtxGetDevice()
        _, count = api.cuDeviceGetCount()
        ordinal = next(i for i in range(count) if int(api.cuDeviceGet(i)[1]) == int(device))
        _, number = api.cuCtxGetId(context)
        _, _, active = api.cuDevicePrimaryCtxGetState(device)
        if active:  # asking for one that is not would make it
            _, primary = api.cuDevicePrimaryCtxRetain(device)
            api.cuDevicePrimaryCtxRelease(device)
            if int(primary) == int(context):
                context = None
        return Current(ordinal, context, int(number))
    except (DeviceError, RuntimeError):  # what bindings raise without a driver, or for calls that it does not know
        return None


class CudaDriver:
    """See `driver.Driver`.

    Args:
        ordinal: the device.
        given: a context of that device that the client made, to work in instead of the primary one.
    """

    hazardous = True

    def __init__(self, ordinal: int, given: Current | None = None) -> None:
        self.lost = ""
        self._given = given
        self._api = _bindings()
        self._success = self._api.CUresult.CUDA_SUCCESS
        try:
            self._call("cuInit", 0)
        except DeviceError:
            raise
        except Exception as error:  # bindings report a missing libcuda by errors of their own
            raise DeviceError(
                f"cuda: got no usable NVIDIA driver ({str(error).splitlines()[0]}), expected one; install the driver, or build for the CPU"
            ) from None
        count = self._call("cuDeviceGetCount")
        if not 0 <= ordinal < count:
            raise DeviceError(
                f"cuda: got the device cuda:{ordinal}, expected one of {count}: cuda:0 to cuda:{count - 1}; check CUDA_VISIBLE_DEVICES"
            )
        self._device = self._call("cuDeviceGet", ordinal)
        kinds = self._api.CUdevice_attribute

        def attribute(name: str) -> int:
            return int(self._call("cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}"), self._device))

        name = self._call("cuDeviceGetName", 128, self._device)
        self.properties = Properties(
            ordinal,
            bytes(name).split(b"\0")[0].decode(),
            10 * attribute("COMPUTE_CAPABILITY_MAJOR") + attribute("COMPUTE_CAPABILITY_MINOR"),
            attribute("MULTIPROCESSOR_COUNT"),
            int(self._call("cuDeviceTotalMem", self._device)),
            int(self._call("cuDriverGetVersion")),
        )
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device) if given is None else given.context
        self._process = os.getpid()
        # The call that takes the edges' data has a name of its own in the bindings of CUDA 12.
        newer, older = "cuStreamUpdateCaptureDependencies_v2", "cuStreamUpdateCaptureDependencies"
        self._depend = newer if hasattr(self._api, newer) else older
        self._fence = 0  # address of what a fence writes
        self._modules: dict[int, Any] = {}  # by function, which lives as long as its module
        self._relaxed_mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        with self.active():
            self._keep_pool()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the driver; returns its one result, a tuple of several, or None."""
        try:
            result = getattr(self._api, name)(*arguments)
        except RuntimeError as error:  # the driver is older than its bindings; without any, cuInit fails
            if name == "cuInit":
                raise
            raise DeviceError(f"cuda: the NVIDIA driver has no {name} ({error}), expected a newer one; update it") from None
        if result[0] != self._success:
            raise self._error(name, result[0])
        if len(result) == 2:
            return result[1]
        return result[1:] if len(result) > 2 else None

    def _error(self, name: str, code: Any) -> DeviceError:
        label = getattr(code, "name", str(code))
        failed, text = self._api.cuGetErrorString(code)
        reason = text.decode() if failed == self._success and text else "unknown error"
        where = f"cuda:{self.properties.ordinal}" if hasattr(self, "properties") else "cuda"
        if label in _LOST:
            self.lost = self.lost or f"{name} failed with {label} ({reason}): {_LOST[label]}"
            return self._gone()
        hint = _HINTS.get(label, "see NVIDIA's driver API documentation for this error")
        return DeviceError(f"{where}: {name} failed with {label} ({reason}); {hint}")

    def _gone(self) -> DeviceLostError:
        if self._given is not None and self.lost == _ENDED:
            return DeviceLostError(
                f"cuda:{self.properties.ordinal}: {_ENDED}, expected it to live as long as what was made in it; load the engine again in "
                "the one that is current"
            )
        return DeviceLostError(
            f"cuda:{self.properties.ordinal}: {self.lost}; the device's context is lost to this process: restart it, and report this"
        )

    def _keep_pool(self) -> None:
        """Let stream-ordered memory stay with the process between runs."""
        pool = self._call("cuDeviceGetDefaultMemPool", self._device)
        kind = self._api.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        self._call("cuMemPoolSetAttribute", pool, kind, self._api.cuuint64_t(1 << 30))

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Driver.active`."""
        if os.getpid() != self._process:
            raise DeviceError(
                f"cuda:{self.properties.ordinal}: got a forked process, expected the one that opened the device; "
                "start processes with the method spawn, or open the engine in the child only"
            )
        if not self.alive():
            raise self._gone()
        self._call("cuCtxPushCurrent", self._context)
        try:
            # Whatever stream somebody captures: this thread may allocate, load and wait, for nothing of that concerns his graph.
            before = self._call("cuThreadExchangeStreamCaptureMode", self._relaxed_mode)
            try:
                yield
            finally:
                self._leave("cuThreadExchangeStreamCaptureMode", before)
        finally:
            self._leave("cuCtxPopCurrent")

    def alive(self) -> bool:
        """See `Driver.alive`."""
        if self._given is not None and not self.lost:
            code, number = self._api.cuCtxGetId(self._context)
            if code != self._success or int(number) != self._given.number:  # another one may have its handle by now
                self.lost = _ENDED
        return not self.lost

    def _leave(self, name: str, *arguments: Any) -> None:
        """Call the driver at the end of a use; a lost context makes every call fail, and its first error is the one to hear of."""
        if self.lost:
            getattr(self._api, name)(*arguments)
        else:
            self._call(name, *arguments)

    # --- memory ---------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """See `Driver.allocate`."""
        try:
            return int(self._call("cuMemAlloc", size))
        except DeviceError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            free, total = self._call("cuMemGetInfo")
            raise out_of_memory(self.properties.ordinal, size, int(free), int(total)) from None

    def free(self, pointer: int) -> None:
        """See `Driver.free`."""
        self._call("cuMemFree", pointer)

    def allocate_ordered(self, size: int, stream: Stream) -> int:
        """See `Driver.allocate_ordered`."""
        return int(self._call("cuMemAllocAsync", max(size, 1), stream))

    def free_ordered(self, pointer: int, stream: Stream) -> None:
        """See `Driver.free_ordered`."""
        self._call("cuMemFreeAsync", pointer, stream)

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        """See `Driver.host_memory`."""
        pointer = int(self._call("cuMemHostAlloc", max(size, 1), 0))
        raw: Any = (ctypes.c_uint8 * max(size, 1)).from_address(pointer)
        weakref.finalize(raw, self._free_host, pointer).atexit = False
        return np.frombuffer(raw, np.uint8)[:size]

    def _free_host(self, pointer: int) -> None:
        if not self.alive():
            return
        with self.active():
            self._call("cuMemFreeHost", pointer)

    def upload(self, pointer: int, source: NDArray[Any], stream: Stream) -> None:
        """See `Driver.upload`."""
        if source.nbytes:
            self._call("cuMemcpyHtoDAsync", pointer, address(source), source.nbytes, stream)

    def download(self, target: NDArray[Any], pointer: int, stream: Stream) -> None:
        """See `Driver.download`."""
        if target.nbytes:
            self._call("cuMemcpyDtoHAsync", address(target), pointer, target.nbytes, stream)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """See `Driver.copy`."""
        if size:
            self._call("cuMemcpyDtoDAsync", target, source, size, stream)

    def zero(self, pointer: int, size: int, stream: Stream) -> None:
        """See `Driver.zero`."""
        if size:
            self._call("cuMemsetD8Async", pointer, 0, size, stream)

    def owner(self, pointer: int) -> int | None:
        """See `Driver.owner`."""
        kinds = self._api.CUpointer_attribute
        code, kind = self._api.cuPointerGetAttribute(kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer)
        if code != self._success or int(kind) == int(self._api.CUmemorytype.CU_MEMORYTYPE_HOST):
            return None
        return int(self._call("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer))

    # --- kernels --------------------------------------------------------------------------------

    def load(self, code: bytes, entry: str, shared: int) -> Function:
        """See `Driver.load`."""
        module = self._call("cuModuleLoadData", code)
        try:
            function = self._call("cuModuleGetFunction", module, entry.encode())
            if shared > _FREE_SHARED:
                kind = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._call("cuFuncSetAttribute", function, kind, shared)
        except DeviceError:
            self._api.cuModuleUnload(module)
            raise
        self._modules[int(function)] = module
        return function

    def unload(self, function: Function) -> None:
        """See `Driver.unload`."""
        self._call("cuModuleUnload", self._modules.pop(int(function)))

    def launch(self, launch: Launch, stream: Stream) -> None:
        """See `Driver.launch`."""
        api = self._api
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.block, 1, 1
        config.sharedMemBytes = launch.shared
        config.hStream = api.CUstream(stream)
        attributes = []
        if launch.pdl:
            attribute = api.CUlaunchAttribute()
            attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            attributes.append(attribute)
        if launch.cluster > 1:
            attribute = api.CUlaunchAttribute()
            attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            size = attribute.value.clusterDim
            size.x, size.y, size.z = launch.cluster, 1, 1
            attributes.append(attribute)
        if attributes:
            config.attrs = attributes
        config.numAttrs = len(attributes)
        self._call("cuLaunchKernelEx", config, launch.function, launch.arguments.table, 0)

    def fence(self, stream: Stream) -> None:
        """See `Driver.fence`."""
        if not self.is_capturing(stream):
            # Only a kernel right behind another one may start before its end.
            if not self._fence:
                self._fence = self.allocate(4)
            self._call("cuMemsetD32Async", self._fence, 0, 1, stream)
            return
        # In a graph, an empty node does the same and takes no time.
        _, _, graph, ahead, *_ = self._call("cuStreamGetCaptureInfo", stream)
        if ahead:
            node = self._call("cuGraphAddEmptyNode", graph, ahead, len(ahead))
            replace = int(self._api.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES)
            self._call(self._depend, stream, [node], None, 1, replace)

    def encode(self, described: TensorMap) -> bytes:
        """See `Driver.encode`."""
        api = self._api
        rank = len(described.shape)
        kind = api.CUtensorMapDataType(_MAP_KINDS.get(described.kind, described.kind))
        strides = [described.element * s for s in described.strides[-2::-1]] if rank > 1 else []
        tensor_map = self._call(
            "cuTensorMapEncodeTiled", kind, rank, described.address,
            [api.cuuint64_t(n) for n in described.shape[::-1]], [api.cuuint64_t(s) for s in strides],
            [api.cuuint32_t(n) for n in described.box[::-1]], [api.cuuint32_t(1)] * rank,
            api.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE, api.CUtensorMapSwizzle(described.swizzle),
            api.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            api.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )  # fmt: skip
        return ctypes.string_at(tensor_map.getPtr(), 128)

    # --- streams and events ---------------------------------------------------------------------

    def create_stream(self) -> Stream:
        """See `Driver.create_stream`."""
        return int(self._call("cuStreamCreate", int(self._api.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: Stream) -> None:
        """See `Driver.destroy_stream`."""
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: Stream) -> None:
        """See `Driver.synchronize`."""
        self._call("cuStreamSynchronize", stream)

    def synchronize_device(self) -> None:
        """See `Driver.synchronize_device`."""
        self._call("cuCtxSynchronize")

    def create_event(self, timing: bool = False) -> Event:
        """See `Driver.create_event`."""
        flags = self._api.CUevent_flags
        return self._call("cuEventCreate", int(flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING))

    def destroy_event(self, event: Event) -> None:
        """See `Driver.destroy_event`."""
        self._call("cuEventDestroy", event)

    def record(self, event: Event, stream: Stream, *, external: bool = False) -> None:
        """See `Driver.record`."""
        flags = self._api.CUevent_record_flags
        flag = flags.CU_EVENT_RECORD_EXTERNAL if external else flags.CU_EVENT_RECORD_DEFAULT
        self._call("cuEventRecordWithFlags", event, stream, int(flag))

    def wait(self, stream: Stream, event: Event) -> None:
        """See `Driver.wait`."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def reached(self, event: Event) -> bool:
        """See `Driver.reached`."""
        (code,) = self._api.cuEventQuery(event)
        if code == self._api.CUresult.CUDA_ERROR_NOT_READY:
            return False
        if code != self._success:
            raise self._error("cuEventQuery", code)
        return True

    def synchronize_event(self, event: Event) -> None:
        """See `Driver.synchronize_event`."""
        self._call("cuEventSynchronize", event)

    def elapsed_ns(self, start: Event, end: Event) -> float:
        """See `Driver.elapsed_ns`."""
        return float(self._call("cuEventElapsedTime", start, end)) * 1e6

    # --- graphs ---------------------------------------------------------------------------------

    def is_capturing(self, stream: Stream) -> bool:
        """See `Driver.is_capturing`."""
        state = self._call("cuStreamIsCapturing", stream)
        return bool(state != self._api.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)

    def begin_capture(self, stream: Stream) -> None:
        """See `Driver.begin_capture`."""
        # Other threads go on allocating and loading; what this one queues here is all that matters.
        self._call("cuStreamBeginCapture", stream, self._relaxed_mode)

    def captured(self, stream: Stream) -> Node:
        """See `Driver.captured`."""
        dependencies = self._call("cuStreamGetCaptureInfo", stream)[3]
        assert len(dependencies) == 1, "one launch after the other, in one stream"
        return dependencies[0]

    def end_capture(self, stream: Stream) -> Graph:
        """See `Driver.end_capture`."""
        graph = self._call("cuStreamEndCapture", stream)
        return (self._call("cuGraphInstantiate", graph, 0), graph)

    def abandon_capture(self, stream: Stream) -> None:
        """See `Driver.abandon_capture`."""
        _, graph = self._api.cuStreamEndCapture(stream)
        if graph is not None and int(graph):
            self._api.cuGraphDestroy(graph)

    def update(self, graph: Graph, node: Node, launch: Launch) -> None:
        """See `Driver.update`."""
        params = self._api.CUDA_KERNEL_NODE_PARAMS()
        params.func = launch.function
        params.gridDimX, params.gridDimY, params.gridDimZ = launch.grid
        params.blockDimX, params.blockDimY, params.blockDimZ = launch.block, 1, 1
        params.sharedMemBytes = launch.shared
        params.kernelParams = launch.arguments.table
        self._call("cuGraphExecKernelNodeSetParams", graph[0], node, params)

    def launch_graph(self, graph: Graph, stream: Stream) -> None:
        """See `Driver.launch_graph`."""
        self._call("cuGraphLaunch", graph[0], stream)

    def destroy_graph(self, graph: Graph) -> None:
        """See `Driver.destroy_graph`."""
        self._call("cuGraphExecDestroy", graph[0])
        self._call("cuGraphDestroy", graph[1])
