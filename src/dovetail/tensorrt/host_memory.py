"""`IHostMemory`: what serialization gives."""

from __future__ import annotations

from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.enums import DataType


class IHostMemory(Deprecated, bytes):
    """The bytes of a serialized engine, timing cache or kernel text: a buffer, to be written, sliced or copied.

    A kind of `bytes`, because the buffer protocol is open to Python classes from 3.12 on only.
    """

    @property
    def dtype(self) -> DataType:
        """The element type of the buffer: INT8."""
        return DataType.INT8

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return len(self)

    def __repr__(self) -> str:
        return f"<IHostMemory: {len(self)} bytes>"

    def __str__(self) -> str:
        return repr(self)
