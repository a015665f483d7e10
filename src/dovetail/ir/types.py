"""Types of values: dtype, symbolic shape, layout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dovetail.core.dims import Dim, product
from dovetail.core.dtypes import DType
from dovetail.ir.layout import Layout, row_major


@dataclass(frozen=True)
class TensorType:
    """A dense tensor: element type, logical shape, and placement (None = row-major)."""

    dtype: DType
    shape: tuple[Dim, ...]
    layout: Layout | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """Number of logical elements."""
        return product(self.shape)

    @property
    def placement(self) -> Layout:
        """The layout, with the row-major default made explicit."""
        return self.layout or row_major(self.rank)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        """The same dtype with another shape, row-major."""
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        """The same shape with another dtype."""
        return TensorType(dtype, self.shape)

    def with_layout(self, layout: Layout | None) -> TensorType:
        """The same tensor placed otherwise."""
        return replace(self, layout=None if layout is None or layout.is_row_major else layout)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{self.layout or ''}"


@dataclass(frozen=True)
class SequenceType:
    """A list of values of one type; exists only between host steps. An optional is a sequence of at most one."""

    element: TensorType

    def __str__(self) -> str:
        return f"seq({self.element})"


Type = TensorType | SequenceType
