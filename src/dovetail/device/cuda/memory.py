"""Device memory that frees itself, and uploads through page-locked memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.device.cuda.driver import Driver, Event, Stream

BLOCK_ALIGNMENT = 256
"""Parts of a block start at multiples of this, as allocations of the driver do."""

_CHUNK = 8 << 20
_SMALL = 1 << 20


class DeviceMemory:
    """An allocation of one device; freed with its last reference."""

    __slots__ = ("__weakref__", "_finalizer", "_owner", "address", "driver", "size")
    _owner: Any

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
        self._finalizer = weakref.finalize(self, _destroy_events, driver, self._buffers)
        self._finalizer.atexit = False

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Queue a copy of a dense array of any size; the array may change after the call."""
        source = array.reshape(-1).view(np.uint8)
        if source.nbytes <= _SMALL:
            if source.nbytes:
                self.driver.upload(pointer, source, self._stream)
            return
        if not self._buffers:
            self._buffers += [(self.driver.host_memory(_CHUNK), self.driver.create_event()) for _ in range(2)]
        for start in range(0, source.nbytes, _CHUNK):
            buffer, event = self._buffers[self._turn]
            self._turn ^= 1
            self.driver.synchronize_event(event)  # an event that was never recorded is reached
            part = source[start : start + _CHUNK]
            buffer[: part.nbytes] = part
            self.driver.upload(pointer + start, buffer[: part.nbytes], self._stream)
            self.driver.record(event, self._stream)

    def finish(self) -> None:
        """Wait for all copies; the buffers stay for the next ones."""
        self.driver.synchronize(self._stream)

    def release(self) -> None:
        """Give the buffers back, when no copy is under way."""
        _destroy_events(self.driver, self._buffers)


def _destroy_events(driver: Driver, buffers: list[tuple[NDArray[np.uint8], Event]]) -> None:
    if buffers and driver.alive():
        with driver.active():
            for _, event in buffers:
                driver.destroy_event(event)
    buffers.clear()
