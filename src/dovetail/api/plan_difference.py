"""What differs between two engines besides their graphs: target, precision, fusions, tactics, kernels, memory, times of tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dovetail.api.report import activation_memory, flops_by_dtype, weight_bytes
from dovetail.engine.plan import Plan

_FACTS = (
    "target", "precision", "tuned", "fusions", "kernel_steps", "distinct_kernels", "host_steps", "copies", "lanes",
    "activation_bytes", "weight_bytes", "gflop",
)  # fmt: skip


def plan_difference(a: Plan, b: Plan) -> dict[str, Any]:
    """Facts of both plans that differ, and fusions by the nodes that they compute.

    Returns:
        equal; facts: by name a pair, where they differ; same_fusions: how many are equal in nodes, tactic and configuration;
        tactics: fusions of the same nodes that are computed otherwise; split, merged: fusions whose nodes the other plan has in
        others; measured_us: by fusion of both the tuner's times of what was chosen.
    """
    facts_a, facts_b = _facts(a), _facts(b)
    groups_a, groups_b = _groups(a), _groups(b)
    same, tactics, times = 0, [], []
    for nodes, group in groups_a.items():
        other = groups_b.get(nodes)
        if other is None:
            continue
        old, new = _how(group), _how(other)
        if old == new:
            same += 1
        else:
            tactics.append({"nodes": list(nodes[0]), "a": old, "b": new})
        if (before := _time(group)) is not None and (after := _time(other)) is not None:
            times.append({"nodes": list(nodes[0]), "a_us": before, "b_us": after})
    only_a = [_entry(g) for nodes, g in groups_a.items() if nodes not in groups_b]
    only_b = [_entry(g) for nodes, g in groups_b.items() if nodes not in groups_a]
    facts = {k: [facts_a[k], facts_b[k]] for k in _FACTS if facts_a[k] != facts_b[k]}
    return {
        "equal": not (facts or tactics or only_a or only_b), "facts": facts, "same_fusions": same, "tactics": tactics,
        "only_a": only_a, "only_b": only_b, "measured_us": sorted(times, key=lambda t: -abs(t["b_us"] - t["a_us"])),
    }  # fmt: skip


def _report(plan: Plan) -> Mapping[str, Any]:
    stored = plan.meta.get("report")
    return stored if isinstance(stored, dict) else {}


def _facts(plan: Plan) -> dict[str, Any]:
    report, sizes = _report(plan), {s.name: max(1, s.lower) for s in plan.symbols}
    actual = report.get("actual", {})
    return {
        "target": plan.target,
        "precision": actual.get("precision", "fp32"),
        "tuned": actual.get("tuned", True),
        "fusions": len(report.get("groups", ())),
        "kernel_steps": report.get("native_steps", 0),
        "distinct_kernels": len(plan.kernels),
        "host_steps": report.get("host_calls", 0),
        "copies": len(report.get("copies", ())),
        "lanes": report.get("branches", {}).get("lanes", 1),
        "activation_bytes": activation_memory(plan.main, sizes)["arena_bytes"],
        "weight_bytes": weight_bytes(plan),
        "gflop": {name: round(count / 1e9, 3) for name, count in flops_by_dtype(plan, sizes).items()},
    }


Key = tuple[tuple[str, ...], tuple[str, ...], int]


def _groups(plan: Plan) -> dict[Key, dict[str, Any]]:
    """Fusions by the nodes and ops that they compute; several of the same are told apart by their order."""
    found: dict[Key, dict[str, Any]] = {}
    for group in _report(plan).get("groups", ()):
        nodes, ops = tuple(group["origin"]), tuple(group["ops"])
        number = 0
        while (nodes, ops, number) in found:
            number += 1
        found[nodes, ops, number] = group
    return found


def _how(group: Mapping[str, Any]) -> str:
    config = ", ".join(f"{key}={value}" for key, value in group["config"])
    return f"{group['tactic']}({config})" if config else str(group["tactic"])


def _time(group: Mapping[str, Any]) -> float | None:
    """What the tuner measured for the chosen tactic: the least, since it takes the fastest."""
    return min((float(us) for _, us in group["measured_us"]), default=None)


def _entry(group: Mapping[str, Any]) -> dict[str, Any]:
    return {"nodes": list(group["origin"]), "ops": list(group["ops"]), "tactic": group["tactic"]}
