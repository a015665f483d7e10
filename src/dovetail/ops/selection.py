"""Selection ops: which elements are read or written depends on data."""

from __future__ import annotations

from dovetail.core.dims import Dim, product, sym
from dovetail.core.dtypes import F32, I64
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.movement import check_axis, shape_text
from dovetail.ops.registry import HOST, SELECT, op

REDUCTIONS = ("none", "add", "mul", "max", "min")


def _check_indices(where: str, indices: TensorType) -> None:
    if not indices.dtype.is_int:
        raise TypeInferenceError(
            f"{where}: indices, got {indices.dtype}, expected an integer type; cast them to i64"
        )


def _check_reduction(where: str, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise TypeInferenceError(
            f"{where}: reduction, got {reduction!r}, expected one of {', '.join(REDUCTIONS)}; choose one"
        )


def _symbol(where: str, symbols: tuple[str, ...], index: int = 0) -> Dim:
    if index >= len(symbols):
        raise TypeInferenceError(
            f"{where}: symbols, got {len(symbols)}, expected at least {index + 1} to name the "
            "data-dependent output size; give a fresh name"
        )
    return sym(symbols[index])


@op("BindSymbols", HOST)
def bind_symbols(t: TensorType, *, symbols: tuple[str, ...]) -> tuple[TensorType, ...]:
    """Define `symbols` as the elements of the integer tensor t, in row-major order; no outputs.

    A negative element is an ExecutionError when it runs: symbols are non-negative.
    """
    size = product(t.shape)
    if not t.dtype.is_int or size != len(symbols):
        raise TypeInferenceError(
            f"BindSymbols: input, got {t.dtype}{shape_text(t.shape)}, expected {len(symbols)} integers; "
            "give one symbol per element"
        )
    return ()


@op("Gather", SELECT)
def gather(x: TensorType, indices: TensorType, *, axis: int = 0) -> TensorType:
    """x[..., indices, ...] along `axis`; negative indices count from the end. ONNX Gather-13."""
    _check_indices("Gather", indices)
    check_axis("Gather", axis, x.rank)
    return TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@op("GatherElements", SELECT)
def gather_elements(x: TensorType, indices: TensorType, *, axis: int = 0) -> TensorType:
    """y[i, j, k] = x[indices[i, j, k], j, k] for axis 0, and alike for others. ONNX GatherElements-13."""
    _check_indices("GatherElements", indices)
    check_axis("GatherElements", axis, x.rank)
    if indices.rank != x.rank:
        raise TypeInferenceError(
            f"GatherElements: indices, got rank {indices.rank}, expected {x.rank} as the input; reshape them"
        )
    return TensorType(x.dtype, indices.shape)


@op("GatherND", SELECT)
def gather_nd(x: TensorType, indices: TensorType, *, batch_dims: int = 0) -> TensorType:
    """The last axis of indices addresses the axes of x after the batch axes. ONNX GatherND-13."""
    _check_indices("GatherND", indices)
    width = _index_width("GatherND", x, indices, batch_dims)
    return TensorType(x.dtype, (*indices.shape[:-1], *x.shape[batch_dims + width :]))


def _index_width(where: str, x: TensorType, indices: TensorType, batch_dims: int) -> int:
    width = indices.shape[-1] if indices.rank else None
    if not isinstance(width, int) or batch_dims + width > x.rank or batch_dims >= indices.rank:
        raise TypeInferenceError(
            f"{where}: indices, got shape {shape_text(indices.shape)} for an input of rank {x.rank} with "
            f"{batch_dims} batch axes, expected a fixed last extent of at most {x.rank - batch_dims}; "
            "reshape the indices"
        )
    return width


@op("ScatterElements", SELECT)
def scatter_elements(
    x: TensorType,
    indices: TensorType,
    updates: TensorType,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> TensorType:
    """Y = x; y[indices[i, j, k], j, k] = updates[i, j, k] for axis 0, or combined by `reduction`.

    ONNX ScatterElements-18. Where indices repeat without a reduction, the last one wins.
    """
    _check_indices("ScatterElements", indices)
    _check_reduction("ScatterElements", reduction)
    check_axis("ScatterElements", axis, x.rank)
    if not indices.rank == updates.rank == x.rank or updates.dtype != x.dtype:
        raise TypeInferenceError(
            f"ScatterElements: got indices of rank {indices.rank} and updates {updates.dtype} of rank "
            f"{updates.rank}, expected rank {x.rank} and {x.dtype}; reshape or cast them"
        )
    return TensorType(x.dtype, x.shape)


@op("ScatterND", SELECT)
def scatter_nd(
    x: TensorType, indices: TensorType, updates: TensorType, *, reduction: str = "none"
) -> TensorType:
    """Y = x; y[indices[i]] = updates[i], or combined by `reduction`. ONNX ScatterND-18."""
    _check_indices("ScatterND", indices)
    _check_reduction("ScatterND", reduction)
    width = _index_width("ScatterND", x, indices, 0)
    if updates.rank != indices.rank - 1 + x.rank - width or updates.dtype != x.dtype:
        raise TypeInferenceError(
            f"ScatterND: updates, got {updates.dtype}{shape_text(updates.shape)}, expected {x.dtype} of rank "
            f"{indices.rank - 1 + x.rank - width}; reshape or cast them"
        )
    return TensorType(x.dtype, x.shape)


@op("OneHot", SELECT)
def one_hot(indices: TensorType, values: TensorType, *, depth: Dim, axis: int) -> TensorType:
    """A new axis of extent `depth` holding values[1] at the index and values[0] elsewhere. ONNX OneHot-28.

    `axis` is the position of the new axis in the output; indices outside [-depth, depth) select nothing.
    """
    check_axis("OneHot", axis, indices.rank + 1)
    return TensorType(values.dtype, (*indices.shape[:axis], depth, *indices.shape[axis:]))


@op("TopK", SELECT)
def top_k(
    x: TensorType, *, k: Dim, axis: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[TensorType, TensorType]:
    """The k largest (or smallest) elements along `axis` and their positions (i64). ONNX TopK-24.

    Ties go to the lower position. NaN counts as the largest value.
    """
    check_axis("TopK", axis, x.rank)
    extent = x.shape[axis]
    if isinstance(k, int) and isinstance(extent, int) and not 0 <= k <= extent:
        raise TypeInferenceError(
            f"TopK: k, got {k}, expected a value in [0, {extent}], the extent of axis {axis}; lower k"
        )
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return TensorType(x.dtype, shape), TensorType(I64, shape)


@op("NonZero", SELECT)
def non_zero(x: TensorType, *, symbols: tuple[str, ...]) -> TensorType:
    """Coordinates of the non-zero elements in row-major order, (rank, n) i64. ONNX NonZero-13.

    symbols[0] names n.
    """
    return TensorType(I64, (x.rank, _symbol("NonZero", symbols)))


@op("Compress", SELECT)
def compress(
    x: TensorType, condition: TensorType, *, axis: int | None = None, symbols: tuple[str, ...]
) -> TensorType:
    """The slices of x along `axis` (of flattened x without one) whose condition is true. ONNX Compress-28.

    symbols[0] names how many.
    """
    taken = _symbol("Compress", symbols)
    if axis is None:
        return TensorType(x.dtype, (taken,))
    check_axis("Compress", axis, x.rank)
    return TensorType(x.dtype, (*x.shape[:axis], taken, *x.shape[axis + 1 :]))


@op("Unique", SELECT)
def unique(
    x: TensorType,
    *,
    axis: int | None = None,
    sorted: bool = True,
    outputs: int = 4,
    symbols: tuple[str, ...],
) -> tuple[TensorType, ...]:
    """Distinct elements (or slices along `axis`), first positions, inverse, counts. ONNX Unique-28.

    symbols[0] names how many; unsorted keeps the order of first appearance.
    """
    found = _symbol("Unique", symbols)
    if axis is None:
        shape: tuple[Dim, ...] = (found,)
        extent = product(x.shape)
    else:
        check_axis("Unique", axis, x.rank)
        shape = (*x.shape[:axis], found, *x.shape[axis + 1 :])
        extent = x.shape[axis]
    positions = TensorType(I64, (found,))
    return (TensorType(x.dtype, shape), positions, TensorType(I64, (extent,)), positions)[:outputs]


@op("NonMaxSuppression", SELECT)
def non_max_suppression(
    boxes: TensorType,
    scores: TensorType,
    max_output_boxes_per_class: TensorType | None = None,
    iou_threshold: TensorType | None = None,
    score_threshold: TensorType | None = None,
    *,
    center_point_box: bool = False,
    symbols: tuple[str, ...],
) -> TensorType:
    """Greedy suppression per batch and class: rows (batch, class, box) i64. ONNX NonMaxSuppression-11.

    boxes (B, N, 4), scores (B, C, N); symbols[0] names the number of rows. Without a maximum nothing is selected.
    """
    if boxes.rank != 3 or scores.rank != 3 or boxes.dtype != F32 or scores.dtype != F32:
        raise TypeInferenceError(
            f"NonMaxSuppression: got boxes {boxes.dtype}{shape_text(boxes.shape)} and scores "
            f"{scores.dtype}{shape_text(scores.shape)}, expected f32 (B, N, 4) and (B, C, N); cast or reshape"
        )
    return TensorType(I64, (_symbol("NonMaxSuppression", symbols), 3))


@op("NonZeroTable", SELECT)
def non_zero_table(x: TensorType) -> tuple[TensorType, TensorType]:
    """NonZero with room for every element: (rank, size of x) i64, zeros behind the coordinates, and how many there are, i64 [1].

    Written by the compiler, so that only the number has to reach the host.
    """
    return TensorType(I64, (x.rank, x.size)), TensorType(I64, (1,))


@op("SuppressionTable", SELECT)
def suppression_table(
    boxes: TensorType,
    scores: TensorType,
    max_output_boxes_per_class: TensorType,
    iou_threshold: TensorType | None = None,
    score_threshold: TensorType | None = None,
    *,
    center_point_box: bool = False,
    limit: Dim,
) -> tuple[TensorType, TensorType]:
    """NonMaxSuppression with room for `limit` boxes per batch and class: rows i64 [B * C * limit, 3], zeros behind, their number i64 [1].

    At most `limit` boxes per class are selected, however many the tensor allows. Written by the compiler, so that only the number
    has to reach the host.
    """
    non_max_suppression(boxes, scores, symbols=("rows",))
    return TensorType(I64, (scores.shape[0] * scores.shape[1] * limit, 3)), TensorType(I64, (1,))
