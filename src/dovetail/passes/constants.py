"""Reading the values of constants in rewrites: small ones only, and never without a guard."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dovetail.core.dims import Expr
from dovetail.ir.graph import Guard, Module, Node, Time, Value
from dovetail.ir.types import TensorType
from dovetail.ops.registry import find
from dovetail.reference.registry import call

MAX_ELEMENTS = 64
"""Larger constants are ordinary weights: no rewrite may depend on their values."""

_MAX_NODES = 32


def peek(module: Module, value: Value | None) -> np.ndarray[Any, Any] | None:
    """The array of a small value that weights and fixed extents determine, else None; who relies on it must call `guard`."""
    if value is None or value.time == Time.RUN or not _is_small(value):
        return None
    if (fixed := _fixed_contents(value)) is not None:
        return fixed
    needed = _closure(value)
    if needed is None or any(not _is_small(v) for node in needed for v in node.outputs):
        return None
    known: dict[Value, np.ndarray[Any, Any]] = {}
    for node in needed:
        if node.op == "Constant":
            known[node.output] = module.weights[node.attrs["name"]]
            continue
        if len(node.outputs) == 1 and (fixed := _fixed_contents(node.output)) is not None:
            known[node.output] = fixed
            continue
        spec = find(node.op)
        if spec is None or node.regions or node.symbols() or node.attrs.get("symbols"):
            return None
        attrs = spec.complete({k: v for k, v in node.attrs.items() if k != "impure"})
        inputs = [None if v is None else known[v] for v in node.inputs]
        known |= dict(zip(node.outputs, call(node.op, inputs, attrs), strict=True))
    return np.asarray(known[value])


def _is_small(value: Value) -> bool:
    if not isinstance(value.type, TensorType) or value.type.dtype.kind == "string":
        return False
    size = value.type.size
    return not isinstance(size, Expr) and size <= MAX_ELEMENTS


def _fixed_contents(value: Value) -> np.ndarray[Any, Any] | None:
    """The contents of a shape tensor whose extents are all numbers."""
    contents = value.contents
    if contents is None or any(isinstance(d, Expr) for d in contents.reshape(-1)):
        return None
    return np.asarray(contents.astype(value.tensor.dtype.numpy))


def _closure(value: Value) -> list[Node] | None:
    """The nodes that compute a value, operands first, down to constants and fixed extents; None if there are many or inputs."""
    order: dict[Node, None] = {}
    pending: list[tuple[Node, bool]] = []
    if value.producer is not None:
        pending.append((value.producer, False))
    while pending:
        node, ready = pending.pop()
        if ready:
            order[node] = None
        elif node not in order:
            if len(order) + len(pending) > _MAX_NODES:
                return None
            pending.append((node, True))
            if node.op != "Constant" and len(node.outputs) == 1 and _fixed_contents(node.output) is not None:
                continue
            if any(v.producer is None for v in node.operands):
                return None
            pending += [(v.producer, False) for v in node.operands if v.producer is not None]
    return list(order)


def scalar(module: Module, value: Value | None) -> int | float | bool | None:
    """The number in a WEIGHT-time value of one element, else None; who relies on it must call `guard`."""
    if value is None or not isinstance(value.type, TensorType) or value.type.size != 1:
        return None
    array = peek(module, value)
    if array is None:
        return None
    number = array.reshape(-1)[0]
    if array.dtype.kind in "iub":
        return number.item()  # type: ignore[no-any-return]
    return float(number)


def guard(module: Module, value: Value, rewrite: str) -> None:
    """Record that `rewrite` relies on the value: refit may not change the named weights it comes from."""
    for node in _closure(value) or ():
        name = node.attrs.get("name", "~")
        if node.op == "Constant" and not name.startswith("~"):
            array = module.weights[name]
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            found = Guard(name, rewrite, digest, np.array2string(array.reshape(-1)[:8], threshold=8))
            if found not in module.guards:
                module.guards.append(found)


def reads(module: Module, value: Value | None, number: float, rewrite: str) -> bool:
    """Whether a value is the scalar `number`; if so the guard is recorded."""
    found = scalar(module, value)
    if found is None or found != number or value is None:
        return False
    guard(module, value, rewrite)
    return True
