"""Plots of measurements, with matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dovetail.benchmark.measure import Measurement
from dovetail.core.errors import UsageError


def plot_latencies(measurement: Measurement, path: Path, title: str = "") -> None:
    """Draw every run of every candidate as a box plot into `path` (.svg, .png, .pdf).

    Raises:
        UsageError: matplotlib is not installed, or the suffix is unknown to it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: matplotlib is not installed; install it with: pip install matplotlib")
    from matplotlib.figure import Figure

    names = [x.name for x in measurement.latencies]
    data = [measurement.samples_ms[name].reshape(-1) for name in names]
    figure = Figure(figsize=(7.0, 0.8 + 0.7 * len(names)), layout="constrained")
    axes = figure.subplots()
    positions = list(range(len(names), 0, -1))
    axes.boxplot(data, positions=positions, orientation="horizontal", widths=0.6, showfliers=False, whis=(1, 99))
    for latency, position in zip(measurement.latencies, positions, strict=True):
        axes.annotate(f"{latency.median_ms:.2f} ms", (latency.median_ms, position + 0.36), ha="center", va="bottom", fontsize=8)
    axes.set_yticks(positions, names)
    axes.set_ylim(0.4, len(names) + 0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("latency in ms: median, quartiles, 1st to 99th percentile; left is faster")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UsageError(f"--plot: got {path.name!r}, expected a name that ends in .svg, .png or .pdf") from error
