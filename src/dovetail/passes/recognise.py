"""The recognise pass: lifts written-out forms to named ops with kernels of their own.

Transposed convolutions become convolutions, and cheap branches selections.
"""

from __future__ import annotations

from dovetail.ir.graph import Module
from dovetail.ir.rewriter import RewriteLog, apply_rules
from dovetail.ops.infer import infer
from dovetail.passes.branches import BRANCH_RULES
from dovetail.passes.clean import drop_dead_code
from dovetail.passes.recognise_activations import ACTIVATION_RULES
from dovetail.passes.recognise_attention import ATTENTION_RULES
from dovetail.passes.recognise_rows import ROW_RULES
from dovetail.passes.simplify import simplify
from dovetail.passes.transposed_conv import TRANSPOSED_RULES

RECOGNISE_RULES = (*ACTIVATION_RULES, *ROW_RULES, *ATTENTION_RULES, *TRANSPOSED_RULES)


def recognise(module: Module) -> RewriteLog:
    """Rewrite a simplified module in place, and simplify what that leaves behind.

    Returns the rules applied, and why others were not.
    """
    log = RewriteLog([], [])
    while True:
        done = apply_rules(module, (*RECOGNISE_RULES, *BRANCH_RULES), infer)
        log.applied += done.applied
        log.declined = done.declined
        drop_dead_code(module.main)
        if not done.applied or not simplify(module).applied:
            break
    module.main.update_times()
    return log
