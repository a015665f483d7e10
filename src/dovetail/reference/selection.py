"""NumPy meaning of the selection ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from dovetail.core.dtypes import dtype
from dovetail.core.errors import ExecutionError
from dovetail.reference.registry import reference

Array = np.ndarray[Any, Any]

_COMBINE: dict[str, np.ufunc] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _positions(where: str, indices: Array, extent: int) -> Array:
    """Non-negative int64 positions for ONNX indices, checked against `extent`."""
    positions = indices.astype(np.int64)
    if positions.size and not -extent <= positions.min() <= positions.max() < extent:
        raise ExecutionError(
            f"{where}: indices, got values from {positions.min()} to {positions.max()}, expected values in "
            f"[{-extent}, {extent}); correct the indices"
        )
    return np.where(positions < 0, positions + extent, positions)


def _is_narrow_float(t: np.dtype[Any]) -> bool:
    found = dtype(t)
    return found.is_float and found.bits < 32


def _combine(result: Array, index: tuple[Any, ...], updates: Array, reduction: str) -> Array:
    if reduction == "none":
        result[index] = updates
        return result
    ufunc = _COMBINE[reduction]
    if _is_narrow_float(result.dtype):
        wide = result.astype(np.float32)
        ufunc.at(wide, index, updates.astype(np.float32))
        return wide.astype(result.dtype)
    ufunc.at(result, index, updates)
    return result


@reference("BindSymbols")
def bind_symbols(t: Array) -> tuple[()]:
    """Check that the elements can be symbol values; the executor reads them."""
    if t.size and t.min() < 0:
        raise ExecutionError(
            f"BindSymbols: input, got {t.min()} among {t.tolist()}, expected non-negative sizes; "
            "correct the tensor that drives this shape"
        )
    return ()


@reference("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """x[..., indices, ...] along `axis`."""
    return np.take(x, _positions("Gather", indices, x.shape[axis]), axis=axis)


@reference("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """y[i, j, k] = x[indices[i, j, k], j, k] for axis 0."""
    positions = _positions("GatherElements", indices, x.shape[axis])
    return x[_along(positions, axis)]


def _along(positions: Array, axis: int) -> tuple[Array, ...]:
    """Index arrays that walk `positions`' shape, with `positions` itself on `axis`.

    Unlike take_along_axis, the other extents may be smaller than the data's.
    """
    index: list[Array] = list(np.ogrid[tuple(slice(n) for n in positions.shape)])
    index[axis] = positions
    return tuple(index)


@reference("GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Rows of indices address the axes after the batch axes."""
    return x[_nd_index("GatherND", x, indices, batch_dims)]


def _nd_index(where: str, x: Array, indices: Array, batch_dims: int) -> tuple[Array, ...]:
    grid = np.ogrid[tuple(slice(n) for n in indices.shape[:-1])] if indices.ndim > 1 else ()
    index = list(grid[:batch_dims])
    for i in range(indices.shape[-1]):
        index.append(_positions(where, indices[..., i], x.shape[batch_dims + i]))
    return tuple(np.broadcast_arrays(*index)) if len(index) > 1 else tuple(index)


