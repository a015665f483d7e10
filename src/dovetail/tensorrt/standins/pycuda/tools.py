"""Stands for `pycuda.tools`: contexts, and the memory pools as plain allocators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dovetail.tensorrt.standins.pycuda import driver as _driver


def make_default_context(ctx_maker: Callable[[Any], Any] | None = None) -> Any:
    """A context of device 0, current to this thread."""
    device = _driver.Device(0)
    return device.make_context() if ctx_maker is None else ctx_maker(device)


def clear_context_caches() -> None:
    """Forget what is cached per context: nothing."""


class DeviceMemoryPool:
    """Device memory; what is given back is freed at once."""

    def allocate(self, size: int) -> _driver.DeviceAllocation:
        """Device memory of `size` bytes."""
        return _driver.mem_alloc(size)

    def free_held(self) -> None:
        """Free what the pool keeps: nothing."""

    def stop_holding(self) -> None:
        """Keep nothing, as ever."""
