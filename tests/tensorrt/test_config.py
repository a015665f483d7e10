"""Builder configs: defaults as TensorRT's, what is set is read back and changes the engine, what cannot be had fails and says why."""

import fnmatch
import operator

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.core.env import override
from dovetail.tensorrt.compilation import _options, _without
from dovetail.tensorrt.logger import Reporter
from tests.tensorrt.coverage import cases, exercises
from tests.tensorrt.programs import Messages, deserialized, expected, quick, run, sample, small
from tests.tensorrt.test_timing_cache import SIZE, product


def made(change=None, builder=None, **network_options):
    """(engine or None, config, logger, weights) of the small network after a change of its config."""
    logger = Messages()
    builder = builder or trt.Builder(logger)
    network, weights = small(builder, **network_options)
    config = quick(builder)
    if change is not None:
        change(config, network)
    return builder.build_engine(network, config), config, logger, weights


def touched(member):
    """Whether the enum has the member by its name, which claims ask to be looked up."""
    return getattr(type(member), member.name) is member


def computes(engine, weights):
    """Whether the engine computes the small network."""
    x = sample(2, 8)
    np.testing.assert_allclose(run(engine, x=x)["y"], expected(x, weights), rtol=1e-5, atol=1e-5)
    return True


@exercises(
    "IBuilderConfig", "Builder.create_builder_config", "IBuilderConfig.DLA_core", "IBuilderConfig.default_device_type",
    "IBuilderConfig.profile_stream", "DeviceType.GPU", "IBuilderConfig.l2_limit_for_tiling", "IBuilderConfig.runtime_platform",
    "RuntimePlatform.SAME_AS_BUILD", "EngineCapability.STANDARD",
)  # fmt: skip
def test_defaults_are_those_that_clients_rely_on():
    config = trt.Builder(Messages()).create_builder_config()
    assert config.DLA_core == -1 and config.default_device_type is trt.DeviceType.GPU and config.flags == 1 << trt.BuilderFlag.TF32
    assert config.engine_capability is trt.EngineCapability.STANDARD and config.builder_optimization_level == 3
    assert config.max_aux_streams == -1 and config.profiling_verbosity is trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    assert config.runtime_platform is trt.RuntimePlatform.SAME_AS_BUILD and config.profile_stream == 0
    assert config.int8_calibrator is None and config.algorithm_selector is None and config.progress_monitor is None
    assert config.l2_limit_for_tiling == 0 and config.plugins_to_serialize == [] and config.num_optimization_profiles == 0
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) > 1 << 30


NEUTRAL = """BF16 DIRECT_IO DISABLE_COMPILATION_CACHE ENABLE_TACTIC_HEURISTIC FP16 FP4 FP8 GPU_FALLBACK INT4 INT8 MONITOR_MEMORY
    OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS REJECT_EMPTY_ALGORITHMS SPARSE_WEIGHTS STRICT_NANS STRICT_TYPES TF32
    VERSION_COMPATIBLE WEIGHT_STREAMING DEBUG DISTRIBUTIVE_INDEPENDENCE"""


@exercises("IBuilderConfig.set_flag", "IBuilderConfig.get_flag", "IBuilderConfig.clear_flag", "IBuilderConfig.flags")
@pytest.mark.parametrize(("flag", "value"), cases("BuilderFlag", **dict.fromkeys(NEUTRAL.split())))
def test_an_engine_of_each_flag_computes_the_same_and_says_what_was_asked(flag, value):
    def change(config, _):
        config.flags = 0
        config.set_flag(flag)
        assert touched(flag) and config.get_flag(flag) and config.flags == 1 << int(flag)

    engine, config, _, weights = made(change)
    assert computes(engine, weights)
    assert engine._record.requested == (flag.name,) and engine._record.actual["precision"] == "fp32"
    config.clear_flag(flag)
    assert not config.get_flag(flag) and config.flags == 0


@exercises("BuilderFlag.INT8", "BuilderFlag.FP8", "BuilderFlag.FP16")
def test_precisions_that_are_not_had_are_warned_of():
    logger = made(lambda config, _: [config.set_flag(getattr(trt.BuilderFlag, n)) for n in ("FP16", "INT8", "FP8")])[2]
    for name in ("FP16", "INT8", "FP8"):
        assert f"{name} was requested, actual is fp32" in logger.text()


