"""The stand-in for pycuda: memory, copies, contexts, events, arrays."""

import gc

import numpy as np
import pytest

from dovetail.tensorrt.standins import device
from dovetail.tensorrt.standins.cuda.bindings import runtime
from dovetail.tensorrt.standins.pycuda import driver as pycuda

RNG = np.random.default_rng(0)
BAD_HANDLE = (runtime.cudaError_t.cudaErrorInvalidResourceHandle,)


@pytest.fixture
def context():
    """A context of pycuda, current to this thread."""
    pycuda.init()
    found = pycuda.Device(0).make_context()
    yield found
    found.pop()


# ---- pycuda


def test_pycuda_copies(context):
    x = RNG.normal(size=(3, 5)).astype(np.float32)
    at = pycuda.mem_alloc(x.nbytes)
    assert int(at) == at.__index__() == at.get_pointer()
    y = pycuda.pagelocked_empty((3, 5), np.float32)
    stream = pycuda.Stream()
    pycuda.memcpy_htod_async(at, x, stream)
    pycuda.memcpy_dtoh_async(y, at, stream)
    stream.synchronize()
    assert stream.is_done()
    np.testing.assert_array_equal(x, y)
    assert bytes(at.as_buffer(8, 4)) == x.tobytes()[4:12]
    other = pycuda.to_device(np.zeros(15, np.float32))
    pycuda.memcpy_dtod(other, at, 60)
    np.testing.assert_array_equal(pycuda.from_device(int(other), (3, 5), np.float32), x)
    pycuda.memset_d32(other, 7, 15)
    np.testing.assert_array_equal(pycuda.from_device_like(other, np.zeros(15, np.int32)), np.full(15, 7))
    pycuda.memset_d8(other, 1, 60)
    pycuda.memset_d16(other, 2, 2)
    np.testing.assert_array_equal(pycuda.from_device(other, 4, np.uint16), [2, 2, 0x101, 0x101])


def test_pycuda_refuses_what_lies_outside(context):
    at = pycuda.mem_alloc(8)
    with pytest.raises(pycuda.LogicError, match="invalid argument"):
        pycuda.memcpy_htod(at, np.zeros(9, np.uint8))
    with pytest.raises(pycuda.LogicError, match="invalid argument"):
        pycuda.memcpy_dtoh(np.zeros(8, np.uint8), int(at) + 1)
    with pytest.raises(pycuda.LogicError, match="as_buffer"):
        at.as_buffer(8, 1)
    at.free()
    with pytest.raises(pycuda.LogicError, match="invalid argument"):
        at.free()
    with pytest.raises(pycuda.LogicError, match="cuMemAlloc"):
        pycuda.mem_alloc(0)
    with pytest.raises(pycuda.MemoryError, match="out of memory"):
        pycuda.mem_alloc(2**62)
    with pytest.raises(ValueError, match="not contiguous"):
        pycuda.memcpy_htod(8, np.zeros((4, 4))[:, ::2])
    with pytest.raises(ValueError, match="read-only"):
        pycuda.memcpy_dtoh(np.broadcast_to(np.float32(0), (1,)), 8)
    with pytest.raises(TypeError, match="NumPy scalar"):
        pycuda.memcpy_htod(8, np.float32(1))


def test_pycuda_memory_lives_as_long_as_it_is_held(context):
    at = pycuda.mem_alloc(16)
    number = int(at)
    assert device.find(number) is not None
    del at
    gc.collect()
    assert device.find(number) is None
    x = pycuda.pagelocked_zeros(10, np.int64)[2:5]
    number = x.ctypes.data
    assert device.find(number)[0] == 1
    x[:] = 3
    del x
    gc.collect()
    assert device.find(number) is None
    z = pycuda.managed_zeros((2, 3), np.float16, order="F")
    assert z.flags.f_contiguous
    assert device.find(z.ctypes.data)[0] == 3
    assert pycuda.pagelocked_zeros_like(z).flags.f_contiguous
    assert pycuda.pagelocked_empty(0, np.float32).size == 0


