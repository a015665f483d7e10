"""Copy: the same elements at another place; layout assignment inserts it."""

from __future__ import annotations

from dovetail.ir.types import TensorType
from dovetail.ops.registry import POINTWISE, op


@op("Copy", POINTWISE)
def copy(x: TensorType) -> TensorType:
    """y = x, placed as the output's layout says."""
    return x.with_shape(x.shape)
