"""How far outputs are from the expected ones."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def distance(algorithm: str, found: Array, expected: Array, atol: float, rtol: float) -> float:
    """The distance of two arrays of the same shape; 0 where they are equal, infinite where one alone is not a number.

    Args:
        algorithm: "L0", the share of elements beyond `atol + rtol * |expected|`; "L1", the mean absolute error; "L2", the mean squared
            error; "LInf", the largest absolute error; "Cosine", 1 less the cosine of the angle between them.
    """
    a, b = (np.asarray(x, np.float64).reshape(-1) for x in (found, expected))
    if not a.size:
        return 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - b))
    error = np.where(np.isnan(error), np.inf, error)
    if algorithm == "L0":
        return float(np.mean(~same & (error > atol + rtol * np.abs(b))))
    if algorithm == "L1":
        return float(np.mean(error))
    if algorithm == "L2":
        return float(np.mean(error * error))
    if algorithm == "LInf":
        return float(np.max(error))
    if same.all():
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / lengths if lengths else 1.0
