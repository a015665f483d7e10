"""Verification of an engine that is already built or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dovetail import builder
from dovetail.builder.options import VERIFY_LEVELS
from dovetail.builder.restore import as_recorded, options_of, ranges_of, restore, spread_of
from dovetail.builder.verify import verify_built
from dovetail.core.errors import UsageError
from dovetail.device.cuda import Driver
from dovetail.ir.graph import Module
from dovetail.runtime import AbsentEngine, RuntimeEngine
from dovetail.runtime.cuda import CudaEngine

if TYPE_CHECKING:
    from dovetail.api.engine import Engine, Progress


def driver_of(opened: RuntimeEngine) -> Driver | None:
    """The driver of the GPU that an engine runs on; None for one that runs on a CPU, or nowhere here."""
    return opened.driver if isinstance(opened, CudaEngine) else None


def verify_again(engine: Engine, level: str, progress: Progress | None) -> dict[str, Any]:
    """Build the engine's stored graph again with the same tactics, check those kernels and the engine.

    The kernels are the engine's own where their hashes agree, which the certificate states.

    Raises:
        VerificationError: names what is off.
        UsageError: an unknown level.
        DeviceError: the engine's device is not here.
    """
    if level not in VERIFY_LEVELS:
        raise UsageError(f"verify: got {level!r}, expected one of {', '.join(VERIFY_LEVELS)}")
    if isinstance(engine.runtime, AbsentEngine):
        raise engine.runtime.refusal("verify")
    plan = engine.plan
    weights = engine.weights()

    def module() -> Module:
        return restore(engine.graph, plan, weights)

    built = builder.compile_module(module(), options_of(plan), choose=as_recorded(plan), ranges=ranges_of(plan), spread=spread_of(plan))
    certificate = verify_built(
        built, engine.run, module, content="", level=level, threads=engine.threads, driver=driver_of(engine.runtime), fresh=True,
        progress=progress,
    )  # fmt: skip
    same = {k.entry for k in built.plan.kernels} == {k.entry for k in plan.kernels}
    if not same:
        # A later release writes other kernels; the engine's own are then checked end to end only.
        certificate["kernels"]["note"] = "this release generates other kernels than the engine holds"
    return certificate
