"""Contexts: profilers, listeners of debug tensors, what is shown of values between layers."""

import ctypes

import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt import engines
from tests.tensorrt.contexts import image, reference, same
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Log, at, normal, opened


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
