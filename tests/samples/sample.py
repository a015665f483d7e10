"""One use of an IR op: inputs from a generator, and attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sample:
    """`inputs(rng)` gives the arrays (None: absent); `attrs` are the attributes with dims as ints.

    `exact` says that a kernel must agree bit for bit (integers, copies, comparisons).
    """

    op: str
    inputs: Callable[[np.random.Generator], list[Array | None]]
    attrs: dict[str, Any] = field(default_factory=dict)
    exact: bool = False

    def make(self, seed: int = 0) -> list[Array | None]:
        """The inputs, the same for the same seed."""
        return self.inputs(np.random.default_rng(seed))
