"""Inputs and outputs of a run as files, and seeded inputs where there is no file."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.core.dtypes import dtype, named
from dovetail.core.errors import BindingError, UsageError
from dovetail.core.files import replacing
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
    """Write arrays to an .npz by name, whole or not at all; strings as NumPy's own, which need no pickle."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # Not by numpy.savez, to which names such as "file" are options.
    with replacing(final) as file, zipfile.ZipFile(file, "w") as archive:
        for name, value in arrays.items():
            array = np.asarray(value)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array.astype(np.str_) if array.dtype == object else array, allow_pickle=False)


def inputs(args: argparse.Namespace, bindings: Sequence[BindingLike]) -> Arrays:
    """The arrays of `--inputs`, or seeded ones for the bindings at the sizes that `--shapes` names."""
    if args.inputs:
        arrays = load_arrays(args.inputs)
        known = {b.name: dtype(b.dtype).numpy for b in bindings}
        return arrays | {name: named(arrays[name], want) for name, want in known.items() if name in arrays}
    shapes = dict(getattr(args, "shapes", None) or ())
    for binding in bindings:
        for axis, (fixed, given) in enumerate(zip(binding.shape or (), shapes.get(binding.name, ()), strict=False)):
            if isinstance(fixed, int) and isinstance(given, int) and fixed != given:
                raise UsageError(
                    f"--shapes: got {given} for axis {axis} of {binding.name!r}, expected {fixed}, which the engine is built for; "
                    "build it for other sizes"
                )
    return generate(bindings, shapes, args.seed)
