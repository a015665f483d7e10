"""Prints a `LoopKernel` as a Triton kernel: each nest as blocks of points (see `triton_schedule` for how, `triton_nest` for the text).

Several nests become functions of one kernel, each with a range of its programs.
"""

from __future__ import annotations

from collections.abc import Collection

from dovetail.codegen import triton_scalar
from dovetail.codegen.kernel import Kernel, Launch, Param, make_triton_kernel
from dovetail.codegen.loop_ir import LoopKernel
from dovetail.codegen.schedule import cost
from dovetail.codegen.target import CudaTarget
from dovetail.codegen.triton_nest import Names, NestPrinter
from dovetail.codegen.triton_schedule import plan_nest
from dovetail.core.dims import Dim, sym, total

Config = tuple[tuple[str, int | str], ...]


def print_kernel(
    kernel: LoopKernel,
    target: CudaTarget,
    *,
    tactic: str = "loop",
    config: Config = (),
    unaligned: Collection[tuple[str, int]] = (),
    constant: Collection[tuple[str, int]] = (),
) -> Kernel:
    """The Triton text of a kernel with its launch, run-time dims and cost estimates.

    Args:
        kernel: the loops.
        target: of the machine code.
        tactic, config: what the kernel is recorded as; sizes in the configuration replace the heuristic's (`plan_nest`).
        unaligned: (role, index) of operands whose logical origin may not be a multiple of 16 bytes.
        constant: (role, index) of operands that no other kernel of the run writes.

    Raises:
        NotLowerable: something that has no block form.
    """
    options = {name: value for name, value in config if isinstance(value, int)}
    plans = [plan_nest(nest, kernel.scope, target.multiprocessors, options) for nest in kernel.nests]
    names = Names({b: f"p{i}" for i, b in enumerate(kernel.buffers)})
    early = frozenset(b for b in kernel.buffers if (b.role, b.index) in constant)
    nests = [NestPrinter(kernel.scope, plan, names, early, target.programmatic_launch) for plan in plans]
    counts: list[Dim] = [n.programs for n in nests]
    ends = [names.dim(count) for count in counts]
    pointers, sizes = list(names.buffers.values()), list(names.symbols.values())
    helpers = "".join(f"@triton.jit\ndef @ENTRY@_{name}(a, b):\n    return {text}\n\n\n" for name, text in names.helpers.items())
    if len(nests) == 1:
        body = ["pid = tl.program_id(0)", *nests[0].lines]
    else:
        body = ["pid = tl.program_id(0)"]
        start = "0"
        for number, nest in enumerate(nests):
            arguments = ", ".join([*pointers, *sizes])
            text = "\n".join("    " + line for line in nest.lines)
            helpers += f"@triton.jit\ndef @ENTRY@_nest{number}(pid, {arguments}):\n{text}\n\n\n"
            end = f"end{number}"
            body += [
                f"{end} = {start} + {ends[number]}",
                f"if (pid >= {start}) & (pid < {end}):",
                f"    @ENTRY@_nest{number}(pid - {start}, {arguments})",
            ]
            start = end
    text = "\n".join("    " + line for line in body)
    flops, traffic = cost(kernel)
    return make_triton_kernel(
        f"{helpers}@triton.jit\ndef @ENTRY@({', '.join([*pointers, *sizes])}):\n{text}\n",
        params=[Param(b.role, b.index) for b in kernel.buffers],
        dims=tuple(sym(name) for name in names.symbols),
        launch=Launch(
            grid=(total(counts), 1, 1), warps=max(p.warps for p in plans), stages=1,
            types=tuple(triton_scalar.pointer_type(b.dtype) for b in kernel.buffers),
            aligned=tuple((b.role, b.index) not in unaligned for b in kernel.buffers), pdl=target.programmatic_launch,
        ),
        flops=flops, bytes=traffic, tactic=tactic, config=config,
    )  # fmt: skip
