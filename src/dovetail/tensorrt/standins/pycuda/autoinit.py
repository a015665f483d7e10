"""Stands for `pycuda.autoinit`: importing it makes a context current, until the program ends."""

import atexit

from dovetail.tensorrt.standins.pycuda import driver as _driver

_driver.init()
device = _driver.Device(0)
context = device.make_context()


def _finish() -> None:
    if _driver.Context.get_current() == context:
        context.pop()


atexit.register(_finish)
