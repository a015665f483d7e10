"""Polygraphy, unmodified, with Dovetail in TensorRT's place: its tools and its Python API."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail.tensorrt as trt
from dovetail.tensorrt.standins import device

pytest.importorskip("polygraphy")
pytest.importorskip("onnx_graphsurgeon")

SOURCE = Path(trt.__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of other people's code
SHAPE = ("--input-shapes", "x:[2,3,7,9]")
PROFILE = ("--trt-min-shapes", "x:[1,3,7,9]", "--trt-opt-shapes", "x:[2,3,7,9]", "--trt-max-shapes", "x:[8,3,7,9]")


@pytest.fixture(scope="module", autouse=True)
def installed():
    """`import tensorrt` gives Dovetail to the whole module, as in a program that the launcher runs."""
    trt.install(standins=True, children=True)
    yield
    trt.uninstall()


def weights(shape):
    return RNG.normal(size=shape).astype(np.float32)


def save(path, nodes, inputs, outputs, initializers, **options):
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(x, name) for name, x in initializers.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, **options)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path):
    """A convolution, a Relu, a mean and a product, of any number of images."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ReduceMean", ["r", "axes"], ["m"], name="mean", keepdims=0),
        helper.make_node("MatMul", ["m", "v"], ["y"], name="product"),
    ]
    return save(
        tmp_path / "model.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 7, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        {"w": weights((4, 3, 3, 3)), "b": weights(4), "axes": np.array([2, 3]), "v": weights((4, 5))},
    )


@pytest.fixture
def polygraphy(capsys, tmp_path, monkeypatch):
    """Run a command of Polygraphy in this process and a folder of its own; its log, and the status asked for."""
    main = importlib.import_module("polygraphy.tools").main
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        capsys.readouterr()
        found = main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        assert (found or 0) == status, out.out + out.err
        return out.out + out.err

    return run


# ---- tools that need no engine


def test_lint(polygraphy, model, tmp_path):
    polygraphy("check", "lint", model, "--input-shapes", "x:[2,3,7,9]")
    bad = onnx.load(model)
    bad.graph.node[1].op_type = "Rulu"
    onnx.save(bad, tmp_path / "bad.onnx")
    assert "Rulu" in polygraphy("check", "lint", tmp_path / "bad.onnx", status=1)


