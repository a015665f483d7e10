"""Arrays on a device: the caller's, through DLPack or `__cuda_array_interface__`, and our own, which others read the same ways."""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail.core.errors import BindingError, ShapeError, UsageError
from dovetail.device.cuda.driver import Driver, Stream
from dovetail.device.cuda.memory import DeviceMemory
from dovetail.runtime.arrays import (
    DLPACK_DTYPES,
    DLTensor,
    dense_strides,
    dlpack_tensor,
    in_logical_order,
)

_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged
_LEGACY_STREAM = 1  # how DLPack writes the legacy default stream, whose handle is 0


@dataclass(slots=True)
class DeviceView:
    """A dense array in device memory; `owner` keeps the memory alive, `value` is what the caller sees of it."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any = None
    value: Any = None
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        size = self.dtype.itemsize
        for extent in self.shape:
            size *= extent
        self.nbytes = size


Allocate = Callable[[tuple[int, ...], np.dtype[Any]], DeviceView]
"""Makes an array for a result of this shape and dtype."""


class DeviceArray:
    """A dense array on a GPU, given to callers whose package cannot be told; read it with any `from_dlpack`, or `numpy()`.

    `strides` count elements.
    """

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.strides = dense_strides(shape, 1)
        self.dtype = dtype
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.driver = driver
        memory = DeviceMemory(driver, self.nbytes)
        self._memory: Any = memory
        self.address = memory.address

    @classmethod
    def of(cls, driver: Driver, array: np.ndarray[Any, Any]) -> DeviceArray:
        """A copy of a host array on a device."""
        with driver.active():
            made = cls(driver, array.shape, array.dtype)
            stream = driver.create_stream()
            driver.upload(made.address, np.ascontiguousarray(array), stream)
            driver.synchronize(stream)
            driver.destroy_stream(stream)
        return made

    @classmethod
    def at(cls, driver: Driver, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Any = None) -> DeviceArray:
        """The caller's memory at an address of a device, which must stay; `owner` is kept as long as the array."""
        made = cls.__new__(cls)
        made.shape, made.strides, made.dtype, made.driver = shape, dense_strides(shape, 1), dtype, driver
        made.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        made._memory, made.address = owner, address
        return made

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy on the host; waits for all of the device's work that was queued in other streams to finish first."""
        order = sorted(range(len(self.shape)), key=lambda axis: (-self.strides[axis], axis))  # as it lies in memory
        result = np.empty([self.shape[axis] for axis in order], self.dtype)
        with self.driver.active():
            stream = self.driver.create_stream()
            self.driver.synchronize_device()
            self.driver.download(result, self.address, stream)
            self.driver.synchronize(stream)
            self.driver.destroy_stream(stream)
        return result.transpose([order.index(axis) for axis in range(len(order))])

    def transpose(self, axes: Sequence[int]) -> DeviceArray:
        """The same memory with axis i being axis axes[i] of this array."""
        other = copy.copy(self)
        other.shape, other.strides = tuple(self.shape[a] for a in axes), tuple(self.strides[a] for a in axes)
        return other

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = tuple(s * self.dtype.itemsize for s in self.strides)
        dense = self.strides == dense_strides(self.shape, 1)
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3,
            "strides": None if dense else strides,
        }  # fmt: skip

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.driver.properties.ordinal)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule of this memory; whoever asks says nothing of order that the runtime would not give: results are complete."""
        return _export(self)


# --- reading the caller's arrays ------------------------------------------------------------------


def stream_handle(stream: Any) -> Stream | None:
    """The handle of a stream: an int, or an object of any package (`__cuda_stream__`, `cuda_stream`, `ptr`); None stays None.

    Raises:
        UsageError: nothing of that kind.
    """
    if stream is None or isinstance(stream, int):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr", "handle"):
        found = getattr(stream, name, None)
        if found is not None:
            return int(found)
    raise UsageError(f"stream: got {type(stream).__name__}, expected an int handle or an object with __cuda_stream__ or cuda_stream")


def is_device_array(value: Any) -> bool:
    """Whether a value is an array in a GPU's memory."""
    if isinstance(value, np.ndarray | np.generic):
        return False
    if isinstance(value, DeviceArray):
        return True
    device = getattr(value, "__dlpack_device__", None)
    if device is not None:
        return int(device()[0]) in _CUDA_DEVICES
    return _interface(value) is not None