@exercises("BuilderFlag.DEBUG", "BuilderFlag.DISTRIBUTIVE_INDEPENDENCE", "IBuilderConfig.build_route", "IBuilderConfig.all_build_routes")
def test_flags_that_change_how_an_engine_is_made():
    engine = made(lambda config, _: config.set_flag(trt.BuilderFlag.DEBUG))[0]
    assert engine._engine.certificate["level"] == "full"
    assert made()[0]._engine.info["requested"]["strict_fp32"] is False
    for change in (
        lambda config, _: config.set_flag(trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE),
        lambda config, _: setattr(config, "build_route", config.all_build_routes[1]),
    ):
        assert made(change)[0]._engine.info["requested"]["strict_fp32"] is True


@exercises(
    "BuilderFlag.REFIT", "BuilderFlag.REFIT_IDENTICAL", "BuilderFlag.REFIT_INDIVIDUAL", "BuilderFlag.STRIP_PLAN",
    "BuilderFlag.WEIGHTLESS",
)  # fmt: skip
def test_flags_that_let_an_engine_be_refitted():
    flag = trt.BuilderFlag
    assert not made()[0].refittable
    for one in (flag.REFIT, flag.REFIT_IDENTICAL, flag.REFIT_INDIVIDUAL, flag.WEIGHTLESS):
        assert made(lambda config, _, one=one: config.set_flag(one))[0].refittable

    def individual(config, network):
        config.set_flag(flag.REFIT_INDIVIDUAL)
        network.mark_weights_refittable("w")

    assert trt.Refitter(made(individual)[0], Messages()).get_all_weights() == ["w"]
    logger = Messages()
    builder = trt.Builder(logger)
    network, weights = small(builder)
    config = quick(builder)
    full = builder.build_serialized_network(network, config)
    config.set_flag(flag.STRIP_PLAN)
    stripped = builder.build_serialized_network(network, config)
    assert np.float32(weights["w"]).tobytes() in bytes(full) and weights["w"].tobytes() not in bytes(stripped)
    engine = deserialized(stripped, logger)
    refitter = trt.Refitter(engine, logger)
    assert sorted(refitter.get_missing_weights()) == ["b", "w"]
    assert all(refitter.set_named_weights(n, a) for n, a in weights.items()) and refitter.refit_cuda_engine()
    assert computes(engine, weights)


