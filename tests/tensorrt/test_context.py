"""Contexts: shapes, addresses, allocators, runs, profilers, debug tensors, memory."""

import ctypes
import threading

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt import standins
from tests.tensorrt import engines
from tests.tensorrt.contexts import image, reference, same
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Buffers, Errors, Log, at, normal, opened


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
