"""trtexec's flags: all of 11.1 and the older ones, what they mean, and how wrong ones are told."""

import math
from collections.abc import Callable

import pytest

import dovetail.tensorrt as trt
from dovetail.core.errors import UsageError
from dovetail.tensorrt.trtexec import specs
from dovetail.tensorrt.trtexec.flags import FLAGS, help_text
from dovetail.tensorrt.trtexec.options import Options, Reference, parse


def names(text: str) -> list[str]:
    return text.split()


NOW = names("""
    onnx saveEngine loadEngine asyncFileReader getPlanVersionOnly skipInference saveAllEngines minShapes optShapes maxShapes profile shapes
    useProfile inputIOFormats outputIOFormats noTF32 stronglyTyped builderOptimizationLevel maxTactics avgTiming memPoolSize tacticSources
    timingCacheFile noBuilderCache noCompilationCache errorOnTimingCacheMiss maxAuxStreams sparsity preview profilingVerbosity
    tilingOptimizationLevel l2LimitForTiling hardwareCompatibilityLevel runtimePlatform versionCompatible vc excludeLeanRuntime
    distributiveIndependence decomposableAttentions cpuOnly monitorMemory directIO remoteAutoTuningConfig tempdir tempfileControls
    pluginInstanceNorm pi uint8AsymmetricQuantizationDLA reportCapabilityDLA adjustForDLA enablePluginOverride ignoreParsedPluginLibs refit
    stripWeights stripAllWeights refitFromOnnx timeRefit dumpRefit allowWeightStreaming weightStreamingBudget markDebug
    markUnfusedTensorsAsDebugTensors saveDebugTensors saveAllDebugTensors device useDLACore allowGPUFallback layerDeviceTypes plugins
    staticPlugins dynamicPlugins setPluginsToSerialize safetyPlugins useRuntime leanDLLPath iterations duration warmUp infStreams streams
    threads sleepTime idleTime includeDataTransfers exposeDMA useManagedMemory noSpinWait noCudaGraph allocationStrategy
    persistentCacheRatio timeDeserialize useCudaGraph noDataTransfers useSpinWait separateProfileRun loadInputs loadRefOutputs refPair
    accuracyAlgorithm atol rtol accuracyThreshold verbose avgRuns percentile dumpOutput dumpRawBindingsToFile dumpProfile dumpLayerInfo
    dumpOptimizationProfile exportTimes exportOutput exportProfile exportLayerInfo help tuneBuildRoutes tuneBuildRouteFile tuningSearch
    tuningCacheFile tuningResultFile tuningTimeOut dryRun continue helpBuildRoute setBuildRoute safe consistency dumpKernelText
    buildDLAStandalone serialized std int8
""")
BEFORE = names("""
    fp16 bf16 fp8 int4 best calib calibProfile precisionConstraints layerPrecisions layerOutputTypes minShapesCalib optShapesCalib
    maxShapesCalib workspace explicitBatch batch maxBatch buildOnly minTiming heuristic deploy uff output model explicitPrecision nvtxMode
    weightless restricted
""")

