"""Runs at the start of every Python process that `python -m dovetail.tensorrt` starts, whose PYTHONPATH has this folder."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

_here = Path(__file__).resolve().parent


def _run(spec: ModuleSpec | None) -> Any:
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _others() -> ModuleSpec | None:
    """The sitecustomize that this one stands in front of, if there is one."""
    elsewhere = [folder for folder in sys.path if Path(folder or ".").resolve() != _here]
    return PathFinder.find_spec("sitecustomize", elsewhere)


_run(importlib.util.spec_from_file_location("_dovetail_finder", _here.parent / "finder.py")).add()
if (_spec := _others()) is not None:
    _run(_spec)
