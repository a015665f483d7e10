"""Checks a whole engine end to end: seeded inputs through the oracle and through the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail.benchmark.flops import model_flops
from dovetail.builder.blame import first_wrong
from dovetail.builder.oracle import relative_l2, short
from dovetail.core.dims import Expr, symbols
from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import Error, VerificationError
from dovetail.ir.graph import Graph, Module, Node
from dovetail.ir.types import TensorType
from dovetail.ops.evaluate import evaluate
from dovetail.ops.samples import Bounds, free_symbols, graph_inputs, sizes_to_try
from dovetail.passes.io_formats import TYPES, apply_formats
from dovetail.passes.precision import NARROW, Kept, lower_precision
from dovetail.passes.recognise import recognise
from dovetail.passes.simplify import simplify

Arrays = dict[str, Any]

TOLERANCE = 1e-5
"""Relative L2 error that an engine may have in fp32."""

TRANSFORMED_TOLERANCE = 1e-4
"""The same where a tactic that is not a direct sum (Winograd) was chosen."""

TOLERANCES = {"fp32": TOLERANCE, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1e-2}
"""Relative L2 distance to the fp32 model that an engine of a precision may have."""

_SEEDS = (1, 2)
# The oracle's speed and what sampled verification gives it, to decide without looking at a clock.
_ORACLE_FLOPS = 15e9
_SAMPLE_S = 4.0
# An engine may be this many times as far from the oracle as rounding of its inputs moves the oracle,
_CONDITION = 8.0
# or, in another precision than fp32, as rounding to that precision does.
_NARROW_CONDITION = 2.0
_ULP = {"fp32": 2.0**-23, "tf32": 2.0**-11}


CEILING = 0.1
"""Where an output in a lower precision than fp32 is off by more than this, no rounding excuses it, unless the model chooses."""

REPORT = "build with verify='full' to check every kernel, and please report it with the model"
"""What to do about an engine that is off where nothing else explains it."""

# Where two candidates are close, rounding makes these choose another one, which may be anything.
_CHOOSING = frozenset({"TopK", "ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Compress", "Unique"})


@dataclass(frozen=True)
class Rounding:
    """How an engine rounds: the values kept in fp32, and the names of those that are rounded, of the graph after *recognise*."""

    kept: Kept = field(default_factory=Kept)
    rounded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Expected:
    """What the oracle says: inputs and outputs per seed; or the reason why there is nothing."""

    sizes: Mapping[str, int]
    inputs: tuple[Arrays, ...] = ()
    outputs: tuple[Arrays, ...] = ()
    reason: str = ""
    of: str = "the model as imported"


def expect(
    module: Module, level: str, samples: Sequence[Mapping[str, Any]] = (), known: Sequence[Mapping[str, Any]] = ()
) -> Expected:
    """Run the oracle over the caller's samples, or over seeded inputs at sizes that the model accepts.

    Args:
        level: "full" or "sample"; a sample leaves out models that would take the oracle much
            longer than ten seconds.
        known: what the references gave for the samples on the graph after *recognise*: it serves where the oracle would take too long.
    """
    graph = module.main
    if samples:
        return _on_samples(module, level, samples, known)
    impure = next((n for n in all_nodes(graph) if n.attrs.get("impure")), None)
    if impure is not None:
        return Expected({}, reason=f"{impure.where} draws random numbers")
    reason = ""
    for sizes, seconds, refusal in sizes_within(module, level):
        if refusal:
            reason = refusal
            continue
        seeds = _SEEDS if 2 * seconds <= _SAMPLE_S or level == "full" else _SEEDS[:1]
        feeds = [graph_inputs(graph, sizes, np.random.default_rng(seed)) for seed in seeds]
        try:
            with np.errstate(all="ignore"):
                outputs = tuple(evaluate(module, feed) for feed in feeds)
        except (Error, ValueError, IndexError, ArithmeticError, MemoryError) as error:
            reason = f"the oracle refused seeded inputs: {error}"
            continue
        return Expected(sizes, tuple(feeds), outputs)
    return Expected({}, reason=reason)


def _on_samples(
    module: Module, level: str, samples: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]
) -> Expected:
    sizes: dict[str, int] = {}
    for value in module.main.inputs:
        if isinstance(value.type, TensorType) and value.name in samples[0]:
            given = zip(value.type.shape, np.shape(samples[0][value.name]), strict=False)
            sizes |= {str(d): extent for d, extent in given if isinstance(d, Expr) and symbols(d) == {str(d)}}
    feeds = tuple(dict(sample) for sample in samples)
    seconds = len(samples) * model_flops(module, sizes) / _ORACLE_FLOPS
    if level == "full" or seconds <= _SAMPLE_S:
        with np.errstate(all="ignore"):
            return Expected(sizes, feeds, tuple(evaluate(module, sample) for sample in samples))
    if known:
        return Expected(sizes, feeds, tuple(dict(k) for k in known), of="the graph after recognise")
    return Expected({}, reason=f"the oracle would take about {seconds:.0f} s on the samples; verify='full' does it")


def sizes_within(module: Module, level: str) -> Iterator[tuple[dict[str, int], float, str]]:
    """(sizes, estimated seconds of the oracle, why that is too long or "") for sizes of the symbols of the inputs, best first."""
    bounds: Bounds = module.meta.get("symbol_bounds", {})
    for sizes in sizes_to_try(free_symbols(v.type for v in module.main.inputs), bounds):
        seconds = model_flops(module, sizes) / _ORACLE_FLOPS
        slow = level != "full" and seconds > _SAMPLE_S
        yield sizes, seconds, f"the oracle would take about {seconds:.0f} s; verify='full' does it" if slow else ""


def all_nodes(graph: Graph) -> Iterator[Node]:
    """All nodes of a graph and of its regions."""
    for node in graph.nodes:
        yield node
        for region in node.regions:
            yield from all_nodes(region)


def verify_engine(
    run: Callable[[Arrays], Mapping[str, Any]],
    expected: Expected,
    tolerance: float,
    module: Callable[[], Module],
    precision: str = "fp32",
    formats: Mapping[str, str] | None = None,
    rounding: Rounding = Rounding(),
) -> dict[str, Any]:
    """Compare the engine with the oracle in fp32; returns certificate data.

    Per output: relative L2 error, the same relative to how much the output differs between two
    inputs (a constant offset hides small errors from the first), and the largest difference.

    Args:
        module: the model again, as the oracle saw it; asked for only where an output is off, to see
            whether rounding its inputs and weights (and in fp16 and bf16 every result) moves it as much.
        precision, formats, rounding: of the engine.

    Raises:
        VerificationError: an output is off by more than the tolerance and than rounding explains, by more than `CEILING` in a lower
            precision than fp32, or is not finite where the model is.
    """
    if not expected.inputs:
        return {"checked": False, "reason": expected.reason}
    got = [run(dict(feed)) for feed in expected.inputs]
    rows: list[dict[str, Any]] = []
    moved: Arrays | None = None
    for name, want in expected.outputs[0].items():
        errors = [distance(g[name], w[name]) for g, w in zip(got, expected.outputs, strict=True)]
        row: dict[str, Any] = {"name": name, "relative_l2": short(max(errors)), "max_abs": short(_largest(got[0][name], want))}
        varied = _variation([w[name] for w in expected.outputs])
        if varied:
            row["relative_to_variation"] = short(distance(got[0][name], want, varied))
        allowed = max(tolerance, _epsilon(want))
        if not max(errors) <= allowed:
            broken = any(_broken(g[name], w[name]) for g, w in zip(got, expected.outputs, strict=True))
            if moved is None and not broken:
                moved = _moved(module(), expected.inputs[0], precision, formats or {}, rounding.kept)
                if precision == "fp16" and any(_broken(moved[n], w) for n, w in expected.outputs[0].items()):
                    # Rounded one by one, values may overflow that kernels hold in fp32: inputs and weights moved as much tell instead.
                    moved = _moved(module(), expected.inputs[0], "tf32", {}, rounding.kept)
            floor = 0.0 if broken or moved is None else distance(moved[name], want)
            row["rounding_moves_it_by"] = short(floor)
            condition = _CONDITION if precision == "fp32" and not formats else _NARROW_CONDITION
            hopeless = precision != "fp32" and max(CEILING, allowed) < max(errors) < np.inf and _is_smooth(module().main, want)
            if broken or hopeless or not max(errors) <= condition * floor:
                what = "values that are not finite" if broken else f"a relative error of {max(errors):.2e}"
                raise VerificationError(
                    f"output {name!r}: the engine differs from the reference, got {what}, "
                    f"expected a relative error of at most {allowed:.0e} (rounding to {precision} moves it by {floor:.1e}); "
                    + _advice(module(), expected.inputs, precision, rounding, allowed)
                )
        rows.append(row)
    return {
        "checked": True, "seeds": len(expected.inputs), "sizes": dict(expected.sizes), "against": expected.of, "tolerance": tolerance,
        "outputs": rows,
    }  # fmt: skip


def _broken(got: Any, want: Any) -> bool:
    """Whether an array has infinities or NaNs where the one that is wanted is finite."""
    if not isinstance(want, np.ndarray) or not dtype(want.dtype).is_float or np.shape(got) != want.shape:
        return False
    return not bool(np.isfinite(np.asarray(got, np.float64))[np.isfinite(want.astype(np.float64))].all())


def _is_smooth(graph: Graph, want: Any) -> bool:
    """Whether an output is a float tensor of a model that makes no choices between close candidates."""
    return isinstance(want, np.ndarray) and dtype(want.dtype).is_float and not any(n.op in _CHOOSING for n in all_nodes(graph))


def _advice(module: Module, feeds: Sequence[Arrays], precision: str, rounding: Rounding, tolerance: float) -> str:
    """What went wrong first, and what to do about it."""
    if precision not in NARROW:
        return REPORT
    simplify(module)
    recognise(module)
    for feed in feeds:
        found, kind = first_wrong(module, feed, rounding.rounded, NARROW[precision], tolerance)
        if kind == "underflow" and precision == "fp16":
            return (
                f"the first value that goes wrong is {found}; weights that are not trained often give such values; build with "
                "precision='bf16', which has the range of fp32, or keep these nodes in fp32 by name (--fp32-nodes)"
            )
        if kind == "overflow":
            return (
                f"the first value that goes wrong is {found}; build with precision='bf16', which has the range of fp32, give samples like "
                "your data, so that what is too large stays fp32 (--samples), or keep these nodes in fp32 by name (--fp32-nodes)"
            )
        if found:
            return (
                f"the first value that goes wrong is {found}: the model amplifies rounding; build with precision='fp32' or 'tf32', keep "
                "the nodes that do so in fp32 by name (--fp32-nodes), or say what error you accept (--tolerance); where kernels are "
                "suspected, " + REPORT
            )
    return REPORT


def distance(got: Any, want: Any, scale: float | None = None) -> float:
    """`relative_l2` for arrays, and the largest one for sequences; None equals None."""
    if isinstance(want, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(want):
            return float("inf")
        return max((distance(g, w, scale) for g, w in zip(got, want, strict=True)), default=0.0)
    if got is None or want is None:
        return 0.0 if got is want else float("inf")
    return relative_l2(np.asarray(got), np.asarray(want), scale)


def _largest(got: Any, want: Any) -> float:
    if not isinstance(want, np.ndarray) or want.dtype == object or np.shape(got) != want.shape or not want.size:
        return 0.0
    difference = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64))
    return float(np.max(difference, where=np.isfinite(difference), initial=0.0))


def _variation(values: list[Any]) -> float:
    """||a - b|| of an output for two inputs; 0 where that says nothing."""
    if len(values) < 2 or not all(isinstance(v, np.ndarray) and v.dtype != object for v in values):
        return 0.0
    a, b = (np.asarray(v, np.float64) for v in values[:2])
    if a.shape != b.shape:
        return 0.0
    norm = float(np.linalg.norm(a - b))
    return norm if np.isfinite(norm) else 0.0


def _epsilon(want: Any) -> float:
    """Half the spacing of the output's dtype: its own rounding is no error."""
    if not isinstance(want, np.ndarray) or want.dtype == object:
        return 0.0
    kind = dtype(want.dtype)
    if not kind.is_float or kind.bits >= 32:
        return 0.0
    return {"f16": 2.0**-11, "bf16": 2.0**-8}.get(kind.name, 2.0**-3)


