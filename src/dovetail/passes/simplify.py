"""The simplify pass: dead code, common subexpressions, identities, movement algebra, folding into weights."""

from __future__ import annotations

from dovetail.ir.graph import Module
from dovetail.ir.rewriter import RewriteLog, apply_rules
from dovetail.ops.infer import infer
from dovetail.passes.affine import AFFINE_RULES
from dovetail.passes.clean import drop_dead_code, merge_common_subexpressions
from dovetail.passes.identities import IDENTITY_RULES
from dovetail.passes.movement_rules import MOVEMENT_RULES
from dovetail.passes.parallel import PARALLEL_RULES
from dovetail.passes.row_rules import ROW_MOVEMENT_RULES
from dovetail.passes.split_rules import SPLIT_RULES

SIMPLIFY_RULES = (*IDENTITY_RULES, *MOVEMENT_RULES, *SPLIT_RULES, *ROW_MOVEMENT_RULES, *AFFINE_RULES, *PARALLEL_RULES)


def simplify(module: Module) -> RewriteLog:
    """Rewrite a module in place into a smaller one that computes the same, up to rounding of folded weights.

    No rewrite depends on the value of an ordinary weight; where a small constant is read, a guard is recorded.
    Returns the rules applied, and why others were not.
    """
    log = RewriteLog([], [])
    while True:
        drop_dead_code(module.main)
        merge_common_subexpressions(module.main)
        done = apply_rules(module, SIMPLIFY_RULES, infer)
        log.applied += done.applied
        log.declined = done.declined
        if not done.applied:
            break
    drop_dead_code(module.main)
    module.main.update_times()
    return log