def test_pycuda_needs_a_context():
    pycuda.init()
    with pytest.raises(pycuda.LogicError, match="no currently active context"):
        pycuda.mem_alloc(8)
    with pytest.raises(pycuda.LogicError, match="context"):
        pycuda.Context.pop()
    with pytest.raises(pycuda.LogicError, match="invalid device ordinal"):
        pycuda.Device(1)
    context = pycuda.Device(0).retain_primary_context()
    context.push()
    assert pycuda.Context.get_current() == context
    assert pycuda.Context.get_device() == pycuda.Device(0)
    pycuda.Context.synchronize()
    pycuda.Context.pop()
    assert pycuda.Context.get_current() is None
    made = pycuda.Device(0).make_context(pycuda.ctx_flags.SCHED_AUTO)
    made.detach()
    assert not made.alive
    with pytest.raises(pycuda.LogicError, match="invalid device context"):
        made.push()


def test_pycuda_names_its_device(context):
    found = pycuda.Device(0)
    assert pycuda.Device.count() == 1
    assert found.name() == device.NAME
    assert found.compute_capability() == (0, 0)
    assert found.total_memory() == pycuda.mem_get_info()[1] or abs(found.total_memory() - pycuda.mem_get_info()[1]) < 2**20
    count = pycuda.device_attribute.MULTIPROCESSOR_COUNT
    assert found.get_attribute(count) == found.get_attributes()[count] > 0
    assert pycuda.get_version()[0] * 1000 + pycuda.get_version()[1] * 10 == pycuda.get_driver_version()


def test_pycuda_events(context):
    stream = pycuda.Stream()
    first, second = pycuda.Event(), pycuda.Event(pycuda.event_flags.BLOCKING_SYNC)
    first.record(stream)
    second.record(stream).synchronize()
    stream.wait_for_event(second)
    assert second.query()
    assert second.time_since(first) == first.time_till(second) >= 0
    handle = stream.handle
    del stream, first, second
    gc.collect()
    assert runtime.cudaStreamSynchronize(handle) == BAD_HANDLE


def test_pycuda_arrays(context):
    from dovetail.tensorrt.standins.pycuda import compiler, gpuarray, tools

    x = RNG.normal(size=(2, 3)).astype(np.float32)
    a = gpuarray.to_gpu(x)
    np.testing.assert_array_equal(a.get(), x)
    np.testing.assert_array_equal(a.get(pagelocked=True), x)
    assert (a.ptr, a.nbytes, a.ndim, len(a), a.strides) == (int(a.gpudata), 24, 2, 2, (12, 4))
    assert a.__cuda_array_interface__["data"] == (a.ptr, False)
    np.testing.assert_array_equal(a.reshape(3, -1).get(), x.reshape(3, 2))
    np.testing.assert_array_equal(a.ravel().get(), x.ravel())
    np.testing.assert_array_equal(a.view(np.int32).get(), x.view(np.int32))
    b = gpuarray.to_gpu(np.asfortranarray(x))
    assert b.strides == (4, 8)
    np.testing.assert_array_equal(b.copy().get(), x)
    assert (gpuarray.zeros((2, 2)).get() == 0).all()
    assert (gpuarray.full(3, np.float32(2)).get() == 2).all()
    assert (gpuarray.zeros_like(a).get() == 0).all()
    y = np.empty((2, 3), np.float32)
    assert gpuarray.empty_like(a).fill(4).get_async(ary=y) is y
    assert (y == 4).all()
    assert gpuarray.empty(0, np.float32).get().shape == (0,)
    with pytest.raises(ValueError, match="same size"):
        a.set(np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="dtype"):
        a.set(np.zeros((2, 3)))
    with pytest.raises(pycuda.CompileError, match="no GPU"):
        compiler.SourceModule("__global__ void f() {}")
    pool = tools.DeviceMemoryPool()
    assert gpuarray.empty(4, np.int8, pool.allocate).fill(3).get().tolist() == [3] * 4
    tools.make_default_context().pop()
