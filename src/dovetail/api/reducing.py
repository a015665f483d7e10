"""`dovetail.reduce`: the smallest part of a model that still fails, with the inputs on which it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from dovetail.api.building import build
from dovetail.api.comparison import compare, default_tolerance
from dovetail.core.dtypes import dtype
from dovetail.core.errors import BindingError, Error, ShapeError, UsageError
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import ModelSource
from dovetail.model.edit.extract import extract
from dovetail.model.model import Model
from dovetail.model.proto_graph import reads
from dovetail.model.sample_inputs import generate
from dovetail.ops.evaluate import evaluate

Arrays = Mapping[str, np.ndarray[Any, Any]]
Fails = Callable[[Model, Arrays], str | None]
"""Says in a word or two how a model fails on inputs; None where it does not."""


@dataclass(frozen=True)
class Reduced:
    """The smallest part that was found.

    Attributes:
        model: the part.
        inputs: arrays on which it fails.
        reason: how.
        nodes: numbers of nodes of the whole and of the part.
        tried: how many parts were tried.
    """

    model: Model
    inputs: dict[str, np.ndarray[Any, Any]]
    reason: str
    nodes: tuple[int, int]
    tried: int

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "reason": self.reason, "nodes": list(self.nodes), "tried": self.tried,
            "operators": [n.op_type for n in self.model.proto.graph.node],
            "inputs": {n: [str(a.dtype), list(a.shape)] for n, a in self.inputs.items()},
            "outputs": [v.name for v in self.model.proto.graph.output],
        }  # fmt: skip

    def __str__(self) -> str:
        nodes = [f"{n.op_type} {n.name or n.output[0]}" for n in self.model.proto.graph.node]
        shown = ", ".join(nodes[:8]) + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")
        return f"{self.nodes[1]} of {self.nodes[0]} nodes still fail ({self.reason}), found with {self.tried} tries: {shown}"


def reduce(
    model: ModelSource,
    inputs: Arrays | None = None,
    *,
    fails: Fails | None = None,
    tolerance: float | None = None,
    tried: Callable[[str], None] | None = None,
    **options: Any,
) -> Reduced:
    """Cut a model down to the smallest part that fails in the same way.

    First from the end, to the earliest value that is wrong, then from the front: values of the whole model become inputs of the part.

    Args:
        model: an ONNX model.
        inputs: arrays by name on which it fails; default: seeded ones.
        fails: says how a part fails on inputs, None where it does not; default: its engine cannot be built or run, or an output is
            off by more than the tolerance.
        tolerance: of the default, see `dovetail.compare`.
        tried: told after each try what it showed.
        options: of `dovetail.build`, for the default. Tactics are chosen by rule unless `tune=True` is given.

    Raises:
        UsageError: the whole model does not fail, or the values inside of it are not known.
        BindingError: inputs of other names, types or shapes than the model's.
        ModelError: it cannot be read.
    """
    whole = Model.load(model)
    feeds = dict(inputs) if inputs is not None else generate(whole.inputs, {})
    search = _Search(whole, feeds, fails or _default(whole, tolerance, options), tried or (lambda text: None))
    return search.find()


def _default(whole: Model, tolerance: float | None, options: Mapping[str, Any]) -> Fails:
    """Whether an engine cannot be built, run, or is off; options that not even the whole model takes are the caller's mistake."""
    settings = {"tune": False, "verify": "off", **options}
    allowed = default_tolerance(settings) if tolerance is None else tolerance

    def fails(model: Model, feeds: Arrays) -> str | None:
        try:
            engine = build(model, **settings)
        except Error as error:
            if model is whole and isinstance(error, UsageError):
                raise
            return f"the build raises {type(error).__name__}"
        try:
            comparison = compare(model, engine, feeds, tolerance=allowed)
        except Error as error:
            return f"the run raises {type(error).__name__}"
        return None if comparison.ok else "an output is off"

    return fails


