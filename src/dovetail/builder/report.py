"""What a build did, as JSON data stored in the plan: kernels, reasons, copies, host steps, memory of the choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dovetail.benchmark.flops import node_flops
from dovetail.engine.plan import HostSegment, NativeSegment, Program, postfix

if TYPE_CHECKING:
    from dovetail.builder import Built
    from dovetail.builder.options import BuildOptions

REPORT_VERSION = 1


def report_data(built: Built, options: BuildOptions) -> dict[str, Any]:
    """The report as plain data (stable keys, versioned)."""
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
    return {
        "report": {
            "version": REPORT_VERSION,
            "requested": {"device": options.device, "precision": options.precision, "strict_fp32": options.strict_fp32},
            "actual": {"target": str(built.target), "precision": "fp32"},
            "groups": groups,
            "not_fused": [list(item) for item in built.fusion_log.declined],
            "host_steps": [{"node": node, "reason": reason} for node, reason in built.fusion_log.host],
            "copies": [list(item) for item in built.placement.copies],
            "kernels": len(built.kernels),
            "native_steps": count_steps(built.plan.main)[0],
            "host_calls": count_steps(built.plan.main)[1],
            "weights": {
                "native_steps": count_steps(built.plan.weights_program)[0],
                "host_calls": count_steps(built.plan.weights_program)[1],
                "host_steps": [{"node": node, "reason": reason} for node, reason in built.weight_host],
            },
            "flops": flops_by_dtype(built),
            "guards": [[g.weight, g.rewrite, g.shown] for g in built.module.guards],
        }
    }


def flops_by_dtype(built: Built) -> dict[str, list[list[int | str]]]:
    """Operations of the contractions per element type, as postfix programs over the shape symbols."""
    found: dict[str, list[list[int | str]]] = {}
    for choice in built.choices.values():
        for node in choice.group.body.nodes:
            flops = node_flops(node)
            if flops != 0:
                found.setdefault(node.outputs[0].tensor.dtype.name, []).append(list(postfix(flops)))
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
