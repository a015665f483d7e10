"""Loads compiled kernels: a shared object from a path or from bytes, symbols by name."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import weakref
from pathlib import Path

from dovetail.core.errors import DeviceError


def load_shared_object(source: str | Path | bytes | memoryview) -> tuple[ctypes.CDLL, str]:
    """Load a shared object; returns it and what to call it in messages.

    Bytes are loaded without a trace on disk where the system can (memfd), else through a private
    temporary file.

    Raises:
        DeviceError: no such file, or not a shared object for this machine.
    """
    if isinstance(source, str | Path):
        return _open(str(source), str(source)), str(source)
    if hasattr(os, "memfd_create"):
        # The loader identifies libraries by name first, so the descriptor (hence the name) must
        # stay taken as long as the library is loaded: it is closed with it.
        descriptor = os.memfd_create("dovetail-kernels", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(source)
            library = _open(f"/proc/self/fd/{descriptor}", "kernels in memory")
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(library, os.close, descriptor).atexit = False
        return library, "kernels in memory"
    suffix = ".dll" if sys.platform == "win32" else ".so"
    handle, path = tempfile.mkstemp(suffix, "dovetail-")
    with os.fdopen(handle, "wb") as file:
        file.write(source)
    try:
        return _open(path, "kernels in memory"), "kernels in memory"
    finally:
        if sys.platform != "win32":  # Windows keeps a loaded file locked
            os.unlink(path)


def _open(path: str, name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(os.path.abspath(path), use_errno=False)
    except OSError as error:
        raise DeviceError(
            f"{name}: cannot load kernels ({error}), expected a shared object for this machine; "
            "rebuild the engine for this target"
        ) from error


class KernelLibrary:
    """A loaded shared object of kernels; unloaded with its last reference."""

    def __init__(self, source: str | Path | bytes | memoryview) -> None:
        self._library, self.name = load_shared_object(source)
        self._addresses: dict[str, int] = {}
        self._finalizer = weakref.finalize(self, _unload, self._library, self._library._handle)
        self._finalizer.atexit = False  # the process ends anyway; a worker may still be inside

    def __contains__(self, entry: str) -> bool:
        return self._find(entry) is not None

    def address(self, entry: str) -> int:
        """Address of the kernel `entry`.

        Raises:
            DeviceError: the library has no such symbol.
        """
        found = self._find(entry)
        if found is None:
            raise DeviceError(
                f"{self.name}: got no kernel {entry!r}, expected it among the exported symbols; "
                "rebuild the engine"
            )
        return found

    def _find(self, entry: str) -> int | None:
        if entry not in self._addresses:
            try:
                symbol = self._library[entry]
            except AttributeError:
                return None
            pointer = ctypes.cast(symbol, ctypes.c_void_p).value
            if pointer is None:
                return None
            self._addresses[entry] = pointer
        return self._addresses[entry]


def _unload(library: ctypes.CDLL, handle: int) -> None:
    """Unmap the code; `library` is held so that its descriptor closes after, not before."""
    import _ctypes

    if sys.platform == "win32":
        _ctypes.FreeLibrary(handle)
    else:
        _ctypes.dlclose(handle)
