"""Finds and loads NVIDIA's optional libraries: where their wheels put them, or on the library path.

Nothing here needs a GPU. A library that is missing is a reason for a tactic, and an error only for an engine that calls it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dovetail.core.env import env
from dovetail.core.errors import DeviceError


@dataclass(frozen=True)
class Library:
    """A library: its file stem, major versions by preference, folders inside the `nvidia` package, and how to get it."""

    stem: str
    majors: tuple[int, ...]
    folders: tuple[str, ...]
    variable: str
    package: str

    @property
    def names(self) -> tuple[str, ...]:
        """File names by preference."""
        return tuple(f"lib{self.stem}.so.{major}" for major in self.majors)


# From CUDA 13 on, the wheels of a toolkit share one folder.
LIBRARIES = {
    "cublaslt": Library("cublasLt", (13, 12), ("cu13/lib", "cublas/lib"), "DOVETAIL_CUBLASLT", "nvidia-cublas"),
    "cudnn": Library("cudnn", (9,), ("cudnn/lib",), "DOVETAIL_CUDNN", "nvidia-cudnn-cu13"),
    "nvrtc": Library("nvrtc", (13, 12), ("cu13/lib", "cuda_nvrtc/lib"), "", "nvidia-cuda-nvrtc"),
}


def given(name: str) -> str:
    """The path that the user's environment names; "" for none."""
    return {"cublaslt": env().cublaslt, "cudnn": env().cudnn}.get(name, "")


def wheel_folders() -> tuple[Path, ...]:
    """Folders of the `nvidia` package, which NVIDIA's wheels share."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return ()
    return tuple(Path(p) for p in (spec.submodule_search_locations or ())) if spec is not None else ()


def find(name: str) -> Path | None:
    """The library's file in NVIDIA's wheels, or where the user says; None if it is in neither.

    A path that the user names is returned whether or not it exists, so that loading it reports a wrong one.
    """
    library, path = LIBRARIES[name], given(name)
    if path:
        return Path(path)
    for root in wheel_folders():
        for folder in library.folders:
            for file in library.names:
                if (root / folder / file).is_file():
                    return root / folder / file
    return None


@functools.cache
def _opened(name: str, path: str) -> ctypes.CDLL | str:
    """The loaded library, or what the loader said."""
    library = LIBRARIES[name]
    said = []
    for file in [path] if path else library.names:
        try:
            # Its parts look each other up by name, and find those that are loaded already.
            return ctypes.CDLL(file, mode=os.RTLD_GLOBAL | os.RTLD_NOW)
        except OSError as error:
            said.append(str(error))
    return "; ".join(said)


def missing(name: str) -> str | None:
    """None if the library can be loaded here, else the reason why not, in one line."""
    path = find(name)
    opened = _opened(name, str(path) if path is not None else "")
    if isinstance(opened, ctypes.CDLL):
        return None
    library = LIBRARIES[name]
    return f"{library.names[0]} is not installed here ({opened}); pip install {library.package}, or set {library.variable}"


def load(name: str) -> ctypes.CDLL:
    """The library.

    Raises:
        DeviceError: it is not there, or cannot be loaded.
    """
    path = find(name)
    opened = _opened(name, str(path) if path is not None else "")
    if isinstance(opened, ctypes.CDLL):
        return opened
    library = LIBRARIES[name]
    raise DeviceError(
        f"cuda: the engine calls {library.names[0]}, which cannot be loaded here ({opened}); install it with: pip install "
        f"{library.package}, set {library.variable} to its path, or build the engine without library tactics"
    )


def versions() -> str:
    """The versions of the libraries that can be loaded here, such as "cublaslt 130100, cudnn 91900": times depend on them."""
    found = []
    for name in ("cublaslt", "cudnn"):
        if missing(name) is None:
            module = importlib.import_module(f"dovetail.device.cuda.{name}")
            found.append(f"{name} {module.version()}")
    return ", ".join(found)


T = TypeVar("T")


class PreparedCalls(Generic[T]):
    """Library calls that are ready, by what they are: equal steps of engines and contexts share one. Bounded; thread-safe."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._found: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The call with this key, made at the first use."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = make()
        with self._lock:
            found = self._found.setdefault(key, made)
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return found
