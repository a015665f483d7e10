"""The table of ONNX importers, and the two types they see: `OnnxNode` and `Context`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from dovetail.core.dims import Dim
from dovetail.ir.graph import Value


@dataclass
class OnnxNode:
    """One ONNX node with its inputs already imported.

    `inputs` holds None for an absent optional input; `attrs` holds ints, floats, str, lists of
    these, ndarrays (tensors) and GraphProtos; `outputs` holds "" for an output nobody asked for.
    """

    op_type: str
    domain: str
    name: str
    opset: int
    inputs: list[Value | None]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """How errors name this node."""
        return f"{self.name} ({f'{self.domain}::' if self.domain else ''}{self.op_type})"

    @property
    def n_outputs(self) -> int:
        """Number of outputs the model asks for, counted up to the last named one."""
        return max((i + 1 for i, name in enumerate(self.outputs) if name), default=0)

    def input(self, index: int) -> Value | None:
        """Input `index`, or None when the model does not give it."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute `name`, or `default` when the model does not give it."""
        return self.attrs.get(name, default)


class Context(Protocol):
    """What an importer may do; implemented by `frontend/importer.py`."""

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Any:
        """Add an IR node; returns its Value, or a tuple of them when it has several outputs."""
        ...

    def const(self, array: np.ndarray[Any, Any], hint: str = "") -> Value:
        """Add a constant array of the program (not a named weight of the model)."""
        ...

    def weight(self, name: str, array: np.ndarray[Any, Any]) -> Value:
        """Add a named weight that the model carries in a node instead of an initializer."""
        ...

    def constant(self, value: Value, why: str) -> np.ndarray[Any, Any] | None:
        """Read a WEIGHT-time value, recording a guard on what it came from; else None."""
        ...

    def dims(self, value: Value) -> tuple[Dim, ...]:
        """The integer contents of `value` as dims; binds fresh symbols to run-time data."""
        ...

    def fresh(self, prefix: str) -> str:
        """A symbol name that is not used yet."""
        ...

    def subgraph(self, proto: Any, *args: Any) -> Any:
        """Import a GraphProto attribute as an isolated region."""
        ...

    def trains(self, what: str) -> None:
        """Note that this node computes as in training: it is allowed, and reports tell of it."""
        ...

    def unsupported(self, reason: str, hint: str) -> NoReturn:
        """Give up on this node, saying why and what to do instead."""
        ...


OnnxImporter = Callable[[Context, OnnxNode], "Value | Sequence[Value | None]"]
F = TypeVar("F", bound=OnnxImporter)

_importers: dict[tuple[str, str], dict[int, OnnxImporter]] = {}


@dataclass(eq=False)
class Override:
    """An importer that is asked before those of this package, for opsets `low` to `high` (None: all later ones)."""

    op_type: str
    domain: str
    low: int
    high: int | None
    function: OnnxImporter

    def covers(self, op_type: str, opset: int, domain: str) -> bool:
        """Whether this imports an op."""
        named = (self.op_type, self.domain) == (op_type, domain)
        return named and self.low <= opset and (self.high is None or opset <= self.high)

    def __call__(self, ctx: Context, node: OnnxNode) -> Value | Sequence[Value | None]:
        """Import a node; the same op inside of this call means what this importer stands in front of."""
        token = _running.set((*_running.get(), self))
        try:
            return self.function(ctx, node)
        finally:
            _running.reset(token)


_overrides: list[Override] = []  # the last one wins
_running: ContextVar[tuple[Override, ...]] = ContextVar("running importers", default=())


def add_override(override: Override) -> None:
    """Put an importer in front of all others of its op."""
    _overrides.append(override)


def remove_override(override: Override) -> None:
    """Take an importer away again; one that is not there any more is left alone."""
    if override in _overrides:
        _overrides.remove(override)


TENSORRT = "tensorrt"
"""The domain under which the table keeps operators of TensorRT's own plugins; models write any domain, or none."""


def onnx_op(
    *op_types: str, since: int = 1, domain: str = ""
) -> Callable[[F], F]:
    """Register the importer of ONNX ops `op_types` of `domain` from opset `since` on."""

    def register(function: F) -> F:
        for op_type in op_types:
            versions = _importers.setdefault((domain, op_type), {})
            if since in versions:
                raise ValueError(
                    f"frontend: importer of {op_type!r} since opset {since} is registered twice; "
                    "remove one of them"
                )
            versions[since] = function
        return function

    return register


@functools.cache  # once; a failed import is not remembered
def _load_families() -> None:
    package = importlib.import_module("dovetail.frontend.onnx")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"dovetail.frontend.onnx.{module}")


def find_importer(op_type: str, opset: int, domain: str = "") -> OnnxImporter | None:
    """The newest override of `op_type` that is not running, else the importer with the largest `since` <= `opset`, or None."""
    domain = "" if domain == "ai.onnx" else domain
    for override in reversed(_overrides):
        if override.covers(op_type, opset, domain) and override not in _running.get():
            return override
    _load_families()
    versions = _importers.get((domain, op_type), {})
    usable = [since for since in versions if since <= opset]
    return versions[max(usable)] if usable else None


def op_types(domain: str = "") -> tuple[str, ...]:
    """Every ONNX op type of `domain` that has an importer of its own, sorted."""
    _load_families()
    return tuple(sorted(name for where, name in _importers if where == domain))
