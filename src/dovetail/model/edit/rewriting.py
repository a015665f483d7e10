"""Rewrite rules as an edit."""

from __future__ import annotations

from collections.abc import Iterable

from dovetail.model.edit.draft import Draft
from dovetail.model.model import Model
from dovetail.model.rules import RuleLog, apply_rules
from dovetail.model.rules.definition import RuleSource


def rewrite(model: Model, rules: Iterable[RuleSource] | RuleSource | None = None) -> tuple[Model, RuleLog]:
    """The model as rules leave it, and what they did: each match with its place, each near miss with its reason.

    Args:
        rules: rules, names, files, or "none"; default all that are registered, and those of this package.

    Raises:
        RuleError: a rule cannot be loaded, fails, breaks a type, or never ends.
        UsageError: an unknown rule, or a result that is not valid.
    """
    draft = Draft(model, "rewrite")
    log = apply_rules(Model(draft.proto, draft.folder), rules)
    return draft.finish(), log