def test_surgeon(polygraphy, model, tmp_path):
    polygraphy("surgeon", "extract", model, "--inputs", "r:[2,4,7,9]:float32", "--outputs", "y:auto", "-o", "part.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "part.onnx").graph.node] == ["ReduceMean", "MatMul"]
    polygraphy("surgeon", "insert", model, "--inputs", "r", "--outputs", "m", "--op", "Abs", "-o", "more.onnx")
    assert "Abs" in [node.op_type for node in onnx.load(tmp_path / "more.onnx").graph.node]
    polygraphy("surgeon", "sanitize", model, "--override-input-shapes", "x:[2,3,7,9]", "--fold-constants", "-o", "fixed.onnx")
    assert onnx.load(tmp_path / "fixed.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    polygraphy("surgeon", "weight-strip", model, "-o", "stripped.onnx")
    polygraphy("surgeon", "weight-reconstruct", "stripped.onnx", "-o", "again.onnx")
    shapes = {w.name: tuple(w.dims) for w in onnx.load(tmp_path / "again.onnx").graph.initializer}
    assert shapes["w"] == (4, 3, 3, 3)


def test_inspect_onnx_and_data(polygraphy, model):
    log = polygraphy("inspect", "model", model, "--show", "layers", "attrs", "weights")
    assert "Conv" in log
    assert "pads" in log
    polygraphy("run", model, "--onnxrt", "--input-shapes", "x:[2,3,7,9]", "--save-outputs", "out.json")
    assert "y [dtype=float32, shape=(2, 5)" in polygraphy("inspect", "data", "out.json")


def check(folder, text):
    """A check command for `polygraphy debug`."""
    path = folder / "check.py"
    path.write_text(text)
    return ("--check", sys.executable, str(path))


def test_debug_reduce(polygraphy, model, tmp_path):
    """The smallest model that a command refuses; the command is a process of its own, and has Dovetail, too."""
    command = (
        "import sys, onnx, tensorrt\nassert tensorrt.__name__ == 'dovetail.tensorrt'\n"
        "sys.exit(any(n.op_type == 'Relu' for n in onnx.load('polygraphy_debug.onnx').graph.node))\n"
    )
    log = polygraphy("debug", "reduce", model, "-o", "reduced.onnx", "--model-input-shapes", "x:[1,3,7,9]", *check(tmp_path, command))
    assert "AssertionError" not in log
    assert [node.op_type for node in onnx.load(tmp_path / "reduced.onnx").graph.node] == ["Relu"]


# ---- memory


def test_device_arrays():
    cuda = importlib.import_module("polygraphy.cuda")
    x = RNG.normal(size=(3, 5)).astype(np.float32)
    with cuda.Stream() as stream, cuda.DeviceArray((3, 5), np.float32) as array:
        assert device.find(array.ptr) == (2, array.ptr, 60)
        array.copy_from(x, stream)
        y = array.copy_to(np.zeros_like(x), stream)
        stream.synchronize()
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(array.view((15,)).numpy(), x.ravel())
        array.resize((7, 5)).copy_from(np.ones((7, 5), np.float32))
        assert array.numpy().sum() == 35


def test_wrong_copies_are_polygraphys_errors():
    cuda = importlib.import_module("polygraphy.cuda")
    failed = importlib.import_module("polygraphy.exception").PolygraphyException
    wrapper = cuda.wrapper()
    at = wrapper.malloc(8)
    host = np.zeros(9, np.uint8)
    with pytest.raises(failed, match="CUDA Error: 1"):
        wrapper.memcpy(at, host.ctypes.data, 9, cuda.MemcpyKind.HostToDevice)
    wrapper.free(at)
    with pytest.raises(failed, match="CUDA Error: 1"):
        wrapper.memcpy(host.ctypes.data, at, 8, cuda.MemcpyKind.DeviceToHost)
    with pytest.raises(failed, match="CUDA Error: 1"):
        wrapper.free(at)
    with pytest.raises(failed, match="CUDA Error: 400"):
        wrapper.stream_synchronize(at)


# ---- run, convert


@pytest.mark.parametrize(
    "options",
    [(), ("--tf32",), ("--fp16", "--atol", "0.02"), ("--bf16", "--atol", "0.1"), ("--strongly-typed",)],
    ids=lambda options: "".join(options[:1]) or "fp32",
)
def test_run_against_onnxruntime(polygraphy, model, options):
    log = polygraphy("run", model, "--trt", "--onnxrt", *SHAPE, *PROFILE, *options)
    assert "PASSED" in log
    assert "Finished engine building" in log


def test_run_finds_what_differs(polygraphy, model, tmp_path):
    """A comparison that must fail does: against saved outputs of other weights."""
    other = onnx.load(model)
    other.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.full(4, 3, np.float32), "b"))
    onnx.save(other, tmp_path / "other.onnx")
    polygraphy("run", "other.onnx", "--onnxrt", *SHAPE, "--save-inputs", "in.json", "--save-outputs", "out.json")
    log = polygraphy("run", model, "--trt", *PROFILE, "--load-inputs", "in.json", "--load-outputs", "out.json", status=1)
    assert "FAILED" in log


def test_run_all_layers(polygraphy, model):
    log = polygraphy("run", model, "--trt", "--onnxrt", *SHAPE, *PROFILE, "--trt-outputs", "mark", "all", "--onnx-outputs", "mark", "all")
    assert all(f"Comparing Output: '{name}'" in log for name in "crmy")


def test_run_with_chosen_outputs(polygraphy, model):
    log = polygraphy("run", model, "--trt", "--onnxrt", *SHAPE, *PROFILE, "--trt-outputs", "r", "y", "--onnx-outputs", "r", "y")
    assert "Comparing Output: 'r'" in log


def test_run_with_half_inputs_and_outputs(polygraphy, model):
    polygraphy("run", model, "--trt", *SHAPE, *PROFILE, "--fp16", "--tensor-dtypes", "x:float16", "y:float16", "--save-outputs", "out.json")
    assert "y [dtype=float16, shape=(2, 5)]" in polygraphy("inspect", "data", "out.json")