def as_device(
    where: str, value: Any, want: np.dtype[Any], driver: Driver, stream: Stream, capturing: bool, order: tuple[int, ...] = ()
) -> DeviceView:
    """The caller's device array, read in place; `stream` will wait for what the caller's package has queued for it.

    With `order` the caller's axes lie in memory in that order, from outermost to innermost, and so do the view's.

    Raises:
        BindingError: another device or dtype, not dense, or not readable.
        ShapeError: another rank than that of `order`.
    """
    if isinstance(value, DeviceArray):
        if value.driver.properties.ordinal != driver.properties.ordinal:
            raise _elsewhere(where, value.driver.properties.ordinal, driver)
        return DeviceView(value.address, _checked(where, value.dtype, want, value.shape, value.strides, order), want, value, value)
    if not hasattr(value, "__dlpack_device__"):
        return _of_interface(where, value, want, driver, stream, capturing, order)
    kind, ordinal = value.__dlpack_device__()
    if int(kind) == 2 and int(ordinal) != driver.properties.ordinal:
        raise _elsewhere(where, int(ordinal), driver)
    # -1: in a capture there is nobody to wait for; the capture has its own order.
    asked = -1 if capturing else stream or _LEGACY_STREAM
    try:
        capsule = value.__dlpack__(stream=asked)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise BindingError(f"{where}: {type(value).__name__} does not export its memory ({error})") from error
    tensor, found = dlpack_tensor(where, capsule)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    shape = _checked(where, found, want, shape, strides, order)
    return DeviceView((tensor.data or 0) + tensor.byte_offset, shape, want, (value, capsule), value)


def _interface(value: Any) -> dict[str, Any] | None:
    try:
        found = getattr(value, "__cuda_array_interface__", None)
    except (RuntimeError, TypeError):
        return None  # torch refuses dtypes that it does not know
    return found if isinstance(found, dict) else None


