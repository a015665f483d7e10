"""The public API: build, load, compare, and the Engine they make."""

from dovetail.api.bindings import Binding
from dovetail.api.building import build
from dovetail.api.comparison import Comparison, compare
from dovetail.api.engine import Engine
from dovetail.api.loading import load
from dovetail.api.profile import Profile
from dovetail.api.report import Report

__all__ = ["Binding", "Comparison", "Engine", "Profile", "Report", "build", "compare", "load"]
