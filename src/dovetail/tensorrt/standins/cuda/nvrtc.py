"""Stands for `cuda.nvrtc`, the older name of `cuda.bindings.nvrtc`."""

from dovetail.tensorrt.standins.cuda.bindings import nvrtc as _nvrtc
from dovetail.tensorrt.standins.cuda.bindings.nvrtc import *  # noqa: F403

__all__ = _nvrtc.__all__
