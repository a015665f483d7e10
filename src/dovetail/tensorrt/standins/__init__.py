"""What stands in for CUDA on a machine without a GPU, so that programs written for TensorRT run there, in CI for example.

`libcudart.so` (`cudart.c`) holds all memory, streams and events of a process in one table; `cuda/` and `pycuda/` are the
Python packages of those names over it. They are found under these names only in a process that `dropin.install` or the
launcher prepared; nothing of them is installed.
"""

from __future__ import annotations

from pathlib import Path

from dovetail.core.env import env, inherited
from dovetail.tensorrt.standins import finder


def gpu_present() -> bool:
    """Whether this machine has an NVIDIA GPU that this process may see; asks the system, not the driver."""
    if inherited().get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    devices = Path("/dev")
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def wanted() -> bool:
    """Whether CUDA is stood in for where nobody says so: as DOVETAIL_TENSORRT_STANDINS says, else where there is no GPU."""
    chosen = env().tensorrt_standins
    return not gpu_present() if chosen is None else chosen


def active() -> bool:
    """Whether this process's `cuda`, `pycuda` and `libcudart` are stand-ins, so that device addresses are host addresses."""
    found = finder.installed()
    return found is not None and found.stands_in()
