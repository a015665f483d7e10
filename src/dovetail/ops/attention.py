"""Scaled dot-product attention as one op."""

from __future__ import annotations

from dovetail.core.dims import Dim, floor_div, remainder
from dovetail.core.dtypes import DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.contraction import same_dim, same_dtype
from dovetail.ops.registry import CONTRACTION, broadcast, op


def _heads(what: str, t: TensorType, heads: int) -> tuple[Dim, Dim, Dim, Dim]:
    """(batch, heads, steps, depth) of a rank-4 or packed rank-3 operand."""
    if t.rank == 4:
        return (t.shape[0], t.shape[1], t.shape[2], t.shape[3])
    if t.rank != 3 or heads < 1:
        raise TypeInferenceError(
            f"Attention: {what}, got {t} with {heads} heads, expected [B, heads, S, D], or [B, S, heads * D] "
            "with q_heads and kv_heads set; reshape it"
        )
    depth = t.shape[2]
    if isinstance(depth, int) and depth % heads:
        raise TypeInferenceError(
            f"Attention: {what}, got hidden extent {depth}, expected a multiple of {heads} heads; fix the head count"
        )
    return (t.shape[0], heads, t.shape[1], floor_div(depth, heads))


@op("Attention", CONTRACTION)
def attention(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None = None,
    lengths: TensorType | None = None,
    *,
    scale: float,
    is_causal: bool = False,
    softcap: float = 0.0,
    q_heads: int = 0,
    kv_heads: int = 0,
    past: Dim = 0,
    left_window: int = -1,
    right_window: int = -1,
    softmax_dtype: DType | None = None,
    scores: int = -1,
) -> TensorType | tuple[TensorType, TensorType]:
    """softmax(softcap(q k^T scale) + bias) v per head; each key/value head serves q_heads / kv_heads query heads.

    q [B, Hq, S, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv] -> [B, Hq, S, Dv]; or packed [B, S, Hq * D] and so on with
    `q_heads`, `kv_heads` set (0 for rank 4). mask: bool (True attends) or float (added), broadcast to [B, Hq, S, T].
    The batch axis of a rank-4 mask may also be a divisor of B: sample b uses mask b % extent (windows of images, one mask per window).
    lengths: int64 [B], valid keys per sample. Causal: query i sees keys up to i + past (with lengths: the diagonal ends
    at the last valid key). Rows that see nothing are zero. `scores` 0..3 adds the output [B, Hq, S, T]: products,
    after softcap, with bias, probabilities. ONNX Attention-25.
    """
    same_dtype("Attention", q, k)
    batch, heads, steps, depth = _heads("q", q, q_heads)
    _, key_heads, keys, key_depth = _heads("k", k, kv_heads)
    _, value_heads, values, value_depth = _heads("v", v, kv_heads)
    same_dim("Attention", "head sizes of q and k", depth, key_depth)
    same_dim("Attention", "heads of k and v", key_heads, value_heads)
    same_dim("Attention", "lengths of k and v", keys, values)
    if isinstance(heads, int) and isinstance(key_heads, int) and heads % key_heads:
        raise TypeInferenceError(
            f"Attention: heads, got {heads} of q and {key_heads} of k, expected a multiple; fix the head counts"
        )
    if mask is not None:
        lead = mask.shape[:-1]
        if len(lead) == 3 and lead[0] != 0 and remainder(batch, lead[0]) == 0:
            lead = lead[1:]
        broadcast((batch, heads, steps), lead)
    if q.rank == 4:
        y = q.with_shape((batch, heads, steps, value_depth))
    else:
        y = q.with_shape((batch, steps, heads * value_depth))
    return y if scores < 0 else (y, q.with_shape((batch, heads, steps, keys)))
