"""NumPy meaning of the signal ops: DFT, STFT, mel filter bank."""

from __future__ import annotations

import numpy as np

from dovetail.core.dtypes import F32, DType
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, widen


def _complex(x: Array) -> Array:
    """[..., 1] real or [..., 2] (real, imaginary) without the last axis, in the precision of x."""
    wide = widen(x)
    if x.shape[-1] == 1:
        return wide[..., 0]
    pairs = np.ascontiguousarray(wide)
    return pairs.view(np.complex128 if wide.dtype == np.float64 else np.complex64)[..., 0]


def _pairs(z: Array, like: Array) -> Array:
    """Complex numbers as (real, imaginary) pairs on a new last axis."""
    return np.stack([z.real, z.imag], axis=-1).astype(like.dtype)


@reference("DFT")
def dft(x: Array, *, length: int, axis: int, inverse: bool = False, onesided: bool = False) -> Array:
    """Discrete Fourier transform along `axis`, cut or zero-padded to `length`. ONNX DFT-20.

    x is [..., 1] real or [..., 2] complex. `onesided` keeps length // 2 + 1 frequencies, or with
    `inverse` reads that many and gives a real signal [..., 1].
    """
    signal = _complex(x)
    if inverse and onesided:
        return np.fft.irfft(signal, n=length, axis=axis)[..., None].astype(x.dtype)
    transform = np.fft.ifft if inverse else np.fft.fft
    result = transform(signal, n=length, axis=axis)
    if onesided:
        result = np.take(result, range(length // 2 + 1), axis=axis)
    return _pairs(result, x)


@reference("STFT")
def stft(
    signal: Array,
    window: Array | None = None,
    *,
    frame_step: int,
    frame_length: int,
    onesided: bool = True,
) -> Array:
    """DFT of windowed frames: [B, L, 1 or 2] -> [B, frames, frequencies, 2]. ONNX STFT-17."""
    values = _complex(signal)
    frames = max((values.shape[1] - frame_length) // frame_step + 1, 0)
    index = np.arange(frames)[:, None] * frame_step + np.arange(frame_length)[None, :]
    pieces = values[:, index]
    if window is not None:
        pieces = pieces * widen(window)
    result = np.fft.fft(pieces, axis=-1)
    if onesided:
        result = result[..., : frame_length // 2 + 1]
    return _pairs(result, signal)


@reference("MelWeightMatrix")
def mel_weight_matrix(
    sample_rate: Array,
    lower_edge: Array,
    upper_edge: Array,
    *,
    bins: int,
    dft_length: int,
    dtype: DType = F32,
) -> Array:
    """Triangular mel filters as a matrix [dft_length // 2 + 1, bins]. ONNX MelWeightMatrix-17."""
    spectrum = dft_length // 2 + 1
    mel = 2595 * np.log10(1 + np.array([float(lower_edge), float(upper_edge)]) / 700)
    points = np.arange(bins + 2) * ((mel[1] - mel[0]) / (bins + 2)) + mel[0]
    hertz = 700 * (10 ** (points / 2595) - 1)
    edges = ((dft_length + 1) * hertz // float(sample_rate)).astype(np.int64)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    k = np.arange(spectrum)[:, None]
    with np.errstate(all="ignore"):
        rising = (k - low) / (center - low)
        falling = (high - k) / (high - center)
    result = np.where((k >= low) & (k <= center) & (center > low), rising, 0)
    result = np.where((k >= center) & (k < high) & (high > center), falling, result)
    result = np.where((low == center) & (k == center), 1.0, result)
    return result.astype(dtype.numpy)


@reference("DFTAt")
def dft_at(
    x: Array,
    axis: Array,
    *,
    length: int | None = None,
    inverse: bool = False,
    onesided: bool = False,
) -> Array:
    """DFT along an axis that is data; the length is by default the extent there."""
    chosen = int(axis.reshape(())) % x.ndim
    if length is None:
        extent = x.shape[chosen]
        length = 2 * (extent - 1) if inverse and onesided else extent
    return dft(x, length=length, axis=chosen, inverse=inverse, onesided=onesided)
