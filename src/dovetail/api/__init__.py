"""The public API: build, load, compare, and the Engine they make.

Names are imported when they are first used: loading an engine needs neither onnx nor the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.api.bindings import Binding
    from dovetail.api.bisecting import Culprit, bisect
    from dovetail.api.building import build
    from dovetail.api.comparison import Comparison, compare
    from dovetail.api.difference import Diff, diff
    from dovetail.api.engine import Engine
    from dovetail.api.loading import load
    from dovetail.api.profile import Profile
    from dovetail.api.reducing import Reduced, reduce
    from dovetail.api.refitting import Refit, refit_file
    from dovetail.api.report import Report
    from dovetail.api.tuning import tune
    from dovetail.api.weight_match import match_weights

__all__ = [
    "Binding", "Comparison", "Culprit", "Diff", "Engine", "Profile", "Reduced", "Refit", "Report", "bisect", "build", "compare",
    "diff", "load", "match_weights", "reduce", "refit_file", "tune",
]  # fmt: skip

_HOMES = {
    "Binding": "bindings",
    "Comparison": "comparison",
    "Culprit": "bisecting",
    "Diff": "difference",
    "Engine": "engine",
    "Profile": "profile",
    "Reduced": "reducing",
    "Refit": "refitting",
    "Report": "report",
    "bisect": "bisecting",
    "build": "building",
    "compare": "comparison",
    "diff": "difference",
    "load": "loading",
    "match_weights": "weight_match",
    "reduce": "reducing",
    "refit_file": "refitting",
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
