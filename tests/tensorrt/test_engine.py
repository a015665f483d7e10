"""Runtimes and engines: what is opened, what it says of itself, what it is serialized to."""

import io

import numpy as np
import pytest

import dovetail
import dovetail.tensorrt as trt
from dovetail.core.errors import PlanFormatError
from dovetail.tensorrt.record import Record
from tests.tensorrt import engines
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Errors, Log, at, normal, opened


def run(engine, x, name="x", out="y"):
    """The first output of an engine with one input, through a context."""
    context = engine.create_execution_context()
    assert context.set_input_shape(name, x.shape)
    for other in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(other)
        if engine.get_tensor_mode(tensor) is trt.TensorIOMode.OUTPUT:
            context.set_output_allocator(tensor, found := engines.Buffers()) if tensor == out else context.set_output_allocator(
                tensor, engines.Buffers()
            )
            if tensor == out:
                kept = found
    context.set_tensor_address(name, at(x))
    assert context.execute_async_v3(0)
    return kept.array(out, np.float32)


class Reader(trt.IStreamReader):
    """Reads a file from front to back."""

    def __init__(self, data, fail=False):
        trt.IStreamReader.__init__(self)
        self.file, self.fail, self.sizes = io.BytesIO(data), fail, []

    def read(self, size):
        self.sizes.append(size)
        return None if self.fail else self.file.read(size)


class ReaderV2(trt.IStreamReaderV2):
    """Reads a file in any order."""

    def __init__(self, data):
        trt.IStreamReaderV2.__init__(self)
        self.file, self.streams = io.BytesIO(data), set()

    def read(self, num_bytes, stream):
        self.streams.add(stream)
        return memoryview(self.file.read(num_bytes))

    def seek(self, offset, where):
        return self.file.seek(offset, int(where)) >= 0


@exercises("Runtime", "Runtime.deserialize_cuda_engine", "Runtime.logger", "ICudaEngine")
@exercises("IStreamReader", "IStreamReader.read", "IStreamReaderV2", "IStreamReaderV2.read")
def test_engines_come_from_buffers_and_readers():
    log = Log()
    runtime = trt.Runtime(log)
    assert runtime.logger is log
    data, x = engines.bare(), normal(2, 5)
    want = dovetail.load(data).run({"x": x})["y"]
    for source in (data, bytearray(data), memoryview(data), trt.IHostMemory(data), Reader(data), ReaderV2(data)):
        engine = runtime.deserialize_cuda_engine(source)
        assert isinstance(engine, trt.ICudaEngine)
        np.testing.assert_array_equal(run(engine, x), want)
    assert runtime.deserialize_cuda_engine(serialized_engine=data) and runtime.deserialize_cuda_engine(stream_reader_v2=ReaderV2(data))
    assert any("Loaded engine size" in text for _, text in log.messages)


