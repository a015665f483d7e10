"""A named input or output, of an engine or a model."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType


@dataclass(frozen=True)
class Binding:
    """A named input or output.

    Attributes:
        name: the name in the model.
        dtype: element type; `.numpy` is NumPy's.
        shape: sizes, with symbols where they vary (`str(d)` is their text); None for a sequence.
        order: the axes from outermost to innermost in memory; () is row-major.
    """

    name: str
    dtype: DType
    shape: tuple[Dim, ...] | None
    order: tuple[int, ...] = ()

    def __str__(self) -> str:
        shape = "sequence" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        order = f" <{','.join(map(str, self.order))}>" if self.order else ""
        return f"{self.name}: {self.dtype}{shape}{order}"
