"""The page as text: data that no name can end, sources by kernel, files whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dovetail.core.errors import UsageError
from dovetail.view.page import SCRIPTS, json_block, page, split_sources, write_text

DOCUMENT = {"title": "</title><script>alert(1)</script> @SCRIPT@", "schema": 1, "names": ["</script>", "<!--", "]]>", "\u2028", "\ud800"]}


def test_data_survive_and_end_no_element() -> None:
    block = json_block(DOCUMENT)
    assert "<" not in block and ">" not in block and "&" not in block and block.isascii()
    assert json.loads(block) == DOCUMENT


def test_numbers_that_json_does_not_have_are_text() -> None:
    assert json.loads(json_block({"a": float("nan"), "b": [float("-inf"), 1.5]})) == {"a": "nan", "b": ["-inf", 1.5]}


def test_page_holds_all_it_needs() -> None:
    text = page(DOCUMENT, {"k_1": "int x = 1 < 2;"})
    assert "<title>&lt;/title&gt;&lt;script&gt;" in text
    assert len(re.findall(r"<script\b", text)) == 3 and text.count("</script>") == 3
    assert not re.search(r"""\b(src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", text), "nothing is asked for"
    assert "default-src &#x27;none&#x27;" in text and "unsafe-inline" not in text
    for name in SCRIPTS:
        assert (Path(__file__).parents[2] / "src/dovetail/view/assets" / name).is_file()


def test_sources_are_cut_by_kernel() -> None:
    text = "// head\nvoid k_aa(int x) {\n  k();\n}\n\nvoid k_bb(int x) {\n  use(k_aa);\n}\n"
    found = split_sources(text, ["k_aa", "k_bb", "k_cc"])
    assert found == {"k_aa": "void k_aa(int x) {\n  k();\n}", "k_bb": "void k_bb(int x) {\n  use(k_aa);\n}"}
    assert split_sources("", []) == split_sources("int x;", ["k_aa"]) == {}  # all steps on the host


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "r.html", "päge \ud800")
    assert (tmp_path / "r.html").read_bytes() == "päge ?".encode()
    with pytest.raises(UsageError, match="cannot be written"):
        write_text(tmp_path / "no" / "r.html", "x")
    (tmp_path / "dir.html").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "dir.html", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.html", "r.html"]
