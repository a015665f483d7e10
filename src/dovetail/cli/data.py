"""Inputs and outputs of a run as files, and seeded inputs where there is no file."""

from __future__ import annotations

import argparse
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.core.errors import BindingError, UsageError
from dovetail.model.sample_inputs import Arrays, BindingLike, generate


def load_arrays(path: str | Path) -> Arrays:
    """The arrays of an .npz file by name. Pickled objects are refused.

    Raises:
        UsageError: one .npy array, which has no name.
        BindingError: not an .npz file, or it cannot be read.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise UsageError(f"{path}: got one array without a name (.npy), expected an .npz; write it with numpy.savez(path, NAME=array)")
        with stored:
            return {name: stored[name] for name in stored.files}
    except OSError as error:
        raise BindingError(f"{path}: cannot be read, {error.strerror or error}; check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        why = "not an .npz, or pickled objects" if "pickle" in str(error) else str(error)
        raise BindingError(f"{path}: got data that is not a readable .npz ({why}); write it with numpy.savez") from error


def save_arrays(path: str | Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays to an .npz by name, through a temporary file: nothing half-written is left behind."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(suffix=".npz.tmp", dir=final.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # names are data, not options
        os.chmod(scratch, 0o644)
        os.replace(scratch, final)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def inputs(args: argparse.Namespace, bindings: Sequence[BindingLike]) -> Arrays:
    """The arrays of `--inputs`, or seeded ones for the bindings at the sizes that `--shapes` names."""
    if args.inputs:
        return load_arrays(args.inputs)
    shapes = dict(getattr(args, "shapes", None) or ())
    for binding in bindings:
        for axis, (fixed, given) in enumerate(zip(binding.shape or (), shapes.get(binding.name, ()), strict=False)):
            if isinstance(fixed, int) and isinstance(given, int) and fixed != given:
                raise UsageError(
                    f"--shapes: got {given} for axis {axis} of {binding.name!r}, expected {fixed}, which the engine is built for; "
                    "build it for other sizes"
                )
    return generate(bindings, shapes, args.seed)
