"""Folds per-channel scales and shifts after a contraction into its weights and bias, as weight-time nodes.

Batch normalisation arrives as Mul and Add over weight-time vectors, so this is also BN folding. No rule looks at the
value of a weight: what is folded is computed again from the named weights on every load and refit.
"""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.clean import replace, used_once

_CHANNEL_AXIS = {"Conv": 1, "ConvTranspose": 1, "MatMul": -1}


def weight_operand(node: Node) -> tuple[Value, Value] | None:
    """(other, weight) operands of a binary node of which exactly one is known at weight time."""
    a, b = node.input(0), node.input(1)
    if b.time == Time.WEIGHT and a.time != Time.WEIGHT:
        return a, b
    if a.time == Time.WEIGHT and b.time != Time.WEIGHT:
        return b, a
    return None


def channel_extent(vector: Value, like: Value, axis: int) -> Dim | None:
    """Extent of `vector` along `axis` of `like` if it varies along no other axis and does not widen; else None."""
    rank = like.tensor.rank
    offset = rank - vector.tensor.rank
    if offset < 0:
        return None
    axis %= rank
    extent: Dim = 1
    for i, d in enumerate(vector.tensor.shape):
        if offset + i == axis:
            extent = d
        elif d != 1:
            return None
    return extent if extent in (1, like.tensor.shape[axis]) else None


def _foldable(y: Value) -> Node | None:
    """The contraction with weight-time weights that alone computes `y` for one reader."""
    node = y.producer
    if node is None or node.op not in _CHANNEL_AXIS or not used_once(y) or not y.tensor.dtype.is_float:
        return None
    weight = node.input(1)
    if weight.time != Time.WEIGHT or (node.op == "MatMul" and weight.tensor.rank < 2):
        return None
    return node


