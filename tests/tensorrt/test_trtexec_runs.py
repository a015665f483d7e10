"""trtexec on small models, on the CPU: engines, shapes, formats, refits, debug tensors, files, accuracy, errors."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail.cli import main as dovetail_main
from dovetail.core.env import override
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.tensorrt.trtexec import main
from dovetail.tensorrt.trtexec.build import make
from dovetail.tensorrt.trtexec.console import Console
from dovetail.tensorrt.trtexec.inference import Inference
from dovetail.tensorrt.trtexec.options import parse

ONCE = ("--iterations=1", "--duration=0", "--warmUp=0")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models: `m.onnx`, y = mean(relu(conv(x))) of any batch; `cut.onnx`, whose output's size only a run can tell."""
    rng = np.random.default_rng(11)
    weights = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ReduceMean", ["r"], ["y"], name="mean", axes=[2, 3], keepdims=0),
    ]
    save(tmp_path / "m.onnx", nodes, {"x": ["N", 3, 5, 7]}, {"y": ["N", 4]}, w=weights)
    save(tmp_path / "other.onnx", nodes, {"x": ["N", 3, 5, 7]}, {"y": ["N", 4]}, w=2 * weights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict, outputs: dict, kind: int = TensorProto.FLOAT, **weights: np.ndarray
) -> None:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs trtexec, checks the exit code and the lines around, and gives the output without times and severities' brackets."""

    def run(*arguments: str, code: int = 0) -> str:
        assert main(arguments) == code
        out = capsys.readouterr().out
        lines = out.splitlines()
        assert lines[0].startswith("&&&& RUNNING TensorRT.trtexec [TensorRT v")
        assert lines[-1] == lines[0].replace("RUNNING", "FAILED" if code else "PASSED")
        if not arguments or not arguments[0].startswith("--help"):
            assert all(re.match(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[[IWEV]\] ", line) for line in lines[1:-1])
        return re.sub(r"^\[[\d/:-]+\] ", "", out, flags=re.MULTILINE)

    return run


def phases(text: str, *expected: str) -> None:
    """The lines are there, in this order; numbers are as they come."""
    position = 0
    for line in expected:
        found = re.compile(line.replace("#", r"[-+.\de]+"), re.MULTILINE).search(text, position)
        assert found, f"{line!r} after {text[:position].splitlines()[-1:]}"
        position = found.end()


def test_a_model_is_built_saved_and_loaded(call):
    text = call(
        "--onnx=m.onnx", "--minShapes=x:1x3x5x7", "--optShapes=x:4x3x5x7", "--maxShapes=x:8x3x5x7", "--saveEngine=m.engine", *ONCE
    )
    phases(
        text,
        r"^\[I\] === Model Options ===", r"^\[I\] === Device Information ===", r"^\[I\] TensorRT version: #$",
        r"^\[I\] Start parsing network model\.$", r"^\[I\] Finished parsing network model\. Parse time: #$",
        r"^\[I\] Set shape of input tensor x for optimization profile 0 to: MIN=1x3x5x7 OPT=4x3x5x7 MAX=8x3x5x7$",
        r"^\[I\] Created engine with size: # MiB$", r"^\[I\] Engine built in # sec\.$", r"^\[I\] Engine deserialized in # sec\.$",
        r"^\[I\] Created execution context with device memory size: # MiB$", r"^\[I\] Using random values for input x$",
        r"^\[I\] Input binding for x with dimensions 4x3x5x7 and type fp32 is created\.$",
        r"^\[I\] Output binding for y with dimensions 4x4 and type fp32 is created\.$", r"^\[I\] Starting inference$",
        r"^\[I\] Warmup completed 0 queries over 0 ms$", r"^\[I\] Timing trace has 1 queries over # s$", r"runs on the CPU",
        r"^\[I\] === Performance summary ===$", r"^\[I\] Throughput: # qps$", r"^\[I\] Latency: min = # ms, max = # ms",
        r"^\[I\] H2D Latency: min = 0 ms", r"^\[I\] Total GPU Compute Time: # s$",
    )  # fmt: skip
    text = call("--loadEngine=m.engine", "--shapes=x:8x3x5x7", "--verbose", *ONCE)
    phases(
        text, r"^\[I\] Engine loaded in # sec\.$", r"^\[I\] Loaded engine with size: # MiB$", r"^\[I\] Engine deserialized in # sec\.$",
        r"dimensions 8x3x5x7", r"^\[V\] === Explanations of the performance metrics ===$",
    )  # fmt: skip
    phases(call("--loadEngine=m.engine", "--getPlanVersionOnly"), r"^\[I\] Plan was created with TensorRT version #")


def test_the_numbers_are_the_engines(call):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
    x.tofile("x.raw")
    text = call(
        "--onnx=m.onnx", "--shapes=x:2x3x5x7", "--loadInputs=x:x.raw", "--dumpOutput", "--exportOutput=o.json", "--dumpRawBindingsToFile",
        "--saveEngine=m.engine", *ONCE,
    )  # fmt: skip
    import onnxruntime

    (expected,) = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (row,) = json.loads(Path("o.json").read_text())
    assert row["name"] == "y" and row["dimensions"] == "2x4"
    np.testing.assert_allclose(row["values"], expected.reshape(-1), rtol=1e-4, atol=1e-5)
    phases(text, r"^\[I\] Using values loaded from x\.raw for input x$", r"^\[I\] Output Tensors:$", r"^\[I\] y: \(2x4\)$")
    shown = text.split("y: (2x4)\n[I] ")[1].splitlines()[0].split(" ")
    np.testing.assert_allclose([float(v) for v in shown], row["values"])
    np.testing.assert_array_equal(np.fromfile("x.input.2.3.5.7.fp32.raw", np.float32), x.reshape(-1))
    raw = np.fromfile("y.output.2.4.fp32.raw", np.float32)
    np.testing.assert_allclose(raw, expected.reshape(-1), rtol=1e-4, atol=1e-5)

    # The same as an accuracy check, right and wrong.
    expected.tofile("y.raw")
    check = ("--loadEngine=m.engine", "--shapes=x:2x3x5x7", "--loadInputs=x:x.raw", "--loadRefOutputs=y:y.raw", *ONCE)
    phases(call(*check, "--accuracyAlgorithm=lInf", "--accuracyThreshold=1e-3"), r"^\[I\] LInf accuracy loss for tensor y = #.*passed$")
    (expected + 1).astype(np.float32).tofile("y.raw")
    phases(call(*check, "--accuracyThreshold=1e-3", code=1), r"^\[E\] L2 accuracy loss for tensor y = #.*failed$", "Performance summary")
    Path("y.raw").write_bytes(b"abc")
    phases(call(*check, "--accuracyThreshold=1e-3", code=1), r"^\[E\] --loadRefOutputs: y: got 3 bytes in y\.raw, expected 32")


def test_layers_and_times_are_exported(call):
    text = call(
        "--onnx=m.onnx", "--shapes=x:2x3x5x7", "--profilingVerbosity=detailed", "--dumpProfile", "--dumpLayerInfo", "--separateProfileRun",
        "--exportProfile=p.json", "--exportLayerInfo=l.json", "--exportTimes=t.json", "--iterations=4", "--duration=0", "--warmUp=1",
    )  # fmt: skip
    phases(text, r"^\[I\] Layer Information:$", r"conv", r"=== Performance summary", r"=== Profile \(# iterations \) ===", r"Total$")
    count, *layers = json.loads(Path("p.json").read_text())
    assert count["count"] >= 4 and any("conv" in layer["name"] for layer in layers)
    assert sum(layer["percentage"] for layer in layers) == pytest.approx(100)
    described = json.loads(Path("l.json").read_text())
    assert described["Bindings"] == ["x", "y"] and any("conv" in layer["Name"] for layer in described["Layers"])
    times = json.loads(Path("t.json").read_text())
    assert len(times) >= 4 and all(row["latencyMs"] == row["computeMs"] > 0 == row["h2dMs"] == row["d2hMs"] for row in times)
    assert [row["startComputeMs"] for row in times] == sorted(row["startComputeMs"] for row in times) and times[0]["startComputeMs"] >= 1
    names = call("--onnx=m.onnx", "--shapes=x:2x3x5x7", "--exportLayerInfo=n.json", "--skipInference")
    assert all(isinstance(layer, str) for layer in json.loads(Path("n.json").read_text())["Layers"])
    phases(names, r"^\[I\] Skipped inference phase since --skipInference is added\.$")


def test_a_profile_in_the_same_run_reports_no_times(call):
    text = call("--onnx=m.onnx", "--dumpProfile", "--exportTimes=t.json", *ONCE)
    assert "Performance summary" not in text and "=== Profile (1 iterations ) ===" in text and not Path("t.json").exists()
    phases(text, r"^\[W\] --exportTimes needs runs without a profiler", r"The e2e network timing is not reported")
    with override(tensorrt_version="11.1.0.106"):
        assert "Performance summary" in call("--onnx=m.onnx", "--dumpProfile", *ONCE)


def test_dynamic_inputs_without_shapes_get_ones(call):
    text = call("--onnx=m.onnx", "--saveEngine=m.engine", *ONCE)
    phases(
        text,
        r"^\[W\] Dynamic dimensions required for input: x, but no shapes were provided\. Automatically overriding shape to: 1x3x5x7$",
        r"dimensions 1x3x5x7",
    )
    call("--onnx=m.onnx", "--minShapes=x:3x3x5x7", "--maxShapes=x:4x3x5x7", "--saveEngine=n.engine", "--skipInference")
    phases(call("--loadEngine=n.engine", *ONCE), r"overriding shape to: 3x3x5x7$")
    phases(call("--loadEngine=n.engine", "--shapes=x:9x3x5x7", *ONCE, code=1), r"^\[E\] x: cannot run with the shape 9x3x5x7")


def test_wildcards_and_several_profiles(call):
    text = call(
        "--onnx=m.onnx", "--profile=0", "--optShapes=*:1x3x5x7", "--profile=1", "--minShapes=x*:2x3x5x7", "--maxShapes=x*:6x3x5x7",
        "--useProfile=1", "--dumpOptimizationProfile", *ONCE,
    )  # fmt: skip
    phases(text, r"profile 0 to: MIN=1x3x5x7 OPT=1x3x5x7", r"Optimization Profile 1:", r"x: fp32 MIN=2x3x5x7", r"dimensions 6x3x5x7")
    phases(call("--onnx=m.onnx", "--shapes=z:1x3x5x7", code=1), r"^\[E\] shapes: got z, expected names of inputs: x$")


def test_formats_of_inputs_and_outputs(call):
    text = call("--onnx=m.onnx", "--inputIOFormats=fp16:chw", "--outputIOFormats=fp16:chw", "--dumpRawBindingsToFile", *ONCE)
    phases(text, r"Input\(s\): fp16:chw", r"for x with dimensions 1x3x5x7 and type fp16", r"for y with dimensions 1x4 and type fp16")
    assert Path("x.input.1.3.5.7.fp16.raw").stat().st_size == 210 and Path("y.output.1.4.fp16.raw").stat().st_size == 8
    phases(call("--onnx=m.onnx", "--inputIOFormats=fp16:chw,fp16:chw", code=1), r"got 2 formats, expected 1 or 1")


def test_precisions_are_requested(call):
    text = call("--onnx=m.onnx", "--fp16", "--precisionConstraints=obey", "--layerPrecisions=*:fp32", "--skipInference", "--cpuOnly")
    phases(text, r"Precision: FP32\+FP16 \(obey precision constraints\)", r"LayerPrecisions: \*:fp32", r"^\[W\] \[TRT\] FP16 was requested")
    phases(call("--onnx=m.onnx", "--stronglyTyped", "--skipInference"), "Precision: Strongly Typed")


def test_streams_and_threads(call):
    for extra in ((), ("--threads",)):
        text = call("--onnx=m.onnx", "--infStreams=2", "--iterations=3", "--duration=0", "--warmUp=0", *extra)
        phases(text, r"Timing trace has [6-9] queries", r"^\[W\] \* Multiple inference streams are used")


def test_idle_and_sleep_times_pass(call):
    call("--onnx=m.onnx", "--iterations=3", "--duration=0", "--warmUp=0", "--idleTime=20", "--sleepTime=10", "--exportTimes=t.json")
    starts = [row["startComputeMs"] for row in json.loads(Path("t.json").read_text())]
    assert len(starts) == 3 and all(b - a >= 30 for a, b in pairwise(starts))


@pytest.mark.parametrize("strategy", ["static", "profile", "runtime"])
def test_allocation_strategies(call, strategy):
    assert f"{strategy}" and "Created execution context" in call("--onnx=m.onnx", f"--allocationStrategy={strategy}", *ONCE)


def test_refits(call):
    export = "--exportOutput=o.json"
    np.ones((1, 3, 5, 7), np.float32).tofile("x.raw")
    given = ("--loadInputs=x:x.raw", export, *ONCE)

    def values() -> np.ndarray:
        return np.array(json.loads(Path("o.json").read_text())[0]["values"])

    text = call("--onnx=m.onnx", "--refit", "--dumpRefit", "--timeRefit", "--saveEngine=m.engine", *given)
    phases(text, r"^\[I\] conv KERNEL$", r"Engine refit of 1 weights took # milliseconds")
    own = values()
    call("--loadEngine=m.engine", "--refitFromOnnx=other.onnx", *given)
    np.testing.assert_allclose(values(), 2 * own, rtol=1e-4)
    text = call("--onnx=m.onnx", "--stripAllWeights", "--saveEngine=s.engine", *given)
    phases(text, r"The engine has no weights; it runs with those of m\.onnx")
    np.testing.assert_allclose(values(), own, rtol=1e-4)
    assert Path("s.engine").stat().st_size < Path("m.engine").stat().st_size
    call("--loadEngine=s.engine", code=1)
    call("--loadEngine=s.engine", "--refitFromOnnx=other.onnx", *given)
    np.testing.assert_allclose(values(), 2 * own, rtol=1e-4)
    phases(call("--onnx=m.onnx", "--timeRefit", "--skipInference"), r"^\[W\] The engine is not refittable")


def test_debug_tensors(call):
    np.ones((1, 3, 5, 7), np.float32).tofile("x.raw")
    call(
        "--onnx=m.onnx", "--markDebug=c,r", "--saveAllDebugTensors=summary,numpy", "--saveDebugTensors=r:r.bin", "--loadInputs=x:x.raw",
        "--saveEngine=m.engine", *ONCE,
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(Path("tensor_summary.json").read_text())}
    assert set(rows) == {"c", "r"} and rows["r"]["shape"] == [1, 4, 5, 7]
    c, r = (np.load(rows[name]["files"]["numpy"]) for name in "cr")
    np.testing.assert_array_equal(r, np.maximum(c, 0))
    np.testing.assert_array_equal(np.fromfile("r.bin", np.float32), r.reshape(-1))
    call("--loadEngine=m.engine", "--saveDebugTensors=c:c.bin", "--loadInputs=x:x.raw", *ONCE)
    np.testing.assert_array_equal(np.fromfile("c.bin", np.float32), c.reshape(-1))
    text = call("--onnx=m.onnx", "--markUnfusedTensorsAsDebugTensors", "--saveAllDebugTensors=string", *ONCE)
    assert list(Path().glob("0000_*.txt")) and "PASSED" in text
    phases(call("--onnx=m.onnx", "--markDebug=zz", code=1), r"^\[E\] --markDebug: got zz, expected names of tensors")


def test_outputs_whose_size_only_a_run_can_tell(call):
    nodes = [helper.make_node("NonZero", ["x"], ["i"], name="nz")]
    save(Path("cut.onnx"), nodes, {"x": [4]}, {"i": [1, "K"]}, TensorProto.INT64)
    np.array([0, 2, 0, 3], np.float32).tofile("x.raw")
    call("--onnx=cut.onnx", "--loadInputs=x:x.raw", "--exportOutput=o.json", *ONCE)
    assert json.loads(Path("o.json").read_text()) == [{"name": "i", "dimensions": "1x2", "values": [1, 3]}]


def test_values_of_inputs_that_are_shapes(call):
    node = helper.make_node("Reshape", ["x", "s"], ["y"], name="reshape")
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12]), helper.make_tensor_value_info("s", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B"])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "s.onnx")
    ranges = ("--minShapes=x:1x12,s:1x1", "--optShapes=x:2x12,s:4x6", "--maxShapes=x:4x12,s:48x48")
    call("--onnx=s.onnx", *ranges, "--exportOutput=o.json", "--saveEngine=s.engine", *ONCE)
    assert json.loads(Path("o.json").read_text())[0]["dimensions"] == "4x6"
    call("--loadEngine=s.engine", "--shapes=x:3x12,s:9x4", "--exportOutput=o.json", *ONCE)
    assert json.loads(Path("o.json").read_text())[0]["dimensions"] == "9x4"


def test_timing_caches_and_deserialization(call):
    build = ("--onnx=m.onnx", "--timingCacheFile=t.cache", "--skipInference")
    phases(call(*build), r"Could not read cache from: t\.cache", r"Saved # bytes of timing cache to t\.cache")
    assert "Could not read cache" not in call(*build)
    Path("t.cache").write_bytes(b"nonsense")
    phases(call(*build, code=1), r"t\.cache is no timing cache")
    phases(call("--onnx=m.onnx", "--timeDeserialize"), r"First deserialization time = # milliseconds", "Average deserialization time")


def test_plugins_are_python_files(call):
    Path("twice.py").write_text(
        "import dovetail\n\n\n@dovetail.plugin('TrtexecTwice')\ndef twice(x):\n    return x * 2\n", encoding="utf-8"
    )
    save(Path("p.onnx"), [helper.make_node("TrtexecTwice", ["x"], ["y"], name="t", domain="my")], {"x": [3]}, {"y": [3]})
    model = onnx.load("p.onnx")
    model.opset_import.append(helper.make_opsetid("my", 1))
    onnx.save(model, "p.onnx")
    np.array([1, 2, 3], np.float32).tofile("x.raw")
    phases(call("--onnx=p.onnx", code=1), r"^\[E\] .*TrtexecTwice")
    text = call("--onnx=p.onnx", "--plugins=twice.py", "--loadInputs=x:x.raw", "--exportOutput=o.json", *ONCE)
    assert json.loads(Path("o.json").read_text())[0]["values"] == [2, 4, 6] and "plugin library: twice.py" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "Model missing or format not recognized"), (("--nonsense", "--onnx=m.onnx"), "Unknown option: --nonsense"),
        (("--onnx=none.onnx",), "none.onnx"), (("--loadEngine=none.engine",), "none.engine"),
        (("--loadEngine=m.onnx",), "deserialization failed"), (("--onnx=m.onnx", "--device=3"), "there is no GPU"),
        (("--onnx=m.onnx", "--loadInputs=z:f"), "Cannot find input tensor with name 'z'"),
        (("--onnx=m.onnx", "--loadInputs=x:m.onnx"), "expected 420"), (("--onnx=m.onnx", "--useProfile=4"), "got 4, expected 0 to 0"),
        (("--onnx=m.onnx", "--plugins=none.py"), "none.py"), (("--onnx=m.onnx", "--setBuildRoute=scenic"), "scenic"),
        (("--onnx=m.onnx", "--saveEngine=no/such/folder/m.engine"), "no/such/folder"),
    ],
)  # fmt: skip
def test_failures_say_why_and_end_with_1(call, arguments, message):
    text = call(*arguments, code=1)
    assert any(message in line for line in text.splitlines() if line.startswith("[E]")), text


