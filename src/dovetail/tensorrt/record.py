"""What an engine file says of the TensorRT network behind it: the record "tensorrt" of its manifest data, as plain data.

The builder writes it, `ICudaEngine` reads it. An engine that was built without this package has the record of `Record.of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from dovetail.api.engine import Engine
from dovetail.core.dims import Expr, evaluate, symbols
from dovetail.core.errors import PlanFormatError
from dovetail.engine.plan import Symbol as SymbolBounds

KEY = "tensorrt"
"""Of the record among an engine's manifest data."""

UNBOUNDED = 2**31 - 1
"""The largest extent of an axis without a bound: TensorRT's shapes are of int32 where they are not of int64."""

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Minimum, optimum and maximum of a shape or of a shape tensor's values."""


@dataclass(frozen=True)
class Layer:
    """A layer of the network: its name (the origin of the steps that compute it), the name of its `LayerType`, its metadata."""

    name: str
    type: str
    metadata: str = ""


@dataclass(frozen=True)
class ProfileRecord:
    """An optimization profile: ranges of shapes, and of the values of shape tensors, by the input's name."""

    shapes: Mapping[str, Range] = field(default_factory=dict)
    values: Mapping[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The record of an engine. Enum values are stored by name.

    Attributes:
        name: of the network.
        inputs, outputs: the network's, in order. Outputs of the engine that are not among them are debug tensors.
        layers: of the network, in order.
        profiles: at least one.
        refittable: whether the engine was built to be refitted; a Refitter takes no other.
        weights: names of the weights that may be refitted; None: all.
        roles: (layer, name of a `WeightsRole`, weight) of weights that layers hold.
        shape_inputs: inputs whose values are shapes: they lie in host memory.
        debug: names of tensors that are marked for debugging, each an output beyond `outputs` or a value that can be tapped.
        debug_unfused: whether all tensors that are stored may be watched.
        aliased: outputs that are new values of an input, with that input: a run writes them to its memory.
        formats: name of the `TensorFormat` of inputs and outputs that are not LINEAR.
        verbosity: name of the `ProfilingVerbosity`.
        implicit_batch, max_batch_size: whether shapes leave out the first axis, and how far that goes.
        capability, compatibility: names of the `EngineCapability` and the `HardwareCompatibilityLevel`.
        tactic_sources: bits of `TacticSource`.
        max_workspace_size: as it was configured; 0 where it was not.
        stripped: whether the file was written without the weights that may be refitted.
        ranges: dynamic ranges of tensors that have one.
        requested, actual: names of the builder flags that were asked for, and what became of them.
    """

    name: str = "Unnamed Network 0"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    profiles: tuple[ProfileRecord, ...] = ()
    refittable: bool = False
    weights: tuple[str, ...] | None = None
    roles: tuple[tuple[str, str, str], ...] = ()
    shape_inputs: tuple[str, ...] = ()
    debug: tuple[str, ...] = ()
    debug_unfused: bool = False
    aliased: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    verbosity: str = "LAYER_NAMES_ONLY"
    implicit_batch: bool = False
    max_batch_size: int = 1
    capability: str = "STANDARD"
    compatibility: str = "NONE"
    tactic_sources: int = 0
    max_workspace_size: int = 0
    stripped: bool = False
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    requested: tuple[str, ...] = ()
    actual: Mapping[str, Any] = field(default_factory=dict)

    def attach(self, engine: Engine) -> None:
        """Keep the record with an engine, in place of what it says of TensorRT so far."""
        engine.annotate(KEY, self.json())

    def json(self) -> dict[str, Any]:
        """The record as JSON data."""
        return asdict(self)

    @classmethod
    def read(cls, data: Any) -> Record:
        """The record of JSON data; what a newer release has added is left aside.

        Raises:
            PlanFormatError: it is none.
        """
        try:
            known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            for name in ("inputs", "outputs", "shape_inputs", "debug", "requested"):
                known[name] = tuple(str(v) for v in known.get(name, ()))
            known["layers"] = tuple(Layer(**layer) for layer in known.get("layers", ()))
            known["roles"] = tuple((str(a), str(b), str(c)) for a, b, c in known.get("roles", ()))
            known["profiles"] = tuple(
                ProfileRecord(_ranges(p.get("shapes", {})), _ranges(p.get("values", {}))) for p in known.get("profiles", ())
            )
            weights = known.get("weights")
            known["weights"] = None if weights is None else tuple(str(w) for w in weights)
            return cls(**known)
        except (TypeError, ValueError, AttributeError) as error:
            raise PlanFormatError(f"engine: got a damaged record {KEY!r} ({error}), expected TensorRT's; build the engine again") from error

    @classmethod
    def of(cls, engine: Engine) -> Record:
        """The record of an engine: the one that it carries, or that of an engine which knows nothing of TensorRT.

        That has one profile of the symbols' bounds, everything in it may be refitted and looked at.

        Raises:
            PlanFormatError: a damaged record.
        """
        stored = engine.info.get(KEY)
        if stored is not None:
            return cls.read(stored)
        return cls(
            inputs=tuple(b.name for b in engine.inputs),
            outputs=tuple(b.name for b in engine.outputs),
            profiles=(profile_of(engine),),
            refittable=bool(engine.plan.weights),
            shape_inputs=engine.shape_inference.inputs,
            debug_unfused=True,
            verbosity="DETAILED",
        )


def profile_of(engine: Engine) -> ProfileRecord:
    """The profile of the bounds of an engine's symbols; the optimum is the least size."""
    bounds = {s.name: s for s in engine.plan.symbols}
    shapes = {}
    for binding in engine.inputs:
        if binding.shape is not None:
            least = _extents(binding.shape, bounds, False)
            shapes[binding.name] = (least, least, _extents(binding.shape, bounds, True))
    return ProfileRecord(shapes, {})


def _extents(shape: Sequence[Any], bounds: Mapping[str, SymbolBounds], largest: bool) -> tuple[int, ...]:
    def value(name: str) -> int:
        bound = bounds.get(name)
        if largest:
            return UNBOUNDED if bound is None or bound.upper is None else bound.upper
        return max(1, 0 if bound is None else bound.lower)

    return tuple(evaluate(d, {s: value(s) for s in symbols(d)}) if isinstance(d, Expr) else d for d in shape)


def _ranges(data: Mapping[str, Any]) -> dict[str, Range]:
    found = {}
    for name, rows in data.items():
        least, best, most = (tuple(int(v) for v in row) for row in rows)
        found[str(name)] = (least, best, most)
    return found


