"""Normalisations as single ops: statistics over rows, groups or channels, then scale and bias."""

from __future__ import annotations

from dovetail.core.dtypes import F32, F64
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.contraction import same_dim, same_dtype
from dovetail.ops.registry import ROW, broadcast, op


def _check_axis(where: str, x: TensorType, axis: int, *parts: TensorType | None) -> None:
    if not 0 <= axis < max(x.rank, 1):
        raise TypeInferenceError(f"{where}: axis, got {axis}, expected 0 to {x.rank - 1}; normalise it")
    for part in parts:
        if part is not None:
            same_dtype(where, x, part)
            if part.rank > x.rank:
                raise TypeInferenceError(
                    f"{where}: scale or bias, got {part} for {x}, expected no more axes than x; reshape it"
                )
            broadcast(x.shape, part.shape)


@op("LayerNormalization", ROW)
def layer_normalization(
    x: TensorType,
    scale: TensorType | None = None,
    bias: TensorType | None = None,
    *,
    axis: int,
    epsilon: float = 1e-5,
    outputs: int = 1,
) -> TensorType | tuple[TensorType, ...]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the axes from `axis` on. ONNX LayerNormalization-17.

    `outputs` 2 and 3 add the mean and 1/std, with extents of one there, in fp32 (fp64 for fp64).
    """
    _check_axis("LayerNormalization", x, axis, scale, bias)
    statistic = TensorType(F64 if x.dtype == F64 else F32, (*x.shape[:axis], *[1] * (x.rank - axis)))
    y = x.with_shape(x.shape)
    return y if outputs == 1 else (y, statistic, statistic)[:outputs]


@op("RMSNormalization", ROW)
def rms_normalization(
    x: TensorType, scale: TensorType | None = None, *, axis: int, epsilon: float = 1e-5
) -> TensorType:
    """x / sqrt(mean(x * x) + epsilon) * scale over the axes from `axis` on. ONNX RMSNormalization-23."""
    _check_axis("RMSNormalization", x, axis, scale)
    return x.with_shape(x.shape)


def _check_channels(where: str, x: TensorType, scale: TensorType, bias: TensorType) -> None:
    same_dtype(where, x, scale, bias)
    if x.rank < 2 or scale.rank != 1 or bias.rank != 1:
        raise TypeInferenceError(
            f"{where}: got x {x}, scale {scale}, bias {bias}, expected [N, C, ...] with [C] and [C]; reshape them"
        )
    same_dim(where, "scale and channels", scale.shape[0], x.shape[1])
    same_dim(where, "bias and channels", bias.shape[0], x.shape[1])


@op("InstanceNormalization", ROW)
def instance_normalization(
    x: TensorType, scale: TensorType, bias: TensorType, *, epsilon: float = 1e-5
) -> TensorType:
    """Normalise each channel of each sample of [N, C, ...] over space, scale and bias [C]. ONNX InstanceNormalization-22."""
    _check_channels("InstanceNormalization", x, scale, bias)
    return x.with_shape(x.shape)


@op("GroupNormalization", ROW)
def group_normalization(
    x: TensorType, scale: TensorType, bias: TensorType, *, num_groups: int, epsilon: float = 1e-5
) -> TensorType:
    """Normalise groups of channels of [N, C, ...] over their channels and space, scale and bias [C]. ONNX GroupNormalization-21."""
    _check_channels("GroupNormalization", x, scale, bias)
    if isinstance(x.shape[1], int) and (num_groups < 1 or x.shape[1] % num_groups):
        raise TypeInferenceError(
            f"GroupNormalization: num_groups, got {num_groups}, expected a divisor of {x.shape[1]} channels; fix it"
        )
    return x.with_shape(x.shape)
