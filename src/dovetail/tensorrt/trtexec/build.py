"""Makes trtexec's engine: parses the model and builds it, or reads a file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dovetail.core.errors import BuildError, EngineError, UsageError
from dovetail.core.files import replacing
from dovetail.core.version import __version__
from dovetail.tensorrt.builder import Builder
from dovetail.tensorrt.calibrator import IInt8EntropyCalibrator2
from dovetail.tensorrt.config import IBuilderConfig
from dovetail.tensorrt.engine import ICudaEngine
from dovetail.tensorrt.enums import (
    BuilderFlag,
    DataType,
    NetworkDefinitionCreationFlag,
    OnnxParserFlag,
    TensorIOMode,
    TilingOptimizationLevel,
)
from dovetail.tensorrt.network import INetworkDefinition
from dovetail.tensorrt.parser import OnnxParser
from dovetail.tensorrt.parser_refitter import OnnxParserRefitter
from dovetail.tensorrt.profile import IOptimizationProfile
from dovetail.tensorrt.refitter import Refitter
from dovetail.tensorrt.runtime import Runtime
from dovetail.tensorrt.tensor import ITensor
from dovetail.tensorrt.timing_cache import ITimingCache
from dovetail.tensorrt.trtexec import specs
from dovetail.tensorrt.trtexec.console import Console, number
from dovetail.tensorrt.trtexec.options import BuildOptions, Options, Profile, Shape

_MIB = 2**20
_REPEATS = 10


@dataclass
class Built:
    """An engine, its bytes, and the network that it was built from, where it was."""

    engine: ICudaEngine
    data: bytes
    network: INetworkDefinition | None = None


def make(options: Options, console: Console) -> Built:
    """Build the engine, or load it; write it where that was asked for.

    Raises:
        BuildError: the model cannot be parsed or built.
        EngineError: the file is no engine that runs here.
        OSError: a file cannot be read or written.
    """
    start = time.perf_counter()
    network = None
    if options.build.load:
        data = Path(options.build.load).read_bytes()
        console.info(f"Engine loaded in {number(time.perf_counter() - start)} sec.")
        console.info(f"Loaded engine with size: {number(len(data) / _MIB)} MiB")
    else:
        network, data = _build(options, console)
        console.info(f"Created engine with size: {number(len(data) / _MIB)} MiB")
        console.info(f"Engine built in {number(time.perf_counter() - start)} sec.")
        if options.build.save:
            _replace(options.build.save, data)
    return Built(deserialize(data, options.build, console), data, network)


def deserialize(data: bytes, build: BuildOptions, console: Console) -> ICudaEngine:
    """The engine of bytes.

    Raises:
        EngineError: they are none that runs here.
    """
    start = time.perf_counter()
    runtime = Runtime(console)
    if build.temporary_folder:
        runtime.temporary_directory = build.temporary_folder
    for flag, allowed in build.temporary_files.items():
        bit = 1 << int(flag)
        runtime.tempfile_control_flags = runtime.tempfile_control_flags | bit if allowed else runtime.tempfile_control_flags & ~bit
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError("Engine deserialization failed")
    console.info(f"Engine deserialized in {number(time.perf_counter() - start)} sec.")
    return engine


def time_deserialize(built: Built, build: BuildOptions, console: Console) -> None:
    """Measure how long the engine takes to load.

    Raises:
        EngineError: it does not.
    """
    quiet = Console()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        if Runtime(quiet).deserialize_cuda_engine(built.data) is None:
            raise EngineError("Engine deserialization failed")
        times.append(1e3 * (time.perf_counter() - start))
    console.info(f"First deserialization time = {number(times[0])} milliseconds")
    console.info(f"Average deserialization time = {number(sum(times) / len(times))} milliseconds, over {len(times)} iterations")


def plan_version(path: str, reported: str) -> str:
    """What wrote an engine file.

    Raises:
        EngineError: the file is none.
    """
    from dovetail.engine.file import EngineFile

    made = EngineFile(path).build.get("version", __version__)
    return f"Plan was created with TensorRT version {reported} (Dovetail {made})"


def _replace(path: str, data: bytes) -> None:
    """Write a file whole or not at all; /dev/null stays what it is."""
    with replacing(path) as file:
        file.write(data)


# ---- from a model ----


def _build(options: Options, console: Console) -> tuple[INetworkDefinition, bytes]:
    build = options.build
    builder = Builder(console)
    flags = 1 << int(NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if build.strongly_typed:
        flags |= 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    if network is None:
        raise BuildError("Network creation failed")
    _parse(options, network, console)
    config = builder.create_builder_config()
    _formats(build, network)
    _debug(build, network)
    _flags(build, config)
    _limits(build, config)
    _precisions(build, network, config)
    _profiles(build, network, builder, config, console)
    if BuilderFlag.INT8 in build.precisions and build.calibration:
        config.int8_calibrator = _Cached(build.calibration)
    cache = _cache(build, config, console)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise BuildError("Engine could not be created from network")
    if cache is not None:
        _save_cache(build.cache_file, cache, config, console)
    return network, bytes(data)


def _parse(options: Options, network: INetworkDefinition, console: Console) -> None:
    console.info("Start parsing network model.")
    start = time.perf_counter()
    parser = OnnxParser(network, console)
    if options.build.plugin_instance_norm:
        parser.clear_flag(OnnxParserFlag.NATIVE_INSTANCENORM)
    if options.build.plugin_override:
        parser.set_flag(OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    if not parser.parse_from_file(options.model):
        for index in range(parser.num_errors):
            console.error(str(parser.get_error(index)))
        raise BuildError(f"Failed to parse ONNX file {options.model}")
    console.info(f"Finished parsing network model. Parse time: {number(time.perf_counter() - start)}")


def _formats(build: BuildOptions, network: INetworkDefinition) -> None:
    for flag, formats, tensors in (
        ("--inputIOFormats", build.input_formats, [network.get_input(i) for i in range(network.num_inputs)]),
        ("--outputIOFormats", build.output_formats, [network.get_output(i) for i in range(network.num_outputs)]),
    ):
        if not formats:
            continue
        if len(formats) not in (1, len(tensors)):
            raise UsageError(f"{flag}: got {len(formats)} formats, expected 1 or {len(tensors)}, one for each tensor")
        for tensor, (kind, bits) in zip(tensors, formats * len(tensors) if len(formats) == 1 else formats, strict=True):
            assert tensor is not None
            tensor.dtype, tensor.allowed_formats = kind, bits


def _debug(build: BuildOptions, network: INetworkDefinition) -> None:
    if build.debug_unfused:
        network.mark_unfused_tensors_as_debug_tensors()
    wanted = set(build.debug)
    for layer in network if wanted else ():
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            if tensor is not None and tensor.name in wanted:
                network.mark_debug(tensor)
                wanted.discard(tensor.name)
    if wanted:
        raise UsageError(f"--markDebug: got {', '.join(sorted(wanted))}, expected names of tensors that layers compute")


def _flags(build: BuildOptions, config: IBuilderConfig) -> None:
    wanted = {
        BuilderFlag.REFIT: build.refit,
        BuilderFlag.REFIT_IDENTICAL: build.strip and not build.refit,
        BuilderFlag.STRIP_PLAN: build.strip,
        BuilderFlag.TF32: build.tf32,
        BuilderFlag.SPARSE_WEIGHTS: build.sparsity != "disable",
        BuilderFlag.VERSION_COMPATIBLE: build.version_compatible,
        BuilderFlag.DISABLE_TIMING_CACHE: build.cache == "disable",
        BuilderFlag.ERROR_ON_TIMING_CACHE_MISS: build.cache_must_hit,
        BuilderFlag.MONITOR_MEMORY: build.monitor_memory,
        BuilderFlag.DISTRIBUTIVE_INDEPENDENCE: build.independent,
        BuilderFlag.OBEY_PRECISION_CONSTRAINTS: build.constraints == "obey",
        BuilderFlag.PREFER_PRECISION_CONSTRAINTS: build.constraints == "prefer",
        **dict.fromkeys(build.precisions, True),
    }
    for flag, on in wanted.items():
        (config.set_flag if on else config.clear_flag)(flag)
    if build.weight_streaming and build.strongly_typed:
        config.set_flag(BuilderFlag.WEIGHT_STREAMING)


def _limits(build: BuildOptions, config: IBuilderConfig) -> None:
    for pool, size in build.pools.items():
        config.set_memory_pool_limit(pool, size)
    for feature, on in build.previews.items():
        config.set_preview_feature(feature, on)
    sources = config.get_tactic_sources()
    for source, on in build.tactics.items():
        sources = sources | 1 << int(source) if on else sources & ~(1 << int(source))
    config.set_tactic_sources(sources)
    config.profiling_verbosity = build.verbosity
    config.hardware_compatibility_level = build.compatibility
    config.tiling_optimization_level = next(v for v in TilingOptimizationLevel.__members__.values() if int(v) == build.tiling)
    if build.level >= 0:
        config.builder_optimization_level = build.level
    if build.max_tactics >= 0 or build.heuristic:
        config.max_num_tactics = 0 if build.heuristic else build.max_tactics
    if build.max_streams >= 0:
        config.max_aux_streams = build.max_streams
    if build.tiling_limit >= 0:
        config.l2_limit_for_tiling = build.tiling_limit
    if build.route:
        config.build_route = build.route


def _precisions(build: BuildOptions, network: INetworkDefinition, config: IBuilderConfig) -> None:
    if build.constraints == "none":
        return
    for layer in network:
        precision = specs.find(build.layer_precisions, layer.name)
        if precision is not None:
            layer.precision = precision[0]
        kinds = specs.find(build.layer_types, layer.name)
        for index in range(layer.num_outputs if kinds else 0):
            assert kinds is not None
            layer.set_output_type(index, kinds[min(index, len(kinds) - 1)])


# ---- profiles ----


def _profiles(build: BuildOptions, network: INetworkDefinition, builder: Builder, config: IBuilderConfig, console: Console) -> None:
    inputs = {t.name: t for i in range(network.num_inputs) if (t := network.get_input(i)) is not None}
    for profile in build.profiles or ({},):
        if unknown := [name for name in profile if not any(specs.matches(name, known) for known in inputs)]:
            raise UsageError(f"shapes: got {', '.join(unknown)}, expected names of inputs: {', '.join(inputs)}")
    dynamic = [t for t in inputs.values() if -1 in tuple(t.shape)]
    shapes = [t for t in inputs.values() if t.is_shape_tensor]
    if not dynamic and not shapes:
        for index, profile in enumerate(build.profiles):
            _check_static(profile, inputs.values(), index)
        return
    for index, profile in enumerate(build.profiles or ({},)):
        made = builder.create_optimization_profile()
        for tensor in inputs.values():
            found, declared = specs.find(profile, tensor.name), tuple(tensor.shape)
            if tensor.is_shape_tensor or found is None or not specs.are_values(tensor.dtype, declared, found[1]):
                _add(made, profile, tensor.name, declared, tensor.is_shape_tensor, index, console)
        if config.add_optimization_profile(made) < 0:
            raise BuildError(f"Error in add optimization profile {index}.")
    if build.calibration_shapes or build.calibration_profile:
        _calibration_profile(build, builder, config, {t.name: tuple(t.shape) for t in inputs.values()}, console)


def _check_static(profile: Profile, inputs: Iterable[ITensor], index: int) -> None:
    for tensor in inputs:
        shape, found = tuple(tensor.shape), specs.find(profile, tensor.name)
        if found is not None and any(s != shape and not specs.are_values(tensor.dtype, shape, s) for s in found):
            raise UsageError(
                f"{tensor.name}: got {'+'.join(specs.text_of(s) for s in found)} in profile {index}, expected its fixed shape "
                f"{specs.text_of(shape)}"
            )


def _add(
    made: IOptimizationProfile, profile: Profile, name: str, declared: Shape, values: bool, index: int, console: Console
) -> None:  # fmt: skip
    """Give a profile the range of one input."""
    found = specs.find(profile, name)
    if found is None:
        if -1 not in declared and not values:
            return
        likely = tuple(1 if d < 0 else d for d in declared) if not values else (1,) * (declared[0] if declared else 1)
        found = (likely, likely, likely)
        what = "values" if values else "shape"
        console.warning(
            f"Dynamic dimensions required for input: {name}, but no shapes were provided. Automatically overriding {what} to: "
            f"{specs.text_of(likely)}"
        )
    try:
        if values:
            made.set_shape_input(name, *(list(v) for v in found))
        elif -1 in declared or tuple(found[0]) != declared:
            made.set_shape(name, *found)
    except ValueError as error:
        raise UsageError(f"profile {index}: {error}") from error
    kind = "shape values of input tensor" if values else "shape of input tensor"
    texts = " ".join(f"{word}={specs.text_of(shape)}" for word, shape in zip(("MIN", "OPT", "MAX"), found, strict=True))
    console.info(f"Set {kind} {name} for optimization profile {index} to: {texts}")


def _calibration_profile(
    build: BuildOptions, builder: Builder, config: IBuilderConfig, declared: Mapping[str, Shape], console: Console
) -> None:
    source = build.calibration_shapes
    if not source:
        if build.calibration_profile >= len(build.profiles):
            raise UsageError(f"--calibProfile: got {build.calibration_profile}, expected less than {len(build.profiles)}")
        source = build.profiles[build.calibration_profile]
    made = builder.create_optimization_profile()
    for name, shape in declared.items():
        found = specs.find(source, name)
        if found is not None:
            _add(made, {name: (found[1], found[1], found[1])}, name, shape, False, build.calibration_profile, console)
    config.set_calibration_profile(made)


class _Cached(IInt8EntropyCalibrator2):
    """A calibrator that has a cache and nothing else."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._data = Path(path).read_bytes()

    def get_batch_size(self) -> int:
        """One sample."""
        return 1

    def get_batch(self, names: list[str]) -> None:
        """No batch: the cache says all."""

    def read_calibration_cache(self) -> bytes:
        """The file."""
        return self._data

    def write_calibration_cache(self, cache: object) -> None:
        """The file stays as it is."""


