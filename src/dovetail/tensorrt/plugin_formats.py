"""Memory formats of plugins' tensors: arrays in the order of a `TensorFormat`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.tensorrt.enums import TensorFormat

Array = np.ndarray[Any, Any]

# Format -> rank it needs at least, channels per vector, whether channels come last; channels are axis -3, of volumes -4.
_RULES: dict[TensorFormat, tuple[int, int, bool]] = {
    TensorFormat.CHW2: (3, 2, False),
    TensorFormat.CHW4: (3, 4, False),
    TensorFormat.CHW16: (3, 16, False),
    TensorFormat.CHW32: (3, 32, False),
    TensorFormat.CDHW32: (4, 32, False),
    TensorFormat.HWC: (3, 1, True),
    TensorFormat.HWC8: (3, 8, True),
    TensorFormat.HWC16: (3, 16, True),
    TensorFormat.DHWC: (4, 1, True),
    TensorFormat.DHWC8: (4, 8, True),
}

CHOICES = (TensorFormat.LINEAR, *_RULES)
"""The formats that a plugin is offered, in this order."""


def fits(memory: TensorFormat, rank: int) -> bool:
    """Whether a tensor of that rank may have the format."""
    return memory is TensorFormat.LINEAR or rank >= _RULES[memory][0]


def stored_shape(shape: Sequence[int], memory: TensorFormat) -> tuple[int, ...]:
    """The shape of the memory that a tensor takes in a format; channels are filled up to whole vectors."""
    if memory is TensorFormat.LINEAR:
        return tuple(shape)
    least, vector, last = _RULES[memory]
    axis = len(shape) - least
    groups = -(-shape[axis] // vector)
    before, after = tuple(shape[:axis]), tuple(shape[axis + 1 :])
    return (*before, *after, groups * vector) if last else (*before, groups, *after, vector)


def pack(array: Array, memory: TensorFormat) -> Array:
    """A tensor in a format: a dense array of `stored_shape`, zero where channels are filled up."""
    if memory is TensorFormat.LINEAR:
        return np.ascontiguousarray(array)
    least, vector, last = _RULES[memory]
    axis = array.ndim - least
    missing = -array.shape[axis] % vector
    padded = np.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)]) if missing else array
    if last:
        return np.ascontiguousarray(np.moveaxis(padded, axis, -1))
    grouped = padded.reshape(*padded.shape[:axis], padded.shape[axis] // vector, vector, *padded.shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(grouped, axis + 1, -1))


def unpack(stored: Array, shape: Sequence[int], memory: TensorFormat) -> Array:
    """The tensor of a shape that lies in a format."""
    if memory is TensorFormat.LINEAR:
        return stored.reshape(tuple(shape))
    least, _, last = _RULES[memory]
    axis = len(shape) - least
    dense = stored.reshape(stored_shape(shape, memory))
    if last:
        spread = np.moveaxis(dense, -1, axis)
    else:
        moved = np.moveaxis(dense, -1, axis + 1)
        spread = moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])
    return np.ascontiguousarray(spread[tuple(slice(0, d) for d in shape)])
