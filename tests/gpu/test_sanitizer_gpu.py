"""A sample of kernels under compute-sanitizer; all samples and tools with `python -m tests.gpu.sanitize`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.sanitize import sanitizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sample_is_clean(tool: str) -> None:
    if sanitizer() is None:
        pytest.skip("compute-sanitizer is not installed here")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-m", "tests.gpu.sanitize", "--tool", tool, "--models", "dynamic_bert4"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if "Device not supported" in said:
        pytest.skip("compute-sanitizer does not support this device")
    assert done.returncode == 0, said[-3000:]
