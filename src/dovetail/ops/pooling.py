"""Pooling over sliding windows with explicit low and high pads."""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.core.dtypes import I64
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.contraction import check_fits, check_window, window_extent
from dovetail.ops.registry import WINDOW, op

Dims = tuple[Dim, ...]
Ints = tuple[int, ...]


def _pooled(where: str, x: TensorType, kernel: Ints, strides: Ints, pads: Dims, dilations: Ints) -> TensorType:
    rank = x.rank - 2
    if rank < 1:
        raise TypeInferenceError(f"{where}: got {x}, expected rank 3 or more; add spatial axes")
    check_window(where, rank, kernel=kernel, strides=strides, pads=pads, dilations=dilations)
    out = tuple(
        window_extent(x.shape[2 + i], kernel[i], strides[i], pads[i], pads[rank + i], dilations[i])
        for i in range(rank)
    )
    check_fits(where, out)
    return x.with_shape((*x.shape[:2], *out))


@op("MaxPool", WINDOW)
def max_pool(
    x: TensorType,
    *,
    kernel: Ints,
    strides: Ints,
    pads: Dims,
    dilations: Ints,
    storage_order: int = 0,
    outputs: int = 1,
) -> TensorType | tuple[TensorType, TensorType]:
    """Maximum of every window of [N, C, in...]; padding never wins; pads are lows, then highs. ONNX MaxPool-22.

    With `outputs=2` also the int64 index of the winner in the flattened input (`storage_order=1`: the
    spatial axes are numbered column-major).
    """
    y = _pooled("MaxPool", x, kernel, strides, pads, dilations)
    return y if outputs == 1 else (y, y.with_dtype(I64))


@op("AveragePool", WINDOW)
def average_pool(
    x: TensorType,
    *,
    kernel: Ints,
    strides: Ints,
    pads: Dims,
    dilations: Ints,
    count_include_pad: bool = False,
    ceil_extra: Dims = (),
) -> TensorType:
    """Mean of every window of [N, C, in...], over input elements or also (`count_include_pad`) padding. ONNX AveragePool-22.

    `ceil_extra` (empty = zeros) is the part of each high pad that only ceil mode added: it never counts.
    """
    if ceil_extra:
        check_window("AveragePool", x.rank - 2, ceil_extra=ceil_extra)
    return _pooled("AveragePool", x, kernel, strides, pads, dilations)


@op("LpPool", WINDOW)
def lp_pool(
    x: TensorType, *, kernel: Ints, strides: Ints, pads: Dims, dilations: Ints, p: int = 2
) -> TensorType:
    """The p-norm of every window of [N, C, in...]; padding is zero. ONNX LpPool-22."""
    return _pooled("LpPool", x, kernel, strides, pads, dilations)


@op("LRN", WINDOW)
def lrn(
    x: TensorType, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> TensorType:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta. ONNX LRN-13."""
    if x.rank < 2:
        raise TypeInferenceError(f"LRN: got {x}, expected rank 2 or more; add a channel axis")
    return x
