"""Say why each kernel was chosen, why a fusion was not, and what runs on the reference.

    dovetail explain resnet50.plan
    dovetail explain resnet50.plan --node /layer1/0/conv1     only what concerns these nodes of the model

Reads what the build recorded in the engine; an ONNX model is built first.
"""

from __future__ import annotations

import argparse
import difflib
from typing import Any

from dovetail.cli import options, output
from dovetail.cli.artifact import is_plan, open_engine
from dovetail.cli.progress import progress
from dovetail.core.errors import PlanFormatError, UsageError
from dovetail.engine.file import EngineFile
from dovetail.engine.plan import Plan
from dovetail.model.rules.log import text as rule_lines

_PARTS = ("groups", "not_fused", "host_steps", "training", "kept_in_fp32", "copies", "guards")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail explain`."""
    parser.add_argument("engine", help="engine file or ONNX model")
    parser.add_argument("--node", metavar="TEXT", default="", help="only entries that name a node or value with this text in it")
    options.add_build(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print the recorded reasons."""
    report = _plan(args).meta.get("report")
    if not isinstance(report, dict):
        raise PlanFormatError(f"{args.engine}: got no build report in it, expected one; build the engine again")
    data = select(report, args.node)
    told = [data[part] for part in _PARTS] + [data["rules"].get(part) for part in ("matches", "near_misses")]
    if args.node and not any(told):
        names = sorted({node for group in select(report)["groups"] for node in group["origin"]})
        near = difflib.get_close_matches(args.node, names, 3, 0.3) or names[:3]
        raise UsageError(f"--node: got {args.node!r}, which nothing in the engine mentions, expected a node such as {', '.join(near)}")
    output.show(args, {"engine": args.engine, **data}, text(data))
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    """The plan of a file, which may be for a device that is not here, or of a model that is built now."""
    if is_plan(args.engine):
        file = EngineFile(args.engine)
        return file.plan(file.targets[0])
    with progress(args) as update:
        return open_engine(args, args.engine, update).plan


def select(report: dict[str, Any], wanted: str = "") -> dict[str, Any]:
    """The report's entries that mention `wanted`."""
    return {
        "groups": [g for g in report["groups"] if _mentions(wanted, g["name"], *g["origin"])],
        "not_fused": [entry for entry in report["not_fused"] if _mentions(wanted, *map(str, entry[:-1]))],
        "host_steps": [s for s in report["host_steps"] if _mentions(wanted, s["node"])],
        "training": [s for s in report.get("training", []) if _mentions(wanted, s["node"])],
        "kept_in_fp32": [s for s in report.get("kept_in_fp32", []) if _mentions(wanted, s["node"])],
        "copies": [entry for entry in report["copies"] if _mentions(wanted, *map(str, entry))],
        "guards": [entry for entry in report["guards"] if _mentions(wanted, *map(str, entry))],
        "branches": report.get("branches", {}),
        "rules": _rules(report.get("rules"), wanted),
    }


def _rules(data: dict[str, Any] | None, wanted: str) -> dict[str, Any]:
    """What rewrite rules did to nodes or values that are wanted, and what they nearly did."""
    if not data:
        return {}
    matches = [m for m in data["matches"] if _mentions(wanted, m["rule"], *m["nodes"], *m["outputs"])]
    misses = [m for m in data["near_misses"] if _mentions(wanted, m["rule"], m["node"])]
    return data | {"matches": matches, "near_misses": misses}


def _mentions(wanted: str, *texts: str) -> bool:
    return not wanted or any(wanted in text for text in texts)


def text(data: dict[str, Any]) -> str:
    """The selected entries for people."""
    lines = [f"{len(data['groups'])} groups"]
    for group in data["groups"]:
        lines += _group(group)
    lines += _section("not fused", [_because(entry) for entry in data["not_fused"]])
    lines += _section("on the reference (no kernel)", [f"{s['node']}: {s['reason']}" for s in data["host_steps"]])
    lines += _section("as in training", [f"{s['node']}: {s['reason']}" for s in data["training"]])
    lines += _section("kept in fp32", [f"{s['node']}: {s['reason']}" for s in data["kept_in_fp32"]])
    lines += _section("copies that could not be avoided", [_because(entry) for entry in data["copies"]])
    lines += _section("weights whose values the build relied on", [f"{w}: {why} (value {shown})" for w, why, shown in data["guards"]])
    if data["rules"]:
        lines += rule_lines(data["rules"], 50)
    if data["branches"]:
        lines.append(_branches(data["branches"]))
    return "\n".join(lines)


def _branches(decided: dict[str, Any]) -> str:
    """How many kernels may run beside each other, and why; `inspect --steps` shows which."""
    lanes = decided["lanes"]
    how = "one kernel after the other" if lanes == 1 else f"up to {lanes} kernels beside each other"
    times = "; ".join(f"{what}: {us:.1f} us" for what, us in decided["measured_us"])
    return f"branches: {how}, {decided['reason']}{f' ({times})' if times else ''}"


def _group(group: dict[str, Any]) -> list[str]:
    config = ", ".join(f"{k}={v}" for k, v in group["config"])
    lines = [
        f"  {group['name']}: {group['kind']} of {' + '.join(group['ops'])}",
        f"      nodes     {', '.join(group['origin'])}",
        f"      chosen    {group['tactic']}{f' ({config})' if config else ''}: {_why(group)}",
    ]
    return lines + [f"      rejected  {reason}" for reason in group["rejected"]]


def _why(group: dict[str, Any]) -> str:
    measured = sorted(group["measured_us"], key=lambda item: item[1])
    if measured:
        return "measured " + ", ".join(f"{name} {us:.1f} us" for name, us in measured[:4])
    return "first by rule (not measured)"


def _section(title: str, entries: list[str]) -> list[str]:
    return [f"{title}: {len(entries)}", *(f"  {entry}" for entry in entries)]


def _because(entry: list[Any]) -> str:
    *subject, reason = map(str, entry)
    return f"{' + '.join(subject)}: {reason}" if subject else reason
