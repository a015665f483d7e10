"""Stands for `pycuda.autoprimaryctx`: importing it makes the primary context current, until the program ends."""

from dovetail.tensorrt.standins.pycuda import driver as _driver

_driver.init()
device = _driver.Device(0)
context = device.retain_primary_context()
context.push()