def _scaled_weight(rewrite: Rewrite, node: Node, scale: Value, extent: Dim) -> Value:
    """The weights of a contraction times a scale per output channel, or one for all."""
    weight = node.input(1)
    rank = weight.tensor.rank
    if extent == 1:
        return rewrite.emit("Mul", weight, rewrite.emit("Reshape", scale, shape=(1,) * rank))
    if node.op == "MatMul":
        return rewrite.emit("Mul", weight, rewrite.emit("Reshape", scale, shape=(extent,)))
    if node.op == "Conv":
        return rewrite.emit("Mul", weight, rewrite.emit("Reshape", scale, shape=(extent, *[1] * (rank - 1))))
    # ConvTranspose: output channels are split into groups over the first axis, and axis 1 within a group.
    group, (inputs, each, *kernel) = int(node.attrs.get("group", 1)), weight.tensor.shape
    grouped = rewrite.emit("Reshape", weight, shape=(group, inputs // group, each, *kernel))
    factors = rewrite.emit("Reshape", scale, shape=(group, 1, each, *[1] * len(kernel)))
    return rewrite.emit("Reshape", rewrite.emit("Mul", grouped, factors), shape=weight.tensor.shape)


def _rebuilt(rewrite: Rewrite, user: Node, node: Node, weight: Value, bias: Value | None) -> None:
    """Replace `user` by the contraction with other weights, under both origins."""
    rewrite.at(user, (*node.origin, *user.origin))
    inputs = [node.input(0), weight, *([bias] if bias is not None else [])]
    replace(rewrite, user, rewrite.emit(node.op, *inputs, name=user.output.name, **node.attrs))


@rule("Mul", "Div")
def fold_scale(node: Node, rewrite: Rewrite) -> str | None:
    """(x * w + b) * s = x * (w s) + b s, for a weight-time s per output channel."""
    found = weight_operand(node)
    if found is None:
        return "no operand is known at weight time"
    y, scale = found
    if node.op == "Div" and scale is not node.input(1):
        return "it divides a weight by a result"
    contraction = _foldable(y)
    if contraction is None:
        return "the other operand is no contraction with weight-time weights and this one reader"
    extent = channel_extent(scale, y, _CHANNEL_AXIS[contraction.op])
    if extent is None:
        return "the scale is not one number per output channel"
    if node.op == "Div":
        scale = rewrite.emit("Reciprocal", scale)
    bias = contraction.inputs[2] if len(contraction.inputs) > 2 else None
    if bias is not None:
        if bias.time != Time.WEIGHT:
            return "the bias is not known at weight time"
        bias = rewrite.emit("Mul", bias, rewrite.emit("Reshape", scale, shape=(extent,)))
    _rebuilt(rewrite, node, contraction, _scaled_weight(rewrite, contraction, scale, extent), bias)
    return None


@rule("Add", "Sub")
def fold_shift(node: Node, rewrite: Rewrite) -> str | None:
    """(conv(x) + b) + t = conv(x) + (b + t), for a weight-time t per output channel."""
    found = weight_operand(node)
    if found is None:
        return "no operand is known at weight time"
    y, shift = found
    if node.op == "Sub" and shift is not node.input(1):
        return "it subtracts a result from a weight"
    conv = _foldable(y)
    if conv is None or conv.op == "MatMul":
        return "the other operand is no convolution with weight-time weights and this one reader"
    extent = channel_extent(shift, y, 1)
    if extent is None:
        return "the shift is not one number per output channel"
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    channels = y.tensor.shape[1]
    vector = rewrite.emit("Reshape", shift, shape=(extent,))
    if node.op == "Sub":
        vector = rewrite.emit("Neg", vector)
    if bias is not None:
        vector = rewrite.emit("Add", bias, vector)
    elif extent == 1 and channels != 1:
        vector = rewrite.emit("Expand", vector, shape=(channels,))
    _rebuilt(rewrite, node, conv, conv.input(1), vector)
    return None


@rule("Mul", "Div")
def distribute_scale_over_bias(node: Node, rewrite: Rewrite) -> str | None:
    """(matmul(x, w) + b) * s = matmul(x, w) * s + b s, so that s can move into w."""
    found = weight_operand(node)
    if found is None:
        return "no operand is known at weight time"
    total, scale = found
    if node.op == "Div" and scale is not node.input(1):
        return "it divides a weight by a result"
    add = total.producer
    if add is None or add.op != "Add" or not used_once(total):
        return "the other operand is no Add with this one reader"
    parts = weight_operand(add)
    if parts is None or _foldable(parts[0]) is None:
        return "the Add is no bias after a contraction"
    y, bias = parts
    axis = _CHANNEL_AXIS[_foldable(y).op]  # type: ignore[union-attr]
    if y.tensor.shape != total.tensor.shape or channel_extent(scale, y, axis) is None:
        return "the scale is not one number per output channel"
    rewrite.at(node, (*add.origin, *node.origin))
    scaled = rewrite.emit(node.op, y, scale)
    replace(rewrite, node, rewrite.emit("Add", scaled, rewrite.emit(node.op, bias, scale), name=node.output.name))
    return None


@rule("Add", "Mul")
def combine_weight_operands(node: Node, rewrite: Rewrite) -> str | None:
    """(x + a) + b = x + (a + b), and the same for Mul, when a and b are known at weight time."""
    found = weight_operand(node)
    if found is None:
        return "no operand is known at weight time"
    inner_value, b = found
    inner = inner_value.producer
    if inner is None or inner.op != node.op or not used_once(inner_value) or not b.tensor.dtype.is_float:
        return "the other operand is no float chain of the same op with this one reader"
    parts = weight_operand(inner)
    if parts is None:
        return "the inner op has no weight-time operand"
    x, a = parts
    if x.tensor.shape != node.output.tensor.shape:
        return "an operand widens the result"
    rewrite.at(node, (*inner.origin, *node.origin))
    replace(rewrite, node, rewrite.emit(node.op, x, rewrite.emit(node.op, a, b), name=node.output.name))
    return None


@rule("Mul")
def hoist_scale_over_transpose(node: Node, rewrite: Rewrite) -> str | None:
    """transpose(y) * s = transpose(y * s'), so that s' can move into the contraction that makes y."""
    found = weight_operand(node)
    if found is None:
        return "no operand is known at weight time"
    moved, scale = found
    transpose = moved.producer
    if transpose is None or transpose.op != "Transpose" or not used_once(moved):
        return "the other operand is no Transpose with this one reader"
    y, perm = transpose.input(0), transpose.attrs["perm"]
    inner = y.producer
    if inner is not None and inner.op == "Add" and used_once(y):
        parts = weight_operand(inner)
        source = _foldable(parts[0]) if parts is not None else None
    else:
        source = _foldable(y)
    rank = y.tensor.rank
    if source is None or source.op != "MatMul":
        return "what is transposed is no product with weights"
    axis = perm.index(rank - 1)
    extent = channel_extent(scale, moved, axis)
    if extent is None or moved.type != node.output.type:
        return "the scale is not one number per output channel"
    rewrite.at(node, (*transpose.origin, *node.origin))
    scaled = rewrite.emit("Mul", y, rewrite.emit("Reshape", scale, shape=(extent,)))
    replace(rewrite, node, rewrite.emit("Transpose", scaled, name=node.output.name, perm=perm))
    return None


AFFINE_RULES = (
    fold_scale,
    fold_shift,
    distribute_scale_over_bias,
    combine_weight_operands,
    hoist_scale_over_transpose,
)
