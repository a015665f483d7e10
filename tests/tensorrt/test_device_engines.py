"""Engines on a GPU, whose part the driver of the host takes: addresses of the device, streams, repeated runs, refits."""

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.api.engine import Artifacts, Engine
from dovetail.device.cuda.driver_host import memory_at
from dovetail.engine.plan import Symbol
from dovetail.tensorrt.engine import ICudaEngine
from dovetail.tensorrt.record import ProfileRecord, Record
from tests.tensorrt.engines import Log
from tests.unit import cuda_engines, native_plans

GRAPH = """dovetail.ir 1
@main(%x: f32[N]) {
  %y = Neg(%x) : f32[N]  # "node0"
  return %y
}
"""
PROFILE = ProfileRecord({"x": ((1,), (4,), (64,))})


class Device:
    """An engine of kernels in turn, and memory of its device."""

    def __init__(self, plan, weights=None, log=None, **record):
        self.driver = cuda_engines.host_driver()
        self.log = Log() if log is None else log
        runtime = cuda_engines.engine(plan, weights, self.driver)
        made = Engine(runtime, Artifacts(GRAPH, "", None, None))
        names = {"inputs": ("x",), "outputs": ("y",), "profiles": (PROFILE,), "refittable": True}
        self.engine = ICudaEngine(made, Record(**{**names, **record}), self.log)

    def call(self, name, *args):
        """A method of the driver, as a client calls it in a context of his own."""
        with self.driver.active():
            return getattr(self.driver, name)(*args)

    def place(self, array):
        """An array's copy on the device: its address."""
        address = self.call("allocate", max(array.nbytes, 1))
        memory_at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        return address

    def read(self, address, count):
        """Floats on the device."""
        self.call("synchronize_device")
        return memory_at(address, 4 * count).view(np.float32).copy()


def chained(*kernels, **settings):
    """The device of an engine that doubles, increments …"""
    return Device(cuda_engines.plan(native_plans.chain(*kernels), symbols=(Symbol("N", 1, 64),)), **settings)


def test_runs_in_a_stream_on_the_devices_memory():
    device = chained("k_double", "k_increment")
    context = device.engine.create_execution_context()
    stream = device.call("create_stream")
    for n in (4, 5, 4):
        x = np.arange(n, dtype=np.float32)
        at, to = device.place(x), device.place(np.zeros(n, np.float32))
        assert context.set_input_shape("x", (n,)) and context.get_tensor_shape("y") == (n,)
        assert context.set_tensor_address("x", at) and context.set_tensor_address("y", to)
        for _ in range(3):
            assert context.execute_async_v3(stream)
        np.testing.assert_array_equal(device.read(to, n), 2 * x + 1)
        assert context.execute_v2([at, to])
    assert not context.set_input_shape("x", (65,)) and device.log.errors()
    assert not context.execute_v2([at, 0]) and "address 0" in device.log.errors()[0]


def test_the_same_arrays_are_bound_once():
    device = chained("k_double")
    context = device.engine.create_execution_context()
    x = np.arange(4, dtype=np.float32)
    at, to, other = device.place(x), device.place(x), device.place(x)
    context.set_input_shape("x", (4,))
    for target in (to, other, to, other):
        assert context.execute_async_v2([at, target], 0)
    assert len(context._launcher._bound) == 2
    for n in range(1, 20):
        context.set_input_shape("x", (n % 4 + 1,))
        assert context.execute_async_v2([at, device.place(x)], 0)
    assert len(context._launcher._bound) <= 8
    # New memory for what lies between steps: what was bound to the old one is forgotten.
    size = device.engine.device_memory_size
    context.set_device_memory(device.call("allocate", size), size)
    assert not context._launcher._bound and context.execute_v2([at, to])
    np.testing.assert_array_equal(device.read(to, 4), 2 * x)


