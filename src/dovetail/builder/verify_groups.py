"""Checks chosen kernels against the meaning of their fusions, one group at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.benchmark.flops import contraction_flops
from dovetail.builder import oracle
from dovetail.builder.crop import Crop, crops
from dovetail.builder.select import Choice
from dovetail.builder.verify_launch import Launcher
from dovetail.codegen.tactic import Group
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core import dims
from dovetail.core.errors import Error, UnsupportedOpError, VerificationError
from dovetail.core.log import logger
from dovetail.core.records import RecordFile
from dovetail.ir.fingerprint import fingerprint
from dovetail.ir.graph import Node, Time, Value
from dovetail.ops.registry import RECURRENT
from dovetail.ops.registry import find as find_spec
from dovetail.ops.samples import (
    Bounds,
    integer_limit,
    sample,
    shape_of,
    sizes_to_try,
)
from dovetail.reference.registry import call
from dovetail.tuner.launch import amount, place, symbols_of

Array = np.ndarray[Any, Any]

CHECK_VERSION = 2
"""Part of the cache key; raised when a check becomes stricter."""

# The oracle's speed, for deciding what fits a budget without looking at a clock: what is checked
# must not depend on the load of the machine.
_ORACLE_FLOPS = 20e9
_ORACLE_BYTES = 0.2e9
_SIZES = 2
_NORMAL_TOLERANCE = 1e-5

NARROW_TOLERANCES = {"f16": 2e-3, "bf16": 1e-2}
"""Relative L2 error of a kernel on a GPU that computes with these element types."""

TF32_TOLERANCE = 2e-3
"""The same of a contraction of fp32 in TF32."""

_SMALL = 64
_log = logger("verify")


_Wanted = tuple[Crop | None, tuple[Array, ...]]


@dataclass(frozen=True)
class GroupResult:
    """The outcome for one group: `error` is None where it could not be checked, for `reason`."""

    name: str
    tactic: str
    error: float | None
    tolerance: float
    reason: str = ""


def verify_groups(
    choices: Mapping[Node, Choice],
    target: Target,
    launcher: Launcher,
    *,
    weights: Mapping[str, Array],
    bounds: Bounds,
    budget_s: float | None,
    cache: RecordFile,
    fresh: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[GroupResult]:
    """Check every distinct group, cheapest first, until the budget is used up.

    Args:
        launcher: runs the engine's own kernels.
        weights: initializers; small ones (exponents, epsilons) are used as they are.
        budget_s: estimated seconds of the oracle; None = no limit.
        cache: results of earlier checks, by kernels and shapes.
        fresh: check what the cache knows too.

    Raises:
        VerificationError: a kernel is wrong; names the group, its tactic and the number.
    """
    jobs: dict[str, _Job] = {}
    for node, choice in choices.items():
        job = _Job(node, choice, target, bounds)
        jobs.setdefault(job.key, job)
    results: list[GroupResult] = []
    spent = 0.0
    order = sorted(jobs.values(), key=lambda j: (j.cost, j.key))
    for done, job in enumerate(order):
        progress(done, len(order))
        record = None if fresh else cache.get(job.key)
        spent += job.cost
        if budget_s is not None and spent > budget_s:
            results.append(job.skipped("beyond the time budget of sampled verification"))
            continue
        if record is not None and record["tolerance"] == job.tolerance and record["error"] <= job.tolerance:
            results.append(GroupResult(job.name, job.tactic, record["error"], job.tolerance))
            continue
        result = job.check(launcher, weights, 1 if budget_s is not None else _SIZES)
        if result.error is not None:
            if not result.error <= result.tolerance:
                raise VerificationError(
                    f"{job.name}: tactic {job.tactic} differs from the reference, got a relative error of "
                    f"{result.error:.2e}, expected at most {result.tolerance:.0e}; this is a bug of that tactic: "
                    "please report it with the model"
                )
            cache.put(job.key, {"error": result.error, "tolerance": result.tolerance, "tactic": job.tactic})
        results.append(result)
    progress(len(order), len(order))
    return results


class _Job:
    """One group to be checked, with everything that its result depends on."""

    def __init__(self, node: Node, choice: Choice, target: Target, bounds: Bounds) -> None:
        self.node, self.choice, self.target = node, choice, target
        self.name = node.outputs[0].name
        self.tactic = choice.tactic.name
        self.emitted = choice.emit(target)
        self.tolerance = kernel_tolerance(choice, target)
        operands = (*choice.group.inputs, *choice.group.outputs, *choice.group.body.inputs)
        symbols = {s for v in operands for s in symbols_of(v.tensor)}
        inner = {s for n in choice.group.body.nodes for s in n.symbols()}
        kernel = {s for step in self.emitted.steps for d in step.kernel.dims for s in dims.symbols(d)}
        self.sizes = list(sizes_to_try(sorted({*symbols, *inner, *kernel}), bounds))
        kernels = [step.kernel for step in self.emitted.steps]
        flops, moved = amount(kernels, self.sizes[0])
        elements = sum(math.prod(shape_of(v.tensor.shape, self.sizes[0])) for v in choice.group.body.values())
        self.cost = flops / _ORACLE_FLOPS + (moved + 4 * elements) / _ORACLE_BYTES
        parts = (
            str(CHECK_VERSION), str(target), self.tactic, *(k.entry for k in kernels),
            *(str(v.type) for v in (*choice.group.inputs, *choice.group.outputs)),
            fingerprint(choice.group.body, self.sizes[0]),
        )  # fmt: skip
        self.key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]

    def skipped(self, reason: str) -> GroupResult:
        return GroupResult(self.name, self.tactic, None, self.tolerance, reason)

    def check(self, launcher: Launcher, weights: Mapping[str, Array], assignments: int) -> GroupResult:
        """Run kernels and oracle on seeded inputs, at up to so many assignments of sizes."""
        worst, done, reason = 0.0, 0, "no sizes were found that the operators accept"
        for sizes in self.sizes:
            try:
                prepared = self._prepare(sizes, weights)
            except UnsupportedOpError as error:
                return self.skipped(str(error))
            except (Error, ValueError, IndexError, TypeError, ArithmeticError) as error:
                reason = f"its reference refused sampled inputs: {error}"
                continue
            worst = max(worst, self._compare(sizes, *prepared, launcher))
            done += 1
            if done == (assignments if sizes else 1):
                break
        return GroupResult(self.name, self.tactic, worst, self.tolerance) if done else self.skipped(reason)

    # ------------------------------------------------------------------ inputs and oracle
    def _prepare(self, sizes: Mapping[str, int], weights: Mapping[str, Array]) -> tuple[list[Array], list[_Wanted]]:
        """(logical inputs, wanted parts of the outputs) on values for which the oracle stays finite, if there are such."""
        group = self.choice.group
        exact = self.choice.tactic.relative_error() > _NORMAL_TOLERANCE
        wide = np.dtype(np.float64 if exact else np.float32)
        flops, _ = amount([step.kernel for step in self.emitted.steps], sizes)
        attrs = oracle.attributes(group.anchor, sizes) if group.anchor is not None else {}
        prepared: tuple[list[Array], list[_Wanted]] | None = None
        for kind in ("heavy" if exact else "normal", "positive"):
            arrays = self._inputs(sizes, weights, kind)
            wanted: list[_Wanted] = []
            with np.errstate(all="ignore"):
                for part in crops(group, arrays, attrs, shape_of(group.outputs[0].tensor.shape, sizes), flops):
                    wanted.append((part, oracle.run_body(group.body, part.arrays, sizes, wide, part.override)))
                if not wanted:
                    wanted.append((None, oracle.run_body(group.body, arrays, sizes, wide)))
            prepared = arrays, wanted
            if all(_finite(w) for _, results in wanted for w in results):
                break
        assert prepared is not None
        return prepared

    def _inputs(self, sizes: Mapping[str, int], weights: Mapping[str, Array], kind: str) -> list[Array]:
        rng = np.random.default_rng(int(self.key[:12], 16))
        packed = self._packs()
        steady = _recurrent_weights(self.choice.group)
        arrays = []
        for position, inner in enumerate(self.choice.group.body.inputs):
            known = None if position in packed else _small_constant(self.node.input(position), weights)
            if known is not None:
                arrays.append(known)
                continue
            shape = shape_of(inner.tensor.shape, sizes)
            values = sample(inner.tensor.dtype, shape, rng, limit=integer_limit(inner, sizes), kind=kind)
            if position in steady:
                values = (values / math.sqrt(shape[-1])).astype(values.dtype)
            strides = inner.tensor.placement.strides(inner.tensor.shape)
            repeated = tuple(slice(0, 1) if s == 0 else slice(None) for s in strides)
            arrays.append(np.broadcast_to(values[repeated], shape) if any(s == 0 for s in strides) else values)
        return arrays

    def _packs(self) -> dict[int, list[tuple[str, dict[str, object]]]]:
        """Position → (op, attributes), in order, of the operands that are packed before the kernels run."""
        found: dict[int, list[tuple[str, dict[str, object]]]] = {}
        for pack in self.choice.tactic.packs(self.choice.group, self.choice.config, self.target):
            found.setdefault(pack.position, []).append((pack.op, dict(pack.attrs)))
        return found

    # ------------------------------------------------------------------ kernels
    def _compare(
        self, sizes: Mapping[str, int], arrays: Sequence[Array], wanted: Sequence[_Wanted], launcher: Launcher
    ) -> float:
        group = self.choice.group
        packed = self._packs()
        inputs = []
        for position, (value, array) in enumerate(zip(group.inputs, arrays, strict=True)):
            for op, attrs in packed.get(position, ()):
                (array,) = call(op, [array], attrs)
            inputs.append(place(value.tensor, sizes, array))
        outputs = [place(v.tensor, sizes) for v in group.outputs]
        untouched = [p.memory.copy() for p in outputs]
        run = launcher.bind(self.emitted, inputs, outputs, sizes)
        first: list[Array] = []
        worst = 0.0
        for variant in launcher.variants:
            for placed, before in zip(outputs, untouched, strict=True):
                placed.memory[:] = before
            run(variant)
            if not all(p.intact() for p in outputs):
                raise VerificationError(
                    f"{self.name}: tactic {self.tactic} writes outside its result, expected writes to "
                    f"{', '.join(str(v.type) for v in group.outputs)} only; this is a bug of that tactic: please report it"
                )
            got = [np.array(p.array) for p in outputs]
            if not first:
                first = got
                for part, results in wanted:
                    for g, w in zip(got, results, strict=True):
                        worst = max(worst, oracle.relative_l2(g if part is None else part.of(g), w))
            elif not all(a.tobytes() == b.tobytes() for a, b in zip(first, got, strict=True)):
                raise VerificationError(
                    f"{self.name}: tactic {self.tactic} depends on {launcher.difference}, got other bits with {variant} "
                    f"than with {launcher.variants[0]}, expected equal results; this is a bug of that tactic: please report it"
                )
        return worst


def _recurrent_weights(group: Group) -> set[int]:
    """Operands drawn as small as trained weights of recurrences are: large ones make these chaotic, and rounding grows step by step."""
    spec = find_spec(group.anchor.op) if group.anchor is not None else None
    if group.anchor is None or spec is None or spec.kind != RECURRENT:
        return set()
    return {v.index for v in group.anchor.inputs[1:3] if v is not None and v.producer is None}


def kernel_tolerance(choice: Choice, target: Target) -> float:
    """The relative L2 error that the kernels of a group may have.

    On a GPU the narrowest float that they load, hold or store decides: products of probabilities, for one, take them rounded to
    the operands' type. On a CPU only stores round.
    """
    group = choice.group
    stores = [2.0 ** -_mantissa_bits(v.tensor.dtype.name) for v in group.outputs if v.tensor.dtype.is_float]
    found = max(choice.tactic.tolerance(group), *stores, 0.0)
    if not isinstance(target, CudaTarget):
        return found
    if target.tf32 and any(contraction_flops(n) != 0 for n in group.body.nodes):
        found = max(found, TF32_TOLERANCE)
    return max(found, *(NARROW_TOLERANCES.get(v.tensor.dtype.name, 0.0) for v in group.body.values()))


def _small_constant(value: Value, weights: Mapping[str, Array]) -> Array | None:
    """The initializer behind a small operand (an exponent, an epsilon, indices), seen through nothing but a Cast."""
    node = value.producer
    if node is None or value.time != Time.WEIGHT:
        return None
    if node.op == "Cast":
        source = _small_constant(node.input(0), weights)
        return None if source is None else np.asarray(call("Cast", [source], oracle.attributes(node, {}))[0])
    if node.op != "Constant":
        return None
    array = weights[node.attrs["name"]]
    return np.asarray(array) if array.size <= _SMALL or array.dtype.kind in "iu" else None


def _finite(array: Array) -> bool:
    if array.dtype == object or array.dtype.kind in "biu":
        return True
    return bool(np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32)).all())


def _mantissa_bits(name: str) -> int:
    return {"f16": 11, "bf16": 8, "f8e4m3": 4, "f8e5m2": 3, "f8e4m3fnuz": 4, "f8e5m2fnuz": 3, "f4e2m1": 2, "f64": 40}.get(name, 24)


def summary(results: Iterable[GroupResult]) -> dict[str, Any]:
    """The results as certificate data: counts, the worst ones, and what was left out with reasons."""
    listed = list(results)
    checked = sorted((r for r in listed if r.error is not None), key=lambda r: -(r.error or 0.0))
    return {
        "distinct": len(listed),
        "checked": len(checked),
        "worst": [
            {"group": r.name, "tactic": r.tactic, "error": float(f"{r.error:.2g}"), "tolerance": r.tolerance} for r in checked[:5]
        ],
        "not_checked": [{"group": r.name, "tactic": r.tactic, "reason": r.reason} for r in listed if r.error is None],
    }
