"""Shape arithmetic: what is known of sizes, with symbols for those that vary, replaces nodes that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from dovetail.core.dims import Dim
from dovetail.core.dtypes import dtype
from dovetail.model.proto_graph import attribute
from dovetail.model.simplify.folding import NEVER_FOLD
from dovetail.model.simplify.scope import Scope, describe

_I64_MAX = (1 << 63) - 1
_BINARY = {
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor",
    "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Where", "Max", "Min", "Sum", "Mean",
}  # fmt: skip


def fold_shapes(scope: Scope) -> list[str]:
    """Integers whose values are known although shapes are partly symbolic become constants."""
    replacements: dict[str, str] = {}
    texts = []
    for node in scope.graph.node:
        if node.op_type in NEVER_FOLD or len(node.output) != 1 or node.output[0] in scope.output_names:
            continue
        value = scope.facts.contents.get(node.output[0])
        kind = scope.dtype(node.output[0])
        if value is None or kind not in (dtype("i64"), dtype("i32")) or not all(isinstance(d, int) for d in value.reshape(-1)):
            continue
        name = scope.unique(f"{node.output[0]}_value")
        scope.add_constant(name, np.array(value.tolist(), kind.numpy).reshape(value.shape))
        replacements[node.output[0]] = name
        texts.append(describe(node))
    scope.replace_all(replacements)
    return texts


def share_shapes(scope: Scope) -> list[str]:
    """Of nodes that compute the same sizes, in whatever way, the first stays; shapes are those of inputs where they are the same."""
    inputs = {shape: v.name for v in reversed(scope.graph.input) if (shape := scope.shape(v.name)) is not None}
    first: dict[Any, str] = {}
    replacements: dict[str, str] = {}
    texts = []
    for node in scope.graph.node:
        if scope.is_op(node, "Shape") and node.input[0] not in scope.inputs:
            same = inputs.get(scope.shape(node.input[0]) or ())
            if same is not None and scope.shape(same):  # so that nothing is computed only for its shape
                node.input[0] = same
                texts.append(f"{describe(node)} of {same}")
        if len(node.output) != 1 or node.op_type in NEVER_FOLD:
            continue
        name = node.output[0]
        value = scope.facts.contents.get(name)
        if value is None or value.size == 0 or value.size > 64:
            continue
        key = (str(scope.dtype(name)), value.shape, tuple(value.reshape(-1).tolist()))
        known = first.setdefault(key, name)
        if known != name and name not in scope.output_names and scope.uses[name]:
            replacements[name] = known
            texts.append(f"{describe(node)} is {known}")
    scope.replace_all(replacements)
    return texts


def constant_targets(scope: Scope) -> list[str]:
    """Computed targets of Reshape and Expand become constants, where 0, -1 and 1 can say what varies."""
    texts = []
    for node in list(scope.graph.node):
        if scope.is_op(node, "Reshape", "Expand") and len(node.input) == 2 and node.input[1] not in scope.constants:
            target = scope.facts.contents.get(node.input[1])
            source = scope.shape(node.input[0])
            if target is None or source is None or target.ndim != 1:
                continue
            make = _reshape_target if node.op_type == "Reshape" else _expand_target
            found = make(scope, node, list(target), source)
            if found is not None:
                node.input[1] = scope.add_ints(f"{node.output[0]}_shape", found)
                texts.append(f"{describe(node)}: {found}")
    return texts


def _reshape_target(scope: Scope, node: onnx.NodeProto, target: list[Dim], source: Sequence[Dim]) -> list[int] | None:
    if attribute(node, "allowzero", 0) or any(d == 0 for d in target):
        return None
    found: list[int] = []
    for axis, dim in enumerate(target):
        if isinstance(dim, int):
            found.append(dim)
        elif axis < len(source) and source[axis] == dim:
            found.append(0)
        else:
            found.append(-1)
    if found.count(-1) > 1:
        return None
    # With a 0, -1 cannot be told for a tensor without elements: only where the model asked for -1 itself.
    return None if -1 in found and 0 in found and not _asks_for_rest(scope, node.input[1]) else found


def _asks_for_rest(scope: Scope, name: str) -> bool:
    """Whether a target is put together with a literal -1 in it."""
    concat = scope.made_by(name, "Concat")
    return concat is not None and any(-1 in (scope.ints(i) or ()) for i in concat.input)


def _expand_target(scope: Scope, node: onnx.NodeProto, target: list[Dim], source: Sequence[Dim]) -> list[int] | None:
    aligned = [1] * (len(target) - len(source)) + list(source)
    found: list[int] = []
    for dim, own in zip(target, aligned[-len(target):] if target else [], strict=True):
        if isinstance(dim, int):
            found.append(dim)
        elif dim == own:
            found.append(1)
        else:
            return None
    return found


def slice_ends(scope: Scope) -> list[str]:
    """Computed ends of slices that reach to the end of their axes become constants."""
    texts = []
    for node in scope.graph.node:
        if not scope.is_op(node, "Slice") or len(node.input) < 3 or node.input[2] in scope.constants:
            continue
        ends, source = scope.facts.contents.get(node.input[2]), scope.shape(node.input[0])
        starts = scope.ints(node.input[1])
        if ends is None or source is None or starts is None or ends.ndim != 1:
            continue
        axes = scope.ints(node.input[3]) if len(node.input) > 3 and node.input[3] else list(range(len(ends)))
        steps = scope.ints(node.input[4]) if len(node.input) > 4 and node.input[4] else [1] * len(ends)
        if axes is None or steps is None or any(s <= 0 for s in steps) or any(s < 0 for s in starts):
            continue
        found = [e if isinstance(e, int) else _I64_MAX if e == source[a] else None for e, a in zip(ends, axes, strict=True)]
        if any(e is None for e in found) or scope.dtype(node.input[1]) != dtype("i64"):
            continue
        node.input[2] = scope.add_ints(f"{node.output[0]}_ends", [e for e in found if e is not None])
        texts.append(describe(node))
    return texts


def needless_expands(scope: Scope) -> list[str]:
    """Expand before an operator that broadcasts anyway disappears, where the result is as large without it."""
    texts = []
    for node in scope.graph.node:
        if not scope.is_op(node, *_BINARY):
            continue
        for position, name in enumerate(node.input):
            expand = scope.made_by(name, "Expand")
            if expand is None:
                continue
            others = [scope.shape(n) for i, n in enumerate(node.input) if i != position]
            before, after = scope.shape(expand.input[0]), scope.shape(name)
            if before is None or after is None or any(o is None for o in others):
                continue
            if _covered(before, after, [o for o in others if o is not None]):
                node.input[position] = expand.input[0]
                texts.append(f"{describe(expand)} before {describe(node)}")
    return texts


def _covered(before: Sequence[Dim], after: Sequence[Dim], others: list[tuple[Dim, ...]]) -> bool:
    """Whether each axis that the Expand widens is as wide in another operand."""
    for back in range(1, len(after) + 1):
        own = before[-back] if back <= len(before) else None
        if own != after[-back] and not any(len(o) >= back and o[-back] == after[-back] for o in others):
            return False
    return True
