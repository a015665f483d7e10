"""Opens engines and runs them; needs no compiler and no onnx."""

from dovetail.runtime.absent import AbsentEngine
from dovetail.runtime.engine import ExecutionContext, RuntimeEngine
from dovetail.runtime.observe import Observer, Record
from dovetail.runtime.opening import Provided, Provider, make, open

__all__ = [
    "AbsentEngine",
    "ExecutionContext",
    "Observer",
    "Provided",
    "Provider",
    "Record",
    "RuntimeEngine",
    "make",
    "open",
]
