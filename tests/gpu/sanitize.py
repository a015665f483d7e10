"""compute-sanitizer over a sample of kernels: out-of-bounds and misaligned accesses, races in shared memory.

    python -m tests.gpu.sanitize                       # memcheck and racecheck over all samples
    python -m tests.gpu.sanitize --tool memcheck --models dynamic_bert4

Small models whose engines together use every family of templates run once in a process under the tool; any finding fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("dynamic_bert4", "dynamic_yolo", "torchvision_mobilenet_v3_small", "dynamic_decoder_kv_cache", "dynamic_lstm_gru")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOLDERS = ("/usr/local/cuda/bin", "/opt/nvidia/compute-sanitizer")


def sanitizer() -> str | None:
    """The tool, on the path or where the CUDA toolkit puts it."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(FOLDERS))


def run_models(names: Sequence[str], precision: str) -> None:
    """Build and run models, without CUDA graphs in the first run and with one in the others."""
    import numpy as np

    import dovetail
    from models import zoo

    for name in names:
        model = zoo.load(name)
        engine = dovetail.build(model, device="cuda", precision=precision, verify="off", tune=False, allow_fallback=True)
        feeds = zoo.inputs(model, batch=1, seq=7, height=64, width=32)
        for _ in range(3):
            results = engine.run(feeds)
        assert all(np.isfinite(v).all() for v in map(np.asarray, results.values()) if v.dtype.kind == "f"), name
        print(f"{name}: ran", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitize", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=["memcheck", "racecheck"])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds per tool")
    parser.add_argument("--inside", action="store_true", help="run the models here: what the tool calls")
    args = parser.parse_args(argv)
    if args.inside:
        run_models(args.models, args.precision)
        return 0
    tool = sanitizer()
    if tool is None:
        print("compute-sanitizer is not installed here, expected it on the path or in the CUDA toolkit", file=sys.stderr)
        return 2
    inside = [sys.executable, "-m", "tests.gpu.sanitize", "--inside", "--precision", args.precision, "--models", *args.models]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    # Kernels are compiled beforehand, at full speed; the tool then sees an engine that only loads and runs them.
    subprocess.run(inside, cwd=ROOT, env=environment, check=True)
    failed = 0
    for name in args.tool:
        command = [tool, "--tool", name, "--error-exitcode", "99", "--print-limit", "10", "--target-processes", "application-only", *inside]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=args.timeout)
        except subprocess.TimeoutExpired:
            print(f"{name}: no end after {args.timeout:g} s")
            failed += 1
            continue
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        print(f"{name}: {'clean' if done.returncode == 0 else f'FAILED ({done.returncode})'}\n{tail}", flush=True)
        failed += done.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