# A value that each flag takes, where it takes one; those of the rest are names of files.
VALUES = {
    **dict.fromkeys(["minShapes", "optShapes", "maxShapes", "minShapesCalib", "optShapesCalib", "maxShapesCalib", "shapes"], "x:1x3"),
    **dict.fromkeys(["inputIOFormats", "outputIOFormats"], "fp16:chw+hwc8"),
    **dict.fromkeys(["layerPrecisions", "layerOutputTypes"], "a*:fp16"),
    **dict.fromkeys(["loadInputs", "loadRefOutputs", "saveDebugTensors"], "x:file"),
    **dict.fromkeys(["accuracyThreshold", "atol", "rtol", "persistentCacheRatio"], "0.5"),
    "memPoolSize": "workspace:1G", "workspace": "64", "profilingVerbosity": "detailed", "useRuntime": "full", "sparsity": "enable",
    "precisionConstraints": "obey", "layerDeviceTypes": "a:GPU", "tacticSources": "-CUDNN", "preview": "+aliasedPluginIO1003",
    "hardwareCompatibilityLevel": "ampere+", "runtimePlatform": "SameAsBuild", "tempfileControls": "in_memory:allow",
    "accuracyAlgorithm": "cos", "allocationStrategy": "profile", "saveAllDebugTensors": "numpy", "percentile": "50",
    "weightStreamingBudget": "-1", "tilingOptimizationLevel": "2", "builderOptimizationLevel": "2",
}  # fmt: skip
NUMBERS = names("""
    profile calibProfile avgTiming minTiming maxTactics maxAuxStreams l2LimitForTiling useProfile iterations warmUp duration sleepTime
    idleTime infStreams streams avgRuns device
""")
# What a flag is no use without.
PAIR = ["--loadInputs=x:a", "--loadRefOutputs=y:b"]
COMPANIONS = {
    "getPlanVersionOnly": ["--loadEngine=e"], "loadRefOutputs": ["--loadInputs=x:a", "--accuracyThreshold=1"],
    "weightStreamingBudget": ["--allowWeightStreaming"], "refPair": [*PAIR, "--refPair=1", *PAIR, "--accuracyThreshold=1"],
}  # fmt: skip
# Their one value here is the default, or they name the model.
WITHOUT_EFFECT = {"onnx", "runtimePlatform", "layerDeviceTypes", "useRuntime", "profile"}


def options(*arguments: str, major: int = 10) -> Options:
    """The options of a build of some model."""
    return parse(["--onnx=m.onnx", *arguments], major)


def wrong(message: str, *arguments: str, major: int = 10) -> None:
    with pytest.raises(UsageError, match=message):
        options(*arguments, major=major)


def word(name: str) -> str:
    value = VALUES.get(name, "0" if name in ("profile", "refPair") else "2" if name in NUMBERS else "file")
    return f"--{name}={value}" if FLAGS[f"--{name}"].value else f"--{name}"


def test_the_flags_of_all_versions_are_known():
    assert len(NOW) == len(set(NOW)) == 132
    assert {f"--{name}" for name in [*NOW, *BEFORE]} <= set(FLAGS)
    text = help_text()
    assert all(f"  {flag.name}" in text for flag in FLAGS.values())
    assert "refused: there is no deep-learning accelerator" in text and "--verbose, -v" in text


@pytest.mark.parametrize("name", [name for name in (*NOW, *BEFORE) if not FLAGS[f"--{name}"].refused])
def test_every_flag_that_is_not_refused_is_taken(name):
    major = 11 if FLAGS[f"--{name}"].since == 11 else 10
    given = [word(name), *COMPANIONS.get(name, ())]
    if name != "onnx" and not any(w.startswith("--loadEngine") for w in given):
        given = ["--onnx=m.onnx", *given]
    found = parse(given, major)
    assert found != options(major=major) or name in WITHOUT_EFFECT, "a flag changes something, or is said to do nothing"
    if FLAGS[f"--{name}"].ignored:
        assert any(note.startswith(f"--{name} does nothing: ") for note in found.notes)


@pytest.mark.parametrize("name", [name for name in (*NOW, *BEFORE) if FLAGS[f"--{name}"].refused])
def test_refused_flags_say_why(name):
    flag = FLAGS[f"--{name}"]
    wrong(f"^--{name}: {flag.refused.split(';')[0]}", f"--{name}=1" if flag.value else f"--{name}")


def test_all_unknown_and_refused_flags_are_told_at_once():
    with pytest.raises(UsageError) as caught:
        parse(["--onx=m", "model.onnx", "--safe", "--fp15", "--shapes", "--onx=n"], 10)
    assert str(caught.value) == (
        "Unknown option: --onx (did you mean --onnx?), model.onnx, --fp15 (did you mean --fp16?); "
        "--safe: there is no safety runtime; --shapes: expected a value: --shapes=<spec>"
    )
    wrong("--device: got it twice", "--device=0", "--device=1")
    assert options("--fp16=1").notes == ("--fp16 takes no value: '1' is ignored.",)


