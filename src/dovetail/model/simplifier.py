"""ONNX to smaller ONNX: constants folded, shape arithmetic resolved, chains merged, what does nothing removed.

Works on the proto, so that opset, IR version, metadata and the names of what remains are the user's own. Weights in files stay there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from dovetail.core.errors import UsageError
from dovetail.core.log import logger
from dovetail.model.model import Model
from dovetail.model.rules.apply import apply_rules
from dovetail.model.rules.definition import RuleSource
from dovetail.model.rules.log import RuleLog
from dovetail.model.simplify import (
    chains,
    control,
    duplicates,
    folding,
    fusions,
    identities,
    linear,
    shapes,
)
from dovetail.model.simplify.facts import facts_of, infer
from dovetail.model.simplify.scope import Readings, Scope
from dovetail.model.weights import load_small

_log = logger("simplify")

_MOST_ROUNDS, _MOST_PASSES = 30, 5

REWRITES: dict[str, Callable[[Scope], list[str]]] = {
    "constants_to_initializers": folding.constants_to_initializers,
    "inline_ifs": control.inline_ifs,
    "remove_identities": identities.remove_identities,
    "fold_shapes": shapes.fold_shapes,
    "fold_constants": folding.fold_constants,
    "share_shapes": shapes.share_shapes,
    "constant_targets": shapes.constant_targets,
    "slice_ends": shapes.slice_ends,
    "needless_expands": shapes.needless_expands,
    "merge_duplicates": duplicates.merge_duplicates,
    "merge_weights": duplicates.merge_weights,
    **chains.MERGES,
    "fold_pads": linear.fold_pads,
    "make_gemms": linear.make_gemms,
    "fold_batch_norms": linear.fold_batch_norms,
    "fold_scales": linear.fold_scales,
    "drop_zero_states": identities.drop_zero_states,
    "drop_unused_outputs": identities.drop_unused_outputs,
}
"""Rewrites by name, in the order in which each round applies them."""

FUSIONS: dict[str, Callable[[Scope], list[str]]] = {
    "fuse_gelu": fusions.fuse_gelu,
    "fuse_layer_norms": fusions.fuse_layer_norms,
}
"""Rewrites that apply only when they are asked for: what they make is not known everywhere."""

INLINE_FUNCTIONS = "inline_functions"
"""What happens before the first round: calls of the model's own functions become their bodies."""

RULES = "rules"
"""What happens before and after all rounds: rewrite rules (`dovetail.rewrite`), registered ones and those of this package."""


@dataclass(frozen=True)
class Applied:
    """One change.

    Attributes:
        rewrite: its name in `REWRITES`, `FUSIONS`, `INLINE_FUNCTIONS` or `RULES`.
        place: the node (or weight) that changed, and its operator.
    """

    rewrite: str
    place: str


@dataclass(frozen=True)
class Simplification:
    """What `simplify` made.

    Attributes:
        model: the smaller model.
        applied: every change, in order.
        rules: what rewrite rules did, and nearly did.
    """

    model: Model
    applied: list[Applied] = field(default_factory=list)
    rules: RuleLog = field(default_factory=RuleLog)

    @property
    def counts(self) -> dict[str, int]:
        """How often each rewrite applied; those that never did are left out."""
        return dict(Counter(a.rewrite for a in self.applied))


def simplify(
    model: Model,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    rules: Iterable[RuleSource] | RuleSource | None = None,
    fuse: bool = False,
    infer_shapes: bool = True,
) -> Simplification:
    """A smaller model with the same inputs, outputs and meaning; `model` itself is not changed.

    Args:
        model: weights in files stay there; those that are folded are read, up to 64 MiB of them.
        shapes: sizes of inputs to fix, by name: an int fixes a dimension, other text names it.
        skip: names of `REWRITES` (or `INLINE_FUNCTIONS`, `RULES`) to leave out.
        only: the only ones to apply; default: all.
        rules: rewrite rules: files, names, rules or "none"; default: all registered ones and those of this package.
        fuse: also apply `FUSIONS`, where the opset has what they make.
        infer_shapes: add the inferred types of intermediate values.

    Raises:
        ModelError: the model is invalid.
        UsageError: an unknown rewrite, rule or input, or shapes that do not fit.
        RuleError: a rule fails.
    """
    wanted = _wanted(skip, only, fuse)
    result = model.copy()
    load_small(result.proto, result.folder)
    fix_shapes(result.proto, shapes or {})
    applied = []
    if INLINE_FUNCTIONS in wanted:
        applied += [Applied(INLINE_FUNCTIONS, text) for text in control.inline_functions(result.proto)]
    readings, log = Readings(), RuleLog()
    for number in range(_MOST_PASSES):
        if RULES in wanted:
            found_by_rules = apply_rules(result, rules)
            log = _joined(log, found_by_rules)
            if number and not found_by_rules:
                break
        elif number:
            break
        for _ in range(_MOST_ROUNDS):
            found = _round(result, wanted, readings)
            _log.debug("round: %s", Counter(a.rewrite for a in found))
            applied += found
            if not found:
                break
    if infer_shapes:
        _add_types(result.proto)
    return Simplification(result, [*applied, *(Applied(RULES, str(match)) for match in log.matches)], log)


