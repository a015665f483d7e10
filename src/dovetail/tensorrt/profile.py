"""`IOptimizationProfile`: the extents that dynamic inputs may have, and those that an engine is tuned for."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from dovetail.tensorrt.dims import Dims, as_dims
from dovetail.tensorrt.enum_type import expect

_KINDS = ("min", "opt", "max")


class IOptimizationProfile:
    """Least, likely and largest shapes of inputs, and values of inputs that are read as shapes; made by a `Builder`."""

    __slots__ = ("_extra_memory_target", "_shapes", "_values")

    def __init__(self) -> None:
        self._shapes: dict[str, list[Dims]] = {}
        self._values: dict[str, list[list[int]]] = {}
        self._extra_memory_target = 1.0

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        """Set the shapes of an input.

        Raises:
            ValueError: they differ in rank, have negative extents, or are not in order.
            TypeError: no name, or no integers.
        """
        name = expect(str, input, "IOptimizationProfile.set_shape: input")
        shapes = [as_dims(d, "IOptimizationProfile.set_shape") for d in (min, opt, max)]
        for kind, shape in zip(_KINDS, shapes, strict=True):
            if any(d < 0 for d in shape):
                raise ValueError(f"Shape provided for {kind} is inconsistent: got {shape} for {name!r}, expected no negative extents")
        self._shapes[name] = [Dims(s) for s in _ordered([list(s) for s in shapes], name)]

    def get_shape(self, input: str) -> list[Dims]:
        """The least, likely and largest shape of an input; an empty list where none was set."""
        return list(self._shapes.get(expect(str, input, "IOptimizationProfile.get_shape: input"), ()))

    def set_shape_input(self, input: str, min: Any, opt: Any, max: Any) -> None:
        """Set the values of an input that is read as a shape.

        Raises:
            ValueError: they differ in number, or are not in order.
            TypeError: no name, or no integers.
        """
        name = expect(str, input, "IOptimizationProfile.set_shape_input: input")
        self._values[name] = _ordered([_integers(v, name) for v in (min, opt, max)], name)

    def get_shape_input(self, input: str) -> list[list[int]]:
        """The least, likely and largest values of an input that is read as a shape; an empty list where none were set."""
        return [list(v) for v in self._values.get(expect(str, input, "IOptimizationProfile.get_shape_input: input"), ())]

    @property
    def extra_memory_target(self) -> float:
        """The share of the extra memory that this profile may use over the others, 0 to 1."""
        return self._extra_memory_target

    @extra_memory_target.setter
    def extra_memory_target(self, value: float) -> None:
        number = float(expect((int, float), value, "IOptimizationProfile.extra_memory_target"))
        if math.isnan(number) or not 0 <= number <= 1:
            raise ValueError(f"IOptimizationProfile.extra_memory_target: got {value}, expected 0 to 1")
        self._extra_memory_target = number

    def __bool__(self) -> bool:
        """Whether the profile may be added to a config; ill-ordered shapes are refused when they are set, so it may."""
        return True


def shapes_of(profile: IOptimizationProfile) -> dict[str, list[Dims]]:
    """The shapes by input."""
    return dict(profile._shapes)


def values_of(profile: IOptimizationProfile) -> dict[str, list[list[int]]]:
    """The values of inputs that are read as shapes, by input."""
    return dict(profile._values)


def copy_of(profile: IOptimizationProfile) -> IOptimizationProfile:
    """A profile of the same shapes, which changes of the client's do not reach."""
    made = IOptimizationProfile()
    made._shapes, made._values = shapes_of(profile), values_of(profile)
    made._extra_memory_target = profile._extra_memory_target
    return made


def _integers(values: Any, name: str) -> list[int]:
    """Integers of an array, an iterable, or one alone."""
    items = values.reshape(-1).tolist() if hasattr(values, "reshape") else values
    items = list(items) if isinstance(items, Iterable) and not isinstance(items, (str, bytes)) else [items]
    try:
        return [operator.index(item) for item in items]
    except TypeError:
        raise TypeError(f"IOptimizationProfile.set_shape_input: got {values!r} for {name!r}, expected integers") from None


def _ordered(shapes: list[list[int]], name: str) -> list[list[int]]:
    if len({len(s) for s in shapes}) != 1:
        raise ValueError(f"Shapes of {name!r} for min, opt and max: got {shapes}, expected the same number of extents")
    if not all(least <= likely <= largest for least, likely, largest in zip(*shapes, strict=True)):
        raise ValueError(f"Shapes of {name!r} for min, opt and max: got {shapes}, expected min <= opt <= max on every axis")
    return shapes
