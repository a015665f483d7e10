"""Recognises row operations that exporters write out: softmax and the normalisations."""

from __future__ import annotations

import numpy as np

from dovetail.core.dims import product
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.affine import channel_extent
from dovetail.passes.clean import replace, used_once
from dovetail.passes.constants import guard, peek
from dovetail.passes.patterns import Scalars, added_number, either_order, made_by, trailing_axis


@rule("Div")
def recognise_softmax(node: Node, rewrite: Rewrite) -> str | None:
    """exp(x - max(x)) / sum(exp(x - max(x))) is Softmax."""
    powers, total = node.input(0), made_by(node.input(1), "ReduceSum")
    exp = made_by(powers, "Exp")
    if exp is None or total is None or total.input(0) is not powers:
        return "not an exponential over its sum"
    axes = total.attrs["axes"]
    if len(axes) != 1 or not total.attrs.get("keepdims", True):
        return "the sum is not over one axis that stays"
    x = exp.input(0)
    shifted = made_by(x, "Sub")
    peak = made_by(shifted.input(1), "ReduceMax") if shifted is not None else None
    keeps = peak is not None and peak.attrs["axes"] == axes and peak.attrs.get("keepdims", True)
    if shifted is not None and peak is not None and keeps and peak.input(0) is shifted.input(0):
        x = shifted.input(0)  # Softmax does not change when a number per row is subtracted
    replace(rewrite, node, rewrite.emit("Softmax", x, name=node.output.name, axis=axes[0]))
    return None


def _inverse_root(value: Value, scalars: Scalars) -> Value | None:
    """v of 1 / sqrt(v)."""
    root: Node | None = None
    inverse = made_by(value, "Reciprocal")
    if inverse is not None:
        root = made_by(inverse.input(0), "Sqrt")
    quotient = made_by(value, "Div")
    if quotient is not None and scalars.number(quotient.input(0)) == 1:
        root = made_by(quotient.input(1), "Sqrt")
    power = made_by(value, "Pow")
    if power is not None and scalars.number(power.input(1)) == -0.5:
        return power.input(0)
    return root.input(0) if root is not None else None


def _divided_by_root(node: Node, scalars: Scalars) -> list[tuple[Value, Value]]:
    """Candidates (d, v) of d / sqrt(v) that a Mul or Div computes."""
    if node.op == "Div":
        root = made_by(node.input(1), "Sqrt")
        return [(node.input(0), root.input(0))] if root is not None else []
    found = []
    for d, factor in either_order(node):
        v = _inverse_root(factor, scalars)
        if v is not None:
            found.append((d, v))
    return found


def _mean_square(value: Value, of: Value) -> int | None:
    """The first axis of mean(of * of) over trailing axes, if value is that."""
    mean = made_by(value, "ReduceMean")
    square = made_by(mean.input(0), "Mul", "Pow") if mean is not None else None
    if mean is None or square is None or square.op == "Pow":
        return None
    if square.input(0) is not of or square.input(1) is not of:
        return None
    return trailing_axis(mean)


@rule("Mul", "Div")
def recognise_norm(node: Node, rewrite: Rewrite) -> str | None:
    """d / sqrt(mean(d * d) + eps) is RMSNormalization of d, or LayerNormalization of x where d = x - mean(x)."""
    if not node.output.tensor.dtype.is_float:
        return "not a float"
    scalars = Scalars(rewrite.module)
    for d, v in _divided_by_root(node, scalars):
        shifted = added_number(v, scalars)
        if shifted is None:
            continue
        axis = _mean_square(shifted[0], d)
        if axis is None:
            continue
        centred = made_by(d, "Sub")
        mean = made_by(centred.input(1), "ReduceMean") if centred is not None else None
        scalars.commit("epsilon")
        if centred is not None and mean is not None and mean.input(0) is centred.input(0) and trailing_axis(mean) == axis:
            x, op = centred.input(0), "LayerNormalization"
        else:
            x, op = d, "RMSNormalization"
        y = rewrite.emit(op, x, name=node.output.name, axis=axis, epsilon=shifted[1])
        replace(rewrite, node, y)
        return None
    return "not a value over the root of its mean square"


def _fits_rows(vector: Value, norm: Node) -> bool:
    """Whether a weight has at most the normalised axes of a norm."""
    x = norm.input(0).tensor
    return (
        vector.time == Time.WEIGHT
        and vector.tensor.dtype == x.dtype
        and vector.tensor.rank <= x.rank - norm.attrs["axis"]
        and vector.tensor.shape == x.shape[x.rank - vector.tensor.rank :]
        and vector.tensor.rank > 0
    )


@rule("Mul")
def absorb_norm_scale(node: Node, rewrite: Rewrite) -> str | None:
    """A norm without scale, times a weight over the normalised axes, is the norm with that scale."""
    for y, scale in either_order(node):
        norm = made_by(y, "LayerNormalization", "RMSNormalization")
        if norm is None or not used_once(y) or len(norm.outputs) != 1 or len(norm.operands) != 1:
            continue
        if _fits_rows(scale, norm):
            rewrite.at(node, (*norm.origin, *node.origin))
            replace(rewrite, node, rewrite.emit(norm.op, norm.input(0), scale, name=node.output.name, **norm.attrs))
            return None
    return "no operand is a norm that lacks a scale"


