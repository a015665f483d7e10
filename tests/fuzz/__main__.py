"""Random models through the compiler, as many as wanted.

    python -m tests.fuzz --seeds 0:5000
    python -m tests.fuzz --seeds 0:200 --checks cpu,cuda --reduce build/fuzz

Prints one line per failure, and with --reduce the smallest model that fails so. Seeds run in
forked children, so that a crash costs one seed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import onnx

from tests.fuzz.case import Case
from tests.fuzz.checks import CHECKS
from tests.fuzz.generate import generate
from tests.fuzz.reduce import reduced

_BATCH = 40


def failure(case: Case, check: str) -> str:
    """What goes wrong in a check, in one line; "" if nothing does."""
    try:
        CHECKS[check](case)
    except Exception as error:  # whatever it is, it is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        at = next((f for f in reversed(frames) if "dovetail" in f.filename), frames[-1])
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]} [{Path(at.filename).name}:{at.lineno}]"
    return ""


def _kind(text: str) -> str:
    """What two failures of one cause have in common."""
    return text.partition(":")[0] + (text.rpartition("[")[2] if not text.startswith("Mismatch") else text.split(":")[1])


def _child(seeds: list[int], checks: list[str], folder: Path | None, pipe: Connection) -> None:
    for seed in seeds:
        pipe.send((seed, "", ""))
        case = generate(seed)
        for check in checks:
            why = failure(case, check)
            if why:
                pipe.send((seed, check, why))
                if folder is not None:
                    _write(case, check, why, folder)
    pipe.close()


def _write(case: Case, check: str, why: str, folder: Path) -> None:
    small = reduced(case, lambda trial: _kind(failure(trial, check)) == _kind(why))
    folder.mkdir(parents=True, exist_ok=True)
    model = small.model()
    onnx.save(model, folder / f"{check}-{case.seed}.onnx")
    shapes = {n: (str(small.values[n].dtype), [a.shape for a in small.values[n].arrays]) for n in small.inputs}
    text = f"{failure(small, check)}\n{shapes}\n{onnx.printer.to_text(model)}\n"
    (folder / f"{check}-{case.seed}.txt").write_text(text)


def main(argv: list[str] | None = None) -> int:
    """The command line; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:200", help="first:end")
    parser.add_argument("--checks", default=",".join(CHECKS), help=f"some of {', '.join(CHECKS)}")
    parser.add_argument("--reduce", type=Path, help="write the smallest failing models into this folder")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="longest time for a seed")
    args = parser.parse_args(argv)
    first, _, end = args.seeds.partition(":")
    left = list(range(int(first), int(end or int(first) + 1)))
    total, failed, start = len(left), Counter[str](), time.monotonic()
    context = multiprocessing.get_context("fork")
    while left:
        pipe, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(left[:_BATCH], args.checks.split(","), args.reduce, theirs))
        child.start()
        theirs.close()
        seed, why = left[0], ""
        try:
            while True:
                if not pipe.poll(args.timeout):
                    why = f"no answer within {args.timeout:g} s"
                    child.kill()
                    break
                seed, check, found = pipe.recv()
                if check:
                    failed[check] += 1
                    print(f"{seed} {check}: {found}", flush=True)
        except EOFError:
            pass
        child.join()
        if child.exitcode:
            failed["crash"] += 1
            print(f"{seed} crash: {why or f'exit code {child.exitcode}'}", flush=True)
            left = left[left.index(seed) + 1 :]
        else:
            left = left[_BATCH:]
        if sys.stderr.isatty():
            print(f"\r  {total - len(left)}/{total}", end="", file=sys.stderr, flush=True)
    print(f"{total} models in {time.monotonic() - start:.0f} s, failures: {dict(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
