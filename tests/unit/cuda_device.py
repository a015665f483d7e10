"""A GPU in this process for whole builds: a driver in the place of cuda:0 that interprets the kernels of whatever is built."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from dovetail.builder import verify_launch
from dovetail.codegen import triton_compiler
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.triton_host import host_driver
from dovetail.core.errors import DeviceError
from dovetail.device.cuda import driver_cuda
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.tuner import cuda_choose

KERNELS: dict[str, Kernel] = {}
"""What was compiled while `remember` was in effect, by entry: names are hashes, so they mean the same in every test."""


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the source of whatever is compiled until the test ends."""
    for module in (triton_compiler, cuda_choose, verify_launch):
        compile_kernels: Any = vars(module)["compile_kernels"]

        def noted(kernels: Iterable[Kernel], *rest: Any, _next: Any = compile_kernels, **options: Any) -> Any:
            given = list(kernels)
            KERNELS.update({k.entry: k for k in given})
            return _next(given, *rest, **options)

        monkeypatch.setattr(module, "compile_kernels", noted)


def plug_in(monkeypatch: pytest.MonkeyPatch, capability: int = 90, ordinal: int = 0) -> HostDriver:
    """Plug a device in until the test ends."""
    remember(monkeypatch)
    driver = host_driver(KERNELS, ordinal, capability)
    monkeypatch.setitem(sys.modules["dovetail.device.cuda.driver"]._drivers, ordinal, driver)
    return driver


def pull_out(monkeypatch: pytest.MonkeyPatch, ordinals: Sequence[int] = (0, 1)) -> None:
    """No GPU here, whatever the machine has."""

    def missing(ordinal: int) -> HostDriver:
        raise DeviceError("cuda: got no usable NVIDIA driver (libcuda.so.1 is not there), expected one; install the driver")

    remember(monkeypatch)
    for ordinal in ordinals:
        monkeypatch.delitem(sys.modules["dovetail.device.cuda.driver"]._drivers, ordinal, raising=False)
    monkeypatch.setattr(driver_cuda, "CudaDriver", missing)