def _moved(module: Module, feed: Arrays, precision: str, formats: Mapping[str, str], kept: Kept) -> Arrays:
    """What rounding alone makes of the outputs: the oracle on moved inputs and weights, or in a narrower precision."""
    with np.errstate(all="ignore"):
        if precision in _ULP and not formats:
            return evaluate(*_rounded(module, feed, _ULP[precision]))
        simplify(module)
        recognise(module)
        if precision == "tf32":
            module, feed = _rounded(module, feed, _ULP[precision])
        lower_precision(module, precision, kept)
        plain = {name: ":".join(w for w in text.split(":") if w in TYPES) for name, text in formats.items()}
        apply_formats(module, {name: text for name, text in plain.items() if text})
        return evaluate(module, as_bound(feed, {v.name: v.tensor.dtype for v in module.main.inputs if isinstance(v.type, TensorType)}))


def as_bound(feed: Mapping[str, Any], kinds: Mapping[str, DType]) -> Arrays:
    """Float inputs in the element types that an engine's bindings have."""
    return {
        name: value.astype(kinds[name].numpy)
        if name in kinds and kinds[name].is_float and isinstance(value, np.ndarray) and value.dtype != kinds[name].numpy
        else value
        for name, value in feed.items()
    }


def _rounded(module: Module, feed: Arrays, ulp: float) -> tuple[Module, Arrays]:
    """Module and inputs with every fp32 number moved by about a unit in the last place, up or down."""
    rng = np.random.default_rng(0)

    def moved(array: Any) -> Any:
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            return array
        up = rng.integers(0, 2, array.shape, np.uint8).astype(np.bool_)
        return np.where(up, array * np.float32(1 + ulp), array * np.float32(1 - ulp))

    module.weights = {name: moved(array) for name, array in module.weights.items()}
    return module, {name: moved(array) for name, array in feed.items()}

