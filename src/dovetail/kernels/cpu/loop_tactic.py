"""Loops: any group whose every node has a loop-IR lowering, printed as C over whatever strides its operands have."""

from __future__ import annotations

from dovetail.codegen.lower import lower, reason_not_lowerable
from dovetail.codegen.print_c import print_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import Target
from dovetail.ops.registry import POINTWISE, find


@tactic
class Loop(Tactic):
    """One generated loop nest."""

    name = "loop"
    kinds = ("loop", "pool", "matmul", "conv")
    fallback = True

    def supports(self, group: Group, target: Target) -> str | None:
        """Every node of the body has a lowering."""
        for node in group.body.nodes:
            reason = reason_not_lowerable(node)
            if reason is not None:
                return reason
        return None

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """Print the composed loop kernel."""
        inputs = [v.tensor for v in group.inputs]
        outputs = [v.tensor for v in group.outputs]
        kernel = print_kernel(lower(group.body, inputs, outputs), tactic=self.name)
        return single(kernel, _in_place(group))


def _in_place(group: Group) -> tuple[tuple[int, int], ...]:
    """Inputs that a pointwise group may overwrite: each element is read only where it is written."""
    pointwise = all((spec := find(n.op)) is not None and spec.kind == POINTWISE for n in group.body.nodes)
    if not pointwise:
        return ()
    same = [i for i, v in enumerate(group.inputs) if v.type == group.outputs[0].type]
    return tuple((0, i) for i in same[:1])
