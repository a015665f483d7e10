"""Symbols of dims, their values, and dims as postfix programs of the engine file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dovetail.core.dims.expression import (
    Dim,
    Expr,
    Symbol,
    checked,
    floor_div,
    remainder,
    sym,
    total,
)
from dovetail.core.dims.order import maximum, minimum
from dovetail.core.errors import ShapeError


def symbols(d: Dim) -> frozenset[str]:
    """Names of all symbols in d."""
    return d.symbols if isinstance(d, Expr) else frozenset()


OPERATIONS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": floor_div,
    "%": remainder,
    "min": minimum,
    "max": maximum,
}


def substitute(d: Dim, env: Mapping[str, Dim]) -> Dim:
    """d with the symbols in env replaced; others stay."""
    if isinstance(d, int):
        return d
    terms: list[Dim] = []
    for monomial, factor in d.terms:
        term: Dim = factor
        for atom in monomial:
            if isinstance(atom, Symbol):
                term = term * env.get(atom.name, sym(atom.name))
            else:
                term = term * OPERATIONS[atom.op](substitute(atom.args[0], env), substitute(atom.args[1], env))
        terms.append(term)
    return total(terms)


def evaluate(d: Dim, env: Mapping[str, int]) -> int:
    """The value of d.

    Raises:
        ShapeError: a symbol has no value, int64 overflow, or division by zero.
    """
    if isinstance(d, int):
        return d
    missing = symbols(d) - set(env)
    if missing:
        raise ShapeError(f"dimension {d}: no value for {', '.join(sorted(missing))}")
    value = substitute(d, env)
    assert isinstance(value, int)
    return checked(value)


def evaluate_at(d: Dim, sizes: Mapping[str, int]) -> int:
    """The value of d where symbols without a size count as 1.

    Raises:
        ShapeError: int64 overflow, or division by zero.
    """
    return evaluate(d, {s: sizes.get(s, 1) for s in symbols(d)})


Program = list[int | str]


def to_program(d: Dim) -> Program:
    """d as postfix instructions: ints, symbol names (prefixed "$"), and operators + * // % min max."""
    if isinstance(d, int):
        return [d]
    program: Program = []
    for position, (monomial, factor) in enumerate(d.terms):
        parts: list[Program] = [[factor]] if factor != 1 or not monomial else []
        for atom in monomial:
            if isinstance(atom, Symbol):
                parts.append(["$" + atom.name])
            else:
                parts.append([*to_program(atom.args[0]), *to_program(atom.args[1]), atom.op])
        for index, part in enumerate(parts):
            program += part
            if index:
                program.append("*")
        if position:
            program.append("+")
    return program


def run_program(program: Sequence[int | str], env: Mapping[str, int]) -> int:
    """The value of a postfix program (see `to_program`).

    Raises:
        ShapeError: malformed program, missing symbol, overflow, or division by zero.
    """
    stack: list[int] = []
    try:
        for item in program:
            if isinstance(item, int):
                stack.append(item)
            elif item.startswith("$"):
                stack.append(env[item[1:]])
            else:
                b = stack.pop()
                a = stack.pop()
                if item == "+":
                    value = a + b
                elif item == "-":
                    value = a - b
                elif item == "*":
                    value = a * b
                elif item == "//":
                    value = a // b
                elif item == "%":
                    value = a % b
                elif item == "min":
                    value = min(a, b)
                elif item == "max":
                    value = max(a, b)
                else:
                    raise ShapeError(f"dimension program: unknown instruction {item!r}")
                stack.append(checked(value))
        (result,) = stack
    except KeyError as error:
        raise ShapeError(f"dimension program: no value for symbol {error}") from None
    except (IndexError, ValueError):
        raise ShapeError(f"dimension program: malformed {program!r}") from None
    except ZeroDivisionError:
        raise ShapeError(f"dimension program: division by zero in {program!r}") from None
    return result


def from_program(program: Sequence[int | str]) -> Dim:
    """The Dim that a postfix program computes.

    Raises:
        ShapeError: malformed program.
    """
    stack: list[Dim] = []
    try:
        for item in program:
            if isinstance(item, int):
                stack.append(item)
            elif item.startswith("$"):
                stack.append(sym(item[1:]))
            else:
                b, a = stack.pop(), stack.pop()
                stack.append(OPERATIONS[item](a, b))
        (result,) = stack
    except (IndexError, ValueError, KeyError):
        raise ShapeError(f"dimension program: malformed {program!r}") from None
    return result
