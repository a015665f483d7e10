"""Which value of a network goes wrong first in fp16 or bf16: the fp32 model twice, once with what kernels round rounded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from dovetail.builder.oracle import relative_l2
from dovetail.core.dtypes import F32, DType
from dovetail.ir.graph import Module, Value
from dovetail.ops.evaluate import evaluate
from dovetail.passes.precision import LARGEST, is_mask

_KEPT = 4096  # elements of a value that are compared


def first_wrong(
    module: Module, feed: Mapping[str, Any], rounded: Collection[str], narrow: DType, tolerance: float
) -> tuple[str, str]:
    """(the first value that goes wrong and how, in words; "overflow", "underflow" or "rounding"); ("", "") if none does.

    Args:
        module: after *recognise*, in fp32.
        rounded: names of the values that kernels round to `narrow`.
        tolerance: relative L2 error from which on a value is wrong, where none leaves the range.
    """
    plain: dict[str, tuple[np.ndarray[Any, Any], bool, float]] = {}
    overflows: list[str] = []
    errors: list[tuple[str, str]] = []
    smallest = float(ml_dtypes.finfo(narrow.numpy).smallest_normal)

    def remember(value: Value, array: Any) -> None:
        if _counts(value, array):
            finite = np.isfinite(array)
            largest = float(np.max(np.abs(array), where=finite, initial=0.0))
            plain[value.name] = (_some(array).copy(), bool(finite.all()), largest)

    def compare(value: Value, array: Any) -> Any:
        if not _counts(value, array):
            return None
        if value.name in rounded:
            exact, array = array, array.astype(narrow.numpy).astype(np.float32)
            if is_mask(value):  # the compiler clamps these
                array = np.where(np.isfinite(exact), np.clip(exact, -LARGEST[narrow], LARGEST[narrow]), exact)
        want, finite, largest = plain[value.name]
        node = value.producer
        told = f"{value.name!r} of {node.where if node is not None else 'the inputs'} reaches {largest:.3g} in fp32"
        if finite and not overflows and not np.isfinite(array).all():
            overflows.append(f"{told} and is not finite any more where kernels round to {narrow}")
        if not errors and not relative_l2(_some(array), want) <= tolerance:
            off = f" and is off by {relative_l2(_some(array), want):.1e} where kernels round to {narrow}"
            if largest < smallest:
                errors.append((f"{told}{off}, which has fewer digits below {smallest:.1e}", "underflow"))
            else:
                errors.append((told + off, "rounding"))
        return array if value.name in rounded else None

    with np.errstate(all="ignore"):
        evaluate(module, feed, observe=remember)
        evaluate(module, feed, observe=compare)
    return (overflows[0], "overflow") if overflows else (errors[0] if errors else ("", ""))


def _counts(value: Value, array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == F32.numpy and array.size > 0


def _some(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Elements from all over an array."""
    return array.reshape(-1)[:: max(1, array.size // _KEPT)]
