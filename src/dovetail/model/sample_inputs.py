"""Seeded inputs for a model or an engine, where nobody gave any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dovetail.core.dims import Expr, evaluate_at
from dovetail.core.dtypes import dtype
from dovetail.core.errors import UsageError
from dovetail.frontend.declared import MOST_ELEMENTS

Arrays = dict[str, np.ndarray[Any, Any]]


class BindingLike(Protocol):
    """What inputs are made for."""

    @property
    def name(self) -> str:
        """The input's name."""

    @property
    def dtype(self) -> Any:
        """A DType or what `core.dtypes.dtype` takes."""

    @property
    def shape(self) -> Any:
        """Sizes and symbols; None for a sequence."""


def generate(
    bindings: Sequence[BindingLike], shapes: Mapping[str, Sequence[int | str]], seed: int = 0
) -> Arrays:
    """Seeded inputs: normal floats, small non-negative integers, mixed booleans. Free symbols become 1.

    Raises:
        UsageError: a shape for an unknown input or of the wrong rank; a range instead of a size.
    """
    known = {b.name for b in bindings}
    if unknown := sorted(set(shapes) - known):
        raise UsageError(f"--shapes: got {unknown}, expected names of inputs: {sorted(known)}")
    sizes = _symbol_sizes(bindings, shapes)
    rng = np.random.default_rng(seed)
    feeds: Arrays = {}
    for binding in bindings:
        if binding.shape is None:
            raise UsageError(f"input {binding.name!r}: cannot make up a sequence; pass --inputs")
        extent = tuple(_extent(d, sizes) for d in binding.shape)
        kind = dtype(binding.dtype)
        count = math.prod(extent)
        if count > MOST_ELEMENTS:
            raise UsageError(f"input {binding.name!r}: got {count} elements, expected at most {MOST_ELEMENTS}; give sizes (--shapes)")
        if kind.is_float:
            feeds[binding.name] = rng.standard_normal(extent).astype(np.float32).astype(kind.numpy)
        elif kind.kind == "bool":
            feeds[binding.name] = rng.integers(0, 2, extent).astype(bool)
        elif kind.is_int:
            feeds[binding.name] = rng.integers(0, 2, extent).astype(kind.numpy)
        else:
            raise UsageError(f"input {binding.name!r}: cannot make up values of type {kind}; pass --inputs")
    return feeds


def _symbol_sizes(bindings: Sequence[BindingLike], shapes: Mapping[str, Sequence[int | str]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for binding in bindings:
        given = shapes.get(binding.name)
        if given is None or binding.shape is None:
            continue
        if len(given) != len(binding.shape):
            raise UsageError(f"--shapes: got {len(given)} dimensions for {binding.name!r}, expected {len(binding.shape)}")
        for dim, new in zip(binding.shape, given, strict=True):
            if not isinstance(dim, int) and isinstance(new, int):
                sizes[str(dim)] = new
    return sizes


def _extent(dim: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, Expr):
        return evaluate_at(dim, sizes)
    return dim if isinstance(dim, int) else sizes.get(str(dim), 1)
