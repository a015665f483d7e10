"""`dovetail.build`: a model becomes an engine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx

from dovetail import builder, runtime
from dovetail import plugins as register
from dovetail.api.checking import driver_of
from dovetail.api.engine import Artifacts, Engine, Progress
from dovetail.api.refitting import DROPPED
from dovetail.api.workspace import within
from dovetail.builder.options import BuildOptions, isa_of
from dovetail.builder.rewriting import Rules, rewritten
from dovetail.builder.select import Chooser, by_rule
from dovetail.builder.verify import WeightHashes, content_hash, verify_built
from dovetail.builder.verify_engine import REPORT
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.errors import DeviceError, UsageError, VerificationError
from dovetail.core.log import logger
from dovetail.device.cpu import default_threads
from dovetail.device.cuda import driver, shared_library
from dovetail.engine.file import NODE_CONSTANTS
from dovetail.engine.plan import weights_key
from dovetail.export.torch_subject import is_torch_model
from dovetail.frontend.reader import Definition, ModelSource
from dovetail.ir.graph import Module
from dovetail.model.rules import select
from dovetail.model.rules.definition import RuleSource
from dovetail.plugins import Source
from dovetail.runtime.weights import Stored
from dovetail.tuner.choose import Tuner
from dovetail.tuner.cuda_choose import CudaTuner, Timer
from dovetail.tuner.cuda_isolated import IsolatedTimer
from dovetail.tuner.cuda_plans import PlanTimer
from dovetail.tuner.cuda_time import GraphTimer
from dovetail.tuner.timing_cache import TimingCache

_log = logger("build")


def build(
    model: ModelSource | Any,
    *,
    example_inputs: Any = None,
    device: str = "cpu",
    target: str | None = None,
    precision: str = "fp32",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    threads: int | None = None,
    verify: str = "sample",
    strict_fp32: bool = False,
    tune: bool = True,
    time_budget: float | None = None,
    optimization_level: int = 3,
    allow_fallback: bool = False,
    io_formats: Mapping[str, str] | None = None,
    branches: int | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
    fp32_nodes: Sequence[str] = (),
    tolerance: float | None = None,
    workspace: int | None = None,
    plugins: Iterable[Source] = (),
    rules: Iterable[RuleSource] | RuleSource | None = None,
    without: Collection[str] = (),
    selector: Callable[[Chooser], Chooser] | None = None,
    timing_cache: TimingCache | str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Compile a model.

    Args:
        model: ONNX (path, bytes or ModelProto), a `Network`, or an nn.Module or ExportedProgram of PyTorch, which is exported first
            (`dovetail.export.pytorch`) with the named and bounded sizes of `shapes` as dynamic axes; or a Keras model or `tf.function`,
            which is exported as `dovetail.export.tensorflow` does.
        example_inputs: of an nn.Module: a tuple of arguments, one tensor, or a dict of arguments by name.
        device: "cpu", "cuda" or "cuda:N".
        target: instruction set or GPU, such as "cpu:avx2" or "cuda:sm_90"; default: this machine's best. A GPU that is not
            here can be built for, too; its engine is not tuned.
        precision: "fp32", or on a GPU "tf32", "fp16" or "bf16": what is safe in it, with fp32 accumulation.
        shapes: input shapes by name; a dim is a size, a symbol's name, or a range "1..32".
        threads: default team size of the engine; default: all CPUs of the process.
        verify: how much to check against the reference: "sample" (about ten seconds), "full", "off".
        strict_fp32: forbid Winograd and other transforms that are not direct sums.
        tune: measure candidate kernels; False takes the first by rule.
        time_budget: seconds that compiling and measuring candidates may take; default: 6 for a CPU, 60 for a GPU.
        optimization_level: 0 to 5: how many candidates compete on a GPU.
        allow_fallback: build although less than half of the arithmetic could be placed in `precision`.
        io_formats: element type and order in memory of inputs and outputs by name: "f16", "channels_last" or
            "f16:channels_last". Shapes stay as they are in the model.
        branches: how many chains of kernels that do not depend on each other may run beside each other on a GPU, 1 (one kernel
            after the other) to 8; default: as many as are measured to be fastest, or without a GPU what a cautious rule says.
        samples: inputs by name, like those that the engine will get: verification runs them instead of seeded ones, and an fp16
            build finds with them what is too large for that type and stays in fp32.
        fp32_nodes: names of nodes (or patterns, "head/*") that an fp16 or bf16 build keeps in fp32.
        tolerance: relative L2 distance to the model in fp32 that verification lets outputs have; default: the precision's.
        workspace: bytes that a fusion may take beside its operands, at the sizes that the engine is tuned for (the optimum of a
            range), where there is a way that takes no more; default: any.
        plugins: Python files, modules or their names that register plugins (`dovetail.plugin`).
        rules: rewrite rules (`dovetail.rewrite`) for an ONNX model: Python files that define some and rules come on top of those
            that are registered and those of this package; a name leaves out all that is not named, "none" all. What they did is in
            the report, and the engine is verified against the model as it was before, where that can be run.
        without: names of tactics that may not be used where there are others, such as "cublaslt" and "cudnn".
        selector: puts a function of the caller's around what decides between tactics (`builder.select.Chooser`): it sees all groups
            with the tactics that are able, may leave some out, and sees what was decided.
        timing_cache: where times of candidates are read and kept; default: `DOVETAIL_CACHE/timings.jsonl`.
        progress: called as progress(stage, done, total); what it raises ends the build.

    Raises:
        ModelError: the model cannot be read, or (UnsupportedOpError) all that is not supported in it.
        BuildError: it cannot be built as asked, or verification failed.
        UsageError: an unknown option value.
        DeviceError: device "cuda" without a GPU, and no target.
        PluginError: a file or module of plugins cannot be loaded.
        RuleError: a rule cannot be loaded, never ends, or does not fit where it matched.
    """
    start = time.perf_counter()
    register.load(plugins)
    if is_torch_model(model):
        from dovetail.api.torch_models import exported

        model = exported(model, example_inputs, shapes)
    elif example_inputs is not None:
        raise UsageError(f"example_inputs: got them for a {type(model).__name__}, expected an nn.Module of PyTorch")
    chosen = select(rules)
    if rules is not None and chosen and isinstance(model, Definition):
        raise UsageError(f"rules: got some for a {type(model).__name__}, expected an ONNX model: rules rewrite ONNX graphs; leave them out")
    rewriting = rewritten(model, chosen, shapes)
    options = BuildOptions(
        device, target, precision, shapes, strict_fp32, verify, tune, time_budget, optimization_level, allow_fallback, io_formats,
        branches, samples, tuple(fp32_nodes), tolerance, workspace,
    )  # fmt: skip
    cache = TimingCache(timing_cache) if isinstance(timing_cache, str | os.PathLike) else timing_cache
    choose = chooser(options, default_threads() if threads is None else threads, progress, cache)
    limited = within(excluding(choose, without), options.workspace)
    selected = limited if selector is None else selector(limited)
    with WeightHashes() as hashing:
        built = builder.build(
            rewriting.source, options, progress=progress, choose=selected, timer=plan_timer(choose, progress), after=hashing.after,
            hashes=hashing.of,
        )
        hashes = hashing.of(built.module.weights)
    del choose, limited, selected  # with the memory on the device that it measured in
    built.module.meta[DROPPED] = sorted({*built.module.meta.get(DROPPED, ()), *rewriting.dropped})
    try:
        return finish(
            built, options, rewriting.module, hashes, threads=threads, start=start, source=_source(model), progress=progress,
            rules=rewriting,
        )  # fmt: skip
    except VerificationError as error:
        found = rewriting.suspects()
        # What a rule of the user did is no bug of a kernel, and is not to be reported as one.
        said = str(error).removesuffix(f"; {REPORT}") if "changed what the model computes" in found else str(error)
        raise (VerificationError(f"{said}; {found}") if found else error) from error.__cause__


