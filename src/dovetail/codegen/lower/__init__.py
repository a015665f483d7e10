"""Lowering: IR ops to loop-IR expressions, one module per family, composed per fusion.

    kernel = lower(body, inputs, outputs)          # -> LoopKernel; print_c.print_kernel prints it
    reason = reason_not_lowerable(node)            # None, or why the node cannot be in a loop group
"""

from __future__ import annotations

from dovetail.codegen.lower import contraction, movement, pointwise, rows, selection, window
from dovetail.codegen.lower.context import lowering
from dovetail.codegen.lower.fusion import lower, reason_not_lowerable

__all__ = [
    "contraction",
    "lower",
    "lowering",
    "movement",
    "pointwise",
    "reason_not_lowerable",
    "rows",
    "selection",
    "window",
]
