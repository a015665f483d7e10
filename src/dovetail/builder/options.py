"""What a build was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dovetail.codegen.target import Target
from dovetail.core.errors import UsageError

Progress = Callable[[str, int, int], None]
VERIFY_LEVELS = ("full", "sample", "off")


@dataclass(frozen=True)
class BuildOptions:
    """Options that change the engine; each has the same name in Python and on the command line.

    Attributes:
        device: "cpu".
        target: instruction set, such as "cpu:avx512"; None = this machine's.
        precision: "fp32".
        shapes: input shapes by name: ints, symbol names, "1..32" ranges.
        strict_fp32: forbid Winograd and other transforms that are not direct sums.
        verify: how much to check against the reference: "full", "sample" (about ten seconds), "off".
        tune: measure candidate tactics; False takes the first by rule.
        time_budget: seconds that measuring may take.
    """

    device: str = "cpu"
    target: str | None = None
    precision: str = "fp32"
    shapes: Mapping[str, Sequence[int | str]] | None = field(default=None, hash=False)
    strict_fp32: bool = False
    verify: str = "sample"
    tune: bool = True
    time_budget: float = 6.0

    def check(self) -> Target:
        """The parsed target.

        Raises:
            UsageError: an unknown device, precision, verify level or target.
        """
        if self.device != "cpu":
            raise UsageError(f"device: got {self.device!r}, expected 'cpu'; other devices are not built yet")
        if self.precision != "fp32":
            raise UsageError(f"precision: got {self.precision!r}, expected 'fp32'; lower precisions are not built yet")
        if self.verify not in VERIFY_LEVELS:
            raise UsageError(f"verify: got {self.verify!r}, expected one of {', '.join(VERIFY_LEVELS)}")
        return Target.parse(self.target) if self.target else Target.host()
