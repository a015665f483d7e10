"""The driver of a real device against a stand-in for its API, packed arguments, device memory, arrays for others, library calls."""

import ctypes
import gc
import struct
import sys

import numpy as np
import pytest

from dovetail.core.errors import BindingError, DeviceError, DeviceLostError, UsageError
from dovetail.device.cuda import (
    Arguments,
    DeviceMemory,
    Launch,
    Properties,
    TensorMap,
    driver_cuda,
    require_capability,
)
from dovetail.device.cuda.driver_cuda import CudaDriver
from dovetail.device.cuda.driver_host import HostDriver, memory_at
from dovetail.device.cuda.memory import BlockCache, Uploader, parts
from dovetail.runtime.cuda.arrays import DeviceArray, stream_handle

api = pytest.importorskip("cuda.bindings.driver")

DEVICES = 2


class Recorder:
    """cuda.bindings.driver whose functions record their arguments; enumerations and structures are the real ones."""

    def __init__(self):
        self.calls = []
        self.failing = {}
        self.current = []
        self.next = 1000
        self.mode = "global"
        self.primary = set()
        self.ids = {}

    def __getattr__(self, name):
        found = getattr(api, name)  # no function that does not exist
        if not name.startswith("cu") or name[2:3].islower():
            return found

        def call(*arguments):
            self.calls.append((name, arguments))
            if name in self.failing:
                return (self.failing[name], None)
            result = getattr(self, "_" + name, None)
            values = () if result is None else result(*arguments)
            return (api.CUresult.CUDA_SUCCESS, *values)

        return call

    def _fresh(self):
        self.next += 1
        return (self.next,)

    def _cuGetErrorString(self, code):
        return (b"the reason",)

    def _cuDeviceGetCount(self):
        return (DEVICES,)

    def _cuDeviceGet(self, ordinal):
        return (100 + ordinal,)

    def _cuDeviceGetAttribute(self, kind, device):
        return ({"COMPUTE_CAPABILITY_MAJOR": 9, "COMPUTE_CAPABILITY_MINOR": 0}.get(kind.name[20:], 132),)

    def _cuDeviceGetName(self, length, device):
        return (b"A Device\0\0\0",)

    def _cuDeviceTotalMem(self, device):
        return (80 << 30,)

    def _cuDriverGetVersion(self):
        return (13000,)

    def _cuDevicePrimaryCtxRetain(self, device):
        self.primary.add(device)
        return (200 + device - 100,)

    def _cuDevicePrimaryCtxGetState(self, device):
        return (0, device in self.primary)

    def _cuCtxGetCurrent(self):
        return (self.current[-1] if self.current else 0,)

    def _cuCtxGetDevice(self):
        return (100 + self.current[-1] % 10,)

    def _cuCtxGetId(self, context):
        return (self.ids.setdefault(context, 5000 + len(self.ids)),)

    def _cuDeviceGetDefaultMemPool(self, device):
        return (300,)

    def _cuCtxPushCurrent(self, context):
        self.current.append(context)
        return ()

    def _cuCtxPopCurrent(self):
        return (self.current.pop(),)

    def _cuMemGetInfo(self):
        return (5 << 20, 10 << 20)

    def _cuThreadExchangeStreamCaptureMode(self, mode):
        self.mode, before = mode, self.mode
        return (before,)

    def _cuStreamIsCapturing(self, stream):
        return (api.CUstreamCaptureStatus(1 if stream == 9 else 0),)

    def _cuStreamGetCaptureInfo(self, stream):
        return ("status", 1, "graph", ["node"], ["edge"], 1)

    def _cuEventElapsedTime(self, start, end):
        return (0.25,)

    def _cuTensorMapEncodeTiled(self, *arguments):
        found = api.CUtensorMap()
        found.opaque = [api.cuuint64_t(i) for i in range(16)]
        return (found,)

    def _cuModuleGetFunction(self, module, name):
        return (api.CUfunction(77),)

    def _handle(self, *_):
        return self._fresh()

    _cuMemAlloc = _cuMemAllocAsync = _cuStreamCreate = _cuEventCreate = _handle
    _cuStreamEndCapture = _cuGraphInstantiate = _cuModuleLoadData = _handle

    def names(self):
        return [name for name, _ in self.calls]

    def last(self, name):
        return next(arguments for called, arguments in reversed(self.calls) if called == name)


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(driver_cuda, "_bindings", lambda: made)
    return made


