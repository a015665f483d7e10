"""The public API: build, load, compare, and the Engine they make.

Names are imported when they are first used: loading an engine needs neither onnx nor the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.api.bindings import Binding
    from dovetail.api.building import build
    from dovetail.api.comparison import Comparison, compare
    from dovetail.api.engine import Engine
    from dovetail.api.loading import load
    from dovetail.api.profile import Profile
    from dovetail.api.report import Report
    from dovetail.api.tuning import tune

__all__ = ["Binding", "Comparison", "Engine", "Profile", "Report", "build", "compare", "load", "tune"]

_HOMES = {
    "Binding": "bindings",
    "Comparison": "comparison",
    "Engine": "engine",
    "Profile": "profile",
    "Report": "report",
    "build": "building",
    "compare": "comparison",
    "load": "loading",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dovetail.api' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dovetail.api.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