@exercises("Runtime.error_recorder", "ICudaEngine.error_recorder")
def test_what_is_no_engine_is_none_and_a_message():
    log, recorder = Log(), Errors()
    runtime = trt.Runtime(log)
    assert runtime.error_recorder is None
    runtime.error_recorder = recorder
    damaged = bytearray(engines.bare())
    damaged[len(damaged) // 2] ^= 255
    for source in (b"", b"no engine", engines.bare()[:-100], Reader(b"PK"), Reader(b"", fail=True)):
        log.messages.clear()
        assert runtime.deserialize_cuda_engine(source) is None
        assert log.errors()
    assert len(recorder.kept) >= 5 and all(isinstance(code, trt.ErrorCodeTRT) for code, _ in recorder.kept)
    assert trt.Runtime(log).deserialize_cuda_engine(engines.bare()).error_recorder is None
    engine = runtime.deserialize_cuda_engine(engines.bare())
    assert engine.error_recorder is recorder is runtime.error_recorder
    for wrong in (None, 3, "engine.plan", object()):
        with pytest.raises(TypeError):
            runtime.deserialize_cuda_engine(wrong)
    for wrong in (None, object()):
        with pytest.raises(TypeError):
            trt.Runtime(wrong)
    with pytest.raises(TypeError):
        runtime.error_recorder = log


def test_damaged_records_and_tensors_that_tensorrt_does_not_have():
    engine = dovetail.load(engines.bare())
    engine.annotate("tensorrt", {"layers": [1]})
    log = Log()
    assert trt.Runtime(log).deserialize_cuda_engine(engine.to_bytes()) is None and "damaged record" in log.errors()[0]
    with pytest.raises(PlanFormatError):
        Record.read({"profiles": [{"shapes": {"x": [[1]]}}]})
    assert Record.read({"newer": 1, **engines.IMAGE.json()}) == engines.IMAGE
    net = dovetail.Network()
    net.output(net.op("Neg", net.input("x", "f64", (2,))), "y")
    log = Log()
    assert trt.Runtime(log).deserialize_cuda_engine(engines.built(net).to_bytes()) is None and "'x'" in log.errors()[0]


@exercises("Runtime.engine_host_code_allowed")
def test_host_code_is_trusted_on_request_only():
    unsigned = dovetail.load(engines.bare()).to_bytes(sign=False)
    x = normal(2, 5)
    want = run(opened(engines.bare()), x)
    runtime = trt.Runtime(Log())
    assert runtime.engine_host_code_allowed is False
    made_again = runtime.deserialize_cuda_engine(unsigned)
    runtime.engine_host_code_allowed = True
    as_stored = runtime.deserialize_cuda_engine(unsigned)
    for engine in (made_again, as_stored):
        np.testing.assert_array_equal(run(engine, x), want)
    with pytest.raises(TypeError):
        runtime.engine_host_code_allowed = 1


@exercises("Runtime.max_threads", "Runtime.temporary_directory", "Runtime.tempfile_control_flags", "Runtime.__enter__", "Runtime.__exit__")
@exercises("TempfileControlFlag.ALLOW_IN_MEMORY_FILES", "TempfileControlFlag.ALLOW_TEMPORARY_FILES")
@exercises("ICudaEngine.__enter__", "ICudaEngine.__exit__")
def test_settings_of_a_runtime():
    log = Log()
    with pytest.warns(DeprecationWarning), trt.Runtime(log) as runtime:
        most = runtime.max_threads
        assert most >= 1
        runtime.max_threads = 1
        assert runtime.max_threads == 1
        with pytest.warns(DeprecationWarning), runtime.deserialize_cuda_engine(engines.bare()) as engine:
            assert engine._engine.threads == 1
        runtime.max_threads = 0
        assert runtime.max_threads == 1 and log.errors()
        runtime.temporary_directory = "/somewhere"
        assert runtime.temporary_directory == "/somewhere"
        flag = 1 << int(trt.TempfileControlFlag.ALLOW_IN_MEMORY_FILES)
        assert runtime.tempfile_control_flags == flag | 1 << int(trt.TempfileControlFlag.ALLOW_TEMPORARY_FILES)
        runtime.tempfile_control_flags = flag
        assert runtime.tempfile_control_flags == flag
        for name, value in (("temporary_directory", 3), ("tempfile_control_flags", "x"), ("max_threads", 1.5), ("gpu_allocator", log)):
            with pytest.raises(TypeError):
                setattr(runtime, name, value)
        assert runtime.DLA_core == -1 and runtime.num_DLA_cores == 0


@exercises("Runtime.get_plugin_registry")
def test_the_registry_is_everybodys():
    pytest.importorskip("dovetail.tensorrt.plugin_registry")
    assert trt.Runtime(Log()).get_plugin_registry() is trt.get_plugin_registry()


@exercises("ICudaEngine.name", "ICudaEngine.num_layers", "ICudaEngine.num_optimization_profiles", "ICudaEngine.refittable")
@exercises("ICudaEngine.engine_capability", "ICudaEngine.hardware_compatibility_level", "ICudaEngine.profiling_verbosity")
@exercises("ICudaEngine.tactic_sources", "ICudaEngine.num_aux_streams", "ICudaEngine.has_implicit_batch_dimension")
@exercises("ICudaEngine.max_batch_size", "ICudaEngine.max_workspace_size")
def test_what_an_engine_says_of_itself():
    image, bare = opened(engines.image()), opened(engines.bare())
    assert (image.name, bare.name) == ("image", "Unnamed Network 0")
    assert (image.num_optimization_profiles, bare.num_optimization_profiles) == (2, 1)
    assert image.num_layers >= 6 and image.num_layers % 2 == 0 and bare.num_layers >= 1
    assert image.refittable and bare.refittable
    assert not opened(engines.positions()).refittable or dovetail.load(engines.positions()).plan.weights
    assert image.engine_capability is trt.EngineCapability.STANDARD
    assert image.hardware_compatibility_level is trt.HardwareCompatibilityLevel.NONE
    assert image.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    assert opened(engines.batched()).profiling_verbosity is trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    assert (image.tactic_sources, image.max_workspace_size, image.num_aux_streams) == (5, 1 << 20, 0)
    assert not image.has_implicit_batch_dimension and image.max_batch_size == 1
    batched = opened(engines.batched())
    assert batched.has_implicit_batch_dimension and batched.max_batch_size == 4


@exercises("ICudaEngine.num_io_tensors", "ICudaEngine.get_tensor_name", "ICudaEngine.get_tensor_mode", "ICudaEngine.get_tensor_shape")
@exercises("ICudaEngine.get_tensor_dtype", "ICudaEngine.get_tensor_location", "ICudaEngine.is_shape_inference_io")
@exercises("TensorIOMode", "TensorLocation", "TensorIOMode.NONE", "TensorIOMode.INPUT", "TensorIOMode.OUTPUT")
def test_tensors_of_an_engine():
    log = Log()
    engine = opened(engines.expanded(), log)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert names == ["shape", "x", "y"]
    given, made, neither = trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT, trt.TensorIOMode.NONE
    assert [engine.get_tensor_mode(n) for n in (*names, "z")] == [given, given, made, neither]
    assert [engine.get_tensor_shape(n) for n in names] == [(2,), (1, 1), (-1, -1)]
    assert [engine.get_tensor_dtype(n) for n in names] == [trt.int32, trt.float32, trt.float32]
    assert [engine.get_tensor_location(n) for n in names] == [trt.TensorLocation.HOST, *[trt.TensorLocation.DEVICE] * 2]
    assert [engine.is_shape_inference_io(n) for n in names] == [True, False, False]
    log.messages.clear()
    assert engine.get_tensor_name(3) is None and engine.get_tensor_name(-1) is None
    with pytest.raises(ValueError, match="invalid"):
        len(engine.get_tensor_shape("z"))
    assert engine.get_tensor_dtype("z") is trt.float32 and not engine.is_shape_inference_io("z")
    assert len(log.errors()) == 5
    for method in ("get_tensor_mode", "get_tensor_shape", "get_tensor_dtype", "get_tensor_location", "is_shape_inference_io"):
        with pytest.raises(TypeError):
            getattr(engine, method)(0)
    with pytest.raises(TypeError):
        engine.get_tensor_name("x")
    assert [opened(engines.batched()).get_tensor_shape(n) for n in ("x", "y")] == [(5,), (3,)]
    # The plain engine knows by itself which inputs are read as shapes.
    plain = dovetail.load(engines.expanded())
    plain.annotate("tensorrt", None)
    assert opened(plain.to_bytes()).is_shape_inference_io("shape")


@exercises("ICudaEngine.get_tensor_format", "ICudaEngine.get_tensor_format_desc", "ICudaEngine.get_tensor_bytes_per_component")
@exercises("ICudaEngine.get_tensor_components_per_element", "ICudaEngine.get_tensor_vectorized_dim")
def test_formats():
    linear, last = opened(engines.image()), opened(engines.channels_last())
    assert linear.get_tensor_format("x") is linear.get_tensor_format("y", 1) is trt.TensorFormat.LINEAR
    assert last.get_tensor_format("x", 0) is trt.TensorFormat.HWC
    assert "Row major linear FP32" in linear.get_tensor_format_desc("x") and "kHWC" in last.get_tensor_format_desc("y", 0)
    assert linear.get_tensor_format_desc("nothing") == ""
    for method in ("get_tensor_bytes_per_component", "get_tensor_components_per_element", "get_tensor_vectorized_dim"):
        assert getattr(linear, method)("x") == getattr(linear, method)("x", 1) == -1
        with pytest.raises(TypeError):
            getattr(linear, method)("x", "0")
    with pytest.raises(TypeError):
        linear.get_tensor_format("x", None)


@exercises("ICudaEngine.get_tensor_profile_shape", "ICudaEngine.get_tensor_profile_values")
def test_profiles_of_an_engine():
    log = Log()
    image = opened(engines.image(), log)
    assert image.get_tensor_profile_shape("x", 0) == [(1, 3, 6, 5), (2, 3, 6, 5), (4, 3, 6, 5)]
    assert image.get_tensor_profile_shape("x", 1)[2] == (8, 3, 6, 5)
    for name, profile in (("y", 0), ("x", 2), ("x", -1), ("nothing", 0)):
        with pytest.raises(ValueError, match="invalid"):
            len(image.get_tensor_profile_shape(name, profile)[0])
    assert len([t for s, t in log.messages if s is trt.Logger.ERROR]) == 3
    assert image.get_tensor_profile_values("x", 0) == []
    expanded = opened(engines.expanded())
    assert expanded.get_tensor_profile_values("shape", 0) == [[1, 1], [2, 3], [6, 7]]
    assert expanded.get_tensor_profile_values("shape", 1) == []
    assert opened(engines.batched()).get_tensor_profile_shape("x", 0) == [(5,)] * 3
    assert opened(engines.bare()).get_tensor_profile_shape("x", 0) == [(1, 5), (1, 5), (2**31 - 1, 5)]
    with pytest.raises(TypeError):
        image.get_tensor_profile_shape("x", "0")


@exercises("ICudaEngine.is_debug_tensor", "ICudaEngine.get_aliased_input_tensor")
def test_debug_tensors_and_aliases():
    image, cache = opened(engines.image()), opened(engines.cache())
    assert image.is_debug_tensor("shown") and not image.is_debug_tensor("y")
    assert [cache.get_aliased_input_tensor(n) for n in ("past", "now", "y")] == [None, "past", None]


@exercises("ICudaEngine.device_memory_size", "ICudaEngine.device_memory_size_v2", "ICudaEngine.get_device_memory_size_for_profile")
@exercises("ICudaEngine.get_device_memory_size_for_profile_v2")
def test_memory_grows_with_the_largest_shapes_of_a_profile():
    log = Log()
    engine = opened(engines.image(), log)
    small, large = (engine.get_device_memory_size_for_profile_v2(i) for i in range(2))
    assert 0 < small < large == engine.device_memory_size == engine.device_memory_size_v2
    assert engine.get_device_memory_size_for_profile(0) == small
    log.messages.clear()
    assert engine.get_device_memory_size_for_profile(2) == 0 and log.errors()
    assert opened(engines.bare()).device_memory_size < 4096


@exercises("ICudaEngine.streamable_weights_size", "ICudaEngine.weight_streaming_budget_v2", "ICudaEngine.weight_streaming_budget")
@exercises("ICudaEngine.minimum_weight_streaming_budget", "ICudaEngine.weight_streaming_scratch_memory_size")
@exercises("ICudaEngine.get_weight_streaming_automatic_budget", "ICudaEngine.get_engine_stat", "EngineStat")
@exercises("EngineStat.TOTAL_WEIGHTS_SIZE", "EngineStat.STRIPPED_WEIGHTS_SIZE")
def test_all_weights_are_on_the_device():
    log = Log()
    engine = opened(engines.bare(), log)
    assert engine.streamable_weights_size == engine.minimum_weight_streaming_budget == engine.weight_streaming_scratch_memory_size == 0
    engine.weight_streaming_budget_v2 = 1 << 20
    engine.weight_streaming_budget = -1
    assert engine.weight_streaming_budget_v2 == engine.weight_streaming_budget == engine.get_weight_streaming_automatic_budget() == 0
    log.messages.clear()
    engine.weight_streaming_budget_v2 = -1
    assert log.errors()
    with pytest.raises(TypeError):
        engine.weight_streaming_budget_v2 = "all"
    assert engine.get_engine_stat() == engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE) == 5 * 3 * 4
    assert engine.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE) == 0
    with pytest.raises(TypeError):
        engine.get_engine_stat(0)


