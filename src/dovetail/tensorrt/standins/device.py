"""What the stand-in says of its one device, and the library that holds its memory.

The device is this machine's CPU and main memory. It has no compute capability (0.0), so programs that ask for one take
their road for old devices.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

from dovetail.core.errors import DeviceError
from dovetail.tensorrt.standins.enums import RUNTIME_ATTRIBUTES, RUNTIME_ERRORS, error_text

NAME = "Dovetail stand-in (CPU)"
LIBRARY = "libcudart.so"

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_OUT = ctypes.POINTER(ctypes.c_void_p)
_OUT_SIZE = ctypes.POINTER(ctypes.c_size_t)
_INT = ctypes.c_int
_UNSIGNED = ctypes.c_uint
_OUT_INT = ctypes.POINTER(ctypes.c_int)

_SIGNATURES: dict[str, tuple[object, ...]] = {
    "cudaMalloc": (_OUT, _SIZE),
    "cudaMallocManaged": (_OUT, _SIZE, _UNSIGNED),
    "cudaMallocHost": (_OUT, _SIZE),
    "cudaHostAlloc": (_OUT, _SIZE, _UNSIGNED),
    "cudaMallocAsync": (_OUT, _SIZE, _POINTER),
    "cudaMallocFromPoolAsync": (_OUT, _SIZE, _POINTER, _POINTER),
    "cudaFree": (_POINTER,),
    "cudaFreeHost": (_POINTER,),
    "cudaFreeAsync": (_POINTER, _POINTER),
    "cudaHostRegister": (_POINTER, _SIZE, _UNSIGNED),
    "cudaHostUnregister": (_POINTER,),
    "cudaHostGetDevicePointer": (_OUT, _POINTER, _UNSIGNED),
    "cudaMemcpy": (_POINTER, _POINTER, _SIZE, _INT),
    "cudaMemcpyAsync": (_POINTER, _POINTER, _SIZE, _INT, _POINTER),
    "cudaMemcpy2D": (_POINTER, _SIZE, _POINTER, _SIZE, _SIZE, _SIZE, _INT),
    "cudaMemset": (_POINTER, _INT, _SIZE),
    "cudaMemsetAsync": (_POINTER, _INT, _SIZE, _POINTER),
    "cudaMemGetInfo": (_OUT_SIZE, _OUT_SIZE),
    "cudaStreamCreate": (_OUT,),
    "cudaStreamCreateWithFlags": (_OUT, _UNSIGNED),
    "cudaStreamCreateWithPriority": (_OUT, _UNSIGNED, _INT),
    "cudaStreamDestroy": (_POINTER,),
    "cudaStreamSynchronize": (_POINTER,),
    "cudaStreamQuery": (_POINTER,),
    "cudaStreamWaitEvent": (_POINTER, _POINTER, _UNSIGNED),
    "cudaStreamBeginCapture": (_POINTER, _INT),
    "cudaEventCreate": (_OUT,),
    "cudaEventCreateWithFlags": (_OUT, _UNSIGNED),
    "cudaEventDestroy": (_POINTER,),
    "cudaEventRecord": (_POINTER, _POINTER),
    "cudaEventRecordWithFlags": (_POINTER, _POINTER, _UNSIGNED),
    "cudaEventSynchronize": (_POINTER,),
    "cudaEventQuery": (_POINTER,),
    "cudaEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER),
    "cudaMemPoolCreate": (_OUT, _POINTER),
    "cudaMemPoolDestroy": (_POINTER,),
    "cudaMemPoolTrimTo": (_POINTER, _SIZE),
    "cudaDeviceGetDefaultMemPool": (_OUT, _INT),
    "cudaGetDeviceCount": (_OUT_INT,),
    "cudaSetDevice": (_INT,),
    "cudaGetDevice": (_OUT_INT,),
    "cudaSetDeviceFlags": (_UNSIGNED,),
    "cudaDeviceGetAttribute": (_OUT_INT, _INT, _INT),
    "cudaDeviceGetStreamPriorityRange": (_OUT_INT, _OUT_INT),
    "cudaDeviceSynchronize": (),
    "cudaDeviceReset": (),
    "cudaRuntimeGetVersion": (_OUT_INT,),
    "cudaDriverGetVersion": (_OUT_INT,),
    "cudaGetLastError": (),
    "cudaPeekAtLastError": (),
    "dovetail_find": (_POINTER, _OUT_SIZE, _OUT_SIZE),
    "dovetail_expose": (_POINTER, _SIZE),
    "dovetail_conceal": (_POINTER, _SIZE),
}


@functools.cache
def attributes() -> dict[str, int]:
    """The device's attributes by the runtime's names (`cudaDevAttr…`); what a CPU has nothing of is 0."""
    known = {
        "MaxThreadsPerBlock": 1024, "MaxBlockDimX": 1024, "MaxBlockDimY": 1024, "MaxBlockDimZ": 64,
        "MaxGridDimX": 2**31 - 1, "MaxGridDimY": 65535, "MaxGridDimZ": 65535, "WarpSize": 32,
        "TextureAlignment": 512, "MultiProcessorCount": os.cpu_count() or 1, "Integrated": 1,
        "CanMapHostMemory": 1, "ConcurrentKernels": 1, "UnifiedAddressing": 1, "ManagedMemory": 1,
        "MemoryPoolsSupported": 1, "HostRegisterSupported": 1, "CanUseHostPointerForRegisteredMem": 1,
    }  # fmt: skip
    return {name: known.get(name.removeprefix("cudaDevAttr"), 0) for name in RUNTIME_ATTRIBUTES}


def total_memory() -> int:
    """Bytes of memory that the device has: this machine's."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def source() -> str:
    """The C text of the library: tables of errors and attributes, then `cudart.c`."""
    rows = "".join(f'    {{{code}, "{name}", "{error_text(name)}"}},\n' for name, code in RUNTIME_ERRORS.items())
    numbers = attributes()
    values = "".join(f"    {{{RUNTIME_ATTRIBUTES[name]}, {value}}},\n" for name, value in numbers.items())
    tables = (
        f"static const struct {{ int code; const char *name, *text; }} errors[] = {{\n{rows}}};\n"
        f"static const struct {{ int attribute, value; }} attributes[] = {{\n{values}}};\n"
    )
    return tables + Path(__file__).with_name("cudart.c").read_text()


