"""Memory to time kernels on: where operands lie, filled with ordinary numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.codegen.tactic import Emitted
from dovetail.core.dims import evaluate
from dovetail.device.cuda.driver import Driver, Stream
from dovetail.device.cuda.memory import DeviceMemory
from dovetail.ir.types import TensorType

ALIGNMENT = 256


@dataclass(frozen=True)
class Span:
    """Bytes that a value takes, and how far in its logical origin lies."""

    size: int
    origin: int


def aligned(size: int) -> int:
    """A size rounded up, so that the next piece starts at a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def span(type_: TensorType, sizes: Mapping[str, int]) -> Span:
    """The memory of a value; its origin is congruent to its layout's own, so that what a template takes for aligned is."""
    layout, item = type_.placement, type_.dtype.itemsize
    shape = [evaluate(d, sizes) for d in type_.shape]
    if 0 in shape:
        return Span(ALIGNMENT, 0)
    strides = [evaluate(s, sizes) for s in layout.strides(type_.shape)]
    first = sum(min(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
    last = sum(max(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
    base = evaluate(layout.base(type_.shape), sizes) * item % ALIGNMENT
    origin = aligned(-first * item) + base
    return Span(origin + (last + 1) * item, origin)


def own_addresses(emitted: Emitted, sizes: Sequence[int], memory: int, counters: int) -> list[int]:
    """Addresses of the buffers that `cuda_launch.own_bytes` lists: counters from one region of zeros, the rest from another."""
    found: list[int] = []
    for position, size in enumerate(sizes):
        behind = position - len(emitted.temps)
        if behind >= 0 and behind % 3 == 1:
            found.append(counters)
            counters += aligned(size)
        else:
            found.append(memory)
            memory += aligned(size)
    return found


def fill(driver: Driver, stream: Stream, start: int, size: int) -> None:
    """Ordinary numbers in every float type: zeros and NaNs would be timed, not the kernel."""
    numbers: np.ndarray[Any, Any] = np.random.default_rng(0).standard_normal(1 << 21, np.float32).astype(np.float16)
    filled = min(size, numbers.nbytes)
    driver.upload(start, numbers.view(np.uint8)[:filled], stream)
    while filled < size:
        step = min(filled, size - filled)
        driver.copy(start + filled, start, step, stream)
        filled += step


class Pool:
    """One block of device memory, handed out piece by piece."""

    def __init__(self, driver: Driver, stream: Stream, size: int) -> None:
        self.size = size
        self._driver, self._stream = driver, stream
        self._memory = DeviceMemory(driver, size)
        fill(driver, stream, self._memory.address, size)
        driver.synchronize(stream)
        self._at = 0

    def restart(self) -> None:
        """Hand everything out again."""
        self._at = 0

    def _piece(self, size: int) -> int:
        start = self._memory.address + self._at
        self._at += aligned(size)
        assert self._at <= self.size, "more is taken than was asked for"
        return start

    def take(self, needed: Span, zero: bool) -> int:
        """The address of a value's logical origin, with ordinary numbers or with zeros."""
        start = self._piece(needed.size)
        if zero:
            self._driver.zero(start, needed.size, self._stream)
        return start + needed.origin

    def memory(self, size: int) -> int:
        """A piece with any contents."""
        return self._piece(size)

    def zeros(self, size: int) -> int:
        """A piece of zeros."""
        start = self._piece(size)
        self._driver.zero(start, size, self._stream)
        return start
