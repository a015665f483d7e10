"""C bodies of plugins as a tactic: they compete, are tuned and are checked like the kernels of this package."""

from __future__ import annotations

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, single, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim
from dovetail.ir.graph import Node
from dovetail.ir.types import TensorType
from dovetail.kernels.cpu.text import DimTable
from dovetail.kernels.plugin_call import PluginCall, PluginTactic
from dovetail.plugins import CKernel


class CCall(PluginCall):
    """A call as a C body sees it: pointers are entries of `p`, run-time dims of `d`."""

    prototype = "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d)"
    """The head of the kernel. `tid` of `nt` threads run it; they share the results, so that no result depends on `nt`."""

    def __init__(self, group: Group, node: Node, target: Target) -> None:
        super().__init__(group, node, target)
        self.params: list[Param] = []
        self.table = DimTable()

    def pointer(self, param: Param, type_: TensorType) -> str:
        """An entry of `p`, a `void *`."""
        if param not in self.params:
            self.params.append(param)
        return f"p[{self.params.index(param)}]"

    @property
    def workspace(self) -> str:
        """The pointer to memory of `CKernel.workspace_bytes` bytes, shared by all threads, with any contents."""
        param = Param("workspace", 0)
        if param not in self.params:
            self.params.append(param)
        return f"p[{self.params.index(param)}]"

    def dim(self, dim: Dim) -> str:
        """An int64_t expression."""
        return self.table.text(dim)


@tactic
class PluginInC(PluginTactic):
    """A plugin's C body."""

    device = "cpu"
    language = "C"

    def make_call(self, group: Group, node: Node, target: Target) -> PluginCall:
        """Pointers and dims as the ABI of CPU kernels has them."""
        return CCall(group, node, target)

    def finish(self, call: PluginCall, answer: object, config: Config) -> Emitted:
        """One kernel."""
        assert isinstance(call, CCall)
        made = CKernel(answer) if isinstance(answer, str) else answer
        if not isinstance(made, CKernel) or "@ENTRY@" not in made.source:
            raise TypeError("got something else than C text with a function named @ENTRY@; return text or dovetail.plugins.CKernel(…)")
        return single(
            make_kernel(
                made.source.strip() + "\n", params=call.params, dims=call.table.entries, workspace_bytes=made.workspace_bytes,
                flops=made.flops, bytes=call.moved, tactic=self.name, config=config,
            )
        )  # fmt: skip
