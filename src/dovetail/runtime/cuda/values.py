"""Values that control flow hands from region to region without a copy to the host."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from dovetail.device.cuda.driver import Driver, Stream
from dovetail.runtime.cuda.arrays import DeviceView
from dovetail.runtime.cuda.queue import Queue


class DeviceValue(DeviceView):
    """A dense tensor on the device that becomes a NumPy array when somebody looks: conditions, slices, stacked results.

    With `owner` None it lies in a buffer of the enclosing program, which may give that memory to others later.
    """

    def __init__(self, queue: Queue, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Any = None) -> None:
        super().__init__(address, shape, dtype, owner)
        self.queue = queue

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        found = np.empty(self.shape, self.dtype)
        self.queue.fetch(found, self.address)
        self.queue.synchronize()
        return found if dtype is None else found.astype(dtype, copy=False)

    def owned(self) -> DeviceValue:
        """The same value in memory of its own."""
        if self.owner is not None:
            return self
        made = fresh(self.queue, self.shape, self.dtype)
        self.queue.driver.copy(made.address, self.address, self.nbytes, self.queue.stream)
        return made


class _Temporary:
    """Device memory that goes back in the stream's order when nothing refers to it."""

    __slots__ = ("__weakref__", "address")

    def __init__(self, queue: Queue, size: int) -> None:
        self.address = queue.driver.allocate_ordered(size, queue.stream)
        weakref.finalize(self, _free, queue.driver, self.address, queue.stream).atexit = False


def _free(driver: Driver, pointer: int, stream: Stream) -> None:
    if not driver.alive():
        return
    with driver.active():
        driver.free_ordered(pointer, stream)


def fresh(queue: Queue, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceValue:
    """A tensor without contents in memory of its own."""
    made = DeviceValue(queue, 0, shape, dtype)
    made.owner = _Temporary(queue, made.nbytes)
    made.address = made.owner.address
    return made
