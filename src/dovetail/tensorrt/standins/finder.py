"""Makes `import tensorrt` give `dovetail.tensorrt`, and `cuda` and `pycuda` their stand-ins where those are wanted.

Where they are not, modules that cuda-python 12 has and 13 no longer (`cuda.cudart`) are those that took their place.

This file imports nothing of Dovetail before such a name is asked for: `site/sitecustomize.py` runs it at the start of every
Python process that a launched program starts.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec as _find
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

_API = "dovetail.tensorrt"
_API_NAMES = ("tensorrt", "tensorrt_bindings")
_STANDINS = f"{_API}.standins"
_CUDA_NAMES = (
    "cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.bindings.driver", "cuda.bindings.nvrtc",
    "cuda.cudart", "cuda.cuda", "cuda.nvrtc",
)  # fmt: skip
# What cuda-python 12 has besides, and 13 no longer.
_OLDER = {"cuda.cudart": "cuda.bindings.runtime", "cuda.cuda": "cuda.bindings.driver", "cuda.nvrtc": "cuda.bindings.nvrtc"}


class _Alias(Loader):
    """Gives a module that exists under another name."""

    def __init__(self, home: str) -> None:
        self.home = home

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what stands here when the loader returns.
        sys.modules[module.__name__] = importlib.import_module(self.home)


class _Distribution(importlib.metadata.Distribution):
    """What `importlib.metadata.version("tensorrt")` finds."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {importlib.import_module(_API).__version__}\n"

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"tensorrt: got a request for the file {path}, expected none: it is dovetail.tensorrt by another name")


class Finder:
    """Stands first in `sys.meta_path`.

    Args:
        standins: whether `cuda` and `pycuda` are stood in for; None asks `standins.wanted()` when one of them is imported.
    """

    dovetail_dropin = True

    def __init__(self, standins: bool | None = None) -> None:
        self.standins = standins
        self._distribution = _Distribution()

    def stands_in(self) -> bool:
        """Whether `cuda` and `pycuda` are stood in for."""
        if self.standins is None:
            self.standins = bool(importlib.import_module(_STANDINS).wanted())
        return self.standins

    def home(self, name: str) -> str | None:
        """The module of Dovetail that `name` means; None where it means none."""
        top, _, rest = name.partition(".")
        if top not in (*_API_NAMES, "cuda", "pycuda") or _find("dovetail") is None:
            return None
        if top in _API_NAMES:
            # tensorrt.tensorrt and tensorrt_bindings.tensorrt are the extension module of the real package.
            return f"{_API}.{rest}" if rest not in ("", "tensorrt") else _API
        if (name in _CUDA_NAMES or top == "pycuda") and self.stands_in():
            return f"{_STANDINS}.{name}"
        return None

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        home = self.home(fullname)
        if home is None and fullname in _OLDER and PathFinder.find_spec(fullname, path) is None:
            home = _OLDER[fullname]
        found = None if home is None else _find(home)
        if home is None or found is None:
            return None
        return spec_from_loader(fullname, _Alias(home), origin=found.origin, is_package=found.submodule_search_locations is not None)

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        """See `importlib.metadata.DistributionFinder`."""
        name = getattr(context, "name", None)
        return [self._distribution] if name is None or name.lower() == "tensorrt" else []

    def invalidate_caches(self) -> None:
        """Nothing is cached."""


def claimed(name: str, standins: bool) -> bool:
    """Whether modules of that name are replaced while a finder is installed; `standins` says whether CUDA's are, too."""
    top = name.partition(".")[0]
    if top in _API_NAMES or (name in _OLDER and sys.modules[name].__name__ == _OLDER[name]):
        return True
    return standins and (name in _CUDA_NAMES or top == "pycuda" or name.startswith("cuda.bindings."))


def installed() -> Finder | None:
    """The finder in `sys.meta_path`, if there is one."""
    return next((finder for finder in sys.meta_path if getattr(finder, "dovetail_dropin", False)), None)  # type: ignore[return-value]


def add(standins: bool | None = None) -> Finder:
    """Put a finder ahead of all others, unless one is there."""
    finder = installed()
    if finder is None:
        finder = Finder(standins)
        sys.meta_path.insert(0, finder)
    return finder
