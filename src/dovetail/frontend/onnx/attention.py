"""Imports Attention: key/value caches become Concats, both operand forms stay as they are where possible."""

from __future__ import annotations

from typing import Any

from dovetail.core.dims import Dim, floor_div
from dovetail.core.dtypes import BF16, F16, F32, F64
from dovetail.frontend.onnx.contraction import require
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value

_SOFTMAX_TYPES = {1: F32, 10: F16, 11: F64, 16: BF16}


def _unpacked(ctx: Context, x: Value, heads: int) -> Value:
    """[B, S, heads * D] as [B, heads, S, D]."""
    if x.tensor.rank == 4:
        return x
    batch, steps, hidden = x.tensor.shape
    split = ctx.emit("Reshape", x, shape=(batch, steps, heads, floor_div(hidden, heads)))
    y: Value = ctx.emit("Transpose", split, perm=(0, 2, 1, 3))
    return y


@onnx_op("Attention")
def attention(ctx: Context, node: OnnxNode) -> Any:
    """Attention-23 to 25 in all its modes."""
    q, k, v = (require(ctx, node, i, name) for i, name in enumerate("QKV"))
    mask, past_key, past_value, lengths = (node.input(i) for i in range(3, 7))
    if (past_key is None) != (past_value is None):
        ctx.unsupported("only one of past_key and past_value is given", "give both or none")
    packed = q.tensor.rank == 3
    heads, kv_heads = int(node.attr("q_num_heads", 0)), int(node.attr("kv_num_heads", 0))
    if packed and not (heads and kv_heads):
        ctx.unsupported("rank-3 inputs without q_num_heads and kv_num_heads", "give both attributes")
    wants = [i < len(node.outputs) and bool(node.outputs[i]) for i in range(4)]
    past: Dim = 0
    unpack = packed and (past_key is not None or wants[1] or wants[2])
    if unpack:
        q, k, v = _unpacked(ctx, q, heads), _unpacked(ctx, k, kv_heads), _unpacked(ctx, v, kv_heads)
    depth = q.tensor.shape[-1] if q.tensor.rank == 4 else floor_div(q.tensor.shape[-1], heads)
    if past_key is not None and past_value is not None:
        past = past_key.tensor.shape[2]
        k = ctx.emit("Concat", past_key, k, axis=2)
        v = ctx.emit("Concat", past_value, v, axis=2)
    scale = node.attr("scale")
    if scale is None:
        if not isinstance(depth, int):
            ctx.unsupported("no scale and a head size that is not fixed", "give the scale attribute")
        scale = depth**-0.5
    precision = node.attr("softmax_precision")
    four = q.tensor.rank == 4
    inputs: list[Value | None] = [q, k, v, mask, lengths]
    while inputs[-1] is None:
        inputs.pop()
    results = ctx.emit(
        "Attention",
        *inputs,
        scale=float(scale),
        is_causal=bool(node.attr("is_causal", 0)),
        softcap=float(node.attr("softcap", 0.0)),
        q_heads=0 if four else heads,
        kv_heads=0 if four else kv_heads,
        past=past,
        left_window=int(node.attr("left_window_size", -1)),
        right_window=int(node.attr("right_window_size", -1)),
        softmax_dtype=None if precision is None else _SOFTMAX_TYPES.get(int(precision)),
        scores=int(node.attr("qk_matmul_output_mode", 0)) if wants[3] else -1,
    )
    y, scores = results if wants[3] else (results, None)
    if unpack:
        batch, _, steps, value_depth = y.tensor.shape
        y = ctx.emit("Transpose", y, perm=(0, 2, 1, 3))
        y = ctx.emit("Reshape", y, shape=(batch, steps, heads * value_depth))
    return y, k if wants[1] else None, v if wants[2] else None, scores