def test_run_of_several_shapes_and_iterations(polygraphy, model, tmp_path):
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def load_data():\n"
        "    rng = np.random.default_rng(0)\n"
        "    for n in (1, 8, 3, 3, 1):\n"
        "        yield {'x': rng.standard_normal((n, 3, 7, 9)).astype(np.float32)}\n"
    )
    options = ("--data-loader-script", "data.py", "--sequential-runners", "--warm-up", "2")
    log = polygraphy("run", model, "--trt", "--onnxrt", *PROFILE, *options)
    assert "PASSED" in log


@pytest.mark.parametrize("strategy", ["static", "profile", "runtime"])
def test_run_with_memory_of_the_clients(polygraphy, model, strategy):
    polygraphy("run", model, "--trt", "--onnxrt", *SHAPE, *PROFILE, "--allocation-strategy", strategy)


def test_run_in_other_processes(model, tmp_path):
    """The launcher, its children, and an engine that one process builds and another runs."""

    def launch(*arguments):
        command = [sys.executable, "-m", "dovetail.tensorrt", "--standins", "polygraphy", *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=_environment(), timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    launch("convert", model, "-o", "model.engine", *PROFILE)
    launch("run", model, "--onnxrt", *SHAPE, "--save-inputs", "in.json", "--save-outputs", "out.json")
    log = launch("run", "model.engine", "--trt", "--load-inputs", "in.json", "--load-outputs", "out.json")
    assert "PASSED" in log


def _environment():
    from dovetail.core.env import inherited

    return inherited(PYTHONPATH=str(SOURCE))


def test_saved_engines_and_timing_caches(polygraphy, model, tmp_path):
    for _ in range(2):
        polygraphy("run", model, "--trt", *SHAPE, *PROFILE, "--save-engine", "a.engine", "--save-timing-cache", "times.bin")
    assert (tmp_path / "times.bin").stat().st_size > 0
    polygraphy("convert", model, "-o", "b.engine", *PROFILE, "--load-timing-cache", "times.bin")
    polygraphy("run", "b.engine", "--trt", *SHAPE, "--model-type", "engine")


def test_static_model_and_integers(polygraphy, tmp_path):
    """Gather and Add of int64 and bool results, with no profile given."""
    nodes = [
        helper.make_node("Gather", ["t", "i"], ["g"]),
        helper.make_node("Greater", ["g", "z"], ["positive"]),
        helper.make_node("Add", ["i", "i"], ["twice"]),
    ]
    save(
        tmp_path / "ids.onnx",
        nodes,
        [helper.make_tensor_value_info("i", TensorProto.INT64, [3])],
        [
            helper.make_tensor_value_info("positive", TensorProto.BOOL, [3, 4]),
            helper.make_tensor_value_info("twice", TensorProto.INT64, [3]),
        ],
        {"t": weights((9, 4)), "z": np.zeros(1, np.float32)},
    )
    log = polygraphy("run", "ids.onnx", "--trt", "--onnxrt", "--val-range", "[0,8]")
    assert "Comparing Output: 'positive'" in log
    assert "Comparing Output: 'twice'" in log


def test_shapes_that_only_data_give(polygraphy, tmp_path):
    """NonZero: Polygraphy's output allocator learns the shape from the run."""
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT)]
    save(
        tmp_path / "nonzero.onnx",
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.INT32, [4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, "k"])],
        {},
    )
    log = polygraphy("run", "nonzero.onnx", "--trt", "--onnxrt", "--val-range", "[0,2]", "--iterations", "3")
    assert "PASSED" in log


# ---- inspect


def test_inspect_engine(polygraphy, model):
    polygraphy("convert", model, "-o", "model.engine", *PROFILE)
    log = polygraphy("inspect", "model", "model.engine", "--show", "layers", "attrs")
    assert re.search(r"x \[dtype=float32, shape=\(-1, 3, 7, 9\)\]", log)
    assert "1 Optimization Profile" in log or "Profile: 0" in log
    assert "min=(1, 3, 7, 9)" in log.replace("[", "(").replace("]", ")")
    assert "Layer 0" in log


def test_inspect_engine_without_details(polygraphy, model):
    polygraphy("convert", model, "-o", "model.engine", *PROFILE, "--profiling-verbosity", "layer_names_only")
    assert "Layer 0" in polygraphy("inspect", "model", "model.engine", "--show", "layers")