@reference("ScatterElements")
def scatter_elements(
    x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    """Copy of x with updates put at indices along `axis`."""
    positions = _positions("ScatterElements", indices, x.shape[axis])
    return _combine(x.copy(), _along(positions, axis), updates, reduction)


@reference("ScatterND")
def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """Copy of x with updates[i] put at indices[i]."""
    index = _nd_index("ScatterND", x, indices, 0)
    return _combine(x.copy(), index, updates, reduction)


@reference("OneHot")
def one_hot(indices: Array, values: Array, *, depth: int, axis: int) -> Array:
    """values[1] at the index, values[0] elsewhere, along a new axis."""
    positions = indices.astype(np.int64)
    positions = np.where(positions < 0, positions + depth, positions)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = depth
    hot = np.expand_dims(positions, axis) == np.arange(depth).reshape(shape)
    result: Array = np.where(hot, values[1], values[0]).astype(values.dtype)
    return result


@reference("TopK")
def top_k(
    x: Array, *, k: int, axis: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Array, Array]:
    """The k largest or smallest elements in order, ties to the lower position; always sorted."""
    extent = x.shape[axis]
    if not 0 <= k <= extent:
        raise ExecutionError(
            f"TopK: k, got {k}, expected a value in [0, {extent}], the extent of axis {axis}; lower k"
        )
    keys = x.astype(np.float32) if _is_narrow_float(x.dtype) else x
    if largest:
        # A stable ascending sort of the reversed row, read backwards, leaves ties in input order.
        flipped = np.argsort(np.flip(keys, axis), axis=axis, kind="stable")
        order = extent - 1 - np.flip(flipped, axis)
    else:
        order = np.argsort(keys, axis=axis, kind="stable")
    chosen = np.take(order, np.arange(k), axis=axis).astype(np.int64)
    return np.take_along_axis(x, chosen, axis=axis), chosen


@reference("NonZero")
def non_zero(x: Array) -> Array:
    """Coordinates of the non-zero elements, (rank, n)."""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    return np.array(np.nonzero(x), np.int64).reshape(x.ndim, -1)


@reference("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """Slices whose condition is true."""
    data = x.reshape(-1) if axis is None else x
    where = 0 if axis is None else axis
    taken = np.flatnonzero(condition)
    return np.take(data, taken, axis=where)


@reference("Unique")
def unique(
    x: Array, *, axis: int | None = None, sorted: bool = True, outputs: int = 4
) -> tuple[Array, ...]:
    """Distinct elements or slices, first positions, inverse, counts."""
    data = x.reshape(-1) if axis is None else x
    where = 0 if axis is None else axis
    keys = data.astype(np.float32) if _is_narrow_float(x.dtype) else data
    _, first, inverse, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True, axis=where
    )
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    values = np.take(data, first, axis=where)
    results = (values, first, inverse, counts)
    return (values, *(r.astype(np.int64) for r in results[1:outputs]))


def _scalar(t: Array | None, default: float) -> float:
    return default if t is None else float(t.reshape(-1)[0])


@reference("NonMaxSuppression")
def non_max_suppression(
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array | None = None,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: bool = False,
) -> Array:
    """Greedy suppression per batch and class, best score first; ties to the lower box."""
    limit = int(_scalar(max_output_boxes_per_class, 0))
    overlap = _scalar(iou_threshold, 0.0)
    floor = -np.inf if score_threshold is None else _scalar(score_threshold, 0.0)
    rows: list[tuple[int, int, int]] = []
    if limit > 0:
        for batch in range(scores.shape[0]):
            low, high = _corners(boxes[batch], center_point_box)
            for label in range(scores.shape[1]):
                kept = _suppress(low, high, scores[batch, label], limit, overlap, floor)
                rows += [(batch, label, box) for box in kept]
    return np.array(rows, np.int64).reshape(-1, 3)


def _corners(boxes: Array, center_point_box: bool) -> tuple[Array, Array]:
    """Low and high corners (N, 2) of boxes given as two opposite corners or as centre and size."""
    if center_point_box:
        half = boxes[:, 2:] / 2
        return boxes[:, :2] - half, boxes[:, :2] + half
    return np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])


def _suppress(
    low: Array, high: Array, scores: Array, limit: int, overlap: float, floor: float
) -> list[int]:
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > floor]
    areas = (high - low).prod(axis=1)
    kept: list[int] = []
    while order.size and len(kept) < limit:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        size = (np.minimum(high[rest], high[best]) - np.maximum(low[rest], low[best])).clip(0)
        shared = size.prod(axis=1)
        union = areas[rest] + areas[best] - shared
        ratio = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        order = rest[ratio <= overlap]
    return kept


@reference("NonZeroTable")
def non_zero_table(x: Array) -> tuple[Array, Array]:
    """Coordinates of the non-zero elements, zeros behind them, and their number."""
    found = non_zero(x)
    table = np.zeros((x.ndim, x.size), np.int64)
    table[:, : found.shape[1]] = found
    return table, np.array([found.shape[1]], np.int64)


@reference("SuppressionTable")
def suppression_table(
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: bool = False,
    limit: int,
) -> tuple[Array, Array]:
    """The rows of NonMaxSuppression, zeros behind them, and their number."""
    most = np.minimum(max_output_boxes_per_class, limit)
    found = non_max_suppression(boxes, scores, most, iou_threshold, score_threshold, center_point_box=center_point_box)
    table = np.zeros((scores.shape[0] * scores.shape[1] * limit, 3), np.int64)
    table[: len(found)] = found
    return table, np.array([len(found)], np.int64)
