"""Triton bodies of plugins as a tactic: they compete, are tuned and are checked like the kernels of this package."""

from __future__ import annotations

from dovetail.codegen import triton_scalar
from dovetail.codegen.kernel import Launch, Param, make_triton_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, single, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, sym, symbols
from dovetail.ir.graph import Node
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.writer import is_aligned
from dovetail.kernels.plugin_call import PluginCall, PluginTactic
from dovetail.plugins import TritonKernel


class TritonCall(PluginCall):
    """A call as a Triton body sees it: pointers are parameters p0, p1 …, run-time dims parameters d0, d1 … in int32."""

    def __init__(self, group: Group, node: Node, target: Target) -> None:
        super().__init__(group, node, target)
        self.params: list[Param] = []
        self.types: list[TensorType] = []
        self.names: dict[str, str] = {}

    def pointer(self, param: Param, type_: TensorType) -> str:
        """A parameter that points to elements of the operand's type (bool as int8)."""
        if param not in self.params:
            self.params.append(param)
            self.types.append(type_)
        return f"p{self.params.index(param)}"

    def dim(self, dim: Dim) -> str:
        """An int32 expression."""
        for name in sorted(symbols(dim)):
            self.names.setdefault(name, f"d{len(self.names)}")
        return triton_scalar.dim_text(dim, self.names)


@tactic
class PluginInTriton(PluginTactic):
    """A plugin's Triton body."""

    device = "cuda"
    language = "Triton"

    def make_call(self, group: Group, node: Node, target: Target) -> PluginCall:
        """Pointers and dims as CUDA kernels have them."""
        return TritonCall(group, node, target)

    def finish(self, call: PluginCall, answer: object, config: Config) -> Emitted:
        """One kernel; it starts when the one ahead of it has ended."""
        assert isinstance(call, TritonCall)
        if not isinstance(answer, TritonKernel) or "@ENTRY@(@PARAMS@)" not in answer.source:
            raise TypeError("got something else than dovetail.plugins.TritonKernel(source, grid) with a function @ENTRY@(@PARAMS@)")
        grid = tuple(answer.grid)
        if not 1 <= len(grid) <= 3:
            raise TypeError(f"got a grid of {len(grid)} axes, expected 1 to 3")
        whole = (*grid, 1, 1)[:3]
        parameters = ", ".join([*(f"p{i}" for i in range(len(call.params))), *call.names.values()])
        launch = Launch(
            (whole[0], whole[1], whole[2]), answer.warps, answer.stages, tuple(triton_scalar.pointer_type(t.dtype) for t in call.types),
            tuple(is_aligned(t) for t in call.types),
        )  # fmt: skip
        return single(
            make_triton_kernel(
                answer.source.strip().replace("@PARAMS@", parameters) + "\n", launch=launch, params=call.params,
                dims=[sym(name) for name in call.names], flops=answer.flops, bytes=call.moved, tactic=self.name, config=config,
            )
        )  # fmt: skip
