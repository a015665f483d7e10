"""What users of `dovetail edit` write: pairs, attributes, types, constants; each as a type of argparse."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import onnx

from dovetail.cli import options
from dovetail.core.errors import UsageError
from dovetail.model.edit import value_types as kinds


def pair(text: str) -> tuple[str, str]:
    """Parse `old=new`; the first "=" that has something on both sides divides."""
    old, equals, new = text.partition("=")
    if not old or not equals or not new:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected OLD=NEW")
    return old, new


def value(text: str) -> Any:
    """A value of an attribute as JSON writes it (3, 0.5, [1,2], "text"); what is no JSON is text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(found, dict) or found is None else int(found) if isinstance(found, bool) else found


def attribute(text: str) -> tuple[str, Any]:
    """Parse `name=value`."""
    name, written = pair(text)
    return name, value(written)


def tensor_type(text: str) -> tuple[str, tuple[str, tuple[int | str, ...]]]:
    """Parse `name:float:[N,3]`."""
    try:
        start, shape = options.shape(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected name:float:[N,3]") from error
    name, colon, element = start.rpartition(":")
    if not colon or not name or not element:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected name:float:[N,3]")
    return name, (element, shape)


def operand(text: str) -> Any:
    """An input of a new node: `=0.5`, `=[1,2]` or `=0.5:float16` is a constant, all else a tensor's name."""
    if not text.startswith("="):
        return text
    written, _, element = text[1:].partition(":")
    found = value(written)
    if isinstance(found, str):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a name, or a number or list after '='")
    return np.asarray(found).astype(_numpy(element)) if element else found


def _numpy(element: str) -> Any:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(kinds.element_code(element, "--extra"))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def attributes(args: argparse.Namespace) -> dict[str, Any]:
    """The attributes that `--attr` gives."""
    found = dict(args.attr)
    for name in ("to", "dtype", "output_dtype"):  # element types are numbers to ONNX
        if isinstance(found.get(name), str):
            found[name] = kinds.element_code(found[name], "--attr")
    return found
