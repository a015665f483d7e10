"""The README's section on PyTorch runs as it stands."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dovetail

ROOT = Path(__file__).resolve().parents[2]


def section() -> str:
    return (ROOT / "README.md").read_text().partition("\n## From PyTorch\n")[2].partition("\n## ")[0]


def test_python_examples() -> None:
    (example,) = re.findall(r"^```py\n(.*?)^```", section(), re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32))
    names = {"dovetail": dovetail, "torch": torch, "module": module, "x": x}
    exec(compile(example.replace('{"x": {0', '{"input": {0'), "README.md", "exec"), names)
    with torch.no_grad():
        want = module(x).numpy()
        np.testing.assert_allclose(names["engine"](x).numpy(), want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(names["fast"](x).numpy(), want, rtol=1e-4, atol=1e-5)


def test_command_line_examples(vision: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```bash\n(.*?)^```", section(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        command = shlex.split(line.split("#")[0])[1:]
        outcome = call(*command, *(["--no-tune"] if command[0] == "build" else []))
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "mobilenet.plan").is_file()