def test_a_model_or_an_engine_is_needed():
    for arguments, message in (
        ([], "Model missing"), (["--fp16"], "Model missing"), (["--loadEngine=a", "--saveEngine=b"], "Incompatible load and save"),
        (["--onnx=m", "--getPlanVersionOnly"], "--loadEngine=<file>"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            parse(arguments, 10)
    assert parse(["-h"], 10).help and parse(["--helpBuildRoute"], 10).help_routes
    assert parse(["--onnx=m", "-v"], 10).reporting.verbose


# ---- defaults ----


def test_defaults_follow_the_version():
    ten, eleven = options(major=10).inference, options(major=11).inference
    assert (ten.graph, ten.transfers, ten.spin, ten.separate_profile) == (False, True, False, False)
    assert (eleven.graph, eleven.transfers, eleven.spin, eleven.separate_profile) == (True, False, True, True)
    changed = options("--noCudaGraph", "--includeDataTransfers", "--noSpinWait", major=11).inference
    assert (changed.graph, changed.transfers, changed.spin) == (False, True, False)
    changed = options("--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--separateProfileRun").inference
    assert (changed.graph, changed.transfers, changed.spin, changed.separate_profile) == (True, False, True, True)
    assert "does nothing: it is how TensorRT 11 runs" in options("--useCudaGraph", major=11).notes[0]
    assert options("--fp16", major=11).notes == ("--fp16 ended with TensorRT 10; it is taken as it was.",)
    assert not options("--fp16", major=10).notes
    assert (ten.iterations, ten.warm_up_ms, ten.duration_s, ten.streams) == (10, 200, 3, 1)
    assert options().reporting.percentiles == (90, 95, 99) and options().reporting.average == 10


# ---- shapes ----


def test_shapes_are_read_with_quotes_and_without():
    assert specs.shapes("--shapes", "x:1x3x224x224,'in:0,a':4,s:scalar,t:,Input:0:2x2") == {
        "x": (1, 3, 224, 224), "in:0,a": (4,), "s": (), "t": (), "Input:0": (2, 2),
    }  # fmt: skip
    for text, message in {"x": "name:value", ":1": "name:value", "x:1xa": "a shape", "x:1,x:2": "twice", "*a*:1": "one wildcard"}.items():
        wrong(message, f"--shapes={text}")


@pytest.mark.parametrize(
    "pattern, name, expected",
    [("a*", "abc", True), ("*c", "abc", True), ("a*c", "abc", True), ("a*c", "ac", True), ("ab*bc", "abc", False), ("abc", "abc", True)]
    + [("*", "", True), ("b*", "abc", False), ("abc", "abcd", False)],
)
def test_wildcards(pattern, name, expected):
    assert specs.matches(pattern, name) is expected


def test_names_win_over_patterns_and_later_patterns_over_earlier_ones():
    assert specs.find({"*": 1, "a*": 2, "ab": 3}, "ab") == 3
    assert specs.find({"a*": 2, "*": 1}, "ab") == 1
    assert specs.find({"b*": 2}, "ab") is None


@pytest.mark.parametrize(
    "given, expected",
    [
        ("opt", ((2,), (2,), (2,))), ("min", ((1,), (1,), (1,))), ("max", ((3,), (3,), (3,))), ("min opt", ((1,), (2,), (2,))),
        ("opt max", ((2,), (2,), (3,))), ("min max", ((1,), (3,), (3,))), ("min opt max", ((1,), (2,), (3,))),
    ],
)  # fmt: skip
def test_missing_ends_of_a_profile_are_filled(given, expected):
    sizes = {"min": 1, "opt": 2, "max": 3}
    found = options(*(f"--{kind}Shapes=x:{sizes[kind]}" for kind in given.split()))
    assert found.build.profiles == ({"x": expected},)
    assert found.inference.shapes == {"x": expected[1]}, "runs take the likely shape"


def test_several_profiles():
    found = options(
        "--profile=0", "--minShapes=x:1", "--optShapes=x:2", "--maxShapes=x:3", "--profile=1", "--optShapes=x:8,y:5", "--useProfile=1"
    )
    assert found.build.profiles == ({"x": ((1,), (2,), (3,))}, {"x": ((8,),) * 3, "y": ((5,),) * 3})
    assert found.inference.profile == 1 and found.inference.shapes == {"x": (8,), "y": (5,)}
    wrong("without a gap", "--profile=1", "--optShapes=x:1")
    wrong("twice for profile 0", "--optShapes=x:1", "--optShapes=x:2")


def test_shapes_of_runs_are_a_profile_where_there_is_none():
    assert options("--shapes=x:4x2").build.profiles == ({"x": ((4, 2),) * 3},)
    found = options("--optShapes=x:4", "--shapes=x:3,y:5")
    assert found.inference.shapes == {"x": (3,), "y": (5,)} and found.build.profiles[0]["y"] == ((5,),) * 3
    assert parse(["--loadEngine=e", "--shapes=x:4"], 10).build.profiles == ()


# ---- formats, sizes, layers ----


def test_formats():
    found = options("--inputIOFormats=fp16:chw+hwc8,int8:chw32", "--outputIOFormats=bf16").build
    linear, hwc8, chw32 = (1 << int(f) for f in (trt.TensorFormat.LINEAR, trt.TensorFormat.HWC8, trt.TensorFormat.CHW32))
    assert found.input_formats == ((trt.DataType.HALF, linear | hwc8), (trt.DataType.INT8, chw32))
    assert found.output_formats == ((trt.DataType.BF16, linear),)
    assert specs.format_text(*found.input_formats[0]) == "fp16:chw+hwc8"
    wrong("the type 'f16'", "--inputIOFormats=f16:chw")
    wrong("the format 'nhwc'", "--outputIOFormats=fp16:nhwc")


@pytest.mark.parametrize(
    "text, size", [("1", 1 << 20), ("0.25G", 1 << 28), ("3K", 3072), ("1024MiB", 1 << 30), ("7B", 7), ("2mb", 2 << 20), ("1.5", 3 << 19)]
)
def test_sizes(text, size):
    assert specs.size("--memPoolSize", text) == size


def test_pools():
    found = options("--memPoolSize=workspace:2G,tacticSharedMem:48K").build.pools
    assert found == {trt.MemoryPoolType.WORKSPACE: 2 << 30, trt.MemoryPoolType.TACTIC_SHARED_MEMORY: 48 << 10}
    assert options("--workspace=64").build.pools == {trt.MemoryPoolType.WORKSPACE: 64 << 20}
    wrong("the pool 'heap'", "--memPoolSize=heap:1")
    wrong("a size such as", "--memPoolSize=workspace:much")
    wrong("a size such as", "--memPoolSize=workspace:-1")


def test_precisions():
    flag = trt.BuilderFlag
    assert options("--fp16", "--int8").build.precisions == {flag.FP16, flag.INT8}
    assert options("--best").build.precisions == {flag.FP16, flag.BF16, flag.INT8}
    typed = options("--stronglyTyped", "--fp16")
    assert not typed.build.precisions and typed.notes[0].startswith("Invalid usage, setting fp16 mode is not allowed")
    wrong("cannot be both set", "--best", "--stronglyTyped")
    wrong("aren't allowed to be enabled together", "--fp8", "--int8")
    assert options("--noTF32").build.tf32 is False and options().build.tf32 is True


def test_precisions_of_layers():
    found = options("--precisionConstraints=obey", "--layerPrecisions=conv*:fp16,'a:b':fp32", "--layerOutputTypes=s:fp32+int8")
    half, single, int8 = trt.DataType.HALF, trt.DataType.FLOAT, trt.DataType.INT8
    assert found.build.layer_precisions == {"conv*": (half,), "a:b": (single,)} and found.build.layer_types == {"s": (single, int8)}
    assert "please add --layerPrecision" in options("--precisionConstraints=prefer").notes[0]
    assert "have no effect" in options("--layerPrecisions=a:fp16").notes[0]
    wrong("the type 'half'", "--layerPrecisions=a:half")
    wrong("one wildcard", "--layerPrecisions=*a*:fp16")
    wrong("got DLA for 'a', expected GPU", "--layerDeviceTypes=a:DLA")


def test_tactics_previews_and_temporary_files():
    files = "--tempfileControls=in_memory:deny,temporary:allow"
    found = options("--tacticSources=-cudnn,+CUBLAS_LT", "--preview=-aliasedPluginIO1003", files).build
    assert found.tactics == {trt.TacticSource.CUDNN: False, trt.TacticSource.CUBLAS_LT: True}
    assert found.previews == {trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03: False}
    kinds = trt.TempfileControlFlag
    assert found.temporary_files == {kinds.ALLOW_IN_MEMORY_FILES: False, kinds.ALLOW_TEMPORARY_FILES: True}
    wrong(r"expected \+ or -", "--tacticSources=CUDNN")
    wrong("one of CUBLAS", "--tacticSources=+MKL")
    wrong("Cannot enable and disable", "--tacticSources=+CUDNN,-CUDNN")
    wrong("in_memory:allow", "--tempfileControls=disk:allow")


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--iterations=ten", "a whole number of at least 0"), ("--infStreams=0", "at least 1"), ("--avgRuns=0", "at least 1"),
        ("--duration=-2", "at least -1"), ("--warmUp=nan", "expected a number"), ("--builderOptimizationLevel=6", "from 0 to 5"),
        ("--percentile=90,101", r"not in \[0,100\]"), ("--percentile=x", "expected a number"), ("--persistentCacheRatio=2", "0 to 1"),
        ("--profilingVerbosity=loud", "one of layer_names_only"), ("--sparsity=some", "one of disable"),
        ("--useRuntime=lean", "no lean runtime"),
        ("--runtimePlatform=WindowsAMD64", "SameAsBuild"), ("--hardwareCompatibilityLevel=all", "one of none"),
        ("--saveAllDebugTensors=png", "some of summary"), ("--allocationStrategy=never", "one of static"),
        ("--weightStreamingBudget=1G", "--allowWeightStreaming"), ("--accuracyAlgorithm=l3", "one of l0"),
    ],
)  # fmt: skip
def test_wrong_values(argument, message):
    wrong(message, argument)


