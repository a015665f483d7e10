"""What a command line of trtexec asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dovetail.core.errors import UsageError
from dovetail.tensorrt.enums import (
    BuilderFlag,
    DataType,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    MemoryPoolType,
    PreviewFeature,
    ProfilingVerbosity,
    TacticSource,
    TempfileControlFlag,
)
from dovetail.tensorrt.trtexec import specs
from dovetail.tensorrt.trtexec.words import Words

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]

ALGORITHMS = {"l0": "L0", "l1": "L1", "l2": "L2", "linf": "LInf", "cos": "Cosine"}
DEBUG_FORMATS = ("summary", "numpy", "string", "raw")

_VERBOSITIES = {
    "layer_names_only": ProfilingVerbosity.LAYER_NAMES_ONLY, "detailed": ProfilingVerbosity.DETAILED, "none": ProfilingVerbosity.NONE,
    "default": ProfilingVerbosity.LAYER_NAMES_ONLY, "verbose": ProfilingVerbosity.DETAILED,
}  # fmt: skip
_LEVELS = {
    "none": HardwareCompatibilityLevel.NONE, "ampere+": HardwareCompatibilityLevel.AMPERE_PLUS,
    "samecomputecapability": HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
}  # fmt: skip
_STRATEGIES = {
    "static": ExecutionContextAllocationStrategy.STATIC, "profile": ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE,
    "runtime": ExecutionContextAllocationStrategy.USER_MANAGED,
}  # fmt: skip
_POOLS = {
    "workspace": MemoryPoolType.WORKSPACE, "dlaSRAM": MemoryPoolType.DLA_MANAGED_SRAM, "dlaLocalDRAM": MemoryPoolType.DLA_LOCAL_DRAM,
    "dlaGlobalDRAM": MemoryPoolType.DLA_GLOBAL_DRAM, "tacticSharedMem": MemoryPoolType.TACTIC_SHARED_MEMORY,
}  # fmt: skip
_TACTICS = {
    "CUBLAS": TacticSource.CUBLAS, "CUBLASLT": TacticSource.CUBLAS_LT, "CUBLAS_LT": TacticSource.CUBLAS_LT,
    "CUDNN": TacticSource.CUDNN, "EDGE_MASK_CONVOLUTIONS": TacticSource.EDGE_MASK_CONVOLUTIONS,
    "JIT_CONVOLUTIONS": TacticSource.JIT_CONVOLUTIONS,
}  # fmt: skip
_PREVIEWS = {
    "profileSharing0806": PreviewFeature.PROFILE_SHARING_0806, "aliasedPluginIO1003": PreviewFeature.ALIASED_PLUGIN_IO_10_03,
    "runtimeActivationResize": PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10,
    "disableExternalTacticSourcesForCore0805": PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805,
}  # fmt: skip
_PRECISIONS = {
    "fp16": BuilderFlag.FP16, "bf16": BuilderFlag.BF16, "int8": BuilderFlag.INT8, "fp8": BuilderFlag.FP8, "int4": BuilderFlag.INT4,
}  # fmt: skip


@dataclass(frozen=True)
class BuildOptions:
    """How the engine is built, or which one is loaded. Sizes in bytes; None and empty: not said."""

    save: str = ""
    load: str = ""
    version_only: bool = False
    skip_inference: bool = False
    profiles: tuple[Profile, ...] = ()
    calibration_shapes: Profile = field(default_factory=dict)
    calibration_profile: int = 0
    input_formats: tuple[tuple[DataType, int], ...] = ()
    output_formats: tuple[tuple[DataType, int], ...] = ()
    pools: Mapping[MemoryPoolType, int] = field(default_factory=dict)
    verbosity: ProfilingVerbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
    refit: bool = False
    strip: bool = False
    version_compatible: bool = False
    plugin_instance_norm: bool = False
    plugin_override: bool = False
    monitor_memory: bool = False
    sparsity: str = "disable"
    tf32: bool = True
    precisions: frozenset[BuilderFlag] = frozenset()
    strongly_typed: bool = False
    constraints: str = "none"
    layer_precisions: Mapping[str, tuple[DataType, ...]] = field(default_factory=dict)
    layer_types: Mapping[str, tuple[DataType, ...]] = field(default_factory=dict)
    calibration: str = ""
    tactics: Mapping[TacticSource, bool] = field(default_factory=dict)
    cache: str = "local"
    cache_file: str = ""
    cache_must_hit: bool = False
    previews: Mapping[PreviewFeature, bool] = field(default_factory=dict)
    level: int = -1
    heuristic: bool = False
    max_tactics: int = -1
    compatibility: HardwareCompatibilityLevel = HardwareCompatibilityLevel.NONE
    temporary_folder: str = ""
    temporary_files: Mapping[TempfileControlFlag, bool] = field(default_factory=dict)
    max_streams: int = -1
    weight_streaming: bool = False
    debug: tuple[str, ...] = ()
    debug_unfused: bool = False
    tiling: int = 0
    tiling_limit: int = -1
    independent: bool = False
    cpu_only: bool = False
    route: str = ""


@dataclass(frozen=True)
class Reference:
    """Files of inputs, and of the outputs that they should give."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceOptions:
    """How the engine is run."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    profile: int = 0
    references: tuple[Reference, ...] = (Reference(),)
    algorithm: str = "L2"
    atol: float = 1e-5
    rtol: float = 1e-5
    threshold: float = -1.0
    iterations: int = 10
    warm_up_ms: float = 200.0
    duration_s: float = 3.0
    sleep_ms: float = 0.0
    idle_ms: float = 0.0
    streams: int = 1
    threads: bool = False
    overlap: bool = True
    transfers: bool = True
    spin: bool = False
    graph: bool = False
    time_deserialize: bool = False
    time_refit: bool = False
    refit_from: str = ""
    separate_profile: bool = False
    cache_ratio: float = 0.0
    allocation: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    debug_files: Mapping[str, str] = field(default_factory=dict)
    debug_formats: tuple[str, ...] = ()
    budget: str = "Disabled"


@dataclass(frozen=True)
class ReportingOptions:
    """What is told."""

    verbose: bool = False
    average: int = 10
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    refit: bool = False
    output: bool = False
    raw_bindings: bool = False
    profile: bool = False
    layers: bool = False
    profiles: bool = False
    export_times: str = ""
    export_output: str = ""
    export_profile: str = ""
    export_layers: str = ""


@dataclass(frozen=True)
class Options:
    """All of a command line. `notes` are warnings about it; `major` is the version that defaults follow."""

    model: str = ""
    build: BuildOptions = BuildOptions()
    inference: InferenceOptions = InferenceOptions()
    reporting: ReportingOptions = ReportingOptions()
    device: int = 0
    plugins: tuple[str, ...] = ()
    help: bool = False
    help_routes: bool = False
    notes: tuple[str, ...] = ()
    major: int = 10


def parse(arguments: Sequence[str], major: int) -> Options:
    """The options of a command line.

    Args:
        arguments: without the program's name.
        major: major version of TensorRT whose defaults hold: 11 runs CUDA graphs, without transfers, and waits actively.

    Raises:
        UsageError: all unknown and refused flags at once, or a value that is none.
    """
    words = Words(arguments, major)
    if words.has("--help"):
        return Options(help=True, major=major)
    if words.has("--helpBuildRoute"):
        return Options(help_routes=True, major=major)
    notes = list(words.notes)
    build = _build(words, notes)
    inference = _inference(words, notes, major)
    build, inference = _shared_shapes(build, inference)
    plugins = [p for name in ("--plugins", "--dynamicPlugins", "--setPluginsToSerialize") for p in words.all(name)]
    options = Options(
        model=words.text("--onnx"), build=build, inference=inference, reporting=_reporting(words), device=words.whole("--device", 0, 0),
        plugins=tuple(dict.fromkeys(plugins)), notes=tuple(notes), major=major,
    )  # fmt: skip
    _check(options)
    return options


def _check(options: Options) -> None:
    build, inference = options.build, options.inference
    if not build.load and not options.model:
        raise UsageError("Model missing or format not recognized: expected --onnx=<file> or --loadEngine=<file>")
    if build.load and build.save:
        raise UsageError("Incompatible load and save engine options selected: expected one of --loadEngine and --saveEngine")
    if build.version_only and not build.load:
        raise UsageError("--getPlanVersionOnly: expected --loadEngine=<file> with it")
    if BuilderFlag.FP8 in build.precisions and BuilderFlag.INT8 in build.precisions and not build.strongly_typed:
        raise UsageError("Invalid usage, fp8 and int8 aren't allowed to be enabled together.")
    if any(r.outputs for r in inference.references) and inference.threshold <= 0:
        raise UsageError("--accuracyThreshold (with a positive value) is required when --loadRefOutputs or --refPair is set.")


# ---- build ----


def _build(words: Words, notes: list[str]) -> BuildOptions:
    typed = words.has("--stronglyTyped")
    best = words.has("--best")
    if best and typed:
        raise UsageError("--best and --stronglyTyped cannot be both set: the one chooses precisions, the other takes those of the model")
    precisions = frozenset(flag for name, flag in _PRECISIONS.items() if words.has(f"--{name}"))
    if typed:
        notes += [
            f"Invalid usage, setting {flag.name.lower()} mode is not allowed if graph is strongly typed. "
            f"Disabling BuilderFlag::k{flag.name}."
            for flag in precisions
        ]
        precisions = frozenset()
    elif best:
        precisions |= {BuilderFlag.FP16, BuilderFlag.BF16, *({BuilderFlag.INT8} if BuilderFlag.FP8 not in precisions else ())}
    runtime = words.choice("--useRuntime", {"full": "", "lean": "lean", "dispatch": "dispatch"}, "")
    if runtime:
        raise UsageError(f"--useRuntime: got {runtime}, expected full: there is no {runtime} runtime")
    if words.choice("--runtimePlatform", {"SameAsBuild": "", "WindowsAMD64": "w"}, ""):
        raise UsageError("--runtimePlatform: got WindowsAMD64, expected SameAsBuild: engines run on the system that built them")
    constraints = words.choice("--precisionConstraints", {name: name for name in ("none", "prefer", "obey")}, "none")
    layer_precisions = dict(specs.typed_layers("--layerPrecisions", words.text("--layerPrecisions"), False))
    layer_types = dict(specs.typed_layers("--layerOutputTypes", words.text("--layerOutputTypes"), True))
    if constraints != "none" and not (layer_precisions or layer_types):
        notes.append(
            'When --precisionConstraints flag is set to "obey" or "prefer", please add --layerPrecision/--layerOutputTypes flags to set '
            "layer-wise precisions and output types."
        )
    if constraints == "none" and (layer_precisions or layer_types):
        notes.append('--layerPrecision/--layerOutputTypes flags have no effect when --precisionConstraints flag is set to "none".')
    _layer_devices(words)
    strip_all = words.has("--stripAllWeights")
    cache_file = words.text("--timingCacheFile")
    verbosity = words.text("--profilingVerbosity")
    if verbosity in ("default", "verbose"):
        newer = "detailed" if verbosity == "verbose" else "layer_names_only"
        notes.append(f"--profilingVerbosity={verbosity} has been deprecated by --profilingVerbosity={newer}.")
    return BuildOptions(
        save=words.text("--saveEngine"),
        load=words.text("--loadEngine"),
        version_only=words.has("--getPlanVersionOnly"),
        skip_inference=words.has("--skipInference"),
        profiles=_profiles(words),
        calibration_shapes=_ranges({k: specs.shapes(f"--{k}ShapesCalib", words.text(f"--{k}ShapesCalib")) for k in ("min", "opt", "max")}),
        calibration_profile=words.whole("--calibProfile", 0, 0),
        input_formats=tuple(specs.io_formats("--inputIOFormats", words.text("--inputIOFormats"))),
        output_formats=tuple(specs.io_formats("--outputIOFormats", words.text("--outputIOFormats"))),
        pools=_pools(words),
        verbosity=words.choice("--profilingVerbosity", _VERBOSITIES, ProfilingVerbosity.LAYER_NAMES_ONLY),
        refit=words.has("--refit") or strip_all,
        strip=words.has("--stripWeights") or strip_all,
        version_compatible=words.has("--versionCompatible"),
        plugin_instance_norm=words.has("--pluginInstanceNorm"),
        plugin_override=words.has("--enablePluginOverride"),
        monitor_memory=words.has("--monitorMemory"),
        sparsity=words.choice("--sparsity", {name: name for name in ("disable", "enable", "force")}, "disable"),
        tf32=not words.has("--noTF32"),
        precisions=precisions,
        strongly_typed=typed,
        constraints=constraints,
        layer_precisions=layer_precisions,
        layer_types=layer_types,
        calibration=words.text("--calib"),
        tactics=_signed(words, "--tacticSources", _TACTICS, upper=True),
        cache="disable" if words.has("--noBuilderCache") else "global" if cache_file else "local",
        cache_file=cache_file,
        cache_must_hit=words.has("--errorOnTimingCacheMiss"),
        previews=_signed(words, "--preview", _PREVIEWS),
        level=words.whole("--builderOptimizationLevel", -1, 0, 5),
        heuristic=words.has("--heuristic"),
        max_tactics=words.whole("--maxTactics", -1, -1),
        compatibility=words.choice("--hardwareCompatibilityLevel", _LEVELS, HardwareCompatibilityLevel.NONE, lower=True),
        temporary_folder=words.text("--tempdir"),
        temporary_files=_temporary_files(words),
        max_streams=words.whole("--maxAuxStreams", -1, 0),
        weight_streaming=words.has("--allowWeightStreaming"),
        debug=tuple(name.strip("'") for name in specs.split(words.text("--markDebug"))),
        debug_unfused=words.has("--markUnfusedTensorsAsDebugTensors"),
        tiling=words.whole("--tilingOptimizationLevel", 0, 0, 3),
        tiling_limit=words.whole("--l2LimitForTiling", -1, -1),
        independent=words.has("--distributiveIndependence"),
        cpu_only=words.has("--cpuOnly"),
        route=words.text("--setBuildRoute"),
    )


def _profiles(words: Words) -> tuple[Profile, ...]:
    """The profiles of --minShapes, --optShapes and --maxShapes, each of which belongs to the --profile before it."""
    found: dict[int, dict[str, dict[str, Shape]]] = {}
    current = 0
    for name, text in words.ordered("--profile", "--minShapes", "--optShapes", "--maxShapes"):
        if name == "--profile":
            current = words.number(name, text, 0)
            continue
        kinds = found.setdefault(current, {})
        if name[2:5] in kinds:
            raise UsageError(f"{name}: got it twice for profile {current}, expected once; begin another one with --profile={current + 1}")
        kinds[name[2:5]] = specs.shapes(name, text)
    if sorted(found) != list(range(len(found))):
        raise UsageError(f"--profile: got shapes of the profiles {sorted(found)}, expected 0, 1, … without a gap")
    return tuple(_ranges(found[index]) for index in sorted(found))


def _ranges(kinds: Mapping[str, Mapping[str, Shape]]) -> Profile:
    """Ranges of shapes: what is not given is as the next that is."""
    made: Profile = {}
    for name in dict.fromkeys(n for kind in ("min", "opt", "max") for n in kinds.get(kind, ())):
        least, likely, largest = (kinds.get(kind, {}).get(name) for kind in ("min", "opt", "max"))
        best = likely if likely is not None else largest if largest is not None else least
        assert best is not None
        made[name] = (least if least is not None else best, best, largest if largest is not None else best)
    return made


def _pools(words: Words) -> dict[MemoryPoolType, int]:
    found: dict[MemoryPoolType, int] = {}
    if words.has("--workspace"):
        found[MemoryPoolType.WORKSPACE] = specs.size("--workspace", words.text("--workspace"))
    for part in specs.split(words.text("--memPoolSize")):
        name, text = specs.pair("--memPoolSize", part)
        if name not in _POOLS:
            raise UsageError(f"--memPoolSize: got the pool {name!r}, expected one of {', '.join(_POOLS)}")
        found[_POOLS[name]] = specs.size("--memPoolSize", text)
    return found


def pool_names() -> Mapping[str, MemoryPoolType]:
    """The pools by their names in flags."""
    return _POOLS


def _signed(words: Words, flag: str, known: Mapping[str, Any], upper: bool = False) -> dict[Any, bool]:
    """What a list of +name and -name switches on and off."""
    found: dict[Any, bool] = {}
    for part in specs.split(words.text(flag)):
        name = part[1:].upper() if upper else part[1:]
        if part[:1] not in "+-" or name not in known:
            raise UsageError(f"{flag}: got {part!r}, expected + or - and one of {', '.join(known)}")
        if found.get(known[name], part[0] == "+") != (part[0] == "+"):
            raise UsageError(f"{flag}: Cannot enable and disable {name}")
        found[known[name]] = part[0] == "+"
    return found


def _temporary_files(words: Words) -> dict[TempfileControlFlag, bool]:
    known = {"in_memory": TempfileControlFlag.ALLOW_IN_MEMORY_FILES, "temporary": TempfileControlFlag.ALLOW_TEMPORARY_FILES}
    found: dict[TempfileControlFlag, bool] = {}
    for part in specs.split(words.text("--tempfileControls")):
        name, text = specs.pair("--tempfileControls", part)
        if name not in known or text not in ("allow", "deny"):
            raise UsageError(f"--tempfileControls: got {part!r}, expected in_memory:allow|deny or temporary:allow|deny")
        found[known[name]] = text == "allow"
    return found


def _layer_devices(words: Words) -> None:
    for part in specs.split(words.text("--layerDeviceTypes")):
        name, kind = specs.pair("--layerDeviceTypes", part)
        if kind != "GPU":
            raise UsageError(f"--layerDeviceTypes: got {kind} for {name!r}, expected GPU: there is no deep-learning accelerator")


# ---- inference ----


def _inference(words: Words, notes: list[str], major: int) -> InferenceOptions:
    new = major >= 11
    streaming = words.has("--allowWeightStreaming")
    if words.has("--weightStreamingBudget") and not (streaming or words.has("--loadEngine")):
        raise UsageError("The weight streaming budget can only be set with --allowWeightStreaming specified.")
    if streaming:
        notes.append("--allowWeightStreaming: all weights stay on the device, none is streamed.")
    ratio = words.real("--persistentCacheRatio", 0.0, 0.0)
    if ratio > 1:
        raise UsageError(f"--persistentCacheRatio: got {ratio:g}, expected 0 to 1")
    return InferenceOptions(
        shapes=specs.shapes("--shapes", words.text("--shapes")),
        profile=words.whole("--useProfile", 0, 0),
        references=_references(words),
        algorithm=words.choice("--accuracyAlgorithm", ALGORITHMS, "L2", lower=True),
        atol=words.real("--atol", 1e-5, 0.0),
        rtol=words.real("--rtol", 1e-5, 0.0),
        threshold=words.real("--accuracyThreshold", -1.0, 0.0),
        iterations=words.whole("--iterations", 10, 0),
        warm_up_ms=words.real("--warmUp", 200.0, 0.0),
        duration_s=words.real("--duration", 3.0, -1.0),
        sleep_ms=words.real("--sleepTime", 0.0, 0.0),
        idle_ms=words.real("--idleTime", 0.0, 0.0),
        streams=words.whole("--infStreams", 1, 1),
        threads=words.has("--threads"),
        overlap=not words.has("--exposeDMA"),
        transfers=words.has("--includeDataTransfers") if new else not words.has("--noDataTransfers"),
        spin=not words.has("--noSpinWait") if new else words.has("--useSpinWait"),
        graph=not words.has("--noCudaGraph") if new else words.has("--useCudaGraph"),
        time_deserialize=words.has("--timeDeserialize"),
        time_refit=words.has("--timeRefit"),
        refit_from=words.text("--refitFromOnnx"),
        separate_profile=new or words.has("--separateProfileRun"),
        cache_ratio=ratio,
        allocation=words.choice("--allocationStrategy", _STRATEGIES, ExecutionContextAllocationStrategy.STATIC),
        debug_files=_files(words, "--saveDebugTensors"),
        debug_formats=_debug_formats(words),
        budget=_budget(words),
    )


def _files(words: Words, flag: str) -> dict[str, str]:
    return dict(specs.pair(flag, part) for part in specs.split(words.text(flag)))


def _references(words: Words) -> tuple[Reference, ...]:
    """The pairs of inputs and expected outputs, which --refPair tells apart."""
    inputs: dict[int, dict[str, str]] = {0: {}}
    outputs: dict[int, dict[str, str]] = {0: {}}
    current, pairs = 0, 0
    for name, text in words.ordered("--refPair", "--loadInputs", "--loadRefOutputs"):
        if name == "--refPair":
            current, pairs = words.number(name, text, 0), pairs + 1
            continue
        kept = (inputs if name == "--loadInputs" else outputs).setdefault(current, {})
        kept |= dict(specs.pair(name, part) for part in specs.split(text))
    found = tuple(Reference(inputs.get(i, {}), outputs.get(i, {})) for i in sorted({*inputs, *outputs}))
    if pairs and len(found) < 2:
        raise UsageError("When using --refPair, you need at least two pairs of I/O.")
    if len(found) > 1 and not all(r.inputs and r.outputs for r in found):
        raise UsageError("--refPair: expected --loadInputs and --loadRefOutputs in every pair")
    return found


def _debug_formats(words: Words) -> tuple[str, ...]:
    found = tuple(specs.split(words.text("--saveAllDebugTensors")))
    if wrong := [name for name in found if name not in DEBUG_FORMATS]:
        raise UsageError(f"--saveAllDebugTensors: got {wrong[0]!r}, expected some of {', '.join(DEBUG_FORMATS)}")
    return found


def _budget(words: Words) -> str:
    """The budget as reports have it: nothing is streamed, so any that reads well will do."""
    text = words.text("--weightStreamingBudget")
    if text in ("", "-2"):
        return "Disabled"
    if text == "-1":
        return "Automatic"
    if text.endswith("%"):
        share = words.fraction("--weightStreamingBudget", text[:-1])
        if not 0 <= share <= 100:
            raise UsageError(f"--weightStreamingBudget: got {text}, expected 0% to 100%")
        return f"{share:f}%"
    return f"{specs.size('--weightStreamingBudget', text)} bytes"


def _shared_shapes(build: BuildOptions, inference: InferenceOptions) -> tuple[BuildOptions, InferenceOptions]:
    """Runs take the likely shapes of their profile, and a profile the shapes of the runs, where one of them is not said."""
    profiles = list(build.profiles) or ([{}] if inference.shapes and not build.load else [])
    if inference.profile >= len(profiles):
        return build, inference
    own = profiles[inference.profile]
    shapes = {**{name: ranges[1] for name, ranges in own.items() if specs.find(inference.shapes, name) is None}, **inference.shapes}
    profiles[inference.profile] = {**own, **{name: (s, s, s) for name, s in inference.shapes.items() if specs.find(own, name) is None}}
    return replace(build, profiles=tuple(profiles)), replace(inference, shapes=shapes)


# ---- reporting ----


def _reporting(words: Words) -> ReportingOptions:
    percentiles = tuple(words.fraction("--percentile", p) for p in specs.split(words.text("--percentile"))) or (90.0, 95.0, 99.0)
    if wrong := [p for p in percentiles if not 0 <= p <= 100 or math.isnan(p)]:
        raise UsageError(f"--percentile: Percentile {wrong[0]:f} is not in [0,100]")
    return ReportingOptions(
        verbose=words.has("--verbose"),
        average=words.whole("--avgRuns", 10, 1),
        percentiles=percentiles,
        refit=words.has("--dumpRefit"),
        output=words.has("--dumpOutput"),
        raw_bindings=words.has("--dumpRawBindingsToFile"),
        profile=words.has("--dumpProfile"),
        layers=words.has("--dumpLayerInfo"),
        profiles=words.has("--dumpOptimizationProfile"),
        export_times=words.text("--exportTimes"),
        export_output=words.text("--exportOutput"),
        export_profile=words.text("--exportProfile"),
        export_layers=words.text("--exportLayerInfo"),
    )


