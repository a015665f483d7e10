"""Polygraphy, unmodified, with Dovetail in TensorRT's place: its tools and its Python API."""

import importlib
import json
import os
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


@pytest.fixture(scope="module", autouse=True)
def installed():
    """`import tensorrt` gives Dovetail to the whole module, as in a program that the launcher runs."""
    trt.install(standins=True)
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
