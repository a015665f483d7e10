"""Recognises scaled dot-product attention that exporters write out as MatMul, Softmax, MatMul."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dovetail.core.dims import Dim
from dovetail.core.dtypes import BOOL
from dovetail.ir.graph import Node, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.clean import replace, used_once
from dovetail.passes.identities import is_exact_cast
from dovetail.passes.patterns import Scalars, either_order, made_by

_NEVER = -1e30
"""A finite number this low masks a score out exactly: any fp32 score added to it is absorbed."""


def _probabilities(value: Value, scalars: Scalars) -> tuple[Node, Value | None] | None:
    """The Softmax over the last axis behind the left operand of the second product, and the mask it is guarded by.

    Exporters write Where(IsNaN(p), 0, p), or Where(max(mask) == -inf, 0, p), for rows that are masked whole;
    Attention gives these rows zeros anyway.
    """
    guarded: Value | None = None
    cast = made_by(value, "Cast")
    if cast is not None and used_once(value):
        value = cast.input(0)
    where = made_by(value, "Where")
    if where is not None and used_once(value):
        if scalars.number(where.input(1)) != 0:
            return None
        nan = made_by(where.input(0), "IsNaN")
        value = where.input(2)
        if nan is None:
            guarded = _masked_rows(where.input(0), scalars)
        if (nan is None and guarded is None) or (nan is not None and nan.input(0) is not value):
            return None
        if len(value.uses) != (1 if nan is None else 2) or value.is_output:
            return None
    elif not used_once(value):
        return None
    node = made_by(value, "Softmax")
    if node is None or node.attrs.get("axis", -1) % value.tensor.rank != value.tensor.rank - 1:
        return None
    return node, guarded


def _masked_rows(condition: Value, scalars: Scalars) -> Value | None:
    """The mask of max(mask, last axis) == -inf."""
    equal = made_by(condition, "Equal")
    if equal is None:
        return None
    for peak, low in either_order(equal):
        reduce = made_by(peak, "ReduceMax")
        if reduce is None or not reduce.attrs.get("keepdims", True) or scalars.number(low) != -math.inf:
            continue
        mask = reduce.input(0)
        if reduce.attrs["axes"] == (mask.tensor.rank - 1,):
            return mask
    return None


@dataclass
class _Scores:
    """The first product with what is done to it before the softmax."""

    product: Node
    scale: float
    masks: list[Value]
    keep: Value | None  # bool: False masks out
    per_window: dict[Value, tuple[Dim, ...]]  # masks that repeat over the batch, and their shape [windows, heads, S, T]


def _scores(value: Value, scalars: Scalars) -> _Scores | None:
    scale, masks, keep = 1.0, list[Value](), None
    per_window: dict[Value, tuple[Dim, ...]] = {}
    while True:
        if not used_once(value):
            return None
        node = made_by(value, "MatMul", "Add", "Mul", "Div", "Where", "Cast", "Reshape")
        if node is None:
            return None
        if node.op == "MatMul":
            return _Scores(node, scale, masks, keep, per_window)
        if node.op == "Cast":
            source = node.input(0)
            if not is_exact_cast(source.tensor.dtype, node.attrs["to"]) or not source.tensor.dtype.is_float:
                return None
            value = source
            continue
        if node.op == "Reshape":
            window = _windowed(node)
            if window is None or scale != 1.0 or keep is not None:
                return None
            value, repeated, per_window[repeated] = window
            masks.append(repeated)
            continue
        if node.op == "Where":
            # A mask set from outside the scale, and one only: the order of the operations must stay.
            if keep is not None or masks or scale != 1.0 or node.input(0).tensor.dtype != BOOL:
                return None
            low = scalars.number(node.input(2))
            if low is None or low > _NEVER or node.input(1).type != value.type:
                return None
            if math.isinf(low):
                keep = node.input(0)
            else:
                return None if not _absorbs(node) else _scores_below(node, scalars)
            value = node.input(1)
            continue
        step = _peel(node, value, scalars)
        if step is None:
            return None
        value, factor, mask = step
        if mask is not None:
            if scale != 1.0:
                return None
            masks.append(mask)
        scale *= factor


def _windowed(outer: Node) -> tuple[Value, Value, tuple[Dim, ...]] | None:
    """(inner scores, mask, its shape [W, 1, S, T]) of scores [B W, H, S, T] that are [B, W, H, S, T] while the mask is added."""
    add = made_by(outer.input(0), "Add")
    if add is None or not used_once(add.output) or outer.output.tensor.rank != 4 or add.output.tensor.rank != 5:
        return None
    for wide, mask in either_order(add):
        split = made_by(wide, "Reshape")
        if split is None or not used_once(wide) or split.input(0).type != outer.output.type:
            continue
        full = (1,) * (5 - mask.tensor.rank) + mask.tensor.shape
        narrow, shape = wide.tensor.shape, outer.output.tensor.shape
        fits = narrow[2:] == shape[1:] and narrow[0] * narrow[1] == shape[0] and wide.type == add.output.type
        if fits and full[0] == 1 and full[1] in (1, narrow[1]) and full[-1] == shape[-1]:
            return split.input(0), mask, full[1:]
    return None


def _absorbs(node: Node) -> bool:
    return node.output.tensor.dtype.name in ("f32", "f64")


def _scores_below(node: Node, scalars: Scalars) -> _Scores | None:
    """Scores under a Where with a finite low number: the Where itself becomes the additive mask."""
    inner = _scores(node.input(1), scalars)
    if inner is None or inner.keep is not None or inner.masks:
        return None
    inner.masks = [node.output]  # replaced by Where(condition, 0, low) when the rule emits it
    return inner


def _peel(node: Node, value: Value, scalars: Scalars) -> tuple[Value, float, Value | None] | None:
    """(inner scores, factor, mask) of one Add, Mul or Div on the way down to the product."""
    if node.op == "Div":
        divisor = scalars.number(node.input(1))
        return (node.input(0), 1 / divisor, None) if divisor else None
    for inner, other in either_order(node):
        if inner.type != value.type:
            continue
        if node.op == "Mul":
            factor = scalars.number(other)
            if factor is not None:
                return inner, factor, None
        elif made_by(inner, "MatMul", "Mul", "Div", "Add", "Cast") is not None and used_once(inner) and _leads_to_product(inner):
            shape, columns = other.tensor.shape, value.tensor.shape[-1]
            return (inner, 1.0, other) if shape and shape[-1] == columns else None
    return None


def _leads_to_product(value: Value) -> bool:
    """Whether a MatMul stands at the bottom of a chain of scalings, masks and casts."""
    pending, steps = [value], 0
    while pending and steps < 32:
        node = made_by(pending.pop(), "MatMul", "Mul", "Div", "Add", "Cast")
        steps += 1
        if node is not None and node.op == "MatMul":
            return True
        if node is not None:
            pending += [v for v in node.operands[:2] if v.type == node.output.type or node.op == "Cast"]
    return False


def _scaled_operand(value: Value, scalars: Scalars) -> tuple[Value, float]:
    """(x, s) of x * s or x / (1 / s)."""
    node = made_by(value, "Mul", "Div")
    if node is None or not used_once(value):
        return value, 1.0
    if node.op == "Div":
        divisor = scalars.number(node.input(1))
        return (node.input(0), 1 / divisor) if divisor else (value, 1.0)
    for inner, other in either_order(node):
        factor = scalars.number(other)
        if factor is not None and inner.type == value.type:
            return inner, factor
    return value, 1.0


def _ungrouped(value: Value) -> tuple[Value, Dim]:
    """(x, G) where value repeats each of x's heads (axis 1) G times; (value, 1) if it does not."""
    merge = made_by(value, "Reshape")
    expand = made_by(merge.input(0), "Expand") if merge is not None else None
    split = made_by(expand.input(0), "Reshape") if expand is not None else None
    if merge is None or expand is None or split is None:
        return value, 1
    x, wide = split.input(0), expand.output.tensor.shape
    if x.tensor.rank != 4 or len(wide) != 5:
        return value, 1
    batch, heads, steps, depth = x.tensor.shape
    group = wide[2]
    narrow = (batch, heads, 1, steps, depth)
    fits = split.output.tensor.shape == narrow and wide == (batch, heads, group, steps, depth)
    return (x, group) if fits and value.tensor.shape == (batch, heads * group, steps, depth) else (value, 1)


