"""Contexts: shapes, addresses, allocators, runs, profilers, debug tensors, memory."""

import ctypes
import gc
import threading

import numpy as np
import pytest

import dovetail
import dovetail.tensorrt as trt
from dovetail.tensorrt import standins
from tests.tensorrt import engines
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Buffers, Errors, Log, at, normal, opened


def reference(data, **feeds):
    """What Dovetail's own engine gives."""
    return dovetail.load(data).run(feeds)


def image(n=2, log=None, **settings):
    """A context of the image engine with addresses set, its input and its outputs."""
    engine = opened(engines.image(), log, **settings)
    context = engine.create_execution_context()
    x = normal(n, 3, 6, 5, seed=n)
    outputs = {"y": np.zeros((n, 4, 6, 5), np.float32), "raw": np.zeros((n, 4, 6, 5), np.float32)}
    assert context.set_input_shape("x", x.shape)
    for name, array in {"x": x, **outputs}.items():
        assert context.set_tensor_address(name, at(array))
    return context, x, outputs


def same(got, want):
    """All outputs are those of Dovetail's own engine."""
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])


@exercises("IExecutionContext", "IExecutionContext.execute_async_v3", "IExecutionContext.set_tensor_address")
@exercises("IExecutionContext.get_tensor_address", "IExecutionContext.engine", "IExecutionContext.name")
@exercises("IExecutionContext.__enter__", "IExecutionContext.__exit__")
def test_a_run_reads_and_writes_the_addresses():
    log = Log()
    context, x, outputs = image(log=log)
    assert context.engine is context.engine and isinstance(context.engine, trt.ICudaEngine)
    assert context.name == ""
    context.name = "first"
    assert context.name == "first"
    assert context.get_tensor_address("x") == at(x) and context.execute_async_v3(0) is True
    same(outputs, reference(engines.image(), x=x))
    other = np.zeros_like(outputs["y"])

    class Handle:
        def __int__(self):
            return at(other)

    assert context.set_tensor_address("y", Handle()) and context.execute_async_v3(stream_handle=ctypes.c_size_t(0).value)
    np.testing.assert_array_equal(other, outputs["y"])
    log.messages.clear()
    assert not context.set_tensor_address("shown", 8) and context.get_tensor_address("nothing") == 0 and len(log.errors()) == 2
    with pytest.warns(DeprecationWarning), context as same_context:
        assert same_context is context
    for wrong in ("8", 1.5, None):
        with pytest.raises(TypeError):
            context.set_tensor_address("x", wrong)
        with pytest.raises(TypeError):
            context.execute_async_v3(wrong)
    with pytest.raises(TypeError):
        context.set_tensor_address(0, 8)


@exercises("IExecutionContext.error_recorder")
def test_failures_are_false_and_a_message():
    log, recorder = Log(), Errors()
    engine = opened(engines.image(), log)
    context = engine.create_execution_context()
    assert context.error_recorder is None
    context.error_recorder = recorder
    assert context.error_recorder is recorder
    assert not context.execute_async_v3(0) and "no shape" in log.errors()[0]
    context.set_input_shape("x", (1, 3, 6, 5))
    assert not context.execute_async_v3(0) and "address 0" in log.errors()[0]
    x, y = normal(1, 3, 6, 5), np.zeros((1, 4, 6, 5), np.float32)
    context.set_tensor_address("x", at(x))
    assert not context.execute_async_v3(0) and "'y'" in log.errors()[0]
    for name in ("y", "raw"):
        context.set_tensor_address(name, at(y))
    assert context.execute_async_v3(0) and not log.errors()
    assert len(recorder.kept) == 3 and recorder.kept[0][0] is trt.ErrorCodeTRT.FAILED_EXECUTION
    with pytest.raises(TypeError):
        context.error_recorder = log


