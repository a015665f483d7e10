"""What is asked of every random model: that each road through the compiler gives what the references give node by node."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import dovetail
from dovetail import builder, runtime
from dovetail.builder.machine_code import MachineCode
from dovetail.builder.options import BuildOptions
from dovetail.codegen import compiler
from dovetail.codegen.kernel import Kernel
from dovetail.core.env import env
from dovetail.core.errors import ModelError, RefitError
from dovetail.engine import cubins
from dovetail.engine.check import check as check_plan
from dovetail.engine.plan import CudaLaunch, NativeSegment, Plan
from dovetail.frontend.importer import import_onnx
from dovetail.ir.graph import Module
from dovetail.ops.evaluate import evaluate
from tests.fuzz.case import Array, Case

CPU_TARGETS = ("cpu:avx2", "cpu:generic", None)
_MOST_STEPS = 60  # that Triton's interpreter is given


@dataclass
class Mismatch(Exception):
    """An output is not what it should be."""

    where: str
    output: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.output}: {self.why}"


@contextmanager
def quick_compiler() -> Iterator[None]:
    """C is compiled without optimisation: a third of the time, and the text is what is tested."""
    with mock.patch.object(compiler, "_COMMON", tuple("-O0" if f == "-O2" else f for f in compiler._COMMON)):
        yield


def compare(case: Case, results: Mapping[str, Any], sample: int, where: str, wants: Mapping[str, Array] | None = None) -> None:
    """Check outputs against the values of the case.

    Raises:
        Mismatch: the first one that is of another type, or further off than rounding explains.
    """
    for name in case.outputs:
        value = case.values[name]
        want, got = value.arrays[sample] if wants is None else wants[name], np.asarray(results[name])
        if got.dtype != want.dtype or got.shape != want.shape:
            raise Mismatch(where, name, f"got {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}")
        if want.dtype.kind == "f":
            off = np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0)
            if not off <= value.tolerance(sample):
                raise Mismatch(where, name, f"off by {off:.3g}, expected at most {value.tolerance(sample):.3g} (sample {sample})")
        elif not np.array_equal(got, want):
            raise Mismatch(where, name, f"{np.count_nonzero(got != want)} of {want.size} elements differ (sample {sample})")


# ---------------------------------------------------------------------- without code
def passes(case: Case, target: str = "cpu:avx2") -> None:
    """The graph after import and after each pass, node by node through the references."""
    model = case.model()

    def after(name: str, module: Module) -> None:
        if name in ("import", "simplify", "recognise", "legalise", "horizontal", "fuse"):
            for sample in range(case.samples):
                with np.errstate(all="ignore"):
                    compare(case, evaluate(module, case.feeds(sample)), sample, f"after {name}")

    with mock.patch.object(builder, "compile_plan", _no_code):
        builder.build(model, BuildOptions(target=target, verify="off"), after=after)


def simplified(case: Case) -> None:
    """The model after `dovetail simplify`: valid, with the same border, and node by node through the references."""
    original = dovetail.Model(case.model())
    result = original.simplify()
    try:
        original.check()
    except ModelError:  # ONNX's checker knows less than the generator
        pass
    else:
        if all(a.size for v in case.values.values() for a in v.arrays):  # to the checker a size of 0 beside -1 is an error once it is known
            result.check()
    for before, after in ((original.inputs, result.inputs), (original.outputs, result.outputs)):
        if before != after:
            raise Mismatch("simplified", "border", f"got {[*map(str, after)]}, expected {[*map(str, before)]}")
    module = import_onnx(result)
    for sample in range(case.samples):
        with np.errstate(all="ignore"):
            compare(case, evaluate(module, case.feeds(sample)), sample, "simplified")


def planned(case: Case, target: str = "cuda:sm_90", precision: str = "fp16") -> Plan:
    """The plan of a target, checked; kernels are printed and not compiled."""
    with mock.patch.object(builder, "compile_plan", _no_code):
        options = BuildOptions(target=target, precision=precision, verify="off", allow_fallback=True)
        plan = builder.build(case.model(), options).plan
    check_plan(plan)
    return plan


def peer(case: Case) -> None:
    """ONNX Runtime, where it takes the model: says whether the references are right. It gets shapes without elements wrong."""
    import onnxruntime as ort

    if any(not a.size for v in case.values.values() for a in v.arrays):
        return

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(case.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = [session.run(list(case.outputs), case.feeds(i)) for i in range(case.samples)]
    except Exception:  # it has its own limits
        return
    for i, arrays in enumerate(found):
        compare(case, dict(zip(case.outputs, arrays, strict=True)), i, "onnxruntime")


# ---------------------------------------------------------------------- engines
def cpu(case: Case, target: str | None = None) -> None:
    """An engine on this CPU: each sample twice, refitted, and out of its file."""
    with quick_compiler():
        engine = _built(case, target)
        first = [engine.run(case.feeds(i)) for i in range(case.samples)]
        for i, found in enumerate(first):
            compare(case, found, i, "engine")
        context = engine.context()
        for i in reversed(range(case.samples)):
            _same(first[i], context.run(case.feeds(i)), "engine in a context")
        with tempfile.TemporaryDirectory() as folder:
            engine.save(Path(folder) / "m.plan")
            loaded = dovetail.load(Path(folder) / "m.plan")
            for i in range(case.samples):
                _same(first[i], loaded.run(case.feeds(i)), "engine from its file")
        _refitted(case, engine, target)


def _built(case: Case, target: str | None) -> dovetail.Engine:
    return dovetail.build(case.model(), tune=False, verify="off", target=target, threads=2)


def _refitted(case: Case, engine: dovetail.Engine, target: str | None) -> None:
    """Other weights in the engine, and in a model that is built anew: the same bits from the same kernels."""
    known = {w.name for w in engine.plan.weights}
    floats = [n for n in case.weights if n in known and case.values[n].dtype.kind == "f" and case.values[n].arrays[0].size]
    changed = {n: _other(case.values[n].arrays[0]) for n in floats}
    if not changed:
        return
    try:
        engine.refit(changed)
    except RefitError:  # a value that the build relied on
        return
    values = dict(case.values)
    for name, array in changed.items():
        values[name] = replace(values[name], arrays=(array,) * case.samples)
    fresh = _built(replace(case, values=values), target)
    alike = _tactics(fresh.plan) == _tactics(engine.plan)
    for i in range(case.samples):
        with np.errstate(all="ignore"):
            a, b = engine.run(case.feeds(i)), fresh.run(case.feeds(i))
        if alike:
            _same(b, a, "refitted engine")


def _other(array: Array) -> Array:
    """Weights of the same signs and about the same size, each in another proportion."""
    return np.asarray(array * np.linspace(0.75, 1.25, array.size).reshape(array.shape)).astype(array.dtype)


def _tactics(plan: Plan) -> list[str]:
    return [step.tactic + step.kernel for s in plan.main.segments if isinstance(s, NativeSegment) for step in s.steps]


def _same(want: Mapping[str, Any], got: Mapping[str, Any], where: str) -> None:
    for name, array in want.items():
        equal = array.dtype == got[name].dtype and np.array_equal(array, got[name], equal_nan=array.dtype.kind == "f")
        if not equal:
            raise Mismatch(where, name, "other bits than in the first run")


def interpreted(case: Case, target: str = "cuda:sm_80") -> None:
    """An engine for a GPU whose kernels Triton's interpreter runs; nothing where that would take long."""
    from dovetail.codegen.triton_host import host_driver

    with mock.patch.object(builder, "compile_plan", _no_code):
        built = builder.build(case.model(), BuildOptions(target=target, verify="off"))
    steps = sum(len(s.steps) for s in built.plan.main.segments if isinstance(s, NativeSegment))
    if steps > _MOST_STEPS:
        return
    driver = host_driver(built.kernels, capability=80)
    engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver)
    context = engine.context()
    for i in range(case.samples):
        compare(case, context.run(case.feeds(i)), i, "interpreted engine")


