"""Values too large for fp16: what a run of the model in fp32 shows, and which of them the compiled network would round.

`measure` runs the references over the graph that is lowered, on the caller's samples or on seeded inputs, and notes the
largest magnitude of every fp32 value. `decide` finds those beyond the safe range that are rounded somewhere: it lowers and
fuses a copy of the graph, looks at what is stored and at what tensor cores multiply, and starts again with those kept, until
nothing too large is rounded. What a fusion computes on the way and never stores is fp32 anyway, and keeps nothing. The
decision is part of the engine's report, so that making its kernels again needs no second measurement.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail.builder.oracle import short
from dovetail.builder.verify_engine import sizes_within
from dovetail.core.dtypes import BF16, F16, F32
from dovetail.core.env import env
from dovetail.core.errors import Error, PlanFormatError, UsageError
from dovetail.core.log import logger
from dovetail.core.records import RecordFile
from dovetail.ir.graph import Graph, Module, Node, Time, Value
from dovetail.ir.parser import parse_module
from dovetail.ir.types import TensorType
from dovetail.ops.evaluate import evaluate
from dovetail.ops.registry import OpKind, find
from dovetail.ops.samples import graph_inputs
from dovetail.passes.precision import LARGEST, Kept, is_mask

HEADROOM = 4.0
"""How many times larger than what was seen a value may become before it leaves the range: inputs differ."""

LIMIT = LARGEST[F16] / HEADROOM
"""The largest magnitude that may be seen of a value that is rounded to fp16."""

_SEED = 1
_CARRIERS = frozenset({"Reshape", "Transpose"})
_log = logger("precision")


@dataclass(frozen=True)
class Ranges:
    """What was seen of the values of a graph.

    Attributes:
        measured: whether there was a run; else `reason` says why not.
        inputs: what the run was on, in words.
        largest: the largest finite magnitude of every fp32 value, by name; of masks only that of positive numbers.
        outputs: what the graph gives for each of the caller's samples.
    """

    measured: bool
    reason: str = ""
    inputs: str = ""
    largest: Mapping[str, float] = field(default_factory=dict)
    outputs: tuple[Mapping[str, Any], ...] = ()

    @property
    def beyond(self) -> dict[str, float]:
        """Those beyond the safe range."""
        return {name: size for name, size in self.largest.items() if size > LIMIT}


@dataclass(frozen=True)
class RangeDecision:
    """What is kept in fp32 for its range, and what that was decided on.

    Attributes:
        kept: the values.
        nodes: name of a kept value → the node that gives it.
        peak: name and magnitude of the largest value that was seen, kept or not.
        measured, reason, inputs: as in `Ranges`.
    """

    kept: Kept = field(default_factory=Kept)
    nodes: Mapping[str, str] = field(default_factory=dict)
    peak: tuple[str, float] = ("", 0.0)
    measured: bool = False
    reason: str = ""
    inputs: str = ""

    def data(self) -> dict[str, Any]:
        """The decision as JSON data."""
        listed = [
            {"value": name, "node": self.nodes[name], "largest": size, "strict": name in self.kept.strict}
            for name, size in self.kept.largest.items()
        ]
        return {
            "measured": self.measured, "reason": self.reason, "inputs": self.inputs, "limit": LIMIT, "peak": list(self.peak),
            "kept": listed,
        }  # fmt: skip

    @staticmethod
    def parse(data: Any) -> RangeDecision:
        """The decision that a report states; none where it states none.

        Raises:
            PlanFormatError: damaged data.
        """
        if data is None:
            return RangeDecision()
        try:
            entries = [(str(e["value"]), str(e["node"]), float(e["largest"]), e["strict"] is True) for e in data["kept"]]
            kept = Kept({name: size for name, _, size, _ in entries}, frozenset(name for name, *_, strict in entries if strict))
            nodes = {name: node for name, node, *_ in entries}
            peak = (str(data["peak"][0]), float(data["peak"][1]))
            return RangeDecision(kept, nodes, peak, data["measured"] is True, str(data["reason"]), str(data["inputs"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PlanFormatError(
                f"engine: got damaged ranges in its report ({error!r}), expected what a build wrote; build the engine again"
            ) from error


# ---------------------------------------------------------------------- what is seen
def measure(
    module: Module,
    *,
    samples: Sequence[Mapping[str, Any]],
    level: str,
    single: Callable[[], Module] | None = None,
) -> Ranges:
    """Run a graph in fp32 and note the range of its values.

    Args:
        module: after *recognise*.
        samples: the caller's inputs; where there are none, one set of seeded inputs is made.
        level: "full" or "sample"; a sample takes seeded inputs only where the references need a few seconds.
        single: gives the same model for one sample, for a batch that would take longer; may raise `Error`.

    Raises:
        Error: the caller's samples do not fit the model.
    """
    if samples:
        seen: dict[str, float] = {}
        outputs = tuple(_observe(module, sample, seen) for sample in samples)
        return Ranges(True, "", f"{len(samples)} of the caller's samples", seen, outputs)
    impure = next((n for n in module.main.nodes if n.attrs.get("impure")), None)
    if impure is not None:
        return Ranges(False, f"{impure.where} draws random numbers")
    found = _seeded(module, level)
    if found.measured or single is None:
        return found
    try:
        smaller = _seeded(single(), level)
    except Error as error:
        return Ranges(False, f"{found.reason}; the model takes no smaller batch ({error})")
    return smaller if smaller.measured else found


def remembered(key: str, run: Callable[[], Ranges]) -> Ranges:
    """What an earlier run measured for a key, from `DOVETAIL_CACHE/ranges.jsonl`, or what this one does."""
    cache = RecordFile(env().cache / "ranges.jsonl")
    known = cache.get(key)
    if known is not None:
        return Ranges(True, inputs=str(known["inputs"]), largest=dict(known["largest"]))
    found = run()
    if found.measured:
        cache.put(key, {"inputs": found.inputs, "largest": dict(found.largest)})
        cache.flush()
    return found


def _seeded(module: Module, level: str) -> Ranges:
    reason = "no sizes were found that the model accepts"
    for sizes, _, refusal in sizes_within(module, level):
        if refusal:
            reason = refusal
            continue
        feed = graph_inputs(module.main, sizes, np.random.default_rng(_SEED))
        seen: dict[str, float] = {}
        try:
            _observe(module, feed, seen)
        except (Error, ValueError, IndexError, ArithmeticError, MemoryError) as error:
            reason = f"the references refused seeded inputs: {error}"
            continue
        shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in feed.items())
        return Ranges(True, inputs=f"seeded normal numbers: {shapes}", largest=seen)
    return Ranges(False, reason)


def _observe(module: Module, feed: Mapping[str, Any], seen: dict[str, float]) -> dict[str, Any]:
    """The outputs; the magnitudes go to `seen`."""
    masks: dict[Value, bool] = {}

    def note(value: Value, array: Any) -> None:
        if not isinstance(value.type, TensorType) or value.type.dtype != F32 or not array.size:
            return
        low, high = float(np.min(array)), float(np.max(array))
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = array[np.isfinite(array)]
            low, high = (float(np.min(finite)), float(np.max(finite))) if finite.size else (0.0, 0.0)
        largest = max(-low, high)
        if largest > LIMIT and -low > high:
            if value not in masks:
                masks[value] = is_mask(value)
            largest = max(high, 0.0) if masks[value] else largest
        if value.time != Time.RUN and largest <= LARGEST[F16]:
            largest = 0.0  # known exactly, and in range
        seen[value.name] = max(seen.get(value.name, 0.0), short(largest))

    with np.errstate(all="ignore"):
        return evaluate(module, feed, observe=note)


# ---------------------------------------------------------------------- what would be rounded
def decide(graph_text: str, module: Module, ranges: Ranges, lower: Callable[[Module, Kept], object]) -> RangeDecision:
    """Choose the values that stay fp32, so that none beyond the safe range is rounded.

    Args:
        graph_text: canonical IR of the module, of which copies are made.
        module: gives weights and metadata.
        lower: lowers a module's precision with some values kept, up to and with fusion.
    """
    beyond = ranges.beyond
    kept = Kept()
    while beyond:
        trial = parse_module(graph_text)
        trial.weights, trial.guards, trial.meta = dict(module.weights), list(module.guards), dict(module.meta)
        origins = {v.name: set(n.origin) for n in trial.main.nodes for v in n.outputs if v.name in beyond}
        lower(trial, kept)
        found = _rounded_names(trial.main, ranges.largest, beyond, origins)
        new = [name for name in beyond if name in found and name not in kept.largest]
        again = [name for name in beyond if name in found and name in kept.largest and name not in kept.strict]
        if not new and not again:
            break
        kept = Kept({**kept.largest, **{name: beyond[name] for name in new}}, kept.strict | set(again))
    nodes = {v.name: v.producer.where if v.producer is not None else f"{v.name} (input)" for v in module.main.values()}
    for name, size in kept.largest.items():
        _log.info("%s: %s reaches %.2g, beyond the safe range of fp16 (%.0f), and stays fp32", nodes[name], name, size, LIMIT)
    name, size = max(ranges.largest.items(), key=lambda item: item[1], default=("", 0.0))
    return RangeDecision(
        kept, {n: nodes[n] for n in kept.largest}, (name, size), ranges.measured, ranges.reason, ranges.inputs
    )  # fmt: skip


def _rounded_names(
    graph: Graph, measured: Mapping[str, float], beyond: Mapping[str, float], origins: Mapping[str, set[str]]
) -> set[str]:
    """Which values beyond the range a lowered and fused graph rounds."""
    present = {v.name for v in _all_values(graph)}
    gone = [name for name in beyond if name not in present and origins.get(name)]
    found: set[str] = set()
    for value in _rounded(graph):
        current = value
        while current.name not in measured and (node := current.producer) is not None:
            if node.op not in _CARRIERS and not node.attrs.get("clamp"):
                break
            current = node.input(0)
        if current.name in measured:
            found.update({current.name} & beyond.keys())
        elif value.producer is not None:
            # A rewrite gave it another name: it may be any value that is gone and came of the same nodes of the model.
            found.update(name for name in gone if origins[name] & set(value.producer.origin))
    return found


def rounded_values(graph: Graph) -> frozenset[str]:
    """Names of the values that a fused graph rounds to fp16 or bf16, and of those that they are copies of."""
    found = set()
    for value in _rounded(graph):
        current = value
        found.add(current.name)
        while (node := current.producer) is not None and (node.op in _CARRIERS or node.attrs.get("clamp")):
            current = node.input(0)
            found.add(current.name)
    return frozenset(found)


def require_known(module: Module, patterns: Sequence[str]) -> None:
    """Check that every name or pattern of the option `fp32_nodes` means a node.

    Raises:
        UsageError: one does not.
    """
    nodes = list(module.main.nodes)
    for pattern in patterns:
        if not any(Kept(nodes=(pattern,)).named(node) for node in nodes):
            names = sorted({name for node in nodes for name in node.origin})
            near = difflib.get_close_matches(pattern, names, 3, 0.0)
            raise UsageError(
                f"fp32_nodes: got {pattern!r}, expected the name of a node, such as {', '.join(near)}, or a pattern as in 'head/*'"
            )


def _rounded(graph: Graph) -> Iterator[Value]:
    """Values that a fused graph rounds: what is stored, what contractions multiply, and what the compiler casts."""
    for node in graph.nodes:
        if node.regions and node.op != "Fusion":
            continue
        for inner in node.regions[0].nodes if node.op == "Fusion" else (node,):
            yield from _consumed(inner)
        if node.op != "Cast":
            yield from (v for v in node.outputs if _is_narrow(v))


def _consumed(node: Node) -> Iterator[Value]:
    spec = find(node.op)
    if node.op == "Cast" and node.attrs.get("clamp"):
        yield node.input(0)
    elif spec is not None and spec.kind is OpKind.CONTRACTION:
        yield from (v for v in node.operands if _is_narrow(v))


def _is_narrow(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype in (F16, BF16)


def _all_values(graph: Graph) -> Iterator[Value]:
    yield from graph.values()
    for node in graph.nodes:
        for region in node.regions:
            yield from _all_values(region)
