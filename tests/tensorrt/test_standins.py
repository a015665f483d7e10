"""The stand-ins for CUDA: memory, copies and their refusals, streams, events, the device; each by all the names it has."""

import ctypes
import dataclasses
import threading

import numpy as np
import pytest

from dovetail.codegen.compiler import compile_library
from dovetail.codegen.target import CpuTarget, Target
from dovetail.core.env import override
from dovetail.core.errors import DeviceError
from dovetail.tensorrt.standins import device, graphs
from dovetail.tensorrt.standins import pycuda as standin_pycuda
from dovetail.tensorrt.standins.cuda import cuda as old_driver
from dovetail.tensorrt.standins.cuda import cudart as old_runtime
from dovetail.tensorrt.standins.cuda.bindings import driver, nvrtc, runtime
from dovetail.tensorrt.standins.handles import Handle, address

RNG = np.random.default_rng(0)
Kind = runtime.cudaMemcpyKind
TO_DEVICE, TO_HOST, ON_DEVICE = Kind.cudaMemcpyHostToDevice, Kind.cudaMemcpyDeviceToHost, Kind.cudaMemcpyDeviceToDevice
OK = (runtime.cudaError_t.cudaSuccess,)
INVALID = (runtime.cudaError_t.cudaErrorInvalidValue,)
BAD_HANDLE = (runtime.cudaError_t.cudaErrorInvalidResourceHandle,)


def made(call):
    code, value = call
    assert code == 0
    return value


@pytest.fixture
def memory():
    """1,001 bytes of device memory, given back at the end."""
    at = made(runtime.cudaMalloc(1001))
    yield at
    runtime.cudaFree(at)


# ---- memory and copies


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1001])
def test_what_is_copied_there_comes_back(memory, size):
    x = RNG.integers(0, 256, size, dtype=np.uint8)
    y = np.zeros_like(x)
    assert runtime.cudaMemcpy(memory, x, size, TO_DEVICE) == OK
    assert runtime.cudaMemcpyAsync(y, memory, size, TO_HOST, 0) == OK
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shift", [-13, -8, -1, 1, 5, 8, 64])
def test_overlapping_copies_move(memory, shift):
    x = RNG.integers(0, 256, 1001, dtype=np.uint8)
    y = np.zeros(200, np.uint8)
    assert runtime.cudaMemcpy(memory, x, 1001, TO_DEVICE) == OK
    assert runtime.cudaMemcpy(memory + 100 + shift, memory + 100, 200, ON_DEVICE) == OK
    assert runtime.cudaMemcpy(y, memory + 100 + shift, 200, TO_HOST) == OK
    np.testing.assert_array_equal(y, x[100:300])


@pytest.mark.parametrize(
    ("first", "count"), [(0, 1002), (1, 1001), (1000, 2), (1001, 1), (-1, 1), (0, 2**40), (500, 2**64 - 1)]
)
def test_copies_beyond_an_allocation_are_refused(memory, first, count):
    host = np.zeros(2048, np.uint8)
    assert runtime.cudaMemcpy(memory + first, host, count, TO_DEVICE) == INVALID
    assert runtime.cudaMemcpy(host, memory + first, count, TO_HOST) == INVALID
    assert runtime.cudaMemcpy(memory, memory + first, count, ON_DEVICE) == INVALID
    assert runtime.cudaMemset(memory + first, 0, count) == INVALID
    assert runtime.cudaGetLastError() == INVALID
    assert runtime.cudaGetLastError() == OK


def test_copies_in_the_wrong_direction_are_refused(memory):
    host = np.zeros(8, np.uint8)
    assert runtime.cudaMemcpy(host, host, 8, TO_DEVICE) == INVALID
    assert runtime.cudaMemcpy(memory, memory, 8, TO_HOST) == INVALID
    assert runtime.cudaMemcpy(memory, host, 8, Kind.cudaMemcpyDefault) == OK
    assert runtime.cudaMemcpy(host, host, 8, Kind.cudaMemcpyHostToHost) == OK
    with pytest.raises(TypeError, match="cudaMemcpyKind"):
        runtime.cudaMemcpy(memory, host, 8, 1)


