"""Packages that only some jobs need: imported when the job runs, and where one is missing, the command that brings it."""

from __future__ import annotations

import importlib
from types import ModuleType

from dovetail.core.errors import UsageError


def require(module: str, extra: str, why: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its dotted name, such as "torch.onnx".
        extra: the extra of Dovetail that installs it, such as "torch".
        why: the job that needs it, such as "exporting from PyTorch".

    Raises:
        UsageError: it is not installed; the one command that installs it. A module that is there but fails to import says why.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing == module or module.startswith(f"{missing}."):
            raise UsageError(f"{why} needs {missing}, which is not installed: pip install 'dovetail[{extra}]'") from error
        raise UsageError(
            f"{why}: {module} is installed, but what it needs itself is not: {missing}; pip install 'dovetail[{extra}]'"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"{why}: {module} is installed, but does not import ({error}); its version may not fit those of what it needs: "
            f"pip install --force-reinstall 'dovetail[{extra}]'"
        ) from error
