"""Run the ONNX backend suite through dovetail.backend, in forked children that take batches of cases.

    python -m tests.conformance.runner --failures
    python -m tests.conformance.runner --filter 'test_resize.*' --failures

Verdicts: pass; wrong (an output differs); unsupported (the build raised); error (the run raised); crash (the process
died); timeout. A crash or a hang costs the case that caused it; the rest of its batch goes on in a new child.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.conformance.cases import Case, node_cases

VERDICTS = ("pass", "wrong", "unsupported", "error", "crash", "timeout")
EXPECTED_FAILURES = Path(__file__).with_name("expected_failures.txt")
_STARTUP_S = 60.0


@dataclass
class Result:
    """What came of one case; `generated` tells whether every step was a generated kernel."""

    name: str
    verdict: str
    why: str = ""
    generated: bool = False
    host_ops: tuple[str, ...] = ()


def expected_failures() -> set[str]:
    """Names of the cases that may fail; the list may only shrink."""
    lines = EXPECTED_FAILURES.read_text().splitlines()
    return {line.split("#")[0].strip() for line in lines} - {""}


def host_ops(program: object) -> Iterator[str]:
    """Operators of a plan's program (and of its regions) that run on the NumPy reference."""
    from dovetail.engine.plan import ControlSegment, HostSegment, Program

    assert isinstance(program, Program)
    for segment in program.segments:
        if isinstance(segment, HostSegment) and segment.op != "BindSymbols":
            yield segment.op
        elif isinstance(segment, ControlSegment):
            for region in segment.regions:
                yield from host_ops(region)


def run_case(case: Case, device: str = "CPU") -> Result:
    """Build and run one case in this process, for a device as `dovetail.backend` names it."""
    from onnx.backend.test.runner import Runner

    from dovetail import backend

    stage, used, generated = "unsupported", (), False
    try:
        prepared = backend.prepare(case.model, device)
        used = tuple(sorted(set(host_ops(prepared.engine.plan.main))))
        generated = not used
        for inputs, expected in case.data:
            stage = "error"
            outputs = prepared.run(list(inputs))
            stage = "wrong"
            if len(outputs) != len(expected):
                raise AssertionError(f"{len(outputs)} outputs, expected {len(expected)}")
            Runner.assert_similar_outputs(expected, outputs, rtol=case.rtol, atol=case.atol)
        stage = "pass"
        why = ""
    except Exception as error:  # whatever a build or a run raises is the verdict
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return Result(case.name, stage, why, generated, used)


def _child(cases: Sequence[Case], pipe: Connection, quiet: bool, device: str) -> None:
    if quiet:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
    for case in cases:
        pipe.send(case.name)
        pipe.send(run_case(case, device))
    pipe.close()


def run_cases(
    cases: Sequence[Case],
    *,
    workers: int = 2,
    batch: int = 50,
    timeout_s: float = 30.0,
    quiet: bool = True,
    progress: bool = False,
    device: str = "CPU",
) -> dict[str, Result]:
    """Run the cases in `workers` children at a time; returns a result for every case."""
    context = multiprocessing.get_context("fork")
    queue = [list(cases[i : i + batch]) for i in range(0, len(cases), batch)]
    results: dict[str, Result] = {}
    running: list[_Batch] = []
    while queue or running:
        while queue and len(running) < workers:
            running.append(_Batch(context, queue.pop(0), timeout_s, quiet, device))
        multiprocessing.connection.wait([b.pipe for b in running], timeout=0.5)
        for child in list(running):
            for result in child.advance():
                results[result.name] = result
            if child.finished:
                running.remove(child)
                rest = [c for c in child.cases if c.name not in results]
                if rest:
                    queue.insert(0, rest)
        if progress:
            print(f"\r  {len(results)}/{len(cases)}", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    return results


class _Batch:
    """A child process and what is known about the case it works on."""

    def __init__(
        self,
        context: multiprocessing.context.ForkContext,
        cases: list[Case],
        timeout_s: float,
        quiet: bool,
        device: str,
    ) -> None:
        self.cases, self.timeout_s = cases, timeout_s
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_child, args=(cases, theirs, quiet, device))
        self.process.start()
        theirs.close()
        self.current = ""
        self.done: set[str] = set()
        self.deadline = time.monotonic() + timeout_s + _STARTUP_S
        self.finished = False

    def advance(self) -> Iterator[Result]:
        """Results that have come in, with a verdict for the case at which the child died or hung."""
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                self.deadline = time.monotonic() + self.timeout_s
                if isinstance(message, Result):
                    self.done.add(message.name)
                    self.current = ""
                    yield message
                else:
                    self.current = message
        except EOFError:
            self.process.join()
            self.finished = True
            if self.process.exitcode:
                yield Result(self._culprit(), "crash", f"exit code {self.process.exitcode}")
            return
        if time.monotonic() > self.deadline:
            self.process.kill()
            self.process.join()
            self.finished = True
            yield Result(self._culprit(), "timeout", f"no answer within {self.timeout_s:g} s")

    def _culprit(self) -> str:
        return self.current or next(c.name for c in self.cases if c.name not in self.done)


def summary(results: dict[str, Result]) -> str:
    """Counts per verdict, the pass rate, and the share that ran wholly on generated code."""
    counts = Counter(r.verdict for r in results.values())
    total = max(1, len(results))
    generated = sum(r.verdict == "pass" and r.generated for r in results.values())
    lines = [f"{len(results)} cases: " + ", ".join(f"{counts[v]} {v}" for v in VERDICTS)]
    lines.append(f"pass rate {100 * counts['pass'] / total:.1f} %")
    lines.append(f"passed wholly on generated code: {generated} ({100 * generated / total:.1f} %)")
    hosts = Counter(op for r in results.values() for op in r.host_ops)
    if hosts:
        lines.append("on the reference: " + ", ".join(f"{op} {n}" for op, n in hosts.most_common()))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; exit code 1 if a case outside the expected failures did not pass."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.runner", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every node case, not only Tier A")
    parser.add_argument("--filter", default="", help="only names that match this regular expression")
    parser.add_argument("--failures", action="store_true", help="list what did not pass, and why")
    parser.add_argument("--json", type=Path, help="write every result here")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--verbose", action="store_true", help="let the children print")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("dovetail") is None:
        parser.error("dovetail is not installed; pip install -e . or set PYTHONPATH=src")
    cases = [c for c in node_cases() if (args.all or c.tier_a) and re.search(args.filter, c.name)]
    start = time.monotonic()
    results = run_cases(cases, workers=args.workers, timeout_s=args.timeout, quiet=not args.verbose,
                        progress=sys.stderr.isatty(), device=args.device)
    if args.failures:
        for result in sorted(results.values(), key=lambda r: (r.verdict, r.name)):
            if result.verdict != "pass":
                print(f"{result.verdict:12} {result.name}  {result.why}")
    print(summary(results))
    print(f"{time.monotonic() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results.values()], indent=1))
    unexpected = {r.name for r in results.values() if r.verdict != "pass"} - expected_failures()
    return 1 if unexpected else 0


if __name__ == "__main__":
    raise SystemExit(main())
