"""Find out why an engine is wrong: the rewrite or kernel to blame, or the smallest part of the model that still fails.

    dovetail debug bisect model.onnx --inputs x.npz
    dovetail debug reduce model.onnx -o small.onnx --inputs x.npz
    dovetail debug reduce model.onnx -o small.onnx --command "python check.py {model} {inputs}"

`bisect` builds engines that make fewer and fewer of the compiler's rewrites and fusions, until the first one is found that
spoils the outputs. `reduce` writes the smallest part that fails like the whole, and beside it the inputs on which it does
(small.npz): what to put into a bug report. A part fails if its engine cannot be built or run, or is off; with --command,
if that ends with another code than 0.
Tactics are taken by rule, which is quick; --tune measures them as `dovetail build` does.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dovetail.cli import data, options, output
from dovetail.core.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail debug`."""
    parser.add_argument("what", choices=["bisect", "reduce"], help="what to find")
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("-o", "--output", metavar="SMALL.onnx", help="reduce: the file to write (default: MODEL.reduced.onnx)")
    parser.add_argument("--command", metavar="CMD", help="reduce: says whether a part fails; {model} and {inputs} stand for its files")
    parser.add_argument("--tune", action="store_true", help="measure tactics, instead of taking them by rule")
    options.add_build(parser)
    parser.add_argument("--inputs", metavar="X.npz", help="inputs by name on which the engine is wrong (default: seeded ones)")
    options.add_threads(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Search, say what each step shows, and print what was found."""
    settings = {k: v for k, v in options.build_options(args).items() if k not in ("verify", "tolerance")}
    if not args.tune:
        settings["tune"] = False

    def tried(text: str) -> None:
        if not args.quiet and not args.json:
            print(text, file=sys.stderr)

    if args.what == "bisect":
        if args.output or args.command:
            raise UsageError("debug bisect: got --output or --command, which are of debug reduce; leave them out")
        return _bisect(args, settings, tried)
    return _reduce(args, settings, tried)


def _feeds(args: argparse.Namespace) -> Any:
    return data.load_arrays(args.inputs) if args.inputs else None


def _bisect(args: argparse.Namespace, settings: dict[str, Any], tried: Callable[[str], None]) -> int:
    from dovetail import api

    found = api.bisect(args.model, _feeds(args), tolerance=args.tolerance, tried=tried, **settings)
    output.show(args, found.json(), str(found))
    return 0 if found.ok else 1


def _reduce(args: argparse.Namespace, settings: dict[str, Any], tried: Callable[[str], None]) -> int:
    from dovetail import api

    fails = _by_command(args.command) if args.command else None
    found = api.reduce(args.model, _feeds(args), fails=fails, tolerance=args.tolerance, tried=tried, **settings)
    target = Path(args.output) if args.output else Path(args.model).with_suffix(".reduced.onnx")
    arrays = target.with_suffix(".npz")
    found.model.save(target)
    data.save_arrays(arrays, found.inputs)
    again = f"dovetail debug bisect {target} --inputs {arrays}"
    output.show(
        args, {"output": str(target), "arrays": str(arrays), **found.json()}, f"{found}\n{target} and {arrays}: try {again}"
    )  # fmt: skip
    return 0


def _by_command(command: str) -> Callable[[Any, Any], str | None]:
    words = shlex.split(command)
    if not any("{model}" in word for word in words):
        raise UsageError(f"--command: got {command!r}, expected {{model}} in it, which stands for the file to try")

    def fails(model: Any, feeds: Any) -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            names = {"model": f"{folder}/model.onnx", "inputs": f"{folder}/inputs.npz"}
            model.save(names["model"])
            data.save_arrays(names["inputs"], feeds)
            filled = [word.replace("{model}", names["model"]).replace("{inputs}", names["inputs"]) for word in words]
            try:
                done = subprocess.run(filled, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            except OSError as error:
                raise UsageError(f"--command: {words[0]!r} cannot be started, {error.strerror}; give a program that is there") from error
        return "the command fails" if done.returncode else None

    return fails
