"""How far an output of an exported model is from the original's."""

import math

import numpy as np
import pytest

from dovetail.export.report import Difference


@pytest.mark.parametrize("want, got, relative, largest", [
    (np.array([3.0, 4.0]), np.array([3.0, 4.5]), 0.1, 0.5),
    (np.array([np.inf, 1.0]), np.array([np.inf, 1.0]), 0.0, 0.0),
    (np.array([np.nan, 1.0]), np.array([1.0, np.nan]), math.inf, 0.0),
    (np.array([2.0]), np.array([np.nan]), math.nan, 0.0),
    (np.zeros((0, 2)), np.zeros((0, 2)), 0.0, 0.0),
    (np.zeros(2), np.zeros((1, 2)), math.inf, math.inf),
    (np.zeros(2), np.zeros(2, np.float32), math.inf, math.inf),
    (np.array([True, False]), np.array([True, True]), math.inf, math.inf),
    (np.array([1, 2]), np.array([1, 3]), 1 / math.sqrt(5), 1.0),
])  # fmt: skip
def test_distances(want: np.ndarray, got: np.ndarray, relative: float, largest: float) -> None:
    found = Difference.between("y", "case", want, got)
    assert (found.output, found.case) == ("y", "case")
    np.testing.assert_allclose([found.relative_l2, found.max_abs], [relative, largest])
    assert (found.relative_l2 <= 1e-4) == (relative == 0)
