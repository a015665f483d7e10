"""What rules did to a model: matches with their places, near misses with their reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 12
KEPT = 50
"""Near misses of a rule that a log keeps; the others are counted."""


@dataclass(frozen=True)
class Applied:
    """A match that was replaced.

    Attributes:
        rule: its name.
        nodes: names of the nodes that it took the place of.
        operators: their types.
        outputs: the values that were computed anew, whose names stay.
        replacement: types of the new nodes, constants left out.
        relied_on: weights whose values the rule read: a refit of an engine that changes them is refused.
        unchecked: why types before and after could not be compared; "" if they were.
    """

    rule: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    outputs: tuple[str, ...]
    replacement: tuple[str, ...]
    relied_on: tuple[str, ...] = ()
    unchecked: str = ""

    def __str__(self) -> str:
        became = " → ".join(self.replacement) or "nothing"
        tail = f"; relies on {', '.join(self.relied_on)}" if self.relied_on else ""
        tail += f"; types not compared: {self.unchecked}" if self.unchecked else ""
        return f"{self.rule} at {self.nodes[-1]}: {' → '.join(self.operators)} became {became}{tail}"


@dataclass(frozen=True)
class NearMiss:
    """A place where a rule's last node is, and something else is not as it says.

    Attributes:
        node: where the pattern's root would be.
        matched: how many nodes fitted, of `size`.
        reason: which node, what was there, and what the pattern says.
    """

    rule: str
    node: str
    matched: int
    size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.node}, {self.matched} of {self.size} nodes: {self.reason}"


@dataclass
class RuleLog:
    """What rules did to a model; `str` is for people, `json()` plain data with stable keys.

    Attributes:
        matches: in the order in which they were replaced.
        near_misses: of the model as it is now, those first that fit most.
        skipped: by rule why it was not tried.
        counts: by rule, (matches, near misses), those not kept included.
    """

    matches: list[Applied] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything was replaced."""
        return bool(self.matches)

    @property
    def fired(self) -> tuple[str, ...]:
        """Names of the rules that matched."""
        return tuple(dict.fromkeys(m.rule for m in self.matches))

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rules": {name: {"matches": m, "near_misses": n} for name, (m, n) in self.counts.items()},
            "matches": [
                {
                    "rule": m.rule, "nodes": list(m.nodes), "operators": list(m.operators), "outputs": list(m.outputs),
                    "replacement": list(m.replacement), "relied_on": list(m.relied_on), "unchecked": m.unchecked,
                }
                for m in self.matches
            ],
            "near_misses": [
                {"rule": n.rule, "node": n.node, "matched": n.matched, "size": n.size, "reason": n.reason} for n in self.near_misses
            ],
            "skipped": dict(self.skipped),
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(text(self.json()))


def text(data: dict[str, Any], shown: int = _SHOWN, *, skipped: bool = True) -> list[str]:
    """The lines of a log's JSON data.

    Args:
        shown: entries of a kind; the others are counted.
        skipped: also name the rules that were not tried, and why.
    """
    matches, misses = data["matches"], data["near_misses"]
    per_rule = Counter(m["rule"] for m in matches)
    lines = [f"rewrite rules: {', '.join(f'{n} x{c}' for n, c in per_rule.items())}" if matches else "rewrite rules: no match"]
    lines += [f"  {_applied(m)}" for m in matches[:shown]]
    lines += [f"  … {len(matches) - shown} more"] if len(matches) > shown else []
    total = sum(r["near_misses"] for r in data["rules"].values())
    if misses:
        lines.append(f"near misses: {total}")
        lines += [f"  {NearMiss(**m)}" for m in misses[:shown]]
        lines += [f"  … {total - shown} more"] if total > shown else []
    if skipped and data["skipped"]:
        lines += [f"not tried: {name}: {reason}" for name, reason in data["skipped"].items()]
    return lines


def _applied(data: dict[str, Any]) -> Applied:
    """A match back from JSON data."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Applied(**fields)