def test_freed_memory_is_refused():
    host = np.zeros(8, np.uint8)
    at = made(runtime.cudaMalloc(8))
    pinned = made(runtime.cudaMallocHost(5000))
    assert runtime.cudaFree(pinned) == INVALID
    assert runtime.cudaFree(at) == OK
    assert runtime.cudaFreeHost(pinned) == OK
    assert runtime.cudaFree(at) == INVALID
    assert runtime.cudaFree(0) == runtime.cudaFree(None) == OK
    assert runtime.cudaMemcpy(at, host, 8, TO_DEVICE) == INVALID
    assert runtime.cudaMemcpy(host, at, 8, TO_HOST) == INVALID


@pytest.mark.parametrize("at", [0, 8, 2**47 - 4096, 2**63, 2**64 - 16])
def test_host_memory_that_is_not_there_is_refused(memory, at):
    assert runtime.cudaMemcpy(memory, at, 8, TO_DEVICE) == INVALID
    assert runtime.cudaMemcpy(at, memory, 8, TO_HOST) == INVALID
    assert runtime.cudaMemcpy(memory, at, 0, TO_DEVICE) == OK


def test_the_middle_of_an_allocation_cannot_be_freed(memory):
    assert runtime.cudaFree(memory + 8) == INVALID
    assert device.find(memory + 1000) == (2, memory, 1001)
    assert device.find(memory + 1001) is None


def test_there_is_no_more_memory_than_the_machine_has():
    code, value = runtime.cudaMalloc(2**62)
    assert code == runtime.cudaError_t.cudaErrorMemoryAllocation
    assert value is None
    assert runtime.cudaGetLastError() == (code,)
    assert made(runtime.cudaMalloc(0)) == 0
    code, free, total = runtime.cudaMemGetInfo()
    assert code == 0
    assert 0 < free <= total
    assert abs(total - device.total_memory()) < 2**20


def test_fills_and_rows(memory):
    y = np.zeros((7, 13), np.uint8)
    assert runtime.cudaMemset(memory, 0x1A5, 1001) == OK
    assert runtime.cudaMemcpy2D(y.ctypes.data, 13, memory, 20, 9, 7, TO_HOST) == OK
    assert (y[:, :9] == 0xA5).all()
    assert (y[:, 9:] == 0).all()
    assert runtime.cudaMemcpy2D(y, 13, memory, 20, 14, 7, TO_HOST) == (runtime.cudaError_t.cudaErrorInvalidPitchValue,)
    assert runtime.cudaMemcpy2D(memory + 900, 20, y, 13, 13, 7, TO_DEVICE) == INVALID


def test_memory_as_the_samples_hold_it():
    """Sizes that NumPy computed, pinned memory as an array by ctypes, a stream object, graphs' and pools' numbers."""
    size = np.prod((3, 5)) * np.dtype(np.float32).itemsize
    at, pinned = made(runtime.cudaMalloc(size)), made(runtime.cudaMallocHost(size))
    array = np.ctypeslib.as_array(ctypes.cast(pinned, ctypes.POINTER(ctypes.c_float)), (15,))
    np.copyto(array, np.arange(15, dtype=np.float32))
    stream = made(runtime.cudaStreamCreate())
    assert runtime.cudaMemcpyAsync(at, array.ctypes.data, size, TO_DEVICE, stream) == OK
    array[:] = 0
    assert runtime.cudaMemcpyAsync(array, np.uint64(at), size, TO_HOST, int(stream)) == OK
    np.testing.assert_array_equal(array, np.arange(15))
    pool = made(runtime.cudaDeviceGetDefaultMemPool(0))
    threshold = driver.cuuint64_t(np.iinfo(np.uint64).max)
    assert runtime.cudaMemPoolSetAttribute(pool, runtime.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold, threshold) == OK
    with pytest.raises((TypeError, ctypes.ArgumentError)):
        runtime.cudaMalloc(8.0)
    assert runtime.cudaFree(np.int64(at)) == runtime.cudaFreeHost(array.ctypes.data) == runtime.cudaStreamDestroy(stream) == OK


def test_all_kinds_of_memory_have_their_own_names():
    for call, kind in (
        (runtime.cudaMallocManaged(9), "Managed"),
        (runtime.cudaMallocAsync(9, 0), "Device"),
        (runtime.cudaMallocHost(9), "Host"),
        (runtime.cudaHostAlloc(9, 2), "Host"),
    ):
        at = made(call)
        found = made(runtime.cudaPointerGetAttributes(at))
        assert found.type == getattr(runtime.cudaMemoryType, f"cudaMemoryType{kind}")
        assert (runtime.cudaFreeHost if kind == "Host" else runtime.cudaFree)(at) == OK
        assert made(runtime.cudaPointerGetAttributes(at)).type == 0


