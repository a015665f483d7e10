"""OpSpecs of quantisation."""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.core.dtypes import U8, DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import POINTWISE, op


def _check_scale(
    name: str, x: TensorType, scale: TensorType, zero: TensorType | None, axis: int, block_size: int
) -> None:
    one: tuple[tuple[Dim, ...], ...] = ((), (1,))
    if block_size:
        fits = scale.rank == x.rank and 0 <= axis < x.rank
    else:
        fits = scale.shape in one or (scale.rank == 1 and 0 <= axis < x.rank)
    if not fits:
        raise TypeInferenceError(
            f"{name}: got a scale of shape {scale.shape} for data of shape {x.shape}, axis {axis}, "
            f"block_size {block_size}, expected a scalar, a vector along the axis, or with "
            "block_size the rank of the data; reshape the scale"
        )
    if zero is not None and zero.rank != scale.rank and zero.shape not in one:
        raise TypeInferenceError(
            f"{name}: got a zero point of shape {zero.shape}, expected the scale's {scale.shape}; "
            "reshape it"
        )


@op("QuantizeLinear", POINTWISE)
def quantize_linear(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    saturate: bool = True,
    output_dtype: DType | None = None,
    precision: DType | None = None,
) -> TensorType:
    """saturate(round_half_even(x / scale) + zero_point). ONNX QuantizeLinear-28.

    The scale is a scalar, a vector along `axis`, or with `block_size` one element per block.
    """
    _check_scale("QuantizeLinear", x, scale, zero_point, axis, block_size)
    to = zero_point.dtype if zero_point is not None else output_dtype or U8
    if output_dtype is not None and to != output_dtype:
        raise TypeInferenceError(
            f"QuantizeLinear: got zero point {to} and output_dtype {output_dtype}, expected them "
            "equal; drop output_dtype"
        )
    return TensorType(to, x.shape)


@op("DequantizeLinear", POINTWISE)
def dequantize_linear(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
) -> TensorType:
    """(x - zero_point) * scale in `output_dtype`, by default the scale's. ONNX DequantizeLinear-28."""
    _check_scale("DequantizeLinear", x, scale, zero_point, axis, block_size)
    return TensorType(output_dtype or scale.dtype, x.shape)
