"""Stands for the package `pycuda` where there is no GPU: the names that clients of TensorRT use, on host memory."""

VERSION = (2024, 1)
VERSION_STATUS = ""
VERSION_TEXT = "2024.1"
__version__ = VERSION_TEXT
__dovetail_standin__ = True
