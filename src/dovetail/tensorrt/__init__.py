"""TensorRT's Python API on Dovetail: names and translation only.

    import dovetail.tensorrt as trt

It is the union of TensorRT 8.2 to 11.1, with the numbers of 10.x. Names are imported when they are first used (`exports.py`).
"""

import importlib
from typing import Any

from dovetail.tensorrt.exports import HOMES

__all__ = ["__version__", *sorted(HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Read anew each time: clients branch on it, and tests override it.
        from dovetail.core.env import env

        return env().tensorrt_version
    if name == "plugin":  # a module, which TensorRT imports with itself
        return importlib.import_module(f"{__name__}.plugin")
    if name not in HOMES:
        from dovetail.tensorrt.names import ABSENT

        why = f": {ABSENT[name]}" if name in ABSENT else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{why}")
    value = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
