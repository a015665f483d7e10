"""A module back from what an engine stores: graph text, weights and plan; and the choices made for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.builder import branches
from dovetail.builder.options import BRANCHES, BuildOptions
from dovetail.builder.ranges import RangeDecision
from dovetail.builder.select import Chooser, Decision, by_rule
from dovetail.codegen.tactic import Config, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.core.errors import PlanFormatError
from dovetail.core.log import logger
from dovetail.engine.plan import Plan
from dovetail.ir.graph import Guard, Module
from dovetail.ir.parser import parse_module
from dovetail.ir.verifier import verify

_log = logger("builder")


def restore(graph: str, plan: Plan, weights: Mapping[str, np.ndarray[Any, Any]]) -> Module:
    """The module after *recognise*.

    Raises:
        ParseError, VerifyError: damaged text.
        PlanFormatError: graph and plan do not fit each other.
    """
    module = parse_module(graph)
    outputs = [p.name for p in plan.outputs]
    if len(outputs) != len(module.main.outputs) or [p.name for p in plan.inputs] != [v.name for v in module.main.inputs]:
        raise PlanFormatError("engine: graph and plan have other inputs or outputs; build the engine again")
    module.weights = dict(weights)
    module.guards = [Guard(g.weight, g.reason, g.sha256, "") for g in plan.guards]
    module.meta["output_names"] = outputs
    module.meta["strict_fp32"] = options_of(plan).strict_fp32
    # Only what the user declared has bounds; the rest is any size.
    module.meta["symbol_bounds"] = {s.name: [s.lower, s.upper, s.upper] for s in plan.symbols if s.lower or s.upper is not None}
    module.meta["training"] = _training(plan)
    verify(module)
    return module


def _report(plan: Plan) -> dict[str, Any]:
    """The report of the build that made a plan; empty where there is none."""
    found = plan.meta.get("report")
    return found if isinstance(found, dict) else {}


def _training(plan: Plan) -> dict[str, str]:
    """Nodes that compute as in training and what they do, as a plan's report states them."""
    found = _report(plan).get("training")
    entries = [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []
    return {str(e.get("node")): str(e.get("reason")) for e in entries}


def options_of(plan: Plan) -> BuildOptions:
    """The options that a plan was built with, as its report states them."""
    requested = _report(plan).get("requested", {})
    if not isinstance(requested, dict):
        requested = {}
    formats, named = requested.get("io_formats", {}), requested.get("fp32_nodes", ())
    lanes, workspace = requested.get("branches"), requested.get("workspace")
    return BuildOptions(
        target=plan.target, precision=str(requested.get("precision", "fp32")), strict_fp32=requested.get("strict_fp32") is True,
        tune=False, verify="off", allow_fallback=True,
        io_formats={str(k): str(v) for k, v in formats.items()} if isinstance(formats, dict) else None,
        fp32_nodes=tuple(map(str, named)) if isinstance(named, list | tuple) else (),
        branches=lanes if type(lanes) is int and lanes in BRANCHES else None,
        workspace=workspace if type(workspace) is int and workspace >= 0 else None,
    )  # fmt: skip


def spread_of(plan: Plan) -> branches.Spread | None:
    """How a plan's steps got their lanes, as its report states it; None where it does not."""
    return branches.Decision.parse(_report(plan).get("branches"))


def ranges_of(plan: Plan) -> RangeDecision:
    """What a plan keeps in fp32 because of its size, as its report states it.

    Raises:
        PlanFormatError: damaged data.
    """
    return RangeDecision.parse(_report(plan).get("ranges"))


def as_recorded(plan: Plan) -> Chooser:
    """A chooser that repeats the choices in a plan's report; by rule where one is no longer possible."""
    groups = _report(plan).get("groups", [])
    recorded: dict[str, tuple[str, Config]] = {}
    for entry in groups if isinstance(groups, list) else []:
        name, tactic, config = _entry(entry)
        if name:
            recorded[name] = (tactic, config)

    def choose(groups: Sequence[tuple[Group, list[Tactic]]], target: Target, sizes: Mapping[str, int]) -> list[Decision]:
        decisions = by_rule(groups, target, sizes)
        for position, (group, able) in enumerate(groups):
            wanted, config = recorded.get(group.outputs[0].name, ("", ()))
            tactic = next((t for t in able if t.name == wanted), None)
            if tactic is not None and config in [tuple(c) for c in tactic.configs(group, target)]:
                decisions[position] = (tactic, config, ())
            elif wanted:
                _log.warning(
                    "%s: tactic %s with %s is not known to this release; taking the default", group.outputs[0].name, wanted, config
                )
        return decisions

    return choose


def _entry(entry: Any) -> tuple[str, str, Config]:
    """(group, tactic, configuration) of a report's entry; empty names where it is damaged."""
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), list):
        return "", "", ()
    pairs = [p for p in entry["config"] if isinstance(p, list) and len(p) == 2 and isinstance(p[1], int | str)]
    if len(pairs) != len(entry["config"]):
        return "", "", ()
    return str(entry.get("name", "")), str(entry.get("tactic", "")), tuple((str(k), v) for k, v in pairs)