@exercises("IExecutionContext.set_input_shape", "IExecutionContext.get_tensor_shape", "IExecutionContext.infer_shapes")
@exercises("IExecutionContext.all_binding_shapes_specified", "IExecutionContext.get_tensor_strides")
@exercises("IExecutionContext.get_max_output_size")
def test_shapes():
    log = Log()
    context = opened(engines.image(), log).create_execution_context()
    assert context.get_tensor_shape("x") == (-1, 3, 6, 5) and context.get_tensor_shape("y") == (-1, 4, 6, 5)
    assert context.infer_shapes() == ["x"] and not context.all_binding_shapes_specified
    assert context.get_max_output_size("y") == -1
    assert context.get_tensor_strides("x") == (90, 30, 5, 1)
    for good in ((2, 3, 6, 5), [3, 3, 6, 5], trt.Dims((4, 3, 6, 5)), np.array([1, 3, 6, 5])):
        assert context.set_input_shape("x", good) and context.get_tensor_shape("x") == tuple(int(d) for d in good)
        assert context.get_tensor_shape("y") == (int(good[0]), 4, 6, 5)
    assert context.infer_shapes() == [] and context.all_binding_shapes_specified
    assert context.get_max_output_size("y") == 512 and 1 * 4 * 6 * 5 * 4 <= 512
    log.messages.clear()
    for wrong in ((5, 3, 6, 5), (0, 3, 6, 5), (2, 3, 6), (2, 3, 6, 6), (-1, 3, 6, 5)):
        assert not context.set_input_shape("x", wrong)
        assert len(log.errors()) == 1
    assert context.get_tensor_shape("x") == (1, 3, 6, 5)
    assert not context.set_input_shape("y", (1, 4, 6, 5)) and not context.set_input_shape("z", (1,))
    with pytest.raises(ValueError, match="invalid"):
        len(context.get_tensor_shape("z"))
    for bad in (3, "abc", (1.5, 3, 6, 5), None):
        with pytest.raises(TypeError):
            context.set_input_shape("x", bad)
    last = opened(engines.channels_last()).create_execution_context()
    assert last.get_tensor_strides("x") == (48, 1, 24, 8)
    # One of several inputs is missing.
    expanded = opened(engines.expanded()).create_execution_context()
    assert expanded.infer_shapes() == ["shape"] and expanded.all_binding_shapes_specified


@exercises("IExecutionContext.set_optimization_profile_async", "IExecutionContext.active_optimization_profile")
def test_profiles_decide_what_shapes_are_allowed():
    log = Log()
    context = opened(engines.image(), log).create_execution_context()
    assert context.active_optimization_profile == 0 and context.set_input_shape("x", (2, 3, 6, 5))
    assert context.set_optimization_profile_async(0, 0) and context.get_tensor_shape("x") == (2, 3, 6, 5)
    assert context.set_optimization_profile_async(profile_index=1, stream_handle=7)
    assert context.active_optimization_profile == 1 and context.infer_shapes() == ["x"]
    assert not context.set_input_shape("x", (2, 3, 6, 5)) and context.set_input_shape("x", (8, 3, 6, 5))
    x, y, raw = normal(8, 3, 6, 5), *(np.zeros((8, 4, 6, 5), np.float32) for _ in range(2))
    assert context.execute_v2([at(x), at(y), at(raw)])
    same({"y": y, "raw": raw}, reference(engines.image(), x=x))
    log.messages.clear()
    assert not context.set_optimization_profile_async(2, 0) and log.errors() and context.active_optimization_profile == 1
    context.active_optimization_profile = 0
    assert context.active_optimization_profile == 0 and context.infer_shapes() == ["x"]
    with pytest.raises(TypeError):
        context.set_optimization_profile_async("0", 0)


@exercises("IExecutionContext.set_output_allocator", "IExecutionContext.get_output_allocator")
@exercises("IOutputAllocator.reallocate_output", "IOutputAllocator.notify_shape", "IOutputAllocator")
def test_output_allocators_serve_every_output_of_every_run():
    log = Log()
    context = opened(engines.positions(), log).create_execution_context()
    buffers = Buffers()
    assert context.get_output_allocator("t") is None
    for name in ("t", "z"):
        assert context.set_output_allocator(name, buffers) and context.get_output_allocator(name) is buffers
    context.set_tensor_address("z", 4096)
    for n in (3, 1, 9):
        x = normal(n, 4, seed=n)
        context.set_input_shape("x", x.shape)
        context.set_tensor_address("x", at(x))
        buffers.asked.clear()
        assert context.execute_async_v3(0)
        want = reference(engines.positions(), x=x)
        same({"t": buffers.array("t", np.int64), "z": buffers.array("z", np.float32)}, want)
        assert {a[0]: a[1:] for a in buffers.asked} == {
            "t": (0, want["t"].nbytes, 256), "z": (4096, want["z"].nbytes, 256),
        }  # fmt: skip
    # Nothing is positive: no bytes, and the address may be null.
    x = -np.ones((2, 4), np.float32)
    context.set_input_shape("x", x.shape)
    context.set_tensor_address("x", at(x))
    assert context.execute_async_v3(0) and buffers.shapes["t"] == (2, 0)
    out = np.zeros((2, 4), np.float32)
    assert context.set_output_allocator("z", None) and context.set_tensor_address("z", at(out)) and context.execute_async_v3(0)
    np.testing.assert_array_equal(out, 2 * x)
    log.messages.clear()
    assert not context.set_output_allocator("x", buffers) and not context.set_output_allocator("nothing", buffers)
    assert len(log.errors()) == 2
    for wrong in (3, log):
        with pytest.raises(TypeError):
            context.set_output_allocator("t", wrong)


