"""The rules of this package, on by default in builds."""

from __future__ import annotations

from dovetail.model.rules.definition import Rule

RULES: tuple[Rule, ...] = ()
"""In the order in which a round tries them."""
