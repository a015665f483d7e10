"""From a plan's kernels to machine code: shared objects for a CPU, a bundle of cubins for a GPU."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dovetail.codegen import triton_compiler
from dovetail.codegen.compiler import compile_c, compile_parts
from dovetail.codegen.kernel import Kernel, translation_unit
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_compiler import Compiled
from dovetail.core.env import env
from dovetail.core.errors import CompileError
from dovetail.device.cpu import HOST_SOURCE
from dovetail.engine import cubins
from dovetail.engine.plan import CudaLaunch, KernelRef, Plan

_LONG_KERNEL = 4000  # characters of source
_SHORT_KERNELS = 12  # compiled together

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MachineCode:
    """The compiled kernels of a plan.

    Attributes:
        plan: the plan, with what the compiler says of each kernel's launch.
        source: text of all kernels.
        binary: a shared object, or a bundle of cubins, in the cache.
        host_binary: the host library that runs a CPU's kernels; None for a GPU.
    """

    plan: Plan
    source: str
    binary: Path
    host_binary: Path | None


def compile_plan(
    plan: Plan, kernels: Mapping[str, Kernel], target: Target, progress: Progress = lambda done, total: None
) -> MachineCode:
    """Compile the kernels of a plan.

    Raises:
        CompileError: no compiler, or it rejects a source.
    """
    source = source_text(kernels.values(), target)
    if isinstance(target, CudaTarget):
        found = triton_compiler.require(triton_compiler.compile_kernels(kernels.values(), target, done=progress), kernels.values())
        refs = tuple(replace(ref, launch=_launch(found[ref.entry])) if ref.entry in found else ref for ref in plan.kernels)
        return MachineCode(replace(plan, kernels=refs), source, _bundle(found, target), None)
    binary, host = compile_cpu_kernels(kernels.values(), target)
    return MachineCode(plan, source, binary, host)


def source_text(kernels: Iterable[Kernel], target: Target) -> str:
    """The text of all kernels: a C translation unit, or a Python module."""
    if isinstance(target, CudaTarget):
        return triton_compiler.PRELUDE + "\n".join(k.source for k in kernels if k.launch is not None)
    return translation_unit(kernels, target)


def kernel_ref(ref: KernelRef, compiled: Compiled) -> KernelRef:
    """A kernel of a plan with what the compiler says of its launch."""
    return replace(ref, launch=_launch(compiled))


def _launch(compiled: Compiled) -> CudaLaunch:
    return CudaLaunch(
        compiled.threads, compiled.shared, compiled.scratch, compiled.scratch_align, compiled.pdl, compiled.cluster,
        compiled.descriptors,
    )  # fmt: skip


def _bundle(found: Mapping[str, Compiled], target: Target) -> Path:
    """The cubins as one file in the cache, named by its content."""
    data = cubins.pack({entry: found[entry].binary for entry in sorted(found)})
    folder = env().cache / "cubins" / target.isa
    final = folder / f"{hashlib.sha256(data).hexdigest()[:40]}.cubins"
    if final.is_file():
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", "bundle-", folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, final)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CompileError(f"compiler: cannot write the cache folder {folder}: {error}; set DOVETAIL_CACHE") from error
    return final


def compile_cpu_kernels(kernels: Iterable[Kernel], target: Target) -> tuple[Path, Path]:
    """Shared objects of the kernels and of the host library (cached by content).

    Long kernels are compiled one by one, so that they run in parallel and are found again in the cache whatever model they
    come from; short ones share the cost of reading the prelude.

    Raises:
        CompileError: no compiler, or it rejects the source.
    """
    ordered = sorted(kernels, key=lambda k: k.entry)
    short = [k for k in ordered if len(k.source) < _LONG_KERNEL]
    parts = [[k] for k in ordered if len(k.source) >= _LONG_KERNEL]
    parts += [short[i : i + _SHORT_KERNELS] for i in range(0, len(short), _SHORT_KERNELS)] or [[]]
    return compile_parts([translation_unit(part, target) for part in parts], target), compile_c(HOST_SOURCE, target)
