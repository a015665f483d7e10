"""Aligned host memory: small arrays on the heap, large ones in huge-page-advised mappings."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import DeviceError

ALIGNMENT = 64
"""Every buffer that the runtime allocates starts at a multiple of this (a cache line)."""

# From this size on a mapping of its own pays: the kernel backs it with huge pages, which
# spares most TLB misses of streaming kernels, and the memory returns to the system when freed.
_MAPPED = 4 << 20
_HUGE_PAGE = 2 << 20


# `__array_interface__` builds a description of the dtype and takes microseconds, which a small model
# feels. The data pointer is the first field behind the object header (PyArrayObject_fields, part of
# NumPy's ABI); the probe below makes sure of it once.
_HEADER = object.__basicsize__
_word_at = ctypes.c_size_t.from_address


def _address_by_interface(array: NDArray[Any]) -> int:
    pointer: int = array.__array_interface__["data"][0]
    return pointer


def _address_by_field(array: NDArray[Any]) -> int:
    return _word_at(id(array) + _HEADER).value


def _probe() -> bool:
    if sys.implementation.name != "cpython":
        return False
    samples = (np.zeros(3), np.zeros((2, 2), np.int8)[1:], np.zeros(0))
    return all(_address_by_field(a) == _address_by_interface(a) for a in samples)


address: Callable[[NDArray[Any]], int] = _address_by_field if _probe() else _address_by_interface
"""Address of the first element of a NumPy array."""


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """An uninitialised uint8 array of `size` bytes that starts at a multiple of `ALIGNMENT`.

    Raises:
        DeviceError: the memory cannot be had.
    """
    if size < 0:
        raise DeviceError(f"memory: got a size of {size} bytes, expected a non-negative one")
    try:
        if size >= _MAPPED:
            return _mapped(size)
        raw = np.empty(size + ALIGNMENT, np.uint8)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        raise DeviceError(
            f"memory: cannot allocate {size} bytes ({error}); use smaller shapes or fewer contexts"
        ) from error
    start = -address(raw) % ALIGNMENT
    return raw[start : start + size]


def _mapped(size: int) -> NDArray[np.uint8]:
    length = size + _HUGE_PAGE
    mapping = mmap.mmap(-1, length)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Kernels built without transparent huge pages refuse the advice; it is only advice.
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    raw: NDArray[np.uint8] = np.frombuffer(mapping, np.uint8)
    start = -address(raw) % _HUGE_PAGE
    return raw[start : start + size]


def aligned_empty(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised, row-major array whose data starts at a multiple of `ALIGNMENT`."""
    size = math.prod(shape) * dtype.itemsize
    if size >= _MAPPED or size < 0:
        return aligned_bytes(size).view(dtype).reshape(shape)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, raw, -address(raw) % ALIGNMENT)
