"""Custom operators of torch.library: exported as nodes of a domain of their own, run by plugins; and the examples, as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}", "DOVETAIL_CACHE": os.environ.get("DOVETAIL_CACHE", str(tmp_path / "cache"))}


def python(tmp_path: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning", *words],
        env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("asinh_opset12", ["torchscript, opset 12 (Gemm, Constant, Mul, Asinh): equal to PyTorch in Dovetail and ONNX Runtime",
                           "dynamo, opset 18", "aten::asinh\n  at ", "asinh_opset12.py:", "return torch.asinh(8 * self.linear(x))",
                           '@dovetail.export.symbolic("aten::asinh", opset=12)']),
        ("custom_torch_op", ["dynamo: library::SoftShrink with axes, keep_sign, threshold; (5, 3, 8, 8) equal to PyTorch's",
                             "torchscript: library::SoftShrink"]),
    ],
)  # fmt: skip
def test_example(tmp_path: Path, name: str, said: list[str]) -> None:
    printed = python(tmp_path, str(EXAMPLES / f"{name}.py"))
    for text in said:
        assert text in printed


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_from_the_command_line(tmp_path: Path, exporter: str) -> None:
    """Export and build with the file as model, translation and plugin at once; without it, the errors say what is missing."""
    file = str(EXAMPLES / "custom_torch_op.py")
    printed = python(
        tmp_path, "-m", "dovetail", "export", f"{file}:make", "-o", "shrink.onnx", "--dynamic", "x:0=batch", "--exporter", exporter,
        "--plugins", file,
    )  # fmt: skip
    assert "library::soft_shrink: 1 call by the translation at" in printed
    model = onnx.load(tmp_path / "shrink.onnx")
    assert [n.domain for n in model.graph.node if n.op_type == "SoftShrink"] == ["library"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "SoftShrink" in python(tmp_path, "-m", "dovetail", "build", "shrink.onnx", "-o", "x.plan", code=1)
    python(tmp_path, "-m", "dovetail", "build", "shrink.onnx", "-o", "shrink.plan", "--plugins", file)
    np.savez(tmp_path / "x.npz", x=np.ones((3, 3, 8, 8), np.float32))
    python(tmp_path, "-m", "dovetail", "run", "shrink.plan", "--inputs", "x.npz", "--outputs", "y.npz", "--plugins", file)
    assert np.load(tmp_path / "y.npz")["output"].shape == (3, 3, 8, 8)


CUSTOM = '''
import torch, dovetail

@torch.library.custom_op("mine::scale", mutates_args=())
def scale(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by
{fake}
class Model(torch.nn.Module):
    def forward(self, x):
        return scale(x + 1, 2.0)

def make():
    return Model(), (torch.ones(2, 3),)
'''


def test_an_operator_without_translation_and_without_fake_implementation(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(CUSTOM.format(fake=""))
    printed = python(tmp_path, "-m", "dovetail", "export", "model.py:make", "-o", "m.onnx", code=1)
    for text in (
        "the custom operator mine::scale has no fake implementation", "model.py:10, in forward: return scale(x + 1, 2.0)",
        '@torch.library.register_fake("mine::scale")', "def _(x, by):",
    ):  # fmt: skip
        assert text in printed
    fake = '\n@torch.library.register_fake("mine::scale")\ndef _(x, by):\n    return torch.empty_like(x)\n'
    (tmp_path / "model.py").write_text(CUSTOM.format(fake=fake))
    printed = python(tmp_path, "-m", "dovetail", "export", "model.py:make", "-o", "m.onnx", code=1)
    for text in (
        "1 operator is not translated", "mine::scale\n  at model.py:14, in forward: return scale(x + 1, 2.0)",
        'def scale(op, x, by):\n             return op("mine::Scale", x, by=by)', '@dovetail.plugin("Scale")',
    ):  # fmt: skip
        assert text in printed
    assert not (tmp_path / "m.onnx").exists()
