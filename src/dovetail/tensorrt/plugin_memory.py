"""Memory that plugins are given addresses of: the host's for engines on a CPU, else the GPU's with a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from dovetail.core.dtypes import DType
from dovetail.tensorrt.device import device, ordinal

Array = np.ndarray[Any, Any]

ALIGNMENT = 256
"""What addresses are a multiple of, as TensorRT promises."""


class Piece(NamedTuple):
    """A tensor in memory: its address, and the host array that it is or comes from."""

    address: int
    array: Array


class Work(Protocol):
    """The memory of one run."""

    stream: int

    def source(self, array: Array, writable: bool) -> Piece:
        """A dense array as the plugin reads it; its own copy where the plugin writes to it."""

    def target(self, shape: tuple[int, ...], dtype: DType) -> Piece:
        """Memory for a result."""

    def scratch(self, size: int) -> int:
        """The address of so many bytes; 0 for none."""

    def fetch(self, pieces: Sequence[Piece]) -> list[Array]:
        """Results as host arrays, once the stream's work is done."""


class Memory(Protocol):
    """Where a plugin works."""

    def run(self) -> Any:
        """A context manager that gives the `Work` of one run."""

    def close(self) -> None:
        """Give back what it holds."""


def memory() -> Memory:
    """The memory of the device that engines are for."""
    chosen = device()
    return _Host() if chosen == "cpu" else _Device(ordinal(chosen))


def _empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An aligned array, which has an address even if it is empty."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(tuple(shape))


class _Host:
    """Host memory: arrays are where they are."""

    stream = 0

    def __init__(self) -> None:
        self._scratch = np.empty(0, np.uint8)

    @contextmanager
    def run(self) -> Iterator[Work]:
        yield self

    def close(self) -> None:
        self._scratch = np.empty(0, np.uint8)

    def source(self, array: Array, writable: bool) -> Piece:
        if writable or array.ctypes.data % ALIGNMENT:
            copy = _empty(array.shape, array.dtype)
            copy[...] = array
            array = copy
        return Piece(array.ctypes.data, array)

    def target(self, shape: tuple[int, ...], dtype: DType) -> Piece:
        made = _empty(shape, dtype.numpy)
        return Piece(made.ctypes.data, made)

    def scratch(self, size: int) -> int:
        if size > self._scratch.nbytes:
            self._scratch = _empty((size,), np.dtype(np.uint8))
        return self._scratch.ctypes.data if size else 0

    def fetch(self, pieces: Sequence[Piece]) -> list[Array]:
        return [piece.array for piece in pieces]


class _Device:
    """A GPU's memory: arrays are copied there and back, in a stream of this object's own."""

    def __init__(self, number: int) -> None:
        from dovetail.device.cuda import driver

        self._driver = driver(number)
        with self._driver.active():
            self._stream = self._driver.create_stream()
        self.stream = int(self._stream)
        self._pieces: list[int] = []

    @contextmanager
    def run(self) -> Iterator[Work]:
        with self._driver.active():
            try:
                yield self
            finally:
                self._driver.synchronize(self._stream)
                while self._pieces:
                    self._driver.free_ordered(self._pieces.pop(), self._stream)

    def close(self) -> None:
        if self.stream:
            with self._driver.active():
                self._driver.destroy_stream(self._stream)
            self.stream = 0

    def _allocate(self, size: int) -> int:
        address = self._driver.allocate_ordered(max(size, ALIGNMENT), self._stream)
        self._pieces.append(address)
        return address

    def source(self, array: Array, writable: bool) -> Piece:
        address = self._allocate(array.nbytes)
        if array.nbytes:
            self._driver.upload(address, array, self._stream)
        return Piece(address, array)

    def target(self, shape: tuple[int, ...], dtype: DType) -> Piece:
        made = np.empty(shape, dtype.numpy)
        return Piece(self._allocate(made.nbytes), made)

    def scratch(self, size: int) -> int:
        return self._allocate(size) if size else 0

    def fetch(self, pieces: Sequence[Piece]) -> list[Array]:
        made = []
        for address, like in pieces:
            array = np.empty(like.shape, like.dtype)
            if array.nbytes:
                self._driver.download(array, address, self._stream)
            made.append(array)
        self._driver.synchronize(self._stream)
        return made
