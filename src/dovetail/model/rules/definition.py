"""`dovetail.rewrite`: rules of users' own, the table of rules, and where they come from."""

from __future__ import annotations

import hashlib
import inspect
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dovetail.core.errors import RuleError, UsageError
from dovetail.core.python_files import module_name, run_file
from dovetail.model.rules.terms import Pattern, trace

NONE, SHIPPED = "none", "shipped"

_lock = threading.RLock()
_rules: dict[str, Rule] = {}
_files: dict[Path, tuple[str, tuple[Rule, ...]]] = {}


@dataclass(eq=False)
class Rule:
    """A rewrite rule: patterns, and the function that makes what takes the place of a match.

    Attributes:
        name: unique among all rules.
        patterns: forms that it finds, each tried at every node.
        replacement: the user's function (op, inputs of the pattern by name, …).
        parameters: names that it asks for, besides `op`.
        variadic: the name of its *parameter, if it has one.
        place: "file:line" of the function.
        summary: first line of its docstring.
        shipped: it comes with this package.
        near: from how many matched nodes on a near miss is worth telling; what the replacement declines always is.
    """

    name: str
    patterns: tuple[Pattern, ...]
    replacement: Callable[..., Any]
    parameters: tuple[str, ...]
    variadic: str
    place: str
    summary: str
    shipped: bool = False
    near: int = 1
    defaults: frozenset[str] = field(default=frozenset())

    def __repr__(self) -> str:
        return f"<rewrite rule {self.name!r} of {self.place}>"


RuleSource = Rule | str | os.PathLike[str]


def rewrite(
    *patterns: Callable[..., Any], name: str = "", replace: bool = False
) -> Callable[[Callable[..., Any]], Rule]:
    """Replace what a pattern finds in ONNX graphs by what the decorated function makes.

        def pattern(op, x):
            return op.Mul(x, op.Sigmoid(x))

        @dovetail.rewrite(pattern)
        def swish(op, x):
            return op.call("my.domain::Swish", x)

    The function's parameters are `op` and, by name, inputs of the pattern, captured constants and attributes, named values, and
    `match`. It returns as many values as the pattern, or `match.decline("reason")`.

    Args:
        patterns: functions (op, inputs…) that write a form of the graph; several are alternatives.
        name: of the rule; default: the function's.
        replace: take the place of a rule of the same name.

    Raises:
        RuleError: a pattern has no root or an input that nothing leads to, the function asks for a name that no pattern has, or the
            name is taken.
    """

    def decorate(function: Callable[..., Any]) -> Rule:
        made = define(patterns, function, name)
        register(made, replace=replace)
        return made

    return decorate


def define(
    patterns: Sequence[Callable[..., Any]], function: Callable[..., Any], name: str = "", *, shipped: bool = False, near: int = 1
) -> Rule:
    """A rule that is not registered.

    Raises:
        RuleError: as `rewrite`.
    """
    if not callable(function):
        raise RuleError(f"rewrite: got {function!r} to decorate, expected a function (op, …)")
    title = name or getattr(function, "__name__", "")
    place = place_of(function)
    if not title or title in (NONE, SHIPPED) or title.endswith(".py"):
        raise RuleError(f"rule {title!r} ({place}): got a name that cannot be asked for, expected another; pass name=…")
    if not patterns:
        raise RuleError(f"rule {title!r} ({place}): got no pattern, expected @dovetail.rewrite(pattern)")
    traced = []
    for pattern in patterns:
        if not callable(pattern):
            raise RuleError(f"rule {title!r} ({place}): got the pattern {pattern!r}, expected a function (op, …)")
        try:
            traced.append(trace(pattern))
        except RuleError as error:
            raise RuleError(f"rule {title!r} ({place_of(pattern)}): {error}") from None
        except Exception as error:
            raise RuleError(
                f"rule {title!r} ({failed_at(error, pattern)}): its pattern failed ({type(error).__name__}: {error}); correct it"
            ) from error
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise RuleError(f"rule {title!r} ({place}): got a replacement without parameters, expected (op, …)")
    known = set.union({"match"}, *(p.names for p in traced))
    outputs = {len(p.outputs) for p in traced}
    if len(outputs) > 1:
        raise RuleError(f"rule {title!r} ({place}): got patterns of {sorted(outputs)} outputs, expected the same number of each")
    variadic = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), "")
    for parameter in parameters[1:]:
        if parameter.name not in known:
            raise RuleError(
                f"rule {title!r} ({place}): got the parameter {parameter.name!r}, expected names of the pattern: {', '.join(sorted(known))}"
            )
    return Rule(
        title, tuple(traced), function, tuple(p.name for p in parameters[1:]), variadic, place,
        (inspect.getdoc(function) or "").partition("\n")[0], shipped, near,
        frozenset(p.name for p in parameters[1:] if p.default is not p.empty),
    )  # fmt: skip


