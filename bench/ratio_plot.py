"""Draws the ratios of a suite run: how much faster than the faster peer, per model, thread count and batch.

    python -m bench.ratio_plot build/bench/results.json docs/ratios.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_ratios(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per (batch, threads): a dot per model with its 95 % interval; right of 1 is faster than both peers.

    Args:
        rows: the entries of `results.json`.
        path: .svg, .png or .pdf.
    """
    panels = sorted({(r["batch"], r["threads"]) for r in rows if not r["strict_fp32"]})
    labels = list(dict.fromkeys(r["label"] for r in rows))
    figure = Figure(figsize=(3.4 + 2.6 * len(panels), 1.2 + 0.32 * len(labels)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (batch, threads) in zip(axes, panels, strict=True):
        found = {r["label"]: r for r in rows if (r["batch"], r["threads"], r["strict_fp32"]) == (batch, threads, False)}
        for label, row in found.items():
            place = len(labels) - labels.index(label)
            colour = "#1b7f4b" if row["ratio"] >= 1 else "#b5542b"
            axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2, alpha=0.5)
            axis.plot(row["ratio"], place, "o", color=colour, markersize=6)
            axis.annotate(f"{row['ratio']:.2f}", (row["ratio"], place + 0.18), ha="center", va="bottom", fontsize=7)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(f"batch {batch}, {threads} thread{'s' * (threads > 1)}", fontsize=9)
        axis.set_yticks(range(len(labels), 0, -1), labels)
        axis.set_ylim(0.4, len(labels) + 0.9)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel("latency of the faster of ONNX Runtime and OpenVINO / latency of dovetail (right is better)", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    plot_ratios(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
