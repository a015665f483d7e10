"""The caller's arrays: read in place through NumPy, DLPack or the buffer protocol; never cast."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dovetail.core.dtypes import named
from dovetail.core.errors import BindingError, ShapeError

Array = NDArray[Any]


def as_input(name: str, value: Any, want: np.dtype[Any]) -> Array:
    """`value` as a C-contiguous array of dtype `want`; copies only what is not contiguous.

    Raises:
        BindingError: not an array on the host, or of another dtype.
    """
    array = _as_array(f"input {name!r}", value)
    if want.hasobject:
        if array.dtype.kind not in "UOT":
            raise BindingError(f"input {name!r}: got dtype {array.dtype}, expected strings")
        return np.asarray(array.astype(object), order="C")
    array = named(array, want)
    _check_dtype(f"input {name!r}", array, want)
    return np.asarray(array, order="C")


def at_address(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Any = None) -> Array:
    """A writable array over host memory at an address, which must stay; `owner` is kept as long as the array."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    memory: Any = (ctypes.c_uint8 * size).from_address(address)
    memory._owner = owner
    array: Array = np.frombuffer(memory, np.uint8).view(dtype).reshape(shape)
    return array


def in_memory_order(where: str, value: Any, order: tuple[int, ...]) -> Array:
    """The caller's host array with its axes as they lie in memory: what a port of that order takes. Copies nothing.

    Raises:
        BindingError: not an array on the host.
        ShapeError: another rank.
    """
    array = _as_array(where, value)
    if array.ndim != len(order):
        raise ShapeError(f"{where}: got rank {array.ndim} (shape {array.shape}), expected rank {len(order)}")
    return array.transpose(order)


def in_logical_order(array: Any, order: tuple[int, ...]) -> Any:
    """What `in_memory_order` gave, as the caller sees it; anything with NumPy's or torch's way to swap axes."""
    back = [order.index(axis) for axis in range(len(order))]
    return array.permute(*back) if hasattr(array, "permute") else array.transpose(back)


def as_output(name: str, value: Any, want: np.dtype[Any], shape: tuple[int, ...] | None) -> Array:
    """A caller's output array, to be written in place; `shape` None where it is not known yet.

    Raises:
        BindingError: not an array on the host, read-only, not contiguous, wrong dtype or shape.
    """
    where = f"output {name!r}"
    array = _as_array(where, value)
    _check_dtype(where, array, want)
    if shape is not None and array.shape != shape:
        raise BindingError(f"{where}: got shape {array.shape}, expected {shape}")
    if not array.flags.writeable:
        raise BindingError(f"{where}: got a read-only array, expected a writable one")
    if not array.flags.c_contiguous:
        raise BindingError(
            f"{where}: got strides {array.strides}, expected a C-contiguous array; "
            "allocate it with numpy.empty"
        )
    return array


def _check_dtype(where: str, array: Array, want: np.dtype[Any]) -> None:
    if array.dtype != want:
        raise BindingError(
            f"{where}: got dtype {array.dtype}, expected {want}; convert it with "
            f'.astype("{want}"), values are never cast silently'
        )


def _as_array(where: str, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _from_dlpack(where, value)
    if isinstance(value, np.generic) or any(
        hasattr(value, a) for a in ("__array_interface__", "__array_struct__", "__array__")
    ):
        return np.asarray(value)
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        raise BindingError(
            f"{where}: got {type(value).__name__}, expected an array (NumPy, DLPack or a buffer); "
            "convert it with numpy.asarray"
        ) from None


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    """DLTensor of dlpack.h; a DLManagedTensor starts with one."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_CPU_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost (pinned memory)
# DLDataTypeCode and bits; NumPy's own reader knows the standard ones only.
DLPACK_DTYPES: dict[tuple[int, int], np.dtype[Any]] = {
    **{(0, b): np.dtype(f"i{b // 8}") for b in (8, 16, 32, 64)},
    **{(1, b): np.dtype(f"u{b // 8}") for b in (8, 16, 32, 64)},
    **{(2, b): np.dtype(f"f{b // 8}") for b in (16, 32, 64)},
    **{(5, b): np.dtype(f"c{b // 8}") for b in (64, 128)},
    (4, 16): np.dtype(ml_dtypes.bfloat16),
    (6, 8): np.dtype(np.bool_),
    (10, 8): np.dtype(ml_dtypes.float8_e4m3fn),
    (11, 8): np.dtype(ml_dtypes.float8_e4m3fnuz),
    (12, 8): np.dtype(ml_dtypes.float8_e5m2),
    (13, 8): np.dtype(ml_dtypes.float8_e5m2fnuz),
    (14, 8): np.dtype(ml_dtypes.float8_e8m0fnu),
}
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _from_dlpack(where: str, value: Any) -> Array:
    """A view of a DLPack exporter's memory; the view keeps the exporter's capsule alive."""
    device = value.__dlpack_device__()[0]
    if int(device) not in _CPU_DEVICES:
        raise BindingError(
            f"{where}: got an array on DLPack device type {int(device)}, expected one in host "
            "memory; copy it to the host first"
        )
    try:
        capsule = value.__dlpack__()
    except (BufferError, RuntimeError, TypeError) as error:
        raise BindingError(
            f"{where}: {type(value).__name__} does not export its memory ({error})"
        ) from error
    tensor, kind = dlpack_tensor(where, capsule)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if 0 in shape:
        return np.empty(shape, kind)
    if tensor.strides:
        strides = tuple(tensor.strides[i] * kind.itemsize for i in range(tensor.ndim))
    else:
        strides = dense_strides(shape, kind.itemsize)
    if min(strides, default=0) < 0:
        raise BindingError(f"{where}: got negative strides {strides}, expected a contiguous array")
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + kind.itemsize
    memory = (ctypes.c_uint8 * reach).from_address(tensor.data + tensor.byte_offset)
    memory._capsule = capsule
    return np.ndarray(shape, kind, np.frombuffer(memory, np.uint8), 0, strides)


def dlpack_tensor(where: str, capsule: Any) -> tuple[DLTensor, np.dtype[Any]]:
    """What a DLPack capsule describes, and its dtype; valid as long as the capsule.

    Raises:
        BindingError: a type that is no scalar number.
    """
    tensor = DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    kind = DLPACK_DTYPES.get((tensor.dtype.code, tensor.dtype.bits))
    if kind is None or tensor.dtype.lanes != 1:
        raise BindingError(
            f"{where}: got DLPack dtype code {tensor.dtype.code} of {tensor.dtype.bits} bits × "
            f"{tensor.dtype.lanes}, expected a scalar number type"
        )
    return tensor, kind


def dense_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of a row-major array."""
    strides, step = [], itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))
