"""The three programs in the styles of 2020, of 8 to 10, and of 11 run as they stand on a machine without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import dovetail
from tests.tensorrt.programs import classifier

ROOT = Path(__file__).resolve().parents[2]


def program(name: str, *arguments: str) -> str:
    """What a program prints, run through the launcher."""
    done = subprocess.run(
        [sys.executable, "-m", "dovetail.tensorrt", "--standins", str(ROOT / "examples" / f"{name}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "DOVETAIL_TENSORRT_DEVICE": "cpu"}, capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_2020(tmp_path: Path) -> None:
    model = classifier(batch=1)
    onnx.save(model, tmp_path / "model.onnx")
    said = program("tensorrt_2020", str(tmp_path / "model.onnx"))
    assert "refit map: conv/KERNEL=conv.w, conv/BIAS=conv.b, fc/KERNEL=fc.w, fc/BIAS=fc.b, k/CONSTANT=k" in said
    x = np.random.default_rng(1).standard_normal(108).astype(np.float32).reshape(1, 3, 6, 6)
    for label, factor in (("before", 1.0), ("after", 0.5)):
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
        expected = dovetail.build(model, tune=False, verify="off").run({"x": x})["y"][0, :5]
        line = re.search(rf"^{label}: (.*)$", said, re.MULTILINE)
        assert line is not None
        np.testing.assert_allclose([float(v) for v in line[1].split()], expected, rtol=1e-3, atol=1e-3)


def test_2020_with_its_own_model() -> None:
    assert "after:" in program("tensorrt_2020")


def test_8_to_10(tmp_path: Path) -> None:
    said = program("tensorrt_8_10", str(tmp_path / "engine.plan"))
    assert "profile: [(1, 64), (4, 64), (8, 64)]" in said and said.count("below 1e-2: True") == 3
    assert "does not satisfy any optimization profiles" in said and (tmp_path / "engine.plan").stat().st_size > 1000


@pytest.mark.parametrize(
    "line", ["phases and steps were told: True", "missing: conv1.b, conv1.w, fc.b, fc.w", "equal after the refit: True"]
)
def test_11(line: str, eleven: str) -> None:
    assert line in eleven


@pytest.fixture(scope="module")
def eleven() -> str:
    """What the program in the style of 11 prints."""
    return program("tensorrt_11")
