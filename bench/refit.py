"""Time of refits: all weights of a model, and one layer.

    python -m bench.refit [--model torchvision_resnet50] [--device cuda] [--threads 2] [--rounds 20]

Prints medians over rounds in which two sets of weights take turns, after two rounds that find memory and bind what is run, and the
first of these, which find no memory to use again. Each result is checked: a run gives what a fresh engine with the weights gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import dovetail
from dovetail.api.weight_names import required
from models import zoo

Arrays = dict[str, np.ndarray[Any, Any]]


def other(arrays: Mapping[str, np.ndarray[Any, Any]], seed: int) -> Arrays:
    """The same weights with a little noise."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(1 << 16, np.float32) * np.float32(0.01) + 1
    return {n: (a * np.resize(noise, a.shape)).astype(a.dtype) if a.dtype.kind == "f" else a.copy() for n, a in arrays.items()}


def timed(engine: dovetail.Engine, sets: Sequence[Arrays], rounds: int) -> tuple[float, list[float]]:
    """Milliseconds of the first refit, and of each later one."""
    times = []
    for i in range(rounds + 2):
        start = time.perf_counter()
        engine.refit(sets[i % 2])
        times.append((time.perf_counter() - start) * 1e3)
    return times[0], times[2:]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision_resnet50")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    model = zoo.load(args.model)
    engine = dovetail.build(model, device=args.device, precision=args.precision, threads=args.threads, verify="off", tune=False)
    names = [n for n in required(engine.plan, engine.info["node_constants"]) if engine.weight(n).dtype.kind == "f"]
    old = {n: engine.weight(n).copy() for n in names}
    sets = [other(old, 1), other(old, 2)]
    layer = max((n for n in names if old[n].nbytes <= 2.5e6), key=lambda n: old[n].nbytes)
    feeds = engine.sample_inputs()
    rows: dict[str, dict[str, float]] = {}
    engine.run(feeds)
    before = time.perf_counter()
    engine.run(feeds)
    running = (time.perf_counter() - before) * 1e3
    for what, given in (("all weights", sets), ("one layer", [{layer: s[layer]} for s in sets])):
        first, times = timed(engine, given, args.rounds)
        before = time.perf_counter()
        engine.run(feeds)
        after = (time.perf_counter() - before) * 1e3
        size = sum(a.nbytes for a in given[0].values()) / 1e6
        rows[what] = {
            "median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "first_ms": first, "megabytes": size,
            "next_run_ms": after,
        }  # fmt: skip
    engine.refit(sets[0])
    fresh = dovetail.build(model, device=args.device, precision=args.precision, threads=args.threads, verify="off", tune=False)
    fresh.refit(sets[1])
    fresh.refit(sets[0])
    same = all(np.array_equal(a, b) for a, b in zip(engine.run(feeds).values(), fresh.run(feeds).values(), strict=True))
    if args.json:
        data = {"model": args.model, "device": args.device, "threads": engine.threads, "layer": layer, "run_ms": running}
        print(json.dumps(data | {"rows": rows, "same": same}, indent=1))
        return int(not same)
    print(f"{args.model} on {args.device}, {engine.threads} threads; one layer is {layer}; a run takes {running:.1f} ms")
    for what, row in rows.items():
        print(
            f"{what:12} {row['megabytes']:7.1f} MB  median {row['median_ms']:7.2f} ms  min {row['min_ms']:7.2f}  max {row['max_ms']:7.2f}  "
            f"first {row['first_ms']:7.2f}; next run {row['next_run_ms']:.1f} ms"
        )
    print("results are the same" if same else "results DIFFER")
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
