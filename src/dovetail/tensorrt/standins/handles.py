"""Objects that stand for addresses: CUDA's handles, device pointers, and what programs pass where one is expected."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class Handle:
    """A stream, event, context or pointer of CUDA: a number that clients pass on; `int(handle)` gives it."""

    def __init__(self, init_value: Any = 0, _ptr: int = 0) -> None:
        self._value = int(init_value)

    def __int__(self) -> int:
        return self._value

    def __index__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._value:#x}>"

    def getPtr(self) -> int:
        """The address of the handle itself, as kernels' argument lists want it."""
        self._cell = ctypes.c_void_p(self._value)
        return ctypes.addressof(self._cell)


class StreamHandle(Handle):
    """A stream, which other packages can take over (`__cuda_stream__`)."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._value)


def address(source: Any, writable: bool = False) -> int:
    """The address behind what a program passes as a pointer: None, a number, a handle, a ctypes object or anything with a buffer.

    Args:
        source: where to copy from or to.
        writable: whether the call writes there.

    Raises:
        TypeError: no address can be had of it, or a read-only buffer where one is written.
    """
    if source is None:
        return 0
    if isinstance(source, ctypes.c_void_p):
        return source.value or 0
    if isinstance(source, ctypes._Pointer):
        return ctypes.cast(source, ctypes.c_void_p).value or 0
    if isinstance(source, np.ndarray):
        if writable and not source.flags.writeable:
            raise TypeError("got a read-only array, expected one to write to")
        return int(source.ctypes.data)
    interface = getattr(source, "__cuda_array_interface__", None)
    if interface is not None:
        return int(interface["data"][0])
    if hasattr(source, "__index__"):
        return int(source)
    try:
        view = memoryview(source)
    except TypeError:
        if hasattr(source, "__int__"):
            return int(source)
        raise TypeError(f"got {type(source).__name__}, expected an address or an object with a buffer") from None
    if writable and view.readonly:
        raise TypeError(f"got a read-only {type(source).__name__}, expected a buffer to write to")
    return int(np.frombuffer(view, np.uint8).ctypes.data) if view.nbytes else 0
