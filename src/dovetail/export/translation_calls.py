"""The call of a registered translation: the operator's arguments fitted to the function, its results checked."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.core.errors import Error, ExportError
from dovetail.export.onnx_calls import Operand, Ops, Writer
from dovetail.export.translations import Translation


@dataclass(frozen=True)
class Argument:
    """One argument of a call of PyTorch's operator: its name in the schema, its value, and whether that is the default."""

    name: str
    value: Any
    is_default: bool


def call(translation: Translation, writer: Writer, arguments: Sequence[Argument], results: int | None) -> tuple[Operand, ...]:
    """Run a translation.

    Args:
        translation: what to run.
        writer: takes what it writes.
        arguments: all arguments of the operator, in the order of its schema.
        results: how many results the operator has; None where their number is not fixed.

    Raises:
        ExportError: the function does not take these arguments, it fails, or what it returns are not that many operands.
    """
    where = str(translation)
    ops = Ops(writer, where)
    positional, named = _fitted(translation, arguments, where)
    try:
        returned = translation.function(ops, *positional, **named)
    except Error:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise ExportError(
            f"{where} failed: {type(error).__name__}: {error} ({at.filename}:{at.lineno}); the fault is in that function"
        ) from error
    values = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    if results is not None and len(values) != results:
        raise ExportError(f"{where}: it returned {len(values)} results, expected {results}, as {translation.op} has")
    return tuple(_result(ops, value, position, where) for position, value in enumerate(values))


def _result(ops: Ops, value: Any, position: int, where: str) -> Operand:
    if isinstance(value, Operand):
        return value
    if isinstance(value, bool | int | float | np.ndarray | np.generic):
        return ops.constant(value)
    raise ExportError(f"{where}: it returned {value!r} as result {position}, expected what op.… gives; return the result of an operator")


def _fitted(translation: Translation, arguments: Sequence[Argument], where: str) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position and by name, as the function's parameters ask for them."""
    parameters = list(inspect.signature(translation.function).parameters.values())[1:]
    by_name = {a.name: a for a in arguments}
    named_only = [p for p in parameters if p.kind == p.KEYWORD_ONLY]
    unknown = [p.name for p in named_only if p.name not in by_name and p.default is p.empty]
    if unknown:
        raise ExportError(f"{where}: got the parameter {unknown[0]!r}, expected one of {translation.op}: {', '.join(by_name) or 'none'}")
    named = {p.name: by_name[p.name].value for p in named_only if p.name in by_name}
    rest = [a for a in arguments if a.name not in named]
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return [a.value for a in rest], named
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        named |= {a.name: a.value for a in rest[len(places) :]}
        return [a.value for a in rest[: len(places)]], named
    required = sum(p.default is p.empty for p in places)
    if len(rest) < required:
        raise ExportError(
            f"{where}: it takes {required} arguments, expected at most those of {translation.op}: {', '.join(a.name for a in rest)}"
        )
    lost = [a for a in rest[len(places) :] if not a.is_default]
    if lost:
        raise ExportError(
            f"{where}: the call has {lost[0].name}={lost[0].value!r}, which the function does not take; give it the parameters "
            f"({', '.join(a.name for a in rest)})"
        )
    return [a.value for a in rest[: len(places)]], named
