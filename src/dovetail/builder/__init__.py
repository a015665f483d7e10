"""The pipeline, top to bottom: a model becomes a plan and its machine code."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dovetail.kernels.cpu
import dovetail.kernels.cuda  # noqa: F401 - both register their tactics
from dovetail.builder import branches
from dovetail.builder.emit import Emission, emit_plan
from dovetail.builder.extents import require_extents
from dovetail.builder.flops import contractions, require_precision
from dovetail.builder.machine_code import compile_plan, source_text
from dovetail.builder.options import BuildOptions, Progress
from dovetail.builder.plugins import required
from dovetail.builder.ranges import (
    RangeDecision,
    Ranges,
    decide,
    measure,
    remembered,
    require_known,
    rounded_values,
)
from dovetail.builder.report import report_data
from dovetail.builder.rewriting import Rewritten
from dovetail.builder.select import Choice, Chooser, by_rule, choose_weights, optima, select
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.lower import reason_not_lowerable
from dovetail.codegen.target import Target
from dovetail.core.env import env
from dovetail.core.log import logger
from dovetail.core.version import __version__
from dovetail.engine.codec import encode
from dovetail.engine.plan import WEIGHTS_KEY, NativeSegment, Plan
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import ModelSource
from dovetail.ir.graph import Module, Node
from dovetail.ir.limit import unlimited
from dovetail.ir.printer import print_module
from dovetail.ir.types import TensorType
from dovetail.ir.verifier import (
    verify as verify_module,  # the submodule builder.verify has that name
)
from dovetail.passes.fuse import FusionLog, fuse
from dovetail.passes.horizontal import merge_siblings
from dovetail.passes.io_formats import apply_formats
from dovetail.passes.layout import Placement, assign_layouts
from dovetail.passes.legalise import legalise
from dovetail.passes.precision import Kept, PrecisionLog, lower_precision, split_casts
from dovetail.passes.recognise import recognise
from dovetail.passes.simplify import simplify
from dovetail.passes.weight_time import group_weights
from dovetail.plugins import PLUGINS_KEY
from dovetail.tuner.cuda_plans import PlanTimer

PASSES = ("import", "simplify", "recognise", "precision", "legalise", "horizontal", "fuse", "layout", "select", "weights")
_log = logger("builder")


@dataclass
class Built:
    """Everything a build made.

    Attributes:
        plan: the program of the engine.
        weights: the module's named initializers.
        graph_text: canonical IR (after recognise), as stored in the engine.
        source: text of all kernels.
        binary: compiled kernels.
        host_binary: the host library of a CPU target.
        module, choices, placement, fusion_log: the compiler's own view, for verification and reports.
        weight_choices: what computes the groups of the weights program.
        weight_host: (node, reason) of its host steps.
        precision: what was lowered to a narrower type, and what was not.
        ranges: what was kept in fp32 because of its size.
        rounded: names of the values of `graph_text` that kernels round to the narrow type.
        expected: outputs for the caller's samples, where ranges were measured on them.
        branches: how the plan's steps got their lanes, and why.
        formats: of inputs and outputs, as asked for.
    """

    plan: Plan
    module: Module
    graph_text: str
    source: str
    kernels: dict[str, Kernel]
    binary: Path
    host_binary: Path | None
    target: Target
    choices: dict[Node, Choice]
    placement: Placement
    fusion_log: FusionLog
    weight_choices: dict[Node, Choice]
    weight_host: list[tuple[str, str]]
    precision: PrecisionLog
    ranges: RangeDecision
    rounded: frozenset[str]
    expected: tuple[Mapping[str, Any], ...]
    branches: branches.Decision
    formats: Mapping[str, str]
    seconds: dict[str, float] = field(default_factory=dict)


def optimise(module: Module, *, after: Callable[[str], None] = lambda name: None) -> None:
    """The target-independent passes, in place: simplify, recognise, simplify."""
    simplify(module)
    after("simplify")
    recognise(module)
    simplify(module)
    after("recognise")


def build(
    source: ModelSource,
    options: BuildOptions,
    *,
    progress: Progress | None = None,
    choose: Chooser = by_rule,
    timer: PlanTimer | None = None,
    after: Callable[[str, Module], None] | None = None,
    hashes: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None,
) -> Built:
    """Compile a model.

    Args:
        hashes: gives the hashes of initializers: with it, ranges measured on seeded inputs are kept in `DOVETAIL_CACHE`.
        timer: measures whole plans on a GPU.
        after: called with (pass name, module) after each pass of `PASSES`.

    Raises:
        dovetail.Error: the model cannot be read, imported or built as asked.
    """
    options.check()
    stages = _Stages(progress, after)
    module = import_onnx(source, options.shapes)
    if isinstance(source, Rewritten):
        source.guard(module)
    module.meta["strict_fp32"] = options.strict_fp32
    stages.done("import", module)
    optimise(module, after=lambda name: stages.done(name, module))
    ranges = _measured(source, module, options, hashes)
    stages.note("ranges")
    return _compile(module, options, choose, stages, ranges, timer)


def compile_module(
    module: Module,
    options: BuildOptions,
    *,
    progress: Progress | None = None,
    choose: Chooser = by_rule,
    timer: PlanTimer | None = None,
    ranges: RangeDecision | None = None,
    spread: branches.Spread | None = None,
) -> Built:
    """Compile a module that has been through `optimise`, such as the stored graph of an engine.

    Args:
        timer: measures whole plans on a GPU.
        ranges: what an earlier build of the module kept in fp32; no ranges are measured here.
        spread: how an earlier build of the module gave steps their lanes.

    Raises:
        dovetail.Error: it cannot be built as asked.
    """
    return _compile(module, options, choose, _Stages(progress, None), ranges or RangeDecision(), timer, spread)


def _measured(
    source: ModelSource, module: Module, options: BuildOptions, hashes: Callable[[Mapping[str, Any]], Mapping[str, str]] | None
) -> Ranges:
    """The ranges of the values of a module after `optimise`, where they count and something may be run."""
    if options.precision != "fp16":
        return Ranges(False, f"the range of {options.precision} is that of fp32")
    if options.verify == "off":
        return Ranges(False, "verify='off'")

    def single() -> Module:
        found = import_onnx(source, {n: [1, *(d if isinstance(d, int) else str(d) for d in shape[1:])] for n, shape in shapes.items()})
        with unlimited():
            optimise(found)
        return found

    shapes = {v.name: v.tensor.shape for v in module.main.inputs if isinstance(v.type, TensorType) and v.tensor.rank}
    batched = any(isinstance(shape[0], int) and shape[0] > 1 for shape in shapes.values())

    def run() -> Ranges:
        return measure(module, samples=options.samples or (), level=options.verify, single=single if batched else None)

    if hashes is None or options.samples:
        return run()
    parts = [__version__, options.verify, print_module(module), *(f"{n} {h}" for n, h in sorted(hashes(module.weights).items()))]
    return remembered(hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40], run)


def _lower(
    module: Module, options: BuildOptions, target: Target, kept: Kept, done: Callable[[str, Module], None] = lambda name, module: None
) -> tuple[PrecisionLog, FusionLog]:
    """The passes from *precision* to *fuse*, in place."""
    lowered = lower_precision(module, options.precision, replace(kept, nodes=tuple(options.fp32_nodes)))
    apply_formats(module, options.io_formats)
    done("precision", module)
    legalise(module, target)
    simplify(module)
    done("legalise", module)
    merge_siblings(module)
    split_casts(module.main, kept.largest)
    done("horizontal", module)
    fusion_log = fuse(module, target, reason_not_lowerable)
    done("fuse", module)
    return lowered, fusion_log


def _compile(
    module: Module, options: BuildOptions, choose: Chooser, stages: _Stages, ranges: Ranges | RangeDecision,
    timer: PlanTimer | None, spread: branches.Spread | None = None,
) -> Built:  # fmt: skip
    """Everything after *recognise*."""
    target = options.check()
    graph_text = print_module(module)
    require_known(module, options.fp32_nodes)
    expected: tuple[Mapping[str, Any], ...] = ()
    if isinstance(ranges, Ranges):
        expected = ranges.outputs
        with unlimited():
            ranges = decide(graph_text, module, ranges, lambda trial, kept: _lower(trial, options, target, kept))
        stages.note("ranges")
    lowered, fusion_log = _lower(module, options, target, ranges.kept, stages.done)
    rounded = rounded_values(module.main)
    works = contractions(module.main, target)
    reasons = dict(lowered.kept) | {node: f"runs on the host: {reason}" for node, reason in fusion_log.host}
    require_precision(works, options, module.meta.get("symbol_bounds", {}), reasons)
    placement = assign_layouts(module, target)
    require_extents(module.main, target, module.meta.get("symbol_bounds", {}))
    stages.done("layout", module)
    choices = select(module, target, choose)
    stages.done("select", module)
    weight_host = group_weights(module, target, reason_not_lowerable, placement)
    weight_choices = choose_weights(module, target)
    stages.done("weights", module)
    emission = emit_plan(module, choices | weight_choices, placement, target)
    stages.mark("emit")
    emission.plan.meta[WEIGHTS_KEY] = _weights_key(emission, target)  # type: ignore[index]  # a dict until it is saved
    if plugins := required(module):
        emission.plan.meta[PLUGINS_KEY] = plugins  # type: ignore[index]  # likewise
    code = compile_plan(emission.plan, emission.kernels, target, stages.compiling)
    stages.mark("compile")
    optimum = optima(module)

    def measured(plans: Sequence[Plan]) -> Sequence[float] | None:
        return None if timer is None else timer(plans, code.binary, module.weights, branches.sizes_of(plans[0], optimum))

    plan, decision = branches.decide(
        code.plan, emission.kernels, target, options.branches, recorded=spread, optima=optimum, measure=measured
    )
    stages.note("branches")
    built = Built(
        plan, module, graph_text, code.source, emission.kernels, code.binary, code.host_binary, target, choices, placement,
        fusion_log, weight_choices, weight_host, lowered, ranges, rounded, expected, decision, dict(options.io_formats or {}),
        stages.seconds,
    )  # fmt: skip
    built.plan.meta.update(report_data(built, options, works))  # type: ignore[attr-defined]  # a dict until it is saved
    return built


def _weights_key(emission: Emission, target: Target) -> str:
    """A hash of all that packed weights depend on, but for the weights: whoever builds the same has the same cache."""
    program = emission.plan.weights_program
    steps = [step for segment in program.segments if isinstance(segment, NativeSegment) for step in segment.steps]
    kernels = [emission.kernels[entry] for entry in sorted({step.kernel for step in steps})]
    parts = [__version__, str(target), source_text(kernels, target), encode(program)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _dump(name: str, module: Module) -> None:
    folder = Path(env().dump)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{PASSES.index(name):02}-{name}.ir").write_text(print_module(module), encoding="utf-8")


class _Stages:
    """Seconds per stage, progress, and what is done after each pass."""

    def __init__(self, progress: Progress | None, after: Callable[[str, Module], None] | None) -> None:
        self.progress, self.after, self.seconds = progress, after, dict[str, float]()
        self.last, self.count = time.perf_counter(), 0

    def done(self, name: str, module: Module) -> None:
        """A pass has ended."""
        self.mark(name)
        if env().verify_ir:
            verify_module(module)
        if env().dump:
            _dump(name, module)
        if self.after is not None:
            self.after(name, module)
        self.last = time.perf_counter()  # what `after` does is no part of the next stage

    def compiling(self, done: int, total: int) -> None:
        """So many kernels have been compiled."""
        if self.progress is not None and total:
            self.progress("compile", done, total)

    def note(self, name: str) -> None:
        """Something between two stages has ended."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now
        _log.debug("%s: %.3f s", name, self.seconds[name])

    def mark(self, name: str) -> None:
        """A stage has ended."""
        self.note(name)
        self.count += 1
        if self.progress is not None:
            self.progress("build", self.count, len(PASSES) + 2)


__all__ = ["PASSES", "BuildOptions", "Built", "build", "compile_module", "optimise"]
