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
    """What kernels are compiled for; `CpuTarget` and `CudaTarget` say what their templates must know.

    Attributes:
        device: "cpu" or "cuda".
        isa: the instruction set: one of `ISAS`, or a compute capability such as "sm_90".
    """

    device: str
    isa: str

    @property
    def name(self) -> str:
        """The text form that `parse` reads, such as `cpu:avx512`."""
        return f"{self.device}:{self.isa}"

    @property
    def arch(self) -> str:
        """The machine architecture that runs the kernels' host; "" for any."""
        return ""

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """CPU features that the machine must have, as Linux names them."""
        return ()

    def supports_host(self) -> bool:
        """Whether code for this target runs on this machine's CPU; never so for another device."""
        return False

    @staticmethod
    def parse(text: str) -> Target:
        """The target written as `text`: `cpu`, `cpu:avx2`, `cuda:sm_90`, or an instruction set alone.

        `cpu` alone is the host's best instruction set. `cuda` alone needs a GPU to ask: see `device.cuda`.

        Raises:
            UsageError: unknown device or instruction set.
        """
        device, _, isa = text.partition(":")
        if device in _ISAS and not isa:
            device, isa = "cpu", device
        if device in CUDA_ISAS and not isa:
            device, isa = "cuda", device
        if device == "cuda" and isa in CUDA_ISAS:
            return CudaTarget(device, isa)
        if device != "cpu" or (isa and isa not in _ISAS):
            known = ", ".join([*(f"cpu:{name}" for name in _ISAS), *(f"cuda:{name}" for name in CUDA_ISAS)])
            raise UsageError(f"target: got {text!r}, expected cpu or one of {known}")
        if not isa:
            return Target.host()
        # Instruction sets with a name are x86's, whatever machine builds for them.
        arch = "x86_64" if isa != "generic" else _host_arch()
        return _make(isa, arch)

    @staticmethod
    def host() -> CpuTarget:
        """The best CPU target that this machine runs."""
        arch = _host_arch()
        if arch == "x86_64":
            for isa, (*_, needed) in _ISAS.items():
                if set(needed) <= _host_flags():
                    return _make(isa, arch)
        return _make("generic", arch)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CpuTarget(Target):
    """A CPU with an instruction set.

    Attributes:
        machine: "x86_64" or "aarch64"; instruction sets other than generic are x86_64 only.
        vector_bytes: width of the widest vector registers.
        n_registers: number of vector registers.
        fma: whether `a*b + c` is one instruction with one rounding.
        march: the compiler's name of the base instruction set ("" = the architecture's baseline).
        features: compiler features on top of it.
    """

    machine: str
    vector_bytes: int
    n_registers: int
    fma: bool
    march: str
    features: tuple[str, ...]

    @staticmethod
    def of(target: Target) -> CpuTarget:
        """The target as one of a CPU, which a CPU tactic may take for granted."""
        assert isinstance(target, CpuTarget), f"{target} is no CPU target"
        return target

    @property
    def arch(self) -> str:
        """The architecture."""
        return self.machine

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

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """CPU features that the machine must have, as Linux names them."""
        return _ISAS[self.isa][-1]

    def supports_host(self) -> bool:
        """Whether code for this target runs on this machine."""
        return self.arch == _host_arch() and set(self.cpu_flags) <= _host_flags()


# isa -> (compute capability, bytes of shared memory a block may have, multiprocessors of the usual part, KiB of L2)
CUDA_ISAS: dict[str, tuple[int, int, int, int]] = {
    "sm_80": (80, 163 * 1024, 108, 40960),
    "sm_86": (86, 99 * 1024, 84, 6144),
    "sm_89": (89, 99 * 1024, 142, 98304),
    "sm_90": (90, 227 * 1024, 132, 51200),
}


@dataclass(frozen=True)
class CudaTarget(Target):
    """An NVIDIA GPU of a compute capability.

    Attributes:
        tf32: whether fp32 products may round their operands to TF32; only when the build asked for it.
    """

    tf32: bool = False

    @staticmethod
    def of(target: Target) -> CudaTarget:
        """The target as one of a GPU, which a CUDA tactic may take for granted."""
        assert isinstance(target, CudaTarget), f"{target} is no CUDA target"
        return target

    @property
    def capability(self) -> int:
        """Compute capability, as 10 * major + minor."""
        return CUDA_ISAS[self.isa][0]

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one block may have."""
        return CUDA_ISAS[self.isa][1]

    @property
    def multiprocessors(self) -> int:
        """Multiprocessors of the usual part of this capability: heuristics without a GPU go by it."""
        return CUDA_ISAS[self.isa][2]

    @property
    def programmatic_launch(self) -> bool:
        """Whether a kernel may start before the one ahead of it has ended (programmatic dependent launch)."""
        return self.capability >= 90


def _make(isa: str, arch: str) -> CpuTarget:
    march, features, vector_bytes, n_registers, fma, _ = _ISAS[isa]
    if arch == "aarch64":
        return CpuTarget("cpu", isa, arch, 16, 32, True, "", ())
    return CpuTarget("cpu", isa, arch, vector_bytes, n_registers, fma, march, features)


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
