"""Where in the user's source an export failed: from tracebacks, from nodes of torch.export, from nodes of a trace."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_RANGE = re.compile(r"^(?P<file>.+?)\((?P<line>\d+)\): (?P<function>\S+)$", re.MULTILINE)
_LIBRARIES = ("torch", "onnxscript", "onnx_ir", "dovetail")


def causes(error: BaseException) -> list[BaseException]:
    """An exception and what it came from, the outermost first."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return found


def frames(chain: Sequence[BaseException]) -> Iterator[FrameType]:
    """All frames of the tracebacks of exceptions, from the outermost inwards."""
    for error in chain:
        at = error.__traceback__
        while at is not None:
            yield at.tb_frame
            at = at.tb_next


@functools.cache
def _library_folders() -> tuple[str, ...]:
    found = []
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        found += [str(Path(spec.origin).parent) + os.sep] if spec is not None and spec.origin else []
    return tuple(found)


def is_users(file: str) -> bool:
    """Whether a file is neither Python's, nor PyTorch's, nor of an exporter, nor ours."""
    standard = file.startswith(sysconfig.get_paths()["stdlib"] + os.sep) and "site-packages" not in file
    return not file.startswith("<") and not standard and not file.startswith(_library_folders())


def place(file: str, line: int, function: str) -> str:
    """"model.py:12, in forward: y = torch.asinh(x)"; files are told from the working folder, where they are in it."""
    code = linecache.getline(file, line).strip()
    shown = Path(file)
    if shown.is_relative_to(Path.cwd()):
        shown = shown.relative_to(Path.cwd())
    return f"{shown}:{line}, in {function}" + (f": {code}" if code else "")


def raised_at(chain: Sequence[BaseException]) -> str:
    """The innermost line of the user's that an exception came from, as called by PyTorch; "" where none is known."""
    for error in reversed(chain):
        found, at, inside = "", error.__traceback__, False
        while at is not None:
            code = at.tb_frame.f_code
            if not is_users(code.co_filename):
                inside = True  # what comes before is the call of the export
            elif inside:
                found = place(code.co_filename, at.tb_lineno, code.co_name)
            at = at.tb_next
        if found:
            return found
    for error in reversed(chain):  # under torch.compile's tracer frames are not the user's, but the message has them
        if found := innermost(str(error)):
            return found
    return ""


def innermost(stack: str) -> str:
    """The user's innermost line of a stack in text, as Python prints it; "" where there is none."""
    found = [m for m in _FRAME.finditer(stack) if is_users(m["file"])]
    return place(found[-1]["file"], int(found[-1]["line"]), found[-1]["function"]) if found else ""


def of_node(node: Any) -> str:
    """Where a node of torch.export comes from: the line of a `forward`, and the module it belongs to."""
    stack = node.meta.get("stack_trace") or ""
    line = innermost(stack)
    if not line and (all_frames := list(_FRAME.finditer(stack))):  # a module of PyTorch's own, called from nowhere else
        last = all_frames[-1]
        line = place(last["file"], int(last["line"]), last["function"])
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return _joined(line, modules[-1] if modules else "")


def of_trace_node(node: Any) -> str:
    """Where a node of a trace comes from."""
    found = [m for m in _RANGE.finditer(node.sourceRange()) if is_users(m["file"])]
    line = place(found[0]["file"], int(found[0]["line"]), found[0]["function"]) if found else ""
    scopes = [part.rpartition("::")[2] for part in node.scopeName().split("/")]
    return _joined(line, ".".join(s for s in scopes if s and s != "dovetail_inner"))


def _joined(line: str, module: str) -> str:
    return f"{line} (module {module})" if line and module else line or (f"module {module}" if module else "")