def test_pinned_memory_stands_at_either_end(memory):
    pinned = made(runtime.cudaMallocHost(64))
    view = np.frombuffer((ctypes.c_byte * 64).from_address(pinned), np.uint8)
    view[:] = np.arange(64)
    assert runtime.cudaMemcpy(memory, pinned, 64, TO_DEVICE) == OK
    view[:] = 0
    assert runtime.cudaMemcpy(pinned, memory, 65, TO_HOST) == INVALID
    assert runtime.cudaMemcpy(pinned, memory, 64, TO_HOST) == OK
    np.testing.assert_array_equal(view, np.arange(64))
    assert made(runtime.cudaHostGetDevicePointer(pinned, 0)) == pinned
    assert runtime.cudaFreeHost(pinned) == OK


def test_host_memory_can_be_registered_once():
    x = np.zeros(64, np.uint8)
    assert runtime.cudaHostRegister(x, 64, 0) == OK
    assert runtime.cudaHostRegister(x, 64, 0)[0].name == "cudaErrorHostMemoryAlreadyRegistered"
    assert made(runtime.cudaHostGetDevicePointer(x, 0)) == x.ctypes.data
    assert runtime.cudaHostUnregister(x) == OK
    assert runtime.cudaHostUnregister(x)[0].name == "cudaErrorHostMemoryNotRegistered"
    x[:] = 1


def test_engines_expose_memory_of_their_own_for_a_while(memory):
    arena = np.arange(32, dtype=np.uint8)
    at = arena.ctypes.data
    with device.exposed((at, 32), (at, 32)):
        with device.exposed((at, 8)):
            pass
        assert runtime.cudaMemcpy(memory, at + 8, 24, ON_DEVICE) == OK
        assert runtime.cudaMemcpy(memory, at + 8, 25, ON_DEVICE) == INVALID
    assert runtime.cudaMemcpy(memory, at, 8, ON_DEVICE) == INVALID
    y = np.zeros(24, np.uint8)
    runtime.cudaMemcpy(y, memory, 24, TO_HOST)
    np.testing.assert_array_equal(y, arena[8:])


def test_exposing_more_than_fits_is_an_error(monkeypatch):
    class Full:
        @staticmethod
        def dovetail_expose(at, size):
            return 2

    monkeypatch.setattr(device, "library", lambda: Full)
    with pytest.raises(DeviceError, match="no memory to expose 8 bytes"), device.exposed((16, 8)):
        pass


def test_many_allocations_of_many_threads():
    failed = []

    def work(seed):
        rng = np.random.default_rng(seed)
        held = {}
        for _ in range(300):
            if held and rng.random() < 0.4:
                at = list(held)[int(rng.integers(len(held)))]
                x = held.pop(at)
                y = np.zeros_like(x)
                if runtime.cudaMemcpy(y, at, y.nbytes, TO_HOST) != OK or not (x == y).all() or runtime.cudaFree(at) != OK:
                    failed.append(at)
            else:
                x = rng.integers(0, 256, int(rng.integers(1, 3000)), dtype=np.uint8)
                at = made(runtime.cudaMalloc(x.nbytes))
                held[at] = x
                if runtime.cudaMemcpy(at, x, x.nbytes, TO_DEVICE) != OK:
                    failed.append(at)
        failed.extend(at for at in held if runtime.cudaFree(at) != OK)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# ---- streams, events, pools


def test_streams_exist_until_they_are_destroyed(memory):
    stream = made(runtime.cudaStreamCreate())
    assert isinstance(stream, runtime.cudaStream_t)
    assert int(stream) > 2
    assert stream == runtime.cudaStream_t(int(stream))
    assert stream.__cuda_stream__() == (0, int(stream))
    host = np.ones(8, np.uint8)
    assert runtime.cudaMemcpyAsync(memory, host, 8, TO_DEVICE, stream) == OK
    assert runtime.cudaMemsetAsync(memory, 0, 8, int(stream)) == OK
    assert runtime.cudaStreamQuery(stream) == runtime.cudaStreamSynchronize(stream) == OK
    assert made(runtime.cudaStreamIsCapturing(stream)) == runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
    assert runtime.cudaStreamDestroy(stream) == OK
    assert runtime.cudaStreamDestroy(stream) == BAD_HANDLE
    assert runtime.cudaStreamSynchronize(stream) == BAD_HANDLE
    assert runtime.cudaMemcpyAsync(memory, host, 8, TO_DEVICE, stream) == BAD_HANDLE
    assert runtime.cudaMallocAsync(8, stream)[0] == BAD_HANDLE[0]
    for always in (None, 0, runtime.cudaStreamLegacy, runtime.cudaStreamPerThread):
        assert runtime.cudaStreamSynchronize(always) == OK


