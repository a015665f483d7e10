"""The flags of trtexec, 8.2 to 11.1: which there are, which of them do nothing here, and which are refused, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

MODEL, BUILD, INFERENCE, REPORTING, SYSTEM, HELP = "Model", "Build", "Inference", "Reporting", "System", ""


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: with its dashes.
        section: of the help text.
        value: how the value reads in the help text; empty for a switch.
        text: what it does.
        ignored: why it does nothing here; it is accepted, and said.
        refused: why it is an error here.
        since, until: first and last major version that had it; 8 and 11 stand for "before" and "after", too.
        repeated: whether it may be given several times, each of which counts.
        alias: the flag that it is another name of.
    """

    name: str
    section: str
    value: str
    text: str
    ignored: str = ""
    refused: str = ""
    since: int = 8
    until: int = 11
    repeated: bool = False
    alias: str = ""


_NO_DLA = "there is no deep-learning accelerator"
_NO_SAFETY = "there is no safety runtime"
_NO_TUNER = "build routes are not searched: builds tune by measuring, see --builderOptimizationLevel"
_OTHER_TOOL = "it belongs to the builder of safe engines"
_NO_LEAN = "engines of Dovetail have no lean runtime inside"
_NO_FORMAT = "Caffe and UFF models ended with TensorRT 10; convert the model to ONNX, and use --onnx"
_FUSED = "attention is fused wherever it can be"
_PYTHON = "plugins are Python, the parser finds no libraries"
_EXPLICIT = "ONNX models have an explicit batch; use --shapes"
_MEASURED = "candidates are measured until their order is clear"