def _of_interface(
    where: str, value: Any, want: np.dtype[Any], driver: Driver, stream: Stream, capturing: bool, order: tuple[int, ...]
) -> DeviceView:
    found = _interface(value)
    if found is None:
        raise BindingError(f"{where}: got {type(value).__name__}, expected an array on a GPU (DLPack or __cuda_array_interface__)")
    pointer = int(found["data"][0] or 0)
    shape = tuple(int(n) for n in found["shape"])
    if pointer and 0 not in shape:
        ordinal = driver.owner(pointer)
        if ordinal != driver.properties.ordinal:
            raise _elsewhere(where, ordinal, driver)
    given = found.get("strides")
    kind = np.dtype(found["typestr"])
    # The interface has no name for the types of ml_dtypes: they come as bytes of their size.
    if kind != want and kind.kind == "V" and kind.itemsize == want.itemsize and want.kind not in "fiub":
        kind = want
    strides = None if given is None else tuple(int(s) // kind.itemsize for s in given)
    shape = _checked(where, kind, want, shape, strides, order)
    other = found.get("stream")
    if other is not None and not capturing and other != (stream or _LEGACY_STREAM):
        event = driver.create_event()
        driver.record(event, 0 if other == _LEGACY_STREAM else int(other))
        driver.wait(stream, event)
        driver.destroy_event(event)
    return DeviceView(pointer, shape, want, value, value)


def _checked(
    where: str,
    found: np.dtype[Any],
    want: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    order: tuple[int, ...],
) -> tuple[int, ...]:
    """The shape in memory's order of axes, if the array is dense in that order and of the right type."""
    if found != want:
        raise BindingError(f"{where}: got dtype {found}, expected {want}; convert it, values are never cast silently")
    dense = dense_strides(shape, 1)
    given = strides or dense
    if not order and given == dense:
        return shape
    ordered, steps = shape, given
    if order:
        if len(shape) != len(order):
            raise ShapeError(f"{where}: got rank {len(shape)} (shape {shape}), expected rank {len(order)}")
        ordered, steps = tuple(shape[a] for a in order), tuple(given[a] for a in order)
    if 0 not in shape and any(n > 1 and a != b for n, a, b in zip(ordered, steps, dense_strides(ordered, 1), strict=True)):
        how = f"one whose axes lie in the order {order} in memory" if order else "a contiguous array; call .contiguous()"
        raise BindingError(f"{where}: got strides {given} of shape {shape}, expected {how}")
    return ordered


def _elsewhere(where: str, ordinal: int | None, driver: Driver) -> BindingError:
    at = "host memory" if ordinal is None else f"cuda:{ordinal}"
    return BindingError(
        f"{where}: got an array in {at}, expected one on cuda:{driver.properties.ordinal}, where the engine is; move it there, or load the "
        "engine on its device"
    )


# --- results of the caller's kind -----------------------------------------------------------------


def allocator_like(example: Any, driver: Driver, stream: Stream, capturing: bool) -> Allocate:
    """Makes results of the kind of the caller's array, on its device."""
    package = type(example).__module__.partition(".")[0]
    module = sys.modules.get(package)

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceView:
        if package == "torch" and module is not None:
            made = module.empty(shape, dtype=getattr(module, dtype.name), device=example.device)
            return as_device("output", made, dtype, driver, stream, capturing)
        if package == "cupy" and module is not None and dtype.kind in "fiub":
            with module.cuda.Device(driver.properties.ordinal):
                made = module.empty(shape, dtype)
            return as_device("output", made, dtype, driver, stream, capturing)
        array = DeviceArray(driver, shape, dtype)
        return DeviceView(array.address, shape, dtype, array, array)

    return allocate


def allocator_in_order(make: Allocate, order: tuple[int, ...]) -> Allocate:
    """Makes arrays that lie in memory as asked, and that the caller sees with his own axes."""

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceView:
        view = make(shape, dtype)
        view.value = in_logical_order(view.value, order)
        return view

    return allocate


def as_given(value: Any, example: Any) -> Any:
    """A result in the package of the caller's array, where that reads DLPack; complete results only."""
    if not isinstance(value, DeviceArray) or isinstance(example, DeviceArray):
        return value
    package = type(example).__module__.partition(".")[0]
    if package in ("jax", "jaxlib"):
        reader = getattr(getattr(sys.modules.get("jax"), "dlpack", None), "from_dlpack", None)
    else:
        reader = getattr(sys.modules.get(package), "from_dlpack", None)
    return value if reader is None else reader(value)


# --- our arrays as DLPack -------------------------------------------------------------------------


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_exported: dict[int, Any] = {}  # what exported memory needs, until its reader lets go


def _let_go(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


_let_go_c = _Deleter(_let_go)
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


def _destroy(capsule: int) -> None:
    """Of a capsule that nobody has read."""
    if ctypes.pythonapi.PyCapsule_IsValid(ctypes.c_void_p(capsule), b"dltensor"):
        pointer = _pointer_of(ctypes.c_void_p(capsule), b"dltensor")
        _exported.pop(int(pointer or 0), None)


_destroy_c = _Destructor(_destroy)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(("PyCapsule_New", ctypes.pythonapi))
_NAME = b"dltensor"
_DLPACK_CODES = {kind: code for code, kind in DLPACK_DTYPES.items()}


def _export(array: DeviceArray) -> Any:
    if array.dtype not in _DLPACK_CODES:
        raise BufferError(f"DLPack has no type {array.dtype}")
    managed = _Managed()
    rank = len(array.shape)
    shape, strides = (ctypes.c_int64 * rank)(*array.shape), (ctypes.c_int64 * rank)(*array.strides)
    tensor = managed.tensor
    tensor.data = array.address
    tensor.device.type, tensor.device.id = array.__dlpack_device__()
    tensor.ndim = rank
    tensor.dtype.code, tensor.dtype.bits = _DLPACK_CODES[array.dtype]
    tensor.dtype.lanes = 1
    tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _let_go_c
    _exported[ctypes.addressof(managed)] = (managed, shape, strides, array)
    return _new_capsule(ctypes.addressof(managed), _NAME, _destroy_c)
