"""How far torch's eager fp16, bf16 and TF32 are from fp32 for the zoo's models and weights: what our own distance is judged by.

    python -m bench.gpu.eager_error [NAME …] [--out DIR] [--device cuda] [--limit 90]

Runs each ONNX graph by torch's functions (`eager_onnx`) on the inputs of `tests/gpu/test_models_gpu.py`. Columns, relative L2, the worst
output of each: fp16 as a module in half precision computes; the same with images channels_last; fp16 with every node rounded; bf16 as
fp16; fp32 with products in TF32; torch's fp32 from ONNX Runtime's, which says that it is the same function (nan without ONNX Runtime).
Last, what we allow ourselves in fp16: 2e-3, or 1.5 times the first column if both fp32 agree (detections do not: picks differ). At the
end, the entries for `TORCH_FP16`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx

from bench.gpu.eager_onnx import Graph, missing
from models import zoo

Array = np.ndarray[Any, Any]
PLAIN_LIMIT, FACTOR = 2e-3, 1.5
SAME_FUNCTION = 1e-3
FORMS: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"}, "channels_last": {"precision": "fp16", "channels_last": True},
    "each node": {"precision": "fp16", "composed": False}, "bf16": {"precision": "bf16"}, "tf32": {},
}  # fmt: skip
_COLUMNS = ("fp16", "ch. last", "each node", "bf16", "tf32", "fp32/ORT", "allowed")
HEADER = " ".join([f"{'model':42s}", *(f"{name:>9s}" for name in _COLUMNS), f"{'s':>6s}"])


def distance(got: Any, want: Any) -> float:
    """Relative L2; infinite for another shape, nan or infinite where a result is. Integers count their differences."""
    if got.shape != want.shape:
        return float("inf")
    if not want.is_floating_point():
        return float((got != want).double().mean()) if got.numel() else 0.0
    a, b = got.double(), want.double()
    infinite = a.isinf() & (a == b)
    a, b = a.masked_fill(infinite, 0.0), b.masked_fill(infinite, 0.0)
    return float((a - b).norm() / (b.norm() or 1.0))


def measure(name: str, device: str) -> dict[str, Any]:
    """One model's distances by form, of each output."""
    import torch

    model = zoo.load(name)
    symbols = {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim}
    feeds = zoo.inputs(model, batch=2 if "batch" in symbols else 1)
    row: dict[str, Any] = {"model": name}
    if unknown := missing(model.graph):
        return row | {"error": f"no torch function for {', '.join(sorted(unknown))}"}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    want = Graph(model.graph, device=device).run(feeds)
    if importlib.util.find_spec("onnxruntime"):
        exact = {k: torch.from_numpy(v) for k, v in onnx_runtime(model, feeds).items()}
        row["fp32 from ONNX Runtime"] = {k: distance(v.cpu(), exact[k]) for k, v in want.items()}
    for form, options in FORMS.items():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = form == "tf32"
        got = Graph(model.graph, device=device, **options).run(feeds)
        row[form] = {k: distance(v, want[k]) for k, v in got.items()}
        del got
        gc.collect()
    return row


def onnx_runtime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs in fp32 on the CPU by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def worst(errors: Mapping[str, float] | None) -> float:
    """The largest distance of a model's outputs; nan if one is, or if there are none."""
    return float(np.max(list(errors.values()))) if errors else float("nan")


def allowed(row: Mapping[str, Any]) -> float:
    """The limit for our fp16 outputs that a row stands for."""
    error = worst(row.get("fp16"))
    differs = worst(row.get("fp32 from ONNX Runtime")) > SAME_FUNCTION
    return PLAIN_LIMIT if differs or not np.isfinite(error) else max(PLAIN_LIMIT, FACTOR * error)


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    if "error" in row:
        return f"{row['model']:42s} not measured: {row['error']}"
    numbers = [worst(row[form]) for form in FORMS] + [worst(row.get("fp32 from ONNX Runtime")), allowed(row)]
    text = f"{row['model']:42s} " + " ".join(f"{n:9.1e}" for n in numbers) + f" {row['seconds']:6.1f}"
    outputs = row["fp16"]
    return text if len(outputs) == 1 else text + "  " + ", ".join(f"{k} {v:.1e}" for k, v in outputs.items())


def entries(rows: Sequence[Mapping[str, Any]]) -> str:
    """What tests/gpu/test_models_gpu.py is to hold: models for which torch's error allows more than the plain limit."""
    found = [(r["model"], worst(r["fp16"])) for r in rows if "fp16" in r and allowed(r) > PLAIN_LIMIT]
    return "\n".join(f'    "{name}": {error:.2g},' for name, error in sorted(found))


def _stop(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("took longer than --limit seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.eager_error", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="models (default: all)")
    parser.add_argument("--out", type=Path, help="folder for eager_error.jsonl, a row as soon as it is measured, and eager_error.txt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, default=90, help="seconds that a model may take")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.names) - set(zoo.names())):
        parser.error(f"no models {', '.join(unknown)}; python -m models.zoo --list")
    import torch

    signal.signal(signal.SIGALRM, _stop)
    rows: list[dict[str, Any]] = []
    text = [f"torch {torch.__version__}, {torch.cuda.get_device_name() if args.device == 'cuda' else args.device}", HEADER]
    print("\n".join(text), flush=True)
    for name in args.names or zoo.names():
        started = time.monotonic()
        signal.alarm(args.limit)
        try:
            row = measure(name, args.device)
        except Exception as error:  # the others are still to be measured
            notes = "; ".join(getattr(error, "__notes__", []))
            row = {"model": name, "error": f"{type(error).__name__}: {error} {notes}"[:300]}
        signal.alarm(0)
        row["seconds"] = round(time.monotonic() - started, 1)
        rows.append(row)
        text.append(line(row))
        print(text[-1], flush=True)
        gc.collect()
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            with (args.out / "eager_error.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
    text += ["", "TORCH_FP16:", entries(rows)]
    print("\n".join(text[-3:]), flush=True)
    if args.out:
        (args.out / "eager_error.txt").write_text("\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