@functools.cache
def library_path() -> Path:
    """The library `libcudart.so` in the cache; compiled when it is first asked for.

    Raises:
        CompileError: the compiler is missing or rejects the source.
    """
    from dovetail.codegen.compiler import compile_library
    from dovetail.codegen.target import Target

    return compile_library(source(), Target.parse("cpu:generic"), LIBRARY).resolve()


@functools.cache
def library() -> ctypes.CDLL:
    """The library, loaded under the name that others ask the loader for; one table of allocations per process.

    Raises:
        CompileError: see `library_path`.
    """
    found = ctypes.CDLL(str(library_path()), mode=ctypes.RTLD_GLOBAL)
    for name, signature in _SIGNATURES.items():
        getattr(found, name).argtypes = signature
    for name in ("cudaGetErrorName", "cudaGetErrorString"):
        getattr(found, name).argtypes = (_INT,)
        getattr(found, name).restype = ctypes.c_char_p
    return found


def call(name: str, *arguments: Any) -> int:
    """Call a function of the library and return its code; numbers may be NumPy's.

    Raises:
        TypeError: a number that is not whole.
    """
    return int(getattr(library(), name)(*(index(value) if hasattr(value, "__index__") else value for value in arguments)))


def find(address: int) -> tuple[int, int, int] | None:
    """The allocation that `address` lies in, as (kind, first byte, bytes), kind as in cudaMemoryType; None if there is none."""
    base, size = ctypes.c_size_t(), ctypes.c_size_t()
    kind = library().dovetail_find(address, ctypes.byref(base), ctypes.byref(size))
    return (kind, base.value, size.value) if 0 < kind < 16 else None


@contextmanager
def exposed(*extents: tuple[int, int]) -> Iterator[None]:
    """Within the block, programs may copy from and to these extents (address, bytes), which no allocation of theirs holds.

    For memory of an engine whose address a program is given: a plugin's operands, a debug tensor.

    Raises:
        DeviceError: no memory for the table.
    """
    done: list[tuple[int, int]] = []
    try:
        for address, size in extents:
            if library().dovetail_expose(address, size):
                raise DeviceError(f"stand-in: got no memory to expose {size} bytes at {address:#x}, expected some; free some")
            done.append((address, size))
        yield
    finally:
        for address, size in done:
            library().dovetail_conceal(address, size)
