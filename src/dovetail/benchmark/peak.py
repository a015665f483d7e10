"""The machine's fp32 fused-multiply-add peak and its memory bandwidth, measured by kernels that do nothing else.

Twelve independent chains of vector FMAs per thread keep both FMA units of current cores busy (latency 4 cycles,
2 per cycle), and stay in registers. Model speeds are then quoted as a share of what this machine, at its actual
clock, can do.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

import numpy as np

from dovetail.codegen.compiler import compile_c
from dovetail.codegen.target import CpuTarget, Target

_CHAINS = 12
_REPEATS = 2_000_000

_BANDWIDTH_BYTES = 256 << 20  # of all threads together: more than the last cache of most machines
_STREAM = """
typedef float vec __attribute__((vector_size(64), aligned(64)));
void read_all(long long vectors, const void *from, float *out) {{
    const vec *x = from;
    vec a = (vec){{}}, b = a, c = a, d = a;
    for (long long i = 0; i + 3 < vectors; i += 4) {{ a += x[i]; b += x[i + 1]; c += x[i + 2]; d += x[i + 3]; }}
    a += b + c + d;
    for (int i = 0; i < 16; i++) out[i] = a[i];
}}
"""

_SOURCE = """
typedef float vec __attribute__((vector_size({bytes})));
void fma_peak(long long repeats, float *out) {{
    vec a = (vec){{}} + 0.999999f, b = (vec){{}} + 1e-6f;
    {declare}
    for (long long i = 0; i < repeats; i++) {{
        {step}
        __asm__ volatile("" : {hold});
    }}
    vec s = {total};
    for (int i = 0; i < {lanes}; i++) out[i] = s[i];
}}
"""


def source(target: CpuTarget) -> str:
    """C text of the kernel for a target."""
    chains = [f"c{i}" for i in range(_CHAINS)]
    return _SOURCE.format(
        bytes=target.vector_bytes,
        lanes=target.vector_floats,
        declare=" ".join(f"vec {c} = b + {i}.0f;" for i, c in enumerate(chains)),
        step=" ".join(f"{c} = {c} * a + b;" for c in chains),
        hold=", ".join(f'"+{"x" if target.arch == "x86_64" else "w"}"({c})' for c in chains)
        if target.vector_bytes < 64
        else ", ".join(f'"+v"({c})' for c in chains),
        total=" + ".join(chains),
    )


def measure_gflops(threads: int = 1, target: CpuTarget | None = None, seconds: float = 0.5) -> float:
    """fp32 GFLOP/s of `threads` threads that do FMAs alone (two operations each); best of a few trials.

    Raises:
        CompileError: no C compiler.
    """
    target = target or Target.host()
    library = ctypes.CDLL(str(compile_c(source(target), target)))
    kernel = library.fma_peak
    kernel.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    kernel.restype = None
    flops_per_thread = 2.0 * _CHAINS * target.vector_floats * _REPEATS
    best, deadline = 0.0, time.perf_counter() + seconds
    outputs = [(ctypes.c_float * target.vector_floats)() for _ in range(threads)]
    while time.perf_counter() < deadline or not best:
        elapsed = _parallel(lambda index: kernel(_REPEATS, ctypes.addressof(outputs[index])), threads)
        best = max(best, flops_per_thread * threads / elapsed / 1e9)
    return best


def measure_bandwidth(threads: int = 1, target: CpuTarget | None = None, seconds: float = 0.5) -> float:
    """10^9 bytes per second that `threads` threads read from memory, each from an array of its own; best of a few trials.

    Raises:
        CompileError: no C compiler.
    """
    kernel = ctypes.CDLL(str(compile_c(_STREAM.format(), target or Target.host()))).read_all
    kernel.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    kernel.restype = None
    vectors = _BANDWIDTH_BYTES // threads // 64
    arrays = [np.ones(vectors * 16 + 16, np.float32) for _ in range(threads)]
    starts = [a.ctypes.data + -a.ctypes.data % 64 for a in arrays]
    outputs = [(ctypes.c_float * 16)() for _ in range(threads)]
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline or not best:
        elapsed = _parallel(lambda index: kernel(vectors, starts[index], ctypes.addressof(outputs[index])), threads)
        best = max(best, vectors * 64 * threads / elapsed / 1e9)
    return best


def _parallel(call: Callable[[int], object], threads: int) -> float:
    """Seconds from the common start to the end of the last thread; foreign calls release the interpreter lock."""
    gate = threading.Barrier(threads + 1)

    def work(index: int) -> None:
        gate.wait()
        call(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    gate.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start