def test_an_event_is_no_stream_and_neither_is_memory(memory):
    event = made(runtime.cudaEventCreate())
    assert runtime.cudaStreamSynchronize(event) == BAD_HANDLE
    assert runtime.cudaMemset(event, 0, 8) == INVALID
    assert runtime.cudaFree(event) == INVALID
    assert runtime.cudaStreamSynchronize(memory) == BAD_HANDLE
    assert runtime.cudaEventRecord(memory, 0) == BAD_HANDLE
    assert runtime.cudaEventDestroy(event) == OK


def test_events_keep_their_time():
    stream = made(runtime.cudaStreamCreateWithPriority(1, 0))
    first, second = (made(runtime.cudaEventCreateWithFlags(flags)) for flags in (0, 1))
    assert runtime.cudaEventElapsedTime(first, second) == (BAD_HANDLE[0], None)
    assert runtime.cudaEventRecord(first, stream) == runtime.cudaEventRecordWithFlags(second, stream, 0) == OK
    assert runtime.cudaStreamWaitEvent(stream, second, 0) == runtime.cudaEventSynchronize(second) == OK
    assert runtime.cudaEventQuery(second) == OK
    between = made(runtime.cudaEventElapsedTime(first, second))
    assert 0 <= between < 60e3
    assert made(runtime.cudaEventElapsedTime(second, first)) == -between
    assert runtime.cudaEventDestroy(first) == runtime.cudaEventDestroy(second) == runtime.cudaStreamDestroy(stream) == OK
    assert runtime.cudaEventRecord(first, 0) == BAD_HANDLE


MODE = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


@pytest.fixture
def stream():
    at = made(runtime.cudaStreamCreate())
    yield at
    runtime.cudaStreamDestroy(at)


def test_graphs_do_again_what_was_captured(memory, stream):
    x, y = np.arange(8, dtype=np.uint8), np.zeros(8, np.uint8)
    runs = []
    assert runtime.cudaStreamBeginCapture(stream, MODE) == OK
    assert made(runtime.cudaStreamIsCapturing(stream)) == runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
    assert runtime.cudaMemsetAsync(memory + 8, 9, 8, stream) == OK
    assert runtime.cudaMemcpyAsync(memory, x, 8, TO_DEVICE, stream) == OK
    assert graphs.record(int(stream), lambda: runs.append(1) or 0)
    assert runtime.cudaMemcpyAsync(y, memory, 8, TO_HOST, stream) == OK
    graph = made(runtime.cudaStreamEndCapture(stream))
    assert not y.any()
    assert not runs
    assert not graphs.record(int(stream), lambda: 1)
    launched = made(runtime.cudaGraphInstantiate(graph, 0))
    assert runtime.cudaGraphDestroy(graph) == runtime.cudaGraphUpload(launched, stream) == OK
    for offset in (0, 3):
        x[:] = np.arange(8) + offset
        assert runtime.cudaGraphLaunch(launched, stream) == runtime.cudaStreamSynchronize(stream) == OK
        np.testing.assert_array_equal(x, y)
    assert len(runs) == 2
    other = made(runtime.cudaStreamCreate())
    assert runtime.cudaStreamBeginCapture(other, MODE) == runtime.cudaGraphLaunch(launched, other) == OK
    outer = made(runtime.cudaGraphInstantiateWithFlags(made(runtime.cudaStreamEndCapture(other)), 0))
    assert len(runs) == 2
    assert runtime.cudaGraphLaunch(outer, 0) == OK
    assert len(runs) == 3
    assert runtime.cudaStreamBeginCapture(stream, MODE) == runtime.cudaMemsetAsync(memory, 5, 8, stream) == OK
    fresh = made(runtime.cudaStreamEndCapture(stream))
    assert made(runtime.cudaGraphExecUpdate(launched, fresh)).result == 0
    assert runtime.cudaGraphExecUpdate(launched, launched) == (INVALID[0], None)
    assert runtime.cudaGraphLaunch(launched, stream) == runtime.cudaMemcpy(y, memory, 8, TO_HOST) == OK
    assert (y == 5).all()
    assert runtime.cudaGraphExecDestroy(launched) == OK
    assert runtime.cudaGraphExecDestroy(launched) == runtime.cudaGraphLaunch(launched, stream) == INVALID
    assert runtime.cudaGraphInstantiate(graph, 0) == (INVALID[0], None)


