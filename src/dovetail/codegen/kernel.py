"""`Kernel`: one generated function and what is needed to call it.

A CPU kernel has the C ABI

    void NAME(int64_t tid, int64_t nt, void *const *p, const int64_t *d)

and is called once by each of `nt` threads (`tid` = 0 … nt-1). `p` holds buffer addresses in the order
of `Kernel.params`, `d` the values of `Kernel.dims` in order. The text of a kernel is the function
alone; `translation_unit` puts `vmath.prelude` in front of any number of kernels.

A CUDA kernel (`make_triton_kernel`) is one Triton function that takes its pointers in the order of `Kernel.params`, then its
run-time dims as int32; `Kernel.launch` says how it is compiled and launched. A library call (`make_library_kernel`) has the
name of the library and a JSON text of what is called as its source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Required, TypedDict, Unpack

from dovetail.codegen import vmath
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim

# Workspace that threads do not share is sized for this many threads; pools are never larger.
MAX_THREADS = 64

# What a source writes where its own entry name belongs.
ENTRY = "@ENTRY@"


@dataclass(frozen=True)
class Param:
    """One buffer parameter: role "in", "out", "temp", "workspace" or "counters", and which one of that role."""

    role: str
    index: int


@dataclass(frozen=True)
class TensorMap:
    """A parameter that the copy engine reads or writes by tiles (TMA): a tensor descriptor instead of a pointer.

    Attributes:
        shape, strides: of the tensor behind the address, in elements; the last stride is 1.
        block: the tile of one copy.
    """

    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    block: tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """How a Triton kernel is compiled and launched.

    Attributes:
        grid: programs along the three axes.
        warps: warps of one program.
        stages: depth of software pipelining.
        types: element type of each parameter, as Triton writes it ("fp16", "i8" for bool).
        aligned: per parameter, whether its address is a multiple of 16 bytes whatever the run-time dims are.
        maps: per parameter None, or the tensor that a descriptor describes.
        pdl: the kernel may start before the one ahead of it ends: it calls `gdc_wait()` before it first touches memory that
            other kernels write or read, weights excepted.
        counters: int32 counters of a "counters" parameter; zero before a launch, and the kernel leaves them zero.
    """

    grid: tuple[Dim, Dim, Dim]
    warps: int
    stages: int
    types: tuple[str, ...]
    aligned: tuple[bool, ...]
    maps: tuple[TensorMap | None, ...] = ()
    pdl: bool = False
    counters: int = 0


@dataclass(frozen=True)
class Kernel:
    """A generated kernel, or a call into a library.

    Attributes:
        source: text of the function, without the prelude; of a library call its JSON description.
        entry: its name, `k_` + a hash of the text; equal kernels have equal entries.
        params: the buffers of `p`, in order.
        dims: the run-time dims of `d`, in order.
        workspace_bytes: size of the workspace parameter for all threads together (0: none).
        flops: arithmetic operations of one call; an estimate for reports and tuning.
        bytes: memory traffic of one call; likewise.
        tactic: the name of the tactic that emitted it.
        config: that tactic's configuration.
        launch: of a Triton kernel.
        library: "" or the library that a step calls: "cublaslt" or "cudnn".
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
    launch: Launch | None = None
    library: str = ""


class Facts(TypedDict, total=False):
    """What the makers are told of a kernel besides its text; see `Kernel`, which has the same names."""

    params: Required[Iterable[Param]]
    dims: Required[Iterable[Dim]]
    workspace_bytes: Dim
    flops: Dim
    bytes: Dim
    tactic: Required[str]
    config: tuple[object, ...]


def make_kernel(template: str, **facts: Unpack[Facts]) -> Kernel:
    """Name a kernel by its text: every `@ENTRY@` in `template` becomes the entry name.

    Static helper functions of the kernel should carry `@ENTRY@` as a prefix so that several kernels
    share one translation unit.
    """
    return _named(template, template, **facts)


def make_triton_kernel(template: str, *, launch: Launch, **facts: Unpack[Facts]) -> Kernel:
    """Name a Triton kernel by its text and by all that its machine code depends on besides.

    The template is the text of a Python module behind `triton_prelude`: the function `@ENTRY@`, and helper functions whose
    names start with `@ENTRY@_`.
    """
    blocks = [None if m is None else m.block for m in launch.maps]
    options = (launch.warps, launch.stages, launch.types, launch.aligned, blocks, launch.pdl)
    kernel = replace(_named(template, f"{options}\n{template}", **facts), launch=launch)
    assert len(kernel.params) == len(launch.types) == len(launch.aligned), "one type and alignment per parameter"
    return kernel


def make_library_kernel(library: str, description: Mapping[str, Any], **facts: Unpack[Facts]) -> Kernel:
    """A step that calls a library; `description` is JSON data that `device.cuda` understands."""
    text = json.dumps(description, sort_keys=True)
    return replace(_named(text, f"{library}\n{text}", **facts), library=library)


def _named(
    template: str, identity: str, *, params: Iterable[Param], dims: Iterable[Dim], workspace_bytes: Dim = 0, flops: Dim = 0,
    bytes: Dim = 0, tactic: str, config: tuple[object, ...] = (),
) -> Kernel:  # fmt: skip
    """The kernel of a template, named by the text that identifies it."""
    entry = entry_name(identity)
    return Kernel(
        template.replace(ENTRY, entry), entry, tuple(params), tuple(dims), workspace_bytes, flops, bytes, tactic, config
    )  # fmt: skip


def entry_name(template: str) -> str:
    """The entry name for a source that writes `@ENTRY@` in the place of its name."""
    return "k_" + hashlib.sha256(template.encode()).hexdigest()[:16]


def translation_unit(kernels: Iterable[Kernel], target: Target) -> str:
    """The C text of all `kernels` (each distinct entry once, in order) behind the prelude."""
    sources = {kernel.entry: kernel.source for kernel in kernels}
    text = "\n".join(sources.values())
    return f"{vmath.prelude(target, text)}\n{text}"
