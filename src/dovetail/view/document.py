"""Everything that a report shows of an engine, as one JSON document of a versioned schema (docs/report.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.benchmark.machine import Machine
from dovetail.core.dims import run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import ShapeError
from dovetail.core.version import __version__
from dovetail.engine import memory
from dovetail.engine.plan import NativeSegment, Plan, Program
from dovetail.view.graph import FusedGraph, GraphStep, Val, dims_product, fused_graph
from dovetail.view.scopes import drawings

SCHEMA = 1
"""Version of the document: it grows when a key changes its meaning or goes."""

Data = dict[str, Any]
_COPIED = (
    "requested", "actual", "groups", "not_fused", "host_steps", "copies", "guards", "branches", "training", "kept_in_fp32", "ranges",
    "weights",
)  # fmt: skip


def document(
    plan: Plan, graph: str, report: Mapping[str, Any], *, title: str, info: Mapping[str, Any], build: Mapping[str, Any],
    profile: Mapping[str, Any] | None = None, latency: Mapping[str, Any] | None = None, machine: Machine | None = None,
    not_run: str = "", certificate: str = "", onnx_ops: Mapping[str, str] | None = None,
    rules: Sequence[str] = (),
) -> Data:
    """The document of an engine.

    Args:
        graph: the model as IR text.
        report: what `Engine.report().json()` gives.
        title: what the engine is called.
        info, build: as the engine file has them.
        profile: what `Engine.profile().json()` gives; None if it was not run, for the reason `not_run`.
        latency: medians of whole runs in milliseconds.
        machine: the roof over its speed.
        certificate: the certificate in words.
        onnx_ops: operators of the model's nodes by their names, where the model is there.
        rules: what rewrite rules did, in lines.
    """
    sizes: Mapping[str, int] = report["sizes"]
    fused = fused_graph(plan, graph, sizes)
    times = step_times(fused.steps, profile)
    steps = [_step(s, t, machine, profile) for s, t in zip(fused.steps, times, strict=True)]
    by_dtype = report["flops_by_dtype"]
    named = {name for s in fused.steps for name in s.info.origin}
    return {
        "schema": SCHEMA,
        "generator": f"dovetail {__version__}",
        "title": title,
        "engine": {
            "target": plan.target, "model": build.get("source", ""), "model_sha256": info.get("model_sha256", ""),
            "build_seconds": build.get("seconds", {}), "versions": build.get("versions", {}), "sizes": dict(sizes),
            "symbols": report["symbols"], "plugins": report["plugins"],
            "inputs": [_value(fused.values[v]) for v in fused.inputs], "outputs": [_value(fused.values[v]) for v in fused.outputs],
        },
        "totals": {
            "steps": len(steps), "kernels": report["kernels"], "host_calls": report["host_calls"],
            "flops": sum(by_dtype.values()), "flops_by_dtype": dict(by_dtype),
            "bytes": sum(s["bytes"] for s in steps), "weight_bytes": report["memory"]["weight_bytes"],
            "latency": None if latency is None else dict(latency), "not_run": not_run,
            "profile": None if profile is None else {k: v for k, v in profile.items() if k != "rows"},
            "roof_us": _sum(s["roof_us"] for s in steps), "tactics": report["tactics"],
        },
        "machine": None if machine is None else {
            "name": machine.name, "gflops": dict(machine.gflops), "gigabytes": machine.gigabytes, "source": machine.source,
            "threads": machine.threads,
        },
        "steps": steps,
        "values": [_value(v) for v in fused.values],
        "views": drawings(fused),
        "memory": memory_map(plan, fused, sizes) | {"bound_bytes": report["memory"]["bound_bytes"]},
        "certificate": {"text": certificate, **report["certificate"]},
        "onnx_ops": {name: op for name, op in (onnx_ops or {}).items() if name in named},
        "rules": list(rules),
        "constants": [_weight(w.name, w.dtype, w.shape) for w in plan.weights],
        **{key: report.get(key) for key in _COPIED},
    }  # fmt: skip


def _step(step: GraphStep, us: float | None, machine: Machine | None, profile: Mapping[str, Any] | None) -> Data:
    info = step.info
    moved = step.read + step.written + step.weights
    roof = None
    if machine is not None and info.kind == "kernel":
        compute = step.flops / (machine.peak(step.dtype if step.contraction else "f32") * 1e3)
        memory_us = moved / (machine.gigabytes * 1e3)
        roof = {"us": max(compute, memory_us), "by": "compute" if compute >= memory_us else "memory"}
    total = profile["total_us"] if profile else 0.0
    return {
        "kind": info.kind, "tactic": info.tactic, "kernel": info.kernel, "nodes": list(info.origin), "ops": list(info.ops),
        "lane": info.lane, "waits": list(step.waits), "parent": step.parent, "depth": step.depth, "group": step.group,
        "dims": list(step.dims), "dtype": step.dtype, "reads": step.reads, "writes": step.writes, "constants": step.constants,
        "flops": step.flops, "contraction": step.contraction, "bytes": moved, "read": step.read, "written": step.written,
        "weight_bytes": step.weights, "us": us, "share": us / total if us is not None and total else None,
        "roof_us": roof["us"] if roof else None, "bound": roof["by"] if roof else None,
    }  # fmt: skip


def _value(value: Val) -> Data:
    return {
        "name": value.name, "dtype": value.dtype, "shape": None if value.shape is None else list(value.shape), "bytes": value.bytes,
        "producer": value.producer,
    }  # fmt: skip


def _weight(name: str, element: str, shape: Sequence[int]) -> Data:
    return {"name": name, "dtype": element, "shape": list(shape), "bytes": dims_product(shape) * dtype(element).itemsize}


def _sum(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def step_times(steps: Sequence[GraphStep], profile: Mapping[str, Any] | None) -> list[float | None]:
    """Microseconds of each step by a profile's rows; of a step in a loop, those of all iterations together."""
    if profile is None:
        return [None] * len(steps)
    measured: dict[tuple[Any, ...], list[float]] = {}
    for row in profile["rows"]:
        measured.setdefault((tuple(row["origin"]), row["kernel"]), []).append(row["us"])
    places: dict[tuple[Any, ...], list[int]] = {}
    for number, step in enumerate(steps):
        places.setdefault((step.info.origin, step.info.kernel), []).append(number)
    found: list[float | None] = [None] * len(steps)
    for key, numbers in places.items():
        us = measured.get(key, [])
        for turn, number in enumerate(numbers):
            found[number] = sum(us[turn :: len(numbers)]) if us else None
    return found


