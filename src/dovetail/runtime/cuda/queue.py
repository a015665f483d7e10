"""What one context queues its work with: a stream, page-locked staging memory, and copies that end with the run."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.device.cuda.driver import Driver, Event, Stream

Array = NDArray[Any]

_STAGED = 8 << 20  # arrays beyond this go without staging: the driver's own is as good
_ALIGNMENT = 64


class Queue:
    """A stream and the host side of copies into and out of it; for one context, hence one thread at a time.

    `own` is the context's stream; a run uses it or the caller's, see `begin`.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.own: Stream = driver.create_stream()
        self.stream: Stream = self.own
        self.capturing = False
        self.run = 0  # counts runs
        self._done: Event = driver.create_event()
        self._last: Stream | None = None  # the stream of work that may be under way
        self._up, self._down = _Staging(driver), _Staging(driver)
        self._fetched: list[tuple[Array, Array | None]] = []  # where to, and the staged copy if there is one
        self._sources: list[Array] = []  # pageable arrays that a copy under way may still read
        self._ordered: list[int] = []
        self._sides: list[Stream] = []
        self._events: list[Event] = []
        self._finalizer = weakref.finalize(self, _close, driver, self.own, self._done, self._sides, self._events)
        self._finalizer.atexit = False

    def begin(self, stream: Stream | None, capturing: bool) -> None:
        """Start a run in a stream (None: the context's own), behind what the context has queued before."""
        self.finish_fetches()
        self.run += 1
        self.stream = self.own if stream is None else stream
        self.capturing = capturing
        if self._last is not None and not capturing:
            if self._up.used:
                self.driver.synchronize_event(self._done)
                self._up.used = 0
            # A stream of the caller may be a new one with the handle of an old one.
            if self._last != self.stream or self.stream != self.own:
                self.driver.wait(self.stream, self._done)

    def end(self) -> None:
        """Mark the end of what the run has queued."""
        self.release(0)
        if self._sources:
            self.driver.synchronize(self.stream)
            self._sources.clear()
        if not self.capturing:
            self.driver.record(self._done, self.stream)
            self._last = self.stream

    def wait(self) -> None:
        """Wait for the last run, and finish its copies to the host."""
        if self._last is not None:
            self.driver.synchronize_event(self._done)
            self._last = None
            self._up.used = 0
        self._finish()

    def settle(self) -> None:
        """Wait for what is queued, from any thread."""
        self.driver.synchronize_event(self._done)

    @property
    def done(self) -> bool:
        """Whether the last run has ended on the device."""
        return self._last is None or self.driver.reached(self._done)

    def finish_fetches(self) -> None:
        """Wait where results of the last run still have to be copied to the host."""
        if self._fetched:
            self.wait()

    def finish_staged(self) -> None:
        """Wait where arrays on the host are to be filled, or may still be read."""
        if self._fetched or self._sources:
            self.synchronize()

    def side(self, number: int) -> Stream:
        """A stream beside the run's, for captures that fork."""
        while len(self._sides) <= number:
            self._sides.append(self.driver.create_stream())
        return self._sides[number]

    def event(self, number: int) -> Event:
        """An event that one stream of a capture waits for in another."""
        while len(self._events) <= number:
            self._events.append(self.driver.create_event())
        return self._events[number]

    # --- copies ---------------------------------------------------------------------------------

    def send(self, pointer: int, array: Array) -> None:
        """Queue a copy of a dense array to the device; it may change after the call, or after the run where it is large."""
        if array.nbytes == 0:
            return
        staged = self._up.take(array.nbytes)
        if staged is None:
            self._sources.append(array)
        else:
            staged[:] = array.reshape(-1).view(np.uint8)
        self.driver.upload(pointer, array if staged is None else staged, self.stream)

    def fetch(self, target: Array, pointer: int) -> None:
        """Queue a copy into a dense array on the host; it is there after `wait` or `synchronize`."""
        if target.nbytes == 0:
            return
        staged = self._down.take(target.nbytes)
        self._fetched.append((target, staged))
        self.driver.download(target if staged is None else staged, pointer, self.stream)

    def synchronize(self) -> None:
        """Wait for all that is queued, and finish copies to the host."""
        self.driver.synchronize(self.stream)
        self._sources.clear()
        self._up.used = 0
        self._finish()

    def _finish(self) -> None:
        for target, staged in self._fetched:
            if staged is not None:
                target.reshape(-1).view(np.uint8)[:] = staged
        self._fetched.clear()
        self._down.used = 0

    @property
    def mark(self) -> int:
        """How much temporary memory there is, for `release`."""
        return len(self._ordered)

    def release(self, mark: int) -> None:
        """Give temporary memory back that was taken since `mark`; what is queued still uses it."""
        for pointer in self._ordered[mark:]:
            self.driver.free_ordered(pointer, self.stream)
        del self._ordered[mark:]

    def temporary(self, size: int) -> int:
        """Device memory until the end of the run."""
        pointer = self.driver.allocate_ordered(size, self.stream)
        self._ordered.append(pointer)
        return pointer


class Queues:
    """The queues of an engine, whose work is waited for before memory of old weights serves again."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._known: weakref.WeakSet[Queue] = weakref.WeakSet()
        self._lock = threading.Lock()

    def make(self) -> Queue:
        """A new queue."""
        made = Queue(self._driver)
        with self._lock:
            self._known.add(made)
        return made

    def settle(self) -> None:
        """Wait for what all of them were given; those that have gone did so themselves."""
        with self._lock:
            queues = list(self._known)
        for queue in queues:
            queue.settle()


def _close(driver: Driver, stream: Stream, done: Event, sides: list[Stream], events: list[Event]) -> None:
    if not driver.alive():
        return
    with driver.active():
        driver.synchronize_event(done)  # nobody can wait for this queue's work any more
        for event in (done, *events):
            driver.destroy_event(event)
        for other in (stream, *sides):
            driver.destroy_stream(other)


class _Staging:
    """Page-locked memory that a run hands out front to back."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._memory: Array | None = None
        self._wanted = 0
        self.used = 0

    def take(self, size: int) -> Array | None:
        """The next `size` bytes; None where staging is not for that much."""
        start = self.used
        end = start + -(-size // _ALIGNMENT) * _ALIGNMENT
        if end > _STAGED:
            return None
        memory = self._memory
        if memory is None or end > memory.nbytes:
            if start:  # it grows with the next run: what is handed out now is in use
                self._wanted = max(self._wanted, end)
                return None
            grown = 1 << (max(end, self._wanted, 1 << 16) - 1).bit_length()
            memory = self._memory = self._driver.host_memory(grown)
        self.used = end
        return memory[start : start + size]
