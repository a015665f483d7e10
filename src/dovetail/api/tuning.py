"""Tuning of an engine that exists: the same graph and weights, with tactics chosen by measuring here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dovetail import builder
from dovetail.api.building import chooser, finish, plan_timer
from dovetail.api.refitting import DROPPED
from dovetail.api.workspace import within
from dovetail.builder.restore import options_of, ranges_of, restore
from dovetail.core.errors import UsageError
from dovetail.engine.file import NODE_CONSTANTS
from dovetail.engine.plan import digests

if TYPE_CHECKING:
    from dovetail.api.engine import Engine, Progress


def tune(
    engine: Engine,
    *,
    device: str | None = None,
    time_budget: float | None = None,
    optimization_level: int = 3,
    verify: str = "sample",
    progress: Progress | None = None,
) -> Engine:
    """Choose an engine's tactics again, by measuring on this machine.

    For engines that were built for a GPU which was not there. The old engine stays as it is.

    Args:
        engine: any engine.
        device: "cuda" or "cuda:N" for an engine of a GPU; default: the engine's own, or the first.
        time_budget: seconds that compiling and measuring candidates may take; default: the device's.
        optimization_level: 0 to 5: how many candidates compete on a GPU.
        verify: how much of the new engine to check: "sample", "full", "off".
        progress: called as progress(stage, done, total).

    Raises:
        UsageError: an option does not fit the engine.
        DeviceError: the engine's device is not here.
        BuildError: as `build`.
    """
    start = time.perf_counter()
    plan = engine.plan
    kind = plan.target.partition(":")[0]
    chosen = device or engine.runtime.device
    if chosen.partition(":")[0] != kind:
        raise UsageError(f"tune: got the device {chosen!r} for an engine of {plan.target}, expected {kind!r}; build the model for it")
    options = replace(
        options_of(plan), device=chosen, tune=True, time_budget=time_budget, optimization_level=optimization_level, verify=verify
    )
    # The engine was built for a part by name; from here on that part must be here.
    choose = chooser(replace(options, target=None) if kind == "cuda" else options, engine.threads, progress)
    weights = engine.weights()
    module = restore(engine.graph, plan, weights)
    module.meta |= {key: engine.info.get(key, []) for key in (DROPPED, NODE_CONSTANTS)}
    built = builder.compile_module(
        module, options, progress=progress, choose=within(choose, options.workspace),
        timer=plan_timer(choose, progress), ranges=ranges_of(plan),
    )
    del choose  # with the memory on the device that it measured in
    done = plan.meta.get("report")
    if isinstance(done, dict) and "rules" in done:  # they were applied before what the engine stores
        report: Any = built.plan.meta["report"]
        report["rules"] = done["rules"]
    return finish(
        built, replace(options, target=None) if kind == "cuda" else options, lambda: restore(engine.graph, plan, weights),
        digests(weights), threads=engine.threads, start=start, source=engine.model_path, progress=progress,
    )  # fmt: skip