def test_captured_runs_become_part_of_the_clients_graph():
    device = chained("k_double", "k_increment")
    context = device.engine.create_execution_context()
    x = np.arange(4, dtype=np.float32)
    at, to = device.place(x), device.place(x)
    context.set_input_shape("x", (4,))
    context.set_tensor_address("x", at)
    context.set_tensor_address("y", to)
    stream = device.call("create_stream")
    with device.driver.active():
        device.driver.begin_capture(stream)
    assert context.execute_async_v3(stream)
    with device.driver.active():
        graph = device.driver.end_capture(stream)
        for start in (3, 9):
            memory_at(at, 16).view(np.float32)[:] = x + start
            device.driver.launch_graph(graph, stream)
            np.testing.assert_array_equal(device.read(to, 4), 2 * (x + start) + 1)


def test_allocators_profilers_and_events_on_a_device():
    device = chained("k_double", "k_increment")
    context = device.engine.create_execution_context()
    x = np.arange(6, dtype=np.float32)

    streams = []

    class Allocator(trt.IOutputAllocator):
        shape = None

        def reallocate_output_async(self, tensor_name, memory, size, alignment, stream):
            streams.append(stream)
            self.address = device.call("allocate", size)
            return self.address

        def notify_shape(self, tensor_name, shape):
            self.shape = tuple(shape)

    class Times(trt.IProfiler):
        layers: dict[str, float]

        def report_layer_time(self, layer_name, ms):
            self.layers[layer_name] = ms

    allocator, times = Allocator(), Times()
    times.layers = {}
    context.set_input_shape("x", (6,))
    context.set_tensor_address("x", device.place(x))
    context.set_output_allocator("y", allocator)
    stream = device.call("create_stream")
    event = device.call("create_event")
    context.set_input_consumed_event(event)
    context.profiler = times
    assert context.execute_async_v3(stream)
    np.testing.assert_array_equal(device.read(allocator.address, 6), 2 * x + 1)
    assert allocator.shape == (6,) and streams == [stream]
    assert set(times.layers) == {"node0", "node1"} and device.call("reached", event)


def test_memory_between_steps_is_the_clients():
    device = chained("k_double", "k_increment")
    size = device.engine.device_memory_size
    context = device.engine.create_execution_context_without_device_memory()
    x = np.arange(64, dtype=np.float32)
    at, to = device.place(x), device.place(x)
    context.set_input_shape("x", (64,))
    assert not context.execute_v2([at, to]) and "device memory" in device.log.errors()[0]
    memory = device.place(np.zeros(size, np.uint8))
    context.set_device_memory(memory, size)
    assert context.execute_v2([at, to]) and memory_at(memory, size).any()
    np.testing.assert_array_equal(device.read(to, 64), 2 * x + 1)


def test_outputs_in_the_place_of_an_input():
    device = chained("k_double", aliased={"y": "x"})
    context = device.engine.create_execution_context()
    x = np.arange(4, dtype=np.float32)
    at = device.place(x)
    context.set_input_shape("x", (4,))
    for turn in (2, 4):
        assert context.execute_v2([at, at])
        np.testing.assert_array_equal(device.read(at, 4), turn * x)


@pytest.mark.parametrize("location", [trt.TensorLocation.HOST, trt.TensorLocation.DEVICE])
def test_refits_from_the_device(location):
    w = np.array([1, 2, 3, 4], np.float32)
    device = Device(cuda_engines.from_cpu(native_plans.scaled()), {"w": w})
    context = device.engine.create_execution_context()
    x = np.ones(4, np.float32)
    at, to = device.place(x), device.place(x)
    context.set_input_shape("x", (4,))
    assert context.execute_v2([at, to])
    np.testing.assert_array_equal(device.read(to, 4), 2 * w)
    new = w[::-1].copy()
    refitter = trt.Refitter(device.engine, device.log)
    where = device.place(new) if location is trt.TensorLocation.DEVICE else int(new.ctypes.data)
    assert refitter.set_named_weights("w", trt.Weights(trt.float32, where, 4), location) and refitter.refit_cuda_engine()
    assert context.execute_v2([at, to])
    np.testing.assert_array_equal(device.read(to, 4), 2 * new)