def test_one_device_is_asked_for_and_no_other(recorder):
    driver = CudaDriver(1)
    assert driver.properties == Properties(1, "A Device", 90, 132, 80 << 30, 13000)
    with driver.active():
        assert recorder.current == [201] and recorder.mode == api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        driver.free(driver.allocate(100))
    assert recorder.current == [] and recorder.mode == "global"
    for name, arguments in recorder.calls:
        if name in ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent"):
            assert arguments[0] in (1, 101, 201), (name, arguments)
    assert not {"cuCtxSetCurrent", "cuDevicePrimaryCtxReset", "cuCtxCreate"} & set(recorder.names())


@pytest.fixture
def drivers(monkeypatch):
    """The module's drivers, of which there are none yet."""
    module = sys.modules["dovetail.device.cuda.driver"]
    for known in ("_drivers", "_elsewhere"):
        monkeypatch.setattr(module, known, {})
    return module


def test_a_context_of_the_clients_is_worked_in(recorder, drivers):
    assert drivers.current_ordinal() is None
    recorder.current.append(301)  # on cuda:1
    assert drivers.current_ordinal() == 1
    made = drivers.driver(1)
    assert made is drivers.driver(1) and recorder.primary == set(), "the primary context is not made"
    with made.active():
        assert recorder.current == [301, 301]
    other = drivers.driver(0)
    assert recorder.primary == {100} and other.properties.ordinal == 0
    recorder.current[:] = [311]
    assert drivers.driver(1) not in (made, other), "another context, another driver"
    recorder.current[:] = []
    primary = drivers.driver(1)
    assert primary not in (made, other) and recorder.primary == {100, 101}
    with primary.active():
        assert recorder.current == [201] and drivers.driver(1) is primary, "the primary context is no client's"
        recorder.current.append(301)
        assert drivers.driver(1) is made
        recorder.current.pop()


def test_a_context_that_the_client_ends_takes_all_that_was_made_in_it(recorder, drivers):
    recorder.current.append(301)
    driver = drivers.driver(1)
    with driver.active():
        kept, late = DeviceMemory(driver, 100), DeviceMemory(driver, 100)
    del kept
    gc.collect()
    assert recorder.names().count("cuMemFree") == 1
    recorder.current.clear()
    recorder.ids[301] = 9999  # its handle is that of another context by now
    recorder.calls.clear()
    del late
    gc.collect()
    assert {"cuMemFree", "cuCtxPushCurrent"}.isdisjoint(recorder.names())
    ended = r"cuda:1: the client has ended the CUDA context that he made, expected .*; load the engine again"
    with pytest.raises(DeviceLostError, match=ended), driver.active():
        pass
    recorder.current.append(301)
    assert drivers.driver(1) is not driver
    recorder.failing["cuCtxGetId"] = api.CUresult.CUDA_ERROR_INVALID_CONTEXT
    assert not drivers._elsewhere[9999].alive()


def test_devices_that_do_not_exist(recorder):
    with pytest.raises(DeviceError, match="got the device cuda:2, expected one of 2: cuda:0 to cuda:1; check CUDA_VISIBLE_DEVICES"):
        CudaDriver(2)
    recorder.failing["cuInit"] = api.CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(DeviceError, match=r"cuInit failed with CUDA_ERROR_NO_DEVICE \(the reason\); check that the machine has"):
        CudaDriver(0)


def test_a_machine_without_a_driver(monkeypatch, recorder):
    def missing(*_):
        raise RuntimeError("Failed to dlopen libcuda.so.1\nand more")

    recorder._cuInit = missing
    with pytest.raises(DeviceError, match=r'got no usable NVIDIA driver \(Failed to dlopen libcuda.so.1\), expected one; install'):
        CudaDriver(0)


def test_a_driver_older_than_its_bindings(recorder):
    driver = CudaDriver(0)

    def missing(*_):
        raise RuntimeError('Function "cuMemAlloc_v2" not found')

    recorder._cuMemAlloc = missing
    with driver.active(), pytest.raises(DeviceError, match=r"the NVIDIA driver has no cuMemAlloc .*, expected a newer one; update it"):
        driver.allocate(8)


