"""The device that engines are built for and run on: a GPU where one is usable, else the CPU."""

from __future__ import annotations

import functools
import os

from dovetail.core.env import env
from dovetail.core.errors import DeviceError
from dovetail.core.log import logger

_log = logger("tensorrt")


def device() -> str:
    """"cpu" or "cuda:N": what DOVETAIL_TENSORRT_DEVICE says, else this thread's GPU (`cudaSetDevice`), else the first, else the CPU.

    Where CUDA is stood in for, device addresses are host addresses, and engines run on the CPU.
    """
    from dovetail.tensorrt import standins

    chosen = env().tensorrt_device
    if chosen == "cuda":
        return f"cuda:{_current()}"
    if chosen:
        return chosen
    if standins.active() or not standins.gpu_present():
        return "cpu"
    number = _current()
    return f"cuda:{number}" if _usable(number) else "cpu"


def uses_gpu() -> bool:
    """Whether engines run on a GPU, so that clients' addresses are the GPU's."""
    return device() != "cpu"


def total_memory() -> int:
    """Bytes of the device's memory."""
    chosen = device()
    if chosen == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    from dovetail.device.cuda import driver

    return driver(ordinal(chosen)).properties.memory


def shared_memory() -> int:
    """Bytes that a kernel may keep close: shared memory of a GPU's block, at most; of a CPU none."""
    return 227 * 1024 if uses_gpu() else 0


def ordinal(name: str) -> int:
    """The number of a GPU by its name "cuda:N"."""
    return int(name.partition(":")[2] or 0)


def _current() -> int:
    from dovetail.device.cuda import current_ordinal

    return current_ordinal() or 0


@functools.cache
def _usable(number: int) -> bool:
    """Whether there is a GPU of that number that Dovetail makes code for."""
    from dovetail.builder.options import isa_of
    from dovetail.device.cuda import driver

    try:
        found = driver(number).properties
        isa_of(number, found.name, found.capability)
    except DeviceError as error:
        _log.info("cuda:%d is not used: %s", number, error)
        return False
    return True
