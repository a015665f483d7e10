"""The dispatcher: help, exit codes, JSON errors, lazy verbs, shared options."""

import argparse
import importlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dovetail import cli
from dovetail.cli import VERBS, options, output
from dovetail.cli.progress import progress
from dovetail.core.errors import ModelError, UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_an_entry_in_the_docs(verb: str, call: Callable) -> None:
    module = importlib.import_module(f"dovetail.cli.{verb}")
    assert module.__doc__
    outcome = call(verb, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out, "every verb can print JSON"
    assert f"dovetail {verb}" in (ROOT / "docs" / "cli.md").read_text()


def test_help_lists_every_verb_with_its_summary(call: Callable) -> None:
    outcome = call("--help")
    assert outcome.code == 0
    assert all(verb in outcome.out for verb in VERBS)
    assert call().code == 0


def test_version(call: Callable) -> None:
    assert re.fullmatch(r"dovetail \d+\.\d+\.\d+\n", call("--version").out)


@pytest.mark.parametrize("arguments", [["frobnicate"], ["check"], ["check", "m.onnx", "--nonsense"], ["cache", "burn"]])
def test_bad_usage_is_2(arguments: list[str], call: Callable) -> None:
    outcome = call(*arguments)
    assert outcome.code == 2
    assert "usage: dovetail" in outcome.err


def test_the_package_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "dovetail", "--version"], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert done.stdout.startswith("dovetail ")


def test_only_the_chosen_verb_is_imported() -> None:
    code = "import sys; from dovetail.cli import main; main(['cache', 'show', '--json']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    loaded = set(done.stdout.split("}")[-1].split())
    assert "dovetail.cli.cache" in loaded
    assert not loaded & {"dovetail.cli.build", "dovetail.cli.bench", "dovetail.api", "onnx", "rich"}


def _fake(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("dovetail.cli.cache"), "run", run)


@pytest.mark.parametrize(
    "error, code, message",
    [
        (ModelError("m.onnx: got garbage"), 1, "error: m.onnx: got garbage\n"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (UsageError("--x: got 1"), 2, "error: --x: got 1\n"),
        (KeyboardInterrupt(), 1, "interrupted"),
        (ZeroDivisionError("oops"), 3, "internal error"),
    ],
)
def test_exit_codes_of_failures(
    error: BaseException, code: int, message: str, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fake(monkeypatch, error)
    outcome = call("cache", "show")
    assert outcome.code == code
    assert message in outcome.err
    assert ("Traceback" in outcome.err) == (code == 3)


def test_failures_are_json_too(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, ModelError("m.onnx: got garbage"))
    outcome = call("cache", "show", "--json")
    assert outcome.json == {"error": {"type": "ModelError", "message": "m.onnx: got garbage"}}


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m dovetail.cli --help | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, cwd=ROOT / "src", check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x:[1..32,3,224,224]", ("x", ("1..32", 3, 224, 224))),
        ("x:[1..32@8, N]", ("x", ("1..32@8", "N"))),
        ("model/input:0:[4]", ("model/input:0", (4,))),
        ("scalar:[]", ("scalar", ())),
    ],
)
def test_shapes(text: str, expected: tuple) -> None:
    assert options.shape(text) == expected


@pytest.mark.parametrize("text", ["x", "x:1,3", "x:[1", "x:[1..]", "x:[-1]", ":[1]", "x:[1,,2]", "x:[a b]"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        options.shape(text)


def test_tables_align() -> None:
    text = output.table(["name", "count"], [["a", 1], ["long name", 200]])
    assert text.splitlines() == ["| name      | count |", "|-----------|------:|", "| a         |     1 |", "| long name |   200 |"]


def test_bars_start_again_with_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress as Bars

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    reset: list[int] = []
    monkeypatch.setattr(Bars, "reset", lambda self, task, **_: reset.append(task))
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    with progress(argparse.Namespace(quiet=False)) as update:
        assert update is not None
        for stage, done in (("compile", 0), ("compile", 9), ("tune", 0), ("compile", 9), ("compile", 2), ("compile", 3)):
            update(stage, done, 10)
    assert reset == [0], "what was fast then says nothing of what comes now"
    with progress(argparse.Namespace(quiet=True)) as update:
        assert update is None


def test_verb_modules_match_the_table() -> None:
    assert all(hasattr(importlib.import_module(f"{cli.__name__}.{v}"), name) for v in VERBS for name in ("add_arguments", "run"))
