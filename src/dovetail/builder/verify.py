"""Verification of an engine: every chosen kernel against its reference, and the engine end to end.

The result is the *certificate*, JSON data that is stored in the plan. It says what was checked, how
far off it was, and what was left out and why. It holds no times, so equal builds have equal ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from dovetail.builder import Built
from dovetail.builder.options import Progress
from dovetail.builder.verify_engine import (
    TOLERANCE,
    TOLERANCES,
    TRANSFORMED_TOLERANCE,
    Rounding,
    as_bound,
    expect,
    verify_engine,
)
from dovetail.builder.verify_groups import NARROW_TOLERANCES, summary, verify_groups
from dovetail.builder.verify_launch import DeviceLauncher, HostLauncher, Launcher
from dovetail.codegen.target import CudaTarget
from dovetail.core.dtypes import dtype
from dovetail.core.env import env
from dovetail.core.records import RecordFile
from dovetail.device.cpu import KernelLibrary
from dovetail.device.cuda.driver import Driver
from dovetail.engine.codec import dumps
from dovetail.engine.plan import Plan, digest
from dovetail.ir.graph import Module
from dovetail.tuner.launch import host_pool

Array = np.ndarray[Any, Any]
Certificate = dict[str, Any]

CERTIFICATE_VERSION = 1

# Seconds that a sample gives the kernels; the rest of its ten is for the engine as a whole.
_SAMPLE_KERNELS_S = 4.0

NOT_VERIFIED: Certificate = {"version": CERTIFICATE_VERSION, "level": "off"}


def tolerance(built: Built) -> float:
    """The end-to-end tolerance: the precision's, wider where a transformed algorithm was chosen or bindings are narrower."""
    worst = max((c.tactic.relative_error() for c in built.choices.values()), default=0.0)
    stated = max((c.tactic.tolerance(c.group) for c in built.choices.values()), default=0.0)
    found = max(TOLERANCES[built.precision.precision], TRANSFORMED_TOLERANCE if worst > TOLERANCE else TOLERANCE, stated)
    kinds = {p.tensor.dtype for p in (*built.plan.inputs, *built.plan.outputs)} if built.formats else set()
    return max(found, *(NARROW_TOLERANCES.get(k, 0.0) for k in kinds), 0.0)


def launcher_of(built: Built, threads: int, driver: Driver | None) -> Launcher | None:
    """What runs the kernels of a build: this machine's CPUs, or a GPU by its driver; None where the target is not here."""
    if isinstance(built.target, CudaTarget):
        if driver is None:
            return None
        choices = (built.choices | built.weight_choices).values()
        return DeviceLauncher(driver, built.target, [step.kernel for c in choices for step in c.emit(built.target).steps])
    if not built.target.supports_host():
        return None
    return HostLauncher(KernelLibrary(built.binary), host_pool(built.target), threads)


def verify_built(
    built: Built,
    run: Callable[[dict[str, Any]], Mapping[str, Any]],
    module: Callable[[], Module],
    *,
    content: str,
    level: str,
    threads: int,
    driver: Driver | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    limit: float | None = None,
) -> Certificate:
    """Check kernels and engine; what an earlier build has checked is not checked again.

    Args:
        run: runs the engine on inputs by name.
        module: the model for the oracle, as it was before any pass where it can be had.
        content: hash of the model (`content_hash`).
        level: "full", "sample" or "off".
        threads: team size to check on a CPU, besides 1.
        driver: the GPU that the engine runs on; without one nothing of a GPU's engine can be checked.
        fresh: check everything, whatever earlier builds found.
        samples: inputs to check the engine with; seeded ones where there are none.
        limit: relative L2 error that outputs may have; None = the tolerance of the build.

    Raises:
        VerificationError: names the group or output, the tactic and the number.
    """
    if level == "off":
        return dict(NOT_VERIFIED)

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress("verify", done, total + 1)

    kernels: dict[str, Any] = {"groups": len(built.choices) + len(built.weight_choices)}
    cache = RecordFile(env().cache / "verified.jsonl")
    launcher = launcher_of(built, threads, driver)
    if launcher is not None:
        results = verify_groups(
            built.choices | built.weight_choices, built.target, launcher, weights=built.module.weights,
            bounds=built.module.meta.get("symbol_bounds", {}), budget_s=_SAMPLE_KERNELS_S if level == "sample" else None,
            cache=cache, fresh=fresh, progress=step,
        )  # fmt: skip
        kernels |= summary(results)
        allowed = tolerance(built) if limit is None else limit
        key = _engine_key(built, content, level, samples, allowed)
        known = None if fresh else cache.get(key)
        if known is None:
            kinds = {p.name: dtype(p.tensor.dtype) for p in built.plan.inputs}
            engine = verify_engine(
                lambda feed: run(as_bound(feed, kinds)), expect(module(), level, samples, built.expected), allowed, module,
                built.precision.precision, built.formats, Rounding(built.ranges.kept, built.rounded),
            )  # fmt: skip
            cache.put(key, {"engine": engine})
        else:
            engine = dict(known["engine"])
        cache.flush()
    else:
        kernels |= {"distinct": 0, "checked": 0, "reason": f"{built.target} does not run on this machine"}
        engine = {"checked": False, "reason": f"{built.target} does not run on this machine"}
    if progress is not None:
        progress("verify", 1, 1)
    return {
        "version": CERTIFICATE_VERSION, "ok": True, "level": level, "precision": built.precision.precision, "kernels": kernels,
        "engine": engine,
    }  # fmt: skip


class WeightHashes:
    """SHA-256 of every initializer, computed beside the build that imports them; a context manager."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._begun: dict[str, tuple[Array, Future[str]]] = {}

    def __enter__(self) -> WeightHashes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def after(self, name: str, module: Module) -> None:
        """Called after each pass of a build: begins once the weights are there."""
        if name == "import":
            self._begun = {n: (array, self._pool.submit(digest, array)) for n, array in module.weights.items()}

    def of(self, weights: Mapping[str, Array]) -> dict[str, str]:
        """The hashes of the final weights."""
        result = {}
        for name, array in weights.items():
            begun = self._begun.get(name)
            result[name] = begun[1].result() if begun is not None and begun[0] is array else digest(array)
        return result


def content_hash(graph: str, hashes: Mapping[str, str]) -> str:
    """A hash of the model: its canonical graph and every initializer."""
    found = hashlib.sha256(graph.encode())
    for name in sorted(hashes):
        found.update(f"{name} {hashes[name]}\n".encode())
    return found.hexdigest()


def program_hash(plan: Plan) -> str:
    """A hash of what a plan does; report and certificate do not count."""
    return hashlib.sha256(dumps(replace(plan, meta={}, certificate={}))).hexdigest()


def _engine_key(built: Built, content: str, level: str, samples: Sequence[Mapping[str, Any]], allowed: float) -> str:
    parts = [str(CERTIFICATE_VERSION), level, content, program_hash(built.plan), str(allowed)]
    parts += [f"{name} {digest(np.asarray(sample[name]))}" for sample in samples for name in sorted(sample)]
    return "engine " + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


__all__ = [
    "CERTIFICATE_VERSION",
    "NOT_VERIFIED",
    "Certificate",
    "WeightHashes",
    "content_hash",
    "launcher_of",
    "program_hash",
    "tolerance",
    "verify_built",
]