def test_packages_that_are_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"cuda-bindings cannot be imported .* pip install 'dovetail\[cuda\]'"):
        driver_cuda._bindings()


def test_every_failure_is_named(recorder):
    driver = CudaDriver(0)
    recorder.failing["cuStreamSynchronize"] = api.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceError, match=r"cuda:0: cuStreamSynchronize failed with CUDA_ERROR_ILLEGAL_ADDRESS .* lost to this process"):
        driver.synchronize(5)
    driver = CudaDriver(0)
    recorder.failing["cuMemAlloc"] = api.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceError, match=r"cuda:0: cannot allocate 3.0 MiB, 5.0 of 10.0 MiB are free; use smaller shapes"):
        driver.allocate(3 << 20)


def test_a_kernel_that_ends_the_context_is_the_last_thing_heard_of_the_device(recorder):
    driver, raw = CudaDriver(0), ctypes.create_string_buffer(128)
    recorder._cuMemHostAlloc = lambda *_: (ctypes.addressof(raw),)
    with driver.active():
        memory, staging = DeviceMemory(driver, 100), driver.host_memory(100)
    reason = r"cuda:0: cuStreamSynchronize failed with CUDA_ERROR_MISALIGNED_ADDRESS \(the reason\): a kernel used an address that"
    with pytest.raises(DeviceLostError, match=reason + r".* is lost to this process: restart it") as found, driver.active():
        for name in ("cuStreamSynchronize", "cuCtxPopCurrent", "cuThreadExchangeStreamCaptureMode", "cuMemFree", "cuMemFreeHost"):
            recorder.failing[name] = api.CUresult.CUDA_ERROR_MISALIGNED_ADDRESS
        driver.synchronize(5)
    assert found.value.__context__ is None, "the first error alone"
    recorder.calls.clear()
    for _ in range(2):
        with pytest.raises(DeviceLostError, match=reason), driver.active():
            raise AssertionError("not to be reached")
    del memory, staging
    gc.collect()
    assert recorder.calls == [], "what the context had went with it"


def test_functions_are_given_back(recorder):
    driver = CudaDriver(0)
    function = driver.load(b"code", "entry", 100)
    module = recorder.next
    driver.unload(function)
    assert recorder.last("cuModuleUnload") == (module,)
    recorder.failing["cuFuncSetAttribute"] = api.CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(DeviceError, match="cuFuncSetAttribute failed"):
        driver.load(b"code", "entry", 100 << 10)
    assert recorder.last("cuModuleUnload") == (module + 1,), "a function that cannot be had leaves no module"


def test_a_forked_process_is_told_so(recorder, monkeypatch):
    driver = CudaDriver(0)
    monkeypatch.setattr(driver_cuda.os, "getpid", lambda: -1)
    with pytest.raises(DeviceError, match="got a forked process"), driver.active():
        pass


def launched(recorder):
    config, function, table, extra = recorder.last("cuLaunchKernelEx")
    assert extra == 0
    return config, function, table


