"""Runs loop kernels in C and NumPy over flat arrays, for tests."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.codegen.compiler import compile_c
from dovetail.codegen.kernel import Kernel, translation_unit
from dovetail.codegen.target import Target
from dovetail.core.dims import evaluate


def run_c(
    kernel: Kernel,
    arrays: Sequence[np.ndarray[Any, Any]],
    env: Mapping[str, int],
    threads: int = 1,
    target: Target | None = None,
) -> None:
    """Call a kernel once per thread, one thread after the other."""
    target = target or Target.host()
    library = ctypes.CDLL(str(compile_c(translation_unit([kernel], target), target)))
    workspace = np.zeros(evaluate(kernel.workspace_bytes, env) + 64, np.uint8)
    start = workspace[-workspace.ctypes.data % 64 :]
    pointers = [a.ctypes.data for a in arrays] + [start.ctypes.data]
    p = (ctypes.c_void_p * len(pointers))(*pointers)
    d = (ctypes.c_int64 * (len(kernel.dims) + 1))(*[evaluate(x, env) for x in kernel.dims])
    entry = getattr(library, kernel.entry)
    entry.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    entry.restype = None
    for tid in range(threads):
        entry(tid, threads, p, d)
