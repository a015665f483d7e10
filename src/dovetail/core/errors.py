"""Every error that Dovetail raises on purpose.

    Error
    ├── ModelError                the model itself: unreadable, invalid
    │   ├── UnsupportedOpError    one or more nodes have no import
    │   ├── TypeInferenceError    operand types do not fit the operator
    │   └── ExportError           a model of another library does not become ONNX, or another model
    ├── RuleError                 a rewrite rule that cannot be read, never ends, or does not fit where it matched
    ├── IRError
    │   ├── ParseError            IR text
    │   └── VerifyError           a broken invariant of a graph
    ├── BuildError
    │   ├── NoTacticError         no kernel computes a group as asked
    │   ├── CompileError          the C compiler failed or is missing
    │   └── VerificationError     a kernel or an engine disagrees with its reference
    ├── EngineError
    │   ├── PlanFormatError       damaged or hostile plan file
    │   ├── PlanVersionError      written by an incompatible release
    │   ├── TrustError            binaries are not signed by a trusted key
    │   ├── PluginError           a plugin is not registered or cannot be loaded
    │   └── RefitError            unknown, misshapen or guarded weights
    ├── ExecutionError
    │   ├── ShapeError            an input's shape does not fit its binding
    │   ├── BindingError          a missing or unknown name, a wrong dtype
    │   └── DeviceError           the machine lacks what the engine needs
    └── UsageError                an option that makes no sense

Messages read: *where: what, got value, expected; how to fix.* Bugs of Dovetail stay AssertionError.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any


class Error(Exception):
    """Base of all deliberate errors."""


class ModelError(Error):
    """The model cannot be read or is invalid."""


class UnsupportedOpError(ModelError):
    """One or more nodes of the model have no import; `problems` lists all of them."""

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class TypeInferenceError(ModelError):
    """Operand types do not fit the operator."""


class ExportError(ModelError):
    """A model of PyTorch or TensorFlow does not become ONNX, or becomes a model that computes something else.

    `failures` are records (dataclasses) of all that is known to be in the way, each with its ways out.
    """

    def __init__(self, message: str, failures: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures

    def json(self) -> dict[str, Any]:
        """The message and the failures as what JSON has: {"error": text, "failures": [...]}."""
        return {"error": str(self), "failures": [asdict(failure) for failure in self.failures]}


class RuleError(Error):
    """A rewrite rule cannot be read, never ends, or gives something that does not fit where it matched."""


class IRError(Error):
    """The intermediate representation is malformed."""


class ParseError(IRError):
    """IR text that does not parse."""


class VerifyError(IRError):
    """A graph breaks an invariant."""


class BuildError(Error):
    """The engine cannot be built as asked."""


class NoTacticError(BuildError):
    """No tactic computes a group on the target."""


class CompileError(BuildError):
    """The C compiler failed or is missing."""


class VerificationError(BuildError):
    """A kernel or an engine disagrees with its reference."""


class EngineError(Error):
    """A plan file cannot be used."""


class PlanFormatError(EngineError):
    """The plan file is damaged or hostile."""


class PlanVersionError(EngineError):
    """The plan file was written by an incompatible release."""


class TrustError(EngineError):
    """The plan's binaries are not signed by a trusted key."""


class PluginError(EngineError):
    """A plugin that is needed is not registered, or cannot be loaded."""


class RefitError(EngineError):
    """New weights do not fit the engine."""


class ExecutionError(Error):
    """A run failed."""


class ShapeError(ExecutionError):
    """An input's shape does not fit its binding."""


class BindingError(ExecutionError):
    """A binding is missing, unknown, or of the wrong dtype."""


class DeviceError(ExecutionError):
    """The machine lacks what the engine needs."""


class DeviceLostError(DeviceError):
    """A kernel has ended this process's context of a device, which it cannot use again."""


class UsageError(Error):
    """An option that makes no sense."""
