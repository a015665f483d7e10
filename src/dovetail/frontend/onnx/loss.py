"""Importers of the losses."""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.frontend.onnx.shorthand import required, reshape, scalar
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value


def _negative_log_likelihood(
    ctx: Context,
    node: OnnxNode,
    log_probability: Value,
    target: Value,
    weight: Value | None,
) -> Value:
    """-log_probability[n, target[n, …], …], weighted; targets equal to ignore_index count nothing."""
    kind = log_probability.tensor.dtype
    shape: tuple[Dim, ...] = target.tensor.shape
    zero = scalar(ctx, 0, kind)
    ignored = None
    if node.attr("ignore_index") is not None:
        index = scalar(ctx, int(node.attr("ignore_index")), target.tensor.dtype)
        ignored = ctx.emit("Equal", target, index)
        target = ctx.emit("Where", ignored, scalar(ctx, 0, target.tensor.dtype), target)
    column = reshape(ctx, target, (shape[0], 1, *shape[1:]))
    picked = ctx.emit("GatherElements", log_probability, column, axis=1)
    loss = ctx.emit("Neg", reshape(ctx, picked, shape))
    factor = None if weight is None else ctx.emit("Gather", weight, target, axis=0)
    if factor is not None:
        loss = ctx.emit("Mul", loss, factor)
    if ignored is not None:
        loss = ctx.emit("Where", ignored, zero, loss)
        if factor is None:
            factor = ctx.emit("Full", shape=shape, value=1.0, dtype=kind)
        factor = ctx.emit("Where", ignored, zero, factor)
    return _reduce_loss(ctx, node, loss, factor)


def _reduce_loss(ctx: Context, node: OnnxNode, loss: Value, factor: Value | None) -> Value:
    reduction = node.attr("reduction", "mean")
    axes = tuple(range(loss.tensor.rank))
    result: Value = loss
    if reduction == "sum":
        result = ctx.emit("ReduceSum", loss, axes=axes, keepdims=False)
    elif reduction == "mean" and factor is None:
        result = ctx.emit("ReduceMean", loss, axes=axes, keepdims=False)
    elif reduction == "mean":
        total = ctx.emit("ReduceSum", loss, axes=axes, keepdims=False)
        result = ctx.emit("Div", total, ctx.emit("ReduceSum", factor, axes=axes, keepdims=False))
    elif reduction != "none":
        ctx.unsupported(f"reduction {reduction!r}", "use none, sum or mean")
    return result


@onnx_op("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(ctx: Context, node: OnnxNode) -> Value:
    """The input holds log probabilities over axis 1."""
    return _negative_log_likelihood(
        ctx, node, required(ctx, node, 0), required(ctx, node, 1), node.input(2)
    )


@onnx_op("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(ctx: Context, node: OnnxNode) -> tuple[Value, Value]:
    """LogSoftmax over axis 1, then the loss above; the log probabilities are the second output."""
    log_probability = ctx.emit("LogSoftmax", required(ctx, node, 0), axis=1)
    loss = _negative_log_likelihood(
        ctx, node, log_probability, required(ctx, node, 1), node.input(2)
    )
    return loss, log_probability