def _untransposed(value: Value, rewrite: Rewrite) -> Value:
    """value with its last two axes swapped, reading through the Transpose that made it."""
    rank = value.tensor.rank
    swap = (*range(rank - 2), rank - 1, rank - 2)
    node = made_by(value, "Transpose")
    if node is None:
        return rewrite.emit("Transpose", value, perm=swap)
    perm = tuple(node.attrs["perm"][p] for p in swap)
    if perm == tuple(range(rank)):
        return node.input(0)
    return rewrite.emit("Transpose", node.input(0), perm=perm)


def _with_heads(value: Value, rewrite: Rewrite) -> Value:
    """A rank-3 operand [N, S, D] as [N, 1, S, D]; rank 4 as it is."""
    if value.tensor.rank == 4:
        return value
    batch, *rest = value.tensor.shape
    return rewrite.emit("Reshape", value, shape=(batch, 1, *rest))


def _per_window_only(scores: _Scores) -> bool:
    """Whether all masks are per window or the same for all of the batch, so that their sum is per window."""
    shapes = [scores.per_window.get(m, m.tensor.shape) for m in scores.masks]
    leads = {s[0] for s in shapes if len(s) == 4} - {1}
    return len(leads) <= 1 and all(s[0] == 1 or m in scores.per_window for s, m in zip(shapes, scores.masks, strict=True) if len(s) == 4)


