"""The command line in this process, as tests call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Outcome:
    """What a verb printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


def caller(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """What calls a verb with arguments of any kind."""
    from dovetail.cli import main

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
