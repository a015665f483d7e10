"""Nodes that change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from dovetail.core.dims import Dim
from dovetail.frontend.reader import read_tensor
from dovetail.model.proto_graph import attribute
from dovetail.model.simplify.scope import Scope, describe

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators that keep elements and their order."""

_IDEMPOTENT = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")
_INVOLUTIONS = ("Neg", "Not")


def remove_identities(scope: Scope) -> list[str]:
    """Identity, inference Dropout, and whatever by its constants, types or shapes changes nothing, disappear."""
    texts, dead = [], []
    replacements: dict[str, str] = {}
    for node in list(scope.graph.node):
        if not node.input or not node.output or not scope.is_op(node, node.op_type):
            continue
        source = _same_as(scope, node)
        if not source or sum(bool(n) for n in node.output) != 1:
            continue
        while source in replacements:  # its own node goes, too
            source = replacements[source]
        if node.output[0] not in scope.output_names:
            replacements[node.output[0]] = source
            dead.append(node)
        elif scope.take_over(source, node.output[0]):
            dead.append(node)
            replacements = {old: node.output[0] if new == source else new for old, new in replacements.items()}
        else:
            continue
        texts.append(describe(node))
        if node.output[0] in scope.output_names:
            break  # names have moved: the rest in the next round
    scope.remove_nodes(dead)
    scope.replace_all(replacements)
    return texts


def _same_as(scope: Scope, node: onnx.NodeProto) -> str:
    """The value that a node's first result is equal to; empty if there is none."""
    op, first = str(node.op_type), str(node.input[0])
    rule = _RULES.get(op)
    if rule is not None and first and rule(scope, node):
        return first
    if op in (*VIEWS, "Expand", "Slice") and first and _same_shape(scope, node) and not _backwards(scope, node):
        return first
    if op in ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or"):
        return _neutral(scope, node)
    if op in ("Sum", "Max", "Min", "Mean", "Concat") and len(node.input) == 1:
        return first
    before = scope.producers.get(first)
    if op in _IDEMPOTENT and scope.is_op(before, op):
        return first
    if op in _INVOLUTIONS and before is not None and scope.is_op(before, op):
        return str(before.input[0])
    return ""


def _same_shape(scope: Scope, node: onnx.NodeProto) -> bool:
    before, after = scope.shape(node.input[0]), scope.shape(node.output[0])
    return before is not None and before == after


def _backwards(scope: Scope, node: onnx.NodeProto) -> bool:
    """Whether a Slice may turn an axis around."""
    if node.op_type != "Slice" or len(node.input) < 5 or not node.input[4]:
        return False
    steps = scope.ints(node.input[4])
    return steps is None or any(s < 0 for s in steps)


def _dropout(scope: Scope, node: onnx.NodeProto) -> bool:
    training = len(node.input) > 2 and node.input[2] != "" and not _is_false(scope, node.input[2])
    return not training and (scope.opset >= 7 or attribute(node, "is_test", 0) != 0)


def _is_false(scope: Scope, name: str) -> bool:
    value = scope.constant(name)
    return value is not None and not value.any()


def _cast(scope: Scope, node: onnx.NodeProto) -> bool:
    kind = scope.dtype(node.input[0])
    return kind is not None and kind == scope.dtype(node.output[0]) and kind.name != "str"


def _transpose(scope: Scope, node: onnx.NodeProto) -> bool:
    perm = attribute(node, "perm")
    return list(perm) == sorted(perm) if perm is not None else (scope.rank(node.input[0]) or 2) < 2


def _pad(scope: Scope, node: onnx.NodeProto) -> bool:
    pads = scope.axes(node, 1, "pads")
    return pads is not None and not any(pads)


def _slice(scope: Scope, node: onnx.NodeProto) -> bool:
    starts, ends, steps = scope.axes(node, 1, "starts"), scope.axes(node, 2, "ends"), scope.axes(node, 4, "steps")
    if starts is None or ends is None or (len(node.input) > 4 and node.input[4] and steps is None):
        return False
    return not any(starts) and all(e >= (1 << 62) for e in ends) and all(s == 1 for s in steps or [])


def _expand(scope: Scope, node: onnx.NodeProto) -> bool:
    target, rank = scope.ints(node.input[1]), scope.rank(node.input[0])
    return target is not None and all(d == 1 for d in target) and (not target or (rank is not None and len(target) <= rank))


def _tile(scope: Scope, node: onnx.NodeProto) -> bool:
    repeats = scope.ints(node.input[1]) if len(node.input) == 2 else None
    return repeats is not None and all(r == 1 for r in repeats)


