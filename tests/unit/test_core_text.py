"""Amounts and names in messages."""

import pytest

from dovetail.core.text import counted, did_you_mean, first_line, size_text


@pytest.mark.parametrize("count, text", [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (-(5 << 20), "-5 MiB"), (3 << 40, "3072 GiB")])
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


def test_unknown_names() -> None:
    assert did_you_mean("presicion", {"precision": 1, "device": 2}) == "; did you mean 'precision'?"
    assert did_you_mean("xx", ["xa", "other", "xb"]) == "; did you mean 'xb' or 'xa'?"
    assert did_you_mean("xx", ["other"]) == did_you_mean("xx", []) == ""


def test_numbers_of_things() -> None:
    assert [counted(n, "kernel step") for n in (0, 1, 2)] == ["0 kernel steps", "1 kernel step", "2 kernel steps"]


def test_first_lines_of_errors() -> None:
    assert [first_line(e) for e in (ValueError("\n one \n two"), ValueError(), OSError(" "))] == ["one ", "ValueError", "OSError"]
