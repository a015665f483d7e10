"""Inputs and outputs of an engine as the user sees them, and arrays of other libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.core.binding import Binding
from dovetail.core.dims import Dim, from_program
from dovetail.core.dtypes import dtype
from dovetail.engine.plan import Port

__all__ = ["Binding", "as_kind", "bindings", "exporter_of"]


def bindings(ports: Sequence[Port]) -> list[Binding]:
    """The bindings behind ports of a plan."""
    return [Binding(p.name, dtype(p.tensor.dtype), _shape(p), p.order) for p in ports]


def _shape(port: Port) -> tuple[Dim, ...] | None:
    """The shape that the caller's array has."""
    if port.tensor.shape is None:
        return None
    shape = [from_program(list(d)) for d in port.tensor.shape]
    return tuple(shape[port.order.index(axis)] for axis in range(len(shape))) if port.order else tuple(shape)


def exporter_of(values: Sequence[Any]) -> Callable[[Any], Any] | None:
    """`from_dlpack` of the library whose arrays came in; None for NumPy's own, lists and scalars."""
    for value in values:
        if isinstance(value, np.ndarray | np.generic) or not hasattr(value, "__dlpack__"):
            continue
        for base in type(value).__mro__:
            library = sys.modules.get(base.__module__.partition(".")[0])
            found: Callable[[Any], Any] | None = getattr(library, "from_dlpack", None)
            if found is not None:
                return found
    return None


def as_kind(value: Any, from_dlpack: Callable[[Any], Any] | None) -> Any:
    """An output in the caller's kind of array, over the same memory; as NumPy where that cannot be."""
    if from_dlpack is None or not isinstance(value, np.ndarray) or dtype(value.dtype).kind == "string":
        return value
    try:
        return from_dlpack(value)
    except (BufferError, TypeError):  # NumPy exports its own dtypes only, so no bf16 or fp8
        return value
