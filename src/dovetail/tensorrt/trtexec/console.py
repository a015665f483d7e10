"""The lines that trtexec prints, and the logger of its engines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

from dovetail.core.env import env
from dovetail.tensorrt.enums import Severity
from dovetail.tensorrt.logger import ILogger

_LETTERS = {
    Severity.INTERNAL_ERROR: "F", Severity.ERROR: "E", Severity.WARNING: "W", Severity.INFO: "I", Severity.VERBOSE: "V",
}  # fmt: skip


def number(value: float) -> str:
    """A number as a C++ stream prints it: six significant digits."""
    return f"{value:g}"


def enabled(on: bool) -> str:
    """Enabled or Disabled."""
    return "Enabled" if on else "Disabled"


class Console(ILogger):
    """Prints `[MM/DD/YYYY-HH:MM:SS] [I] text`; of the library's messages, with `[TRT]` before the text."""

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose

    def say(self, severity: Severity, text: str) -> None:
        """Print one line for each of the text's, if the severity is printed."""
        if severity is Severity.VERBOSE and not self.verbose:
            return
        for line in text.split("\n"):
            sys.stdout.write(f"[{datetime.now():%m/%d/%Y-%H:%M:%S}] [{_LETTERS[severity]}] {line}\n")
        sys.stdout.flush()

    def info(self, text: str) -> None:
        """Print what happens."""
        self.say(Severity.INFO, text)

    def warning(self, text: str) -> None:
        """Print a warning."""
        self.say(Severity.WARNING, text)

    def error(self, text: str) -> None:
        """Print an error."""
        self.say(Severity.ERROR, text)

    def detail(self, text: str) -> None:
        """Print what `--verbose` asks for."""
        self.say(Severity.VERBOSE, text)

    def lines(self, lines: Iterable[tuple[Severity, str]]) -> None:
        """Print lines that have their severities."""
        for severity, text in lines:
            self.say(severity, text)

    def log(self, severity: Severity, msg: str) -> None:
        """Print a message of the library."""
        self.say(severity, f"[TRT] {msg}")


def version() -> tuple[int, ...]:
    """The reported version of TensorRT: major, minor, patch, and the build where there is one."""
    return tuple(int(part) for part in env().tensorrt_version.split("."))


def label(state: str, arguments: Sequence[str]) -> str:
    """The first and the last line of a run, such as `&&&& PASSED TensorRT.trtexec [TensorRT v101601] [b11] # trtexec …`."""
    major, minor, patch, *build = version()
    step = 100 if major >= 10 else 10
    shown = f"[TensorRT v{(major * step + minor) * 100 + patch}]" + (f" [b{build[0]}]" if build and major >= 10 else "")
    return f"&&&& {state} TensorRT.trtexec {shown} # {' '.join(['trtexec', *arguments])}"
