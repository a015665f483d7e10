"""Check an engine against its reference again: every kernel, and the whole engine end to end.

    dovetail verify resnet50.plan
    dovetail verify resnet50.plan --full --json

The certificate inside the file says what was checked at build; this repeats it here. Exit code 1 if anything is off.
"""

from __future__ import annotations

import argparse

from dovetail.cli import options, output
from dovetail.cli.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail verify`."""
    parser.add_argument("engine", help="engine file")
    parser.add_argument("--full", action="store_true", help="check everything, however long it takes")
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and print the outcome."""
    from dovetail import api

    with progress(args):
        engine = api.load(args.engine, threads=args.threads, trust=args.trust)
        outcome = engine.verify(level="full" if args.full else "sample")
    output.show(args, outcome, render(args.engine, outcome))
    return 0 if outcome["ok"] else 1
