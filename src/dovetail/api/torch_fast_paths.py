"""PyTorch's fused calls for attention in evaluation mode, taken apart again: they are single operators that no exporter knows."""

from __future__ import annotations

from typing import Any

from dovetail.core.optional import require

_WHY = "torch.compile with Dovetail"


def without_fast_paths(graph: Any) -> Any:
    """A copy of a torch.fx.GraphModule in which transformer layers and attention are calls of plain functions."""
    torch = require("torch", "torch", _WHY)
    replaced = {torch._transformer_encoder_layer_fwd: encoder_layer, torch._native_multi_head_attention: attention}
    if not any(node.target in replaced for node in graph.graph.nodes if node.op == "call_function"):
        return graph
    copied = torch.fx.Graph()
    result = copied.graph_copy(graph.graph, {}, return_output_node=True)
    copied.output(result[0])
    for node in copied.nodes:
        if node.op == "call_function" and node.target in replaced:
            node.target = replaced[node.target]
    return torch.fx.GraphModule(graph, copied)


def encoder_layer(
    src: Any, embed_dim: int, num_heads: int, qkv_weight: Any, qkv_bias: Any, proj_weight: Any, proj_bias: Any, use_gelu: bool,
    norm_first: bool, eps: float, norm_weight_1: Any, norm_bias_1: Any, norm_weight_2: Any, norm_bias_2: Any, ffn_weight_1: Any,
    ffn_bias_1: Any, ffn_weight_2: Any, ffn_bias_2: Any, mask: Any = None, mask_type: int | None = None,
) -> Any:  # fmt: skip
    """What `torch._transformer_encoder_layer_fwd` computes; src is [batch, length, embed_dim]."""
    f = require("torch.nn.functional", "torch", _WHY)

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        return f.layer_norm(x, (embed_dim,), weight, bias, eps)

    def attend(x: Any) -> Any:
        return attention(x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, False, True, mask_type)[0]

    def feed(x: Any) -> Any:
        hidden = f.linear(x, ffn_weight_1, ffn_bias_1)
        return f.linear(f.gelu(hidden) if use_gelu else f.relu(hidden), ffn_weight_2, ffn_bias_2)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed(src), norm_weight_2, norm_bias_2)


def attention(
    query: Any, key: Any, value: Any, embed_dim: int, num_heads: int, qkv_weight: Any, qkv_bias: Any, proj_weight: Any, proj_bias: Any,
    mask: Any = None, need_weights: bool = True, average_attn_weights: bool = True, mask_type: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """What `torch._native_multi_head_attention` computes: (result, weights or None); all are [batch, length, embed_dim].

    A true value of the mask leaves a key out. mask_type 0 is [length, length], 1 [batch, length], 2 [batch, heads, length, length].
    """
    f = require("torch.nn.functional", "torch", _WHY)
    weights = [qkv_weight[i * embed_dim : (i + 1) * embed_dim] for i in range(3)]
    biases = [qkv_bias[i * embed_dim : (i + 1) * embed_dim] for i in range(3)]
    batch, size = query.shape[0], embed_dim // num_heads
    q, k, v = (
        f.linear(x, w, b).reshape(batch, -1, num_heads, size).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    scores = q @ k.transpose(-2, -1) / size**0.5
    if mask is not None:
        left_out = mask.bool()
        scores = scores.masked_fill(left_out[:, None, None, :] if mask_type == 1 else left_out, float("-inf"))
    probabilities = scores.softmax(-1)
    result = f.linear((probabilities @ v).transpose(1, 2).reshape(batch, -1, embed_dim), proj_weight, proj_bias)
    if not need_weights:
        return result, None
    return result, probabilities.mean(1) if average_attn_weights else probabilities
