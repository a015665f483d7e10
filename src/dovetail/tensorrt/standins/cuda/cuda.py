"""Stands for `cuda.cuda`, the older name of `cuda.bindings.driver`."""

from dovetail.tensorrt.standins.cuda.bindings import driver as _driver
from dovetail.tensorrt.standins.cuda.bindings.driver import *  # noqa: F403

__all__ = _driver.__all__
__dovetail_standin__ = True