@exercises("IOutputAllocator.reallocate_output_async")
def test_allocators_that_fail_fail_the_run():
    log = Log()
    context = opened(engines.positions(), log).create_execution_context()
    x, z = normal(3, 4), np.zeros((3, 4), np.float32)
    context.set_input_shape("x", x.shape)
    context.set_tensor_address("x", at(x))
    context.set_tensor_address("z", at(z))

    streams = []

    class Asynchronous(Buffers):
        def reallocate_output_async(self, tensor_name, memory, size, alignment, stream):
            streams.append(stream)
            return self.reallocate_output(tensor_name, memory, size, alignment)

    class Empty(Buffers):
        def reallocate_output(self, tensor_name, memory, size, alignment):
            return 0

    class Raising(Buffers):
        def reallocate_output(self, tensor_name, memory, size, alignment):
            raise RuntimeError("no memory left")

    class Deaf(Buffers):
        def notify_shape(self, tensor_name, shape):
            raise ValueError("what shape")

    context.set_output_allocator("t", Asynchronous())
    assert context.execute_async_v3(17) and streams == [17]
    for kind, why in ((Empty, "gave no memory"), (Raising, "no memory left"), (Deaf, "what shape")):
        context.set_output_allocator("t", kind())
        log.messages.clear()
        assert not context.execute_async_v3(0)
        assert any(why in text for text in log.errors())


def test_outputs_whose_size_only_the_data_know_may_have_an_address():
    context = opened(engines.positions()).create_execution_context()
    x, t, z = normal(3, 4), np.full(2 * 12, -1), np.zeros((3, 4), np.float32)
    context.set_input_shape("x", x.shape)
    assert context.get_tensor_shape("t") == (2, -1) and context.get_max_output_size("t") == 256 >= t.nbytes
    assert context.get_max_output_size("x") == context.get_max_output_size("nothing") == -1
    for name, array in (("x", x), ("t", t), ("z", z)):
        context.set_tensor_address(name, at(array))
    assert context.execute_async_v3(0)
    want = reference(engines.positions(), x=x)["t"]
    np.testing.assert_array_equal(t[: want.size].reshape(want.shape), want)
    assert (t[want.size :] == -1).all()


@exercises("IExecutionContext.all_shape_inputs_specified")
def test_inputs_that_are_read_as_shapes():
    log = Log()
    context = opened(engines.expanded(), log).create_execution_context()
    shape, x, y = np.array([3, 2], np.int32), np.full((1, 1), 5, np.float32), np.zeros((3, 2), np.float32)
    assert not context.all_shape_inputs_specified and context.get_tensor_shape("y") == (-1, -1)
    for name, array in (("shape", shape), ("x", x), ("y", y)):
        context.set_tensor_address(name, at(array))
    assert context.all_shape_inputs_specified and context.infer_shapes() == [] and context.get_tensor_shape("y") == (3, 2)
    assert context.execute_async_v3(0) and (y == 5).all()
    shape[:] = 2, 1
    assert context.get_tensor_shape("y") == (2, 1)
    shape[:] = -2, 1
    with pytest.raises(RuntimeError):
        context.infer_shapes()
    assert not context.execute_async_v3(0) and log.errors()


