"""What a build was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dovetail.codegen.target import CUDA_ISAS, CudaTarget, Target
from dovetail.core.errors import DeviceError, UsageError
from dovetail.engine.order import MAX_LANES
from dovetail.passes.io_formats import IOFormat
from dovetail.passes.precision import NARROW, PRECISIONS

Progress = Callable[[str, int, int], None]
VERIFY_LEVELS = ("full", "sample", "off")
LEVELS = range(6)
BRANCHES = range(1, MAX_LANES + 1)
_BUDGETS = {"cpu": 6.0, "cuda": 60.0}


@dataclass(frozen=True)
class BuildOptions:
    """Options that change the engine; each has the same name in Python and on the command line.

    Attributes:
        device: "cpu", "cuda" or "cuda:N"; a target says it, too.
        target: instruction set or compute capability, such as "cpu:avx512" or "cuda:sm_90"; None = this machine's.
        precision: "fp32", or on a GPU "tf32", "fp16" or "bf16" (with fp32 accumulation, where that is safe).
        shapes: input shapes by name: ints, symbol names, "1..32" ranges.
        strict_fp32: forbid Winograd and other transforms that are not direct sums.
        verify: how much to check against the reference: "full", "sample" (about ten seconds), "off".
        tune: measure candidate tactics; False takes the first by rule.
        time_budget: seconds that compiling and measuring candidates may take; None = the device's default.
        optimization_level: 0 to 5: how many candidates compete on a GPU.
        allow_fallback: build although less than half of the arithmetic could be placed in the precision asked for.
        io_formats: element type and order of inputs and outputs by name, such as "f16:channels_last".
        branches: how many chains of kernels may run beside each other on a GPU, 1 to 8; None = what is measured to be fastest.
        samples: inputs by name, as the model takes them, that verification runs instead of seeded ones.
        fp32_nodes: names of nodes that an fp16 or bf16 build keeps in fp32; "*" stands for anything.
        tolerance: relative L2 distance to the model in fp32 that verification lets outputs have; None = the precision's.
        workspace: bytes that a fusion may take beside its operands, at the sizes that the engine is tuned for; None = any.
    """

    device: str = "cpu"
    target: str | None = None
    precision: str = "fp32"
    shapes: Mapping[str, Sequence[int | str]] | None = field(default=None, hash=False)
    strict_fp32: bool = False
    verify: str = "sample"
    tune: bool = True
    time_budget: float | None = None
    optimization_level: int = 3
    allow_fallback: bool = False
    io_formats: Mapping[str, str] | None = field(default=None, hash=False)
    branches: int | None = None
    samples: Sequence[Mapping[str, Any]] | None = field(default=None, hash=False, compare=False)
    fp32_nodes: Sequence[str] = ()
    tolerance: float | None = None
    workspace: int | None = None

    def check(self) -> Target:
        """The parsed target.

        Raises:
            UsageError: an unknown device, precision, level or target, or ones that do not fit each other.
            DeviceError: no target was named, and there is no such GPU to ask.
        """
        kind, ordinal = _device(self.device)
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision: got {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if self.verify not in VERIFY_LEVELS:
            raise UsageError(f"verify: got {self.verify!r}, expected one of {', '.join(VERIFY_LEVELS)}")
        if self.optimization_level not in LEVELS:
            raise UsageError(f"optimization_level: got {self.optimization_level!r}, expected 0 to 5")
        if self.time_budget is not None and not self.time_budget >= 0:
            raise UsageError(f"time_budget: got {self.time_budget!r}, expected a number of seconds, 0 or more")
        if self.branches is not None and self.branches not in BRANCHES:
            raise UsageError(f"branches: got {self.branches!r}, expected 1 to {BRANCHES[-1]}, or None for what is fastest")
        for name, text in (self.io_formats or {}).items():
            IOFormat.parse(name, text)
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise UsageError(f"tolerance: got {self.tolerance!r}, expected a relative error above 0")
        if self.workspace is not None and (type(self.workspace) is not int or self.workspace < 0):
            raise UsageError(f"workspace: got {self.workspace!r}, expected a number of bytes, 0 or more")
        if isinstance(self.fp32_nodes, str) or not all(isinstance(name, str) for name in self.fp32_nodes):
            raise UsageError(f"fp32_nodes: got {self.fp32_nodes!r}, expected names of nodes")
        if self.fp32_nodes and self.precision not in NARROW:
            raise UsageError(f"fp32_nodes: got {list(self.fp32_nodes)} for {self.precision}, expected precision 'fp16' or 'bf16'; drop one")
        if self.target not in (None, "cuda"):
            target = Target.parse(str(self.target))
            if kind == "cuda" and target.device != "cuda":
                raise UsageError(f"target: got {self.target!r} for the device {self.device!r}, expected one of {', '.join(CUDA_ISAS)}")
        else:
            target = _of_gpu(ordinal) if kind == "cuda" or self.target == "cuda" else Target.host()
        if isinstance(target, CudaTarget):
            return replace(target, tf32=self.precision == "tf32")
        if self.precision != "fp32":
            raise UsageError(
                f"precision: got {self.precision!r} for {target}, expected 'fp32': a CPU computes in fp32 so far; "
                "build with device='cuda' (--device cuda), or for a named GPU with target='sm_90' (--target sm_90)"
            )
        if self.branches not in (None, 1):
            raise UsageError(f"branches: got {self.branches!r} for {target}, expected None or 1: a CPU's threads share each kernel")
        return target

    @property
    def ordinal(self) -> int:
        """Which GPU of this machine is meant."""
        return _device(self.device)[1]

    def budget(self, target: Target) -> float:
        """Seconds that tuning for a target may take."""
        return _BUDGETS[target.device] if self.time_budget is None else self.time_budget


def _device(text: str) -> tuple[str, int]:
    """("cpu" or "cuda", ordinal)."""
    kind, colon, number = text.partition(":")
    if text == "cpu" or (kind == "cuda" and (not colon or number.isdecimal())):
        return kind, int(number or 0)
    raise UsageError(f"device: got {text!r}, expected 'cpu', 'cuda' or 'cuda:N'")


def _of_gpu(ordinal: int) -> Target:
    """The target of a GPU of this machine.

    Raises:
        DeviceError: it is not there, or too old.
    """
    from dovetail.device.cuda import driver

    try:
        found = driver(ordinal).properties
    except DeviceError as error:
        raise DeviceError(
            f"device: cuda:{ordinal} cannot be asked for its compute capability: {error}; to build for a GPU that is not here, name it: "
            "target='sm_90' (--target sm_90)"
        ) from error
    return Target.parse(f"cuda:{isa_of(ordinal, found.name, found.capability)}")


def isa_of(ordinal: int, name: str, capability: int) -> str:
    """The instruction set that a GPU of a compute capability (10 * major + minor) runs best.

    Raises:
        DeviceError: none of those that code is generated for.
    """
    fitting = [
        isa
        for isa, (need, *_) in CUDA_ISAS.items()
        if need == capability or (need < 90 and need // 10 == capability // 10 and need < capability)
    ]
    if not fitting:
        raise DeviceError(
            f"device: got cuda:{ordinal} ({name}) of compute capability {capability // 10}.{capability % 10}, expected one of "
            f"{', '.join(CUDA_ISAS)}; use a GPU of these"
        )
    return fitting[-1]