def register(made: Rule, *, replace: bool = False) -> None:
    """Add a rule to the table.

    Raises:
        RuleError: there is one of that name, and `replace` is not asked for.
    """
    with _lock:
        there = _rules.get(made.name) or next((r for r in shipped_rules() if r.name == made.name), None)
        if there is not None and not replace:
            raise RuleError(
                f"rule {made.name!r} ({made.place}): got a second one, expected one of each name ({there.place} has it); "
                "pass another name=…, or replace=True"
            )
        _rules[made.name] = made


def unregister(name: str) -> bool:
    """Take a rule out of the table; whether it was there."""
    with _lock:
        return _rules.pop(name, None) is not None


def registered() -> tuple[Rule, ...]:
    """The rules that users registered, in that order."""
    return tuple(_rules.values())


def shipped_rules() -> tuple[Rule, ...]:
    """The rules of this package."""
    from dovetail.model.rules import shipped  # its modules use this one

    return shipped.RULES


def select(sources: Iterable[RuleSource] | RuleSource | None = None) -> tuple[Rule, ...]:
    """The rules that are meant.

    Args:
        sources: None for all that are registered and all of this package. Files (`FILE.py`) and rules come on top of those. A name
            leaves out all that is not named or given; "shipped" names those of this package, "none" nothing.

    Raises:
        RuleError: a file that cannot be run, or registers nothing.
        UsageError: an unknown name.
    """
    given = [] if sources is None else [sources] if isinstance(sources, Rule | str | os.PathLike) else list(sources)
    if sources is not None and not given:
        given = [NONE]
    own: dict[str, Rule] = {}
    named: dict[str, Rule] = {}
    only = False
    for source in given:
        if isinstance(source, Rule):
            own[source.name] = source
        elif isinstance(source, str) and not source.endswith(".py") and os.sep not in source:
            only = True
            found = shipped_rules() if source == SHIPPED else () if source == NONE else _by_name(source)
            named.update({r.name: r for r in found})
        elif isinstance(source, str | os.PathLike):
            own.update({r.name: r for r in load_file(source)})
        else:
            raise UsageError(f"rules: got {source!r}, expected FILE.py, a rule, or a name")
    rest = named if only else {r.name: r for r in (*registered(), *shipped_rules())}
    return tuple((own | {n: r for n, r in rest.items() if n not in own}).values())


def _by_name(name: str) -> tuple[Rule, ...]:
    known = {r.name: r for r in (*shipped_rules(), *registered())}
    if name not in known:
        raise UsageError(f"rules: got {name!r}, expected FILE.py, {NONE!r}, {SHIPPED!r}, or one of {', '.join(sorted(known))}")
    return (known[name],)


def load_file(path: str | os.PathLike[str]) -> tuple[Rule, ...]:
    """Run a Python file and return the rules that it registers; the same contents are run once per process.

    They are for whoever asked for the file: the table of registered rules is as before, so that other builds do not get them.

    Raises:
        RuleError: it cannot be read, running it failed, or it registers no rule.
    """
    file = Path(path).resolve()
    try:
        text = file.read_bytes()
    except OSError as error:
        raise RuleError(f"rules: got {os.fspath(path)!r}, which cannot be read ({error.strerror}), expected a Python file") from error
    digest = hashlib.sha256(text).hexdigest()
    with _lock:
        known = _files.get(file)
        if known is not None and known[0] == digest:
            return known[1]
        before = dict(_rules)
        try:
            run_file(file, module_name("rules", file, digest))
            made = tuple(r for n, r in _rules.items() if before.get(n) is not r)
        except Exception as error:
            if isinstance(error, RuleError):
                raise
            line = next((f.lineno for f in reversed(_frames(error)) if f.filename == str(file)), None)
            raise RuleError(
                f"rules: {os.fspath(path)}{f':{line}' if line else ''} failed ({type(error).__name__}: {error}); correct the file"
            ) from error
        finally:
            _rules.clear()
            _rules.update(before)
        if made:
            _files[file] = digest, made
    if not made:
        raise RuleError(f"rules: {os.fspath(path)} registers no rule, expected functions under @dovetail.rewrite(pattern)")
    return made


def place_of(function: Callable[..., Any]) -> str:
    """Where a function is written: "file.py:12"."""
    code = getattr(function, "__code__", None)
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code is not None else repr(function)


def failed_at(error: BaseException, function: Callable[..., Any]) -> str:
    """Where in a function's file an exception was raised: "file.py:14"."""
    code = getattr(function, "__code__", None)
    frames = [f for f in _frames(error) if code is not None and f.filename == code.co_filename]
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else place_of(function)


def _frames(error: BaseException) -> list[Any]:
    return list(traceback.extract_tb(error.__traceback__))