def test_inspect_network(polygraphy, model):
    log = polygraphy("inspect", "model", model, "--display-as", "trt", "--show", "layers", "attrs", "weights")
    assert "LayerType.CONVOLUTION" in log
    assert "kernel" in log
    assert not re.search(r"^\s*_[a-z]\w* = ", log, re.MULTILINE), "attributes of ours that TensorRT's layers do not have"


def test_inspect_capability(polygraphy, model, tmp_path):
    assert "fully supported" in polygraphy("inspect", "capability", model, "-o", "dumps")
    assert "fully supported" in polygraphy("inspect", "capability", model, "--with-partitioning", "-o", "dumps")
    bad = onnx.load(model)
    bad.graph.node[1].op_type = "Rulu"
    bad.graph.node[1].domain = "nobody"
    bad.opset_import.append(helper.make_opsetid("nobody", 1))
    bad.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 7, 9]) for name in "cr")
    onnx.save(bad, tmp_path / "bad.onnx")
    log = polygraphy("inspect", "capability", "bad.onnx", "-o", "dumps")
    assert re.search(r"\|\s*Rulu\s*\|\s*relu\s*\|", log)
    log = polygraphy("inspect", "capability", "bad.onnx", "--with-partitioning", "-o", "parts")
    assert "Rulu" in log
    found = {path.name.partition("_")[0] for path in (tmp_path / "parts").glob("*.onnx")}
    assert found == {"supported", "unsupported"}


def test_tactics_are_recorded_shown_and_replayed(polygraphy, model):
    polygraphy("run", model, "--trt", *SHAPE, *PROFILE, "--save-tactics", "tactics.json")
    assert "Algorithm: " in polygraphy("inspect", "tactics", "tactics.json")
    polygraphy("run", model, "--trt", "--onnxrt", *SHAPE, *PROFILE, "--load-tactics", "tactics.json")


def test_convert_to_a_picture_of_the_network(polygraphy, model, tmp_path):
    polygraphy("convert", model, "-o", "picture.onnx", "--convert-to", "onnx-like-trt-network")
    picture = onnx.load(tmp_path / "picture.onnx")
    assert "CONVOLUTION" in [node.op_type for node in picture.graph.node]


# ---- debug


def test_debug_build(polygraphy, model, tmp_path):
    command = check(tmp_path, "import os, sys\nsys.exit(os.path.getsize('polygraphy_debug.engine') == 0)\n")
    log = polygraphy("debug", "build", model, *PROFILE, "--until", "2", *command)
    assert "Passed: 2/2" in log


def test_debug_precision(polygraphy, model, tmp_path):
    """Layers from the front are kept in fp32 until an engine is close enough to what ONNX Runtime computed."""
    polygraphy("run", model, "--onnxrt", *SHAPE, "--save-inputs", "in.json", "--save-outputs", "out.json")
    text = (
        "import sys\nfrom polygraphy.tools import main\n"
        "sys.exit(main(['run', 'polygraphy_debug.engine', '--trt', '--load-inputs', 'in.json', '--load-outputs', 'out.json', "
        "'--atol', '2e-5', '--rtol', '0']))\n"
    )
    log = polygraphy("debug", "precision", model, "--fp16", *PROFILE, "--mode", "bisect", *check(tmp_path, text))
    assert "try running the first" in log


# ---- the Python API


def test_python_api(model, tmp_path):
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        EngineFromPath,
        NetworkFromOnnxPath,
        Profile,
        SaveEngine,
        TrtRunner,
    )
    from polygraphy.comparator import Comparator, CompareFunc

    profile = Profile().add("x", (1, 3, 7, 9), (2, 3, 7, 9), (8, 3, 7, 9))
    build = SaveEngine(EngineFromNetwork(NetworkFromOnnxPath(str(model)), CreateConfig(profiles=[profile])), str(tmp_path / "a.engine"))
    runners = [TrtRunner(build), OnnxrtRunner(SessionFromOnnx(str(model)))]
    data = [{"x": RNG.normal(size=(n, 3, 7, 9)).astype(np.float32)} for n in (1, 5)]
    results = Comparator.run(runners, data_loader=data)
    assert bool(Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=1e-4)))
    with TrtRunner(EngineFromPath(str(tmp_path / "a.engine"))) as runner:
        again = runner.infer(data[1])["y"]
        np.testing.assert_array_equal(again, results[0][1][1]["y"])
        kept = runner.infer(data[1], copy_outputs_to_host=False)["y"]
        assert device.find(kept.ptr) is not None
        np.testing.assert_array_equal(kept.numpy(), again)
        assert list(runner.get_input_metadata()["x"].shape) == [-1, 3, 7, 9]


