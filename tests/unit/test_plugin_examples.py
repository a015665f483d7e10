"""The examples of plugins and importers run as they stand, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID = {
    "one_hot_plugin": "as the compiler's own OneHot",
    "resize_plugin": "the compiler's own Resize",
    "reduce_by_shape": "length 50000: by",
    "sign_by_layers": "in one kernel",
    "bool_weights": "without it: /mask (Mul)",
}


@pytest.mark.parametrize("name", sorted(SAID))
def test_example(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
