"""Bindings by index and by name, and implicit batches: the runtime API up to TensorRT 9."""

import numpy as np
import pytest

import dovetail
import dovetail.tensorrt as trt
from tests.tensorrt import engines
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Log, at, normal, opened


@exercises("ICudaEngine.num_bindings", "ICudaEngine.__len__", "ICudaEngine.__getitem__", "ICudaEngine.get_binding_name")
@exercises("ICudaEngine.get_binding_index", "ICudaEngine.binding_is_input")
def test_bindings_are_counted_once_per_profile():
    log = Log()
    engine = opened(engines.image(), log)
    assert engine.num_bindings == len(engine) == 6
    names = ["x", "y", "raw", "x [profile 1]", "y [profile 1]", "raw [profile 1]"]
    assert list(engine) == names == [engine.get_binding_name(i) for i in range(6)] == [engine[i] for i in range(6)]
    assert [engine.get_binding_index(n) for n in names] == list(range(6)) == [engine[n] for n in names]
    assert engine[-1] == names[-1] and "y" in engine
    assert [engine.binding_is_input(i) for i in range(6)] == [True, False, False] * 2
    assert engine.binding_is_input("x") and not engine.binding_is_input("raw [profile 1]")
    log.messages.clear()
    assert engine.get_binding_index("z") == engine.get_binding_index("x [profile 2]") == -1 and not log.errors()
    assert engine.get_binding_name(6) is None and not engine.binding_is_input(-1) and len(log.errors()) == 2
    with pytest.raises(IndexError):
        engine[6]
    for method in ("get_binding_index", "get_binding_name", "binding_is_input", "__getitem__"):
        with pytest.raises(TypeError):
            getattr(engine, method)(1.5)


@exercises("ICudaEngine.get_binding_shape", "ICudaEngine.get_binding_dtype", "ICudaEngine.get_location", "ICudaEngine.is_shape_binding")
@exercises("ICudaEngine.is_execution_binding", "ICudaEngine.get_profile_shape", "ICudaEngine.get_profile_shape_input")
def test_what_a_binding_is():
    log = Log()
    image, expanded = opened(engines.image(), log), opened(engines.expanded(), log)
    for binding in (0, "x", 3, "x [profile 1]"):
        assert image.get_binding_shape(binding) == (-1, 3, 6, 5) and image.get_binding_dtype(binding) is trt.float32
        assert image.get_location(binding) is trt.TensorLocation.DEVICE
    assert [expanded.get_binding_dtype(i) for i in range(3)] == [trt.int32, trt.float32, trt.float32]
    assert expanded.get_location("shape") is trt.TensorLocation.HOST
    assert [expanded.is_shape_binding(i) for i in range(3)] == [True, False, False]
    assert [expanded.is_execution_binding(i) for i in range(3)] == [True] * 3
    for binding in (0, "x", 3):
        assert image.get_profile_shape(1, binding) == [(3, 3, 6, 5), (5, 3, 6, 5), (8, 3, 6, 5)]
    assert image.get_profile_shape(profile_index=0, binding="x")[0] == (1, 3, 6, 5)
    assert expanded.get_profile_shape_input(0, 0) == expanded.get_profile_shape_input(0, "shape") == [[1, 1], [2, 3], [6, 7]]
    assert expanded.get_profile_shape_input(0, "x") == []
    log.messages.clear()
    with pytest.raises(ValueError, match="invalid"):
        len(image.get_binding_shape(9))
    assert image.get_binding_dtype(9) is trt.float32 and not image.is_shape_binding(9) and not image.is_execution_binding(9)
    assert image.get_profile_shape_input(0, 9) == [] and image.get_location("nothing") is trt.TensorLocation.DEVICE
    assert len(log.errors()) == 6
    for method in ("get_binding_shape", "get_binding_dtype", "get_location", "is_shape_binding", "is_execution_binding"):
        with pytest.raises(TypeError):
            getattr(image, method)(None)


@exercises("ICudaEngine.get_binding_format", "ICudaEngine.get_binding_format_desc", "ICudaEngine.get_binding_vectorized_dim")
@exercises("ICudaEngine.get_binding_bytes_per_component", "ICudaEngine.get_binding_components_per_element")
def test_formats_of_bindings():
    engine = opened(engines.channels_last())
    assert engine.get_binding_format(0) is trt.TensorFormat.HWC and "kHWC" in engine.get_binding_format_desc(1)
    for method in ("vectorized_dim", "bytes_per_component", "components_per_element"):
        assert getattr(engine, f"get_binding_{method}")(0) == -1
        with pytest.raises(TypeError):
            getattr(engine, f"get_binding_{method}")("x")