@pytest.mark.parametrize(("pdl", "cluster"), [(False, 1), (True, 1), (False, 2), (True, 4)])
def test_launches(recorder, pdl, cluster):
    driver = CudaDriver(0)
    arguments = Arguments([0, 0], [5, -3], 64)
    arguments.set_pointer(0, 0x7F0000001000)
    arguments.set_pointer(1, 0x7F0000002000)
    driver.launch(Launch(api.CUfunction(77), (4, 5, 6), 256, 70_000, arguments, pdl, cluster), 9)
    config, function, table = launched(recorder)
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (4, 5, 6)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ, config.sharedMemBytes) == (256, 1, 1, 70_000)
    assert int(config.hStream) == 9 and int(function) == 77 and config.numAttrs == pdl + (cluster > 1)
    found = {int(a.id): a.value for a in (config.attrs or [])}
    ids = api.CUlaunchAttributeID
    serial, clusters = int(ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION), int(ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
    assert (serial in found) == pdl and (clusters in found) == (cluster > 1)
    if pdl:
        assert found[serial].programmaticStreamSerializationAllowed == 1
    if cluster > 1:
        size = found[clusters].clusterDim
        assert (size.x, size.y, size.z) == (cluster, 1, 1)
    addresses = struct.unpack("<6Q", ctypes.string_at(table, 48))
    words = [ctypes.string_at(a, 8) for a in addresses]
    assert [struct.unpack("<Q", w)[0] for w in words[:2]] == [0x7F0000001000, 0x7F0000002000]
    assert [struct.unpack("<i", w[:4])[0] for w in words[2:4]] == [5, -3]
    assert [struct.unpack("<Q", w)[0] for w in words[4:]] == [64, 0]  # scratch, profile


def test_shared_memory_beyond_the_default_is_asked_for(recorder):
    driver = CudaDriver(0)
    driver.load(b"code", "k_1", 48 << 10)
    assert "cuFuncSetAttribute" not in recorder.names()
    driver.load(b"code", "k_1", (48 << 10) + 1)
    function, kind, size = recorder.last("cuFuncSetAttribute")
    assert (int(function), size) == (77, (48 << 10) + 1) and "MAX_DYNAMIC_SHARED" in kind.name
    assert recorder.last("cuModuleGetFunction")[1] == b"k_1"


def test_tensor_maps_are_encoded_innermost_first(recorder):
    driver = CudaDriver(0)
    encoded = driver.encode(TensorMap(0x1000, 10, 2, (3, 5, 64), (400, 80, 1), (1, 4, 64), 3))
    kind, rank, pointer, shape, strides, box, elements, interleave, swizzle, promotion, fill = recorder.last("cuTensorMapEncodeTiled")
    assert kind == api.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16  # which Triton calls 10
    assert (rank, pointer) == (3, 0x1000)
    assert [[int(v) for v in row] for row in (shape, strides, box, elements)] == [[64, 5, 3], [160, 800], [64, 4, 1], [1, 1, 1]]
    assert swizzle == api.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B and int(interleave) == 0 and int(promotion) == 2 and int(fill) == 0
    assert encoded == np.arange(16, dtype=np.uint64).tobytes()


def test_captures_and_updates(recorder):
    driver = CudaDriver(0)
    arguments = Arguments([0], [])
    launch = Launch(api.CUfunction(77), (7, 1, 1), 128, 32, arguments)
    driver.begin_capture(5)
    assert recorder.last("cuStreamBeginCapture")[1] == api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    driver.launch(launch, 5)
    assert driver.captured(5) == "node"
    graph = driver.end_capture(5)
    driver.update(graph, "node", launch)
    executable, node, params = recorder.last("cuGraphExecKernelNodeSetParams")
    assert (executable, node) == (graph[0], "node")
    assert (int(params.func), params.gridDimX, params.blockDimX, params.sharedMemBytes) == (77, 7, 128, 32)
    raw = ctypes.string_at(params.getPtr(), 48)
    assert struct.unpack_from("<Q", raw, 40)[0] == arguments.table
    driver.launch_graph(graph, 6)
    assert recorder.last("cuGraphLaunch") == (graph[0], 6)
    driver.destroy_graph(graph)
    assert [recorder.last(n)[0] for n in ("cuGraphExecDestroy", "cuGraphDestroy")] == list(graph)
    assert driver.is_capturing(9) and not driver.is_capturing(8)
    assert driver.elapsed_ns(1, 2) == 250_000.0
    driver.record(1, 5, external=True)
    assert recorder.last("cuEventRecordWithFlags") == (1, 5, 1)


# --- arguments ------------------------------------------------------------------------------------


def test_descriptors_are_by_value_and_followed_by_shape_and_strides():
    arguments = Arguments([0, 2, 0], [42])
    described = TensorMap(0x2000, 6, 2, (10, 64), (72, 1), (8, 64), 3)
    arguments.set_map(1, described, bytes(range(128)))
    arguments.set_pointer(0, 11)
    arguments.set_pointer(2, 33)
    addresses = struct.unpack("<10Q", ctypes.string_at(arguments.table, 80))
    assert addresses[1] % 64 == 0 and ctypes.string_at(addresses[1], 128) == bytes(range(128))
    ints = [struct.unpack("<i", ctypes.string_at(a, 4))[0] for a in addresses[2:4]]
    longs = [struct.unpack("<q", ctypes.string_at(a, 8))[0] for a in addresses[4:6]]
    assert (ints, longs) == ([10, 64], [72, 1])
    assert arguments.values() == [11, described, 33, 42]
    arguments.set_map(1, described, bytes(128))
    assert ctypes.string_at(addresses[1], 128) == bytes(128)


def test_arguments_of_nothing_and_of_trailing_maps():
    assert Arguments([], []).values() == []
    arguments = Arguments([3], [1, 2])
    described = TensorMap(0, 6, 2, (1, 2, 3), (6, 3, 1), (1, 2, 3), 0)
    arguments.set_map(0, described, bytes(128))
    assert arguments.values() == [described, 1, 2]


# --- memory ---------------------------------------------------------------------------------------


def host():
    return HostDriver(lambda *_: None)


def test_device_memory_frees_itself():
    driver = host()
    with driver.active():
        memory = DeviceMemory(driver, 0)
        assert memory.address % 256 == 0 and driver.allocations == 1
    del memory
    assert driver.allocations == 0


def test_parts_do_not_overlap():
    offsets, total = parts([1, 0, 256, 257, 5])
    assert offsets == [0, 256, 256, 512, 1024] and total == 1280
    assert parts([]) == ([], 0)


def test_uploads_in_pieces(monkeypatch):
    from dovetail.device.cuda import memory as module

    monkeypatch.setattr(module, "_CHUNK", 1024)
    monkeypatch.setattr(module, "_PIECE", 128)
    monkeypatch.setattr(module, "_SMALL", 16)
    driver, rng = host(), np.random.default_rng(0)
    with driver.active():
        uploader = Uploader(driver, driver.create_stream())
        for sizes in ([0], [1], [16], [17], [127, 128, 129], [1000, 0, 24, 1], [1023], [1024], [1025], [300] * 20, [3] * 30, [5, 2500, 7]):
            arrays = [rng.integers(0, 255, size).astype(np.uint8) for size in sizes]
            lying = uploader.host_parts([a.nbytes for a in arrays[1::3]])  # some of them in page-locked memory
            for memory, i in zip(lying, range(1, len(arrays), 3), strict=True):
                memory[:] = arrays[i]
                arrays[i] = memory
            offsets, total = parts(sizes)
            block = DeviceMemory(driver, total)
            uploader.upload(block.address, list(zip(offsets, arrays, strict=True)))
            for offset, array in zip(offsets, arrays, strict=True):
                np.testing.assert_array_equal(driver.view(block.address + offset, array.nbytes), array)
        uploader.finish()


def test_many_small_uploads_are_few_calls():
    driver = host()
    with driver.active():
        uploader = Uploader(driver, driver.create_stream())
        offsets, total = parts([1000] * 300)
        block = DeviceMemory(driver, total)
        uploader.upload(block.address, [(o, np.full(1000, i % 250, np.uint8)) for i, o in enumerate(offsets)])
        assert driver.log["upload"] == 1
        assert all((driver.view(block.address + o, 1000) == i % 250).all() for i, o in enumerate(offsets))


def test_blocks_serve_again_when_the_device_is_done_with_them():
    driver, settled = host(), []
    with driver.active():
        cache = BlockCache(driver, 1000, lambda: settled.append(driver.allocations))
        first = cache.take(600)
        address = first.address
        second, large = cache.take(600), cache.take(1001)
        assert driver.allocations == 3 and not settled
        del first, second, large
        gc.collect()
        assert driver.allocations == 1 and cache.held == 600, "what is beyond the limit goes back"
        again = cache.take(600)
        assert again.address == address and settled == [1] and cache.held == 0
        assert cache.take(599).address != address and len(settled) == 1
        gc.collect()
        cache.release()
        assert driver.allocations == 1 and cache.held == 0
        del again, cache
    gc.collect()
    assert driver.allocations == 0


def test_page_locked_memory_is_copied_without_another_copy():
    driver = host()
    with driver.active():
        uploader, block = Uploader(driver, driver.create_stream()), DeviceMemory(driver, 3 << 20)
        (memory,) = uploader.host_parts([3 << 20])
        memory[:] = np.arange(3 << 20) % 251
        before = driver.log["host_memory"]
        uploader.upload(block.address, [(0, memory.view(np.float16)[: 1 << 20])])
        uploader.upload(block.address, [(0, memory)])
        assert driver.log["host_memory"] == before and driver.log["upload"] == 2
        np.testing.assert_array_equal(driver.view(block.address, 3 << 20), memory)
        more = uploader.host_parts([8 << 20, 6 << 20])
        assert driver.log["host_memory"] == before, "that would be too much"
        uploader.upload(block.address, [(0, more[0][: 2 << 20])])
        assert driver.log["host_memory"] == before + 2, "two buffers between"
        del memory
        gc.collect()
        uploader.host_parts([8 << 20, 6 << 20])
        assert driver.log["host_memory"] == before + 4


def test_the_host_driver_punishes_what_a_device_would():
    driver = host()
    with pytest.raises(AssertionError, match="context is not current"):
        driver.allocate(5)
    with driver.active():
        pointer = driver.allocate(100)
        with pytest.raises(DeviceError, match="which no allocation holds"):
            driver.upload(pointer + 90, np.zeros(11, np.uint8), 0)
        with pytest.raises(DeviceError, match="INVALID_VALUE"):
            driver.encode(TensorMap(pointer + 8, 6, 2, (8, 8), (8, 1), (8, 8), 0))
    assert memory_at(0, 0).size == 0


# --- capabilities ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("isa", "capability", "fits"),
    [("sm_80", 80, True), ("sm_80", 86, True), ("sm_80", 89, True), ("sm_86", 80, False), ("sm_80", 90, False), ("sm_90", 90, True),
     ("sm_90", 100, False), ("sm_90", 89, False)],
)  # fmt: skip
def test_code_runs_on_its_own_major_capability(isa, capability, fits):
    found = Properties(0, "A Device", capability, 1, 1, 1)
    if fits:
        require_capability("plan", f"cuda:{isa}", found)
        return
    with pytest.raises(DeviceError, match=rf"compute capability {capability / 10} \(A Device, cuda:0\), expected one for {isa}"):
        require_capability("plan", f"cuda:{isa}", found)


