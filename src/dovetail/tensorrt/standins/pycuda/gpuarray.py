"""Stands for `pycuda.gpuarray` where there is no GPU: arrays that are allocated, copied and filled; arithmetic needs kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dovetail.tensorrt.standins.pycuda import driver as _driver


class GPUArray:
    """An array in device memory; `ptr` is its address, `gpudata` its allocation."""

    def __init__(
        self,
        shape: Any,
        dtype: Any,
        allocator: Callable[[int], Any] = _driver.mem_alloc,
        base: Any = None,
        gpudata: Any = None,
        order: str = "C",
    ) -> None:
        self.shape: tuple[int, ...] = _driver.extents_of(shape)
        self.dtype = np.dtype(dtype)
        self.order = "F" if order == "F" else "C"
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.mem_size = self.size * self.dtype.itemsize
        self.base = base
        self.gpudata = allocator(self.nbytes) if gpudata is None and self.nbytes else gpudata

    @property
    def ptr(self) -> int:
        """The address of the first element; 0 for none."""
        return 0 if self.gpudata is None else int(self.gpudata)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes between neighbours, per axis."""
        steps, step = [], self.dtype.itemsize
        for extent in reversed(self.shape) if self.order == "C" else self.shape:
            steps.append(step)
            step *= extent
        return tuple(reversed(steps) if self.order == "C" else steps)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        where = {"data": (self.ptr, False), "stream": None, "version": 3}
        return {"shape": self.shape, "strides": self.strides, "typestr": self.dtype.str, **where}

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def set(self, ary: np.ndarray[Any, Any], async_: bool = False, stream: Any = None) -> None:
        """Fill the array from one on the host.

        Raises:
            ValueError: another size or type.
        """
        if ary.size != self.size:
            raise ValueError("ary and self must be the same size")
        if ary.dtype != self.dtype:
            raise ValueError("ary and self must have the same dtype")
        if self.nbytes:
            _driver.memcpy_htod_async(self.gpudata, np.asarray(ary, order="F" if self.order == "F" else "C"), stream)

    def set_async(self, ary: np.ndarray[Any, Any], stream: Any = None) -> None:
        """As `set`."""
        self.set(ary, stream=stream)

    def get(
        self, ary: np.ndarray[Any, Any] | None = None, pagelocked: bool = False, async_: bool = False, stream: Any = None
    ) -> np.ndarray[Any, Any]:
        """The array on the host; into `ary` where that is given.

        Raises:
            ValueError: `ary` has another size or type.
        """
        if ary is None:
            make = _driver.pagelocked_empty if pagelocked else np.empty
            ary = make(self.shape, self.dtype, "F" if self.order == "F" else "C")
        elif ary.size != self.size or ary.dtype != self.dtype:
            raise ValueError("self and ary must be the same size and dtype")
        if self.nbytes:
            _driver.memcpy_dtoh_async(ary, self.gpudata, stream)
        return ary

    def get_async(self, stream: Any = None, ary: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """As `get`."""
        return self.get(ary, stream=stream)

    def fill(self, value: Any, stream: Any = None) -> GPUArray:
        """Set every element."""
        self.set(np.full(self.shape, value, self.dtype), stream=stream)
        return self

    def copy(self) -> GPUArray:
        """Another array of the same content."""
        result = GPUArray(self.shape, self.dtype, order=self.order)
        if self.nbytes:
            _driver.memcpy_dtod(result.gpudata, self.gpudata, self.nbytes)
        return result

    def reshape(self, *shape: Any, order: str = "C") -> GPUArray:
        """The same memory in another shape; one extent may be -1.

        Raises:
            ValueError: a different number of elements.
        """
        extents = shape[0] if len(shape) == 1 and not np.isscalar(shape[0]) else shape
        wanted = np.empty(self.shape, np.uint8).reshape(extents).shape
        return GPUArray(wanted, self.dtype, base=self, gpudata=self.gpudata, order=order)

    def ravel(self) -> GPUArray:
        """The same memory along one axis."""
        return self.reshape(self.size)

    def view(self, dtype: Any = None) -> GPUArray:
        """The same memory as another type of element."""
        wanted = np.empty(self.shape, self.dtype).view(dtype or self.dtype)
        return GPUArray(wanted.shape, wanted.dtype, base=self, gpudata=self.gpudata, order=self.order)

    def __repr__(self) -> str:
        return repr(self.get())


def empty(shape: Any, dtype: Any, allocator: Callable[[int], Any] = _driver.mem_alloc, order: str = "C") -> GPUArray:
    """An array of any content."""
    return GPUArray(shape, dtype, allocator, order=order)


def zeros(shape: Any, dtype: Any = np.float64, allocator: Callable[[int], Any] = _driver.mem_alloc, order: str = "C") -> GPUArray:
    """An array of zeros."""
    return GPUArray(shape, dtype, allocator, order=order).fill(0)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", allocator: Callable[[int], Any] = _driver.mem_alloc) -> GPUArray:
    """An array of one value."""
    return GPUArray(shape, np.asarray(fill_value).dtype if dtype is None else dtype, allocator, order=order).fill(fill_value)


def empty_like(other_ary: Any, dtype: Any = None, order: str = "C") -> GPUArray:
    """An array of another's shape and type."""
    return GPUArray(other_ary.shape, dtype or other_ary.dtype, order=order)


def zeros_like(other_ary: Any, dtype: Any = None, order: str = "C") -> GPUArray:
    """An array of zeros, of another's shape and type."""
    return empty_like(other_ary, dtype, order).fill(0)


def to_gpu(ary: np.ndarray[Any, Any], allocator: Callable[[int], Any] = _driver.mem_alloc) -> GPUArray:
    """An array with what one on the host holds."""
    result = GPUArray(ary.shape, ary.dtype, allocator, order="F" if ary.flags.f_contiguous and not ary.flags.c_contiguous else "C")
    result.set(ary)
    return result


def to_gpu_async(ary: np.ndarray[Any, Any], allocator: Callable[[int], Any] = _driver.mem_alloc, stream: Any = None) -> GPUArray:
    """As `to_gpu`."""
    return to_gpu(ary, allocator)


__dovetail_standin__ = True
