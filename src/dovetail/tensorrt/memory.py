"""Addresses that clients give, as arrays: host memory for engines on a CPU, a GPU's for those on one."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dovetail.core.errors import BindingError
from dovetail.device.cpu.memory import address as address_of
from dovetail.runtime import RuntimeEngine
from dovetail.runtime.arrays import at_address
from dovetail.tensorrt import standins
from dovetail.tensorrt.enums import TensorLocation

ALIGNMENT = 256
"""Of the memory that output allocators are asked for, in bytes."""

_LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure


def integer(value: Any, where: str) -> int:
    """An address, a handle or an index as an int: an int, or an object that converts to one, as pycuda's and cuda-python's do.

    Raises:
        TypeError: something else, floats and texts among them.
    """
    try:
        return operator.index(value)
    except TypeError:
        convert = getattr(value, "__int__", None)
        if convert is None or isinstance(value, float | str | bytes | np.floating):
            raise TypeError(f"{where}: got {value!r}, expected an integer") from None
        return int(convert())


def captured(stream: int | None, run: Callable[[], bool]) -> bool:
    """Whether a client without a GPU is capturing the stream: the launches of its graph then run, and now is no run."""
    if stream is None or not standins.active():
        return False
    from dovetail.tensorrt.standins import graphs

    return graphs.record(stream, lambda: 0 if run() else _LAUNCH_FAILURE)


@contextmanager
def seen_by_client(array: np.ndarray[Any, Any]) -> Iterator[TensorLocation]:
    """Where an array of ours lies for a client, who may copy from it within the block.

    In host memory; where that stands in for a GPU's, as memory of the device, since such clients expect no other.
    """
    if not standins.active():
        yield TensorLocation.HOST
        return
    from dovetail.tensorrt.standins import device

    with device.exposed((address_of(array), array.nbytes)):
        yield TensorLocation.DEVICE


def array_at(engine: RuntimeEngine, where: str, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], *, host: bool = False) -> Any:
    """The array at a client's address on the engine's device; with `host` in host memory, as shape tensors lie.

    Raises:
        BindingError: the address is null, or the client's allocation ends before the array does, as far as that is known.
    """
    size = dtype.itemsize * math.prod(shape)
    if size and not address:
        raise BindingError(f"{where}: got the address 0, expected {size} bytes of memory")
    from dovetail.runtime.cuda import CudaEngine

    if isinstance(engine, CudaEngine) and not host:
        from dovetail.runtime.cuda.arrays import DeviceArray

        return DeviceArray.at(engine.driver, address, shape, dtype)
    if size and standins.active():
        from dovetail.tensorrt.standins import device

        found = device.find(address)
        if found is not None and address + size > found[1] + found[2]:
            raise BindingError(
                f"{where}: got an allocation of {found[2]} bytes, {found[1] + found[2] - address} of them from the address on, "
                f"expected {size} for the shape {shape}"
            )
    return at_address(address, shape, dtype)