# ---- the timing cache ----


def _cache(build: BuildOptions, config: IBuilderConfig, console: Console) -> ITimingCache | None:
    if build.cache != "global":
        return None
    path = Path(build.cache_file)
    data = path.read_bytes() if path.is_file() else b""
    if not data:
        console.warning(f"[TRT] Could not read cache from: {path}. A new cache will be generated and written.")
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise UsageError(f"--timingCacheFile: {path} is no timing cache of this machine; name another file")
    return cache


def _save_cache(path: str, cache: ITimingCache, config: IBuilderConfig, console: Console) -> None:
    """Write the cache, with what others have written meanwhile."""
    if Path(path).is_file() and (data := Path(path).read_bytes()):
        newest = config.create_timing_cache(data)
        if newest is not None and newest.combine(cache, False):
            cache = newest
    data = bytes(cache.serialize())
    _replace(path, data)
    console.info(f"[TRT] Saved {len(data)} bytes of timing cache to {path}")


# ---- refit ----


def refit_from(path: str, engine: ICudaEngine, console: Console) -> None:
    """Give an engine the weights of a model.

    Raises:
        EngineError: they do not fit.
    """
    refitter = Refitter(engine, console)
    parser = OnnxParserRefitter(refitter, console)
    if not parser.refit_from_file(path) or not refitter.refit_cuda_engine():
        for index in range(parser.num_errors):
            console.error(str(parser.get_error(index)))
        raise EngineError("Engine refit from ONNX model failed.")


