"""The times of runs: what trtexec prints of them, and its JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.tensorrt.enums import Severity
from dovetail.tensorrt.trtexec.console import number

Lines = Iterator[tuple[Severity, str]]

_INFO, _WARNING, _VERBOSE = Severity.INFO, Severity.WARNING, Severity.VERBOSE
_SHOWN = 200
_ENQUEUE_BOUND, _UNSTABLE = 0.8, 2.5

EXPLANATIONS = (
    "",
    "=== Explanations of the performance metrics ===",
    "Total Host Walltime: the time on the host from the first counted query to the end of the last one.",
    "GPU Compute Time: how long the kernels of a query take on the device.",
    "Total GPU Compute Time: the sum over all queries. Where it is far below Total Host Walltime, the device waits for the host or copies.",
    "Throughput: queries per second of Total Host Walltime. Where it is far below the reciprocal of GPU Compute Time, the device waits.",
    "Enqueue Time: how long the host takes to enqueue a query. Where it is above GPU Compute Time, the device waits.",
    "H2D Latency: how long copying the inputs of a query to the device takes.",
    "D2H Latency: how long copying the outputs of a query from the device takes.",
    "Latency: H2D Latency, GPU Compute Time and D2H Latency together: how long one query takes.",
)


@dataclass(frozen=True)
class Trace:
    """When the parts of a run began and ended, in milliseconds since the start."""

    start_enqueue: float
    end_enqueue: float
    start_h2d: float
    end_h2d: float
    start_compute: float
    end_compute: float
    start_d2h: float
    end_d2h: float

    @property
    def enqueue(self) -> float:
        """How long the host took to enqueue the run."""
        return self.end_enqueue - self.start_enqueue

    @property
    def h2d(self) -> float:
        """How long the inputs took to the device."""
        return self.end_h2d - self.start_h2d

    @property
    def compute(self) -> float:
        """How long the kernels took."""
        return self.end_compute - self.start_compute

    @property
    def d2h(self) -> float:
        """How long the outputs took from the device."""
        return self.end_d2h - self.start_d2h

    @property
    def latency(self) -> float:
        """How long all of it took on the device."""
        return self.h2d + self.compute + self.d2h

    def json(self) -> dict[str, float]:
        """As `--exportTimes` has it."""
        return {
            "startEnqMs": self.start_enqueue, "endEnqMs": self.end_enqueue, "startH2dMs": self.start_h2d, "endH2dMs": self.end_h2d,
            "startComputeMs": self.start_compute, "endComputeMs": self.end_compute, "startD2hMs": self.start_d2h, "endD2hMs": self.end_d2h,
            "h2dMs": self.h2d, "computeMs": self.compute, "d2hMs": self.d2h, "latencyMs": self.latency,
        }  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What the times of one kind come to; percentiles in the order in which they were asked for."""

    least: float
    most: float
    mean: float
    median: float
    percentiles: tuple[float, ...]
    variation: float
    """Coefficient of variation, in percent."""


def percentile(share: float, ordered: Sequence[float]) -> float:
    """The time that so many percent of the runs do not exceed, as trtexec picks it from ordered times; infinite of none."""
    if not ordered:
        return math.inf
    # In float32, as there: 90 % of ten runs leave one out, which float64 would not.
    excluded = int((np.float32(1) - np.float32(share) / np.float32(100)) * np.float32(len(ordered)))
    return ordered[max(len(ordered) - 1 - excluded, 0)]


def summarize(times: Sequence[float], percentiles: Sequence[float]) -> Summary:
    """What times come to; there is at least one."""
    ordered = sorted(times)
    count, middle = len(ordered), len(ordered) // 2
    mean = math.fsum(ordered) / count
    median = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    deviation = math.sqrt(math.fsum((t - mean) ** 2 for t in ordered) / count)
    return Summary(
        ordered[0], ordered[-1], mean, median, tuple(percentile(p, ordered) for p in percentiles), 100 * deviation / mean if mean else 0.0
    )


def counted(traces: Sequence[Trace], warm_up_ms: float) -> tuple[int, list[Trace]]:
    """How many runs were warm-up, and the others; the last run counts in any case."""
    first = next((i for i, t in enumerate(traces) if t.start_compute >= warm_up_ms), len(traces) - 1)
    return first, list(traces[first:])


def performance(
    traces: Sequence[Trace], *, warm_up_ms: float, average: int, percentiles: Sequence[float], streams: int = 1, notes: Sequence[str] = ()
) -> Lines:
    """The report on runs, in the order in which they began.

    Args:
        notes: what the reader should know of the times.
    """
    skipped, rest = counted(traces, warm_up_ms)
    wall_ms = max(t.end_d2h for t in rest) - rest[0].start_h2d
    yield _INFO, f"Warmup completed {skipped} queries over {number(warm_up_ms)} ms"
    yield _INFO, f"Timing trace has {len(rest)} queries over {number(wall_ms / 1000)} s"
    for note in notes:
        yield _INFO, note
    yield from _details(rest, average)
    kinds: dict[str, Callable[[Trace], float]] = {
        "Latency": lambda t: t.latency, "Enqueue Time": lambda t: t.enqueue, "H2D Latency": lambda t: t.h2d,
        "GPU Compute Time": lambda t: t.compute, "D2H Latency": lambda t: t.d2h,
    }  # fmt: skip
    found = {name: summarize([get(t) for t in rest], percentiles) for name, get in kinds.items()}
    yield _INFO, ""
    yield _INFO, "=== Performance summary ==="
    yield _INFO, f"Throughput: {number(len(rest) / wall_ms * 1000 if wall_ms else math.inf)} qps"
    for name, summary in found.items():
        yield _INFO, f"{name}: {_perf(summary, percentiles)}"
    yield _INFO, f"Total Host Walltime: {number(wall_ms / 1000)} s"
    yield _INFO, f"Total GPU Compute Time: {number(sum(t.compute for t in rest) / 1000)} s"
    yield from _warnings(found, streams)
    yield _INFO, "Explanations of the performance metrics are printed in the verbose logs."
    for line in EXPLANATIONS:
        yield _VERBOSE, line
    yield _INFO, ""


