"""The CPU: the host library, the worker pool, kernel libraries and aligned memory."""

from pathlib import Path

from dovetail.device.cpu.host import HostLibrary
from dovetail.device.cpu.library import KernelLibrary
from dovetail.device.cpu.memory import ALIGNMENT, aligned_bytes, aligned_empty
from dovetail.device.cpu.pool import MAX_THREADS, Pool, default_threads, pool, set_affinity

HOST_SOURCE = (Path(__file__).parent / "pool.c").read_text(encoding="utf-8")
"""C source of the host library; the builder compiles it and ships the binary with the engine."""

__all__ = [
    "ALIGNMENT",
    "HOST_SOURCE",
    "MAX_THREADS",
    "HostLibrary",
    "KernelLibrary",
    "Pool",
    "aligned_bytes",
    "aligned_empty",
    "default_threads",
    "pool",
    "set_affinity",
]
