"""Groups of arguments that several verbs share; each option has the same name in Python."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any

from dovetail.cli.data import load_arrays
from dovetail.cli.sizes import byte_count

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


def io_format(text: str) -> tuple[str, str]:
    """Parse `name=f16:channels_last`; names may hold "=" and ":"."""
    name, equals, found = text.rpartition("=")
    if not name or not equals or not found:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=FORMAT, such as x=f16:channels_last")
    return name, found


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


def add_device(parser: argparse.ArgumentParser, text: str = "where the engine runs: cpu, cuda or cuda:N") -> None:
    """`--device`; None where it is not given."""
    parser.add_argument("--device", help=text)


def add_build(parser: argparse.ArgumentParser) -> None:
    """Options that change what is built."""
    group = parser.add_argument_group("build options")
    add_device(group, "cpu (default for models), cuda or cuda:N")  # type: ignore[arg-type]  # a group takes arguments as a parser does
    group.add_argument("--target", help="instruction set or GPU, such as cpu:avx512 or sm_90 (default: this machine's)")
    arithmetic = group.add_mutually_exclusive_group()
    arithmetic.add_argument("--precision", default="fp32", metavar="P", help="fp32 (default), tf32, fp16 or bf16")
    for name in ("fp32", "tf32", "fp16", "bf16"):
        arithmetic.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=f"short for --precision {name}")
    group.add_argument(
        "--allow-fallback", action="store_true", help="build although less than half of the arithmetic gets the precision asked for"
    )
    group.add_argument(
        "--io-format", type=io_format, nargs="+", action="extend", metavar="NAME=F", default=[],
        help="element type and order of an input or output: x=f16, x=channels_last, x=f16:channels_last",
    )  # fmt: skip
    group.add_argument(
        "--branches", type=positive, metavar="N",
        help="chains of kernels that may run beside each other on a GPU: 1 for none, up to 8 (default: what is fastest)",
    )  # fmt: skip
    group.add_argument(
        "--workspace", type=byte_count, metavar="SIZE",
        help="what a fusion may take beside its operands, such as 64M, where there is a way that takes no more (default: any)",
    )  # fmt: skip
    group.add_argument(
        "--samples", nargs="+", action="extend", metavar="X.npz", default=[],
        help="inputs like those that the engine will get, to verify it with, and to find what is too large for fp16",
    )  # fmt: skip
    group.add_argument(
        "--fp32-nodes", nargs="+", action="extend", metavar="NODE", default=[],
        help="nodes that an fp16 or bf16 build keeps in fp32, by name or pattern, such as 'head/*'",
    )  # fmt: skip
    group.add_argument(
        "--tolerance", type=float, metavar="T",
        help="relative L2 distance to the model in fp32 that verification lets outputs have (default: the precision's)",
    )  # fmt: skip
    add_rules(group)  # type: ignore[arg-type]  # likewise
    group.add_argument("--strict-fp32", action="store_true", help="forbid Winograd and other inexact transforms")
    group.add_argument("--no-tune", action="store_true", help="take tactics by rule instead of measuring them")
    add_tuning(group)  # type: ignore[arg-type]  # likewise
    add_shapes(group)  # type: ignore[arg-type]  # likewise


def add_rules(group: argparse.ArgumentParser) -> None:
    """`--rules`; None where it is not given."""
    group.add_argument(
        "--rules", action="append", metavar="FILE.py",
        help="rewrite rules (@dovetail.rewrite) of a Python file, besides those of this package; a rule's name: that one alone; none: no "
        "rules",
    )  # fmt: skip


def add_tuning(group: argparse.ArgumentParser) -> None:
    """How much to measure, and how much to check."""
    group.add_argument(
        "--verify", choices=("full", "sample", "off"), default="sample",
        help="how much of the engine to check against the reference (default: sample)",
    )  # fmt: skip
    group.add_argument(
        "--time-budget", type=float, metavar="S",
        help="seconds that compiling and measuring candidates may take (default: 10 for a CPU, 60 for a GPU)",
    )  # fmt: skip
    for level in range(6):
        group.add_argument(
            f"-O{level}", dest="optimization_level", action="store_const", const=level, default=3,
            help="how many candidates compete on a GPU: -O0 none, -O3 the default, -O5 all" if level == 0 else argparse.SUPPRESS,
        )  # fmt: skip


def _for_gpu(args: argparse.Namespace) -> bool:
    return (args.device or "").startswith("cuda") or any(word in (args.target or "") for word in ("cuda", "sm_"))


def build_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `dovetail.build` from the parsed options."""
    return {
        "device": args.device or "cpu",
        "target": args.target,
        "precision": args.precision,
        "shapes": shapes(args),
        "threads": getattr(args, "threads", None),
        "verify": args.verify,
        "strict_fp32": args.strict_fp32,
        "tune": not args.no_tune,
        "time_budget": 10.0 if args.time_budget is None and not _for_gpu(args) else args.time_budget,
        "optimization_level": args.optimization_level,
        "allow_fallback": args.allow_fallback,
        "io_formats": dict(args.io_format) or None,
        "samples": [load_arrays(path) for path in args.samples] or None,
        "fp32_nodes": tuple(args.fp32_nodes),
        "tolerance": args.tolerance,
        "branches": args.branches,
        "workspace": args.workspace,
        "rules": args.rules,
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
