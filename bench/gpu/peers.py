"""The peers of the GPU suite: torch eager under a CUDA graph, and torch.compile. Needs torch and nothing that Dovetail compiles.

    python -m bench.gpu.peers --models resnet50,bert_base --batch 1 32 --peers eager,compile --out DIR

Peers: `eager` is the module captured in a CUDA graph; `compile` is torch.compile(mode="reduce-overhead"), called as its users call it;
`compile-graph` is torch.compile's default mode captured in one CUDA graph of ours; `autotune` is mode="max-autotune" (minutes).
Inputs and weights are in the precision asked for, resident on the device, images channels_last. A peer that fails is reported as failed.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu import suite
from bench.gpu.environment import environment, line
from bench.gpu.timing import Candidate, Times, interleaved, use_device

PEERS = ("eager", "compile", "compile-graph", "autotune")
DEFAULT = ("eager", "compile")
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "tf32": "float32"}


@dataclass
class Prepared:
    """Peers of one model and batch size, ready to be timed.

    Attributes:
        candidates: those that work.
        build_s: seconds until the first result.
        errors: relative L2 against the same module in fp32.
        failures: the others, with what they said.
        weights: parameters taken from the ONNX model, and all.
        reference: the module's result in fp32, on the host.
    """

    candidates: list[Candidate] = field(default_factory=list)
    build_s: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    weights: tuple[int, int] = (0, 0)
    reference: np.ndarray[Any, Any] | None = None


def prepare(model: suite.Model, batch: int, feeds: Mapping[str, np.ndarray[Any, Any]], precision: str, names: Sequence[str]) -> Prepared:
    """Build the named peers and run each once; failures are recorded, never raised."""
    result = Prepared()
    try:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        module, taken, count = model.torch(model.onnx(batch))
        result.weights = taken, count
        value = torch.from_numpy(np.ascontiguousarray(next(iter(feeds.values())))).cuda()
        module = module.cuda()
        with torch.no_grad():
            wanted = module(value).float()
        result.reference = wanted.cpu().numpy()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True
        module = module.to(getattr(torch, DTYPES[precision]))
        if model.image:
            module = module.to(memory_format=torch.channels_last)
            value = value.to(getattr(torch, DTYPES[precision])).contiguous(memory_format=torch.channels_last)
    except Exception as error:
        result.failures = dict.fromkeys(names, _told(error))
        return result
    for name in names:
        start = time.perf_counter()
        try:
            call, output = _MAKERS[name](module, value)
            torch.cuda.synchronize()
            result.build_s[name] = time.perf_counter() - start
            got = output().float()
            error_ = float(torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted))
            result.errors[name] = error_
            result.candidates.append(Candidate(name, call, int(torch.cuda.current_stream().cuda_stream)))
        except Exception as error:
            result.failures[name] = _told(error)
    return result


def _told(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return text[:600]


Made = tuple[Callable[[], object], Callable[[], Any]]
"""What runs a peer once, and what gives its result."""


def _captured(function: Callable[[Any], Any], value: Any) -> Made:
    import torch

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function(value)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = function(value)
        graph.replay()

    def result() -> Any:
        graph.replay()
        torch.cuda.synchronize()
        return output

    return graph.replay, result


def _eager(module: Any, value: Any) -> Made:
    return _captured(module, value)


def _called(mode: str) -> Callable[[Any, Any], Made]:
    def make(module: Any, value: Any) -> Made:
        import torch

        # The input stays where it is: without this each call would copy it into the graph's own buffer.
        torch._dynamo.mark_static_address(value)
        compiled = torch.compile(module, mode=mode, dynamic=False)

        @torch.no_grad()
        def call() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(value)

        for _ in range(4):
            call()
        return call, lambda: call().clone()

    return make


def _compiled_graph(module: Any, value: Any) -> Made:
    import torch

    return _captured(torch.compile(module, dynamic=False), value)


_MAKERS: dict[str, Callable[[Any, Any], Made]] = {
    "eager": _eager, "compile": _called("reduce-overhead"), "compile-graph": _compiled_graph, "autotune": _called("max-autotune"),
}  # fmt: skip


def parse(text: str) -> list[str]:
    """The peers of a comma-separated list.

    Raises:
        ValueError: an unknown name.
    """
    names = [n for n in text.split(",") if n]
    unknown = [n for n in names if n not in PEERS]
    if unknown:
        raise ValueError(f"peers: got {', '.join(unknown)}, expected some of {', '.join(PEERS)}")
    return names


def free() -> None:
    """Give back what the last model held."""
    import gc
    import sys

    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: the peers alone."""
    from models import zoo

    parser = argparse.ArgumentParser(prog="python -m bench.gpu.peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--models", type=suite.parse, default="all", help=f"comma-separated: {', '.join(suite.MODELS)}")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--precision", choices=DTYPES, default="fp16")
    parser.add_argument("--peers", type=parse, default=",".join(DEFAULT), help=f"comma-separated: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--time-limit", type=float, default=530.0, help="seconds after which no further model is begun")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    use_device()
    where = environment()
    print(line(where), flush=True)
    rows: list[dict[str, Any]] = []
    for name in args.models:
        for batch in args.batch:
            if time.monotonic() - start > args.time_limit:
                print(f"{name}, batch {batch}: left out, {args.time_limit:g} s are over", flush=True)
                continue
            model = suite.MODELS[name]
            try:
                feeds = zoo.inputs(model.onnx(batch), batch=batch)
                ready = prepare(model, batch, feeds, args.precision, args.peers)
                times = interleaved(ready.candidates, rounds=args.rounds, failed=lambda n, e, r=ready: r.failures.update({n: _told(e)}))
                rows.append(record(model, batch, args.precision, ready, times))
                print(summary(rows[-1]), flush=True)
                del ready
                free()
            except Exception:
                rows.append({"model": name, "batch": batch, "error": traceback.format_exc(limit=4)})
                print(rows[-1]["error"], flush=True)
            (args.out / "peers.json").write_text(json.dumps({"environment": where, "rows": rows}, indent=1))
    return 0


def record(model: suite.Model, batch: int, precision: str, ready: Prepared, times: Mapping[str, Times]) -> dict[str, Any]:
    """What was found about the peers of one model, as plain data."""
    return {
        "model": model.name, "label": model.label, "batch": batch, "precision": precision,
        "peers": {k: {**t.json(), "build_s": ready.build_s.get(k), "relative_l2": ready.errors.get(k)} for k, t in times.items()},
        "failures": ready.failures, "weights_by_name": list(ready.weights),
    }  # fmt: skip


def summary(row: Mapping[str, Any]) -> str:
    """One line for a row."""
    parts = [
        f"{k} {p['median_ms']:.4f} ms [{p['q25_ms']:.4f}, {p['q75_ms']:.4f}] "
        f"(built in {p['build_s']:.1f} s, rel. L2 {p['relative_l2']:.1e})"
        for k, p in row["peers"].items()
    ]
    parts += [f"{k} FAILED: {reason.splitlines()[0][:200]}" for k, reason in row["failures"].items()]
    taken, count = row["weights_by_name"]
    return f"{row['label']}, batch {row['batch']}, {row['precision']}: {'; '.join(parts)}; {taken} of {count} parameters by name"


if __name__ == "__main__":
    raise SystemExit(main())