def _no_code(plan: Plan, kernels: Mapping[str, Kernel], *_: object) -> MachineCode:
    """In place of a compiler: kernels by name, for a driver that interprets them."""
    refs = tuple(replace(k, launch=CudaLaunch(128, 0)) if k.entry in kernels and not k.library else k for k in plan.kernels)
    refs = refs if plan.target.startswith("cuda") else plan.kernels
    path = env().cache / "fuzz.cubins"
    if plan.target.startswith("cuda"):
        path = path.with_name(f"fuzz-{hash(tuple(sorted(kernels))) & 0xFFFFFFFF:08x}.cubins")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cubins.pack({entry: entry.encode() for entry in kernels}))
    return MachineCode(replace(plan, kernels=refs), "", path, None)


CHECKS: dict[str, Callable[[Case], object]] = {
    "simplify": simplified,
    "passes-cpu": passes,
    "passes-cuda": lambda case: passes(case, "cuda:sm_90"),
    "plan-fp16": planned,
    "plan-fp32": lambda case: planned(case, precision="fp32"),
    "peer": peer,
    "cpu": lambda case: cpu(case, CPU_TARGETS[case.seed % len(CPU_TARGETS)]),
    "cuda": interpreted,
}
"""What a case can be put through, by the name on the command line."""