def _mask(scores: _Scores, rank: int, rewrite: Rewrite, kind: Value) -> Value | None:
    """All masks as one operand for the softmax of rank-4 scores."""
    parts = []
    for mask in scores.masks:
        where = made_by(mask, "Where")
        if where is not None and made_by(where.input(1), "MatMul", "Mul", "Div", "Cast") is not None and used_once(mask):
            zero = rewrite.emit("Sub", where.input(2), where.input(2))
            mask = rewrite.emit("Where", where.input(0), zero, where.input(2))
        if mask in scores.per_window:
            mask = rewrite.emit("Reshape", mask, shape=scores.per_window[mask])
        if mask.tensor.dtype != kind.tensor.dtype:
            mask = rewrite.emit("Cast", mask, to=kind.tensor.dtype)
        parts.append(mask)
    total = scores.keep
    if parts:
        total = parts[0]
        for part in parts[1:]:
            total = rewrite.emit("Add", total, part)
    if total is None or rank == 4:
        return total
    if total.tensor.rank < 3:
        return total
    batch, *rest = total.tensor.shape
    return rewrite.emit("Reshape", total, shape=(batch, 1, *rest))


@rule("MatMul")
def recognise_attention(node: Node, rewrite: Rewrite) -> str | None:
    """softmax(q k^T * scale + mask) v is Attention; repeated key and value heads become grouped heads.

    Rows that the mask hides whole give zeros instead of NaN.
    """
    scalars = Scalars(rewrite.module)
    rank = node.output.tensor.rank
    if rank not in (3, 4) or not node.output.tensor.dtype.is_float:
        return "not a rank-3 or rank-4 float product"
    found = _probabilities(node.input(0), scalars)
    if found is None:
        return "the left operand is no softmax over the last axis with this one reader"
    softmax, guarded = found
    scores = _scores(softmax.input(0), scalars)
    if scores is None:
        return "the softmax is not over a scaled and masked product"
    if guarded is not None and scores.masks != [guarded]:
        return "rows are cleared by another mask than the one that is added"
    if scores.keep is not None and scores.masks:
        return "it has an additive mask and a selecting one"
    q, q_scale = _scaled_operand(scores.product.input(0), scalars)
    kt, k_scale = _scaled_operand(scores.product.input(1), scalars)
    v = node.input(1)
    shapes = [t.tensor.shape for t in (q, kt, v)]
    if any(len(s) != rank for s in shapes) or any(s[: rank - 2] != shapes[0][: rank - 2] for s in shapes[1:]):
        return "the operands differ in batch or heads"
    if q.tensor.dtype != v.tensor.dtype or q.tensor.dtype != kt.tensor.dtype:
        return "the operands differ in element type"
    if softmax.output.tensor.shape != scores.product.output.tensor.shape:
        return "a mask widens the scores"
    if scores.per_window and not _per_window_only(scores):
        return "one mask repeats over the batch and another does not"
    scale = q_scale * k_scale * scores.scale
    if not math.isfinite(scale) or scale == 0:
        return "the scale is not a finite number"
    k = _untransposed(kt, rewrite)
    if rank == 4:
        (k_few, groups), (v_few, v_groups) = _ungrouped(k), _ungrouped(v)
        if groups == v_groups and groups != 1:
            k, v = k_few, v_few
    mask = _mask(scores, rank, rewrite, q)
    scalars.commit("attention")
    inputs = [_with_heads(t, rewrite) for t in (q, k, v)] + ([mask] if mask is not None else [])
    origin = (*scores.product.origin, *softmax.origin, *node.origin)
    rewrite.at(node, origin)
    y = rewrite.emit("Attention", *inputs, name=node.output.name, scale=scale)
    if rank == 3:
        y = rewrite.emit("Reshape", y, name=node.output.name, shape=node.output.tensor.shape)
    replace(rewrite, node, y)
    return None


ATTENTION_RULES = (recognise_attention,)
