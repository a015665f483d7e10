"""Limits what memory kernels take beside their operands: workspaces, and what the kernels of one group pass on among themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovetail.builder.select import Chooser, Decision
from dovetail.codegen.tactic import Config, Group, Tactic, only
from dovetail.codegen.target import Target
from dovetail.core.dims import evaluate_at
from dovetail.core.log import logger
from dovetail.core.text import size_text
from dovetail.tuner.measure import Candidate

_log = logger("tune")


def within(choose: Chooser, limit: int | None) -> Chooser:
    """The same, with no way that takes more than `limit` bytes beside its operands where there is one that takes less.

    What is chosen freely and fits stays; only the other groups are decided again, among the ways that fit, or else by the way that
    takes least.
    """
    if limit is None:
        return choose

    def decide(groups: Sequence[tuple[Group, list[Tactic]]], target: Target, sizes: Mapping[str, int]) -> Sequence[Decision]:
        decisions = choose(groups, target, sizes)
        left: list[tuple[Group, list[Tactic]]] = []
        exceeded = False
        for (group, able), (tactic, config, _) in zip(groups, decisions, strict=True):
            if workspace_of(group, tactic, config, target, sizes) <= limit:
                left.append((group, only(able, [(tactic, config)])))
            else:
                exceeded = True
                left.append((group, _fitting(group, able, target, sizes, limit)))
        return choose(left, target, sizes) if exceeded else decisions

    return decide


def workspace_of(group: Group, tactic: Tactic, config: Config, target: Target, sizes: Mapping[str, int]) -> int:
    """Bytes that the kernels of a way take beside their operands, at these sizes."""
    _, emitted = Candidate(tactic, config).emit(group, target)
    parts = [*emitted.temps, *(step.kernel.workspace_bytes for step in emitted.steps)]
    return sum(evaluate_at(part, sizes) for part in parts)


def _fitting(group: Group, able: Sequence[Tactic], target: Target, sizes: Mapping[str, int], limit: int) -> list[Tactic]:
    ways = [(tactic, config) for tactic in able for config in tactic.configs(group, target)]
    taken = [workspace_of(group, tactic, config, target, sizes) for tactic, config in ways]
    kept = [way for way, size in zip(ways, taken, strict=True) if size <= limit]
    if not kept:
        least = min(taken)
        _log.warning(
            "%s needs %s of workspace, more than the %s that are allowed", group.node.where, size_text(least), size_text(limit)
        )
        kept = [way for way, size in zip(ways, taken, strict=True) if size == least]
    return only(able, kept)