@exercises("IExecutionContext.execute_v2")
def test_addresses_in_order():
    log = Log()
    context, x, outputs = image(3, log)
    y, raw = (np.zeros((3, 4, 6, 5), np.float32) for _ in range(2))
    assert context.execute_v2([at(x), at(y), at(raw)])
    same({"y": y, "raw": raw}, reference(engines.image(), x=x))
    assert not outputs["y"].any() and context.get_tensor_address("y") == at(outputs["y"])
    log.messages.clear()
    assert not context.execute_v2([at(x), at(y)]) and "2 addresses" in log.errors()[0]
    assert not context.execute_v2(bindings=[at(x), 0, at(raw)]) and log.errors()
    for wrong in (None, 5, "ab", [1.5, 2, 3], ["a", "b", "c"]):
        with pytest.raises(TypeError):
            context.execute_v2(wrong)
    buffers = Buffers()
    context.set_output_allocator("y", buffers)
    assert context.execute_v2([at(x), 0, at(raw)])
    np.testing.assert_array_equal(buffers.array("y", np.float32), y)


def test_images_with_channels_last_lie_that_way():
    context = opened(engines.channels_last()).create_execution_context()
    x = np.ascontiguousarray(normal(2, 8, 2, 3).transpose(0, 2, 3, 1))
    y = np.zeros_like(x)
    context.set_input_shape("x", (2, 8, 2, 3))
    assert context.get_tensor_shape("y") == (2, 8, 2, 3) and context.execute_v2([at(x), at(y)])
    np.testing.assert_array_equal(y, 3 * x)


def test_outputs_in_the_place_of_an_input():
    log = Log()
    context = opened(engines.cache(), log).create_execution_context()
    past, new, y = normal(2, 3), normal(2, 3, seed=1), np.zeros((2, 3), np.float32)
    want = past + new
    twice = 2 * past
    for name, array in (("past", past), ("new", new), ("now", past), ("y", y)):
        context.set_tensor_address(name, at(array))
    assert context.execute_async_v3(0)
    np.testing.assert_array_equal(past, want)
    np.testing.assert_array_equal(y, twice)
    context.set_tensor_address("now", at(new))
    assert not context.execute_async_v3(0) and "'past'" in log.errors()[0]


class Times(trt.IProfiler):
    """Keeps times by layer."""

    def __init__(self):
        trt.IProfiler.__init__(self)
        self.layers = []

    def report_layer_time(self, layer_name, ms):
        self.layers.append((layer_name, ms))


@exercises("IExecutionContext.profiler", "IExecutionContext.enqueue_emits_profile", "IExecutionContext.report_to_profiler")
@exercises("IProfiler", "IProfiler.report_layer_time")
def test_profilers_are_told_every_layer():
    log = Log()
    context, x, outputs = image(log=log)
    times = Times()
    assert context.profiler is None and context.enqueue_emits_profile
    context.profiler = times
    assert context.profiler is times and context.execute_async_v3(0)
    same(outputs, reference(engines.image(), x=x))
    names = [name for name, _ in times.layers]
    assert len(names) == len(set(names)) == context.engine.num_layers // 2 and all(ms >= 0 for _, ms in times.layers)
    assert any("conv" in name for name in names) and sum(ms for _, ms in times.layers) > 0
    times.layers.clear()
    context.enqueue_emits_profile = False
    assert context.execute_async_v3(0) and not times.layers
    assert context.report_to_profiler() and [name for name, _ in times.layers] == names
    log.messages.clear()
    assert not context.report_to_profiler() and log.errors()
    context.set_optimization_profile_async(1, 0)
    context.set_input_shape("x", (3, 3, 6, 5))
    x, y, raw = normal(3, 3, 6, 5), *(np.zeros((3, 4, 6, 5), np.float32) for _ in range(2))
    times.layers.clear()
    context.enqueue_emits_profile = True
    assert context.execute_v2([at(x), at(y), at(raw)])
    assert all(name.endswith(" [profile 1]") for name, _ in times.layers)
    context.profiler = None
    times.layers.clear()
    assert context.execute_v2([at(x), at(y), at(raw)]) and not times.layers
    for wrong in (log, 3):
        with pytest.raises(TypeError):
            context.profiler = wrong
    with pytest.raises(TypeError):
        context.enqueue_emits_profile = 1