def test_errors_of_captured_work_come_at_its_launch(memory, stream):
    y = np.zeros(8, np.uint8)
    assert runtime.cudaStreamBeginCapture(stream, MODE) == OK
    assert runtime.cudaMemcpyAsync(y, memory + 1000, 8, TO_HOST, stream) == OK
    assert runtime.cudaMemsetAsync(memory, 1, 8, stream) == OK
    launched = made(runtime.cudaGraphInstantiate(made(runtime.cudaStreamEndCapture(stream)), 0))
    assert runtime.cudaMemset(memory, 0, 8) == OK
    assert runtime.cudaGraphLaunch(launched, stream) == INVALID
    assert runtime.cudaMemcpy(y, memory, 8, TO_HOST) == OK
    assert not y.any()
    assert runtime.cudaGraphLaunch(launched, memory) == BAD_HANDLE


def test_captures_that_cannot_be(stream):
    name = runtime.cudaError_t
    assert runtime.cudaStreamBeginCapture(0, MODE) == (name.cudaErrorStreamCaptureUnsupported,)
    assert runtime.cudaStreamEndCapture(stream) == (name.cudaErrorIllegalState, None)
    assert runtime.cudaStreamBeginCapture(stream, MODE) == OK
    assert runtime.cudaStreamBeginCapture(stream, MODE) == (name.cudaErrorIllegalState,)
    assert runtime.cudaStreamSynchronize(stream) == (name.cudaErrorStreamCaptureUnsupported,)
    assert made(runtime.cudaStreamIsCapturing(stream)) == runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated
    assert runtime.cudaStreamEndCapture(stream) == (name.cudaErrorStreamCaptureInvalidated, None)
    assert runtime.cudaStreamSynchronize(stream) == OK
    assert runtime.cudaStreamBeginCapture(12345, MODE) == runtime.cudaStreamIsCapturing(12345)[:1] == BAD_HANDLE
    library = device.library()
    assert library.cudaStreamBeginCapture(int(stream), 0) == name.cudaErrorNotSupported


def test_pools_give_memory():
    props = runtime.cudaMemPoolProps()
    props.allocType = runtime.cudaMemAllocationType.cudaMemAllocationTypePinned
    props.location.type = runtime.cudaMemLocationType.cudaMemLocationTypeDevice
    pool = made(runtime.cudaMemPoolCreate(props))
    threshold = runtime.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
    assert runtime.cudaMemPoolSetAttribute(pool, threshold, 2**64 - 1) == OK
    at = made(runtime.cudaMallocFromPoolAsync(10, pool, 0))
    assert runtime.cudaMemset(at, 1, 10) == OK
    assert runtime.cudaMemPoolTrimTo(pool, 0) == runtime.cudaMemPoolDestroy(pool) == runtime.cudaFreeAsync(at, 0) == OK
    assert runtime.cudaMallocFromPoolAsync(10, pool, 0)[0] == INVALID[0]
    own = made(runtime.cudaDeviceGetDefaultMemPool(0))
    assert made(runtime.cudaDeviceGetMemPool(0)) == own
    assert runtime.cudaDeviceGetDefaultMemPool(1)[0].name == "cudaErrorInvalidDevice"


# ---- the device, errors, names


def test_there_is_one_device():
    assert made(runtime.cudaGetDeviceCount()) == 1
    assert runtime.cudaSetDevice(0) == runtime.cudaSetDeviceFlags(0) == runtime.cudaDeviceSynchronize() == OK
    assert runtime.cudaSetDevice(1)[0].name == "cudaErrorInvalidDevice"
    assert made(runtime.cudaGetDevice()) == 0
    found = made(runtime.cudaGetDeviceProperties(0))
    assert b"Dovetail" in found.name
    assert (found.major, found.minor) == (0, 0)
    attribute = runtime.cudaDeviceAttr.cudaDevAttrMultiProcessorCount
    assert made(runtime.cudaDeviceGetAttribute(attribute, 0)) == found.multiProcessorCount > 0
    assert runtime.cudaDeviceGetAttribute(attribute, 1)[0].name == "cudaErrorInvalidDevice"
    assert runtime.cudaDeviceGetAttribute(10**6, 0)[0] == INVALID[0]
    assert runtime.cudaGetDeviceProperties(3)[1] is None
    assert runtime.cudaDeviceGetStreamPriorityRange() == (OK[0], 0, 0)
    assert made(runtime.cudaRuntimeGetVersion()) == made(runtime.cudaDriverGetVersion()) == runtime.CUDART_VERSION


