"""Device memory that frees itself or serves again, and uploads through page-locked memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.device.cpu.memory import Spares, address, aligned_parts, copy_all
from dovetail.device.cuda.driver import Driver, Event, Stream

BLOCK_ALIGNMENT = 256
"""Parts of a block start at multiples of this, as allocations of the driver do."""

_CHUNK = 8 << 20
_PIECE = 1 << 20  # what one thread copies at a time; it divides a chunk
_SMALL, _FEW = 1 << 20, 8  # bytes and arrays that the driver's own buffers serve as well
_COPIERS = 4
LOCKED = 16 << 20
"""Bytes of weights that lie in page-locked memory, at most: the system cannot use that for anything else."""


class DeviceMemory:
    """An allocation of one device; freed with its last reference."""

    __slots__ = ("__weakref__", "_finalizer", "_owner", "address", "driver", "size")
    _owner: Any
    _finalizer: weakref.finalize[Any, Any]

    def __init__(self, driver: Driver, size: int) -> None:
        self.driver = driver
        self.size = size
        self.address = driver.allocate(max(size, 1))
        self._finalizer = weakref.finalize(self, _free, driver, self.address)
        self._finalizer.atexit = False  # the process ends anyway, and the driver may have ended before


    @classmethod
    def at(cls, driver: Driver, address: int, size: int, owner: Any = None) -> DeviceMemory:
        """Somebody else's memory, which must stay; `owner` is kept as long as this."""
        made = cls.__new__(cls)
        made.driver, made.address, made.size, made._owner = driver, address, size, owner
        return made


def _free(driver: Driver, pointer: int) -> None:
    if not driver.alive():
        return
    with driver.active():
        driver.free(pointer)


class BlockCache:
    """Blocks of device memory that nobody refers to any more, for new ones of the same sizes.

    The driver takes a tenth of a millisecond to allocate a block, and as long to release it.
    """

    def __init__(self, driver: Driver, limit: int, settle: Callable[[], None]) -> None:
        """Keeps at most `limit` bytes; `settle` waits for all that is queued and may still use blocks that nobody refers to."""
        self.driver, self._settle = driver, settle
        self._spares: Spares[int] = Spares(limit)  # addresses
        self._finalizer = weakref.finalize(self, _free_all, driver, self._spares)
        self._finalizer.atexit = False

    @property
    def held(self) -> int:
        """Bytes that nobody uses."""
        return self._spares.held

    def take(self, size: int) -> DeviceMemory:
        """A block of a size.

        Raises:
            DeviceError: too little memory.
        """
        pointer = self._spares.take(size)
        if pointer is None:
            pointer = self.driver.allocate(max(size, 1))
        else:
            self._settle()
        made = DeviceMemory.at(self.driver, pointer, size)
        made._finalizer = weakref.finalize(made, self._give, made.address, size)
        made._finalizer.atexit = False
        return made

    def release(self) -> None:
        """Give the blocks that nobody uses back to the driver."""
        _free_all(self.driver, self._spares)

    def _give(self, pointer: int, size: int) -> None:
        if not self._spares.keep(size, pointer):
            _free(self.driver, pointer)


def _free_all(driver: Driver, spares: Spares[int]) -> None:
    for pointer in spares.clear():
        _free(driver, pointer)


def parts(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets of parts of these sizes in one block, and the block's size."""
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += -(-size // BLOCK_ALIGNMENT) * BLOCK_ALIGNMENT
    return offsets, at


class Uploader:
    """Copies arrays to a device through two page-locked buffers, so that the copy and the transfer overlap."""

    def __init__(self, driver: Driver, stream: Stream) -> None:
        self.driver = driver
        self._stream = stream
        self._buffers: list[tuple[NDArray[np.uint8], Event]] = []
        self._turn = 0
        self._locked: dict[int, int] = {}  # address and size of page-locked memory that was handed out
        self._finalizer = weakref.finalize(self, _destroy_events, driver, self._buffers)
        self._finalizer.atexit = False

    def host_parts(self, sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
        """As `aligned_parts`, page-locked where that is little: what lies there is copied to the device without a copy on the host."""
        if sum(sizes) + sum(self._locked.values()) > LOCKED:
            return aligned_parts(sizes)
        return [self._lock_pages(size) for size in sizes]

    def _lock_pages(self, size: int) -> NDArray[np.uint8]:
        memory = self.driver.host_memory(size)
        start = address(memory)
        self._locked[start] = size
        weakref.finalize(memory, self._locked.pop, start, None).atexit = False
        return memory

    def upload(self, pointer: int, arrays: Sequence[tuple[int, NDArray[Any]]]) -> None:
        """Queue copies of dense arrays to offsets from an address; they may change after the call, unless they lie in `host_parts`.

        Args:
            arrays: by ascending offsets, which are multiples of `BLOCK_ALIGNMENT`.
        """
        staged: list[tuple[int, NDArray[np.uint8]]] = []
        for offset, array in arrays:
            source = array.reshape(-1).view(np.uint8)
            if self._locked.get(address(source), 0) >= source.nbytes > 0:
                self.driver.upload(pointer + offset, source, self._stream)
            elif source.nbytes:
                staged.append((offset, source))
        size = sum(source.nbytes for _, source in staged)
        if size <= _SMALL and len(staged) <= _FEW:
            for offset, source in staged:
                self.driver.upload(pointer + offset, source, self._stream)
            return
        if not self._buffers:
            self._buffers += [(self.driver.host_memory(_CHUNK), self.driver.create_event()) for _ in range(2)]
        with ThreadPoolExecutor(_COPIERS) if size > _PIECE else nullcontext() as pool:
            for start, length, pieces in _chunks(staged):
                buffer, event = self._buffers[self._turn]
                self._turn ^= 1
                self.driver.synchronize_event(event)  # an event that was never recorded is reached
                copy_all([(buffer[at : at + part.nbytes], part) for at, part in pieces], pool)
                self.driver.upload(pointer + start, buffer[:length], self._stream)
                self.driver.record(event, self._stream)

    def finish(self) -> None:
        """Wait for all copies; the buffers stay for the next ones."""
        self.driver.synchronize(self._stream)

    def release(self) -> None:
        """Give the buffers back, when no copy is under way."""
        _destroy_events(self.driver, self._buffers)


def _chunks(arrays: Sequence[tuple[int, NDArray[np.uint8]]]) -> Iterator[tuple[int, int, list[tuple[int, NDArray[np.uint8]]]]]:
    """What lies together on the device, a buffer at a time: its offset, its length, and pieces of arrays with their places in it."""
    start, end = 0, 0
    pieces: list[tuple[int, NDArray[np.uint8]]] = []
    for offset, array in arrays:
        for at in range(0, array.nbytes, _PIECE):
            part = array[at : at + _PIECE]
            place = offset + at
            # What lies between, or was copied there already, stays.
            if pieces and (place + part.nbytes - start > _CHUNK or place - end >= BLOCK_ALIGNMENT):
                yield start, end - start, pieces
                pieces = []
            if not pieces:
                start = place
            pieces.append((place - start, part))
            end = place + part.nbytes
    if pieces:
        yield start, end - start, pieces


def _destroy_events(driver: Driver, buffers: list[tuple[NDArray[np.uint8], Event]]) -> None:
    if buffers and driver.alive():
        with driver.active():
            for _, event in buffers:
                driver.destroy_event(event)
    buffers.clear()
