"""What the command-line tests share: a caller and small model files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail.cli import main
from tests.calling import Outcome, caller


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call the command line in this process."""
    return caller(capsys)


def small_model() -> onnx.ModelProto:
    """A convolution with batch norm, Relu and a classifier head; symbolic batch."""
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": rng.standard_normal((16, 3, 3, 3)).astype(np.float32) * 0.2,
        "bn.scale": rng.uniform(0.8, 1.2, 16).astype(np.float32),
        "bn.shift": rng.standard_normal(16).astype(np.float32) * 0.1,
        "bn.mean": rng.standard_normal(16).astype(np.float32) * 0.1,
        "bn.var": rng.uniform(0.5, 1.5, 16).astype(np.float32),
        "fc.weight": rng.standard_normal((16, 5)).astype(np.float32) * 0.3,
        "fc.bias": rng.standard_normal(5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], name="/conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "bn.scale", "bn.shift", "bn.mean", "bn.var"], ["b"], name="/bn"),
        helper.make_node("Relu", ["b"], ["r"], name="/relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="/pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="/flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], name="/fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The small model as a file."""
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Inputs for it, batch 2."""
    path = tmp_path / "x.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32))
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model and its engine, built once: the path of the engine."""
    folder = tmp_path_factory.mktemp("engine")
    onnx.save(small_model(), folder / "small.onnx")
    plan = folder / "small.plan"
    assert main(["build", str(folder / "small.onnx"), "-o", str(plan), "-q"]) == 0
    return plan


@pytest.fixture
def plan(built: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The engine, with the build's own output swallowed."""
    capsys.readouterr()
    return built