def _rows() -> tuple[Flag, ...]:
    f = Flag
    return (
        f("--onnx", MODEL, "file", "ONNX model"),
        f("--model", MODEL, "file", "Caffe model", refused=_NO_FORMAT, until=9),
        f("--deploy", MODEL, "file", "Caffe prototxt file", refused=_NO_FORMAT, until=9),
        f("--uff", MODEL, "file", "UFF model", refused=_NO_FORMAT, until=9),
        f("--uffInput", MODEL, "spec", "input of a UFF model", refused=_NO_FORMAT, until=9),
        f("--uffNHWC", MODEL, "", "inputs of a UFF model are NHWC", refused=_NO_FORMAT, until=9),
        f("--output", MODEL, "names", "outputs of a Caffe or UFF model", refused=_NO_FORMAT, until=9),
        # ---- build
        f("--maxBatch", BUILD, "N", "largest implicit batch", refused=_EXPLICIT, until=9),
        f("--batch", INFERENCE, "N", "implicit batch", refused=_EXPLICIT, until=9),
        f("--explicitBatch", BUILD, "", "ONNX models have an explicit batch", ignored="ONNX models always have an explicit batch", until=9),
        f("--explicitPrecision", BUILD, "", "the network has Q/DQ layers", ignored="Q/DQ layers are found in the model", until=9),
        f("--minShapes", BUILD, "spec", "least shapes of a profile: name:1x3x224x224,'other:0':4"),
        f("--optShapes", BUILD, "spec", "shapes that a profile is tuned for; alone, they are the least and the largest as well"),
        f("--maxShapes", BUILD, "spec", "largest shapes of a profile"),
        f("--profile", BUILD, "N", "the profile that the shapes after it are of (may be repeated)", repeated=True),
        f("--minShapesCalib", BUILD, "spec", "least shapes of the calibration profile", until=10),
        f("--optShapesCalib", BUILD, "spec", "shapes of the calibration profile", until=10),
        f("--maxShapesCalib", BUILD, "spec", "largest shapes of the calibration profile", until=10),
        f("--calibProfile", BUILD, "N", "the profile to calibrate with", until=10),
        f("--inputIOFormats", BUILD, "spec", "type and format of each input, or of all: fp32:chw,fp16:chw+hwc8"),
        f("--outputIOFormats", BUILD, "spec", "type and format of each output, or of all"),
        f("--memPoolSize", BUILD, "poolspec", "limits of memory pools: workspace:1024M,tacticSharedMem:64K (MiB without a suffix)"),
        f("--workspace", BUILD, "N", "limit of the workspace in MiB", until=9),
        f("--profilingVerbosity", BUILD, "mode", "what the engine says of its layers: layer_names_only, detailed or none"),
        f("--avgTiming", BUILD, "M", "runs per measurement of a tactic", ignored=_MEASURED),
        f("--minTiming", BUILD, "M", "least number of measurements of a tactic", ignored=_MEASURED, until=9),
        f("--heuristic", BUILD, "", "choose tactics by rules", until=9),
        f("--refit", BUILD, "", "make an engine whose weights can be changed"),
        f("--stripWeights", BUILD, "", "leave the weights out of the engine"),
        f("--stripAllWeights", BUILD, "", "--refit and --stripWeights"),
        f("--weightless", BUILD, "", "the older name of --stripWeights", alias="--stripWeights", until=10),
        f("--refitFromOnnx", BUILD, "file", "refit the engine with the weights of an ONNX model", since=10),
        f("--versionCompatible", BUILD, "", "an engine that later versions take", ignored="later versions read engine files in any case"),
        f("--vc", BUILD, "", "the short name of --versionCompatible", alias="--versionCompatible"),
        f("--pluginInstanceNorm", BUILD, "", "have the parser use a plugin for InstanceNormalization"),
        f("--pi", BUILD, "", "the short name of --pluginInstanceNorm", alias="--pluginInstanceNorm"),
        f("--useRuntime", BUILD, "runtime", "full; lean and dispatch are not here"),
        f("--leanDLLPath", BUILD, "file", "library of the lean runtime", refused=_NO_LEAN),
        f("--excludeLeanRuntime", BUILD, "", "leave the lean runtime out of the engine", ignored=_NO_LEAN),
        f("--monitorMemory", BUILD, "", "log the memory of the build"),
        f("--sparsity", BUILD, "spec", "disable, enable or force: tactics for sparse weights"),
        f("--noTF32", BUILD, "", "compute fp32 layers in fp32 on a GPU"),
        f("--fp16", BUILD, "", "allow fp16", until=10),
        f("--bf16", BUILD, "", "allow bf16", until=10),
        f("--int8", BUILD, "", "allow int8", until=10),
        f("--fp8", BUILD, "", "allow fp8", until=10),
        f("--int4", BUILD, "", "allow int4", until=10),
        f("--best", BUILD, "", "allow all precisions", until=10),
        f("--stronglyTyped", BUILD, "", "compute in the types of the model (what 11 always does)"),
        f("--directIO", BUILD, "", "no reformats at inputs and outputs", ignored="inputs and outputs are used where they lie"),
        f("--precisionConstraints", BUILD, "spec", "none, prefer or obey: whether --layerPrecisions and such count", until=10),
        f("--layerPrecisions", BUILD, "spec", "precisions of layers, one * per name: conv*:fp16,fc:fp32", until=10),
        f("--layerOutputTypes", BUILD, "spec", "types of layers' outputs, several joined by +: split:fp32+fp16", until=10),
        f("--layerDeviceTypes", BUILD, "spec", "devices of layers: GPU alone"),
        f("--decomposableAttentions", BUILD, "spec", "attentions that may be computed layer by layer", ignored=_FUSED, since=10),
        f("--calib", BUILD, "file", "cache of an int8 calibration", until=10),
        f("--safe", BUILD, "", "build a safe engine", refused=_NO_SAFETY),
        f("--restricted", BUILD, "", "check the scope of safe engines", refused=_NO_SAFETY, until=10),
        f("--consistency", BUILD, "", "check the consistency of a safe engine", refused=_NO_SAFETY),
        f("--dumpKernelText", BUILD, "", "write the kernels of a safe engine", refused=_NO_SAFETY),
        f("--remoteAutoTuningConfig", BUILD, "config", "tune a safe engine on another machine", refused=_NO_SAFETY),
        f("--serialized", BUILD, "file", "where a safe engine goes", refused=_OTHER_TOOL),
        f("--std", BUILD, "", "build a standard engine", refused=_OTHER_TOOL),
        f("--buildDLAStandalone", BUILD, "", "build for cuDLA", refused=_NO_DLA),
        f("--allowGPUFallback", BUILD, "", "let a GPU run what a DLA cannot", ignored=_NO_DLA),
        f("--saveEngine", BUILD, "file", "write the engine"),
        f("--loadEngine", BUILD, "file", "run an engine file, of Dovetail or of trtexec here"),
        f("--asyncFileReader", BUILD, "", "read the engine file asynchronously", ignored="an engine file is mapped into memory", since=10),
        f("--getPlanVersionOnly", BUILD, "", "print what wrote the file of --loadEngine, and end"),
        f("--buildOnly", BUILD, "", "the older name of --skipInference", alias="--skipInference", until=9),
        f("--skipInference", BUILD, "", "end once the engine is built"),
        f("--tacticSources", BUILD, "tactics", "-CUDNN,+CUBLAS_LT: libraries whose kernels may or may not compete"),
        f("--noBuilderCache", BUILD, "", "measure anew, whatever was measured before"),
        f("--noCompilationCache", BUILD, "", "compile anew", ignored="compiled kernels are kept in DOVETAIL_CACHE"),
        f("--errorOnTimingCacheMiss", BUILD, "", "fail where the timing cache lacks a time"),
        f("--timingCacheFile", BUILD, "file", "read times of tactics from a file, and add new ones to it"),
        f("--preview", BUILD, "features", "+aliasedPluginIO1003,-profileSharing0806: preview features"),
        f("--builderOptimizationLevel", BUILD, "N", "0 to 5: how much is tried for speed"),
        f("--maxTactics", BUILD, "N", "how many tactics compete; 0 and 1 take them by rule", since=10),
        f("--hardwareCompatibilityLevel", BUILD, "mode", "none, ampere+ or sameComputeCapability"),
        f("--runtimePlatform", BUILD, "platform", "SameAsBuild; WindowsAMD64 is not here", since=10),
        f("--tempdir", BUILD, "dir", "where temporary files go"),
        f("--tempfileControls", BUILD, "controls", "in_memory:allow,temporary:deny: temporary files that are allowed"),
        f("--maxAuxStreams", BUILD, "N", "how many streams of kernels may run beside an inference's own on a GPU"),
        f("--allowWeightStreaming", BUILD, "", "make an engine that can stream weights", since=10),
        f("--markDebug", BUILD, "names", "tensors that can be watched", since=10),
        f("--markUnfusedTensorsAsDebugTensors", BUILD, "", "all tensors that no fusion hides can be watched", since=10),
        f("--tilingOptimizationLevel", BUILD, "N", "0 to 3: how much tiling is searched", since=10),
        f("--l2LimitForTiling", BUILD, "N", "bytes of level-2 cache for tiling", since=10),
        f("--distributiveIndependence", BUILD, "", "no rewrites that change the order of sums across samples", since=10),
        f("--cpuOnly", BUILD, "", "build and run on the CPU, where there is a GPU as well", since=11),
        f("--setBuildRoute", BUILD, "route", "default or direct: how the model is compiled", since=11),
        f("--helpBuildRoute", HELP, "", "print the build routes", since=11),
        f("--saveAllEngines", BUILD, "", "keep the engine of every build route", refused=_NO_TUNER, since=11),
        f("--tuneBuildRoutes", BUILD, "spec", "search build routes", refused=_NO_TUNER, since=11),
        f("--tuneBuildRouteFile", BUILD, "file", "search the build routes of a file", refused=_NO_TUNER, since=11),
        f("--tuningSearch", BUILD, "spec", "how to search build routes", refused=_NO_TUNER, since=11),
        f("--tuningCacheFile", BUILD, "file", "what a search has found so far", refused=_NO_TUNER, since=11),
        f("--tuningResultFile", BUILD, "file", "what a search has found", refused=_NO_TUNER, since=11),
        f("--tuningTimeOut", BUILD, "S", "seconds of a search", refused=_NO_TUNER, since=11),
        f("--dryRun", BUILD, "", "list the build routes of a search", refused=_NO_TUNER, since=11),
        f("--continue", BUILD, "", "go on with a search", refused=_NO_TUNER, since=11),
        f("--uint8AsymmetricQuantizationDLA", BUILD, "", "quantization of a DLA", refused=_NO_DLA, since=10),
        f("--reportCapabilityDLA", BUILD, "", "what a DLA could run", refused=_NO_DLA, since=10),
        f("--adjustForDLA", BUILD, "", "adjust the network for a DLA", refused=_NO_DLA, since=10),
        f("--enablePluginOverride", BUILD, "", "a plugin that is called as an ONNX op takes its place", since=10),
        # ---- inference
        f("--shapes", INFERENCE, "spec", "shapes of inputs, or values of those that are shapes: name:1x3x224x224,'other:0':4,scalar:"),
        f("--useProfile", INFERENCE, "N", "the profile to run with (default: 0)"),
        f("--loadInputs", INFERENCE, "spec", "raw bytes of inputs from files: name:file,other:file (default: random)", repeated=True),
        f("--loadRefOutputs", INFERENCE, "spec", "raw bytes of expected outputs from files", since=11, repeated=True),
        f("--refPair", INFERENCE, "N", "groups the --loadInputs and --loadRefOutputs that follow", since=11, repeated=True),
        f("--accuracyAlgorithm", INFERENCE, "name", "l0, l1, l2, lInf or cos: the distance of outputs (default: l2)", since=11),
        f("--atol", INFERENCE, "X", "absolute tolerance of l0 (default: 1e-05)", since=11),
        f("--rtol", INFERENCE, "X", "relative tolerance of l0 (default: 1e-05)", since=11),
        f("--accuracyThreshold", INFERENCE, "X", "the distance beyond which the run fails", since=11),
        f("--iterations", INFERENCE, "N", "run at least so often (default: 10)"),
        f("--warmUp", INFERENCE, "N", "milliseconds of runs that do not count (default: 200)"),
        f("--duration", INFERENCE, "N", "run at least so many seconds (default: 3); -1 runs until it is interrupted"),
        f("--sleepTime", INFERENCE, "N", "milliseconds between the start of a run and its computing (default: 0)"),
        f("--idleTime", INFERENCE, "N", "milliseconds between two runs (default: 0)"),
        f("--infStreams", INFERENCE, "N", "contexts that run beside each other (default: 1)"),
        f("--streams", INFERENCE, "N", "the older name of --infStreams", alias="--infStreams"),
        f("--threads", INFERENCE, "", "one thread for each stream"),
        f("--exposeDMA", INFERENCE, "", "wait for a run's transfers before the next run begins"),
        f("--includeDataTransfers", INFERENCE, "", "copy inputs to and outputs from a GPU in every run", since=11),
        f("--noDataTransfers", INFERENCE, "", "leave out these copies"),
        f("--useManagedMemory", INFERENCE, "", "managed memory for inputs and outputs", ignored="host and device memory are kept apart"),
        f("--useSpinWait", INFERENCE, "", "wait for a GPU actively"),
        f("--noSpinWait", INFERENCE, "", "wait for a GPU asleep", since=11),
        f("--useCudaGraph", INFERENCE, "", "run as a CUDA graph"),
        f("--noCudaGraph", INFERENCE, "", "run without one", since=11),
        f("--timeDeserialize", INFERENCE, "", "measure how long the engine takes to load, and end"),
        f("--timeRefit", INFERENCE, "", "measure how long a refit takes"),
        f("--separateProfileRun", INFERENCE, "", "profile in runs of their own"),
        f("--persistentCacheRatio", INFERENCE, "X", "share of the persistent level-2 cache, 0 to 1", ignored="no cache is set aside"),
        f("--allocationStrategy", INFERENCE, "spec", "static, profile or runtime: for which shapes a context has memory", since=10),
        f("--saveDebugTensors", INFERENCE, "spec", "watch tensors, and write their bytes: name:file,other:file", since=10),
        f("--saveAllDebugTensors", INFERENCE, "formats", "write all watched tensors: summary,numpy,string,raw", since=10),
        f("--weightStreamingBudget", INFERENCE, "budget", "-2, -1, 50% or 512M", since=10),
        f("--nvtxMode", INFERENCE, "mode", "how much profilers of NVIDIA are told", ignored="DOVETAIL_NVTX=1 or steps marks runs", until=9),
        # ---- reporting
        f("--verbose", REPORTING, "", "log everything"),
        f("--avgRuns", REPORTING, "N", "runs per line of the trace (default: 10)"),
        f("--percentile", REPORTING, "P1,P2,...", "percentiles of times (default: 90,95,99)"),
        f("--dumpRefit", REPORTING, "", "print the layers and weights that can be changed"),
        f("--dumpOutput", REPORTING, "", "print the outputs of the last run"),
        f("--dumpRawBindingsToFile", REPORTING, "", "write inputs and outputs of the last run as raw bytes"),
        f("--dumpProfile", REPORTING, "", "print the time of each layer"),
        f("--dumpLayerInfo", REPORTING, "", "print what the engine says of its layers"),
        f("--dumpOptimizationProfile", REPORTING, "", "print the profiles", since=10),
        f("--exportTimes", REPORTING, "file", "write the times of all runs as JSON"),
        f("--exportOutput", REPORTING, "file", "write the outputs as JSON"),
        f("--exportProfile", REPORTING, "file", "write the time of each layer as JSON"),
        f("--exportLayerInfo", REPORTING, "file", "write what the engine says of its layers as JSON"),
        # ---- system
        f("--device", SYSTEM, "N", "the GPU (default: 0); without a GPU, the CPU"),
        f("--useDLACore", SYSTEM, "N", "the DLA", refused=_NO_DLA),
        f("--plugins", SYSTEM, "file", "a Python file that defines plugins, or a module (may be repeated)", repeated=True),
        f("--staticPlugins", SYSTEM, "file", "the same", repeated=True, alias="--plugins"),
        f("--dynamicPlugins", SYSTEM, "file", "the same", repeated=True),
        f("--setPluginsToSerialize", SYSTEM, "file", "the same; engines name the plugins that they need", repeated=True),
        f("--safetyPlugins", SYSTEM, "spec", "plugins of safe engines", refused=_NO_SAFETY, repeated=True),
        f("--ignoreParsedPluginLibs", SYSTEM, "", "libraries that the parser finds are not serialized", ignored=_PYTHON),
        f("--help", HELP, "", "print this text"),
    )  # fmt: skip


FLAGS: dict[str, Flag] = {flag.name: flag for flag in _rows()}
"""All flags by name."""

SHORT = {"-h": "--help", "-v": "--verbose"}
"""Short names."""


def help_text() -> str:
    """What `trtexec --help` prints."""
    lines: list[str] = []
    for section in (MODEL, BUILD, INFERENCE, REPORTING, SYSTEM):
        lines.append(f"=== {section} Options ===")
        lines += [_help(flag) for flag in FLAGS.values() if flag.section == section]
        lines.append("")
    lines.append("=== Help ===")
    lines += [_help(flag) for flag in FLAGS.values() if flag.section == HELP]
    lines += ["", "There is no --json: --exportTimes, --exportOutput, --exportProfile and --exportLayerInfo write JSON files."]
    return "\n".join(lines)


def _help(flag: Flag) -> str:
    note = f" [refused: {flag.refused}]" if flag.refused else f" [does nothing: {flag.ignored}]" if flag.ignored else ""
    short = "".join(f", {s}" for s, name in SHORT.items() if name == flag.name)
    return f"  {flag.name + (f'=<{flag.value}>' if flag.value else '') + short:<38} {flag.text}{note}"
