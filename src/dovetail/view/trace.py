"""Profiles as traces of Chrome's format, which chrome://tracing, Perfetto and Speedscope show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dovetail.core.version import __version__
from dovetail.view.graph import GraphStep

_SHOWN = 3
_PROCESS = 1
_RUN_THREAD = 0


def chrome_trace(profile: Mapping[str, Any], steps: Sequence[GraphStep] = (), title: str = "") -> dict[str, Any]:
    """The trace of one run: a complete event per step, in the thread of its lane, and counters of speed.

    Steps are timed one by one, so they stand one after the other, in whatever lanes they run.

    Args:
        profile: what `Profile.json` gives.
        steps: the engine's steps at the sizes of the profile, for bytes, arithmetic and operators.
        title: what the engine is called.

    Returns:
        JSON data: the "JSON object format", with times in microseconds.
    """
    rows: Sequence[Mapping[str, Any]] = profile["rows"]
    where = "one by one" if profile["device"] != "cpu" else f"{profile['threads']} thread(s)"
    lanes = sorted({int(r["lane"]) for r in rows})
    events = [_name("process_name", _RUN_THREAD, f"{title or 'dovetail'} on {profile['device']}"), _name("thread_name", _RUN_THREAD, "run")]
    events += [_name("thread_name", 1 + lane, f"lane {lane}" if len(lanes) > 1 else "steps") for lane in lanes]
    events += [_event("M", "thread_sort_index", tid, args={"sort_index": tid}) for tid in (_RUN_THREAD, *(1 + lane for lane in lanes))]
    total = f"run, median of {profile['runs']}, {where}"
    events.append(_event("X", total, _RUN_THREAD, ts=0.0, dur=float(profile["total_us"]), cat="run", args={"steps": len(rows)}))
    now = 0.0
    for row, step in zip(rows, _steps_of(rows, steps), strict=True):
        events.append(_complete(row, step, now))
        if step is not None and row["us"] > 0:
            speeds = {"GB/s": _bytes(step) / row["us"] / 1e3, "GFLOP/s": step.flops / row["us"] / 1e3}
            events += [_event("C", name, _RUN_THREAD, ts=now, args={name: value}) for name, value in speeds.items()]
        now += float(row["us"])
    events += [_event("C", name, _RUN_THREAD, ts=now, args={name: 0.0}) for name in ("GB/s", "GFLOP/s") if steps]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {
            "generator": f"dovetail {__version__}", "device": profile["device"], "runs": profile["runs"],
            "times": "steps were timed one by one: medians",
        },
    }  # fmt: skip


def _steps_of(rows: Iterable[Mapping[str, Any]], steps: Sequence[GraphStep]) -> list[GraphStep | None]:
    """The step of each row: that of its nodes and kernel; several of the same take turns, as iterations of a loop do."""
    places: dict[tuple[Any, ...], list[GraphStep]] = {}
    for step in steps:
        places.setdefault((step.info.origin, step.info.kernel), []).append(step)
    turns: dict[tuple[Any, ...], int] = {}
    found: list[GraphStep | None] = []
    for row in rows:
        key = (tuple(row["origin"]), row["kernel"])
        same = places.get(key)
        turn = turns.get(key, 0)
        turns[key] = turn + 1
        found.append(same[turn % len(same)] if same else None)
    return found


def _complete(row: Mapping[str, Any], step: GraphStep | None, start: float) -> dict[str, Any]:
    nodes = list(row["origin"])
    what = row["tactic"] if row["kind"] == "native" else f"host {row['kernel']}"
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    args: dict[str, Any] = {"nodes": nodes, "tactic": what, "kernel": row["kernel"], "share": row["share"]}
    if step is not None:
        args |= {
            "ops": list(step.info.ops), "dtype": step.dtype, "flop": step.flops, "bytes": _bytes(step), "read_bytes": step.read,
            "written_bytes": step.written, "weight_bytes": step.weights,
        }  # fmt: skip
    category = "kernel" if row["kind"] == "native" else "host"
    name = " + ".join(nodes[:_SHOWN]) + more if nodes else what
    return _event("X", name, 1 + int(row["lane"]), ts=start, dur=float(row["us"]), cat=category, args=args)


def _bytes(step: GraphStep) -> int:
    return step.read + step.written + step.weights


def _name(kind: str, tid: int, name: str) -> dict[str, Any]:
    return _event("M", kind, tid, args={"name": name})


def _event(phase: str, name: str, tid: int, **fields: Any) -> dict[str, Any]:
    return {"ph": phase, "name": name, "pid": _PROCESS, "tid": tid, **fields}
