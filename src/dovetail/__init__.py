"""Dovetail: an open inference compiler and runtime. ONNX in, a verified, fast engine out.

    import dovetail

    engine = dovetail.build("model.onnx")
    y = engine.run({"x": x})
    engine.save("model.plan")
    engine = dovetail.load("model.plan")

Names are imported when they are first used, so `import dovetail` stays cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.api import (
        Binding,
        Comparison,
        Culprit,
        Diff,
        Engine,
        Profile,
        Reduced,
        Refit,
        Report,
        bisect,
        build,
        compare,
        diff,
        load,
        match_weights,
        reduce,
        refit_file,
    )
    from dovetail.codegen.target import Target
    from dovetail.core.errors import (
        BindingError,
        BuildError,
        CompileError,
        DeviceError,
        DeviceLostError,
        EngineError,
        Error,
        ExecutionError,
        ExportError,
        IRError,
        ModelError,
        NoTacticError,
        ParseError,
        PlanFormatError,
        PlanVersionError,
        PluginError,
        RefitError,
        RuleError,
        ShapeError,
        TrustError,
        TypeInferenceError,
        UnsupportedOpError,
        UsageError,
        VerificationError,
        VerifyError,
    )
    from dovetail.core.version import __version__
    from dovetail.device.cpu import set_affinity
    from dovetail.frontend.extensions import importer
    from dovetail.frontend.network import Network
    from dovetail.frontend.survey import survey
    from dovetail.model.model import Model
    from dovetail.model.rules.definition import rewrite
    from dovetail.plugins import plugin

__all__ = [
    "Binding",
    "BindingError",
    "BuildError",
    "Comparison",
    "CompileError",
    "Culprit",
    "DeviceError",
    "DeviceLostError",
    "Diff",
    "Engine",
    "EngineError",
    "Error",
    "ExecutionError",
    "ExportError",
    "IRError",
    "Model",
    "ModelError",
    "Network",
    "NoTacticError",
    "ParseError",
    "PlanFormatError",
    "PlanVersionError",
    "PluginError",
    "Profile",
    "Reduced",
    "Refit",
    "RefitError",
    "Report",
    "RuleError",
    "ShapeError",
    "Target",
    "TrustError",
    "TypeInferenceError",
    "UnsupportedOpError",
    "UsageError",
    "VerificationError",
    "VerifyError",
    "__version__",
    "bisect",
    "build",
    "compare",
    "diff",
    "importer",
    "load",
    "match_weights",
    "plugin",
    "reduce",
    "refit_file",
    "rewrite",
    "set_affinity",
    "survey",
]

_HOMES = {
    "Model": "dovetail.model.model",
    "Network": "dovetail.frontend.network",
    "Target": "dovetail.codegen.target",
    "__version__": "dovetail.core.version",
    "importer": "dovetail.frontend.extensions",
    "plugin": "dovetail.plugins",
    "rewrite": "dovetail.model.rules.definition",
    "set_affinity": "dovetail.device.cpu",
    "survey": "dovetail.frontend.survey",
    **dict.fromkeys(
        (
            "Binding", "Comparison", "Culprit", "Diff", "Engine", "Profile", "Reduced", "Refit", "Report", "bisect", "build", "compare",
            "diff", "load", "match_weights", "reduce", "refit_file",
        ),
        "dovetail.api",
    ),
}


_PACKAGES = ("export", "plugins")
"""Packages of this one whose names users read as `dovetail.export.symbolic`."""


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"dovetail.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'dovetail' has no attribute {name!r}")
    home = _HOMES.get(name, "dovetail.core.errors")
    value = getattr(importlib.import_module(home), name)
    if name != "__version__":
        # A reader of a traceback or of help() should see the name they can import.
        value.__module__ = __name__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
