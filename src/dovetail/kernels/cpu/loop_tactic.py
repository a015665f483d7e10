"""Loops: any group whose every node has a loop-IR lowering, printed as C over whatever strides its operands have."""

from __future__ import annotations

from dovetail.codegen.lower import lower
from dovetail.codegen.print_c import print_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import Target
from dovetail.kernels.loops import overwritable, reason_against


@tactic
class Loop(Tactic):
    """One generated loop nest."""

    name = "loop"
    kinds = ("loop", "pool", "matmul", "conv")
    fallback = True

    def supports(self, group: Group, target: Target) -> str | None:
        """Every node of the body has a lowering."""
        return reason_against(group)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """Print the composed loop kernel."""
        inputs = [v.tensor for v in group.inputs]
        outputs = [v.tensor for v in group.outputs]
        kernel = print_kernel(lower(group.body, inputs, outputs), tactic=self.name)
        return single(kernel, overwritable(group))
