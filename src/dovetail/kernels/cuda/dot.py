"""`tl.dot` as kernels write it: how exact products of fp32 are."""

from __future__ import annotations

from dovetail.codegen.target import CudaTarget
from dovetail.core.dtypes import F32, DType


def dot(a: str, b: str, acc: str, dtype: DType, target: CudaTarget) -> str:
    """The text of the product of two blocks of `dtype`, added to `acc` ("" for none).

    Products of fp32 are exact unless the build asked for TF32. Tensor cores then cut the low bits of their operands off, which shrinks
    all sums alike; rounded to the nearest instead, BERT-base stays four times closer to fp32.
    """
    added = f", {acc}" if acc else ""
    if dtype != F32:
        return f"tl.dot({a}, {b}{added})"
    if not target.tf32:
        return f'tl.dot({a}, {b}{added}, input_precision="ieee")'
    return f'tl.dot(nearest_tf32({a}), nearest_tf32({b}){added}, input_precision="tf32")'
