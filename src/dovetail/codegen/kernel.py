"""`Kernel`: one generated C function and what is needed to call it.

Every kernel has the C ABI

    void NAME(int64_t tid, int64_t nt, void *const *p, const int64_t *d)

and is called once by each of `nt` threads (`tid` = 0 … nt-1). `p` holds buffer addresses in the order
of `Kernel.params`, `d` the values of `Kernel.dims` in order. The text of a kernel is the function
alone; `translation_unit` puts `vmath.prelude` in front of any number of kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from dovetail.codegen import vmath
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim

# Workspace that threads do not share is sized for this many threads; pools are never larger.
MAX_THREADS = 64

# What a source writes where its own entry name belongs.
ENTRY = "@ENTRY@"


@dataclass(frozen=True)
class Param:
    """One buffer parameter: role "in", "out" or "workspace", and which one of that role."""

    role: str
    index: int


@dataclass(frozen=True)
class Kernel:
    """A C kernel.

    Attributes:
        source: C text of the function, without the prelude.
        entry: its name, `k_` + a hash of the text; equal kernels have equal entries.
        params: the buffers of `p`, in order.
        dims: the run-time dims of `d`, in order.
        workspace_bytes: size of the workspace parameter for all threads together (0: none).
        flops: arithmetic operations of one call; an estimate for reports and tuning.
        bytes: memory traffic of one call; likewise.
        tactic: the name of the tactic that emitted it.
        config: that tactic's configuration.
    """

    source: str
    entry: str
    params: tuple[Param, ...]
    dims: tuple[Dim, ...]
    workspace_bytes: Dim
    flops: Dim
    bytes: Dim
    tactic: str
    config: tuple[object, ...] = ()


def make_kernel(
    template: str,
    *,
    params: Iterable[Param],
    dims: Iterable[Dim],
    workspace_bytes: Dim = 0,
    flops: Dim = 0,
    bytes: Dim = 0,
    tactic: str,
    config: tuple[object, ...] = (),
) -> Kernel:
    """Name a kernel by its text: every `@ENTRY@` in `template` becomes the entry name.

    Static helper functions of the kernel should carry `@ENTRY@` as a prefix so that several kernels
    share one translation unit.
    """
    entry = entry_name(template)
    return Kernel(
        source=template.replace(ENTRY, entry),
        entry=entry,
        params=tuple(params),
        dims=tuple(dims),
        workspace_bytes=workspace_bytes,
        flops=flops,
        bytes=bytes,
        tactic=tactic,
        config=config,
    )


def entry_name(template: str) -> str:
    """The entry name for a source that writes `@ENTRY@` in the place of its name."""
    return "k_" + hashlib.sha256(template.encode()).hexdigest()[:16]


def translation_unit(kernels: Iterable[Kernel], target: Target) -> str:
    """The C text of all `kernels` (each distinct entry once, in order) behind the prelude."""
    sources = {kernel.entry: kernel.source for kernel in kernels}
    text = "\n".join(sources.values())
    return f"{vmath.prelude(target, text)}\n{text}"