# ------------------------------------------------------------------ memory
def memory_map(plan: Plan, fused: FusedGraph, sizes: Mapping[str, int]) -> Data:
    """Where and how long every buffer of the main program lies, as the runtime places them at these sizes.

    `first` and `last` count steps; those of nested programs are in memory of their own and not shown.
    """
    program = plan.main
    lives, root = memory.lifetimes(program), memory.roots(program)
    bytes_: dict[int, int] = {}
    unknown = 0
    for buffer in program.buffers:
        owner = root[buffer.id]
        if program.buffers[owner].kind not in ("arena", "workspace") or owner not in lives:
            continue
        try:
            bytes_[owner] = max(bytes_.get(owner, 0), run_program(buffer.size, sizes) * dtype(buffer.dtype).itemsize)
        except ShapeError:
            unknown += 1
    owners = list(bytes_)
    offsets, total = memory.place([bytes_[o] for o in owners], [lives[o] for o in owners])
    names, position = _names_of(program, root), _positions(program, fused)
    buffers = [
        {
            "name": names.get(o, ""), "kind": program.buffers[o].kind, "offset": offset, "bytes": bytes_[o],
            "first": position.get(lives[o].first, 0), "last": position.get(lives[o].last, len(fused.steps) - 1),
        }
        for o, offset in zip(owners, offsets, strict=True)
    ]  # fmt: skip
    return {"total_bytes": total, "buffers": buffers, "data_dependent": unknown}


def _names_of(program: Program, root: Sequence[int]) -> dict[int, str]:
    """Names of the values that lie in buffers, by root; several share one where they are updated in place or joined."""
    found: dict[int, list[str]] = {}
    for name, buffer in [(t.name, t.tensor.buffer) for t in program.taps] + [(p.name, p.tensor.buffer) for p in program.outputs]:
        names = found.setdefault(root[buffer], [])
        if name not in names:
            names.append(name)
    return {owner: ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") for owner, names in found.items()}


def _positions(program: Program, fused: FusedGraph) -> dict[int, int]:
    """Steps by the positions of `memory.lifetimes`."""
    outer = [n for n, s in enumerate(fused.steps) if s.parent < 0]
    found, position, at = {}, 0, 0
    for segment in program.segments:
        position += 1
        count = len(segment.steps) if isinstance(segment, NativeSegment) else 1
        for place in range(count):
            found[position + place] = outer[at + place]
        at += count
        if isinstance(segment, NativeSegment):
            position += count
        elif getattr(segment, "defines", ()) and not hasattr(segment, "regions"):
            found[position + 1] = outer[at - 1]
            position += 1
    return found
