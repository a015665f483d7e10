"""The GPU suite: our engines' graph replays against torch, inputs resident on the device.

    python -m bench.gpu --models resnet50,bert_base --batch 1 32 --precision fp16 --out DIR
    python -m bench.gpu --models all --batch 1 --peers eager,compile --option time_budget=60 --out DIR
    python -m bench.gpu --models resnet50 --batch 1 --peers none          # ours alone

Writes DIR/results.json and DIR/results.md after every model, goes on after errors, and begins no model after --time-limit seconds.
All candidates of a model run interleaved in one process; times are medians over rounds of back-to-back replays (warm L2), in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu import ours, peers, suite
from bench.gpu.environment import environment, line
from bench.gpu.timing import Candidate, interleaved, ratio, use_device
from models import zoo

OURS, CALLS = "dovetail", "dovetail calls"
IO = {"fp16": "f16:channels_last", "bf16": "bf16:channels_last", "fp32": "channels_last", "tf32": "channels_last"}
"""How images come in: as the peers get them."""


def measure(name: str, batch: int, args: argparse.Namespace, gpu_name: str) -> dict[str, Any]:
    """One row: everything about one model at one batch size."""
    model = suite.MODELS[name]
    proto = model.onnx(batch)
    feeds = zoo.inputs(proto, batch=batch)
    row: dict[str, Any] = {"model": name, "label": model.label, "batch": batch, "precision": args.precision, "failures": {}}
    candidates: list[Candidate] = []
    mine: ours.Ours | None = None
    if not args.no_ours:
        try:
            mine = _ours(model, batch, feeds, args, row)
            candidates += _runs(mine, row)
        except Exception as error:
            row["failures"][OURS] = _told(error)
    ready = peers.prepare(model, batch, feeds, args.precision, args.peers) if args.peers else peers.Prepared()
    row["failures"] |= ready.failures
    row["weights_by_name"] = list(ready.weights)
    candidates += ready.candidates
    times = interleaved(candidates, rounds=args.rounds, failed=lambda n, e: row["failures"].update({n: _told(e)}))
    row["times"] = {k: t.json() for k, t in times.items()}
    row["peers"] = {k: {"build_s": ready.build_s[k], "relative_l2": ready.errors.get(k)} for k in ready.build_s}
    best, median, low, high = ratio(times, OURS, args.peers)
    row |= {"best_peer": best, "ratio": median, "ratio_q25": low, "ratio_q75": high}
    if mine is not None:
        _judge(row, model, batch, args, mine, proto, feeds, ready, gpu_name)
    return row


def _ours(model: suite.Model, batch: int, feeds: Mapping[str, Any], args: argparse.Namespace, row: dict[str, Any]) -> ours.Ours:
    """Our engine, with images as the peers get them; where that fails, as the model has them, and the failure is told."""
    known = IO.get(args.precision, "") if args.io == "auto" else args.io
    for io in dict.fromkeys([known, ""]):
        try:
            mine = ours.prepare(
                model, batch, feeds, args.precision, out=args.out, options=dict(args.option), cold=args.cold, warm=args.warm, io=io
            )
        except Exception as error:
            if not io or not model.image:
                raise
            row["failures"][f"{OURS} io {io}"] = _told(error)
            continue
        row |= mine.facts
        return mine
    raise AssertionError("the last try raises or returns")


def _runs(mine: ours.Ours, row: dict[str, Any]) -> list[Candidate]:
    """A captured graph, as peers are timed, and the calls of the API; the calls alone where steps run on the host."""
    calls = Candidate(CALLS, mine.resident.call, mine.resident.stream)
    try:
        return [mine.resident.capture(), calls]
    except Exception as error:
        row["failures"][f"{OURS} capture"] = _told(error)
        return [Candidate(OURS, mine.resident.call, mine.resident.stream)]


def _judge(
    row: dict[str, Any], model: suite.Model, batch: int, args: argparse.Namespace, mine: ours.Ours, proto: Any,
    feeds: Mapping[str, Any], ready: peers.Prepared, gpu_name: str,
) -> None:  # fmt: skip
    """Accuracy, floor and slowest steps; each may fail alone."""

    def accuracy() -> None:
        taken, count = ready.weights
        row["reference"], want = ours.reference(proto, feeds, ready.reference, bool(count) and taken == count)
        row["relative_l2"] = ours.relative_l2(mine.resident.output(), want)

    def roof() -> None:
        row["floor"] = ours.floor(model, batch, args.precision, row["kernels"], gpu_name, mine.resident.target)

    def profile() -> None:
        row["slowest"] = ours.slowest(mine.engine, feeds)

    for part in (accuracy, roof, profile) if not args.times_only else (accuracy,):
        try:
            part()
        except Exception as error:
            row["failures"][f"{OURS} {part.__name__}"] = _told(error)


def _told(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"[:900]


def _ms(row: Mapping[str, Any], name: str) -> str:
    found = row["times"].get(name)
    return f"{found['median_ms']:.4f}" if found else "failed" if name in row["failures"] else "–"


def _number(value: Any, form: str) -> str:
    return "–" if value is None or (isinstance(value, float) and math.isnan(value)) else format(value, form)


def markdown(rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any], names: Sequence[str]) -> str:
    """The tables."""
    head = ["model", "batch", "ours ms", "quartiles", "as called ms", *(f"{p} ms" for p in names), "best peer / ours", "quartiles",
            "kernels", "layer floor", "practical floor", "rel. L2", "peer rel. L2", "build s", "warm s", "load ms", "asked ms"]  # fmt: skip
    body = []
    for row in rows:
        if "times" not in row:
            continue
        own = row["times"].get(OURS, {})
        roof = row.get("floor", {})
        shares = [_share(roof.get(k), own.get("median_ms")) for k in ("layer_ms", "practical_ms")]
        target = (suite.MODELS[row["model"]].targets_ms or {}).get(row["batch"])
        peer_error = row["peers"].get("eager", {}).get("relative_l2")
        spread = f"{_number(own.get('q25_ms'), '.4f')} to {_number(own.get('q75_ms'), '.4f')}"
        between = f"{_number(row['ratio_q25'], '.2f')} to {_number(row['ratio_q75'], '.2f')}"
        body.append([
            row["label"], str(row["batch"]), _ms(row, OURS), spread, _ms(row, CALLS), *(_ms(row, p) for p in names),
            _number(row["ratio"], ".2f"), between,
            str(row.get("kernels", "–")), *shares, _number(row.get("relative_l2"), ".1e"), _number(peer_error, ".1e"),
            _number(row.get("build_s"), ".1f"), _number(row.get("warm_build_s"), ".1f"),
            _number(None if row.get("load_s") is None else 1e3 * row["load_s"], ".0f"), _number(target, "g"),
        ])  # fmt: skip
    lines = [line(dict(where)), "", *_table(head, body)]
    slow = [(row, step) for row in rows for step in row.get("slowest", ())]
    if slow:
        cells = [
            [r["label"], str(r["batch"]), ", ".join(s["nodes"]), s["tactic"], f"{s['us']:.1f}", f"{100 * s['share']:.0f} %"]
            for r, s in slow
        ]
        lines += ["", *_table(["model", "batch", "slowest steps", "tactic", "us", "share"], cells)]
    for row in rows:
        lines += [f"- {row.get('label', row['model'])}, batch {row['batch']}, {k}: {v}" for k, v in row.get("failures", {}).items()]
        if row.get("host_steps"):
            lines.append(f"- {row['label']}, batch {row['batch']}: host steps {', '.join(row['host_steps'])}")
        if "error" in row:
            lines.append(f"- {row['model']}, batch {row['batch']}: {row['error']}")
    return "\n".join(lines) + "\n"


def _share(floor_ms: float | None, ours_ms: float | None) -> str:
    return f"{100 * floor_ms / ours_ms:.0f} %" if floor_ms and ours_ms else "–"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(r)} |" for r in body)]


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=suite.parse, default="all", help=f"comma-separated: {', '.join(suite.MODELS)}")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--precision", choices=ours.ITEMSIZE, default="fp16")
    parser.add_argument("--peers", type=lambda t: [] if t == "none" else peers.parse(t), default=",".join(peers.DEFAULT),
                        help=f"comma-separated: {', '.join(peers.PEERS)}; or none")  # fmt: skip
    parser.add_argument("--no-ours", action="store_true", help="the peers alone")
    parser.add_argument("--option", type=_option, action="append", default=[], metavar="NAME=VALUE",
                        help="of dovetail.build, such as time_budget=60")  # fmt: skip
    parser.add_argument("--io", default="auto",
                        help="format of images: auto (as the peers get them), model, f16, channels_last, f16:channels_last")  # fmt: skip
    parser.add_argument("--cold", action="store_true", help="build with an empty cache")
    parser.add_argument("--warm", action="store_true", help="also build a second time, with the cache that the first build filled")
    parser.add_argument("--times-only", action="store_true", help="no floor, no profile")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--time-limit", type=float, default=500.0, help="seconds after which no further model is begun")
    parser.add_argument("--resume", action="store_true", help="keep the rows of DIR/results.json and measure what is missing there")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu"))
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    args.io = "" if args.io == "model" else args.io
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    use_device()
    where = environment()
    print(line(where), flush=True)
    results = args.out / "results.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text())["rows"] if args.resume and results.is_file() else []
    known = {(r["model"], r["batch"]) for r in rows}
    for batch in args.batch:
        for name in args.models:
            if (name, batch) in known:
                continue
            elapsed = time.monotonic() - start
            if elapsed > args.time_limit:
                print(f"{name}, batch {batch}: left out, {args.time_limit:g} s are over", flush=True)
                continue
            try:
                row = measure(name, batch, args, where["gpu"]["name"])
            except Exception as error:
                row = {"model": name, "batch": batch, "error": _told(error)}
            rows.append(row)
            print(_progress(row, args.peers, time.monotonic() - start), flush=True)
            results.write_text(json.dumps({"environment": where, "rows": rows}, indent=1))
            (args.out / "results.md").write_text(markdown(rows, where, args.peers))
            if _is_lost(row):
                print("the device's context is lost; a new process goes on", flush=True)
                left = max(1.0, args.time_limit - (time.monotonic() - start))
                os.execv(sys.executable, [sys.executable, "-m", "bench.gpu", *given, "--resume", "--time-limit", str(left)])
            if args.peers:
                peers.free()
    print(markdown(rows, where, args.peers))
    return int(any("error" in r or r["failures"] for r in rows))


def _is_lost(row: Mapping[str, Any]) -> bool:
    """Whether a kernel has gone wrong in a way that ends all work of this process on the device."""
    said = json.dumps([row.get("failures"), row.get("error")]).lower()
    return any(sign in said for sign in ("illegal", "misaligned", "launch_failed", "context is lost", "unspecified launch failure"))


def _progress(row: Mapping[str, Any], names: Sequence[str], elapsed: float) -> str:
    if "error" in row:
        return f"[{elapsed:.0f} s] {row['model']}, batch {row['batch']}: {row['error']}"
    parts = [f"{n} {_ms(row, n)}" for n in (OURS, CALLS, *names)]
    parts += [f"{k} FAILED: {v}" for k, v in row["failures"].items()]
    built = f", built in {row['build_s']:.1f} s, {row['kernels']} kernels" if "build_s" in row else ""
    error = f", rel. L2 {row['relative_l2']:.1e}" if "relative_l2" in row else ""
    return f"[{elapsed:.0f} s] {row['label']}, batch {row['batch']}: {'; '.join(parts)}{built}{error}, ratio {_number(row['ratio'], '.2f')}"


if __name__ == "__main__":
    raise SystemExit(main())
