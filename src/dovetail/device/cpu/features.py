"""What this machine's CPU can do, as Linux names it."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from pathlib import Path

from dovetail.core.errors import DeviceError


@functools.cache
def cpu_flags() -> frozenset[str] | None:
    """Feature flags of the CPU; None where the system does not tell."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return None
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def architecture() -> str:
    """The instruction set family: "x86_64", "aarch64" or what the system calls it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def require(where: str, arch: str, flags: Iterable[str]) -> None:
    """Refuse a machine that lacks what kernels were compiled for.

    Raises:
        DeviceError: another architecture, or a missing feature.
    """
    if arch and arch != architecture():
        raise DeviceError(
            f"{where}: built for {arch}, got a {architecture()} machine; "
            "build the engine for this target"
        )
    present = cpu_flags()
    missing = [] if present is None else sorted(set(flags) - present)
    if missing:
        raise DeviceError(
            f"{where}: needs the CPU features {', '.join(missing)}, which this machine lacks; "
            "build the engine for a target that it has (cpu:avx2, cpu:generic)"
        )