class Listener(trt.IDebugListener):
    """Copies what it is shown."""

    def __init__(self, answer=True):
        trt.IDebugListener.__init__(self)
        self.shown, self.answer = {}, answer

    def process_debug_tensor(self, addr, location, type, shape, name, stream):
        assert location is trt.TensorLocation.HOST
        memory = (ctypes.c_uint8 * (trt.volume(shape) * int(type.itemsize))).from_address(addr)
        self.shown[name] = np.frombuffer(memory, trt.nptype(type)).reshape(tuple(shape)).copy(), stream
        return self.answer


@exercises("IExecutionContext.set_debug_listener", "IExecutionContext.get_debug_listener", "IExecutionContext.set_tensor_debug_state")
@exercises("IExecutionContext.get_debug_state", "IExecutionContext.set_all_tensors_debug_state")
@exercises("IDebugListener", "IDebugListener.process_debug_tensor")
def test_listeners_are_shown_debug_tensors():
    log = Log()
    context, x, outputs = image(log=log)
    listener = Listener()
    assert context.get_debug_listener() is None and context.set_debug_listener(listener) and context.get_debug_listener() is listener
    assert context.execute_async_v3(3) and not listener.shown and not context.get_debug_state("shown")
    assert context.set_tensor_debug_state("shown", True) and context.get_debug_state("shown")
    assert context.execute_async_v3(3)
    want = reference(engines.image(), x=x)
    shown, stream = listener.shown.pop("shown")
    np.testing.assert_array_equal(shown, want["shown"])
    assert stream == 3 and not listener.shown
    same(outputs, want)
    assert context.set_all_tensors_debug_state(False) and not context.get_debug_state("shown")
    assert context.execute_async_v3(0) and not listener.shown
    assert context.set_all_tensors_debug_state(True) and context.execute_async_v3(0) and set(listener.shown) == {"shown"}
    listener.answer = False
    log.messages.clear()
    assert not context.execute_async_v3(0) and "refused" in log.errors()[-1]
    assert context.set_debug_listener(None) and context.execute_async_v3(0)
    assert not context.set_tensor_debug_state("y", True) and log.errors()
    for wrong in (log, 3):
        with pytest.raises(TypeError):
            context.set_debug_listener(wrong)
    with pytest.raises(TypeError):
        context.set_tensor_debug_state("shown", 1)
    with pytest.raises(TypeError):
        context.set_all_tensors_debug_state(None)


@exercises("IExecutionContext.unfused_tensors_debug_state")
def test_tensors_that_no_fusion_hides_may_be_watched():
    log = Log()
    context, x, outputs = image(log=log)
    listener = Listener()
    context.set_debug_listener(listener)
    assert context.unfused_tensors_debug_state is False
    context.unfused_tensors_debug_state = True
    assert context.unfused_tensors_debug_state and context.execute_async_v3(0)
    want = reference(engines.image(), x=x)
    assert {"y", "raw"} <= set(listener.shown) | {"relu"} and listener.shown
    for name in set(listener.shown) & set(want):
        np.testing.assert_array_equal(listener.shown[name][0], want[name])
    same(outputs, want)
    batched = opened(engines.batched(), log).create_execution_context()
    log.messages.clear()
    batched.unfused_tensors_debug_state = True
    assert not batched.unfused_tensors_debug_state and log.errors()
    with pytest.raises(TypeError):
        context.unfused_tensors_debug_state = 1


@exercises("IExecutionContext.set_device_memory", "IExecutionContext.device_memory")
@exercises("IExecutionContext.update_device_memory_size_for_shapes")
@exercises("ExecutionContextAllocationStrategy.USER_MANAGED")
def test_values_between_layers_lie_in_the_clients_memory():
    log = Log()
    engine = opened(engines.image(), log)
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    assert context.device_memory == 0 and context.update_device_memory_size_for_shapes() == 0 and log.errors()
    x, y, raw = normal(2, 3, 6, 5), *(np.zeros((2, 4, 6, 5), np.float32) for _ in range(2))
    context.set_input_shape("x", x.shape)
    bindings = [at(x), at(y), at(raw)]
    needed = context.update_device_memory_size_for_shapes()
    assert 0 < needed <= engine.device_memory_size
    assert not context.execute_v2(bindings) and "device memory" in log.errors()[0]
    memory = np.zeros(needed, np.uint8)
    context.set_device_memory(at(memory), needed - 1)
    assert not context.execute_v2(bindings) and log.errors()
    context.set_device_memory(memory=at(memory), size=needed)
    assert context.device_memory == at(memory) and context.execute_v2(bindings) and memory.any()
    same({"y": y, "raw": raw}, reference(engines.image(), x=x))
    large = np.zeros(engine.device_memory_size, np.uint8)
    context.device_memory = at(large)
    memory[:] = 0
    assert context.execute_v2(bindings) and large.any() and not memory.any()
    context.set_device_memory(at(large), -1)
    assert log.errors()
    with pytest.raises(TypeError):
        context.set_device_memory("here", 3)


