"""The table of reference functions: op name -> plain NumPy function."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from dovetail.core.errors import UnsupportedOpError

Reference = Callable[..., Any]
F = TypeVar("F", bound=Reference)

_references: dict[str, Reference] = {}

# Attributes that name things in the program but do not change what the op computes.
_NAMING_ATTRIBUTES = frozenset({"impure", "symbols"})


def reference(*names: str) -> Callable[[F], F]:
    """Register a function as the meaning of the ops `names`.

    The function takes arrays by position (None for an absent optional input) and attributes by
    keyword, every dim already an int and every dtype a `DType`; it returns one array or a tuple.
    """

    def register(function: F) -> F:
        for name in names:
            if name in _references:
                raise ValueError(f"reference: op {name!r} is registered twice; remove one of them")
            _references[name] = function
        return function

    return register


@functools.cache  # once; a failed import is not remembered
def _load_families() -> None:
    package = importlib.import_module("dovetail.reference")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"dovetail.reference.{module}")


def lookup(name: str) -> Reference:
    """Return the reference function of op `name`; raises UnsupportedOpError if there is none."""
    found = _references.get(name)
    if found is None:
        _load_families()
        found = _references.get(name)
    if found is None:
        raise UnsupportedOpError(
            f"reference: no NumPy meaning for op {name!r}, expected one registered with "
            "@reference; check the spelling or add it to dovetail/reference"
        )
    return found


def names() -> tuple[str, ...]:
    """Every op name that has a reference, sorted."""
    _load_families()
    return tuple(sorted(_references))


def call(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run the reference of op `name` and return its outputs as a tuple.

    `attributes` are a node's attributes with dims evaluated; naming attributes (`symbols`,
    `impure`) are left out of the call because they do not change the result.
    """
    kept = {key: value for key, value in attributes.items() if key not in _NAMING_ATTRIBUTES}
    result = lookup(name)(*inputs, **kept)
    results = result if isinstance(result, tuple) else (result,)
    # NumPy turns arrays of rank 0 into scalars; they are arrays again from here on.
    return tuple(np.asarray(r) if isinstance(r, np.generic) else r for r in results)