def _resize(scope: Scope, node: onnx.NodeProto) -> bool:
    if attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize":
        return False
    position = 2 if scope.opset >= 11 and node.op_type == "Resize" else 1
    scales = None
    if len(node.input) > position and node.input[position]:
        scales = scope.constant(node.input[position])
    if scales is not None and scales.size:
        return bool((scales == 1).all())
    if len(node.input) > 3 and node.input[3]:
        sizes, shape = scope.ints(node.input[3]), scope.shape(node.input[0])
        axes = attribute(node, "axes")
        policy = attribute(node, "keep_aspect_ratio_policy", b"stretch")
        return sizes is not None and shape is not None and policy == b"stretch" and (
            tuple(sizes) == (shape if axes is None else tuple(shape[a] for a in axes))
        )
    return False


def _pool(scope: Scope, node: onnx.NodeProto) -> bool:
    """A window of one element that stands on each element."""
    kernel = attribute(node, "kernel_shape") or [0]
    plain = not any(attribute(node, "pads") or []) and all(s == 1 for s in attribute(node, "strides") or [])
    return all(k == 1 for k in kernel) and plain and not attribute(node, "ceil_mode", 0)


def _clip(scope: Scope, node: onnx.NodeProto) -> bool:
    bounds = any(node.input[1:]) if scope.opset >= 11 else bool(node.attribute)
    return not bounds


def _neutral(scope: Scope, node: onnx.NodeProto) -> str:
    """The other operand of an addition of zeros, a multiplication by ones and the like."""
    if len(node.input) != 2 or scope.opset < 7:
        return ""
    wanted = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1, "And": True, "Or": False}[node.op_type]
    for position in (1, 0) if node.op_type in ("Add", "Mul", "And", "Or") else (1,):
        constant, other = node.input[position], node.input[1 - position]
        tensor = scope.constants.get(constant)
        if tensor is None or other in scope.constants:
            continue
        if not _keeps_shape(list(tensor.dims), scope.shape(other), scope.shape(node.output[0])):
            continue
        if node.op_type == "Pow" and scope.dtype(constant) != scope.dtype(other):
            continue
        value = scope.constant(constant)
        if value is not None and value.size and value.dtype.kind in "fiubV" and np.all(value == np.array(wanted).astype(value.dtype)):
            return str(other)
    return ""


def _keeps_shape(constant: list[Any], other: tuple[Dim, ...] | None, result: tuple[Dim, ...] | None) -> bool:
    if all(d == 1 for d in constant) and (not constant or (other is not None and len(constant) <= len(other))):
        return True
    return other is not None and other == result


_RULES = {
    "Identity": lambda scope, node: True,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Resize": _resize,
    "Upsample": _resize,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "Clip": _clip,
}


def drop_zero_states(scope: Scope) -> list[str]:
    """Initial states of LSTM, GRU and RNN that are zeros are left out: zeros are what they default to."""
    texts = []
    for node in scope.graph.node:
        if not scope.is_op(node, "LSTM", "GRU", "RNN"):
            continue
        dropped = False
        for position in range(5, min(len(node.input), 7)):
            if node.input[position] and _is_zero(scope, node.input[position]):
                node.input[position] = ""
                dropped = True
        while dropped and not node.input[-1]:
            del node.input[-1]
        if dropped:
            texts.append(describe(node))
    return texts


def _is_zero(scope: Scope, name: str) -> bool:
    """Whether all elements of a value are known to be zero."""
    while (node := scope.made_by(name, *VIEWS, "Slice", "Expand", "Transpose", "Tile", "Identity")) is not None:
        name = node.input[0]
    node = scope.made_by(name, "ConstantOfShape")
    if node is not None:
        value = attribute(node, "value")
        return value is None or not read_tensor(value, scope.folder).any()
    return _is_false(scope, name)


def drop_unused_outputs(scope: Scope) -> list[str]:
    """Optional results that nothing reads are no longer computed."""
    texts = []
    for node in scope.graph.node:
        if len(node.output) < 2 or not scope.is_op(node, node.op_type) or not onnx.defs.has(node.op_type, max(scope.opset, 1), ""):
            continue
        formal = onnx.defs.get_schema(node.op_type, max(scope.opset, 1), "").outputs
        dropped = False
        for position in range(1, len(node.output)):
            optional = position < len(formal) and formal[position].option == onnx.defs.OpSchema.FormalParameterOption.Optional
            if optional and node.output[position] and not scope.uses[node.output[position]]:
                node.output[position] = ""
                dropped = True
        while dropped and len(node.output) > 1 and not node.output[-1]:
            del node.output[-1]
        if dropped:
            texts.append(describe(node))
    return texts
