"""`dovetail inspect` of an engine file: reads it as data, and runs nothing from it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dovetail.api.bindings import Binding, bindings
from dovetail.api.report import flops_by_dtype, ranges_text
from dovetail.cli import output
from dovetail.cli.inspect_tensor import stored_weights
from dovetail.cli.inspect_weights import suspicions_text, weights_text
from dovetail.core.dims import Dim, from_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import UsageError
from dovetail.core.text import size_text
from dovetail.engine import cubins
from dovetail.engine.file import EngineFile, kernels_member
from dovetail.engine.order import lanes_of
from dovetail.engine.plan import (
    Buffer,
    ControlSegment,
    HostSegment,
    KernelRef,
    NativeSegment,
    Plan,
    Postfix,
    Program,
)
from dovetail.model.description import describe_arrays
from dovetail.model.statistics import suspicions

_READ_UNASKED = 1 << 30


def inspect_plan(args: argparse.Namespace) -> int:
    """Print bindings, symbols, memory, kernels, and with --steps every step."""
    file = EngineFile(args.file)
    plan = file.plan(_target(file, args.target))
    data = describe(plan) | _weights(args, file) | {
        "engine": args.file,
        "format": file.container.manifest["format"],
        "info": file.info_of(plan.target),
        "targets": list(file.targets),
        "members": {name: info.size for name, info in sorted(file.container.members.items())},
    }
    output.show(args, data, _text(args, data))
    return 0


def _weights(args: argparse.Namespace, file: EngineFile) -> dict[str, Any]:
    """Statistics of the weights that the file holds; of very many bytes only when asked, since all must be read."""
    arrays = {name: array for name, array in stored_weights(file).items() if not name.startswith("~")}
    if not args.weights and sum(a.nbytes for a in arrays.values()) > _READ_UNASKED:
        return {"weight_statistics": None, "suspicious": None}
    weights = describe_arrays(arrays)
    return {"weight_statistics": weights, "suspicious": [s.json() for s in suspicions(weights)]}


def inspect_kernel(args: argparse.Namespace) -> int:
    """Print the source of one kernel, and which steps call it."""
    file = EngineFile(args.file)
    target = _target(file, args.target)
    plan = file.plan(target)
    entries = [k.entry for k in plan.kernels]
    found = [e for e in entries if e.startswith(args.kernel)] or _by_origin(plan, args.kernel)
    if len(found) != 1:
        shown = ", ".join(found[:8] or entries[:8])
        raise UsageError(f"--kernel: got {args.kernel!r}, which names {len(found)} kernels, expected one; such as {shown}")
    ref = plan.kernels[entries.index(found[0])]
    source = "" if ref.library else extract(file.source(target), found[0], entries)
    steps = [s for s in _steps(plan.main) if s.get("kernel") == found[0]]
    nodes = list(dict.fromkeys(name for s in steps for name in s["origin"]))
    resources = _resources(file, target, ref)
    data = {"kernel": found[0], "tactics": sorted({s["tactic"] for s in steps}), "nodes": nodes, "source": source} | resources
    header = [f"{found[0]}: {', '.join(data['tactics'])}", f"computes {', '.join(nodes) or 'nothing in the main program'}"]
    if resources:
        header.append(_resource_line(ref, resources))
    mark = "#" if target.startswith("cuda") else "//"
    output.show(args, data, "\n".join([*(f"{mark} {line}" for line in header), source]))
    return 0


def _resources(file: EngineFile, target: str, ref: KernelRef) -> dict[str, Any]:
    """Of a kernel of a GPU: what it takes per thread and per block, or which library it calls; of others nothing."""
    if ref.library:
        return {"library": ref.library, "call": dict(ref.call)}
    if ref.launch is None:
        return {}
    member = f"{file.folder(target)}/{kernels_member(target)}"
    code = cubins.unpack(file.container.member(member)).get(ref.entry) if member in file.container else None
    found = None if code is None else cubins.usage(code)
    return {
        "threads": ref.launch.threads,
        "registers": None if found is None else found.registers,
        "spilled_bytes": None if found is None else found.stack,
        "shared_bytes": ref.launch.shared + (0 if found is None else found.shared),
        "code_bytes": None if code is None else len(code),
    }


def _resource_line(ref: KernelRef, found: dict[str, Any]) -> str:
    if ref.library:
        return f"a call of {ref.library}: {found['call']}"
    early = ", starts before the kernel ahead has ended" if ref.launch is not None and ref.launch.pdl else ""
    machine = "" if found["registers"] is None else (
        f", {found['registers']} registers and {found['spilled_bytes']} spilled bytes a thread, {found['code_bytes']} bytes of code"
    )  # fmt: skip
    return f"{found['threads']} threads and {found['shared_bytes']} bytes of shared memory a block{machine}{early}"


def extract(text: str, entry: str, entries: list[str]) -> str:
    """One kernel's part of a translation unit: kernels follow each other, each named by its entry."""
    lines = text.splitlines()
    starts = {}
    for number, line in enumerate(lines):
        for name in entries:
            if name not in starts and name in line:
                starts[name] = number
    if entry not in starts:
        raise UsageError(f"--kernel: {entry} is in the plan but not in the source member; build the engine again")
    later = [n for n in starts.values() if n > starts[entry]]
    return "\n".join(lines[starts[entry] : min(later, default=len(lines))]).rstrip()


