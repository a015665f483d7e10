"""The builder: networks, engines by every road of 7 to 11, progress and cancelling, what is told of failures."""

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.core.env import override
from tests.tensorrt.coverage import exercises
from tests.tensorrt.programs import Messages, deserialized, expected, quick, run, sample, small


@pytest.fixture
def logger():
    return Messages()


@pytest.fixture
def builder(logger):
    return trt.Builder(logger)


def computes(engine, weights):
    x = sample(2, 8)
    np.testing.assert_allclose(run(engine, x=x)["y"], expected(x, weights), rtol=1e-5, atol=1e-5)
    return True


# ---- building ----


@exercises("Builder", "Builder.build_serialized_network", "Builder.create_network", "Builder.logger")
def test_a_serialized_network_is_an_engine_that_runs(builder, logger):
    network, weights = small(builder)
    plan = builder.build_serialized_network(network, quick(builder))
    assert isinstance(plan, trt.IHostMemory) and plan.nbytes == len(bytes(plan)) > 1000 and builder.logger is logger
    assert computes(deserialized(plan, logger), weights)
    assert logger.errors() == ""


@exercises("Builder.build_engine", "Builder.build_engine_with_config")
@pytest.mark.parametrize("method", ["build_engine", "build_engine_with_config"])
def test_engines_come_without_serialization(builder, method):
    build = {"build_engine": builder.build_engine, "build_engine_with_config": builder.build_engine_with_config}
    both = list(build.values())
    assert len(both) == 2
    network, weights = small(builder)
    network.name = "small"
    engine = build[method](network, quick(builder))
    assert isinstance(engine, trt.ICudaEngine) and engine.name == "small" and computes(engine, weights)


class Writer(trt.IStreamWriter):
    def __init__(self, most=None, fails=False):
        super().__init__()
        self.data, self.most, self.fails = b"", most, fails

    def write(self, data):
        if self.fails:
            raise OSError("the disk is full")
        taken = bytes(data)[: self.most]
        self.data += taken
        return len(taken)


@exercises("Builder.build_serialized_network_to_stream")
def test_an_engine_is_written_to_a_stream(builder, logger):
    network, weights = small(builder)
    config = quick(builder)
    for most in (None, 1000):
        writer = Writer(most)
        assert builder.build_serialized_network_to_stream(network, config, writer)
        assert computes(deserialized(writer.data, logger), weights)
    assert not builder.build_serialized_network_to_stream(network, config, Writer(0)) and "took 0 of" in logger.errors()
    assert not builder.build_serialized_network_to_stream(network, config, Writer(fails=True))
    assert "the disk is full" in logger.errors()


@exercises(
    "Builder.build_cuda_engine", "Builder.max_workspace_size", "Builder.fp16_mode", "Builder.int8_mode", "Builder.refittable",
    "Builder.strict_type_constraints", "Builder.debug_sync", "Builder.int8_calibrator", "Builder.min_find_iterations",
    "Builder.average_find_iterations", "Builder.reset",
)  # fmt: skip
def test_engines_in_the_style_of_7(builder):
    network, weights = small(builder)
    assert builder.max_workspace_size == 0 and builder.int8_calibrator is None
    assert builder.min_find_iterations == builder.average_find_iterations == 1
    engine = builder.build_cuda_engine(network)
    assert computes(engine, weights) and not engine.refittable and engine._record.requested == ("TF32",)
    builder.max_workspace_size = 1 << 20
    builder.fp16_mode = builder.int8_mode = builder.refittable = builder.strict_type_constraints = builder.debug_sync = True
    engine = builder.build_cuda_engine(network)
    assert computes(engine, weights) and engine.refittable and engine._record.max_workspace_size == 1 << 20
    assert set(engine._record.requested) == {"FP16", "INT8", "DEBUG", "REFIT", "TF32", "STRICT_TYPES"}
    builder.reset()
    assert not (builder.fp16_mode or builder.int8_mode or builder.refittable or builder.strict_type_constraints or builder.debug_sync)
    assert builder.max_workspace_size == 0


@exercises("Builder.max_batch_size", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH")
def test_implicit_batches_are_those_of_clients_before_10(builder, logger):
    assert not builder.create_network(0).has_implicit_batch_dimension
    with override(tensorrt_version="7.2.3.4"):
        assert not builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)).has_implicit_batch_dimension
        network = builder.create_network()
    assert network.has_implicit_batch_dimension
    x = network.add_input("x", trt.float32, (8,))
    y = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    y.name = "y"
    network.mark_output(y)
    builder.max_batch_size = 0
    assert builder.max_batch_size == 1 and "expected at least 1" in logger.errors()
    builder.max_batch_size = 4
    engine = builder.build_engine(network, quick(builder))
    assert engine.has_implicit_batch_dimension and engine.max_batch_size == 4 and engine.get_binding_shape("x") == (8,)
    given, got = sample(4, 8), np.zeros((4, 8), np.float32)
    context = engine.create_execution_context()
    assert context.execute(3, [given.ctypes.data, got.ctypes.data])
    np.testing.assert_array_equal(got[:3], np.maximum(given[:3], 0))
    assert not got[3].any() and not context.execute(5, [given.ctypes.data, got.ctypes.data])


