"""Dynamic axes of a PyTorch export: what the user names, checked, and example inputs at other sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dovetail.core.errors import UsageError
from dovetail.core.optional import require
from dovetail.core.text import did_you_mean

DynamicAxes: TypeAlias = "Mapping[str, Mapping[int, str] | Sequence[int]] | Sequence[str]"
"""By input: axes with names, or axes alone; or texts such as "input0:0=batch"."""

_TEXT = re.compile(r"(?P<input>.+):(?P<axis>-?\d+)(=(?P<name>[A-Za-z_]\w*))?")
_NAME = re.compile(r"[A-Za-z_]\w*")


def axes_of(dynamic: DynamicAxes | None, leaves: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Names of axes by input, with axes counted from the front.

    "input0", "input1" … stand for the first, second … input where none is called that.

    Raises:
        UsageError: an unknown input (with the nearest), an axis out of range, a name that is none, or a name for different sizes.
    """
    found: dict[str, dict[int, str]] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for given, axis, name in _entries(dynamic):
        where = f"dynamic axis {axis} of {given!r}"
        key = input_name(given, leaves)
        shape = tuple(leaves[key].shape)
        if not -len(shape) <= axis < len(shape):
            raise UsageError(f"{where}: got axis {axis}, expected one of the {len(shape)} axes of {list(shape)}")
        axis %= len(shape)
        name = name or f"{key}_{axis}"
        if not _NAME.fullmatch(name):
            raise UsageError(f"{where}: got the name {name!r}, expected letters, digits and _")
        size, place = sizes.setdefault(name, (shape[axis], f"axis {axis} of {key!r}"))
        if size != shape[axis]:
            raise UsageError(
                f"{where}: got {shape[axis]} in the example inputs, expected {size} as {place} has, which is called {name!r}, too; "
                "give axes of different sizes different names"
            )
        found.setdefault(key, {})[axis] = name
    return found


def input_name(given: str, leaves: Mapping[str, Any]) -> str:
    """The input that a user's name means.

    Raises:
        UsageError: there is none; the nearest.
    """
    if given in leaves:
        return given
    number = re.fullmatch(r"input(\d+)", given)
    if number and int(number[1]) < len(leaves):
        return list(leaves)[int(number[1])]
    raise UsageError(f"got the input {given!r}, expected one of {', '.join(leaves)}{did_you_mean(given, leaves)}")


def _entries(dynamic: DynamicAxes | None) -> list[tuple[str, int, str]]:
    entries: list[tuple[str, int, str]] = []
    if dynamic is None:
        return entries
    if isinstance(dynamic, Mapping):
        for name, axes in dynamic.items():
            if isinstance(axes, Mapping):
                entries += [(name, int(axis), str(symbol)) for axis, symbol in axes.items()]
            else:
                entries += [(name, int(axis), "") for axis in axes]
        return entries
    for text in [dynamic] if isinstance(dynamic, str) else dynamic:
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f"dynamic: got {text!r}, expected INPUT:AXIS=NAME, such as input0:0=batch")
        entries.append((match["input"], int(match["axis"]), match["name"] or ""))
    return entries


def sizes_of(axes: Mapping[str, Mapping[int, str]], leaves: Mapping[str, Any]) -> dict[str, int]:
    """The size that each name has in the example inputs."""
    return {name: int(leaves[key].shape[axis]) for key, names in axes.items() for axis, name in names.items()}


def resized(leaves: Mapping[str, Any], axes: Mapping[str, Mapping[int, str]], sizes: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """The example inputs at other sizes: their own values again from the start, floats scaled by seeded factors between 0.5 and 1.5."""
    torch = require("torch", "torch", "exporting from PyTorch")
    rng = np.random.default_rng(seed)
    result = {}
    for key, tensor in leaves.items():
        for axis, name in axes.get(key, {}).items():
            index = torch.arange(sizes[name], device=tensor.device) % tensor.shape[axis]
            tensor = tensor.index_select(axis, index)
        if key in axes and tensor.is_floating_point() and tensor.shape != leaves[key].shape:
            factor = torch.from_numpy(rng.uniform(0.5, 1.5, tuple(tensor.shape)).astype(np.float32))
            tensor = tensor * factor.to(tensor.device, tensor.dtype)
        result[key] = tensor
    return result


def other_sizes(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Sizes to try beside those of the example inputs, the most telling first: all odd ones out, then multiples, then one less."""
    tries = [
        {name: size + 1 + i for i, (name, size) in enumerate(sizes.items())},
        {name: 2 * size for name, size in sizes.items()},
        {name: max(1, size - 1) for name, size in sizes.items()},
        {name: max(1, size // 2) for name, size in sizes.items()},
    ]
    first = next(iter(sizes))
    tries += [dict(sizes) | {first: sizes[first] + 1}, dict(sizes) | {first: 1}]
    return [t for t in tries if t != dict(sizes)]
