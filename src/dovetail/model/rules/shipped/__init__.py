"""The rules of this package, on by default in builds."""

from __future__ import annotations

from dovetail.model.rules.definition import Rule
from dovetail.model.rules.shipped import depth_to_space_tail, dilated_conv, space_to_depth

RULES: tuple[Rule, ...] = (dilated_conv.RULE, depth_to_space_tail.RULE, space_to_depth.RULE)
"""In the order in which a round tries them."""