@exercises(
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "NetworkDefinitionCreationFlag.EXPLICIT_PRECISION", "NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS",
    "NetworkDefinitionCreationFlag.PREFER_JIT_PYTHON_PLUGINS",
)  # fmt: skip
def test_networks_of_every_flag_are_built(builder, logger):
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED", "EXPLICIT_PRECISION", "PREFER_AOT_PYTHON_PLUGINS", "PREFER_JIT_PYTHON_PLUGINS"):
        flag = getattr(trt.NetworkDefinitionCreationFlag, name)
        network = builder.create_network(1 << int(flag))
        assert network.get_flag(flag) and network.flags == 1 << int(flag) and network.builder is builder
        network.mark_output(network.add_identity(network.add_input("x", trt.float32, (3,))).get_output(0))
        assert builder.build_serialized_network(network, quick(builder)) is not None
    assert builder.create_network(1 << 9) is None and "got the flags 0x200" in logger.errors()


# ---- progress ----


class Monitor(trt.IProgressMonitor):
    """Keeps what it is told, checks that phases nest, and cancels after so many steps."""

    def __init__(self, steps=None):
        super().__init__()
        self.open, self.seen, self.left, self.steps = {}, [], steps, 0

    def phase_start(self, phase_name, parent_phase, num_steps):
        assert phase_name not in self.open and num_steps > 0 and (parent_phase is None) == (not self.open)
        assert parent_phase is None or parent_phase in self.open
        self.open[phase_name] = (num_steps, [])
        self.seen.append(phase_name)

    def step_complete(self, phase_name, step):
        count, done = self.open[phase_name]
        assert step == len(done) < count
        done.append(step)
        self.steps += 1
        return self.left is None or self.steps < self.left

    def phase_finish(self, phase_name):
        count, done = self.open.pop(phase_name)
        assert self.left is not None or len(done) == count


@exercises(
    "IBuilderConfig.progress_monitor", "IProgressMonitor.phase_start", "IProgressMonitor.step_complete",
    "IProgressMonitor.phase_finish",
)  # fmt: skip
def test_a_monitor_is_told_of_all_phases_and_steps(builder, logger):
    _interface = (trt.IProgressMonitor.phase_start, trt.IProgressMonitor.step_complete, trt.IProgressMonitor.phase_finish)
    network, weights = small(builder)
    config = quick(builder)
    config.progress_monitor = monitor = Monitor()
    assert config.progress_monitor is monitor
    assert computes(builder.build_engine(network, config), weights)
    assert builder.build_serialized_network(network, config) is not None
    assert monitor.seen.count("Building Engine") == 2 and "Optimizing the graph" in monitor.seen and not monitor.open
    assert logger.errors() == ""  # what a monitor raises is an error in the log


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_a_monitor_cancels_a_build(builder, logger, steps):
    network, weights = small(builder)
    config = quick(builder)
    config.progress_monitor = monitor = Monitor(steps)
    assert builder.build_serialized_network(network, config) is None
    assert monitor.steps == steps and not monitor.open and "cancelled the build" in logger.text()
    config.progress_monitor = None
    assert computes(builder.build_engine(network, config), weights)


# ---- properties ----


@exercises(
    "Builder.platform_has_fast_fp16", "Builder.platform_has_fast_int8", "Builder.platform_has_tf32", "Builder.num_DLA_cores",
    "Builder.max_DLA_batch_size",
)  # fmt: skip
def test_what_the_platform_has(builder):
    assert builder.platform_has_fast_int8 is False and builder.num_DLA_cores == builder.max_DLA_batch_size == 0
    with override(tensorrt_device="cpu"):
        assert not builder.platform_has_fast_fp16 and not builder.platform_has_tf32
    with override(tensorrt_device="cuda:1"):
        assert builder.platform_has_fast_fp16 and builder.platform_has_tf32


@exercises("Builder.max_threads")
def test_threads_are_those_of_the_engine(builder, logger):
    assert builder.max_threads >= 1
    builder.max_threads = 0
    assert builder.max_threads >= 1 and "expected at least 1" in logger.errors()
    builder.max_threads = 1
    network, _ = small(builder)
    assert builder.build_engine(network, quick(builder))._engine.threads == 1 == builder.max_threads


