"""What a machine can do at most: operations and bytes per second, measured on a CPU, from the data sheet of a GPU."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.benchmark.peak import measure_bandwidth, measure_gflops


@dataclass(frozen=True)
class Machine:
    """The roof over the speed of kernels.

    Attributes:
        name: of the processor.
        gflops: 10^9 operations per second by the element type that is multiplied.
        gigabytes: 10^9 bytes per second from and to memory.
        source: "measured" or "data sheet".
        threads: of the CPU, that the numbers are for; 0 for a GPU.
    """

    name: str
    gflops: Mapping[str, float]
    gigabytes: float
    source: str
    threads: int = 0

    def peak(self, dtype: str) -> float:
        """10^9 operations per second on a type; of one that is not known, those of fp32."""
        return self.gflops.get(dtype, self.gflops["f32"])


@dataclass(frozen=True)
class Peaks:
    """Data-sheet rates: TFLOP/s of the tensor cores by precision, of the CUDA cores in fp32; TB/s of device memory."""

    tensor: Mapping[str, float]
    cores: float
    bandwidth: float


_HOPPER = {"fp16": 989.4, "bf16": 989.4, "tf32": 494.7, "fp32": 66.9}
_AMPERE = {"fp16": 312.0, "bf16": 312.0, "tf32": 156.0, "fp32": 19.5}
PEAKS = {
    "H100 PCIe": Peaks({"fp16": 756.5, "bf16": 756.5, "tf32": 378.0, "fp32": 51.2}, 51.2, 2.0),
    "H100": Peaks(_HOPPER, 66.9, 3.35),
    "H200": Peaks(_HOPPER, 66.9, 4.8),
    "A100 PCIE 80GB": Peaks(_AMPERE, 19.5, 1.935),
    "A100 80GB": Peaks(_AMPERE, 19.5, 2.039),
    "A100": Peaks(_AMPERE, 19.5, 1.555),
    "L4": Peaks({"fp16": 121.0, "bf16": 121.0, "tf32": 60.0, "fp32": 30.3}, 30.3, 0.3),
}
"""By words of the GPU's name; those of more words come before those of fewer."""


def peaks(gpu_name: str) -> Peaks | None:
    """The rates of a GPU; None for one that is not in the table."""
    words = set(gpu_name.upper().replace("-", " ").split())
    return next((p for name, p in PEAKS.items() if words.issuperset(name.upper().split())), None)


def gpu(name: str) -> Machine | None:
    """A GPU by the name that its driver gives; None for one whose rates are not known here."""
    found = peaks(name)
    if found is None:
        return None
    names = {"fp16": "f16", "bf16": "bf16", "tf32": "tf32", "fp32": "f32"}
    return Machine(name, {names[k]: v * 1e3 for k, v in found.tensor.items()}, found.bandwidth * 1e3, "data sheet")


def cpu(threads: int) -> Machine:
    """This machine's CPU at a number of threads, measured in about a second.

    Raises:
        CompileError: no C compiler.
    """
    return Machine(cpu_name(), {"f32": measure_gflops(threads)}, measure_bandwidth(threads), "measured", threads)


def cpu_name() -> str:
    """The processor's marketing name, or its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
