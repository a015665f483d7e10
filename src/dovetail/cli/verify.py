"""Check an engine against its reference again: every kernel, and the whole engine end to end.

    dovetail verify resnet50.plan
    dovetail verify resnet50.plan --full --json

The certificate inside the file says what was checked at build; this repeats it here. Exit code 1 if anything is off.
"""

from __future__ import annotations

import argparse

from dovetail.cli import options, output
from dovetail.cli.artifact import load_engine
from dovetail.cli.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail verify`."""
    parser.add_argument("engine", help="engine file")
    parser.add_argument("--full", action="store_true", help="check everything, however long it takes")
    options.add_device(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Verify and print the new certificate; what is off raises VerificationError."""
    from dovetail.api.report import certificate_text

    with progress(args) as update:
        engine = load_engine(args, args.engine)
        stored = engine.certificate
        certificate = engine.verify("full" if args.full else "sample", progress=update)
    data = {"engine": args.engine, "stored": stored, "certificate": certificate}
    output.show(args, data, f"{args.engine}\n{certificate_text(certificate)}")
    return 0
