"""Python files of users, run as modules: plugins, rewrite rules, models."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

from dovetail.core.errors import UsageError


def module_name(prefix: str, file: Path, digest: str = "") -> str:
    """A name for the module of a file, of which `digest` tells one state from another."""
    return "_".join(["dovetail", prefix, re.sub(r"[^0-9A-Za-z_]", "_", file.stem), *([digest[:8]] if digest else [])])


def run_file(file: Path, name: str) -> ModuleType:
    """Run a file as a module of that name, which `sys.modules` has from then on; not if running it fails.

    Raises:
        UsageError: it is no Python file.
        BaseException: whatever the file raises.
    """
    import importlib.util  # it takes longer to import than most engines to load

    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file}: got a file of another kind, expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling, dataclasses and tracebacks look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
