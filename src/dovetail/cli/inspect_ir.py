"""`dovetail inspect --after STAGE`: the IR after a stage of the pipeline."""

from __future__ import annotations

import argparse
from collections import Counter

from dovetail.builder import PASSES, BuildOptions, build
from dovetail.builder.rewriting import rewritten
from dovetail.cli import options, output
from dovetail.core.errors import UsageError
from dovetail.ir.graph import Module
from dovetail.ir.printer import print_module
from dovetail.model.rules import select


class _Reached(Exception):
    """Ends the pipeline once the wanted stage has run."""

    def __init__(self, text: str, operators: dict[str, int]) -> None:
        super().__init__()
        self.text, self.operators = text, operators


def inspect_ir(args: argparse.Namespace) -> int:
    """Run the pipeline up to a stage and print the IR."""
    if args.after == "list":
        output.show(args, {"stages": list(PASSES)}, "\n".join(PASSES))
        return 0
    if args.after not in PASSES:
        raise UsageError(f"--after: got {args.after!r}, expected one of {', '.join(PASSES)}")
    given = options.build_options(args)
    rewriting = rewritten(args.file, select(given["rules"]), given["shapes"])
    asked = BuildOptions(**{k: v for k, v in given.items() if k not in ("threads", "rules")} | {"verify": "off"})

    def stop(name: str, module: Module) -> None:
        if name == args.after:
            operators = Counter(node.op for node in module.main.nodes)
            raise _Reached(print_module(module), dict(operators.most_common()))

    try:
        build(rewriting.source, asked, after=stop)
    except _Reached as reached:
        data = {"model": args.file, "stage": args.after, "operators": reached.operators, "ir": reached.text}
        output.show(args, data, reached.text.rstrip())
        return 0
    raise AssertionError(f"the pipeline ended without the stage {args.after!r}")
