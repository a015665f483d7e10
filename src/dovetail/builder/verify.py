"""Verification of an engine: every chosen kernel against its reference, and the engine end to end.

The result is the *certificate*, JSON data that is stored in the plan. It says what was checked, how
far off it was, and what was left out and why. It holds no times, so equal builds have equal ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dovetail.builder import Built
from dovetail.builder.options import Progress
from dovetail.builder.verify_engine import (
    TOLERANCE,
    TRANSFORMED_TOLERANCE,
    Expected,
    expect,
    verify_engine,
)
from dovetail.builder.verify_groups import summary, verify_groups
from dovetail.device.cpu import KernelLibrary
from dovetail.ir.graph import Module
from dovetail.tuner.launch import host_pool

Certificate = dict[str, Any]

CERTIFICATE_VERSION = 1

# Seconds that a sample gives the kernels; the rest of its ten is for the engine as a whole.
_SAMPLE_KERNELS_S = 4.0

NOT_VERIFIED: Certificate = {"version": CERTIFICATE_VERSION, "level": "off"}


def tolerance(built: Built) -> float:
    """The end-to-end tolerance: wider where a transformed algorithm was chosen."""
    worst = max((c.tactic.relative_error() for c in built.choices.values()), default=0.0)
    return TRANSFORMED_TOLERANCE if worst > TOLERANCE else TOLERANCE


def verify_built(
    built: Built,
    run: Callable[[dict[str, Any]], Mapping[str, Any]],
    expected: Expected,
    module: Callable[[], Module],
    *,
    level: str,
    threads: int,
    progress: Progress | None = None,
) -> Certificate:
    """Check kernels and engine.

    Args:
        run: runs the engine on inputs by name.
        expected: the oracle's results (`expect`).
        module: the model again, for a second opinion on an output that is off.
        level: "full", "sample" or "off".

    Raises:
        VerificationError: names the group or output, the tactic and the number.
    """
    if level == "off":
        return dict(NOT_VERIFIED)

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress("verify", done, total + 1)

    kernels: dict[str, Any] = {"groups": len(built.choices)}
    if built.target.supports_host():
        results = verify_groups(
            built.choices, built.target, KernelLibrary(built.binary), host_pool(built.target),
            threads=threads, weights=built.module.weights, bounds=built.module.meta.get("symbol_bounds", {}),
            budget_s=_SAMPLE_KERNELS_S if level == "sample" else None, progress=step,
        )  # fmt: skip
        kernels |= summary(results)
        engine = verify_engine(run, expected, tolerance(built), module)
    else:
        kernels |= {"distinct": 0, "checked": 0, "reason": f"{built.target} does not run on this machine"}
        engine = {"checked": False, "reason": f"{built.target} does not run on this machine"}
    if progress is not None:
        progress("verify", 1, 1)
    return {"version": CERTIFICATE_VERSION, "level": level, "kernels": kernels, "engine": engine}


__all__ = ["CERTIFICATE_VERSION", "NOT_VERIFIED", "Certificate", "Expected", "expect", "tolerance", "verify_built"]
