"""Importers of the com.microsoft ops that optimised and quantised models carry."""

from __future__ import annotations

from dovetail.core.dtypes import F32
from dovetail.frontend.onnx.quantize import dequantize_linear, quantize_linear
from dovetail.frontend.onnx.shorthand import in_wide_float, required, scalar
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value

DOMAIN = "com.microsoft"

onnx_op("QuantizeLinear", domain=DOMAIN)(quantize_linear)
onnx_op("DequantizeLinear", domain=DOMAIN)(dequantize_linear)


def _with_bias(ctx: Context, node: OnnxNode) -> Value:
    x, bias = required(ctx, node, 0), node.input(1)
    result: Value = x if bias is None else ctx.emit("Add", x, bias)
    return result


@onnx_op("Gelu", "BiasGelu", domain=DOMAIN)
def gelu(ctx: Context, node: OnnxNode) -> Value:
    """Gelu by erf, of x + bias."""
    result: Value = ctx.emit("Gelu", _with_bias(ctx, node))
    return result


@onnx_op("FastGelu", domain=DOMAIN)
def fast_gelu(ctx: Context, node: OnnxNode) -> Value:
    """Gelu by the tanh formula, of x + bias."""
    result: Value = ctx.emit("Gelu", _with_bias(ctx, node), approximate="tanh")
    return result


@onnx_op("QuickGelu", domain=DOMAIN)
def quick_gelu(ctx: Context, node: OnnxNode) -> Value:
    """x * sigmoid(alpha * x)."""
    result: Value = ctx.emit("Swish", required(ctx, node, 0), alpha=float(node.attr("alpha", 1.702)))
    return result


def _transposed(ctx: Context, x: Value, batch: bool, last: bool) -> Value:
    """The matrix axes swapped if `last`; the batch axes moved behind the row axis first if `batch`."""
    rank = x.tensor.rank
    order = list(range(rank))
    if batch:
        order = [*order[1:-1], order[0], order[-1]]
    if last and rank > 1:
        order[-1], order[-2] = order[-2], order[-1]
    if order == list(range(rank)):
        return x
    result: Value = ctx.emit("Transpose", x, perm=tuple(order))
    return result


@onnx_op("FusedMatMul", domain=DOMAIN)
def fused_matmul(ctx: Context, node: OnnxNode) -> Value:
    """alpha * (a or its transpose) @ (b or its transpose)."""
    a, b = (
        _transposed(
            ctx,
            required(ctx, node, i),
            bool(node.attr(f"transBatch{side}", 0)),
            bool(node.attr(f"trans{side}", 0)),
        )
        for i, side in enumerate("AB")
    )
    alpha = float(node.attr("alpha", 1.0))
    product: Value = ctx.emit("MatMul", a, b)
    if alpha == 1.0:
        return product

    def scaled(x: Value) -> Value:
        result: Value = ctx.emit("Mul", x, scalar(ctx, alpha, x.tensor.dtype))
        return result

    return in_wide_float(ctx, product, scaled) if product.tensor.dtype != F32 else scaled(product)
