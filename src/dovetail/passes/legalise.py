"""Legalisation: ops that no tactic of the target computes are written with ops that have one.

Attention becomes two MatMuls around a Softmax. The products, the softmax and the mask are the reference's: rows that see
nothing are zero, bool masks select, float masks add. Results whose size depends on data become tables with room for all that
there may be, of which the host learns how much is used: NonZero, Compress and NonMaxSuppression. LSTM, GRU and RNN leave the
product with their inputs to a MatMul.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dovetail.codegen.scalar import DTYPES
from dovetail.codegen.tactic import tactics
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, floor_div, minimum, sym
from dovetail.core.dtypes import BF16, BOOL, F16, F32, I64
from dovetail.ir.graph import Module, Node, Time, Value
from dovetail.ir.rewriter import Rewrite, Rule, apply_rules, rule
from dovetail.ops.infer import infer
from dovetail.passes.constants import guard, scalar
from dovetail.passes.fuse import declined_alone
from dovetail.passes.patches import patches_as_product


def legalise(module: Module, target: Target) -> None:
    """Rewrite run-time nodes that no tactic of the target computes, where a composition exists."""

    def expand(node: Node, rewrite: Rewrite) -> str | None:
        if node.graph.time_of(node) == Time.RUN and declined_alone(node, target) is None:
            return f"{target.device} has a tactic for it"
        return expand_attention.apply(node, rewrite)

    # What the template of a CPU declines are types narrower or wider than fp32, whose products have no template there either:
    # the reference multiplies them faster, and rounds once.
    if target.device != "cpu":
        apply_rules(module, [replace(expand_attention, apply=expand)], infer)

    def project(node: Node, rewrite: Rewrite) -> str | None:
        return _project(node, rewrite, target)

    if target.device != "cpu":
        apply_rules(module, [patches_as_product], infer)
        apply_rules(module, [Rule("project_recurrent", ("LSTM", "GRU", "RNN"), project, _project.__doc__ or "")], infer)
    if tactics("select", target.device):
        apply_rules(module, [tabulate_non_zero, tabulate_compress, tabulate_suppression], infer)


def _project(node: Node, rewrite: Rewrite, target: Target) -> str | None:
    """A recurrent layer over the product of its inputs with W, all steps at once: a MatMul like any other."""
    w = node.inputs[1]
    if w is None:
        return "it is projected already"
    if node.graph.time_of(node) != Time.RUN:
        return "known before the run"
    directions, rows, inputs = w.tensor.shape
    flat = rewrite.emit_node("Reshape", w, shape=(directions * rows, inputs))
    turned = rewrite.emit_node("Transpose", flat.output, perm=(1, 0))
    product = rewrite.emit_node("MatMul", node.input(0), turned.output)
    layer = rewrite.emit_node(node.op, product.output, None, *node.inputs[2:], **node.attrs)
    reason = declined_alone(layer, target)
    if reason is not None:
        for made in (layer, product, turned, flat):
            node.graph.erase(made)
        return reason
    rewrite.replace(node, *layer.outputs)
    return None


def _used(rewrite: Rewrite, table: Value, count: Value, symbols: tuple[str, ...], axis: int) -> Value:
    """The part of a table that is used, whose extent along `axis` the symbol names."""
    rewrite.emit_node("BindSymbols", count, symbols=symbols[:1])
    return rewrite.emit("Slice", table, starts=(0,), ends=(sym(symbols[0]),), axes=(axis,), steps=(1,))


@rule("NonZero")
def tabulate_non_zero(node: Node, rewrite: Rewrite) -> str | None:
    """The coordinates as the first columns of a table."""
    x = node.input(0)
    if x.time != Time.RUN:
        return "known before the run"
    if x.tensor.rank == 0 or x.tensor.dtype.name not in DTYPES:
        return f"no kernel takes {x.tensor}"
    table, count = rewrite.emit_node("NonZeroTable", x).outputs
    rewrite.replace(node, _used(rewrite, table, count, node.attrs["symbols"], 1))
    return None


@rule("Compress")
def tabulate_compress(node: Node, rewrite: Rewrite) -> str | None:
    """A Gather of the positions whose condition is true."""
    x, condition = node.input(0), node.input(1)
    if condition.time != Time.RUN:
        return "the condition is known before the run"
    if condition.tensor.dtype != BOOL:
        return f"the condition is {condition.tensor.dtype}"
    axis = node.attrs.get("axis")
    if axis is None:
        x, axis = rewrite.emit("Reshape", x, shape=(x.tensor.size,)), 0
    flat = condition if condition.tensor.rank == 1 else rewrite.emit("Reshape", condition, shape=(condition.tensor.size,))
    table, count = rewrite.emit_node("NonZeroTable", flat).outputs
    symbols = node.attrs["symbols"]
    used = _used(rewrite, table, count, symbols, 1)
    positions = rewrite.emit("Reshape", used, shape=(sym(symbols[0]),))
    rewrite.replace(node, rewrite.emit("Gather", x, positions, axis=axis))
    return None


@rule("NonMaxSuppression")
def tabulate_suppression(node: Node, rewrite: Rewrite) -> str | None:
    """The selected boxes as the first rows of a table with room for the boxes that each class may select."""
    if not any(v.time == Time.RUN for v in node.operands):
        return "known before the run"
    most = node.inputs[2] if len(node.inputs) > 2 else None
    if most is None:
        return "without a maximum nothing is selected"
    limit: Dim = node.input(1).tensor.shape[2]
    number = scalar(rewrite.module, most)
    if number is not None:
        guard(rewrite.module, most, "tabulate_suppression")
        limit = minimum(limit, max(0, int(number)))
    inputs = [node.inputs[i] if i < len(node.inputs) else None for i in range(5)]
    center = node.attrs.get("center_point_box", False)
    table, count = rewrite.emit_node("SuppressionTable", *inputs, center_point_box=center, limit=limit).outputs
    rewrite.replace(node, _used(rewrite, table, count, node.attrs["symbols"], 0))
    return None


def _scalar(rewrite: Rewrite, value: float, like: Value) -> Value:
    return rewrite.emit("Full", shape=(), value=value, dtype=like.tensor.dtype)


def _split(rewrite: Rewrite, x: Value, heads: int) -> Value:
    """[B, S, heads * D] as [B, heads, S, D]."""
    if x.tensor.rank == 4:
        return x
    batch, steps, hidden = x.tensor.shape
    parted = rewrite.emit("Reshape", x, shape=(batch, steps, heads, hidden // heads))
    return rewrite.emit("Transpose", parted, perm=(0, 2, 1, 3))


def _visible(rewrite: Rewrite, rows: Dim, columns: Dim, past: Dim) -> Value:
    """Bool [rows, columns]: whether query i may see key j, j <= i + past."""
    row = rewrite.emit("Reshape", rewrite.emit("Iota", size=rows, dtype=I64), shape=(rows, 1))
    column = rewrite.emit("Iota", size=columns, dtype=I64)
    shift = rewrite.emit("Reshape", rewrite.emit("DimTensor", values=(past,)), shape=())
    return rewrite.emit("LessOrEqual", column, rewrite.emit("Add", row, shift))


@rule("Attention")
def expand_attention(node: Node, rewrite: Rewrite) -> str | None:
    """softmax(q k^T scale + bias) v as MatMuls and Softmax."""
    attrs = node.attrs
    if node.graph.time_of(node) != Time.RUN:
        return "known before the run"
    if attrs.get("scores", -1) >= 0 or len(node.outputs) != 1:
        return "its scores are read"
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return "it has key lengths"
    if attrs.get("left_window", -1) >= 0 or attrs.get("right_window", -1) >= 0:
        return "it has a window"
    if attrs.get("softmax_dtype") not in (None, F16, BF16, F32, node.output.tensor.dtype):
        return "its softmax has another dtype"
    packed = node.input(0).tensor.rank == 3
    q = _split(rewrite, node.input(0), attrs.get("q_heads", 0))
    k = _split(rewrite, node.input(1), attrs.get("kv_heads", 0))
    v = _split(rewrite, node.input(2), attrs.get("kv_heads", 0))
    batch, heads, rows, depth = q.tensor.shape
    key_heads, columns = k.tensor.shape[1], k.tensor.shape[2]
    if heads != key_heads:
        # Queries that share a key head are rows of one product.
        q = rewrite.emit("Reshape", q, shape=(batch, key_heads, heads // key_heads * rows, depth))
    scores = rewrite.emit("MatMul", q, rewrite.emit("Transpose", k, perm=(0, 1, 3, 2)))
    narrow = scores.tensor.dtype
    if narrow.bits < 32:
        # Joins the product: scores are never rounded to 16 bits, in which they would lose digits or overflow.
        scores = rewrite.emit("Cast", scores, to=F32)
    scale = float(attrs["scale"])
    if scale != 1.0:
        scores = rewrite.emit("Mul", scores, _scalar(rewrite, scale, scores))
    cap = attrs.get("softcap", 0.0)
    if cap:
        scaled = rewrite.emit("Div", scores, _scalar(rewrite, cap, scores))
        scores = rewrite.emit("Mul", rewrite.emit("Tanh", scaled), _scalar(rewrite, cap, scores))
    if heads != key_heads:
        scores = rewrite.emit("Reshape", scores, shape=(batch, heads, rows, columns))
    weights = _masked_softmax(node, rewrite, scores, rows, columns)
    if narrow.bits < 32:
        weights = rewrite.emit("Cast", weights, to=narrow)
    if heads != key_heads:
        weights = rewrite.emit("Reshape", weights, shape=(batch, key_heads, heads // key_heads * rows, columns))
    y = rewrite.emit("MatMul", weights, v)
    width = v.tensor.shape[3]
    if heads != key_heads:
        y = rewrite.emit("Reshape", y, shape=(batch, heads, rows, width))
    if packed:
        y = rewrite.emit("Transpose", y, perm=(0, 2, 1, 3))
        y = rewrite.emit("Reshape", y, shape=(batch, rows, heads * width))
    rewrite.replace(node, y)
    return None


def _masked_softmax(node: Node, rewrite: Rewrite, scores: Value, rows: Dim, columns: Dim) -> Value:
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    hidden = _scalar(rewrite, -math.inf, scores)
    nothing = _scalar(rewrite, 0.0, scores)
    bias: Value | None = None
    if mask is not None:
        batch = scores.tensor.shape[0]
        if mask.tensor.rank == 4 and mask.tensor.shape[0] not in (1, batch):
            mask = rewrite.emit("Tile", mask, repeats=(floor_div(batch, mask.tensor.shape[0]), 1, 1, 1))
        missing = columns - mask.tensor.shape[-1]
        if missing != 0:
            rank = mask.tensor.rank
            fill = False if mask.tensor.dtype == BOOL else -math.inf
            pads = (0,) * (2 * rank - 1) + (missing,)
            mask = rewrite.emit("Pad", mask, pads=pads, mode="constant", value=fill)
        if mask.tensor.dtype == BOOL:
            bias = rewrite.emit("Where", mask, nothing, hidden)
        else:
            bias = mask if mask.tensor.dtype == scores.tensor.dtype else rewrite.emit("Cast", mask, to=scores.tensor.dtype)
    if node.attrs.get("is_causal"):
        visible = _visible(rewrite, rows, columns, node.attrs.get("past", 0))
        causal = rewrite.emit("Where", visible, nothing, hidden)
        bias = causal if bias is None else rewrite.emit("Add", bias, causal)
    if bias is None:
        return rewrite.emit("Softmax", scores, axis=-1)
    probabilities = rewrite.emit("Softmax", rewrite.emit("Add", scores, bias), axis=-1)
    if mask is None:
        return probabilities  # a causal row always sees its first key
    peak = rewrite.emit("ReduceMax", bias, axes=(bias.tensor.rank - 1,), keepdims=True)
    return rewrite.emit("Where", rewrite.emit("Equal", peak, hidden), nothing, probabilities)
