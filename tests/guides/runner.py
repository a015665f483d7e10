"""Runs a guide as a reader would: its blocks in order, in an empty folder.

    ```python file=make_model.py     a file, written as it stands
    ```python                        typed into one Python session
    ```sh                            typed into a shell, line by line; `# exit code 1` behind a line says that it fails on purpose
    ```text                          what the last block printed: every line must be in it, `…` stands for anything

`dovetail`, `python` and `trtexec` are those of the interpreter that runs the tests.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[2] / "src"
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"#.*exit code (\d+)")


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    language: str
    file: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        options = dict(part.split("=", 1) for part in match[2].split() if "=" in part)
        found.append(Block(match[1], options.get("file", ""), match[3], text.count("\n", 0, match.start()) + 1))
    return found


def run(page: Path, folder: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run all blocks of a page in a folder; how many were run.

    Raises:
        AssertionError: a line of a shell has another exit code than the page says, or the page shows other output.
    """
    session: dict[str, object] = {"__name__": "__main__"}
    printed, count = "", 0
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.file:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            out = io.StringIO()
            with contextlib.chdir(folder), _importable(folder), contextlib.redirect_stdout(out):
                exec(compile("\n" * block.line + block.text, str(page), "exec"), session)
            printed = out.getvalue()
        elif block.language == "sh":
            printed = "".join(shell(line, folder, where, environment or {}) for line in lines(block.text))
        elif block.language == "text":
            compare(block.text, printed, where)
            continue
        else:
            raise AssertionError(f"{where}: blocks are python, sh or text, not {block.language}")
        count += 1
    return count


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of the folder can be imported, as in a session that was started there, and are forgotten afterwards."""
    names = {path.stem for path in folder.glob("*.py")}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)


def lines(text: str) -> list[str]:
    """Commands of a shell block; a backslash continues a line."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.lstrip().startswith("#")]


def shell(line: str, folder: Path, where: str, environment: Mapping[str, str]) -> str:
    """What a command prints."""
    expected = int(match[1]) if (match := _EXIT.search(line)) else 0
    words = shlex.split(line, comments=True)
    if words[0] in ("dovetail", "trtexec"):
        words = [sys.executable, "-m", "dovetail", *(["trtexec"] if words[0] == "trtexec" else []), *words[1:]]
    elif words[0] == "python":
        words[0] = sys.executable
    elif words[0] == "pip":
        return ""  # the tests' environment has what the page installs
    path = os.pathsep.join(p for p in (str(_SOURCE), os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": path, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == expected, f"{where}: {line}\nexit code {done.returncode}, the page says {expected}\n{output}"
    return output


def compare(shown: str, printed: str, where: str) -> None:
    """Hold what a page shows against what was printed, line by line, in order."""
    at = 0
    for line in shown.splitlines():
        if not line.strip() or line.strip() == "…":
            continue
        pattern = r"\s+".join(re.escape(word).replace("…", r".*?") for word in line.split())
        match = re.compile(pattern).search(printed, at)
        assert match is not None, f"{where}: shows {line.strip()!r}, but what follows in the output is\n{printed[at:]}"
        at = match.end()