def _details(traces: Sequence[Trace], average: int) -> Lines:
    yield _INFO, ""
    yield _INFO, "=== Trace details ==="
    yield _INFO, f"Trace averages of {average} runs:"
    groups = len(traces) // average
    omitted = range(_SHOWN, groups - _SHOWN)
    for index in range(groups):
        if index in omitted:
            if index == _SHOWN:
                yield _INFO, f"... Omitting {len(omitted)} lines"
            continue
        group = traces[index * average : (index + 1) * average]
        compute, latency, enqueue = (
            number(sum(times) / average) for times in ([getattr(t, part) for t in group] for part in ("compute", "latency", "enqueue"))
        )
        yield _INFO, f"Average on {average} runs - GPU latency: {compute} ms - Host latency: {latency} ms (enqueue {enqueue} ms)"


def _perf(found: Summary, percentiles: Sequence[float]) -> str:
    named = {"min": found.least, "max": found.most, "mean": found.mean, "median": found.median}
    named |= {f"percentile({number(p)}%)": value for p, value in zip(percentiles, found.percentiles, strict=True)}
    return ", ".join(f"{name} = {number(value)} ms" for name, value in named.items())


def _warnings(found: Mapping[str, Summary], streams: int) -> Lines:
    compute = found["GPU Compute Time"]
    if found["Enqueue Time"].median > _ENQUEUE_BOUND * compute.median:
        yield _WARNING, "* Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized."
        yield _WARNING, "  If not already in use, --useCudaGraph (utilize CUDA graphs where possible) may increase the throughput."
    copies = {"H2D Latency": "host-to-device transfers for the inputs", "D2H Latency": "device-to-host transfers for the outputs"}
    for name, text in copies.items():
        if compute.median > 0 and found[name].median >= compute.median:
            yield _WARNING, f"* Throughput may be bound by {text} rather than GPU Compute and the GPU may be under-utilized."
            yield _WARNING, "  Add --noDataTransfers flag to disable data transfers."
    if compute.variation > _UNSTABLE:
        yield _WARNING, f"* GPU compute time is unstable, with coefficient of variance = {number(compute.variation)}%."
        on_host = found["Enqueue Time"].most == 0  # runs on the CPU are not enqueued
        help_ = "stopping other programs and pinning this one to CPUs" if on_host else "locking GPU clock frequency or adding --useSpinWait"
        yield _WARNING, f"  If not already in use, {help_} may improve the stability."
    if streams > 1:
        yield _WARNING, (
            "* Multiple inference streams are used. Latencies may not be accurate since inferences may run in parallel. "
            'Please use "Throughput" as the performance metric instead.'
        )


def times_json(traces: Sequence[Trace]) -> list[dict[str, float]]:
    """What `--exportTimes` writes: the runs that count."""
    return [t.json() for t in traces]


# ---- layers ----


class LayerTimes:
    """The times of layers over several runs, in the order in which the first run told them."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def add(self, name: str, milliseconds: float) -> None:
        """Take the time of a layer in one run."""
        self._times.setdefault(name, []).append(milliseconds)

    @property
    def runs(self) -> int:
        """How many runs there were."""
        return max((len(t) for t in self._times.values()), default=0)

    def rows(self) -> list[tuple[str, float, float, float, float]]:
        """Name, sum, average, median, and share of the whole in percent, of each layer that took any time."""
        total = self.total
        return [
            (name, sum(times), sum(times) / self.runs, summarize(times, ()).median, sum(times) / total * 100)
            for name, times in self._times.items()
            if sum(times) > 0
        ]

    @property
    def total(self) -> float:
        """The time of all layers in all runs."""
        return math.fsum(sum(times) for times in self._times.values())

    def lines(self) -> Lines:
        """What `--dumpProfile` prints."""
        yield _INFO, ""
        yield _INFO, f"=== Profile ({self.runs} iterations ) ==="
        yield _INFO, "   Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer"
        rows = self.rows()
        for name, *times in rows:
            yield _INFO, _row(name, times)
        yield _INFO, _row("Total", [self.total, self.total / max(self.runs, 1), sum(r[3] for r in rows), 100.0])
        yield _INFO, ""

    def json(self) -> list[dict[str, Any]]:
        """What `--exportProfile` writes."""
        keys = ("name", "timeMs", "averageMs", "medianMs", "percentage")
        return [{"count": self.runs}, *(dict(zip(keys, row, strict=True)) for row in self.rows())]


def _row(name: str, times: Sequence[float]) -> str:
    total, average, median, share = times
    return f"{total:11.2f}{average:13.4f}{median:13.4f}{share:10.1f}   {name}"


def write_json(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a list of records, one per line.

    Raises:
        OSError: the file cannot be written.
    """
    body = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"[\n{body}\n]\n")
