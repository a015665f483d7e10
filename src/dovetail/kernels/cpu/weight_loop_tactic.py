"""Weight-time pointwise groups as C loops that groups of equal structure share; see `kernels.weight_loops`."""

from __future__ import annotations

import functools
from dataclasses import replace

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.print_c import print_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import evaluate
from dovetail.kernels.weight_loops import Structure, amount, loops_of, reason_against, structure_of


@tactic
class WeightLoop(Tactic):
    """One loop nest over any strides, shared by all groups of the same structure."""

    name = "weight_loop"
    kinds = ("weight_loop",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Pointwise operators that broadcast, over sizes that are known and not empty."""
        return reason_against(group)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The shared source, with this group's sizes as run-time dims."""
        structure, sizes = structure_of(group)
        kernel = _kernel(structure)
        flops, traffic = amount(group)
        dims = tuple(evaluate(d, sizes) for d in kernel.dims)
        return single(replace(kernel, dims=dims, flops=flops, bytes=traffic))


@functools.lru_cache(maxsize=256)
def _kernel(structure: Structure) -> Kernel:
    """The source of a structure; its dims are the symbols in their order."""
    return print_kernel(loops_of(structure), tactic=WeightLoop.name)