def _joined(before: RuleLog, after: RuleLog) -> RuleLog:
    """The log of one application after another."""
    matches = [*before.matches, *after.matches]
    counts = {n: (before.counts.get(n, (0, 0))[0] + found, missed) for n, (found, missed) in after.counts.items()}
    return RuleLog(matches, after.near_misses, after.skipped, counts)


def _round(model: Model, wanted: frozenset[str], readings: Readings) -> list[Applied]:
    """Apply every rewrite once to every graph, the innermost first."""
    root = Scope(model.proto, model.folder, facts_of(model.proto, model.folder), readings)
    applied = []
    for scope in root.scopes():
        scope.clean()
        for name, rewrite in (REWRITES | FUSIONS).items():
            places = rewrite(scope) if name in wanted else []
            if places:
                scope.clean()
            applied += [Applied(name, place) for place in places]
    return applied


def _wanted(skip: Iterable[str], only: Iterable[str] | None, fuse: bool) -> frozenset[str]:
    known = (INLINE_FUNCTIONS, RULES, *REWRITES)
    names = frozenset((*known, *(FUSIONS if fuse else ())) if only is None else only)
    unknown = sorted((names | frozenset(skip)) - {*known, *FUSIONS})
    if unknown:
        raise UsageError(f"simplify: got {unknown}, expected names of rewrites: {[*known, *FUSIONS]}")
    return names - frozenset(skip)


def fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Write the given shapes into the model's inputs, and forget the types inferred for the old ones.

    Raises:
        UsageError: an unknown input, another rank, or a range.
    """
    inputs = {v.name: v for v in model.graph.input}
    for name, dims in shapes.items():
        if name not in inputs:
            raise UsageError(f"--shapes: got {name!r}, expected names of inputs: {sorted(inputs)}")
        if inputs[name].type.WhichOneof("value") != "tensor_type":
            raise UsageError(f"--shapes: got dimensions for {name!r}, expected the name of a tensor")
        tensor = inputs[name].type.tensor_type
        if tensor.HasField("shape") and len(tensor.shape.dim) != len(dims):
            raise UsageError(f"--shapes: got {len(dims)} dimensions for {name!r}, expected {len(tensor.shape.dim)}")
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        for dim in dims:
            if isinstance(dim, str) and ".." in dim:
                raise UsageError(f"--shapes: got the range {dim!r} for {name!r}, expected a size or a name here")
            added = tensor.shape.dim.add()
            if isinstance(dim, int):
                added.dim_value = dim
            else:
                added.dim_param = dim
    if shapes:
        # Types inferred for the old shapes would contradict the new ones.
        del model.graph.value_info[:]
        for value in model.graph.output:
            if value.type.WhichOneof("value") == "tensor_type":
                value.type.tensor_type.ClearField("shape")


def _add_types(model: onnx.ModelProto) -> None:
    """Add the inferred types of values, and of outputs where the model says nothing of their shape."""
    typed = infer(model)
    if typed is None:
        return
    large = {t.name for t in model.graph.initializer}
    del model.graph.value_info[:]
    model.graph.value_info.extend(v for v in typed.graph.value_info if v.name not in large)
    found = {v.name: v for v in typed.graph.output}
    for value in model.graph.output:
        if value.type.WhichOneof("value") == "tensor_type" and not value.type.tensor_type.HasField("shape"):
            value.CopyFrom(found[value.name])
