"""`dovetail.compare`: two models or engines on the same inputs, layer by layer if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from dovetail.api.engine import Engine
from dovetail.builder.oracle import relative_l2
from dovetail.builder.restore import options_of
from dovetail.builder.verify_engine import as_bound
from dovetail.core.errors import BindingError, Error, UsageError
from dovetail.export.torch_subject import is_torch_model
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import ModelSource, is_model
from dovetail.ir.graph import Time
from dovetail.ir.types import TensorType
from dovetail.ops.evaluate import evaluate, trace
from dovetail.ops.samples import free_symbols, graph_inputs, sizes_to_try

Arrays = dict[str, Any]

_SHOWN = 20

TOLERANCES = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1e-2}
"""Relative L2 difference that counts as equal, by the precision of the less precise side."""

# An engine in a lower precision may be so many times as far off as its certificate says: other inputs, other rounding.
_CERTIFIED = 1.5


def default_tolerance(options: Mapping[str, Any]) -> float:
    """The tolerance of an engine that is built with these options; a precision that there is none of is refused by the build."""
    return TOLERANCES.get(options.get("precision", "fp32"), TOLERANCES["fp32"])


@dataclass(frozen=True)
class Difference:
    """How far a value of b is from the same value of a.

    Attributes:
        name: the user's name of the value.
        kind: "output" or "layer".
        relative_l2: ||b - a|| / ||a||; inf where shapes differ.
        max_abs: largest absolute difference.
        ok: whether relative_l2 is within the tolerance.
        note: why it is infinite, else "".
    """

    name: str
    kind: str
    relative_l2: float
    max_abs: float
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare`.

    Attributes:
        outputs: one difference per output.
        layers: one per intermediate value that both have, in execution order.
        tolerance: largest relative L2 difference that counts as equal.
    """

    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every output (and layer, where compared) is within the tolerance."""
        return all(d.ok for d in (*self.outputs, *self.layers))

    @property
    def first_bad(self) -> Difference | None:
        """The first value in execution order that is off."""
        return next((d for d in (*self.layers, *self.outputs) if not d.ok), None)

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys; infinities as the text "inf"."""
        bad = self.first_bad
        return {
            "ok": self.ok,
            "tolerance": self.tolerance,
            "first_bad": None if bad is None else _plain(bad),
            "outputs": [_plain(d) for d in self.outputs],
            "layers": [_plain(d) for d in self.layers],
        }

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dovetail.view.notebook import comparison_html

        return comparison_html(self.json())

    def __str__(self) -> str:
        bad = self.first_bad
        lines = []
        if bad is not None and self.layers:
            lines.append(f"first bad {bad.kind}: {bad.name}, relative L2 {bad.relative_l2:.2e}{_note(bad)}")
        width = max((len(d.name) for d in (*self.outputs, *self.layers)), default=4)
        lines += [_row(d, width) for d in self.outputs]
        if self.layers:
            wrong = [d for d in self.layers if not d.ok]
            worst = max(self.layers, key=lambda d: d.relative_l2)
            lines.append(
                f"{len(self.layers)} layers, {len(wrong)} beyond {self.tolerance:.0e}, largest {worst.relative_l2:.2e} ({worst.name})"
            )
            lines += [_row(d, width) for d in wrong[:_SHOWN]]
        lines.append("equal within the tolerance" if self.ok else f"different: beyond {self.tolerance:.0e}")
        return "\n".join(lines)


def compare(
    a: ModelSource | Engine | Any,
    b: ModelSource | Engine | Any,
    inputs: Mapping[str, Any] | None = None,
    layers: bool = False,
    *,
    tolerance: float | None = None,
) -> Comparison:
    """Run both on the same inputs and measure how far b is from a.

    Args:
        a: the reference: a model (path, bytes, ModelProto, Network; runs on the references), a module or program of PyTorch, or an engine.
        b: likewise.
        inputs: arrays by name; default: seeded ones. Floats take the element types that either side's bindings have.
        layers: compare every intermediate value that both have under the same name.
        tolerance: relative L2 difference up to which values count as equal; default: by the least precise side, `TOLERANCES`,
            or what an engine's certificate lets expect, if that is more.

    Raises:
        BindingError: they share no outputs, or the inputs do not fit.
        ModelError: a model cannot be read.
    """
    first, second = _side(a), _side(b)
    allowed = max(first.tolerance(), second.tolerance()) if tolerance is None else tolerance
    feeds = dict(inputs) if inputs is not None else _inputs(first, second)
    wanted = first.layers() if layers else []
    if layers:
        known = set(second.layers())
        order = second.layers() if isinstance(first, _ModelSide) else wanted
        wanted = [n for n in order if n in known and n in set(wanted)]
    outputs_a, layers_a = first.run(feeds, wanted)
    outputs_b, layers_b = second.run(feeds, wanted)
    shared = [n for n in outputs_a if n in outputs_b]
    if not shared:
        raise BindingError(f"compare: got outputs {list(outputs_a)} and {list(outputs_b)}, expected some names in common")
    return Comparison(
        tuple(_difference(n, "output", outputs_a[n], outputs_b[n], allowed) for n in shared),
        tuple(_difference(n, "layer", layers_a[n], layers_b[n], allowed) for n in wanted if n in layers_a and n in layers_b),
        allowed,
    )


