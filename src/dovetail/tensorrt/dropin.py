"""`import tensorrt` gives Dovetail: in this process by `install()`, for a whole program by `python -m dovetail.tensorrt`."""

from __future__ import annotations

import importlib
import site
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from dovetail.core.env import export
from dovetail.tensorrt import standins as _standins
from dovetail.tensorrt.standins import finder as _finder

_SITE = Path(_standins.__file__).resolve().parent / "site"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class _Saved:
    """What `uninstall` puts back."""

    modules: dict[str, ModuleType] = field(default_factory=dict)
    variables: dict[str, str | None] = field(default_factory=dict)


_saved: _Saved | None = None


def install(*, standins: bool | None = None, children: bool = False) -> None:
    """From now on, `import tensorrt` gives `dovetail.tensorrt` in this process; again it changes nothing but `children`.

    Args:
        standins: whether `cuda.bindings`, `cuda.cudart`, `pycuda` and `libcudart.so` are stood in for by host memory, too;
            None: where there is no GPU, unless DOVETAIL_TENSORRT_STANDINS says otherwise.
        children: whether Python processes that are started from here do the same.

    Raises:
        CompileError: the stand-in for `libcudart.so` cannot be compiled.
    """
    global _saved
    if _saved is None:
        chosen = _standins.wanted() if standins is None else standins
        _saved = _Saved()
        if chosen:
            from dovetail.tensorrt.standins import device

            device.library()  # whoever asks the loader for libcudart.so from now on gets this one
            _lead("LD_LIBRARY_PATH", device.library_path().parent)
        _saved.modules = _take(chosen)
        _finder.add().standins = chosen
    if children:
        found = _finder.installed()
        chosen = found is not None and found.stands_in()
        _set("DOVETAIL_TENSORRT_STANDINS", str(int(chosen)))
        if str(_ROOT) not in (*site.getsitepackages(), site.getusersitepackages()):
            _lead("PYTHONPATH", _ROOT)
        _lead("PYTHONPATH", _SITE)


def uninstall() -> None:
    """Undo `install`: later imports find what is installed. Modules that a program holds already stay what they are."""
    global _saved
    if _saved is None:
        return
    found = _finder.installed()
    if found is not None:
        _take(found.stands_in())
        sys.meta_path.remove(found)
    sys.modules.update(_saved.modules)
    for name, value in _saved.variables.items():
        export(name, value)
    _saved = None
    importlib.invalidate_caches()


def _take(chosen: bool) -> dict[str, ModuleType]:
    """Take the modules that are replaced out of `sys.modules`."""
    names = [name for name in sys.modules if _finder.claimed(name, chosen)]
    return {name: sys.modules.pop(name) for name in names}


def _set(name: str, value: str) -> None:
    before = export(name, value)
    assert _saved is not None
    _saved.variables.setdefault(name, before)


def _lead(name: str, folder: Path) -> None:
    """Put a folder ahead of those of a path variable, once."""
    before = export(name, None)
    folders = [part for part in (before or "").split(":") if part and part != str(folder)]
    export(name, before)
    _set(name, ":".join([str(folder), *folders]))
