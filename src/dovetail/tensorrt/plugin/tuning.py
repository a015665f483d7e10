"""`AutoTuneCombination`: the element types, formats and tactics that a plugin offers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dovetail.tensorrt.enums import DataType, TensorFormat

_TYPES = {"FP32": DataType.FLOAT, "FP16": DataType.HALF}


class Combination(NamedTuple):
    """One type and format for each input and output, with the tactics for it."""

    types: tuple[DataType, ...]
    formats: tuple[TensorFormat, ...]
    tactics: tuple[int, ...]


class AutoTuneCombination:
    """A set of combinations: `AutoTuneCombination("FP32|FP16, FP32|FP16", "LINEAR", [1, 2])`.

    Types and formats are given per input and output, separated by commas; one format stands for all. Choices joined by `|` go
    together from tensor to tensor, those joined by `*` are free.

    Args:
        io_types: types, as of DataType, or "FP32" and "FP16".
        layouts: formats, as of TensorFormat.
        tactics: positive numbers.
    """

    def __init__(self, io_types: str | None = None, layouts: str | None = None, tactics: Iterable[int] | None = None) -> None:
        self._types: list[str | None] = [] if io_types is None else [s.strip() for s in io_types.split(",")]
        given: list[str | None] = [s.strip() for s in (layouts or "LINEAR").split(",")]
        if len(given) == 1:
            given *= len(self._types)
        if len(given) != len(self._types):
            raise ValueError(f"AutoTuneCombination: got {len(given)} layouts, expected 1, or {len(self._types)} as there are types")
        self._layouts = given
        self._tactics = () if tactics is None else tuple(tactics)

    def pos(self, pos: int | Iterable[int], io_types: str, layouts: str = "LINEAR") -> None:
        """Give types and formats of some inputs and outputs by index.

        Raises:
            ValueError: they are given already.
        """
        for index in [pos] if isinstance(pos, int) else pos:
            missing = index + 1 - len(self._types)
            self._types += [None] * missing
            self._layouts += [None] * missing
            if self._types[index] is not None:
                raise ValueError(f"Type(s) for position {index} already specified")
            self._types[index], self._layouts[index] = io_types, layouts

    def tactics(self, tactics: Iterable[int]) -> None:
        """Give the tactics."""
        self._tactics = tuple(tactics)

    def combinations(self, tensors: int) -> list[Combination]:
        """All combinations.

        Raises:
            ValueError: not one type for each tensor, choices that do not go together, or names that are none.
        """
        types, layouts = [t for t in self._types if t], [f for f in self._layouts if f]
        if len(types) != tensors or len(layouts) != tensors:
            raise ValueError(f"AutoTuneCombination: got types of {len(types)} inputs and outputs, expected {tensors}")
        kinds = [tuple(_data_type(name) for name in row) for row in _rows(types)]
        formats = [tuple(_format(name) for name in row) for row in _rows(layouts)]
        return [Combination(k, f, self._tactics) for k in kinds for f in formats]


def _rows(variants: Sequence[str]) -> list[tuple[str, ...]]:
    """All choices of one name per tensor."""
    if any("|" in v and "*" in v for v in variants):
        raise ValueError(f"AutoTuneCombination: got {list(variants)}, expected either '|' or '*' in each")
    tied = {len(v.split("|")) for v in variants if "|" in v}
    if len(tied) > 1:
        raise ValueError(f"AutoTuneCombination: got {list(variants)}, expected equally many choices wherever they are joined by '|'")
    made: list[tuple[str, ...]] = []
    for k in range(max(tied, default=1)):
        choices = [[v.split("|")[k]] if "|" in v else v.split("*") for v in variants]
        made += [row for row in itertools.product(*choices) if row not in made]
    return made


def _data_type(name: str) -> DataType:
    found: DataType | None = _TYPES.get(name.strip()) or DataType.__members__.get(name.strip())
    if found is None:
        raise ValueError(f"AutoTuneCombination: got the type {name!r}, expected FP32, FP16 or one of {', '.join(DataType.__members__)}")
    return found


def _format(name: str) -> TensorFormat:
    found: TensorFormat | None = TensorFormat.__members__.get(name.strip())
    if found is None:
        raise ValueError(f"AutoTuneCombination: got the format {name!r}, expected one of {', '.join(TensorFormat.__members__)}")
    return found