def test_network_definition_by_functions():
    from polygraphy import func
    from polygraphy.backend.trt import CreateNetwork, TrtRunner, engine_from_network

    @func.extend(CreateNetwork())
    def identity(builder, network):
        x = network.add_input("x", trt.float32, (2, 3))
        layer = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM)
        layer.get_output(0).name = "y"
        network.mark_output(layer.get_output(0))

    with TrtRunner(engine_from_network(identity)) as runner:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(runner.infer({"x": x})["y"], 2 * x)


def test_calibrator(model, tmp_path):
    from polygraphy.backend.trt import (
        Calibrator,
        CreateConfig,
        NetworkFromOnnxPath,
        Profile,
        TrtRunner,
        engine_from_network,
    )

    data = [{"x": RNG.normal(size=(2, 3, 7, 9)).astype(np.float32)} for _ in range(2)]
    calibrator = Calibrator(data_loader=data, cache=str(tmp_path / "calibration.cache"))
    profile = Profile().add("x", (2, 3, 7, 9), (2, 3, 7, 9), (2, 3, 7, 9))
    config = CreateConfig(int8=True, calibrator=calibrator, profiles=[profile])
    with TrtRunner(engine_from_network(NetworkFromOnnxPath(str(model)), config)) as runner:
        assert runner.infer(data[0])["y"].shape == (2, 5)
    assert b"x: " in (tmp_path / "calibration.cache").read_bytes()


def test_debug_tensors(polygraphy, model):
    log = polygraphy("run", model, "--trt", *SHAPE, *PROFILE, "--mark-debug", "r", "--save-outputs", "out.json")
    assert log
    assert "r [dtype=float32, shape=(2, 4, 7, 9)]" in polygraphy("inspect", "data", "out.json")


def test_runs_in_graphs_that_the_client_captures(model):
    """Each launch runs on the addresses and shapes of the capture, and on what lies there now."""
    from cuda.bindings import runtime
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.backend.trt import (
        CreateConfig,
        NetworkFromOnnxPath,
        Profile,
        engine_from_network,
    )

    profile = Profile().add("x", (1, 3, 7, 9), (2, 3, 7, 9), (8, 3, 7, 9))
    context = engine_from_network(NetworkFromOnnxPath(str(model)), CreateConfig(profiles=[profile])).create_execution_context()
    x, y = RNG.normal(size=(2, 3, 7, 9)).astype(np.float32), np.zeros((2, 5), np.float32)
    at = {name: runtime.cudaMalloc(array.nbytes)[1] for name, array in (("x", x), ("y", y))}
    stream = runtime.cudaStreamCreate()[1]
    assert context.set_input_shape("x", x.shape)
    assert all(context.set_tensor_address(name, address) for name, address in at.items())
    kind = runtime.cudaMemcpyKind
    runtime.cudaStreamBeginCapture(stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
    runtime.cudaMemcpyAsync(at["x"], x, x.nbytes, kind.cudaMemcpyHostToDevice, stream)
    assert context.execute_async_v3(stream)
    runtime.cudaMemcpyAsync(y, at["y"], y.nbytes, kind.cudaMemcpyDeviceToHost, stream)
    code, graph = runtime.cudaStreamEndCapture(stream)
    assert code == 0
    assert not y.any()
    launched = runtime.cudaGraphInstantiate(graph, 0)[1]
    assert context.set_input_shape("x", (1, 3, 7, 9))
    with OnnxrtRunner(SessionFromOnnx(str(model))) as reference:
        for _ in range(2):
            x[:] = RNG.normal(size=x.shape)
            assert runtime.cudaGraphLaunch(launched, stream)[0] == 0
            np.testing.assert_allclose(y, reference.infer({"x": x})["y"], atol=1e-5)
    for release, handle in ((runtime.cudaFree, at["x"]), (runtime.cudaFree, at["y"]), (runtime.cudaStreamDestroy, stream)):
        assert release(handle)[0] == 0