def finish(
    built: builder.Built,
    options: BuildOptions,
    module: Callable[[], Module],
    hashes: Mapping[str, str],
    *,
    threads: int | None,
    start: float,
    source: str,
    progress: Progress | None,
    rules: Rules | None = None,
) -> Engine:
    """Open what was built, check it, and say how it was made.

    Args:
        module: the model for the oracle.
        hashes: of the initializers.
        start: when the build began, on the clock of `time.perf_counter`.
        source: path of the model; "" if there is none.
        rules: what rewrite rules did before.

    Raises:
        VerificationError: it computes something else than the model.
        DeviceError: its device is not here, and was not named as a target to build for.
    """
    content = content_hash(built.graph_text, hashes)
    opened = _opened(options, built, Stored(weights_key(built.plan), hashes, checked=True), threads)
    certificate = verify_built(
        built, opened.run, module, content=content + (rules.identity if rules else ""), level=options.verify, threads=opened.threads,
        driver=driver_of(opened),
        progress=progress, samples=options.samples or (), limit=options.tolerance,
    )  # fmt: skip
    opened.plan = replace(opened.plan, certificate=certificate)
    if rules is not None and (done := rules.data()) is not None:
        report: Any = opened.plan.meta["report"]
        report["rules"] = done
    info = {"model_sha256": content, **_requested(options, built), **_other_weights(built)}
    seconds = {name: round(value, 4) for name, value in built.seconds.items()}
    record = {
        "seconds": seconds | {"total": round(time.perf_counter() - start, 4)},
        "machine": platform.machine(), "system": platform.system(), "source": source, "versions": _versions(built.target),
    }  # fmt: skip
    return Engine(opened, Artifacts(built.graph_text, built.source, built.binary, built.host_binary, info, record))


