"""`dovetail.diff`: what differs between two models or engines, in graph, compilation, weights, outputs and speed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dovetail.api.comparison import Comparison, compare
from dovetail.api.difference_sides import (
    EngineSide,
    ModelSide,
    Side,
    feeds_for,
    port_changes,
    same_and_unread,
    side,
)
from dovetail.api.difference_text import text_of
from dovetail.api.engine import Engine, Progress
from dovetail.api.plan_difference import plan_difference
from dovetail.api.recipes import Recipe
from dovetail.api.resident import resident_run
from dovetail.api.weight_match import match_arrays
from dovetail.benchmark.measure import measure
from dovetail.core.errors import Error, UsageError
from dovetail.frontend.reader import ModelSource
from dovetail.model.graph_difference import compare_graphs
from dovetail.model.weight_difference import WeightDifference, compare_weights

SECTIONS = ("graph", "engine", "weights", "outputs", "speed")
"""What can be compared; "engine" and "speed" are for engines, unless speed is asked for by name."""

_ROUNDS = 15
_ROUND_S = 0.15
_NOISE = 0.02  # where an engine's memory happens to lie moves its time as much
_MATCHED_BYTES = 2 << 30


@dataclass(frozen=True)
class Diff:
    """The outcome of `diff`; `str` shows the first of everything, `json` has all.

    Attributes:
        a, b: what was compared: name, kind.
        graph: io (changes in words), opsets, and nodes removed, added, changed, renamed; None where not compared.
        engine: facts, fusions and tactics that differ, of two engines.
        weights: names, types and values that differ.
        outputs: the comparison of outputs, of layers too if asked.
        speed: medians in ms, and how many times as long b takes, with a 95 % interval; the verdict is "faster"
            or "slower" if all of that is beyond 2 %, "same" if it is within, else "undecided".
        notes: by section why it could not be compared.
    """

    a: Mapping[str, str]
    b: Mapping[str, str]
    graph: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] | None = None
    weights: WeightDifference | None = None
    outputs: Comparison | None = None
    speed: Mapping[str, Any] | None = None
    notes: Mapping[str, str] | None = None

    @property
    def ok(self) -> bool:
        """Whether outputs are within the tolerance; False where they were asked for and could not be compared."""
        return "outputs" not in (self.notes or {}) and (self.outputs is None or self.outputs.ok)

    @property
    def equal(self) -> bool:
        """Whether nothing that was compared differs; speed does not count."""
        parts = [self.graph is None or self.graph["equal"], self.engine is None or self.engine["equal"]]
        return self.ok and all(parts) and (self.weights is None or self.weights.equal)

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys; sections that were not compared are None."""
        return {
            "ok": self.ok, "equal": self.equal, "a": dict(self.a), "b": dict(self.b), "graph": self.graph, "engine": self.engine,
            "weights": None if self.weights is None else self.weights.json(),
            "outputs": None if self.outputs is None else self.outputs.json(), "speed": self.speed, "notes": dict(self.notes or {}),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dovetail.view.notebook import text_html

        return text_html("Dovetail diff", str(self))

    def __str__(self) -> str:
        return text_of(self.json(), self.outputs)


def diff(
    a: ModelSource | Engine,
    b: ModelSource | Engine,
    *,
    only: Collection[str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Any] | None = None,
    layers: bool = False,
    tolerance: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Diff:
    """Say what differs between two models, two engines, or a model and an engine.

    Args:
        a: what is compared with: a path of an ONNX model or an engine file, a ModelProto, a `Model`, or an `Engine`.
        b: likewise.
        only: sections of `SECTIONS`; default: all that apply, speed between two engines only.
        inputs: arrays by name, for outputs and speed; default: seeded ones, of `shapes` where given.
        layers: compare intermediate values too, and name the first that is off.
        tolerance: relative L2 difference up to which outputs count as equal; default: by the precision of the less precise side.
        threads: of runs; default: all cores.
        trust: run compiled kernels of engine files whoever signed them.

    Raises:
        UsageError: unknown sections.
        ModelError, PlanFormatError: what is given cannot be read.
    """
    if unknown := sorted(set(only or ()) - set(SECTIONS)):
        raise UsageError(f"diff: got {', '.join(unknown)}, expected some of {', '.join(SECTIONS)}")
    one, two = side(a, "a"), side(b, "b")
    both = isinstance(one, EngineSide) and isinstance(two, EngineSide)
    wanted = set(only) if only is not None else {"graph", "engine", "weights", "outputs", *(["speed"] if both else [])}
    if only is not None and "engine" in wanted and not both:
        raise UsageError("diff: got engine among the sections, expected two engines; a model has no kernels: build it first")
    found = Diff({"name": one.name, "kind": one.kind}, {"name": two.name, "kind": two.kind}, notes={})
    if "graph" in wanted:
        found = replace(found, graph=_graph(one, two))
    if "engine" in wanted and isinstance(one, EngineSide) and isinstance(two, EngineSide):
        found = replace(found, engine=plan_difference(one.plan, two.plan))
    if "weights" in wanted:
        found = replace(found, weights=_weights(one, two))
    notes: dict[str, str] = {}
    runs = wanted & {"outputs", "speed"}
    feeds = dict(inputs) if inputs is not None else None
    if runs and feeds is None:
        feeds = _noted(notes, runs, lambda: feeds_for(one, two, shapes, seed))
    if "outputs" in runs - set(notes):
        outputs = _noted(
            notes, {"outputs"},
            lambda: compare(one.runnable(threads, trust), two.runnable(threads, trust), feeds, layers, tolerance=tolerance),
        )  # fmt: skip
        found = replace(found, outputs=outputs)
    if "speed" in runs - set(notes):
        found = replace(found, speed=_noted(notes, {"speed"}, lambda: _speed(one, two, feeds, threads, trust, progress)))
    return replace(found, notes=notes)


def _noted(notes: dict[str, str], sections: Collection[str], call: Callable[[], Any]) -> Any:
    """What a call returns; an error of ours is noted for the sections, and the rest goes on."""
    try:
        return call()
    except Error as error:
        notes.update(dict.fromkeys(sections, str(error)))
        return None


def _graph(a: Side, b: Side) -> dict[str, Any]:
    if isinstance(a, ModelSide) and isinstance(b, ModelSide):
        nodes_a, nodes_b = a.nodes(), b.nodes()
        opsets = {k: [a.opsets().get(k), b.opsets().get(k)] for k in sorted({*a.opsets(), *b.opsets()})}
        opsets = {k: pair for k, pair in opsets.items() if pair[0] != pair[1]}
    else:
        # A build starts from the simplified graph, which an engine keeps: the model's counterpart is made in the same way.
        nodes_a = a.optimised(b) if isinstance(b, EngineSide) else a.nodes()
        nodes_b = b.optimised(a) if isinstance(a, EngineSide) else b.nodes()
        opsets = {}
    names = [[p["name"] for p in s.ports()["inputs"]] for s in (a, b)]
    called = dict(zip(*names, strict=True)) if len(names[0]) == len(names[1]) else {n: n for n in names[0]}
    nodes = compare_graphs(nodes_a, nodes_b, called).json()
    io = port_changes(a, b)
    return nodes | {"equal": nodes["equal"] and not io and not opsets, "nodes": [len(nodes_a), len(nodes_b)], "io": io, "opsets": opsets}


def _weights(a: Side, b: Side) -> WeightDifference:
    equal, unread = same_and_unread(a, b)
    held_a, held_b = a.weights(), b.weights()
    found = compare_weights(held_a, held_b, equal, unread)
    # Only weights that the other side cannot have by its name are searched for by their contents.
    lost = [*found.added, *found.retyped, *(c.name for c in found.changed)]
    sought = {n: held_b[n] for n in lost if n in held_b and held_b[n].dtype != object and held_b[n].size > 1}
    if not sought or sum(x.nbytes for x in (*held_a.values(), *sought.values())) > _MATCHED_BYTES:
        return found
    matches = match_arrays(sought, held_a)
    used = dict.fromkeys(n for recipe in matches.values() if isinstance(recipe, Recipe) for n in recipe.inputs)
    return replace(found, found={name: str(recipe) for name, recipe in matches.items()}, used=tuple(used))


def _speed(
    a: Side, b: Side, feeds: Mapping[str, Any] | None, threads: int | None, trust: bool, progress: Progress | None
) -> dict[str, Any]:
    engines = [s.engine(threads, trust) for s in (a, b)]
    given = feeds if feeds is not None else engines[0].sample_inputs()
    arrays = {k: np.ascontiguousarray(v) if isinstance(v, np.ndarray) and v.ndim else v for k, v in given.items()}
    calls = {name: _runner(engine, arrays, threads) for name, engine in zip("ab", engines, strict=True)}
    result = measure(calls, rounds=_ROUNDS, round_s=_ROUND_S, base="a", progress=progress)
    (ratio,) = result.ratios
    medians = {x.name: x.median_ms for x in result.latencies}
    if ratio.high < 1 - _NOISE or ratio.low > 1 + _NOISE:
        verdict = "faster" if ratio.ratio < 1 else "slower"
    else:
        verdict = "same" if ratio.low >= 1 - _NOISE and ratio.high <= 1 + _NOISE else "undecided"
    return {
        "a_ms": medians["a"], "b_ms": medians["b"], "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high, "verdict": verdict,
        "rounds": result.rounds, "threads": threads or len(os.sched_getaffinity(0)),
        "devices": [e.runtime.device for e in engines],
        "inputs": {n: list(np.shape(x)) for n, x in arrays.items()}, "built": [s.name for s in (a, b) if isinstance(s, ModelSide)],
    }  # fmt: skip


def _runner(engine: Engine, feeds: Mapping[str, Any], threads: int | None) -> Callable[[], object]:
    """One run: of an engine on a GPU with everything on the device."""
    arrays = dict(feeds)
    for binding in engine.inputs:
        if binding.name in arrays and binding.shape is not None:
            arrays[binding.name] = np.asarray(arrays[binding.name]).astype(binding.dtype.numpy, copy=False)
    return resident_run(engine.runtime, engine.inputs, arrays) or (lambda: engine.run(arrays, threads=threads))
