"""The stand-in for CUDA's driver API: copies, its device, contexts."""

import threading

import numpy as np
import pytest

from dovetail.tensorrt.standins import device
from dovetail.tensorrt.standins.cuda.bindings import driver, runtime


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


# ---- the driver API


def test_the_driver_api_copies(memory):
    assert driver.cuInit(0) == (driver.CUresult.CUDA_SUCCESS,)
    good = (driver.CUresult.CUDA_SUCCESS,)
    at = made(driver.cuMemAlloc(40))
    assert isinstance(at, driver.CUdeviceptr)
    x, y = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
    stream = made(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    assert driver.cuMemcpyHtoDAsync(at, x, 40, stream) == driver.cuMemcpyDtoD(memory, at, 40) == good
    assert driver.cuMemcpyDtoHAsync(y, memory, 40, stream) == driver.cuStreamSynchronize(stream) == good
    np.testing.assert_array_equal(x, y)
    assert driver.cuMemcpyHtoD(int(at) + 4, x, 40) == (driver.CUresult.CUDA_ERROR_INVALID_VALUE,)
    assert driver.cuMemsetD32(at, 0x3F800000, 10) == driver.cuMemcpyDtoH(y, at, 40) == good
    assert (y == 1).all()
    assert driver.cuMemsetD8(at, 0, 40) == driver.cuMemcpy(y.ctypes.data, at, 40) == good
    assert (y == 0).all()
    first, second = made(driver.cuEventCreate(0)), made(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_BLOCKING_SYNC))
    assert driver.cuEventRecord(first, stream) == driver.cuEventRecord(second, stream) == driver.cuEventSynchronize(second) == good
    assert made(driver.cuEventElapsedTime(first, second)) >= 0
    assert driver.cuEventDestroy(first) == driver.cuEventDestroy(second) == driver.cuStreamDestroy(stream) == driver.cuMemFree(at) == good
    assert driver.cuMemFree(at) == (driver.CUresult.CUDA_ERROR_INVALID_VALUE,)
    assert driver.cuMemAlloc(0)[0] == driver.CUresult.CUDA_ERROR_INVALID_VALUE
    assert driver.cuModuleLoadData(b"")[0] == driver.cuLaunchKernel()[0] == driver.CUresult.CUDA_ERROR_NOT_SUPPORTED


def test_the_driver_api_says_what_its_device_is():
    driver.cuInit(0)
    assert made(driver.cuDeviceGetCount()) == 1
    found = made(driver.cuDeviceGet(0))
    assert driver.cuDeviceGet(1)[0] == driver.CUresult.CUDA_ERROR_INVALID_DEVICE
    assert made(driver.cuDeviceGetName(64, found)).rstrip(b"\0").decode() == device.NAME
    assert len(made(driver.cuDeviceGetName(8, found))) == 8
    assert made(driver.cuDeviceTotalMem(found)) == device.total_memory()
    count = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    assert made(driver.cuDeviceGetAttribute(count, found)) == device.attributes()["cudaDevAttrMultiProcessorCount"]
    assert driver.cuDeviceComputeCapability(found)[1:] == (0, 0)
    assert driver.cuInit(1) == (driver.CUresult.CUDA_ERROR_INVALID_VALUE,)


def test_contexts_are_a_stack_per_thread():
    driver.cuInit(0)
    bad = driver.CUresult.CUDA_ERROR_INVALID_CONTEXT
    assert int(made(driver.cuCtxGetCurrent())) == 0
    assert driver.cuCtxSynchronize() == (bad,)
    first = made(driver.cuCtxCreate(0, made(driver.cuDeviceGet(0))))
    second = made(driver.cuCtxCreate(None, 0, 0))
    assert made(driver.cuCtxGetCurrent()) == second
    seen = []
    thread = threading.Thread(target=lambda: seen.append(int(made(driver.cuCtxGetCurrent()))))
    thread.start()
    thread.join()
    assert seen == [0]
    assert made(driver.cuCtxPopCurrent()) == second
    assert driver.cuCtxSetCurrent(second)[0] == 0
    assert driver.cuCtxDestroy(second)[0] == 0
    assert driver.cuCtxDestroy(second) == driver.cuCtxPushCurrent(second) == driver.cuCtxSetCurrent(second) == (bad,)
    assert driver.cuCtxPopCurrent()[0] == bad
    primary = made(driver.cuDevicePrimaryCtxRetain(0))
    assert driver.cuCtxPushCurrent(primary)[0] == driver.cuCtxSynchronize()[0] == 0
    assert made(driver.cuDevicePrimaryCtxRetain(0)) == made(driver.cuCtxPopCurrent()) == primary
    assert driver.cuCtxDestroy(first)[0] == driver.cuDevicePrimaryCtxRelease(0)[0] == 0