@pytest.mark.parametrize("text, budget", [("-2", "Disabled"), ("-1", "Automatic"), ("50%", "50.000000%"), ("1M", "1048576 bytes")])
def test_budgets(text, budget):
    assert options("--allowWeightStreaming", f"--weightStreamingBudget={text}").inference.budget == budget


def test_pairs_of_inputs_and_expected_outputs():
    one = options("--loadInputs=x:a,'y:0':b", "--loadInputs=z:c", "--loadRefOutputs=o:d", "--accuracyThreshold=1e-3").inference
    assert one.references == (Reference({"x": "a", "y:0": "b", "z": "c"}, {"o": "d"}),) and one.threshold == 1e-3
    pairs = [w for i in (0, 1) for w in (f"--refPair={i}", f"--loadInputs=x:a{i}", f"--loadRefOutputs=y:b{i}")]
    two = options(*pairs, "--accuracyThreshold=1").inference.references
    assert two == (Reference({"x": "a0"}, {"y": "b0"}), Reference({"x": "a1"}, {"y": "b1"}))
    wrong(r"--accuracyThreshold \(with a positive value\) is required", "--loadRefOutputs=y:b")
    wrong("at least two pairs", "--refPair=0", "--loadInputs=x:a", "--loadRefOutputs=y:b", "--accuracyThreshold=1")


def test_older_names():
    assert options("--streams=3").inference.streams == 3 and options("--buildOnly").build.skip_inference
    assert "use --infStreams" in options("--streams=3").notes[0]
    assert options("--weightless").build.strip and not options("--weightless").build.refit
    assert options("--stripAllWeights").build.strip and options("--stripAllWeights").build.refit
    assert options("--vc").build.version_compatible and options("--pi").build.plugin_instance_norm
    assert options("--heuristic").build.heuristic
    found = options("--plugins=a.py", "--staticPlugins=b.py", "--dynamicPlugins=c.py", "--plugins=a.py").plugins
    assert found == ("a.py", "b.py", "c.py")


def test_caches():
    modes: dict[str, Callable[[], Options]] = {
        "local": options,
        "disable": lambda: options("--noBuilderCache", "--timingCacheFile=c"),
        "global": lambda: options("--timingCacheFile=c"),
    }  # fmt: skip
    assert {mode: found().build.cache for mode, found in modes.items()} == {mode: mode for mode in modes}
    assert options("--duration=-1").inference.duration_s == -1 and math.isclose(options("--atol=1e-3").inference.atol, 1e-3)
