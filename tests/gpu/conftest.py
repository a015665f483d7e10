"""Tests that need a GPU; all are skipped, with the reason, where there is none. `make gpu` runs them."""

import os
from pathlib import Path

import pytest

_BUILD = Path(__file__).resolve().parents[2] / "build"

# As in tests/conftest.py, which `make gpu` leaves out: the GPU machine need not have what the other tests need.
os.environ.setdefault("DOVETAIL_CACHE", str(_BUILD / "test-cache"))
os.environ.setdefault("DOVETAIL_HOME", str(_BUILD / "test-home"))


def reason_without_gpu() -> str:
    """Why these tests cannot run here; "" if they can."""
    from dovetail.core.errors import DeviceError
    from dovetail.device.cuda import driver

    try:
        driver(0)
    except DeviceError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what lies in this folder unless there is a GPU."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if not here:
        return
    # Where the conformance suite forks, the device must be opened in the children only: this process asks a process of its own.
    reason = _asked()
    if reason:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))


def _asked() -> str:
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    code = "from tests.gpu.conftest import reason_without_gpu; print(reason_without_gpu())"
    paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    return done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no answer"])[-1]
