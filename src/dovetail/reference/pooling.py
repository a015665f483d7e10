"""NumPy meaning of the pooling ops over explicit pads (low and high, ceil mode already resolved)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dovetail.core.dtypes import dtype
from dovetail.reference.contraction import pad_spatial, windows
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, narrow, widen


def _lowest(x: Array) -> float | int:
    return -math.inf if dtype(x.dtype).is_float else int(np.iinfo(x.dtype).min)


def _flat_windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """Windows with all taps on one trailing axis: [lead..., out..., taps]."""
    view = windows(x, kernel, strides, dilations)
    return view.reshape(*view.shape[: -len(kernel)], math.prod(kernel))


@reference("MaxPool")
def max_pool(
    x: Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    storage_order: int = 0,
    outputs: int = 1,
) -> Array | tuple[Array, Array]:
    """Maximum of every window; with `outputs=2` also its int64 index into the flattened input.

    Padding never wins. `storage_order=1` numbers the spatial axes column-major. Source: ONNX MaxPool-22.
    """
    lowest = _lowest(x)
    if outputs == 1:
        y = windows(pad_spatial(widen(x), pads, lowest), kernel, strides, dilations)
        return narrow(y.max(axis=tuple(range(-len(kernel), 0))), x)
    space = x.shape[2:]
    taps = _flat_windows(pad_spatial(widen(x), pads, lowest), kernel, strides, dilations)
    places: Array = np.arange(math.prod(space), dtype=np.int64)
    places = places.reshape(space[::-1]).T if storage_order else places.reshape(space)
    numbered = _flat_windows(pad_spatial(places, pads, -1), kernel, strides, dilations)
    # A pad may tie with a true minimum; it must not be chosen, so real elements come first.
    best = np.where(numbered >= 0, taps == taps.max(axis=-1, keepdims=True), False).argmax(axis=-1)
    values = np.take_along_axis(taps, best[..., None], axis=-1)[..., 0]
    local = np.take_along_axis(
        np.broadcast_to(numbered, taps.shape), best[..., None], axis=-1
    )[..., 0]
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int64) * math.prod(space)
    return narrow(values, x), local + planes.reshape(*x.shape[:2], *[1] * len(space))


def pool_counts(
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_extra: Sequence[int] | None,
) -> Array:
    """How many taps of each window count, as float32 [out...].

    `ceil_extra` None counts only input elements; otherwise padding counts too, except the last
    `ceil_extra[i]` positions of axis i, which only ceil mode added.
    """
    rank, total = len(kernel), np.ones((), np.float32)
    for i in range(rank):
        line = np.zeros(space[i] + pads[i] + pads[rank + i], np.float32)
        if ceil_extra is None:
            line[max(pads[i], 0) : max(pads[i], 0) + space[i]] = 1
        else:
            line[: len(line) - ceil_extra[i]] = 1
        along = windows(line, kernel[i : i + 1], strides[i : i + 1], dilations[i : i + 1]).sum(-1)
        total = total[..., None] * along
    return total


@reference("AveragePool")
def average_pool(
    x: Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    count_include_pad: bool = False,
    ceil_extra: Sequence[int] = (),
) -> Array:
    """Mean of every window, over input elements only or (`count_include_pad`) over padding too.

    `ceil_extra` is the part of the high pads that ceil mode added: it never counts. Source: ONNX AveragePool-22.
    """
    rank = len(kernel)
    view = windows(pad_spatial(widen(x), pads), kernel, strides, dilations)
    total = view.sum(axis=tuple(range(-rank, 0)), dtype=np.result_type(view.dtype, np.float32))
    extra = tuple(ceil_extra) or (0,) * rank
    counts = pool_counts(
        x.shape[2:], kernel, strides, pads, dilations, extra if count_include_pad else None
    )
    return narrow(total / counts.astype(total.dtype), x)


@reference("LpPool")
def lp_pool(
    x: Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    p: int = 2,
) -> Array:
    """The p-norm of every window; padding is zero. Source: ONNX LpPool-22."""
    powers = np.abs(widen(x)) ** p
    view = windows(pad_spatial(powers, pads), kernel, strides, dilations)
    return narrow(view.sum(axis=tuple(range(-len(kernel), 0))) ** (1.0 / p), x)
