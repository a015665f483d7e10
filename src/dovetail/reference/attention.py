"""NumPy meaning of scaled dot-product attention."""

from __future__ import annotations

import math

import numpy as np

from dovetail.core.dtypes import DType
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, narrow, widen


def split_heads(x: Array, heads: int) -> Array:
    """[B, S, heads * D] as [B, heads, S, D]; a rank-4 array as it is."""
    if x.ndim == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


def _window(
    rows: int, columns: int, offset: Array, is_causal: bool, left: int, right: int
) -> Array | None:
    """Which key each query may see, bool [B or 1, 1, rows, columns], or None if it may see all."""
    distance = np.arange(columns) - (np.arange(rows)[:, None] + offset.reshape(-1, 1, 1, 1))
    seen = None
    if is_causal:
        seen = distance <= 0
    if right >= 0:
        seen = (distance <= right) if seen is None else seen & (distance <= right)
    if left >= 0:
        seen = (distance >= -left) if seen is None else seen & (distance >= -left)
    return seen


def attention_bias(
    shape: tuple[int, int, int],
    mask: Array | None,
    lengths: Array | None,
    past: int,
    is_causal: bool,
    left: int,
    right: int,
    numbers: np.dtype[np.floating],
) -> Array | None:
    """The additive bias, broadcastable to [B, heads, rows, columns], from every kind of mask; None if none.

    `shape` is (batch, rows, columns). A mask shorter than `columns` masks the rest out; one for fewer samples repeats.
    """
    batch, rows, columns = shape
    bias: Array | None = None
    if mask is not None:
        boolean = mask.dtype == np.bool_
        bias = np.where(mask, 0.0, -np.inf).astype(numbers) if boolean else mask.astype(numbers)
        if bias.ndim == 4 and 1 < bias.shape[0] < batch:
            bias = np.tile(bias, (batch // bias.shape[0], 1, 1, 1))
        missing = columns - mask.shape[-1]
        if missing > 0:
            widths = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
            bias = np.pad(bias, widths, constant_values=-np.inf)
    offset = np.asarray(past) if lengths is None else lengths.reshape(-1).astype(np.int64) - rows
    seen = _window(rows, columns, offset, is_causal, left, right)
    if lengths is not None:
        valid = np.arange(columns) < lengths.reshape(-1, 1, 1, 1)
        seen = valid if seen is None else seen & valid
    if seen is not None:
        hidden = np.where(seen, 0.0, -np.inf).astype(numbers)
        bias = hidden if bias is None else bias + hidden
    return bias


def masked_softmax(scores: Array, bias: Array | None) -> Array:
    """Softmax over the last axis of `scores` (bias already added); rows that `bias` masks whole give zeros."""
    peak = scores.max(axis=-1, keepdims=True)
    peak = np.where(np.isneginf(peak), scores.dtype.type(0), peak)
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - peak)
        total = powers.sum(axis=-1, keepdims=True)
        y = powers / np.where(total == 0, scores.dtype.type(1), total)
    if bias is not None:
        empty = np.isneginf(bias.max(axis=-1, keepdims=True))
        y = np.where(empty, scores.dtype.type(0), y)
    return np.asarray(y)


@reference("Attention")
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    lengths: Array | None = None,
    *,
    scale: float,
    is_causal: bool = False,
    softcap: float = 0.0,
    q_heads: int = 0,
    kv_heads: int = 0,
    past: int = 0,
    left_window: int = -1,
    right_window: int = -1,
    softmax_dtype: DType | None = None,
    scores: int = -1,
) -> Array | tuple[Array, Array]:
    """softmax(softcap(q k^T scale) + bias) v per head, each key/value head shared by q_heads / kv_heads queries.

    Args:
        q: [B, Hq, S, D], or [B, S, Hq * D] with `q_heads` set; the result has the same form.
        k, v: [B, Hkv, T, D] and [B, Hkv, T, Dv], or the rank-3 form with `kv_heads` set.
        mask: bool (True attends) or float (added), broadcastable to [B, Hq, S, T]; T may be shorter, and the
            batch axis a divisor of B: sample b uses mask b % extent.
        lengths: int64 [B], how many keys of each sample are valid.
        past: keys that precede the first query; `is_causal` lets query i see keys up to i + past.
        left_window, right_window: how far from its own position a query sees, -1 for no limit.
        scores: -1 for one result, else a second result: 0 the scaled products, 1 after softcap,
            2 with the bias, 3 the probabilities; always [B, Hq, S, T].

    Source: ONNX Attention-25.
    """
    packed = q.ndim == 3
    qh = widen(split_heads(q, q_heads))
    kh, vh = widen(split_heads(k, kv_heads)), widen(split_heads(v, kv_heads))
    batch, heads, rows, depth = qh.shape
    groups, columns = kh.shape[1], kh.shape[2]
    # One product per key/value head: its queries are stacked as further rows.
    stacked = qh.reshape(batch, groups, (heads // groups) * rows, depth)
    root = stacked.dtype.type(math.sqrt(abs(scale)))
    products = np.matmul(stacked * root, (kh * (root if scale >= 0 else -root)).swapaxes(-1, -2))
    products = products.reshape(batch, heads, rows, columns)
    capped = products if softcap == 0 else np.tanh(products / softcap) * softcap
    bias = attention_bias(
        (batch, rows, columns), mask, lengths, past, is_causal, left_window, right_window, qh.dtype
    )
    biased = capped if bias is None else capped + bias
    if softmax_dtype is not None and softmax_dtype.bits > 32:
        probabilities = masked_softmax(biased.astype(softmax_dtype.numpy), bias)
    else:
        probabilities = masked_softmax(biased, bias)
    weights = probabilities.astype(qh.dtype).reshape(stacked.shape[:-1] + (columns,))
    y = np.matmul(weights, vh).reshape(batch, heads, rows, vh.shape[-1])
    if packed:
        y = y.transpose(0, 2, 1, 3).reshape(batch, rows, heads * vh.shape[-1])
    y = narrow(y, q)
    if scores < 0:
        return y
    return y, narrow((products, capped, biased, probabilities)[scores], q)