@exercises("ICudaEngine.serialize", "ICudaEngine.serialize_with_config", "ICudaEngine.create_serialization_config")
@exercises("ISerializationConfig", "ISerializationConfig.flags", "ISerializationConfig.set_flag", "ISerializationConfig.clear_flag")
@exercises("ISerializationConfig.get_flag", "SerializationFlag.EXCLUDE_WEIGHTS", "SerializationFlag.INCLUDE_REFIT")
def test_engines_are_serialized_with_and_without_weights():
    engine, x = opened(engines.image()), normal(2, 3, 6, 5, seed=4)
    want = run(engine, x)
    copy = engine.serialize()
    assert isinstance(copy, trt.IHostMemory) and copy.nbytes == len(bytes(copy))
    again = opened(copy)
    assert again.name == "image" and again.num_optimization_profiles == 2
    np.testing.assert_array_equal(run(again, x), want)
    config = engine.create_serialization_config()
    assert isinstance(config, trt.ISerializationConfig) and config.flags == 0
    flag = trt.SerializationFlag.EXCLUDE_WEIGHTS
    assert config.set_flag(flag) and config.get_flag(flag) and config.flags == 1 << int(flag)
    log = Log()
    stripped = opened(engine.serialize_with_config(config), log)
    assert stripped.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE) > 0
    assert stripped.create_execution_context() is None and "Refitter" in log.errors()[0]
    assert stripped.get_tensor_shape("x") == (-1, 3, 6, 5) and stripped.num_layers == engine.num_layers
    assert bytes(stripped.serialize()) == bytes(engine.serialize_with_config(config)) or stripped.serialize().nbytes > 0
    assert config.clear_flag(flag) and not config.get_flag(flag)
    config.flags = 1 << int(trt.SerializationFlag.INCLUDE_REFIT)
    assert opened(engine.serialize_with_config(config)).refittable
    for wrong in (0, None):
        with pytest.raises(TypeError):
            config.set_flag(wrong)
        with pytest.raises(TypeError):
            engine.serialize_with_config(wrong)