class _Search:
    def __init__(self, whole: Model, feeds: Arrays, fails: Fails, told: Callable[[str], None]) -> None:
        self.whole, self.feeds, self.fails, self.told = whole, feeds, fails, told
        self.graph = whole.proto.graph
        self.nodes = list(self.graph.node)
        self.made_at = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        constants = {name for node in self.nodes if node.op_type == "Constant" for name in node.output}
        self.fixed = constants | {t.name for t in self.graph.initializer}
        self.tries = 0
        self.reason = ""

    def find(self) -> Reduced:
        values = self._values()
        self.tries += 1
        found = self.fails(self.whole, self.feeds)
        if found is None:
            raise UsageError("reduce: got a model that does not fail on these inputs, expected one that does; give other inputs")
        self.reason = found
        self.told(f"all {len(self.graph.node)} nodes: {found}")
        ends = [(i, name) for i, node in enumerate(self.graph.node) for name in node.output if name in values]
        best: tuple[Model, dict[str, Any]] = (self.whole, dict(self.feeds))
        end = self._first_wrong(ends)
        start = None
        if end is not None:
            best = self._part(None, end[1], values)
            start = self._last_start(end, values)
        if end is not None and start is not None:
            best = self._part(self._frontier(start, end), end[1], values)
        part, arrays = best
        return Reduced(part, arrays, self.reason, (len(self.graph.node), len(part.proto.graph.node)), self.tries)

    def _values(self) -> dict[str, Any]:
        """What every tensor of the model is on the inputs, as far as the references tell."""
        everything = self.whole.copy()
        graph = everything.proto.graph
        known = {v.name for v in graph.output}
        # As outputs, values keep their names where import has no node for them.
        graph.output.extend(onnx.ValueInfoProto(name=n) for node in self.graph.node for n in node.output if n and n not in known)
        try:
            found = evaluate(import_onnx(everything), dict(self.feeds))
        except (BindingError, ShapeError):
            raise  # no part of the model is to blame for inputs that do not fit
        except Error as error:
            self.told(f"values inside of the model are not known ({error}): only its end is cut off")
            names = {name for node in self.graph.node for name in node.output if name}
            return dict.fromkeys(names)
        return {**found, **self.feeds}

    def _first_wrong(self, ends: Sequence[tuple[int, str]]) -> tuple[int, str] | None:
        """The earliest tensor that fails as an output; what is wrong stays wrong in what is computed from it."""
        outputs = [v.name for v in self.graph.output]
        last = next((e for e in reversed(ends) if e[1] in outputs and self._still(None, e)), None)
        if last is None:
            return None
        low, high = -1, ends.index(last)  # the last known not to fail, the first known to
        while high - low > 1:
            middle = (low + high) // 2
            if self._still(None, ends[middle]):
                high = middle
            else:
                low = middle
        return ends[high]

    def _last_start(self, end: tuple[int, str], values: Mapping[str, Any]) -> int | None:
        """The last node from which on the model still fails, with the values ahead of it as inputs."""
        low, high = 0, end[0] + 1  # known to fail, taken not to
        while high - low > 1:
            middle = (low + high) // 2
            # Some values have no name of their own in the IR: the next node from which on all are known.
            known = (s for s in (*range(middle, high), *range(middle - 1, low, -1)) if self._known(self._frontier(s, end), values))
            start = next(known, None)
            if start is None:
                break
            if self._still(self._frontier(start, end), end, values):
                low = start
            else:
                high = min(start, middle)
        return low or None

    @staticmethod
    def _known(names: Sequence[str], values: Mapping[str, Any]) -> bool:
        return bool(names) and all(values.get(n) is not None for n in names)

    def _frontier(self, start: int, end: tuple[int, str]) -> list[str]:
        """The tensors that the nodes from `start` to `end` read from nodes ahead of them, and the model's own inputs."""
        alive, wanted = {end[1]}, dict[str, None]()
        for position in range(end[0], start - 1, -1):
            if alive.isdisjoint(self.nodes[position].output):
                continue
            for name in reads(self.nodes[position]):
                if self.made_at.get(name, -1) >= start:
                    alive.add(name)
                elif name not in self.fixed:
                    wanted[name] = None
        return list(wanted)

    def _part(self, starts: Sequence[str] | None, end: str, values: Mapping[str, Any] | None) -> tuple[Model, dict[str, Any]]:
        known = values or {}
        types = {
            n: (str(dtype(np.asarray(known[n]).dtype)), np.shape(known[n]))
            for n in (*(starts or ()), end) if known.get(n) is not None
        }  # fmt: skip
        part = extract(self.whole, starts, [end], types=types)
        wanted = [v.name for v in part.inputs]
        return part, {n: np.asarray(known.get(n, self.feeds.get(n))) for n in wanted}

    def _still(self, starts: Sequence[str] | None, end: tuple[int, str], values: Mapping[str, Any] | None = None) -> bool:
        """Whether the part between tensors fails like the whole."""
        try:
            part, arrays = self._part(starts, end[1], values or dict(self.feeds))
        except (Error, onnx.checker.ValidationError) as error:
            self.told(f"up to {end[1]}: no model of its own ({error})")
            return False
        self.tries += 1
        found = self.fails(part, arrays)
        same = found == self.reason
        self.told(f"{len(part.proto.graph.node)} nodes up to {end[1]}: {found or 'right'}{'' if same or found is None else ', otherwise'}")
        return same
