"""Rewrite rules: patterns of ONNX nodes and what takes their place, written by users or shipped here.

    terms         what a pattern is made of
    definition    `dovetail.rewrite`, the table of rules, files of rules
    scope         graphs as the matcher sees them
    types         types and contents of values
    pattern       the matcher
    match         what a replacement sees of its match
    replacement   the `op` that makes new nodes
    check         types before and after
    commit        putting replacements into a graph
    apply         rounds over a model
    log           matches and near misses
    shipped       rules of this package
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.model.rules.apply import Rewriting, apply_rules, rewrite_proto
    from dovetail.model.rules.definition import (
        Rule,
        load_file,
        registered,
        rewrite,
        select,
        shipped_rules,
        unregister,
    )
    from dovetail.model.rules.log import Applied, NearMiss, RuleLog
    from dovetail.model.rules.match import Match, Value

__all__ = [
    "Applied",
    "Match",
    "NearMiss",
    "Rewriting",
    "Rule",
    "RuleLog",
    "Value",
    "apply_rules",
    "load_file",
    "registered",
    "rewrite",
    "rewrite_proto",
    "select",
    "shipped_rules",
    "unregister",
]

_HOMES = {
    **dict.fromkeys(("Rewriting", "apply_rules", "rewrite_proto"), "apply"),
    **dict.fromkeys(("Applied", "NearMiss", "RuleLog"), "log"),
    **dict.fromkeys(("Match", "Value"), "match"),
}


def __getattr__(name: str) -> Any:
    # Reports read logs where nothing else of this is wanted.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'definition')}"), name)
