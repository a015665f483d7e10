"""Hashes of functions by their source text: whether an engine's plugin is still the function that it was built with."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any

_PLAIN = (bool, int, float, str, bytes, type(None))


def digest_of(function: Callable[..., Any]) -> str:
    """A hash of a function's source text, of that of the functions of its module that it calls, and of the constants it reads.

    Decorators, white space at the ends of lines, and objects that are neither plain values nor functions do not count.
    """
    lines: list[str] = []
    _describe(function, lines, set())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _describe(function: Any, lines: list[str], seen: set[int]) -> None:
    if isinstance(function, functools.partial):
        lines.append(f"partial {_constant(function.args)} {_constant(tuple(sorted(function.keywords.items())))}")
        function = function.func
    if not hasattr(function, "__code__") and hasattr(type(function).__call__, "__code__"):
        function = type(function).__call__
    function = inspect.unwrap(getattr(function, "__func__", function))
    if id(function) in seen:
        return
    seen.add(id(function))
    lines.append(_text(function))
    if not inspect.isfunction(function):
        return
    lines.append(f"{_constant(function.__defaults__)} {_constant(tuple(sorted((function.__kwdefaults__ or {}).items())))}")
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # a cell that is still empty
        return
    for name, value in sorted({**found.globals, **found.nonlocals}.items()):
        # A plugin's function may call another plugin: its own key says which one.
        if inspect.isfunction(value) and value.__module__ == function.__module__:
            _describe(value, lines, seen)
        elif (text := _constant(value)) is not None:
            lines.append(f"{name} = {text}")


def _constant(value: Any) -> str | None:
    """A plain value as text, None for what is not plain."""
    if isinstance(value, tuple):
        parts = [_constant(item) for item in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    return repr(value) if type(value) in _PLAIN else None


def _text(function: Any) -> str:
    """The source text without decorators; the byte code where there is no text, and the name where there is neither."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(text).body[0]
        lines = text.splitlines()
        if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = lines[tree.lineno - 1 : tree.end_lineno]
        return "\n".join(line.rstrip() for line in lines)
    except (OSError, TypeError, SyntaxError, IndexError, tokenize.TokenError):
        code = getattr(function, "__code__", None)
        if code is None:
            return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        return f"{code.co_code.hex()} {code.co_names} {_constants(code)}"


def _constants(code: Any) -> str:
    """The constants of byte code as text without addresses."""
    return " ".join(c.co_code.hex() + _constants(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts)