class Recorder(trt.IErrorRecorder):
    """Keeps up to four errors."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def report_error(self, code, desc):
        self.errors.append((code, desc))
        return False

    def get_num_errors(self):
        return len(self.errors)

    def get_error_code(self, index):
        return self.errors[index][0]

    def get_error_desc(self, index):
        return self.errors[index][1]

    def has_overflowed(self):
        return len(self.errors) > 4

    def clear(self):
        self.errors.clear()


METHODS = ("report_error", "get_num_errors", "get_error_code", "get_error_desc", "has_overflowed", "clear")


@exercises(
    "IErrorRecorder", "IErrorRecorder.num_errors", "IErrorRecorder.MAX_DESC_LENGTH", *(f"IErrorRecorder.{m}" for m in METHODS),
    "ErrorCodeTRT.INVALID_STATE", "ErrorCodeTRT.INVALID_ARGUMENT", "ErrorCodeTRT.INVALID_CONFIG", "ErrorCodeTRT.UNSUPPORTED_STATE",
    "ErrorCodeTRT.FAILED_EXECUTION",
)  # fmt: skip
def test_a_recorder_keeps_each_kind_of_error(builder):
    assert all(getattr(trt.IErrorRecorder, m) is not getattr(Recorder, m) for m in METHODS)
    builder.error_recorder = recorder = Recorder()
    network, _ = small(builder, batch=-1)
    config = quick(builder)
    refused = quick(builder)
    refused.engine_capability = trt.EngineCapability.SAFETY
    calls = (
        (lambda: builder.build_serialized_network(network, config), trt.ErrorCodeTRT.INVALID_STATE, "no optimization profile"),
        (lambda: builder.create_network(1 << 12), trt.ErrorCodeTRT.INVALID_ARGUMENT, "got the flags"),
        (lambda: builder.build_serialized_network(network, refused), trt.ErrorCodeTRT.INVALID_CONFIG, "EngineCapability.SAFETY"),
        (lambda: builder.is_network_supported(network, refused), trt.ErrorCodeTRT.UNSUPPORTED_STATE, "EngineCapability.SAFETY"),
        (lambda: builder.build_serialized_network_to_stream(small(builder)[0], config, Writer(fails=True)),
         trt.ErrorCodeTRT.FAILED_EXECUTION, "the disk is full"),
    )  # fmt: skip
    for call, code, words in calls:
        recorder.clear()
        call()
        assert recorder.num_errors() == recorder.get_num_errors() >= 1 and not recorder.has_overflowed()
        assert recorder.get_error_code(0) is code and words in recorder.get_error_desc(0)
        assert all(len(recorder.get_error_desc(i)) <= trt.IErrorRecorder.MAX_DESC_LENGTH for i in range(recorder.num_errors()))


@exercises("Builder.error_recorder", "Builder.gpu_allocator")
def test_errors_are_recorded(builder):
    builder.error_recorder = recorder = Recorder()
    assert builder.error_recorder is recorder
    builder.gpu_allocator = allocator = trt.IGpuAllocator()
    assert builder.gpu_allocator is allocator
    builder.reset()
    assert builder.gpu_allocator is None and builder.error_recorder is None


@exercises("Builder.__enter__", "Builder.__exit__", "Builder.get_plugin_registry")
def test_a_builder_in_a_with_block(builder):
    with pytest.warns(DeprecationWarning), builder as same:
        assert same is builder
    assert builder.get_plugin_registry() is trt.get_plugin_registry()


@exercises("Builder.is_network_supported")
def test_networks_that_cannot_be_built(builder, logger):
    network, _ = small(builder)
    config = quick(builder)
    assert builder.is_network_supported(network, config)
    empty = builder.create_network(1)
    assert not builder.is_network_supported(empty, config)
    assert builder.build_serialized_network(empty, config) is None and "no outputs" in logger.errors()
    assert builder.build_engine(empty, config) is None and builder.build_cuda_engine(empty) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.create_network("0"), lambda b: b.build_serialized_network(None, b.create_builder_config()),
        lambda b: b.build_serialized_network(b.create_network(1), None), lambda b: b.build_engine(b.create_builder_config(), None),
        lambda b: setattr(b, "error_recorder", object()), lambda b: setattr(b, "gpu_allocator", object()),
        lambda b: b.build_serialized_network_to_stream(b.create_network(1), b.create_builder_config(), None),
        lambda b: trt.Builder(None),
    ],
)  # fmt: skip
def test_wrong_types_are_refused(builder, call):
    with pytest.raises(TypeError):
        call(builder)


def test_parts_may_go_in_any_order(logger):
    builder = trt.Builder(logger)
    network, weights = small(builder)
    config = quick(builder)
    plan = builder.build_serialized_network(network, config)
    del builder, network, config
    assert computes(deserialized(plan, logger), weights)


def test_a_network_is_built_again_after_changes(builder):
    network, weights = small(builder)
    config = quick(builder)
    assert computes(builder.build_engine(network, config), weights)
    layer = network.get_layer(network.num_layers - 1)
    layer.__class__ = trt.IActivationLayer
    layer.type = trt.ActivationType.SIGMOID
    x = sample(2, 8)
    got = run(builder.build_engine(network, config), x=x)["y"]
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-(x @ weights["w"] + weights["b"]))), rtol=1e-4, atol=1e-5)
