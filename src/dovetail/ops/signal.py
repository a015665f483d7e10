"""OpSpecs of the signal ops: DFT, STFT, mel filter bank."""

from __future__ import annotations

from dovetail.core.dims import Dim, maximum, sym
from dovetail.core.dtypes import F32, DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.arithmetic import FLOAT, check_dtype
from dovetail.ops.registry import HOST, op


@op("DFT", HOST)
def dft(
    x: TensorType, *, length: Dim, axis: int, inverse: bool = False, onesided: bool = False
) -> TensorType:
    """Discrete Fourier transform along `axis`, cut or zero-padded to `length`. ONNX DFT-20.

    x is [..., 1] real or [..., 2] complex. `onesided` keeps length // 2 + 1 frequencies, or with
    `inverse` reads that many and gives a real signal [..., 1].
    """
    check_dtype("DFT", x.dtype, FLOAT)
    if not 0 <= axis < x.rank - 1:
        raise TypeInferenceError(
            f"DFT: got axis {axis} for rank {x.rank}, expected 0 <= axis < {x.rank - 1} (the last "
            "axis holds real and imaginary parts); normalise it at import"
        )
    shape = list(x.shape)
    shape[axis] = length // 2 + 1 if onesided and not inverse else length
    shape[-1] = 1 if onesided and inverse else 2
    return TensorType(x.dtype, tuple(shape))


@op("DFTAt", HOST)
def dft_at(
    x: TensorType,
    axis: TensorType,
    *,
    length: Dim | None = None,
    inverse: bool = False,
    onesided: bool = False,
    symbols: tuple[str, ...],
) -> TensorType:
    """DFT along an axis that is data; `symbols` names all extents but the last. ONNX DFT-20."""
    check_dtype("DFTAt", x.dtype, FLOAT)
    last = 1 if onesided and inverse else 2
    return TensorType(x.dtype, (*(sym(name) for name in symbols), last))


@op("STFT", HOST)
def stft(
    signal: TensorType,
    window: TensorType | None = None,
    *,
    frame_step: Dim,
    frame_length: Dim,
    onesided: bool = True,
) -> TensorType:
    """DFT of windowed frames: [B, L, 1 or 2] -> [B, frames, frequencies, 2]. ONNX STFT-17."""
    check_dtype("STFT", signal.dtype, FLOAT)
    if signal.rank != 3:
        raise TypeInferenceError(
            f"STFT: got a signal of rank {signal.rank}, expected [batch, length, 1 or 2]; reshape it"
        )
    frames = maximum((signal.shape[1] - frame_length) // frame_step + 1, 0)
    frequencies = frame_length // 2 + 1 if onesided else frame_length
    return TensorType(signal.dtype, (signal.shape[0], frames, frequencies, 2))


@op("MelWeightMatrix", HOST)
def mel_weight_matrix(
    sample_rate: TensorType,
    lower_edge: TensorType,
    upper_edge: TensorType,
    *,
    bins: Dim,
    dft_length: Dim,
    dtype: DType = F32,
) -> TensorType:
    """Triangular mel filters as a matrix [dft_length // 2 + 1, bins]. ONNX MelWeightMatrix-17."""
    return TensorType(dtype, (dft_length // 2 + 1, bins))
