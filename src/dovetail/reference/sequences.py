"""NumPy meaning of sequences (lists of arrays) and optionals (None when empty)."""

from __future__ import annotations

import numpy as np

from dovetail.core.dtypes import DType
from dovetail.core.errors import ExecutionError
from dovetail.reference.registry import reference

Array = np.ndarray


def _place(where: str, position: Array, low: int, high: int, length: int) -> int:
    index = int(position.reshape(-1)[0])
    if not low <= index <= high:
        raise ExecutionError(
            f"{where}: position, got {index} for {length} elements, expected a value in [{low}, {high}]; "
            "correct the position"
        )
    return index + length if index < 0 else index


@reference("SequenceConstruct")
def sequence_construct(*xs: Array) -> list[Array]:
    """The list of the inputs."""
    return list(xs)


@reference("SequenceEmpty")
def sequence_empty(*, dtype: DType) -> list[Array]:
    """An empty list."""
    return []


@reference("SequenceInsert")
def sequence_insert(s: list[Array], x: Array, position: Array | None = None) -> list[Array]:
    """The list with x before `position`."""
    count = len(s)
    index = count if position is None else _place("SequenceInsert", position, -count, count, count)
    return [*s[:index], x, *s[index:]]


@reference("SequenceErase")
def sequence_erase(s: list[Array], position: Array | None = None) -> list[Array]:
    """The list without one element."""
    last = np.array(-1) if position is None else position
    index = _place("SequenceErase", last, -len(s), len(s) - 1, len(s))
    return [*s[:index], *s[index + 1 :]]


@reference("SequenceAt")
def sequence_at(s: list[Array], position: Array) -> Array:
    """One element."""
    return s[_place("SequenceAt", position, -len(s), len(s) - 1, len(s))]


@reference("SequenceLength")
def sequence_length(s: list[Array]) -> Array:
    """Number of elements."""
    return np.array(len(s), np.int64)


@reference("SplitToSequence")
def split_to_sequence(
    x: Array, split: Array | None = None, *, axis: int = 0, keepdims: bool = True
) -> list[Array]:
    """Parts of x along `axis`."""
    extent = x.shape[axis]
    if split is None:
        parts = np.split(x, np.arange(1, extent), axis=axis) if extent else []
        return parts if keepdims else [part.squeeze(axis) for part in parts]
    if split.ndim == 0:
        edges = np.arange(int(split), extent, int(split))
    else:
        if split.sum() != extent or (split < 0).any():
            raise ExecutionError(
                f"SplitToSequence: split, got {split.tolist()} for an extent of {extent}, expected sizes that add "
                "up to it; correct the sizes"
            )
        edges = np.cumsum(split)[:-1]
    return np.split(x, edges, axis=axis)


@reference("ConcatFromSequence")
def concat_from_sequence(s: list[Array], *, axis: int, new_axis: bool = False) -> Array:
    """Elements joined along an axis, or stacked on a new one."""
    if not s:
        raise ExecutionError(
            "ConcatFromSequence: input, got an empty sequence, expected at least one element; insert one first"
        )
    return np.stack(s, axis=axis) if new_axis else np.concatenate(s, axis=axis)


@reference("OptionalEmpty")
def optional_empty(*, dtype: DType) -> None:
    """No element."""
    return


@reference("OptionalHasElement")
def optional_has_element(x: Array | list[Array] | None) -> Array:
    """Whether there is an element."""
    return np.array(x is not None)
