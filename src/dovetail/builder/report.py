"""What a build did, as JSON data stored in the plan: kernels, reasons, copies, host steps, memory of the choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dovetail.builder.flops import Work, actual_precision
from dovetail.codegen.target import CudaTarget
from dovetail.engine.plan import HostSegment, NativeSegment, Program, postfix

if TYPE_CHECKING:
    from dovetail.builder import Built
    from dovetail.builder.options import BuildOptions

REPORT_VERSION = 1


def report_data(built: Built, options: BuildOptions, works: Sequence[Work]) -> dict[str, Any]:
    """The report as plain data (stable keys, versioned); `works` is the arithmetic of the contractions."""
    groups = []
    for node, choice in built.choices.items():
        groups.append(
            {
                "name": node.outputs[0].name,
                "kind": choice.group.kind,
                "tactic": choice.tactic.name,
                "config": [list(item) for item in choice.config],
                "ops": [n.op for n in choice.group.body.nodes],
                "origin": list(node.origin),
                "rejected": list(choice.rejected),
                "measured_us": [[name, us] for name, us in choice.measured_us],
            }
        )
    measured = any(choice.measured_us for choice in built.choices.values())
    tuned = measured or not isinstance(built.target, CudaTarget) or not built.choices
    return {
        "report": {
            "version": REPORT_VERSION,
            "requested": {
                "device": options.device if options.target is None else built.target.device,
                "precision": options.precision, "strict_fp32": options.strict_fp32,
                "fp32_nodes": list(options.fp32_nodes), "io_formats": dict(options.io_formats or {}), "branches": options.branches,
                "workspace": options.workspace,
            },
            "actual": {"target": str(built.target), "precision": actual_precision(works, options.precision), "tuned": tuned},
            "kept_in_fp32": [{"node": node, "reason": reason} for node, reason in built.precision.kept],
            "ranges": built.ranges.data(),
            "branches": built.branches.json(),
            "groups": groups,
            "not_fused": [list(item) for item in built.fusion_log.declined],
            "host_steps": [{"node": node, "reason": reason} for node, reason in built.fusion_log.host],
            "training": [{"node": node, "reason": reason} for node, reason in built.module.meta.get("training", {}).items()],
            "copies": [list(item) for item in built.placement.copies],
            "kernels": len(built.kernels),
            "native_steps": count_steps(built.plan.main)[0],
            "host_calls": count_steps(built.plan.main)[1],
            "weights": {
                "native_steps": count_steps(built.plan.weights_program)[0],
                "host_calls": count_steps(built.plan.weights_program)[1],
                "host_steps": [{"node": node, "reason": reason} for node, reason in built.weight_host],
            },
            "flops": _programs(works),
            "guards": [[g.weight, g.rewrite, g.shown] for g in built.module.guards],
        }
    }


def _programs(works: Sequence[Work]) -> dict[str, list[list[int | str]]]:
    """Operations of the contractions per element type, as postfix programs over the shape symbols."""
    found: dict[str, list[list[int | str]]] = {}
    for work in works:
        found.setdefault(work.dtype, []).append(list(postfix(work.flops)))
    return found


def count_steps(program: Program) -> tuple[int, int]:
    """(kernel steps, host calls) of a program, its regions included."""
    native = host = 0
    for segment in program.segments:
        if isinstance(segment, NativeSegment):
            native += len(segment.steps)
        elif isinstance(segment, HostSegment):
            host += segment.op != "BindSymbols"
        else:
            for region in segment.regions:
                inner = count_steps(region)
                native, host = native + inner[0], host + inner[1]
    return native, host
