"""MatMul by tiles on tensor cores, with operands by pointers."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.kernels.cuda import matmul
from dovetail.kernels.cuda.matmul import Tile
from dovetail.kernels.cuda.matmul_configs import tiles
from dovetail.kernels.cuda.matmul_problem import problem, problem_reason
from dovetail.kernels.fused import in_place, sides


@tactic
class Gemm(Tactic):
    """C = A B in tiles, with any strides, batches, epilogue; the sum in parts where there are few tiles."""

    name = "gemm"
    device = "cuda"
    kinds = ("matmul",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Products of fp16, bf16 or fp32 operands that come from outside the group."""
        return problem_reason(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """What the cost model ranks first, then variants of it."""
        return [tile.config for tile in tiles(group, problem(group), CudaTarget.of(target))]

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        kernel = matmul.emit(group, problem(group), Tile.of(config), CudaTarget.of(target), self.name, config)
        return single(kernel, in_place(group, sides(group)))
