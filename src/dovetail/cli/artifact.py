"""What a path on the command line is: an engine file or an ONNX model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.cli import options
from dovetail.cli.progress import Progress
from dovetail.core.errors import ModelError, UsageError

if TYPE_CHECKING:
    from dovetail.api import Engine

_ZIP = b"PK\x03\x04"


def is_plan(path: str | Path) -> bool:
    """Whether a file is an engine (a zip container).

    Raises:
        ModelError: no such file, or one that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(4) == _ZIP
    except IsADirectoryError:
        return False  # whoever reads the model says what the folder may be
    except OSError as error:
        raise ModelError(f"{path}: cannot be read, {error.strerror}; check the path") from error


def is_arrays(path: str | Path) -> bool:
    """Whether a path names a file of arrays, by its suffix: .npz (a zip container, too) or .safetensors."""
    return Path(path).suffix.lower() in (".npz", ".safetensors")


def open_engine(args: argparse.Namespace, path: str, progress: Progress | None = None) -> Engine:
    """Load an engine file, or build a model with the verb's build options."""
    from dovetail import api

    if is_plan(path):
        return _load(args, path)
    return api.build(path, progress=progress, **_build_options(args))


def load_engine(args: argparse.Namespace, path: str) -> Engine:
    """Load an engine file, for verbs that take no model.

    Raises:
        UsageError: it is none.
    """
    if not is_plan(path):
        raise UsageError(f"{path}: got a file that is no engine, expected one; build it first: dovetail build {path} -o M.plan")
    return _load(args, path)


def _load(args: argparse.Namespace, path: str) -> Engine:
    from dovetail import api

    return api.load(
        path, threads=getattr(args, "threads", None), trust=getattr(args, "trust", False), device=getattr(args, "device", None)
    )


def _build_options(args: argparse.Namespace) -> dict[str, Any]:
    return options.build_options(args) if hasattr(args, "precision") else {"threads": getattr(args, "threads", None)}