def _by_origin(plan: Plan, name: str) -> list[str]:
    """Kernels of the steps that compute a node of the user's model."""
    return list(dict.fromkeys(s["kernel"] for s in _steps(plan.main) if "kernel" in s and name in s["origin"]))


def _target(file: EngineFile, wanted: str | None) -> str:
    if wanted is None or wanted in file.targets:
        return wanted or file.targets[0]
    raise UsageError(f"--target: got {wanted!r}, expected one of {', '.join(file.targets)}")


# ---------------------------------------------------------------------- description
def describe(plan: Plan) -> dict[str, Any]:
    """Everything that inspect shows, with stable keys."""
    steps = list(_steps(plan.main))
    stored = plan.meta.get("report")
    built = stored if isinstance(stored, dict) else {}
    sizes = {s.name: max(1, s.lower) for s in plan.symbols}
    return {
        "target": plan.target,
        "requested": built.get("requested", {}),
        "actual": built.get("actual", {}),
        "inputs": [_binding(b) for b in bindings(plan.inputs)],
        "outputs": [_binding(b) for b in bindings(plan.outputs)],
        "symbols": [{"name": s.name, "lower": s.lower, "upper": s.upper} for s in plan.symbols],
        "weights": len(plan.weights),
        "weights_steps": sum(1 for _ in _steps(plan.weights_program)),
        "shapes_steps": sum(1 for _ in _steps(plan.shapes_program)),
        "buffers": _buffers(plan.main),
        "kernels": len(plan.kernels),
        "tactics": dict(Counter(s["tactic"].split(".")[0] for s in steps if s["kind"] == "kernel").most_common()),
        "host_steps": dict(Counter(s["op"] for s in steps if s["kind"] == "host").most_common()),
        "flops_by_dtype": flops_by_dtype(plan, sizes),
        "flops_at": sizes,
        "kept_in_fp32": built.get("kept_in_fp32", []),
        "ranges": built.get("ranges"),
        "steps": steps,
        "certificate": plan.certificate,
    }


def _binding(binding: Binding) -> dict[str, Any]:
    shape = None if binding.shape is None else [d if isinstance(d, int) else str(d) for d in binding.shape]
    return {"name": binding.name, "dtype": binding.dtype.name, "shape": shape, "order": list(binding.order)}


def _dim(program: Postfix) -> int | str:
    value: Dim = from_program(list(program))
    return value if isinstance(value, int) else str(value)


def _buffers(program: Program) -> dict[str, dict[str, Any]]:
    """Count and bytes (where sizes are fixed) of the main program's buffers, by kind; aliases take no space."""
    kinds: dict[str, dict[str, Any]] = {}
    for buffer in program.buffers:
        entry = kinds.setdefault(buffer.kind, {"count": 0, "fixed_bytes": 0, "symbolic": 0})
        entry["count"] += 1
        if buffer.alias is None:
            bytes_ = _fixed_bytes(buffer)
            entry["fixed_bytes"] += bytes_ or 0
            entry["symbolic"] += bytes_ is None
    return kinds


def _fixed_bytes(buffer: Buffer) -> int | None:
    count = from_program(list(buffer.size))
    return count * dtype(buffer.dtype).itemsize if isinstance(count, int) else None


