"""From PyTorch and TensorFlow to ONNX: one call each, checked at every step. Nothing here is imported before it is called.

    model = dovetail.export.pytorch(module, (x,), dynamic={"x": {0: "batch"}})
    print(model.report)
    model.save("model.onnx")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.export.exported import ExportedModel
    from dovetail.export.from_pytorch import pytorch
    from dovetail.export.from_tensorflow import tensorflow
    from dovetail.export.report import ExportReport
    from dovetail.export.translations import symbolic

_HOMES = {
    "ExportReport": "report",
    "ExportedModel": "exported",
    "pytorch": "from_pytorch",
    "symbolic": "translations",
    "tensorflow": "from_tensorflow",
}
"""Name and the module of this package that defines it."""

__all__ = ["ExportReport", "ExportedModel", "pytorch", "symbolic", "tensorflow"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dovetail.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dovetail.export.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
