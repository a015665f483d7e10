"""Stands for `cuda.cudart`, the older name of `cuda.bindings.runtime`."""

from dovetail.tensorrt.standins.cuda.bindings import runtime as _runtime
from dovetail.tensorrt.standins.cuda.bindings.runtime import *  # noqa: F403

__all__ = _runtime.__all__
