"""MatMul on a GPU: by tiles on tensor cores, and by a stream of the matrix where the other operand is one vector."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.kernels.cuda import gemv, matmul, matmul_tma
from dovetail.kernels.cuda.gemv import Strip
from dovetail.kernels.cuda.matmul import Tile
from dovetail.kernels.cuda.matmul_configs import copied, small_reason, strips, tiles
from dovetail.kernels.cuda.matmul_problem import problem, problem_reason
from dovetail.kernels.fused import in_place, sides


@tactic
class Gemv(Tactic):
    """A vector times a matrix: reads the matrix once, at the speed of memory."""

    name = "gemv"
    device = "cuda"
    kinds = ("matmul",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Products of a single row or column in each batch."""
        reason = problem_reason(group)
        if reason is None and problem(group).n_rows != 1:
            return "both operands have several rows"
        return reason

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Strips of results, by the cost model."""
        return [strip.config for strip in strips(group, problem(group), CudaTarget.of(target))]

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        kernel = gemv.emit(group, problem(group), Strip.of(config), CudaTarget.of(target), self.name, config)
        return single(kernel, in_place(group, sides(group)))


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


@tactic
class TmaGemm(Tactic):
    """Large products on Hopper: tiles by the copy engine, programs that walk through the result."""

    name = "gemm_tma"
    device = "cuda"
    kinds = ("matmul",)

    def supports(self, group: Group, target: Target) -> str | None:
        """16-bit products whose operands are aligned matrices, once a batch is merged into the rows."""
        reason = problem_reason(group)
        if reason is not None:
            return reason
        p = problem(group)
        return matmul_tma.reason(group, p, CudaTarget.of(target)) or small_reason(group, p)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Large tiles, by the cost model."""
        return [tile.config for tile in copied(group, problem(group), CudaTarget.of(target))]

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        kernel = matmul_tma.emit(group, problem(group), matmul_tma.Tile.of(config), CudaTarget.of(target), self.name, config)
        return single(kernel, in_place(group, sides(group)))
