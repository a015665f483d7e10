"""Stands for `cuda.bindings`: `runtime`, `driver` and `nvrtc` on host memory."""

__version__ = "12.8.0"
__dovetail_standin__ = True