@exercises("IExecutionContext.set_binding_shape", "IExecutionContext.get_binding_shape", "IExecutionContext.get_strides")
@exercises("IExecutionContext.execute_async_v2")
def test_shapes_and_runs_by_index():
    log = Log()
    engine = opened(engines.image(), log)
    context = engine.create_execution_context()
    assert context.get_binding_shape(0) == (-1, 3, 6, 5)
    assert context.set_binding_shape(0, (2, 3, 6, 5)) and context.get_binding_shape(1) == (2, 4, 6, 5)
    assert context.get_strides(0) == (90, 30, 5, 1)
    x = normal(2, 3, 6, 5)
    want = dovetail.load(engines.image()).run({"x": x})
    y, raw = np.zeros_like(want["y"]), np.zeros_like(want["raw"])
    # As the oldest code has it: a list with room for the bindings of all profiles.
    bindings = [at(x), at(y), at(raw), 0, 0, 0]
    assert context.execute_async_v2(bindings=bindings, stream_handle=0)
    np.testing.assert_array_equal(y, want["y"])
    log.messages.clear()
    for binding, shape in ((3, (3, 3, 6, 5)), (1, (2, 4, 6, 5)), (9, (1,)), (0, (9, 3, 6, 5))):
        assert not context.set_binding_shape(binding, shape) and len(log.errors()) == 1
    context.active_optimization_profile = 1
    assert context.set_binding_shape(3, (3, 3, 6, 5)) and context.get_binding_shape(4) == (3, 4, 6, 5)
    x = normal(3, 3, 6, 5)
    want = dovetail.load(engines.image()).run({"x": x})
    y, raw = np.zeros_like(want["y"]), np.zeros_like(want["raw"])
    assert context.execute_async_v2([0, 0, 0, at(x), at(y), at(raw)], 0)
    np.testing.assert_array_equal(raw, want["raw"])
    with pytest.raises(TypeError):
        context.set_binding_shape("x", (1, 3, 6, 5))
    with pytest.raises(TypeError):
        context.execute_async_v2([1, 2, 3], "stream")


@exercises("IExecutionContext.set_shape_input", "IExecutionContext.get_shape")
def test_values_of_shapes_by_index():
    log = Log()
    context = opened(engines.expanded(), log).create_execution_context()
    x, y = np.full((1, 1), 4, np.float32), np.zeros((2, 5), np.float32)
    assert context.get_shape(0) == [] and not context.all_shape_inputs_specified
    assert context.set_shape_input(0, [2, 5]) and context.get_shape(0) == [2, 5] and context.all_shape_inputs_specified
    assert context.get_binding_shape(2) == (2, 5) and context.execute_v2([0, at(x), at(y)]) and (y == 4).all()
    log.messages.clear()
    for binding, values in ((0, [2]), (0, [7, 1]), (1, [1, 1]), (9, [1, 1])):
        assert not context.set_shape_input(binding, values) and log.errors()
    with pytest.raises(TypeError):
        context.set_shape_input(0, 3)


@exercises("IExecutionContext.execute", "IExecutionContext.execute_async")
def test_implicit_batches():
    log = Log()
    engine = opened(engines.batched(), log)
    context = engine.create_execution_context()
    x = normal(4, 5)
    want = dovetail.load(engines.batched()).run({"x": x})["y"]
    assert engine.get_binding_shape(0) == (5,) and context.get_binding_shape(1) == (3,)
    sizes = [trt.volume(engine.get_binding_shape(b)) * engine.max_batch_size for b in engine]
    assert sizes == [20, 12]
    for batch, run in ((4, context.execute), (2, context.execute), (3, context.execute_async)):
        y = np.zeros((4, 3), np.float32)
        assert run(batch_size=batch, bindings=[at(x), at(y)])
        np.testing.assert_allclose(y[:batch], want[:batch], rtol=1e-6)
        assert not y[batch:].any()
    y = np.zeros((4, 3), np.float32)
    assert context.execute_async(1, [at(x), at(y)], 0, None) and y[0].any() and not y[1:].any()
    log.messages.clear()
    for batch in (0, 5, -1):
        assert not context.execute(batch, [at(x), at(y)]) and log.errors()
    with pytest.raises(TypeError):
        context.execute("1", [at(x), at(y)])
    # With explicit batches the number is of no meaning.
    explicit = opened(engines.bare()).create_execution_context()
    explicit.set_binding_shape(0, (4, 5))
    out = np.zeros((4, 3), np.float32)
    assert explicit.execute(1, [at(x), at(out)])
    np.testing.assert_array_equal(out, dovetail.load(engines.bare()).run({"x": x})["y"])


def test_an_event_of_one_run():
    log = Log()
    context = opened(engines.bare(), log).create_execution_context()
    x, y = normal(2, 5), np.zeros((2, 3), np.float32)
    context.set_binding_shape(0, x.shape)
    context.set_input_consumed_event(0)
    assert not context.execute_async_v2([at(x), at(y)], 0, 0xABC) and "0xabc" in log.errors()[0]
    assert context.get_input_consumed_event() == 0 and context.execute_async_v2([at(x), at(y)], 0)
