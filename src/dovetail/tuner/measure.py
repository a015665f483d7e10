"""Times the candidates of a group: interleaved, on real threads, over buffers that are not all in cache."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.codegen.tactic import Config, Emitted, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import evaluate
from dovetail.device.cpu import Pool
from dovetail.ir.types import TensorType
from dovetail.tuner.launch import Launch, Placed, place, with_packs

Array = np.ndarray[Any, Any]

_SETS = 3
_SETS_BYTES = 192 << 20
_ROUNDS = (3, 11)
_SECONDS_PER_GROUP = 0.08
# A candidate this many times slower than the best after its first runs is not worth more of them.
_HOPELESS = 2.0


@dataclass(frozen=True)
class Candidate:
    """One way to compute a group: a tactic with a configuration."""

    tactic: Tactic
    config: Config

    @property
    def name(self) -> str:
        """Such as "direct rows=8 vectors=3"."""
        return " ".join([self.tactic.name, *(f"{k}={v}" for k, v in self.config)])

    def emit(self, group: Group, target: Target) -> tuple[Group, Emitted]:
        """The group with packed operands, and its kernels."""
        packed = with_packs(group, self.tactic, self.config, target)
        return packed, self.tactic.emit(packed, self.config, target)


def measure(
    emitted: Sequence[tuple[Group, Emitted]],
    sizes: Mapping[str, int],
    find: Callable[[str], int],
    workers: Pool,
    threads: int,
) -> list[float]:
    """Microseconds of each candidate's kernels: the least of all rounds, as other load only ever adds.

    Every round runs each candidate once, on the next of several sets of buffers, so that weights
    and inputs come from outside the near caches as they do in a network.
    """
    launches = [_launches(group, code, sizes, find) for group, code in emitted]
    tick_us = workers.host.nanoseconds_per_tick() / 1e3
    start = time.perf_counter()
    first = [min(sets[i % len(sets)].ticks(workers, threads) for i in (0, 1)) for sets in launches]
    spent = time.perf_counter() - start
    best = min(first)
    alive = [i for i, ticks in enumerate(first) if ticks <= _HOPELESS * best]
    share = spent / 2 * len(alive) / len(first)
    rounds = max(_ROUNDS[0], min(_ROUNDS[1], int(_SECONDS_PER_GROUP / max(share, 1e-6))))
    samples: dict[int, list[int]] = {i: [] for i in alive}
    for turn in range(rounds):
        for index in alive:
            sets = launches[index]
            samples[index].append(sets[turn % len(sets)].ticks(workers, threads))
    return [float(min(samples[i])) * tick_us if i in samples else first[i] * tick_us for i in range(len(first))]


def _launches(group: Group, emitted: Emitted, sizes: Mapping[str, int], find: Callable[[str], int]) -> list[Launch]:
    launches: list[Launch] = []
    total = 0
    while len(launches) < _SETS:
        inputs = [_operand(v.tensor, sizes) for v in group.inputs]
        outputs = [place(v.tensor, sizes) for v in group.outputs]
        launches.append(Launch(emitted, inputs, outputs, sizes, find))
        total += sum(p.nbytes for p in (*inputs, *outputs))
        if total * (len(launches) + 1) / len(launches) > _SETS_BYTES:
            break
    return launches


def _operand(type_: TensorType, sizes: Mapping[str, int]) -> Placed:
    """An operand with ordinary numbers: zeros, NaNs and denormals would be timed, not the kernel."""
    shape = tuple(evaluate(d, sizes) for d in type_.shape)
    if not type_.dtype.is_float:
        return place(type_, sizes, np.zeros(shape, type_.dtype.numpy))
    return place(type_, sizes, np.resize(_numbers(), math.prod(shape)).reshape(shape).astype(type_.dtype.numpy, copy=False))


@functools.cache
def _numbers() -> Array:
    return np.random.default_rng(0).standard_normal(65_537, np.float32)
