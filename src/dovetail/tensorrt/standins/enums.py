"""CUDA's enumerations, made from `names.py`, and the texts of its errors."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, cast

from dovetail.tensorrt.standins import names

_TEXTS = {
    "Success": "no error",
    "ErrorInvalidValue": "invalid argument",
    "ErrorMemoryAllocation": "out of memory",
    "ErrorInvalidMemcpyDirection": "invalid copy direction for memcpy",
    "ErrorInvalidPitchValue": "invalid pitch argument",
    "ErrorNoDevice": "no CUDA-capable device is detected",
    "ErrorInvalidDevice": "invalid device ordinal",
    "ErrorInvalidResourceHandle": "invalid resource handle",
    "ErrorNotReady": "device not ready",
    "ErrorNotSupported": "operation not supported",
}


class CudaEnum(IntEnum):
    """An enumeration that prints as the CUDA bindings' own do."""

    def __str__(self) -> str:
        return repr(self)


def table(text: str, prefix: str) -> dict[str, int]:
    """The members of one text of `names`, by full name."""
    words = text.split()
    return {prefix + name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}


def enumeration(name: str, members: dict[str, int], module: str) -> Any:
    """An enumeration of the module `module`; later members of equal value are aliases, as in CUDA."""
    return cast(Any, CudaEnum)(name, members, module=module)


def error_text(name: str) -> str:
    """What an error of the runtime, by its full name, means in words."""
    short = name.removeprefix("cuda")
    return _TEXTS.get(short) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", short.removeprefix("Error")).lower()


RUNTIME_ERRORS = table(names.RUNTIME_ERRORS, "cuda")
RUNTIME_ATTRIBUTES = table(names.RUNTIME_ATTRIBUTES, "cudaDevAttr")
DRIVER_ERRORS = table(names.DRIVER_ERRORS, "CUDA_")
DRIVER_ATTRIBUTES = table(names.DRIVER_ATTRIBUTES, "CU_DEVICE_ATTRIBUTE_")
NVRTC_RESULTS = table(names.NVRTC_RESULTS, "NVRTC_")
POOL_ATTRIBUTES = table(names.POOL_ATTRIBUTES, "cudaMemPool")
