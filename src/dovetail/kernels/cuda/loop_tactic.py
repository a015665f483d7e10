"""Loops: any group whose every node has a loop-IR lowering, printed in Triton over whatever strides its operands have."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.lower import lower
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.print_triton import print_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_schedule import alternatives, plan_nest
from dovetail.ir.graph import Time
from dovetail.kernels.cuda.writer import is_aligned
from dovetail.kernels.loops import overwritable, reason_against


@tactic
class Loop(Tactic):
    """One kernel of generated blocks."""

    name = "loop"
    device = "cuda"
    kinds = ("loop", "pool", "matmul", "conv")
    fallback = True

    def supports(self, group: Group, target: Target) -> str | None:
        """Every node of the body has a lowering, and all of it has a block form."""
        reason = reason_against(group)
        if reason is not None:
            return reason
        try:
            self.emit(group, (), target)
        except NotLowerable as unprintable:
            return str(unprintable)
        return None

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The heuristic's sizes, then its neighbours where the kernel is one nest."""
        kernel = lower(group.body, [v.tensor for v in group.inputs], [v.tensor for v in group.outputs])
        if len(kernel.nests) != 1:
            return ((),)
        wide = CudaTarget.of(target).multiprocessors
        plan = plan_nest(kernel.nests[0], kernel.scope, wide)
        return ((), *(tuple(sorted(sizes.items())) for sizes in alternatives(plan, wide)))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """Print the composed loop kernel."""
        operands = [*((("in", i), v) for i, v in enumerate(group.inputs)), *((("out", i), v) for i, v in enumerate(group.outputs))]
        kernel = print_kernel(
            lower(group.body, [v.tensor for v in group.inputs], [v.tensor for v in group.outputs]),
            CudaTarget.of(target), tactic=self.name, config=config,
            unaligned=[where for where, v in operands if not is_aligned(v.tensor)],
            constant=[("in", i) for i, v in enumerate(group.inputs) if v.time == Time.WEIGHT],
        )  # fmt: skip
        return single(kernel, overwritable(group))
