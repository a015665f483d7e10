"""Aligned host memory: small arrays on the heap, large ones in huge-page-advised mappings."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import DeviceError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

ALIGNMENT = 64
"""Every buffer that the runtime allocates starts at a multiple of this (a cache line)."""

# From this size on a mapping of its own pays: the kernel backs it with huge pages, which
# spares most TLB misses of streaming kernels, and the memory returns to the system when freed.
_MAPPED = 4 << 20
_HUGE_PAGE = 2 << 20
_SHARED = 16 << 20  # arrays that are made together share mappings until one is as large as this


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


def aligned_parts(sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    """As `aligned_bytes` of each size. Small arrays share mappings of a few of them, which live as long as the last of them does.

    Raises:
        DeviceError: the memory cannot be had.
    """
    found: list[NDArray[np.uint8]] = []
    pending: list[int] = []
    total = 0

    def flush() -> None:
        block, at = aligned_bytes(total), 0
        for size in pending:
            found.append(block[at : at + size])
            at += -(-size // ALIGNMENT) * ALIGNMENT

    for size in sizes:
        pending.append(size)
        total += -(-size // ALIGNMENT) * ALIGNMENT
        if total >= _SHARED:
            flush()
            pending, total = [], 0
    flush()
    return found


def _mapped(size: int) -> NDArray[np.uint8]:
    length = size + _HUGE_PAGE
    # Shared mappings, Python's default, get no huge pages, and a forked process would write into them.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    mapping = mmap.mmap(-1, length, **private)
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


class Spares(Generic[T]):
    """Things that nobody uses any more, by their sizes, of at most `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._kept: dict[int, list[T]] = {}
        self._lock = threading.RLock()  # something may go while this thread takes another one

    def keep(self, size: int, thing: T) -> bool:
        """Keep a thing; False where there is no room for it."""
        with self._lock:
            if self.held + size > self.limit:
                return False
            self.held += size
            self._kept.setdefault(size, []).append(thing)
            return True

    def take(self, size: int) -> T | None:
        """A thing of a size, which is kept no longer."""
        with self._lock:
            kept = self._kept.get(size)
            if not kept:
                return None
            self.held -= size
            return kept.pop()

    def clear(self) -> list[T]:
        """All things, which are kept no longer."""
        with self._lock:
            found = [thing for kept in self._kept.values() for thing in kept]
            self._kept.clear()
            self.held = 0
            return found


class Recycler:
    """Memory of arrays that are gone, for new ones of the same sizes: fresh memory costs as much as copying into it.

    An array of it is gone with the last view of it, whoever holds that.
    """

    def __init__(self, limit: int, allocate: Callable[[Sequence[int]], list[NDArray[np.uint8]]] = aligned_parts) -> None:
        """Keeps at most `limit` bytes that nobody uses; `allocate` gives fresh memory."""
        self._spares: Spares[NDArray[np.uint8]] = Spares(limit)
        self._allocate = allocate

    @property
    def held(self) -> int:
        """Bytes that nobody uses."""
        return self._spares.held

    def parts(self, sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
        """As `aligned_parts`.

        Raises:
            DeviceError: the memory cannot be had.
        """
        found = [self._spares.take(size) for size in sizes]
        fresh = iter(self._allocate([size for size, memory in zip(sizes, found, strict=True) if memory is None]))
        return [np.asarray(_Recycled(next(fresh) if memory is None else memory, self)) for memory in found]

    def give(self, memory: NDArray[np.uint8]) -> None:
        """Take memory back that no array uses any more."""
        self._spares.keep(memory.nbytes, memory)

    def release(self) -> None:
        """Give the memory that nobody uses back to the system."""
        self._spares.clear()


class _Recycled:
    """What the arrays over a piece of memory have as their base."""

    __slots__ = ("memory", "owner")

    def __init__(self, memory: NDArray[np.uint8], owner: Recycler) -> None:
        self.memory, self.owner = memory, owner

    @property
    def __array_interface__(self) -> Any:
        return self.memory.__array_interface__

    def __del__(self) -> None:
        self.owner.give(self.memory)


def copy_all(copies: Sequence[tuple[NDArray[Any], NDArray[Any]]], pool: ThreadPoolExecutor | None) -> None:
    """Copy (target, source) pairs, by the threads of a pool where there is one."""
    list((map if pool is None else pool.map)(lambda pair: np.copyto(*pair), copies))
