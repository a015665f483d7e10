"""NumPy meaning of MatMul, Conv and ConvTranspose, through BLAS rather than element loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, narrow, widen

_COLUMN_ELEMENTS = 1 << 25
"""Largest im2col buffer of one step; a larger batch is taken in slices, a larger sample as a whole."""


@reference("MatMul")
def matmul(a: Array, b: Array) -> Array:
    """Matrix product with NumPy's broadcasting and rank-1 rules; integers wrap in their own width.

    Source: ONNX MatMul-13.
    """
    return narrow(np.matmul(widen(a), widen(b)), a)


def pad_spatial(x: Array, pads: Sequence[int], value: float | int = 0) -> Array:
    """Pad the trailing axes of `x` by `pads` = lows then highs; negative entries crop."""
    rank = len(pads) // 2
    lead = [(0, 0)] * (x.ndim - rank)
    low, high = pads[:rank], pads[rank:]
    if any(p > 0 for p in pads):
        widths = [(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True)]
        x = np.pad(x, lead + widths, constant_values=value)
    if any(p < 0 for p in pads):
        cut: tuple[Any, ...] = tuple(
            slice(max(-a, 0), n - max(-b, 0)) for a, b, n in zip(low, high, x.shape[-rank:], strict=True)
        )
        x = x[(..., *cut)]
    return x


def windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """A view [lead..., out..., kernel...] of the windows over the trailing axes of `x`."""
    rank = len(kernel)
    axes = tuple(range(x.ndim - rank, x.ndim))
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    if any(x.shape[a] < s for a, s in zip(axes, spans, strict=True)):
        outs = tuple(max((x.shape[a] - s) // t + 1, 0) for a, s, t in zip(axes, spans, strides, strict=True))
        return np.empty((*x.shape[: x.ndim - rank], *outs, *kernel), x.dtype)
    view = sliding_window_view(x, spans, axis=axes)
    steps: tuple[Any, ...] = tuple(slice(None, None, s) for s in (*strides, *dilations))
    return view[(..., *steps)]


def convolve(
    x: Array,
    w: Array,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """Grouped convolution [N, C, in...] by [M, C/group, k...] in the arrays' own dtype, without bias."""
    rank, kernel = x.ndim - 2, w.shape[2:]
    batch, channels = x.shape[:2]
    if group == channels == w.shape[0]:
        return _depthwise(windows(pad_spatial(x, pads), kernel, strides, dilations), w)
    per_group, taps = channels // group, math.prod(kernel)
    weights = w.reshape(group, w.shape[0] // group, per_group * taps)
    view = windows(pad_spatial(x, pads), kernel, strides, dilations)
    out = view.shape[2 : 2 + rank]
    result = np.empty((batch, w.shape[0], math.prod(out)), np.result_type(x, w))
    step = max(1, _COLUMN_ELEMENTS // max(1, channels * taps * math.prod(out)))
    order = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    for start in range(0, batch, step):
        columns = view[start : start + step].transpose(order)
        columns = columns.reshape(len(columns), group, per_group * taps, math.prod(out))
        product = np.matmul(weights, columns)
        result[start : start + step] = product.reshape(len(product), w.shape[0], math.prod(out))
    return result.reshape(batch, w.shape[0], *out)


def _depthwise(view: Array, w: Array) -> Array:
    """One kernel per channel over windows [N, C, out..., k...]: a sum over taps, each over the whole image."""
    rank = w.ndim - 2
    result = np.zeros(view.shape[: 2 + rank], np.result_type(view, w))
    for tap in np.ndindex(*w.shape[2:]):
        factors = w[(slice(None), 0, *tap)].reshape(-1, *[1] * rank)
        result += view[(..., *tap)] * factors
    return result


@reference("Conv")
def conv(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int = 1,
) -> Array:
    """Convolution over any number of spatial axes: [N, C, in...] * [M, C/group, k...] -> [N, M, out...].

    `pads` holds all lows, then all highs. Source: ONNX Conv-22.
    """
    y = convolve(widen(x), widen(w), strides, pads, dilations, group)
    if bias is not None:
        y += widen(bias).reshape(-1, *[1] * (x.ndim - 2))
    return narrow(y, x)


@reference("ConvTranspose")
def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int = 1,
    output_padding: Sequence[int],
) -> Array:
    """Transposed convolution: [N, C, in...] * [C, M/group, k...] -> [N, M, out...].

    out = (in - 1) * stride + (k - 1) * dilation + 1 + output_padding - low - high.
    Source: ONNX ConvTranspose-22.
    """
    rank, kernel = x.ndim - 2, w.shape[2:]
    batch, channels, space = x.shape[0], x.shape[1], x.shape[2:]
    outer = w.shape[1] * group
    weights = widen(w).reshape(group, channels // group, outer // group * math.prod(kernel)).swapaxes(1, 2)
    columns = np.matmul(weights, widen(x).reshape(batch, group, channels // group, math.prod(space)))
    columns = columns.reshape(batch, outer, *kernel, *space)
    full = [
        (n - 1) * s + (k - 1) * d + 1 + extra if n else 0
        for n, s, k, d, extra in zip(space, strides, kernel, dilations, output_padding, strict=True)
    ]
    y = np.zeros((batch, outer, *full), columns.dtype)
    for tap in np.ndindex(*kernel):
        where = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) if n else slice(0, 0)
            for t, d, n, s in zip(tap, dilations, space, strides, strict=True)
        )
        y[(..., *where)] += columns[(slice(None), slice(None), *tap)]
    y = pad_spatial(y, [-p for p in pads])
    if bias is not None:
        y = y + widen(bias).reshape(-1, *[1] * rank)
    return narrow(np.ascontiguousarray(y), x)
