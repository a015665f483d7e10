"""Movement ops: every output element is a copy of one input element (or a constant)."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dims import (
    Dim,
    Expr,
    Opaque,
    ceil_div,
    compare,
    maximum,
    minimum,
    product,
)
from dovetail.core.dtypes import I64, DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import MOVEMENT, broadcast, op

PAD_MODES = ("constant", "reflect", "edge", "wrap")


def shape_text(shape: Sequence[Dim]) -> str:
    """`shape` as error messages print it."""
    return "(" + ", ".join(str(d) for d in shape) + ")"


def check_axis(where: str, axis: int, rank: int) -> int:
    """Return `axis` if it is normalised for `rank`; raises TypeInferenceError otherwise."""
    if not 0 <= axis < rank:
        raise TypeInferenceError(
            f"{where}: axis, got {axis}, expected a value in [0, {rank}); "
            "normalise the axis against the rank of the input"
        )
    return axis


def difference(high: Dim, low: Dim) -> Dim:
    """`high - low`, pushed inside one outer min or max so that equal extents print equally.

    `N - min(1, N)` and `max(N - 1, 0)` are the same number; this gives the second for both.
    """
    if (inner := _outer_extreme(low)) is not None:
        flipped = maximum if inner.op == "min" else minimum
        return flipped(difference(high, inner.args[0]), difference(high, inner.args[1]))
    if (inner := _outer_extreme(high)) is not None:
        same = maximum if inner.op == "max" else minimum
        return same(difference(inner.args[0], low), difference(inner.args[1], low))
    return high - low


def _outer_extreme(d: Dim) -> Opaque | None:
    if isinstance(d, Expr) and len(d.terms) == 1:
        (monomial, factor), = d.terms
        if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], Opaque):
            atom = monomial[0]
            return atom if atom.op in ("min", "max") else None
    return None


@op("Reshape", MOVEMENT)
def reshape(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
    """The same elements in row-major order under another shape. ONNX Reshape-25 with 0 and -1 resolved."""
    before, after = product(x.shape), product(shape)
    if isinstance(before, int) and isinstance(after, int) and before != after:
        raise TypeInferenceError(
            f"Reshape: shape, got {shape_text(shape)} ({after} elements), expected {before} elements as in "
            f"the input {shape_text(x.shape)}; correct the target shape"
        )
    return TensorType(x.dtype, tuple(shape))


@op("Transpose", MOVEMENT)
def transpose(x: TensorType, *, perm: tuple[int, ...]) -> TensorType:
    """Output axis i is input axis perm[i]. ONNX Transpose-25."""
    if sorted(perm) != list(range(x.rank)):
        raise TypeInferenceError(
            f"Transpose: perm, got {tuple(perm)}, expected a permutation of the {x.rank} axes of "
            f"{shape_text(x.shape)}; name every axis once"
        )
    return TensorType(x.dtype, tuple(x.shape[axis] for axis in perm))


@op("Expand", MOVEMENT)
def expand(x: TensorType, *, shape: tuple[Dim, ...]) -> TensorType:
    """Broadcast x to `shape` (the final shape, rank at least that of x). ONNX Expand-13 after broadcasting."""
    if len(shape) < x.rank:
        raise TypeInferenceError(
            f"Expand: shape, got rank {len(shape)}, expected at least the input's {x.rank}; "
            "give the full broadcast shape"
        )
    broadcast(x.shape, shape)
    return TensorType(x.dtype, tuple(shape))


@op("Concat", MOVEMENT)
def concat(*xs: TensorType, axis: int) -> TensorType:
    """Inputs one after another along `axis` (normalised). ONNX Concat-13."""
    if not xs:
        raise TypeInferenceError("Concat: inputs, got none, expected at least one; connect one")
    first = xs[0]
    check_axis("Concat", axis, first.rank)
    shape = list(first.shape)
    for x in xs[1:]:
        if x.rank != first.rank or x.dtype != first.dtype:
            raise TypeInferenceError(
                f"Concat: inputs, got {x.dtype}{shape_text(x.shape)} beside "
                f"{first.dtype}{shape_text(first.shape)}, expected equal dtypes and ranks; "
                "cast or reshape one of them"
            )
        for i in range(first.rank):
            if i == axis:
                shape[i] = shape[i] + x.shape[i]
            elif isinstance(x.shape[i], int):
                if isinstance(shape[i], int) and shape[i] != x.shape[i]:
                    raise TypeInferenceError(
                        f"Concat: axis {i}, got sizes {shape[i]} and {x.shape[i]}, expected equal sizes "
                        f"outside axis {axis}; slice, pad or reshape one of them"
                    )
                shape[i] = x.shape[i]
    return TensorType(first.dtype, tuple(shape))


@op("Slice", MOVEMENT)
def slice_(
    x: TensorType,
    *,
    starts: tuple[Dim, ...],
    ends: tuple[Dim, ...],
    axes: tuple[int, ...],
    steps: tuple[int, ...],
) -> TensorType:
    """x[start:end:step] along each of `axes`. ONNX Slice-13, normalised.

    Starts and ends are clipped to the extent: 0 <= start <= D and 0 <= end <= D for positive steps;
    -1 <= start < D and -1 <= end < D for negative steps, where end -1 means "before element 0".
    The output extent is max(0, ceil((end - start) / step)).
    """
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise TypeInferenceError(
            f"Slice: starts, ends, axes and steps, got {len(starts)}, {len(ends)}, {len(axes)} and "
            f"{len(steps)} values, expected equal counts; give one of each per sliced axis"
        )
    shape = list(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        check_axis("Slice", axis, x.rank)
        if step == 0:
            raise TypeInferenceError("Slice: steps, got 0, expected a non-zero step; use 1")
        shape[axis] = slice_extent(start, end, step)
    return TensorType(x.dtype, tuple(shape))


def slice_extent(start: Dim, end: Dim, step: int) -> Dim:
    """Number of elements that a normalised slice takes."""
    span = difference(end, start) if step > 0 else difference(start, end)
    return maximum(span if abs(step) == 1 else ceil_div(span, abs(step)), 0)


@op("Pad", MOVEMENT)
def pad(
    x: TensorType,
    *,
    pads: tuple[Dim, ...],
    mode: str = "constant",
    value: int | float | bool | str = 0,
) -> TensorType:
    """Extend (or crop, where negative) every axis at both ends. ONNX Pad-25.

    `pads` holds the low ends of all axes, then the high ends, as in ONNX. Cropping comes first:
    reflect, edge and wrap see the cropped array.
    """
    if len(pads) != 2 * x.rank:
        raise TypeInferenceError(
            f"Pad: pads, got {len(pads)} values, expected {2 * x.rank} (low ends of all axes, then high "
            f"ends) for {shape_text(x.shape)}; give both ends of every axis"
        )
    if mode not in PAD_MODES:
        raise TypeInferenceError(
            f"Pad: mode, got {mode!r}, expected one of {', '.join(PAD_MODES)}; choose one of these"
        )
    shape = []
    for axis, extent in enumerate(x.shape):
        size = extent + pads[axis] + pads[axis + x.rank]
        if isinstance(size, int) and size < 0:
            raise TypeInferenceError(
                f"Pad: axis {axis}, got size {size} after padding {extent} by {pads[axis]} and "
                f"{pads[axis + x.rank]}, expected a size of at least 0; crop less"
            )
        shape.append(size)
    return TensorType(x.dtype, tuple(shape))


@op("Tile", MOVEMENT)
def tile(x: TensorType, *, repeats: tuple[Dim, ...]) -> TensorType:
    """X repeated repeats[i] times along axis i. ONNX Tile-13."""
    if len(repeats) != x.rank:
        raise TypeInferenceError(
            f"Tile: repeats, got {len(repeats)} values, expected {x.rank} for {shape_text(x.shape)}; "
            "give one per axis"
        )
    return TensorType(x.dtype, tuple(d * r for d, r in zip(x.shape, repeats, strict=True)))


@op("Trilu", MOVEMENT)
def trilu(x: TensorType, *, upper: bool = True, k: Dim = 0) -> TensorType:
    """Keep the elements with column - row >= k (upper) or <= k (lower) of the last two axes; zero elsewhere.

    ONNX Trilu-14 with the diagonal as an attribute; it may be negative.
    """
    if x.rank < 2:
        raise TypeInferenceError(
            f"Trilu: input, got rank {x.rank}, expected at least 2; reshape it to a matrix"
        )
    return TensorType(x.dtype, x.shape)


@op("DimTensor", MOVEMENT)
def dim_tensor(*, values: tuple[Dim, ...]) -> TensorType:
    """The dims `values` as an int64 vector."""
    return TensorType(I64, (len(values),))


@op("Iota", MOVEMENT)
def iota(*, size: Dim, dtype: DType = I64) -> TensorType:
    """0, 1, … size - 1."""
    return TensorType(dtype, (maximum(size, 0) if isinstance(size, int) else size,))


@op("Full", MOVEMENT)
def full(*, shape: tuple[Dim, ...], value: int | float | bool | str = 0, dtype: DType) -> TensorType:
    """An array of one value. ONNX ConstantOfShape-25."""
    return TensorType(dtype, tuple(shape))


@op("ReverseSequence", MOVEMENT)
def reverse_sequence(
    x: TensorType, lengths: TensorType, *, batch_axis: int = 1, time_axis: int = 0
) -> TensorType:
    """Reverse the first lengths[b] time steps of every batch entry b. ONNX ReverseSequence-28."""
    check_axis("ReverseSequence", batch_axis, x.rank)
    check_axis("ReverseSequence", time_axis, x.rank)
    if batch_axis == time_axis or lengths.rank != 1:
        raise TypeInferenceError(
            f"ReverseSequence: got batch_axis {batch_axis}, time_axis {time_axis} and lengths of rank "
            f"{lengths.rank}, expected two different axes and a vector; correct the attributes"
        )
    return TensorType(x.dtype, x.shape)


@op("TensorScatter", MOVEMENT)
def tensor_scatter(
    cache: TensorType,
    update: TensorType,
    write_indices: TensorType | None = None,
    *,
    axis: int,
    mode: str = "linear",
) -> TensorType:
    """The cache with `update` written at write_indices[b] along `axis` of batch entry b. ONNX TensorScatter-24.

    mode linear keeps positions inside the cache, circular wraps them around.
    """
    check_axis("TensorScatter", axis, cache.rank)
    if axis == 0 or update.rank != cache.rank or mode not in ("linear", "circular"):
        raise TypeInferenceError(
            f"TensorScatter: got axis {axis}, update rank {update.rank}, mode {mode!r}, expected an axis "
            f"other than the batch axis 0, rank {cache.rank}, mode linear or circular; correct them"
        )
    longer = isinstance(update.shape[axis], int) and compare(update.shape[axis], cache.shape[axis]) == 1
    if update.dtype != cache.dtype or longer:
        raise TypeInferenceError(
            f"TensorScatter: update, got {update.dtype}{shape_text(update.shape)}, expected "
            f"{cache.dtype} no longer than {shape_text(cache.shape)} along axis {axis}; cast or slice it"
        )
    return TensorType(cache.dtype, cache.shape)
