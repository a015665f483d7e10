"""Loops: any group whose every node has a loop-IR lowering, printed in Triton over whatever strides its operands have."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.loop_ir import LoopKernel
from dovetail.codegen.lower import lower
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.print_triton import print_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Step, Tactic, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_schedule import alternatives, plan_nest
from dovetail.codegen.triton_stages import LEAST, WORTH, split
from dovetail.core.dtypes import F64
from dovetail.ir.graph import Time
from dovetail.kernels.cuda.writer import is_aligned
from dovetail.kernels.loops import overwritable, reason_against

# Elements that a lone program must reduce before stages take over, by the configuration's "split"; else the default.
_LEAST_WORK: dict[object, int | None] = {0: None, 1: 4 * LEAST}


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
        # Only these can fail to print; fusion asks too often to print all.
        if not any(n.op == "CumSum" or any(v.tensor.dtype == F64 for v in (*n.operands, *n.outputs)) for n in group.body.nodes):
            return None
        try:
            self.emit(group, (), target)
        except NotLowerable as unprintable:
            return str(unprintable)
        return None

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The heuristic's sizes, then their neighbours; of a reduction in stages also one in a single stage."""
        wide = CudaTarget.of(target).multiprocessors
        kernel = _lowered(group)
        if len(split(kernel, wide)[0]) > 1:
            return ((), (("split", 0),))
        cut: tuple[Config, ...] = ((("split", 1),),) if len(split(kernel, wide, _LEAST_WORK[1])[0]) > 1 else ()
        if len(kernel.nests) != 1:
            return ((), *cut)
        plan = plan_nest(kernel.nests[0], kernel.scope, wide)
        return ((), *cut, *(tuple(sorted(sizes.items())) for sizes in alternatives(plan, wide)))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """Print the composed loop kernel, or its stages."""
        gpu = CudaTarget.of(target)
        operands = [*((("in", i), v) for i, v in enumerate(group.inputs)), *((("out", i), v) for i, v in enumerate(group.outputs))]
        unaligned = [where for where, v in operands if not is_aligned(v.tensor)]
        # While weights are made they are what other kernels write.
        at_load = group.outputs[0].time == Time.WEIGHT
        constant = [] if at_load else [("in", i) for i, v in enumerate(group.inputs) if v.time == Time.WEIGHT]
        whole = _lowered(group)
        stages, temps = split(whole, gpu.multiprocessors, _LEAST_WORK.get(dict(config).get("split"), WORTH))
        kernels = [
            print_kernel(stage, gpu, tactic=self.name, config=config, unaligned=unaligned, constant=constant) for stage in stages
        ]
        steps = tuple(Step(k, tuple(Operand(p.role, p.index) for p in k.params)) for k in kernels)
        return Emitted(steps, tuple(temps), overwritable(group))


def _lowered(group: Group) -> LoopKernel:
    return lower(group.body, [v.tensor for v in group.inputs], [v.tensor for v in group.outputs])