def test_help_and_the_verb(call, capsys):
    assert "--onnx=<file>" in call("--help") and "--setBuildRoute=direct" in call("--helpBuildRoute")
    assert dovetail_main(["trtexec", "--onnx=m.onnx", "--skipInference"]) == 0
    assert dovetail_main(["trtexec", "--loadEngine=none"]) == 1
    assert capsys.readouterr().out.count("&&&& ") == 4


def test_the_road_of_a_gpu_on_a_driver_of_host_memory(capsys):
    """Copies, events, runs in flight and graphs, with an engine of the CPU behind them, which host addresses serve as well."""
    flags = ("--iterations=5", "--duration=0", "--warmUp=0", "--shapes=x:2x3x5x7", "--useCudaGraph", "--useSpinWait")
    options = parse(["--onnx=m.onnx", *flags], 10)
    console = Console()
    made = make(options, console)
    driver = HostDriver(lambda *_: None)
    with driver.active():
        running = Inference(made.engine, options, console, driver)
        running.set_up()
        traces = running.time()
        assert len(traces) == 5 and all(t.latency >= t.compute >= 0 for t in traces)
        assert np.isfinite(running.outputs[0].values).all() and np.abs(running.outputs[0].values).max() > 0
        for lane in running.lanes:
            assert not lane.pending
            lane.close()
    assert driver.log["upload"] >= 5 and driver.log["download"] >= 5
    assert "Successfully captured CUDA graph" in capsys.readouterr().out