@exercises("NetworkDefinitionCreationFlag.STRONGLY_TYPED")
@pytest.mark.parametrize("flag", ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"])
def test_a_strongly_typed_network_takes_no_precision_flags(flag):
    logger = Messages()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    x = network.add_input("x", trt.float32, (2, 8))
    network.mark_output(network.add_identity(x).get_output(0))
    config = quick(builder)
    config.set_flag(getattr(trt.BuilderFlag, flag))
    assert builder.build_serialized_network(network, config) is None and f"takes no {flag}" in logger.errors()
    config.clear_flag(getattr(trt.BuilderFlag, flag))
    assert builder.build_serialized_network(network, config) is not None


@exercises("BuilderFlag.FP16", "BuilderFlag.BF16", "BuilderFlag.TF32", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS")
def test_what_a_gpu_is_asked_for():
    """The options of an engine for a GPU, which needs none to be looked at."""
    builder = trt.Builder(logger := Messages())
    network, _ = small(builder)
    flag, config, reporter = trt.BuilderFlag, quick(builder), Reporter(logger)
    network.get_layer(2).precision = trt.float32
    network.get_layer(3).name = "odd [name]*"
    network.get_layer(3).set_output_type(0, trt.float32)
    with override(tensorrt_device="cuda:0"):
        assert _options(network, config, reporter)["precision"] == "tf32"
        config.clear_flag(flag.TF32)
        assert _options(network, config, reporter)["precision"] == "fp32" and "fp32_nodes" not in _options(network, config, reporter)
        config.set_flag(flag.BF16)
        assert _options(network, config, reporter)["precision"] == "bf16"
        config.set_flag(flag.FP16)
        made = _options(network, config, reporter)
        assert (made["precision"], made["fp32_nodes"]) == ("fp16", []) and "ignored" in logger.text()
        config.set_flag(flag.OBEY_PRECISION_CONSTRAINTS)
        patterns = _options(network, config, reporter)["fp32_nodes"]
        assert [fnmatch.fnmatchcase(n, p) for n, p in zip(("product", "odd [name]*"), patterns, strict=True)] == [True, True]
        config.max_aux_streams = 3
        assert _options(network, config, reporter)["branches"] == 4
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        assert _options(network, config, reporter)["target"] == "cuda:sm_80"
        typed = builder.create_network(1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert _options(typed, config, reporter)["precision"] == "fp32"


# ---- what cannot be had ----


def refused(owner, member, name, why):
    """A value by its name; claimed with the property that takes it."""
    return pytest.param(name, (owner, member), why, marks=exercises(f"{owner}.{member}", f"IBuilderConfig.{name}"), id=f"{owner}.{member}")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        *(refused("EngineCapability", member, "engine_capability", "only EngineCapability.STANDARD")
          for member in ("SAFETY", "SAFE_GPU", "DLA_STANDALONE", "SAFE_DLA")),
        refused("RuntimePlatform", "WINDOWS_AMD64", "runtime_platform", "the system of the build"),
        refused("DeviceType", "DLA", "default_device_type", "no deep-learning accelerator"),
        pytest.param("plugins_to_serialize", ["a.so"], "no libraries of plugins", marks=exercises("IBuilderConfig.plugins_to_serialize")),
        pytest.param("remote_auto_tuning_config", "ssh://", "measured on this machine",
                     marks=exercises("IBuilderConfig.remote_auto_tuning_config")),
        ("build_route", "unknown", "expected one of default, direct"), ("flags", 1 << 60, "are no BuilderFlag"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_readable_and_fails_the_build(name, value, why):
    builder = trt.Builder(logger := Messages())
    network, weights = small(builder)
    config = quick(builder)
    if isinstance(value, tuple):
        value = getattr(getattr(trt, value[0]), value[1])
    before = getattr(config, name)
    setattr(config, name, value)
    assert getattr(config, name) == value
    assert builder.build_serialized_network(network, config) is None and why in logger.errors()
    assert not builder.is_network_supported(network, config)
    setattr(config, name, before)
    assert builder.is_network_supported(network, config) and computes(builder.build_engine(network, config), weights)


@exercises("BuilderFlag.SAFETY_SCOPE", "BuilderFlag.EXCLUDE_LEAN_RUNTIME", "PreviewFeature.MULTIDEVICE_RUNTIME_10_16")
def test_flags_and_features_that_cannot_be_had_fail_the_build():
    for change, why in (
        (lambda c, _: c.set_flag(trt.BuilderFlag.SAFETY_SCOPE), "no safety runtime"),
        (lambda c, _: c.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME), "no lean runtime"),
        (lambda c, _: c.set_preview_feature(trt.PreviewFeature.MULTIDEVICE_RUNTIME_10_16, True), "one device"),
    ):
        engine, _, logger, _ = made(change)
        assert engine is None and why in logger.errors()


@exercises(
    "IBuilderConfig.set_device_type", "IBuilderConfig.get_device_type", "IBuilderConfig.is_device_type_set",
    "IBuilderConfig.reset_device_type", "IBuilderConfig.can_run_on_DLA",
)  # fmt: skip
def test_layers_on_a_device_that_is_not_here_fail_the_build():
    builder = trt.Builder(logger := Messages())
    network, weights = small(builder)
    config, layer = quick(builder), network.get_layer(2)
    assert not config.can_run_on_DLA(layer) and not config.is_device_type_set(layer)
    assert config.get_device_type(layer) is trt.DeviceType.GPU
    config.set_device_type(layer, trt.DeviceType.DLA)
    assert config.is_device_type_set(layer) and config.get_device_type(layer) is trt.DeviceType.DLA
    assert builder.build_engine(network, config) is None and f"layer {layer.name!r} on DeviceType.DLA" in logger.errors()
    config.reset_device_type(layer)
    assert computes(builder.build_engine(network, config), weights)


# ---- numbers, enums, texts ----


@exercises(
    "IBuilderConfig.builder_optimization_level", "IBuilderConfig.max_num_tactics", "IBuilderConfig.avg_timing_iterations",
    "IBuilderConfig.min_timing_iterations", "IBuilderConfig.max_aux_streams",
)  # fmt: skip
def test_numbers_are_kept_and_decide_what_is_measured():
    _, config, logger, _ = made()
    config.builder_optimization_level = 9
    assert config.builder_optimization_level == 0 and "expected 0 to 5" in logger.errors()
    with pytest.raises(TypeError):
        config.max_aux_streams = "many"
    for name in ("max_num_tactics", "avg_timing_iterations", "min_timing_iterations", "max_aux_streams", "l2_limit_for_tiling"):
        setattr(config, name, 3)
        assert getattr(config, name) == 3

    level = made(lambda config, _: setattr(config, "builder_optimization_level", 5))[0]._engine.info["requested"]["optimization_level"]
    assert level == 5


@exercises("IBuilderConfig.profiling_verbosity")
@pytest.mark.parametrize(
    ("verbosity", "told"),
    cases("ProfilingVerbosity", LAYER_NAMES_ONLY="name", NONE="nothing", DETAILED="all", DEFAULT="name", VERBOSE="all")
)
def test_verbosity_decides_what_an_engine_tells(request, verbosity, told):
    assert getattr(trt.ProfilingVerbosity, request.node.name.rpartition("[")[2][:-1]) is verbosity
    engine = made(lambda config, _: setattr(config, "profiling_verbosity", verbosity))[0]
    assert engine.profiling_verbosity is verbosity
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    assert ("product" in text, "LayerType" in text) == {"name": (True, False), "nothing": (False, False), "all": (True, True)}[told]


@exercises("IBuilderConfig.hardware_compatibility_level")
@pytest.mark.parametrize(
    ("level", "value"), cases("HardwareCompatibilityLevel", NONE=None, AMPERE_PLUS="cpu:avx2", SAME_COMPUTE_CAPABILITY=None)
)
def test_compatibility_decides_the_instructions(level, value):
    from dovetail.codegen.target import Target

    engine, _, _, weights = made(lambda config, _: setattr(config, "hardware_compatibility_level", level))
    host = str(Target.host())
    assert engine._engine.plan.target == (value if value is not None and "avx" in host else host)
    assert touched(level) and engine.hardware_compatibility_level is level and computes(engine, weights)


@exercises("IBuilderConfig.tiling_optimization_level")
@pytest.mark.parametrize(("level", "value"), cases("TilingOptimizationLevel", NONE=0, FAST=1, MODERATE=2, FULL=3))
def test_tiling_levels_are_kept(level, value):
    engine, config, _, weights = made(lambda config, _: setattr(config, "tiling_optimization_level", level))
    assert touched(level) and config.tiling_optimization_level is level and int(level) == value and computes(engine, weights)


# ---- memory, sources, features ----


@exercises("IBuilderConfig.set_memory_pool_limit", "IBuilderConfig.get_memory_pool_limit", "IBuilderConfig.max_workspace_size")
@pytest.mark.parametrize(("pool", "size"), cases("MemoryPoolType", WORKSPACE=1 << 28, TACTIC_DRAM=1 << 29, TACTIC_SHARED_MEMORY=1 << 15))
def test_memory_pools(pool, size):
    engine, config, logger, weights = made(lambda config, _: config.set_memory_pool_limit(pool, size))
    assert touched(pool) and config.get_memory_pool_limit(pool) == size and computes(engine, weights)
    config.set_memory_pool_limit(pool, -1)
    assert config.get_memory_pool_limit(pool) == size and "expected a size" in logger.errors()
    config.max_workspace_size = 1 << 20
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == config.max_workspace_size == 1 << 20


@exercises("IBuilderConfig.set_tactic_sources", "IBuilderConfig.get_tactic_sources")
@pytest.mark.parametrize(
    ("source", "without"),
    cases("TacticSource", CUBLAS=["cudnn"], CUBLAS_LT=["cudnn"], CUDNN=["cublaslt"], EDGE_MASK_CONVOLUTIONS=["cublaslt", "cudnn"],
          JIT_CONVOLUTIONS=["cublaslt", "cudnn"]),
)  # fmt: skip
def test_tactic_sources_leave_libraries_out(source, without):
    engine, config, logger, weights = made(lambda config, _: config.set_tactic_sources(1 << source))
    assert config.get_tactic_sources() == 1 << source == engine.tactic_sources and computes(engine, weights)
    assert touched(source) and _without(config) == without
    assert not config.set_tactic_sources(1 << 20) and "expected some of" in logger.errors()
    assert config.get_tactic_sources() == 1 << source


@exercises("IBuilderConfig.set_preview_feature", "IBuilderConfig.get_preview_feature")
@pytest.mark.parametrize(
    ("feature", "value"),
    cases("PreviewFeature", PROFILE_SHARING_0806=[], ALIASED_PLUGIN_IO_10_03=[], RUNTIME_ACTIVATION_RESIZE_10_10=[],
          FASTER_DYNAMIC_SHAPES_0805=[], DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805=["cublaslt", "cudnn"]),
)  # fmt: skip
def test_preview_features(feature, value):
    engine, config, _, weights = made(lambda config, _: config.set_preview_feature(feature, True))
    assert touched(feature) and config.get_preview_feature(feature) and _without(config) == value and computes(engine, weights)
    config.set_preview_feature(feature, False)
    assert not config.get_preview_feature(feature)


@exercises(
    "IBuilderConfig.set_quantization_flag", "IBuilderConfig.get_quantization_flag", "IBuilderConfig.clear_quantization_flag",
    "IBuilderConfig.quantization_flags", "QuantizationFlag.CALIBRATE_BEFORE_FUSION",
)  # fmt: skip
def test_quantization_flags():
    config, flag = made()[1], trt.QuantizationFlag.CALIBRATE_BEFORE_FUSION
    assert not config.get_quantization_flag(flag)
    config.set_quantization_flag(flag)
    assert config.get_quantization_flag(flag) and config.quantization_flags == 1
    config.clear_quantization_flag(flag)
    assert config.quantization_flags == 0
    config.quantization_flags = 1
    assert config.get_quantization_flag(flag)


@exercises("IBuilderConfig.reset", "IBuilderConfig.__enter__", "IBuilderConfig.__exit__")
def test_a_reset_config_is_as_a_new_one():
    _, config, logger, _ = made()
    with pytest.warns(DeprecationWarning), config as same:
        assert same is config
    config.set_flag(trt.BuilderFlag.FP16)
    config.max_workspace_size = 5
    config.add_optimization_profile(trt.Builder(logger).create_optimization_profile())
    config.engine_capability = trt.EngineCapability.SAFETY
    config.reset()
    new = trt.Builder(logger).create_builder_config()
    for name in ("flags", "max_workspace_size", "num_optimization_profiles", "engine_capability", "builder_optimization_level"):
        assert getattr(config, name) == getattr(new, name)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.set_flag(0), lambda c: c.get_flag("FP16"), lambda c: c.set_memory_pool_limit(0, 1),
        lambda c: c.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, "1"), lambda c: c.add_optimization_profile(None),
        lambda c: c.set_timing_cache(b"", False), lambda c: setattr(c, "engine_capability", 0), lambda c: setattr(c, "flags", "0"),
        lambda c: setattr(c, "int8_calibrator", object()), lambda c: setattr(c, "progress_monitor", object()),
        lambda c: setattr(c, "algorithm_selector", object()), lambda c: c.set_preview_feature(0, True), operator.attrgetter("no_such"),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_at_once(call):
    with pytest.raises((TypeError, AttributeError)):
        call(made()[1])


# ---- algorithm selectors ----


class Selector(trt.IAlgorithmSelector):
    """Takes one of the choices, and notes what it was asked and told."""

    def __init__(self, which):
        super().__init__()
        self.which, self.asked, self.told = which, [], []

    def select_algorithms(self, context, choices):
        self.asked.append((context, choices))
        return [] if self.which is None else [range(len(choices))[self.which]]

    def report_algorithms(self, contexts, choices):
        self.told = list(zip(contexts, choices, strict=True))


@exercises(
    "IBuilderConfig.algorithm_selector", "IAlgorithmSelector", "IAlgorithmSelector.select_algorithms",
    "IAlgorithmSelector.report_algorithms",
    "IAlgorithm", "IAlgorithm.algorithm_variant", "IAlgorithm.get_algorithm_io_info", "IAlgorithm.timing_msec", "IAlgorithm.workspace_size",
    "IAlgorithmContext.name", "IAlgorithmContext.num_inputs", "IAlgorithmContext.num_outputs", "IAlgorithmContext.get_shape",
    "IAlgorithmIOInfo.dtype", "IAlgorithmIOInfo.strides", "IAlgorithmVariant.implementation", "IAlgorithmVariant.tactic",
)  # fmt: skip
def test_an_algorithm_selector_decides():
    taken, logger = [], Messages()
    builder = trt.Builder(logger)
    network, config, x = product(builder), quick(builder), sample(SIZE, SIZE)
    for which in (0, -1, -1):
        config.algorithm_selector = selector = Selector(which)
        assert config.algorithm_selector is selector
        np.testing.assert_allclose(run(builder.build_engine(network, config), x=x)["y"], x, rtol=1e-5, atol=1e-6)
        context, choices = next((c, a) for c, a in selector.asked if "Matrix Multiply" in c.name)
        assert len(choices) > 1 and (context.num_inputs, context.num_outputs) == (2, 1) and context.get_shape(0) == [(SIZE, SIZE)] * 3
        info = choices[0].get_algorithm_io_info(0)
        assert info.dtype is trt.float32 and info.strides == (SIZE, 1) and choices[0].get_algorithm_io_info(9) is None
        told = next(a for c, a in selector.told if "Matrix Multiply" in c.name)
        assert told.algorithm_variant == choices[which].algorithm_variant and told.workspace_size == 0 and told.timing_msec >= 0
        taken.append((told.algorithm_variant.implementation, told.algorithm_variant.tactic))
    assert taken[0] != taken[1] == taken[2]
    config.algorithm_selector = Selector(None)
    assert builder.build_engine(network, config) is None and "got no algorithm" in logger.errors()