class _Side(Protocol):
    def tolerance(self) -> float: ...

    def layers(self) -> list[str]: ...

    def inputs(self) -> Arrays: ...

    def run(self, feeds: Arrays, layers: list[str]) -> tuple[Arrays, Arrays]: ...


class _EngineSide:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def tolerance(self) -> float:
        precision = options_of(self.engine.plan).precision
        if precision == "fp32":
            return TOLERANCES[precision]
        certificate: Mapping[str, Any] = self.engine.plan.certificate
        found = certificate.get("engine", {}).get("outputs", [])
        return max([TOLERANCES[precision], *(_CERTIFIED * float(row["relative_l2"]) for row in found)])

    def layers(self) -> list[str]:
        outputs = {b.name for b in self.engine.outputs}
        return [n for n in dict.fromkeys(t.name for t in self.engine.plan.main.taps) if n not in outputs]

    def inputs(self) -> Arrays:
        return dict(self.engine.sample_inputs())

    def run(self, feeds: Arrays, layers: list[str]) -> tuple[Arrays, Arrays]:
        feeds = as_bound(feeds, {b.name: b.dtype for b in self.engine.inputs})
        # Taps rerun the tables in pieces; plain runs are what users get, so outputs come from one.
        return self.engine.run(feeds), self.engine.tap(layers, feeds) if layers else {}


class _ModelSide:
    def __init__(self, source: ModelSource) -> None:
        if not is_model(source):
            raise UsageError(f"compare: got a {type(source).__name__}, expected a model (path, bytes, ModelProto, Network) or an Engine")
        self.module = import_onnx(source)

    def tolerance(self) -> float:
        return TOLERANCES["fp32"]

    def layers(self) -> list[str]:
        skip = {v.name for v in (*self.module.main.inputs, *self.module.main.outputs)}
        return [v.name for v in self.module.main.values() if v.name not in skip and v.time is not Time.WEIGHT]

    def inputs(self) -> Arrays:
        graph = self.module.main
        problem: Exception | None = None
        for sizes in sizes_to_try(free_symbols(v.type for v in graph.inputs), self.module.meta.get("symbol_bounds", {})):
            feeds = graph_inputs(graph, sizes, np.random.default_rng(0))
            try:
                evaluate(self.module, feeds)
            except (Error, ValueError, IndexError) as error:
                problem = error
                continue
            return feeds
        raise UsageError(f"compare: found no seeded inputs that the model accepts ({problem}); pass inputs=")

    def run(self, feeds: Arrays, layers: list[str]) -> tuple[Arrays, Arrays]:
        feeds = as_bound(feeds, {v.name: v.type.dtype for v in self.module.main.inputs if isinstance(v.type, TensorType)})
        names = self.module.meta.get("output_names") or [v.name for v in self.module.main.outputs]
        values = trace(self.module, feeds) | evaluate(self.module, feeds) if layers else evaluate(self.module, feeds)
        return {n: values[n] for n in names}, {n: values[n] for n in layers}


def _side(source: ModelSource | Engine | Any) -> _Side:
    if is_torch_model(source):
        from dovetail.api.torch_models import TorchSide

        return TorchSide(source)
    return _EngineSide(source) if isinstance(source, Engine) else _ModelSide(source)


def _inputs(first: _Side, second: _Side) -> Arrays:
    """A model knows better than an engine which integers and sizes it takes."""
    return (second if isinstance(second, _ModelSide) and not isinstance(first, _ModelSide) else first).inputs()


def _difference(name: str, kind: str, a: Any, b: Any, tolerance: float) -> Difference:
    if isinstance(a, list) or isinstance(b, list):
        pairs = list(zip(a, b, strict=False)) if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) else None
        if pairs is None:
            return Difference(name, kind, float("inf"), float("inf"), False, "other numbers of elements")
        parts = [_difference(name, kind, x, y, tolerance) for x, y in pairs]
        worst = max(parts, key=lambda d: d.relative_l2, default=Difference(name, kind, 0.0, 0.0, True))
        return worst
    if a is None or b is None:
        same = a is b
        return Difference(name, kind, 0.0 if same else float("inf"), 0.0, same, "" if same else "only one has a value")
    left, right = np.asarray(a), np.asarray(b)
    if left.shape != right.shape:
        return Difference(name, kind, float("inf"), float("inf"), False, f"shapes {left.shape} and {right.shape}")
    error = relative_l2(right, left)
    largest = 0.0
    if left.size and left.dtype != object:
        gap = np.abs(np.asarray(right, np.float64) - np.asarray(left, np.float64))
        largest = float(np.max(gap, where=np.isfinite(gap), initial=0.0))
    note = "" if np.isfinite(error) else "NaN or infinity in other places"
    return Difference(name, kind, error, largest, error <= tolerance, note)


def _row(d: Difference, width: int) -> str:
    return f"{'ok ' if d.ok else 'BAD'} {d.kind:<6} {d.name:<{width}}  relative L2 {d.relative_l2:.2e}  max abs {d.max_abs:.2e}{_note(d)}"


def _note(d: Difference) -> str:
    return f"  ({d.note})" if d.note else ""


def _plain(d: Difference) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(d).items()}