def _steps(program: Program, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Every step in order; those of regions carry their depth, kernels their place in the segment, their lane and what they wait for."""
    for segment in program.segments:
        if isinstance(segment, NativeSegment):
            for number, step in enumerate(segment.steps):
                yield {"kind": "kernel", "depth": depth, "kernel": step.kernel, "tactic": step.tactic,
                       "dims": [_dim(d) for d in step.dims], "origin": list(step.origin),
                       "step": number, "lane": step.lane, "waits": list(step.waits), "lanes": lanes_of(segment.steps)}  # fmt: skip
        elif isinstance(segment, HostSegment):
            yield {"kind": "host", "depth": depth, "op": segment.op, "origin": list(segment.origin)}
        elif isinstance(segment, ControlSegment):
            yield {"kind": "control", "depth": depth, "op": segment.kind, "origin": list(segment.origin)}
            for region in segment.regions:
                yield from _steps(region, depth + 1)


def _text(args: argparse.Namespace, data: dict[str, Any]) -> str:
    symbols = ", ".join(f"{s['name']} in [{s['lower']}, {'inf' if s['upper'] is None else s['upper']}]" for s in data["symbols"])
    lines = [
        f"{args.file}: engine format {data['format']}, target {data['target']}",
        *(f"  input   {v['name']}: {v['dtype']}{output.shape_text(v['shape'])}{_order(v)}" for v in data["inputs"]),
        *(f"  output  {v['name']}: {v['dtype']}{output.shape_text(v['shape'])}{_order(v)}" for v in data["outputs"]),
        *([f"  symbols {symbols}"] if symbols else []),
        f"  weights {data['weights']}; steps at load {data['weights_steps']}, at shape binding {data['shapes_steps']}",
        *_suspicious(data),
        "",
        output.table(["member", "size"], [(n, size_text(s)) for n, s in data["members"].items()]),
        "",
        output.table(
            ["buffers", "count", "bytes of fixed size", "symbolic"],
            [(k, b["count"], b["fixed_bytes"], b["symbolic"]) for k, b in sorted(data["buffers"].items())],
        ),
        "",
        output.table(["tactic", "steps"], [*data["tactics"].items(), ("total", sum(data["tactics"].values()))]),
        f"{data['kernels']} distinct kernels",
    ]
    if data["flops_by_dtype"]:
        at = f" at {', '.join(f'{k}={v}' for k, v in data['flops_at'].items())}" if data["flops_at"] else ""
        lines.append("arithmetic: " + ", ".join(f"{n / 1e9:.3g} GFLOP in {k}" for k, n in data["flops_by_dtype"].items()) + at)
    lines += ranges_text(data)
    if data["host_steps"]:
        lines.append("on the reference: " + ", ".join(f"{op} {n}" for op, n in data["host_steps"].items()))
    if args.steps:
        lines += ["", *map(_step_line, data["steps"])]
    if args.weights:
        lines += weights_text(data["weight_statistics"], everything=True)
    return "\n".join(lines)


def _suspicious(data: dict[str, Any]) -> list[str]:
    if data["suspicious"] is None:
        return ["  weights not read; --weights reads them"]
    return suspicions_text(data["suspicious"], data["weight_statistics"])


def _order(binding: dict[str, Any]) -> str:
    return f" <{','.join(map(str, binding['order']))}>" if binding["order"] else ""


def _place(step: dict[str, Any]) -> str:
    """Where a step stands among lanes: "12 | lane 2 after 7 11: "; nothing where there is one lane."""
    if step["lanes"] == 1:
        return ""
    waits = f" after {' '.join(map(str, step['waits']))}" if step["waits"] else ""
    return f"{step['step']} | lane {step['lane']}{waits}: "


def _step_line(step: dict[str, Any]) -> str:
    indent = "  " * (step["depth"] + 1)
    nodes = ", ".join(step["origin"])
    if step["kind"] == "kernel":
        dims = f" [{', '.join(map(str, step['dims']))}]" if step["dims"] else ""
        return f"{indent}{_place(step)}{step['kernel']} {step['tactic']}{dims}  # {nodes}"
    return f"{indent}{step['kind']} {step['op']}  # {nodes}"