def test_weights_of_an_engine_that_takes_no_others_stay_in_it():
    log = Log()
    engine = opened(engines.batched(), log)
    config = engine.create_serialization_config()
    config.set_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    log.messages.clear()
    assert not engine.refittable and engine.serialize_with_config(config) is None and "REFIT" in log.errors()[0]


@exercises("ICudaEngine.create_execution_context", "ICudaEngine.create_execution_context_without_device_memory")
@exercises("ICudaEngine.create_runtime_config", "IRuntimeConfig", "IRuntimeConfig.set_execution_context_allocation_strategy")
@exercises("IRuntimeConfig.get_execution_context_allocation_strategy", "IExecutionContext.get_runtime_config")
def test_contexts_are_made_with_a_strategy():
    engine = opened(engines.bare())
    kinds = trt.ExecutionContextAllocationStrategy
    config = engine.create_runtime_config()
    assert isinstance(config, trt.IRuntimeConfig) and config.get_execution_context_allocation_strategy() is kinds.STATIC
    config.set_execution_context_allocation_strategy(kinds.ON_PROFILE_CHANGE)
    made = {
        kinds.STATIC: engine.create_execution_context(),
        kinds.ON_PROFILE_CHANGE: engine.create_execution_context(runtime_config=config),
        kinds.USER_MANAGED: engine.create_execution_context_without_device_memory(),
    }
    for kind, context in made.items():
        assert isinstance(context, trt.IExecutionContext)
        assert context.get_runtime_config().get_execution_context_allocation_strategy() is kind
    assert engine.create_execution_context(strategy=kinds.STATIC) and engine.create_execution_context(config)
    for wrong in (0, "STATIC", None):
        with pytest.raises(TypeError):
            engine.create_execution_context(wrong)
    with pytest.raises(TypeError):
        config.set_execution_context_allocation_strategy(1)
