"""Groups of arguments that several verbs share; each option has the same name in Python."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any

Shapes = dict[str, tuple[int | str, ...]]

_SPEC = re.compile(r"(?P<name>.+?):\[(?P<dims>[^\[\]]*)\]")
_DIM = re.compile(r"\d+(\.\.\d+(@\d+)?)?|[A-Za-z_]\w*")


def shape(text: str) -> tuple[str, tuple[int | str, ...]]:
    """Parse `name:[1..32,3,224,224]`: ints, ranges "1..32" (with an optimum: "1..32@8"), or symbol names."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected name:[1..32,3,224,224]")
    words = [w.strip() for w in match["dims"].split(",")] if match["dims"].strip() else []
    for word in words:
        if not _DIM.fullmatch(word):
            raise argparse.ArgumentTypeError(
                f"got {word!r} in {text!r}, expected a size, a range like 1..32, or a name"
            )
    return match["name"], tuple(int(w) if w.isdigit() else w for w in words)


def shapes(args: argparse.Namespace) -> Shapes | None:
    """The parsed `--shapes`; None if there were none."""
    given: Iterable[tuple[str, tuple[int | str, ...]]] = args.shapes or ()
    return dict(given) or None


def positive(text: str) -> int:
    """A positive int."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return int(text)


def add_shapes(parser: argparse.ArgumentParser) -> None:
    """`--shapes`."""
    parser.add_argument(
        "--shapes", type=shape, nargs="+", metavar="NAME:[…]", default=[],
        help="shapes of inputs, such as x:[1..32,3,224,224]; 1..32@8 names the optimum",
    )  # fmt: skip


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads` and `--affinity`."""
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of a run (default: all cores)")
    parser.add_argument("--affinity", metavar="CPUS", help="CPUs to pin worker threads to, such as 0-3,6 (default: none)")


def add_build(parser: argparse.ArgumentParser) -> None:
    """Options that change what is built."""
    group = parser.add_argument_group("build options")
    group.add_argument("--device", default="cpu", help="device kind (default: cpu)")
    group.add_argument("--target", help="instruction set, such as cpu:avx512 (default: this machine's)")
    group.add_argument("--precision", default="fp32", help="fp32 (default)")
    group.add_argument("--strict-fp32", action="store_true", help="forbid Winograd and other inexact transforms")
    group.add_argument(
        "--verify", choices=("full", "sample", "off"), default="sample",
        help="how much of the engine to check against the reference (default: sample)",
    )  # fmt: skip
    group.add_argument("--no-tune", action="store_true", help="take tactics by rule instead of measuring them")
    group.add_argument("--time-budget", type=float, default=10.0, metavar="S", help="seconds that measuring may take (default: 10)")
    add_shapes(group)  # type: ignore[arg-type]  # a group takes arguments as a parser does


def build_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `dovetail.build` from the parsed options."""
    return {
        "device": args.device,
        "target": args.target,
        "precision": args.precision,
        "shapes": shapes(args),
        "threads": getattr(args, "threads", None),
        "verify": args.verify,
        "strict_fp32": args.strict_fp32,
        "tune": not args.no_tune,
        "time_budget": args.time_budget,
    }


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--quiet`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object with stable keys")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")


def add_data(parser: argparse.ArgumentParser) -> None:
    """`--inputs` and what makes inputs where there are none."""
    parser.add_argument("--inputs", metavar="X.npz", help="inputs by name")
    parser.add_argument("--seed", type=int, default=0, help="seed of generated inputs (default: 0)")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """`--trust`."""
    parser.add_argument(
        "--trust", action="store_true", help="load the compiled kernels of the file even if their key is unknown"
    )
