"""What differs between two sets of weights: names, types, shapes, values; in pieces, so that memory-mapped ones stay where they are."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.core.errors import ShapeError

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightChange:
    """How far a weight of b is from the one of that name in a.

    Attributes:
        relative_l2: ||b - a|| / ||a||; inf where NaN or infinities are in other places.
        max_abs: the largest difference of finite elements.
        changed: how many elements differ.
        size: how many there are.
    """

    name: str
    relative_l2: float
    max_abs: float
    changed: int
    size: int

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys; infinities as text."""
        distance = _plain(self.relative_l2)
        return {"name": self.name, "relative_l2": distance, "max_abs": self.max_abs, "changed": self.changed, "size": self.size}


@dataclass(frozen=True)
class WeightDifference:
    """What differs between the weights of a and b.

    Attributes:
        removed, added: names that only a, or only b has.
        retyped: by name, dtype and shape in a, and in b, as text, and the relative L2 distance, where the shapes are equal.
        changed: values that differ, the farthest first.
        same: how many are equal in every bit.
        found: by name of b that is not in a, or has other values there, what it is in a's weights, as text.
        used: names of a that `found` speaks of.
        unread: names whose values one side does not hold, and of which only is known that they differ.
    """

    removed: tuple[str, ...]
    added: tuple[str, ...]
    retyped: Mapping[str, tuple[str, str, float | None]]
    changed: tuple[WeightChange, ...]
    same: int
    found: Mapping[str, str]
    used: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether all names, types and values are equal."""
        return not (self.removed or self.added or self.retyped or self.changed or self.unread)

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "equal": self.equal, "same": self.same, "removed": list(self.removed), "added": list(self.added),
            "retyped": {name: [a, b, None if far is None else _plain(far)] for name, (a, b, far) in self.retyped.items()},
            "changed": [c.json() for c in self.changed],
            "found": dict(self.found), "used": list(self.used), "unread": list(self.unread),
        }  # fmt: skip


def compare_weights(
    a: Mapping[str, Array], b: Mapping[str, Array], equal: Collection[str] = (), unread: Collection[str] = ()
) -> WeightDifference:
    """Compare weights by name.

    Args:
        equal: names that are known to be equal, and need not be read.
        unread: names that are known to differ, and cannot be read.
    """
    retyped: dict[str, tuple[str, str, float | None]] = {}
    changes: list[WeightChange] = []
    same = len(equal)
    for name in a:
        if name not in b or name in equal or name in unread:
            continue
        x, y = a[name], b[name]
        if x.dtype != y.dtype or x.shape != y.shape:
            comparable = x.shape == y.shape and object not in (x.dtype, y.dtype)
            apart = weight_change(name, x, y) if comparable else None
            retyped[name] = (_type(x), _type(y), None if not comparable else apart.relative_l2 if apart else 0.0)
        elif (change := weight_change(name, x, y)) is not None:
            changes.append(change)
        else:
            same += 1
    known = {*equal, *unread}
    return WeightDifference(
        tuple(n for n in a if n not in b and n not in known), tuple(n for n in b if n not in a and n not in known), retyped,
        tuple(sorted(changes, key=lambda c: -c.relative_l2)), same, {}, (), tuple(unread),
    )  # fmt: skip


def weight_change(name: str, a: Array, b: Array) -> WeightChange | None:
    """How b differs from a, which has the same shape; None where it does not.

    Raises:
        ShapeError: it has another shape.
    """
    if a.shape != b.shape:
        raise ShapeError(f"weight {name!r}: got shapes {a.shape} and {b.shape}, expected the same")
    if a.dtype == object:
        changed = int((a != b).sum())
        return WeightChange(name, float(bool(changed)), 0.0, changed, a.size) if changed else None
    left, right = a.reshape(-1), b.reshape(-1)
    changed, squares, norm, largest, odd = 0, 0.0, 0.0, 0.0, False
    for start in range(0, left.size, _CHUNK):
        x, y = left[start : start + _CHUNK], right[start : start + _CHUNK]
        wide_x, wide_y = (v.astype(np.complex128 if v.dtype.kind == "c" else np.float64) for v in (x, y))
        finite = np.isfinite(wide_x) & np.isfinite(wide_y)
        norm += float(np.square(np.abs(wide_x[finite])).sum())
        if x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind in "fc"):
            continue
        apart = np.abs(wide_y[finite] - wide_x[finite])
        # Large integers differ where their floats do not.
        differ = (x != y if x.dtype == y.dtype else wide_x != wide_y) & ~(np.isnan(wide_x) & np.isnan(wide_y))
        odd |= bool((differ & ~finite).any())
        changed += int(differ.sum())
        squares += float(np.square(apart).sum())
        largest = max(largest, float(apart.max(initial=0.0)))
    if not changed:
        return None
    distance = math.inf if odd else math.sqrt(squares) / (math.sqrt(norm) or 1.0)
    return WeightChange(name, distance, largest, changed, a.size)


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _type(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"