@rule("Add")
def absorb_norm_bias(node: Node, rewrite: Rewrite) -> str | None:
    """A LayerNormalization with scale, plus a weight over the normalised axes, is the norm with that bias."""
    for y, bias in either_order(node):
        norm = made_by(y, "LayerNormalization")
        if norm is None or not used_once(y) or len(norm.outputs) != 1 or len(norm.operands) != 2:
            continue
        if norm.inputs[1] is not None and _fits_rows(bias, norm):
            rewrite.at(node, (*norm.origin, *node.origin))
            y = rewrite.emit(norm.op, *norm.operands, bias, name=node.output.name, **norm.attrs)
            replace(rewrite, node, y)
            return None
    return "no operand is a norm that lacks a bias"


def _channel_affine(node: Node) -> tuple[Value, Value, Value] | None:
    """(y, scale, bias) of y * scale + bias with weights per channel (axis 1)."""
    for scaled, bias in either_order(node):
        mul = made_by(scaled, "Mul")
        if mul is None or not used_once(scaled) or bias.time != Time.WEIGHT or scaled.tensor.rank < 3:
            continue
        for y, scale in either_order(mul):
            if scale.time != Time.WEIGHT or y.type != node.output.type or not used_once(y):
                continue
            channels = y.tensor.shape[1]
            if channel_extent(scale, y, 1) == channels and channel_extent(bias, y, 1) == channels:
                return y, scale, bias
    return None


@rule("Add")
def recognise_instance_norm(node: Node, rewrite: Rewrite) -> str | None:
    """A LayerNormalization over space, times a scale and plus a bias per channel, is InstanceNormalization."""
    found = _channel_affine(node)
    if found is None:
        return "not a scale and bias per channel"
    y, scale, bias = found
    norm = made_by(y, "LayerNormalization")
    if norm is None or norm.attrs["axis"] != 2 or len(norm.operands) != 1 or len(norm.outputs) != 1:
        return "the scaled value is no plain norm over space"
    channels = y.tensor.shape[1]
    flat = [rewrite.emit("Reshape", v, shape=(channels,)) for v in (scale, bias)]
    rewrite.at(node, (*norm.origin, *node.origin))
    attrs = {"epsilon": norm.attrs.get("epsilon", 1e-5)}
    replace(rewrite, node, rewrite.emit("InstanceNormalization", norm.input(0), *flat, name=node.output.name, **attrs))
    return None


def _is_filled(rewrite: Rewrite, value: Value, number: float) -> bool:
    array = peek(rewrite.module, value)
    return array is not None and bool(np.all(array == number))


@rule("Add")
def recognise_group_norm(node: Node, rewrite: Rewrite) -> str | None:
    """Groups flattened, normalised as instances, shaped back, then scaled and shifted per channel: GroupNormalization."""
    found = _channel_affine(node)
    if found is None:
        return "not a scale and bias per channel"
    y, scale, bias = found
    back = made_by(y, "Reshape")
    norm = made_by(back.input(0), "InstanceNormalization", "LayerNormalization") if back is not None else None
    grouped = made_by(norm.input(0), "Reshape") if norm is not None else None
    if norm is None or grouped is None or len(norm.outputs) != 1:
        return "the scaled value is no norm between Reshapes"
    x, groups = grouped.input(0), grouped.output.tensor.shape
    if x.tensor.shape != y.tensor.shape or len(groups) < 3 or groups[0] != x.tensor.shape[0]:
        return "the Reshapes do not split channels into groups"
    count, channels = groups[1], x.tensor.shape[1]
    if not isinstance(count, int) or not isinstance(channels, int) or channels % count:
        return "the number of groups is not fixed"
    if product(groups[2:]) != channels // count * product(x.tensor.shape[2:]):
        return "the Reshapes do not split channels into groups"
    if norm.op == "LayerNormalization" and (norm.attrs["axis"] != 2 or len(norm.operands) != 1):
        return "the inner norm is not over one group"
    if norm.op == "InstanceNormalization":
        if not (_is_filled(rewrite, norm.input(1), 1) and _is_filled(rewrite, norm.input(2), 0)):
            return "the inner norm has a scale of its own"
        guard(rewrite.module, norm.input(1), "GroupNormalization")
        guard(rewrite.module, norm.input(2), "GroupNormalization")
    flat = [rewrite.emit("Reshape", v, shape=(channels,)) for v in (scale, bias)]
    rewrite.at(node, (*grouped.origin, *norm.origin, *node.origin))
    attrs = {"num_groups": count, "epsilon": norm.attrs.get("epsilon", 1e-5)}
    replace(rewrite, node, rewrite.emit("GroupNormalization", x, *flat, name=node.output.name, **attrs))
    return None


ROW_RULES = (
    recognise_softmax,
    recognise_norm,
    absorb_norm_scale,
    absorb_norm_bias,
    recognise_instance_norm,
    recognise_group_norm,
)
