"""Stands for `pycuda.compiler`, so that programs import: there is nothing to compile kernels for."""

from __future__ import annotations

from typing import Any

from dovetail.tensorrt.standins.pycuda import driver as _driver


class SourceModule:
    """Not possible without a GPU.

    Raises:
        CompileError: always.
    """

    def __init__(self, source: str, *arguments: Any, **options: Any) -> None:
        raise _driver.CompileError("pycuda.compiler: got a CUDA kernel to compile, expected none: this machine has no GPU")