class Heap(trt.IGpuAllocator):
    """Allocates NumPy arrays."""

    def __init__(self, give=True):
        trt.IGpuAllocator.__init__(self)
        self.live, self.give, self.freed = {}, give, 0

    def allocate(self, size, alignment, flags):
        if not self.give:
            return 0
        array = np.zeros(size + alignment, np.uint8)
        address = -(-at(array) // alignment) * alignment
        self.live[address] = array
        return address

    def deallocate(self, memory):
        self.freed += 1
        return self.live.pop(memory, None) is not None


@exercises("Runtime.gpu_allocator", "IExecutionContext.temporary_allocator", "IGpuAllocator.allocate", "IGpuAllocator.deallocate")
@exercises("ExecutionContextAllocationStrategy", "ExecutionContextAllocationStrategy.STATIC")
@exercises("ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE")
def test_contexts_have_their_memory_of_the_clients_allocator():
    heap, log = Heap(), Log()
    context, x, outputs = image(log=log, gpu_allocator=heap)
    assert context.engine._allocator is heap and len(heap.live) == 1
    assert context.execute_async_v3(0) and next(iter(heap.live.values())).any()
    same(outputs, reference(engines.image(), x=x))
    del context
    gc.collect()
    assert not heap.live and heap.freed == 1
    later = opened(engines.image(), gpu_allocator=heap).create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
    assert not heap.live
    other = Heap()
    assert later.temporary_allocator is None
    later.temporary_allocator = other
    assert later.temporary_allocator is other
    later.set_input_shape("x", x.shape)
    assert later.execute_v2([at(x), *map(at, outputs.values())]) and not heap.live and len(other.live) == 1
    failing = opened(engines.image(), log, gpu_allocator=Heap(give=False))
    log.messages.clear()
    assert failing.create_execution_context() is None and "no memory from the allocator" in log.errors()[0]
    runtime = trt.Runtime(log)
    assert runtime.gpu_allocator is None
    for owner, name in ((runtime, "gpu_allocator"), (later, "temporary_allocator")):
        with pytest.raises(TypeError):
            setattr(owner, name, log)
        setattr(owner, name, None)


class Pool(trt.IGpuAsyncAllocator):
    """Allocates in streams, and grows in place."""

    def __init__(self, grow):
        trt.IGpuAsyncAllocator.__init__(self)
        self.heap, self.grow, self.calls = Heap(), grow, []

    def allocate_async(self, size, alignment, flags, stream):
        self.calls.append(("allocate", flags, stream))
        return self.heap.allocate(2 * size if self.grow else size, alignment, flags)

    def deallocate_async(self, memory, stream):
        self.calls.append(("deallocate", stream))
        return self.heap.deallocate(memory)

    def reallocate(self, address, alignment, new_size):
        self.calls.append(("reallocate", new_size))
        return address if self.grow else 0


@exercises("IGpuAllocator", "IGpuAsyncAllocator", "IGpuAsyncAllocator.allocate", "IGpuAsyncAllocator.deallocate")
@exercises("IGpuAsyncAllocator.allocate_async", "IGpuAsyncAllocator.deallocate_async", "AllocatorFlag.RESIZABLE")
@pytest.mark.parametrize("grow", [False, True])
def test_allocators_of_streams(grow):
    pool = Pool(grow)
    assert isinstance(pool, trt.IGpuAllocator)
    engine = opened(engines.image(), gpu_allocator=pool)
    static = engine.create_execution_context()
    resizable = 1 << int(trt.AllocatorFlag.RESIZABLE)
    assert pool.calls == [("allocate", resizable, 0)]
    del static
    gc.collect()
    assert pool.calls[1:] == [("deallocate", 0)]
    pool.calls.clear()
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
    for n in (1, 2, 1):
        x, y, raw = normal(n, 3, 6, 5), *(np.zeros((n, 4, 6, 5), np.float32) for _ in range(2))
        context.set_input_shape("x", x.shape)
        for name, array in (("x", x), ("y", y), ("raw", raw)):
            context.set_tensor_address(name, at(array))
        assert context.execute_async_v3(6)
        same({"y": y, "raw": raw}, reference(engines.image(), x=x))
    kinds = [call[0] for call in pool.calls]
    assert kinds == (["allocate", "reallocate"] if grow else ["allocate", "reallocate", "deallocate", "allocate"])
    assert ("allocate", resizable, 6) in pool.calls and len(pool.heap.live) == 1


@exercises("IGpuAllocator.allocate_async", "IGpuAllocator.deallocate_async", "IGpuAllocator.reallocate", "IGpuAllocator.free")
def test_allocators_of_the_oldest_kind():
    class Old(trt.IGpuAllocator):
        def __init__(self):
            trt.IGpuAllocator.__init__(self)
            self.heap, self.freed = Heap(), 0

        def allocate(self, size, alignment, flags):
            return self.heap.allocate(size, alignment, flags)

        def free(self, memory):
            self.freed += 1
            self.heap.deallocate(memory)

    old = Old()
    assert old.reallocate(1, 2, 3) == 0 and callable(old.allocate_async) and callable(old.deallocate_async)
    context = opened(engines.image(), gpu_allocator=old).create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
    for n in (1, 2):
        x, y, raw = normal(n, 3, 6, 5), *(np.zeros((n, 4, 6, 5), np.float32) for _ in range(2))
        context.set_input_shape("x", x.shape)
        assert context.execute_async_v2([at(x), at(y), at(raw)], 0)
        same({"y": y}, reference(engines.image(), x=x))
    assert old.freed == 1 and len(old.heap.live) == 1


@exercises("IExecutionContext.debug_sync", "IExecutionContext.nvtx_verbosity", "IExecutionContext.persistent_cache_limit")
@exercises("IExecutionContext.set_aux_streams")
def test_settings_of_a_context():
    log = Log()
    context, x, outputs = image(log=log)
    assert (context.debug_sync, context.persistent_cache_limit) == (False, 0)
    assert context.nvtx_verbosity is trt.ProfilingVerbosity.DETAILED
    context.debug_sync = True
    context.persistent_cache_limit = 1 << 20
    context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
    context.set_aux_streams([1, 2])
    assert (context.debug_sync, context.persistent_cache_limit) == (True, 1 << 20)
    assert context.nvtx_verbosity is trt.ProfilingVerbosity.NONE
    assert context.execute_async_v3(0)
    same(outputs, reference(engines.image(), x=x))
    quiet = opened(engines.batched(), log).create_execution_context()
    log.messages.clear()
    quiet.nvtx_verbosity = trt.ProfilingVerbosity.DETAILED
    assert quiet.nvtx_verbosity is trt.ProfilingVerbosity.LAYER_NAMES_ONLY and log.errors()
    limit = "persistent_cache_limit"
    for name, wrong in (("debug_sync", 1), ("nvtx_verbosity", 0), (limit, -1), (limit, "1"), ("name", 3)):
        with pytest.raises(TypeError):
            setattr(context, name, wrong)
    with pytest.raises(TypeError):
        context.set_aux_streams(["a"])


@exercises("IExecutionContext.set_input_consumed_event", "IExecutionContext.get_input_consumed_event")
def test_events_say_that_inputs_are_read(monkeypatch):
    log = Log()
    context, x, outputs = image(log=log)
    assert context.get_input_consumed_event() == 0
    assert context.set_input_consumed_event(0x1234) and context.get_input_consumed_event() == 0x1234
    monkeypatch.setattr(standins, "active", lambda: False)
    assert not context.execute_async_v3(0) and "0x1234" in log.errors()[0]
    from dovetail.tensorrt.standins import device

    library = device.library()
    event = ctypes.c_void_p()
    assert library.cudaEventCreate(ctypes.byref(event)) == 0 and event.value
    monkeypatch.setattr(standins, "active", lambda: True)
    assert context.set_input_consumed_event(event.value) and context.execute_async_v3(0)
    same(outputs, reference(engines.image(), x=x))
    assert library.cudaEventQuery(event) == 0
    assert context.set_input_consumed_event(0) and context.execute_async_v3(0)
    library.cudaEventDestroy(event)
    with pytest.raises(TypeError):
        context.set_input_consumed_event("event")


def test_allocations_that_are_too_small_are_refused_not_overrun(monkeypatch):
    from dovetail.tensorrt.standins import device

    monkeypatch.setattr(standins, "active", lambda: True)
    log = Log()
    context, _, outputs = image(log=log)
    small = ctypes.c_void_p()
    library = device.library()
    assert library.cudaMalloc(ctypes.byref(small), outputs["y"].nbytes - 4) == 0
    context.set_tensor_address("y", small.value)
    assert not context.execute_async_v3(0) and "allocation of" in log.errors()[0]
    library.cudaFree(small)


def test_contexts_of_one_engine_run_beside_each_other():
    engine = opened(engines.image())
    feeds = [normal(n, 3, 6, 5, seed=n) for n in (1, 2, 3, 4)]
    wants = [reference(engines.image(), x=x)["y"] for x in feeds]
    wrong = []

    def work(x, want):
        context = engine.create_execution_context()
        y, raw = np.zeros(want.shape, np.float32), np.zeros(want.shape, np.float32)
        context.set_input_shape("x", x.shape)
        for _ in range(20):
            y[:] = 0
            if not context.execute_v2([at(x), at(y), at(raw)]) or not np.array_equal(y, want):
                wrong.append(x.shape)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(feeds, wants, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_context_serves_one_thread():
    log = Log()
    context, _, _ = image(log=log)
    busy = context._launcher._context._busy
    busy.acquire()
    assert not context.execute_async_v3(0) and "one thread per" in log.errors()[0]
    busy.release()
    assert context.execute_async_v3(0)


def test_plain_engines_run_with_any_size():
    context = opened(engines.bare()).create_execution_context()
    for n in (1, 7, 300):
        x, y = normal(n, 5, seed=n), np.zeros((n, 3), np.float32)
        assert context.set_input_shape("x", x.shape) and context.execute_v2([at(x), at(y)])
        np.testing.assert_array_equal(y, reference(engines.bare(), x=x)["y"])


def test_a_captured_run_is_done_when_its_graph_is_launched(monkeypatch):
    from dovetail.tensorrt.standins import graphs

    monkeypatch.setattr(standins, "active", lambda: True)
    context, x, outputs = image(2)
    assert graphs.begin(91)
    assert context.execute_async_v3(91) and not outputs["y"].any()
    executable = graphs.instantiate(graphs.end(91))
    # The shapes and addresses are those of the capture, the values those of the launch.
    context.set_input_shape("x", (1, 3, 6, 5))
    x[:] = normal(*x.shape, seed=77)
    assert graphs.launch(executable, 91) == 0
    same(outputs, reference(engines.image(), x=x))


@exercises("ICudaEngine.get_aliased_input_tensor")
def test_caches_are_updated_where_they_lie():
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    cache, update = network.add_input("cache", trt.float32, (2, 1, 6, 4)), network.add_input("update", trt.float32, (2, 1, 1, 4))
    layer = network.add_kv_cache_update(cache, update, network.add_input("at", trt.int32, (2,)), trt.KVCacheMode.LINEAR)
    layer.get_output(0).name = "after"
    network.mark_output(layer.get_output(0))
    context = builder.build_engine_with_config(network, builder.create_builder_config()).create_execution_context()
    assert context.engine.get_aliased_input_tensor("after") == "cache"
    held, new, positions = normal(2, 1, 6, 4), normal(2, 1, 1, 4, seed=1), np.array([1, 4], np.int32)
    want = held.copy()
    want[0, 0, 1], want[1, 0, 4] = new[0, 0, 0], new[1, 0, 0]
    for name, array in (("cache", held), ("update", new), ("at", positions), ("after", held)):
        assert context.set_tensor_address(name, at(array))
    assert context.execute_async_v3(0)
    np.testing.assert_array_equal(held, want)
