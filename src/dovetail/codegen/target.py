"""Targets: the machine a kernel is compiled for, as data.

A target is written `device:isa`, for example `cpu:avx512`. The instruction set is a contract: code
for it is generated at build and checked against the machine at load (`Target.supports_host`).
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from dovetail.core.errors import UsageError

_V3 = ("avx2", "fma", "f16c", "bmi2")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")

# isa -> (march, extra compiler features, vector bytes, vector registers, fma, needed cpuinfo flags)
_ISAS: dict[str, tuple[str, tuple[str, ...], int, int, bool, tuple[str, ...]]] = {
    "avx512_vnni_bf16": (
        "x86-64-v4", ("avx512vnni", "avx512bf16"), 64, 32, True, (*_V4, "avx512_vnni", "avx512_bf16"),
    ),
    "avx512_vnni": ("x86-64-v4", ("avx512vnni",), 64, 32, True, (*_V4, "avx512_vnni")),
    "avx512": ("x86-64-v4", (), 64, 32, True, _V4),
    "avx2": ("x86-64-v3", (), 32, 16, True, _V3),
    "generic": ("", (), 16, 16, False, ()),
}  # fmt: skip
ISAS = tuple(_ISAS)


@dataclass(frozen=True)
class Target:
    """What kernels are compiled for.

    Attributes:
        device: always "cpu" here.
        isa: one of `ISAS`; "generic" is the baseline of the architecture (SSE2 or NEON).
        arch: "x86_64" or "aarch64"; instruction sets other than generic are x86_64 only.
        vector_bytes: width of the widest vector registers.
        n_registers: number of vector registers.
        fma: whether `a*b + c` is one instruction with one rounding.
        march: the compiler's name of the base instruction set ("" = the architecture's baseline).
        features: compiler features on top of it.
    """

    device: str
    isa: str
    arch: str
    vector_bytes: int
    n_registers: int
    fma: bool
    march: str
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        """The text form that `parse` reads, such as `cpu:avx512`."""
        return f"{self.device}:{self.isa}"

    @property
    def vector_floats(self) -> int:
        """fp32 lanes of one vector register."""
        return self.vector_bytes // 4

    @property
    def vector_type(self) -> str:
        """The C type of one register of fp32: v16f, v8f or v4f."""
        return f"v{self.vector_floats}f"

    @property
    def has_f16_conversion(self) -> bool:
        """Whether the hardware converts between fp16 and fp32."""
        return self.isa != "generic" or self.arch == "aarch64"

    @staticmethod
    def parse(text: str) -> Target:
        """The target written as `text`: `cpu`, `cpu:avx2`, or an instruction set alone.

        `cpu` alone is the host's best instruction set.

        Raises:
            UsageError: unknown device or instruction set.
        """
        device, _, isa = text.partition(":")
        if device in _ISAS and not isa:
            device, isa = "cpu", device
        if device != "cpu" or (isa and isa not in _ISAS):
            known = ", ".join(f"cpu:{name}" for name in _ISAS)
            raise UsageError(f"target: got {text!r}, expected cpu or one of {known}")
        if not isa:
            return Target.host()
        # Instruction sets with a name are x86's, whatever machine builds for them.
        arch = "x86_64" if isa != "generic" else _host_arch()
        return _make(isa, arch)

    @staticmethod
    def host() -> Target:
        """The best target that this machine runs."""
        arch = _host_arch()
        if arch == "x86_64":
            for isa, (*_, needed) in _ISAS.items():
                if set(needed) <= _host_flags():
                    return _make(isa, arch)
        return _make("generic", arch)

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """CPU features that the machine must have, as Linux names them."""
        return _ISAS[self.isa][-1]

    def supports_host(self) -> bool:
        """Whether code for this target runs on this machine."""
        return self.arch == _host_arch() and set(self.cpu_flags) <= _host_flags()

    def __str__(self) -> str:
        return self.name


def _make(isa: str, arch: str) -> Target:
    march, features, vector_bytes, n_registers, fma, _ = _ISAS[isa]
    if arch == "aarch64":
        return Target("cpu", isa, arch, 16, 32, True, "", ())
    return Target("cpu", isa, arch, vector_bytes, n_registers, fma, march, features)


def _host_arch() -> str:
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@functools.cache
def _host_flags() -> frozenset[str]:
    """CPU feature flags as Linux names them; empty where the system does not tell."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()
