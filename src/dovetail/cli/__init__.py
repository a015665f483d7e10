"""The command line: `dovetail VERB …`. One module per verb; only the chosen one is imported.

Exit codes: 0 ok; 1 a user error, or a comparison that failed; 2 bad usage; 3 an internal error, with its trace.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence

from dovetail.core.errors import Error, ExportError, UsageError

OK, FAILED, USAGE, INTERNAL = 0, 1, 2, 3

VERBS = {
    "export": "write a model of PyTorch or TensorFlow as ONNX, compared with the original",
    "build": "compile an ONNX model into an engine file",
    "run": "run an engine or a model on inputs from a file",
    "bench": "measure latency, interleaved with other runtimes",
    "profile": "show where the time of a run goes, step by step",
    "compare": "compare the outputs of two models or engines, layer by layer if asked",
    "diff": "say what differs between two models or engines: graph, weights, outputs, speed",
    "debug": "find the rewrite or kernel that makes an engine wrong, or the smallest part of a model that fails",
    "tune": "choose an engine's kernels again by measuring on this machine",
    "refit": "write an engine file with other weights",
    "verify": "check an engine against its reference again",
    "inspect": "print a model, the IR after a pass, a plan, or a kernel's source",
    "report": "write a page that shows an engine: graph, kernels and sources, roofline, memory, accuracy",
    "view": "open a model or an engine's fused graph in Netron",
    "explain": "say why each kernel was chosen, and why a fusion was not",
    "check": "list everything in a model that is not supported, without building",
    "simplify": "write a smaller ONNX model that computes the same",
    "edit": "change an ONNX model: cut, replace, insert, delete, rename, retype, convert, strip",
    "doctor": "show what this machine offers, and how to get what is missing",
    "cache": "show or prune the caches of compiled kernels and timings",
    "trust": "manage the keys whose compiled kernels may be loaded",
    "trtexec": "build, run and time an engine with the flags of TensorRT's tool of that name",
}
"""Verb and one-line summary; `dovetail.cli.VERB` has `add_arguments(parser)` and `run(args) -> int`."""

WITHOUT_PLUGINS = frozenset({"doctor", "cache", "trust", "trtexec"})
"""Verbs that take no `--plugins`: they touch no model, or read that option themselves."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (default: the process's), run the verb, and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((a for a in arguments if not a.startswith("-")), "")
    parser = _parser(verb)
    if not arguments:
        parser.print_help()
        return OK
    try:
        args = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return _guarded(args)


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dovetail",
        description="An open inference compiler and runtime: ONNX in, a verified, fast engine out.",
        epilog="exit codes: 0 ok, 1 user error or mismatch, 2 bad usage, 3 internal error",
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        if name != verb:
            verbs.add_parser(name, help=summary)
            continue
        module = importlib.import_module(f"dovetail.cli.{name}")
        sub = verbs.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        if name not in WITHOUT_PLUGINS:
            sub.add_argument(
                "--plugins", action="append", metavar="FILE.py", help="run a Python file, or import a module, that defines plugins"
            )
        sub.set_defaults(run=module.run)
    return parser


def _version() -> str:
    from dovetail import __version__

    return f"dovetail {__version__}"


def _guarded(args: argparse.Namespace) -> int:
    """Run a verb; the exit code says what kind of failure there was."""
    try:
        _writable(args)
        if getattr(args, "affinity", None):
            from dovetail.core.env import cpu_list
            from dovetail.device.cpu import set_affinity

            set_affinity(cpu_list(args.affinity))
        if getattr(args, "plugins", None):
            from dovetail.plugins import load

            load(args.plugins)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _fail(args, error, USAGE)
    except (Error, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader (head, less) has gone; what it did not read is not an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        return _fail(args, _file_error(error) if isinstance(error, OSError) else error, FAILED)
    except MemoryError as error:
        why = str(error) or "the allocation failed"
        return _fail(args, Error(f"memory: {why}; use smaller shapes (--shapes), or a machine with more of it"), FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    except Exception:
        traceback.print_exc()
        print("internal error: please report it with the trace above", file=sys.stderr)
        return INTERNAL


def _writable(args: argparse.Namespace) -> None:
    """Refuse results that cannot be written before any work is done for them.

    Raises:
        UsageError: a folder has the name of a file to write, or is in no folder that can be written.
    """
    for option in ("output", "trace", "plot", *(["outputs"] if args.verb == "run" else [])):
        path = getattr(args, option, None)
        if not isinstance(path, str):
            continue
        if os.path.isdir(path):
            raise UsageError(f"--{option}: got {path!r}, which is a folder, expected the name of a file to write")
        folder = os.path.dirname(os.path.abspath(path))
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise UsageError(f"--{option}: got {path!r}, expected a place to write to, which {folder} is not; choose another folder")


def _file_error(error: OSError) -> Error | OSError:
    """An error of the system about a file, with the file in front; that of a file being written names the file that it would become."""
    name = error.filename2 or error.filename
    if not isinstance(name, str):
        return error
    if name.endswith(".tmp"):  # what would have become the file, had it been written
        return Error(f"{os.path.dirname(name) or '.'}: no file can be written there, {error.strerror}; choose another folder")
    return Error(f"{name}: cannot be read or written, {error.strerror}; check the path")


def _fail(args: argparse.Namespace, error: Exception, code: int) -> int:
    if getattr(args, "json", False):
        failures = {"failures": error.json()["failures"]} if isinstance(error, ExportError) else {}
        print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)} | failures}, indent=2))
    print(f"error: {error}", file=sys.stderr)
    return code
