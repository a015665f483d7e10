"""Interleaved measurement: every candidate runs in every round, in rotating order.

Clock changes, neighbours and thermal limits drift over seconds. Within a round all candidates see the same machine,
so the ratio of their medians is taken per round, and its spread over the rounds gives the confidence interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dovetail.core.errors import UsageError

Progress = Callable[[str, int, int], None]

_CALIBRATION_RUNS = 3
_MIN_RUNS_PER_ROUND = 3
_MAX_RUNS_PER_ROUND = 1000


@dataclass(frozen=True)
class Latency:
    """Latencies of one candidate over all rounds, in milliseconds."""

    name: str
    runs: int
    median_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float
    p90_ms: float
    p99_ms: float
    first_ms: float

    @property
    def throughput_qps(self) -> float:
        """Runs per second at the median."""
        return 1e3 / self.median_ms if self.median_ms else float("inf")


@dataclass(frozen=True)
class Ratio:
    """How many times slower `name` is than `base`: median over rounds with a 95 % confidence interval."""

    name: str
    base: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """The outcome of `measure`; `samples_ms` has one array per candidate, [rounds, runs per round]."""

    latencies: tuple[Latency, ...]
    ratios: tuple[Ratio, ...]
    rounds: int
    samples_ms: Mapping[str, np.ndarray[Any, Any]]

    def json(self) -> dict[str, Any]:
        """Stable keys, without the samples."""
        return {
            "rounds": self.rounds,
            "latencies": [
                {**asdict(x), "throughput_qps": x.throughput_qps} for x in self.latencies
            ],
            "ratios": [asdict(r) for r in self.ratios],
        }


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    round_s: float = 0.25,
    pause_s: float = 0.01,
    base: str | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Time the candidates in interleaved rounds.

    Args:
        candidates: functions by name; each call is one inference.
        rounds: number of rounds; each runs all candidates, in rotating order.
        round_s: time that one candidate gets per round; at least three runs are made.
        pause_s: rest before each candidate, so that spinning threads of the last one go to sleep. One untimed run
            follows it.
        base: the candidate that ratios refer to; default: the first.
        progress: called as progress("bench", done, total).

    Raises:
        UsageError: no candidates, or fewer than two rounds.
    """
    if not candidates or rounds < 2:
        raise UsageError(f"bench: got {len(candidates)} candidates and {rounds} rounds, expected at least 1 and 2")
    names = list(candidates)
    base = base or names[0]
    first: dict[str, float] = {}
    runs: dict[str, int] = {}
    for name, call in candidates.items():
        first[name] = _timed(call)
        typical = min(_timed(call) for _ in range(_CALIBRATION_RUNS))
        wanted = int(round_s * 1e3 / max(typical, 1e-3))
        runs[name] = min(_MAX_RUNS_PER_ROUND, max(_MIN_RUNS_PER_ROUND, wanted))
    samples = {name: np.empty((rounds, runs[name])) for name in names}
    for round_ in range(rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(pause_s)
            call = candidates[name]
            call()
            row = samples[name][round_]
            for i in range(len(row)):
                row[i] = _timed(call)
        if progress is not None:
            progress("bench", round_ + 1, rounds)
    return Measurement(
        tuple(_latency(name, samples[name], first[name]) for name in names),
        tuple(ratio(name, base, samples) for name in names if name != base),
        rounds,
        samples,
    )


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def _latency(name: str, samples: np.ndarray[Any, Any], first_ms: float) -> Latency:
    flat = samples.reshape(-1)
    p50, p90, p99 = (float(v) for v in np.percentile(flat, [50, 90, 99]))
    return Latency(
        name, flat.size, p50, float(flat.mean()), float(flat.min()), float(flat.max()), p90, p99, first_ms
    )


def ratio(
    name: str, base: str, samples: Mapping[str, np.ndarray[Any, Any]], resamples: int = 2000
) -> Ratio:
    """The ratio of medians per round, its median over rounds, and a bootstrap interval over rounds."""
    per_round = np.median(samples[name], axis=1) / np.median(samples[base], axis=1)
    low, high = confidence(per_round, resamples)
    return Ratio(name, base, float(np.median(per_round)), low, high)


def confidence(values: np.ndarray[Any, Any], resamples: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median; deterministic for given values."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)
