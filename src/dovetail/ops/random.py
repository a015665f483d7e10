"""OpSpecs of the random generators; impure, so never folded, merged or moved out of a run."""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32, I32, DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import HOST, op


@op("RandomUniform", HOST, impure=True)
def random_uniform(
    *,
    shape: tuple[Dim, ...],
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    dtype: DType = F32,
) -> TensorType:
    """Independent uniform numbers in [low, high). ONNX RandomUniform-22."""
    return TensorType(dtype, tuple(shape))


@op("RandomNormal", HOST, impure=True)
def random_normal(
    *,
    shape: tuple[Dim, ...],
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    dtype: DType = F32,
) -> TensorType:
    """Independent normal numbers. ONNX RandomNormal-22."""
    return TensorType(dtype, tuple(shape))


@op("Multinomial", HOST, impure=True)
def multinomial(
    log_weights: TensorType,
    *,
    sample_size: int,
    seed: float | None = None,
    dtype: DType = I32,
) -> TensorType:
    """`sample_size` class numbers per row, drawn by unnormalised log weights. ONNX Multinomial-22."""
    if log_weights.rank != 2:
        raise TypeInferenceError(
            f"Multinomial: got an input of rank {log_weights.rank}, expected [batch, classes]; "
            "reshape it"
        )
    return TensorType(dtype, (log_weights.shape[0], sample_size))
