"""The arithmetic of a build by element type, and whether the precision that was asked for got most of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dovetail.benchmark.flops import contraction_flops
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import Dim, evaluate_at
from dovetail.core.errors import BuildError, ShapeError
from dovetail.ir.graph import Graph, Time

if TYPE_CHECKING:
    from dovetail.builder.options import BuildOptions

HOST = "host"
"""Stands for the element type of what runs on the reference."""

MIN_SHARE = 0.5
"""Share of the arithmetic that a build must place in the precision it was asked for."""

_DTYPES = {"fp16": "f16", "bf16": "bf16", "tf32": "tf32", "fp32": "f32"}
_SHOWN = 5


@dataclass(frozen=True)
class Work:
    """One contraction: its node, the element type that it multiplies (or `HOST`), and its operations."""

    node: str
    dtype: str
    flops: Dim


def contractions(graph: Graph, target: Target) -> list[Work]:
    """The contractions of a fused graph, in kernels and on the host; those inside of loops count once."""
    tf32 = isinstance(target, CudaTarget) and target.tf32
    found = []
    for node in graph.nodes:
        fused = node.op == "Fusion"
        if fused:
            inner = [(n, n.operands[1].tensor.dtype.name) for n in node.regions[0].nodes if contraction_flops(n) != 0]
        else:
            inner = [(node, HOST)] if contraction_flops(node) != 0 else []
            for region in node.regions:
                found += contractions(region, target)
        if graph.time_of(node) == Time.RUN:
            found += [Work(n.where, "tf32" if tf32 and name == "f32" else name, contraction_flops(n)) for n, name in inner]
    return found


def actual_precision(works: Sequence[Work], precision: str) -> str:
    """The precision asked for if it got most of the arithmetic, else fp32."""
    wanted = _DTYPES[precision]
    return precision if _share(works, wanted, {}) >= MIN_SHARE else "fp32"


def require_precision(
    works: Sequence[Work], options: BuildOptions, bounds: Mapping[str, Sequence[int | None]], reasons: Mapping[str, str]
) -> None:
    """Check that most of the arithmetic of an fp16 or bf16 build is in that type.

    Args:
        bounds: (lower, upper, optimum) of symbols.
        reasons: why nodes are not in that type, by node.

    Raises:
        BuildError: it is not, and no fallback was allowed; names what is not, largest first.
    """
    if options.precision not in ("fp16", "bf16") or options.allow_fallback:
        return
    sizes = {name: int(found[2] or max(1, found[0] or 0)) for name, found in bounds.items()}
    wanted = _DTYPES[options.precision]
    share = _share(works, wanted, sizes)
    if share >= MIN_SHARE:
        return
    others = sorted((w for w in works if w.dtype != wanted), key=lambda w: -_number(w, sizes))
    listed = "; ".join(
        f"{w.node} ({_number(w, sizes) / 1e9:.3g} GFLOP in {w.dtype}: {reasons.get(w.node, 'it was written so')})" for w in others[:_SHOWN]
    )
    raise BuildError(
        f"precision: only {100 * share:.0f} % of the arithmetic could be placed in {options.precision}, expected at least "
        f"{100 * MIN_SHARE:.0f} %; the largest of the rest: {listed}; build with allow_fallback=True (--allow-fallback) to accept that, "
        "or with precision='fp32'"
    )


def _number(work: Work, sizes: Mapping[str, int]) -> int:
    """Operations at given sizes; symbols without one count as 1, extents that data define as 0."""
    try:
        return evaluate_at(work.flops, sizes)
    except ShapeError:
        return 0


def _share(works: Sequence[Work], dtype: str, sizes: Mapping[str, int]) -> float:
    numbers = [(w.dtype, _number(w, sizes)) for w in works]
    total = sum(n for _, n in numbers)
    return sum(n for name, n in numbers if name == dtype) / total if total else 1.0