# --- arrays and streams of others -----------------------------------------------------------------


def test_our_arrays_are_exported_by_dlpack():
    from dovetail.runtime.arrays import dlpack_tensor
    from dovetail.runtime.cuda import arrays

    driver = host()
    before = len(arrays._exported)
    array = DeviceArray.of(driver, np.arange(6, dtype=np.int16).reshape(2, 3))
    capsule = array.__dlpack__()
    tensor, kind = dlpack_tensor("x", capsule)
    assert (tensor.data, tensor.ndim, kind) == (array.address, 2, np.int16)
    assert [tensor.shape[i] for i in range(2)] == [2, 3] and [tensor.strides[i] for i in range(2)] == [3, 1]
    assert (tensor.device.type, tensor.device.id) == (2, 0)
    assert len(arrays._exported) == before + 1
    del capsule, tensor
    assert len(arrays._exported) == before
    np.testing.assert_array_equal(array.numpy(), np.arange(6).reshape(2, 3))


def test_types_that_dlpack_lacks():
    with pytest.raises(BufferError, match="DLPack has no type"):
        DeviceArray.of(host(), np.zeros(3, "V3")).__dlpack__()


class _Protocol:
    def __cuda_stream__(self):
        return (0, 17)


class _Torch:
    cuda_stream = 0


class _Cupy:
    ptr = 5


def test_stream_handles():
    assert [stream_handle(s) for s in (None, 3, _Protocol(), _Torch(), _Cupy())] == [None, 3, 17, 0, 5]
    with pytest.raises(UsageError, match="stream: got object"):
        stream_handle(object())


def test_bindings_say_what_is_wrong_with_an_exporter():
    from dovetail.runtime.cuda.arrays import as_device

    class Broken:
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **_):
            raise BufferError("requires grad")

    with pytest.raises(BindingError, match=r"input 'x': Broken does not export its memory \(requires grad\)"):
        as_device("input 'x'", Broken(), np.dtype("f4"), host(), 1, False)
