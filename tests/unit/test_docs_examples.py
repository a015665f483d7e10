"""The README's examples run as they stand, and the pages keep what they promise."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from dovetail.cli import VERBS, main
from dovetail.core.env import Env
from tests.example_files import write_example

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md")])


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name: model.onnx and x.npz."""
    write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples_of_the_readme(folder: Path) -> None:
    examples = blocks("README.md", "python")
    assert examples
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)
    assert (folder / "model.plan").is_file()


@pytest.mark.parametrize("page", [p.name for p in sorted(ROOT.glob("docs/*.md")) if "\n```python\n" in p.read_text()])
def test_python_examples_of_the_other_pages(page: str, folder: Path) -> None:
    namespace: dict[str, object] = {}
    for example in blocks(f"docs/{page}", "python"):
        exec(compile(example, page, "exec"), namespace)


def test_command_line_examples_of_the_readme(folder: Path) -> None:
    lines = [line.split("#")[0].strip() for block in blocks("README.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line]
    assert {c[0] for c in commands} >= set(VERBS) - {"trust", "export"}  # that one needs torch: tests/torch
    for command in commands:
        extra = ["--rounds", "2", "--round-s", "0"] if command[0] == "bench" else []
        assert main([*command, *extra]) == 0, command


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith("http"):
                yield page, target


@pytest.mark.parametrize("page, target", [pytest.param(p, t, id=f"{p.name}-{t}") for p, t in links()])
def test_links_lead_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists()


def test_every_variable_is_documented() -> None:
    table = (ROOT / "docs" / "environment.md").read_text()
    documented = dict(re.findall(r"^\| `(DOVETAIL_\w+)` \| `(\w+)`", table, re.MULTILINE))
    assert sorted(documented.values()) == sorted(f.name for f in fields(Env))
    source = (ROOT / "src" / "dovetail" / "core" / "env.py").read_text()
    assert set(documented) == set(re.findall(r"DOVETAIL_[A-Z_]*[A-Z]", source)) - {"DOVETAIL_"}


def test_flags_are_read_in_one_place() -> None:
    readers = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if "DOVETAIL_" in path.read_text() and re.search(r"os\.(environ|getenv)", path.read_text())
    ]
    assert readers == ["src/dovetail/core/env.py"]


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = {a or b for a, b in re.findall(r"`make ([a-z]+)`|^    make ([a-z]+)", page.read_text(), re.MULTILINE)}
        assert named <= targets, page.name


def test_glossary_is_sorted() -> None:
    words = re.findall(r"^\| ([a-zA-Z][\w ]*) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)[1:]
    assert words == sorted(words, key=str.lower)


@pytest.mark.parametrize("name", ["torchvision_squeezenet1_1", "dynamic_decoder_kv_cache"])
def test_zoo_is_deterministic_and_writes_files(name: str, tmp_path: Path) -> None:
    from models import zoo

    assert zoo.main([name, "-o", str(tmp_path / "m.onnx"), "--inputs", str(tmp_path / "x.npz")]) == 0
    first = (tmp_path / "m.onnx").read_bytes()
    assert zoo.load(name).SerializeToString() == first
    with np.load(tmp_path / "x.npz") as stored:
        feeds = zoo.inputs(zoo.load(name))
        assert set(stored.files) == set(feeds)
        assert all(np.array_equal(stored[k], feeds[k]) for k in feeds)


def test_zoo_lists_its_models() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "models.zoo", "--list"], cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert len(done.stdout.split()) == 37
