"""`with` around TensorRT's objects: deprecated there and without effect, yet used by most code."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Self


class Deprecated:
    """Gives a class the `with` block that TensorRT deprecates: it returns the object and releases nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        warnings.warn(
            "Context managers for TensorRT types are deprecated. Memory will be freed automatically when the reference count reaches 0.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves the block; an exception goes on."""
