"""Runs the kernels of one group on the GPU, between guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.codegen.tactic import Config, Group, Tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.device.cuda import Driver, driver
from dovetail.reference.registry import call
from dovetail.tuner.cuda_launch import DeviceLaunch, Functions
from dovetail.tuner.launch import place, with_packs

Array = np.ndarray[Any, Any]


def device() -> Driver:
    """The first GPU."""
    return driver(0)


def target() -> CudaTarget:
    """What kernels for the first GPU are compiled for."""
    capability = device().properties.capability
    known = max(c for c in (80, 86, 89, 90) if c <= capability)
    return CudaTarget.of(Target.parse(f"cuda:sm_{known}"))


def run_on_gpu(group: Group, tactic: Tactic, config: Config, arrays: Sequence[Array], machine: Any = None) -> list[Array]:
    """The results of a group's kernels; asserts that they write nothing else.

    Args:
        machine: compiled kernels by entry; None for library calls, which need none.
    """
    packed = with_packs(group, tactic, config, target())
    given = list(arrays)
    for pack in tactic.packs(group, config, target()):
        (given[pack.position],) = call(pack.op, [given[pack.position]], dict(pack.attrs))
    inputs = [place(v.tensor, {}, a) for v, a in zip(packed.inputs, given, strict=True)]
    outputs = [place(v.tensor, {}) for v in packed.outputs]
    bound = DeviceLaunch(tactic.emit(packed, config, target()), inputs, outputs, {}, Functions(device(), machine or {}))
    try:
        bound.run()
        first = [p.array.copy() for p in outputs]
        bound.run()
    finally:
        bound.close()
    for value, placed in zip((*packed.inputs, *packed.outputs), (*inputs, *outputs), strict=True):
        assert placed.intact(), f"writes outside {value}"
    for a, b in zip(first, (p.array for p in outputs), strict=True):
        assert a.tobytes() == np.ascontiguousarray(b).tobytes(), "two runs differ"
    return first