def dump_refittable(engine: ICudaEngine, console: Console) -> None:
    """Print the layers and roles of the weights that can be changed."""
    layers, roles = Refitter(engine, console).get_all()
    for layer, role in zip(layers, roles, strict=True):
        console.info(f"{layer} {role.name}")


def time_refit(engine: ICudaEngine, console: Console) -> None:
    """Measure how long it takes to give all weights anew.

    Raises:
        EngineError: that failed.
    """
    refitter = Refitter(engine, console)
    names = refitter.get_all_weights()
    own = {name: np.ascontiguousarray(array) for name, array in engine._engine.weights().items() if name in set(names)}
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        if not all(refitter.set_named_weights(name, weights) for name, weights in own.items()) or not refitter.refit_cuda_engine():
            raise EngineError("Engine refit failed.")
        times.append(1e3 * (time.perf_counter() - start))
    mean = number(sum(times) / len(times))
    console.info(f"Engine refit of {len(names)} weights took {mean} milliseconds, average over {len(times)} iterations")


def tensor_names(engine: ICudaEngine) -> list[str]:
    """The inputs and outputs, each once, however many profiles there are."""
    return [name for i in range(engine.num_io_tensors) if (name := engine.get_tensor_name(i)) is not None]


def is_input(engine: ICudaEngine, name: str) -> bool:
    """Whether a tensor is an input."""
    return engine.get_tensor_mode(name) is TensorIOMode.INPUT


def print_profiles(engine: ICudaEngine, console: Console) -> None:
    """Print the ranges of the shapes in each profile."""
    console.info("Optimization Profile Information:")
    inputs = [name for name in tensor_names(engine) if is_input(engine, name)]
    for index in range(engine.num_optimization_profiles):
        console.info(f"Optimization Profile {index}:")
        for name in inputs:
            least, best, most = (specs.text_of(tuple(s)) for s in engine.get_tensor_profile_shape(name, index))
            kind = specs.type_text(DataType(engine.get_tensor_dtype(name)))
            console.info(f"  {name}: {kind} MIN={least} OPT={best} MAX={most}")