def _opened(options: BuildOptions, built: builder.Built, stored: Stored, threads: int | None) -> runtime.RuntimeEngine:
    """The engine on its device; one that cannot run where a GPU was named that is not here."""
    weights = built.module.weights
    try:
        return runtime.make(
            built.plan, [built.binary], built.host_binary, weights, threads, stored, device=options.ordinal
        )  # fmt: skip
    except DeviceError as error:
        if options.target is None or built.target.device != "cuda":
            raise
        return runtime.AbsentEngine(built.plan, weights, str(error))


def excluding(choose: Chooser, without: Collection[str]) -> Chooser:
    """The same, with tactics of some names left out where there are others."""
    if not without:
        return choose
    return lambda groups, target, sizes: choose(
        [(group, [t for t in able if t.name not in without] or able) for group, able in groups], target, sizes
    )


def chooser(options: BuildOptions, threads: int, progress: Progress | None, cache: TimingCache | None = None) -> Chooser:
    """What decides between tactics: measured times where the device is here and tuning is wanted, else rules.

    Args:
        cache: known times; None: this user's.

    Raises:
        UsageError, DeviceError: the options name no target.
    """
    target = options.check()
    report = progress or (lambda stage, done, total: None)
    if not isinstance(target, CudaTarget):
        return Tuner(threads, options.budget(target), cache, progress=report) if options.tune else by_rule
    timer = _timer(options, target) if options.tune and options.optimization_level > 0 else None
    return CudaTuner(timer, options.budget(target), options.optimization_level, progress=report, cache=cache)


def plan_timer(choose: Chooser, progress: Progress | None) -> PlanTimer | None:
    """What times whole plans, where candidates are measured on a GPU and there is time for that."""
    if not isinstance(choose, CudaTuner) or not isinstance(choose.timer, GraphTimer | IsolatedTimer) or choose.budget_s <= 0:
        return None
    report = progress or (lambda stage, done, total: None)
    timer = choose.timer
    return PlanTimer(timer.driver, timer.environment, choose.cache, report, wanted=lambda: not choose.interrupted)


def _timer(options: BuildOptions, target: CudaTarget) -> Timer | None:
    """What times kernels on the GPU of the options; None where that one is not here, or is another part."""
    try:
        device = driver(options.ordinal)
    except DeviceError as error:
        _log.info("%s is built without a GPU and not tuned: %s", target, error)
        return None
    if isa_of(options.ordinal, device.properties.name, device.properties.capability) != target.isa:
        _log.info("%s is built on a machine with %s and not tuned", target, device.properties.name)
        return None
    # Untried kernels may hang, or end the context that the engine is to run in.
    made = IsolatedTimer if device.hazardous else GraphTimer
    return made(device, shared_library.versions())


def _requested(options: BuildOptions, built: builder.Built) -> dict[str, Any]:
    report: Any = built.plan.meta["report"]
    return {
        "requested": {"device": options.device, "target": options.target, "precision": options.precision,
                      "strict_fp32": options.strict_fp32, "verify": options.verify,
                      "optimization_level": options.optimization_level, "allow_fallback": options.allow_fallback,
                      "fp32_nodes": list(options.fp32_nodes), "io_formats": dict(options.io_formats or {}), "branches": options.branches,
                      "workspace": options.workspace},
        "actual": report["actual"],
    }  # fmt: skip


def _other_weights(built: builder.Built) -> dict[str, Any]:
    """The weights of the model that a refit does not know or need not have."""
    kept = {spec.name for spec in built.plan.weights}
    meta = built.module.meta
    dropped = {n for n in built.module.weights if n not in kept and not n.startswith("~")}.union(meta.get(DROPPED, ()))
    return {DROPPED: sorted(dropped), NODE_CONSTANTS: sorted(kept.intersection(meta.get(NODE_CONSTANTS, ())))}


def _source(model: ModelSource) -> str:
    return os.path.abspath(model) if isinstance(model, str | os.PathLike) else ""


def _versions(target: Target) -> dict[str, str]:
    import numpy

    from dovetail.codegen.compiler import compiler_version
    from dovetail.codegen.triton_compiler import triton_version
    from dovetail.core.version import __version__

    compiler = f"triton {triton_version()}" if isinstance(target, CudaTarget) else compiler_version()
    return {"dovetail": __version__, "onnx": onnx.__version__, "numpy": numpy.__version__, "compiler": compiler}
