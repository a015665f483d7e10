"""The machine a benchmark ran on: what a reader needs to judge its numbers."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from typing import Any

from bench.gpu.timing import check, driver

_PACKAGES = ("torch", "torchvision", "transformers", "triton", "onnx", "onnxruntime", "numpy", "cuda-core", "cuda-bindings", "dovetail")
_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"


def environment() -> dict[str, Any]:
    """GPU, driver, clocks now, versions, date."""
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "gpu": gpu(), "smi": smi(),
            "versions": versions(), "python": platform.python_version(), "system": f"{platform.system()} {platform.release()}",
            "cpus": os.cpu_count()}  # fmt: skip


def gpu(index: int = 0) -> dict[str, Any]:
    """What the driver says of the GPU."""
    drv = driver()
    device = check(drv.cuDeviceGet(index))
    attribute = drv.CUdevice_attribute

    def get(name: str) -> int:
        return int(check(drv.cuDeviceGetAttribute(getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device)))

    return {
        "name": check(drv.cuDeviceGetName(128, device)).split(b"\0")[0].decode(),
        "capability": [get("COMPUTE_CAPABILITY_MAJOR"), get("COMPUTE_CAPABILITY_MINOR")],
        "multiprocessors": get("MULTIPROCESSOR_COUNT"), "l2_bytes": get("L2_CACHE_SIZE"),
        "memory_bytes": int(check(drv.cuDeviceTotalMem(device))), "driver_cuda": int(check(drv.cuDriverGetVersion())),
    }  # fmt: skip


def smi() -> dict[str, str]:
    """Driver, clocks, power and throttling as nvidia-smi tells; empty where it does not run."""
    try:
        command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [v.strip() for v in done.stdout.splitlines()[0].split(",")] if done.returncode == 0 and done.stdout else []
    return dict(zip(_QUERY.split(","), values, strict=False))


def versions() -> dict[str, str]:
    """Versions of the packages that matter, of those installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def line(data: dict[str, Any]) -> str:
    """The environment in one line."""
    told = data["smi"]
    clocks = f", SM {told['clocks.sm']} of {told['clocks.max.sm']}" if "clocks.sm" in told else ""
    packages = ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    return f"{data['gpu']['name']}, driver {told.get('driver_version', '?')}{clocks}; Python {data['python']}; {packages}; {data['date']}"
