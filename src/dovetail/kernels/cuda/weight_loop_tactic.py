"""Weight-time pointwise groups as Triton kernels that groups of equal structure share; see `kernels.weight_loops`.

Foldings, casts, and the copies that transpose weights for the templates: they run when weights are loaded or replaced.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.print_triton import print_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import evaluate
from dovetail.kernels.cuda.writer import is_aligned
from dovetail.kernels.weight_loops import Structure, amount, loops_of, reason_against, structure_of

# The heuristic cannot know run-time sizes; weights that take time are large.
_SIZES: Config = (("block", 2048), ("warps", 4))


@tactic
class WeightLoop(Tactic):
    """Blocks over any strides, shared by all groups of the same structure."""

    name = "weight_loop"
    device = "cuda"
    kinds = ("weight_loop",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Pointwise operators that broadcast, over sizes that are known and not empty."""
        reason = reason_against(group)
        if reason is not None:
            return reason
        try:
            self.emit(group, (), target)
        except NotLowerable as unprintable:
            return str(unprintable)
        return None

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The shared source, with this group's sizes as run-time dims."""
        structure, sizes = structure_of(group)
        operands = [*((("in", i), v) for i, v in enumerate(group.inputs)), (("out", 0), group.outputs[0])]
        unaligned = frozenset(where for where, v in operands if not is_aligned(v.tensor))
        kernel = _kernel(structure, CudaTarget.of(target), unaligned)
        assert kernel.launch is not None
        flops, traffic = amount(group)
        x, y, z = (evaluate(d, sizes) for d in kernel.launch.grid)
        dims = tuple(evaluate(d, sizes) for d in kernel.dims)
        return single(replace(kernel, dims=dims, flops=flops, bytes=traffic, launch=replace(kernel.launch, grid=(x, y, z))))


@functools.lru_cache(maxsize=256)
def _kernel(structure: Structure, target: CudaTarget, unaligned: frozenset[tuple[str, int]]) -> Kernel:
    """The source of a structure; its dims are the symbols in their order."""
    return print_kernel(loops_of(structure), target, tactic=WeightLoop.name, config=_SIZES, unaligned=unaligned)
