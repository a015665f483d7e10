"""NumPy meaning of the packing ops: how contractions want their constant operand laid out."""

from __future__ import annotations

import math

import numpy as np

from dovetail.reference.registry import reference
from dovetail.reference.widen import Array


def pack_panels(b: Array, width: int, lanes: int) -> Array:
    """Pack [..., K, N] into panels of `width` columns, each [K, width], one after the other.

    The last panel is only as wide as needed, rounded up to `lanes`; missing columns are zero.
    Returns [..., K * packed columns].
    """
    *batch, depth, columns = b.shape
    packed = columns // width * width + math.ceil(columns % width / lanes) * lanes
    out = np.zeros((*batch, depth * packed), b.dtype)
    for start in range(0, columns, width):
        stop = min(columns, start + width)
        wide = min(width, packed - start)
        panel = out[..., start * depth : (start + wide) * depth].reshape(*batch, depth, wide)
        panel[..., : stop - start] = b[..., start:stop]
        out[..., start * depth : (start + wide) * depth] = panel.reshape(*batch, depth * wide)
    return out


@reference("PackGemmB")
def pack_gemm_b(b: Array, *, width: int, lanes: int, transposed: bool = False) -> Array:
    """Pack the right operand [..., K, N] of a matrix product ([..., N, K] if `transposed`)."""
    return pack_panels(np.swapaxes(b, -1, -2) if transposed else b, width, lanes)


@reference("PackConv")
def pack_conv(w: Array, *, group: int, width: int, lanes: int) -> Array:
    """Pack [M, C/group, k...] for channels-last direct convolution: [group, panels of (k..., C/group, width)]."""
    outer, inner, *kernel = w.shape
    blocks = w.reshape(group, outer // group, inner, math.prod(kernel))
    return pack_panels(blocks.transpose(0, 3, 2, 1).reshape(group, -1, outer // group), width, lanes)


@reference("PackDepthwise")
def pack_depthwise(w: Array, *, lanes: int) -> Array:
    """Pack [C, 1, k...] as [taps, C rounded up to lanes], zero padded."""
    channels = w.shape[0]
    out = np.zeros((math.prod(w.shape[2:]), math.ceil(channels / lanes) * lanes), w.dtype)
    out[:, :channels] = w.reshape(channels, -1).T
    return out


# Lavin's F(2x2, 3x3) with interpolation points 0, 1, -1, infinity; F(4x4, 3x3) has 2 and -2, too.
WINOGRAD_G = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}
"""Filter transforms by the extent of the output tile."""


@reference("PackWinograd")
def pack_winograd(w: Array, *, width: int, lanes: int, tile: int = 4) -> Array:
    """Transform [M, C, 3, 3] to the Winograd domain and pack: [(tile + 2)^2, panels of (C, width)].

    Computed in float64 and rounded once.
    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015).
    """
    g = WINOGRAD_G[tile]
    u = np.einsum("ai,mcij,bj->abcm", g, w.astype(np.float64), g)
    return pack_panels(u.reshape((tile + 2) ** 2, w.shape[1], w.shape[0]), width, lanes).astype(w.dtype)


@reference("PackRecurrent")
def pack_recurrent(w: Array, *, phases: tuple[int, ...], vectors: int, lanes: int) -> Array:
    """Pack recurrent weights [D, gates * H, K] into panels of units with all gates of a phase side by side."""
    directions, rows, depth = w.shape
    gates, first, parts = w.reshape(directions, sum(phases), rows // sum(phases), depth), 0, []
    for count in phases:
        units = vectors // count * lanes
        panels = math.ceil(gates.shape[2] / units)
        padded = np.zeros((directions, count, panels * units, depth), w.dtype)
        padded[:, :, : gates.shape[2]] = gates[:, first : first + count]
        panel = padded.reshape(directions, count, panels, units, depth).transpose(0, 2, 4, 1, 3)
        parts.append(panel.reshape(directions, -1))
        first += count
    return np.concatenate(parts, axis=1)
