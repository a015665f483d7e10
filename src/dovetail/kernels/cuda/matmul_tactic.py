"""MatMul on a GPU: by tiles on tensor cores, and by a stream of the matrix where the other operand is one vector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.kernels.cuda import gemv, matmul, matmul_tma
from dovetail.kernels.cuda.configuration import Configuration
from dovetail.kernels.cuda.gemv import Strip
from dovetail.kernels.cuda.matmul import Tile
from dovetail.kernels.cuda.matmul_configs import copied, small_reason, strips, tiles
from dovetail.kernels.cuda.matmul_problem import Problem, problem, problem_reason
from dovetail.kernels.fused import in_place, sides


class Product(Tactic):
    """A MatMul with an epilogue as one kernel, over the axes that `matmul_problem` finds."""

    device = "cuda"
    kinds = ("matmul",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Products of fp16, bf16 or fp32 operands that come from outside the group, as far as this way computes them."""
        return problem_reason(group) or self.reason(group, problem(group), CudaTarget.of(target))

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """What the cost model ranks first, then variants of it."""
        return [c.config for c in self.configurations(group, problem(group), CudaTarget.of(target))]

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        return single(self.kernel(group, problem(group), config, CudaTarget.of(target)), in_place(group, sides(group)))

    def reason(self, group: Group, p: Problem, target: CudaTarget) -> str | None:
        """None if this way computes the problem, else why not."""
        return None

    @abstractmethod
    def configurations(self, group: Group, p: Problem, target: CudaTarget) -> Sequence[Configuration]:
        """The configurations, the best guess first."""

    @abstractmethod
    def kernel(self, group: Group, p: Problem, config: Config, target: CudaTarget) -> Kernel:
        """The kernel of a configuration."""


@tactic
class Gemv(Product):
    """A vector times a matrix: reads the matrix once, at the speed of memory."""

    name = "gemv"

    def reason(self, group: Group, p: Problem, target: CudaTarget) -> str | None:
        """Products of a single row or column in each batch."""
        return None if p.n_rows == 1 else "both operands have several rows"

    def configurations(self, group: Group, p: Problem, target: CudaTarget) -> Sequence[Configuration]:
        """Strips of results."""
        return strips(group, p, target)

    def kernel(self, group: Group, p: Problem, config: Config, target: CudaTarget) -> Kernel:
        """A program per strip."""
        return gemv.emit(group, p, Strip.of(config), target, self.name, config)


@tactic
class Gemm(Product):
    """C = A B in tiles, with any strides, batches, epilogue; the sum in parts where there are few tiles."""

    name = "gemm"

    def configurations(self, group: Group, p: Problem, target: CudaTarget) -> Sequence[Configuration]:
        """Tiles by pointers."""
        return tiles(group, p, target)

    def kernel(self, group: Group, p: Problem, config: Config, target: CudaTarget) -> Kernel:
        """A program per tile, or per part of one."""
        return matmul.emit(group, p, Tile.of(config), target, self.name, config)


@tactic
class TmaGemm(Product):
    """Large products on Hopper: tiles by the copy engine, programs that walk through the result."""

    name = "gemm_tma"

    def reason(self, group: Group, p: Problem, target: CudaTarget) -> str | None:
        """16-bit products whose operands are aligned matrices, once a batch is merged into the rows."""
        return matmul_tma.reason(group, p, target) or small_reason(group, p)

    def configurations(self, group: Group, p: Problem, target: CudaTarget) -> Sequence[Configuration]:
        """Large tiles."""
        return copied(group, p, target)

    def kernel(self, group: Group, p: Problem, config: Config, target: CudaTarget) -> Kernel:
        """A program per multiprocessor, or per tile."""
        return matmul_tma.emit(group, p, matmul_tma.Tile.of(config), target, self.name, config)