def test_a_reset_takes_everything():
    at, stream = made(runtime.cudaMalloc(8)), made(runtime.cudaStreamCreate())
    others = made(runtime.cudaDeviceGetDefaultMemPool(0))
    assert runtime.cudaDeviceReset() == OK
    assert runtime.cudaFree(at) == INVALID
    assert runtime.cudaStreamSynchronize(stream) == BAD_HANDLE
    assert runtime.cudaMemPoolTrimTo(others, 0) == INVALID
    assert runtime.cudaMemPoolTrimTo(made(runtime.cudaDeviceGetDefaultMemPool(0)), 0) == OK


def test_errors_have_names_and_texts():
    assert runtime.cudaGetErrorName(INVALID[0]) == (OK[0], b"cudaErrorInvalidValue")
    assert runtime.cudaGetErrorString(runtime.cudaError_t(2)) == (OK[0], b"out of memory")
    assert runtime.cudaGetErrorString(12345)[1] == b"unrecognized error code"
    assert driver.cuGetErrorName(driver.CUresult(1)) == (driver.CUresult.CUDA_SUCCESS, b"CUDA_ERROR_INVALID_VALUE")
    assert driver.cuGetErrorString(driver.CUresult(1))[1] == b"invalid argument"
    assert driver.cuGetErrorString(driver.CUresult.CUDA_ERROR_INVALID_CONTEXT)[1]
    assert driver.cuGetErrorName(123456) == (driver.CUresult.CUDA_ERROR_INVALID_VALUE, None)
    assert nvrtc.nvrtcGetErrorString(nvrtc.nvrtcCreateProgram(b"", b"", 0, [], [])[0])[1] == b"NVRTC_ERROR_PROGRAM_CREATION_FAILURE"
    assert nvrtc.nvrtcVersion()[0] == 0


def test_enumerations_are_those_of_the_real_bindings():
    for standin, name in ((runtime, "cuda.bindings.runtime"), (driver, "cuda.bindings.driver"), (nvrtc, "cuda.bindings.nvrtc")):
        real = pytest.importorskip(name)
        checked = 0
        for known, enumeration in vars(standin).items():
            if not hasattr(enumeration, "__members__"):
                continue
            for member, number in enumeration.__members__.items():
                assert int(getattr(getattr(real, known), member)) == int(number), (known, member)
                checked += 1
        assert checked >= 19
        if standin is runtime:
            assert repr(standin.cudaError_t(1)) == repr(real.cudaError_t(1))
            assert str(standin.cudaError_t(1)) == str(real.cudaError_t(1))
        for function in (name for name in standin.__all__ if callable(getattr(standin, name))):
            assert hasattr(real, function), function


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_library_compiles_for_every_machine_and_needs_no_other(machine, tmp_path):
    """The linker refuses undefined symbols; code for another machine is not run."""
    target = dataclasses.replace(CpuTarget.of(Target.parse("cpu:generic")), machine=machine)
    with override(cc="", cache=tmp_path):
        built = compile_library(device.source(), target, device.LIBRARY)
    assert built.read_bytes()[:4] == b"\x7fELF"


def test_older_names_are_the_same_objects():
    assert old_runtime.cudaMalloc is runtime.cudaMalloc
    assert old_runtime.cudaError_t is runtime.cudaError_t
    assert old_driver.cuInit is driver.cuInit
    assert standin_pycuda.VERSION[0] >= 2020


def test_addresses():
    x = np.zeros(4)
    x.flags.writeable = False
    assert address(None) == 0
    assert address(x) == x.ctypes.data
    assert address(Handle(7)) == address(np.int64(7)) == address(ctypes.c_void_p(7)) == 7
    assert address(ctypes.c_void_p()) == address(b"") == 0
    number = ctypes.c_int(5)
    assert address(ctypes.pointer(number)) == address(number) == ctypes.addressof(number)
    handle = Handle(9)
    assert ctypes.c_size_t.from_address(handle.getPtr()).value == 9
    with pytest.raises(TypeError, match="read-only array"):
        address(x, writable=True)
    with pytest.raises(TypeError, match="read-only bytes"):
        address(b"abc", writable=True)
    with pytest.raises(TypeError, match="expected an address"):
        address("text")
