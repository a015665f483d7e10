"""The three ways to build one network give one network: each example runs as it stands, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID = {
    "build_with_onnx_helper": "onnx.helper: (5, 16) as NumPy, in 1 kernels",
    "build_with_graphsurgeon": "graphsurgeon: (5, 16) as NumPy, in 1 kernels; without Relu, too",
    "build_with_graph_functions": "graph functions: (5, 16) as NumPy, in 1 kernels",
}


@pytest.mark.parametrize("name", sorted(SAID))
def test_example(name: str) -> None:
    if name != "build_with_onnx_helper":
        pytest.importorskip("onnx_graphsurgeon")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
