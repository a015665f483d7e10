"""What the kernel bodies of plugins give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.core.dims import Dim


@dataclass(frozen=True)
class CKernel:
    """A C body's answer: a function of the kernel ABI, `void NAME(int64_t tid, int64_t nt, void *const *p, const int64_t *d)`.

    Attributes:
        source: its text, with `@ENTRY@` for its name, and in front of the names of its helper functions, which are static.
        flops: arithmetic operations of one call; an estimate, for sharing work among threads and for tuning.
        workspace_bytes: memory for `call.workspace`, shared by all threads.
    """

    source: str
    flops: Dim = 0
    workspace_bytes: Dim = 0


@dataclass(frozen=True)
class TritonKernel:
    """A Triton body's answer.

    Attributes:
        source: a `@triton.jit` function `def @ENTRY@(@PARAMS@):`; helper functions have names that start with `@ENTRY@_`.
        grid: programs along up to three axes, as ints and dims.
        warps: warps of one program.
        stages: depth of software pipelining.
        flops: arithmetic operations of one call; an estimate.
    """

    source: str
    grid: Sequence[Dim]
    warps: int = 4
    stages: int = 2
    flops: Dim = 0
