"""Stands for `cuda.bindings.nvrtc`, so that programs import: there is nothing to compile for, and every compile says so."""

from __future__ import annotations

from typing import Any

from dovetail.tensorrt.standins import enums as _enums
from dovetail.tensorrt.standins.handles import Handle

nvrtcResult = _enums.enumeration("nvrtcResult", _enums.NVRTC_RESULTS, __name__)


class nvrtcProgram(Handle):
    """A program."""


def nvrtcVersion() -> tuple[Any, int, int]:
    """The version that is stood in for."""
    return nvrtcResult.NVRTC_SUCCESS, 12, 8


def nvrtcGetErrorString(result: Any) -> tuple[Any, bytes]:
    """The name of a result."""
    return nvrtcResult.NVRTC_SUCCESS, nvrtcResult(result).name.encode()


def nvrtcCreateProgram(src: bytes, name: bytes, numHeaders: int, headers: Any, includeNames: Any) -> tuple[Any, None]:
    """Not possible here: NVRTC_ERROR_PROGRAM_CREATION_FAILURE."""
    return nvrtcResult.NVRTC_ERROR_PROGRAM_CREATION_FAILURE, None


__dovetail_standin__ = True
__all__ = ["nvrtcCreateProgram", "nvrtcGetErrorString", "nvrtcProgram", "nvrtcResult", "nvrtcVersion"]
