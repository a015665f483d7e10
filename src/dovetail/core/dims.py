"""Dimensions: canonical integer expressions over named, non-negative symbols.

A `Dim` is an int or an `Expr`. An Expr is a polynomial over *atoms*: symbols and opaque floor divisions, remainders,
minima and maxima. Equal polynomials are equal objects (`==`, `hash`), so shapes compare without a solver.
Values are int64; evaluation raises ShapeError on overflow or division by zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Union

from dovetail.core.errors import ParseError, ShapeError

_LIMIT = 2**63
_MAX_TERMS = 512

# A monomial is a sorted tuple of atoms; a polynomial maps monomials to non-zero coefficients.
Atom = Union["Symbol", "Opaque"]
Monomial = tuple[Atom, ...]


class _Base:
    __slots__ = ()


class Symbol(_Base):
    """A named non-negative integer."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def key(self) -> tuple[str, ...]:
        """What the order of factors goes by."""
        return ("", self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symbol) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name


class Opaque(_Base):
    """An operation that a polynomial cannot absorb: `//`, `%`, `min`, `max` of two dims."""

    __slots__ = ("_hash", "args", "op")

    def __init__(self, op: str, args: tuple[Dim, Dim]) -> None:
        self.op, self.args = op, args
        self._hash = hash((op, args))

    @property
    def key(self) -> tuple[str, ...]:
        """What the order of factors goes by."""
        return (self.op, *(str(a) for a in self.args))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and (other.op, other.args) == (self.op, self.args)

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        a, b = self.args
        if self.op in ("min", "max"):
            return f"{self.op}({a}, {b})"
        return f"{_wrap(a)}{self.op}{_wrap(b)}"


class Expr(_Base):
    """A polynomial with at least one symbol; arithmetic with ints and Exprs gives Dims."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and other.terms == self.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1)

    def __rsub__(self, other: Dim) -> Dim:
        return _sum(other, self, -1)

    def __mul__(self, other: Dim) -> Dim:
        return _product(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floor_div(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floor_div(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return remainder(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return remainder(other, self)

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of the symbolic dimension {self} is not known at build time")

    def __str__(self) -> str:
        text = ""
        for monomial, factor in self.terms:
            body = "*".join(_factor(atom) for atom in monomial)
            sign = "-" if factor < 0 else "+" if text else ""
            size = abs(factor)
            text += sign + (body if size == 1 and body else f"{size}*{body}" if body else str(size))
        return text

    def __repr__(self) -> str:
        return f"Dim({self})"


Dim = int | Expr


def _factor(atom: Atom) -> str:
    if isinstance(atom, Opaque) and atom.op in ("//", "%"):
        return f"({atom})"
    return str(atom)


def _wrap(d: Dim) -> str:
    return str(d) if re.fullmatch(r"\w+", str(d)) else f"({d})"


def _terms(d: Dim) -> dict[Monomial, int]:
    if isinstance(d, Expr):
        return dict(d.terms)
    return {(): int(d)} if d else {}


def _make(terms: Mapping[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if len(kept) > _MAX_TERMS:
        raise ShapeError(f"dimension: got an expression of {len(kept)} terms, expected at most {_MAX_TERMS}")
    if not kept:
        return 0
    if set(kept) == {()}:
        return _checked(kept[()])
    # Highest degree first, constant last: "2*N+1".
    order = sorted(kept.items(), key=lambda t: (-len(t[0]), [a.key for a in t[0]]))
    return Expr(tuple(order))


def _checked(value: int) -> int:
    if not -_LIMIT <= value < _LIMIT:
        raise ShapeError(f"dimension: got {value}, expected a value that fits int64")
    return value


def _sum(a: Dim, b: Dim, sign: int) -> Dim:
    terms = _terms(a)
    for monomial, factor in _terms(b).items():
        terms[monomial] = terms.get(monomial, 0) + sign * factor
    return _make(terms)


def _product(a: Dim, b: Dim) -> Dim:
    terms: dict[Monomial, int] = {}
    for m1, c1 in _terms(a).items():
        for m2, c2 in _terms(b).items():
            monomial = tuple(sorted(m1 + m2, key=lambda atom: atom.key))
            terms[monomial] = terms.get(monomial, 0) + c1 * c2
    return _make(terms)


def _opaque(op: str, a: Dim, b: Dim) -> Dim:
    return Expr((((Opaque(op, (a, b)),), 1),))


def sym(name: str) -> Expr:
    """The dimension that is the symbol `name`."""
    return Expr((((Symbol(name),), 1),))


def floor_div(a: Dim, b: Dim) -> Dim:
    """a // b, rounded down; exact divisions of polynomials by a common factor are carried out."""
    if isinstance(b, int):
        if b == 0:
            raise ShapeError(f"dimension: {a}//0")
        if isinstance(a, int):
            return a // b
        if b == 1:
            return a
        # Split off the multiples of b, which are exact whatever the rest: (b*x + r) // b = x + r//b.
        exact = {m: c // b for m, c in a.terms if c % b == 0}
        rest = _make({m: c for m, c in a.terms if c % b})
        if exact:
            return _make(exact) + floor_div(rest, b)
        # ((x // p) // q) = x // (p*q) for positive p, q
        if b > 0 and len(a.terms) == 1 and a.terms[0][1] == 1 and len(a.terms[0][0]) == 1:
            atom = a.terms[0][0][0]
            if isinstance(atom, Opaque) and atom.op == "//" and isinstance(atom.args[1], int) and atom.args[1] > 0:
                return floor_div(atom.args[0], atom.args[1] * b)
        return _opaque("//", a, b)
    if a == b:
        return 1
    if isinstance(a, int):
        return 0 if a == 0 else _opaque("//", a, b)
    if len(b.terms) == 1:
        quotient = _divide_exactly(a, b)
        if quotient is not None:
            return quotient
    return _opaque("//", a, b)


def _divide_exactly(a: Expr, b: Expr) -> Dim | None:
    (divisor, factor), = b.terms
    result: dict[Monomial, int] = {}
    for monomial, coefficient in a.terms:
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        result[tuple(rest)] = coefficient // factor
    return _make(result)


def remainder(a: Dim, b: Dim) -> Dim:
    """a % b, with the sign of b."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            raise ShapeError(f"dimension: {a}%0")
        return a % b
    if a == b or a == 0 or b == 1:
        return 0
    if isinstance(b, int) and isinstance(a, Expr):
        rest = _make({m: c % b for m, c in a.terms})
        return rest % b if isinstance(rest, int) else _opaque("%", rest, b)
    if isinstance(a, Expr) and isinstance(b, Expr) and len(b.terms) == 1 and _divide_exactly(a, b) is not None:
        return 0
    return _opaque("%", a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two dims."""
    return _extreme("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two dims."""
    return _extreme("max", a, b)


def _extreme(op: str, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b) if op == "min" else max(a, b)
    kept: list[Dim] = []
    for d in sorted({*_operands(op, a), *_operands(op, b)}, key=str):
        if any(_beats(op, other, d) for other in kept):
            continue
        kept = [other for other in kept if not _beats(op, d, other)]
        kept.append(d)
    result = kept[0]
    for d in kept[1:]:
        result = _opaque(op, result, d)
    return result


def _single(d: Dim) -> Opaque | None:
    """d as the opaque operation that it is, if it is nothing else."""
    if isinstance(d, Expr) and len(d.terms) == 1:
        (monomial, factor), = d.terms
        if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], Opaque):
            return monomial[0]
    return None


def _operands(op: str, d: Dim) -> list[Dim]:
    """The operands of nested mins (or maxs), d itself if it is none."""
    atom = _single(d)
    if atom is None or atom.op != op:
        return [d]
    return [*_operands(op, atom.args[0]), *_operands(op, atom.args[1])]


def _beats(op: str, a: Dim, b: Dim) -> bool:
    """Whether the min (or max) of a and b is always a."""
    order = compare(a, b)
    return order is not None and (order <= 0 if op == "min" else order >= 0)


def compare(a: Dim, b: Dim) -> int | None:
    """-1 or 0 if a <= b for all values of the symbols, 1 if a >= b, None where it depends.

    0 means equal; -1 and 1 allow equality for some values.
    """
    difference = a - b
    if isinstance(difference, int):
        return (difference > 0) - (difference < 0)
    if _at_most(a, b):
        return -1
    return 1 if _at_most(b, a) else None


def _at_most(a: Dim, b: Dim) -> bool:
    """Whether a <= b is known to hold for all values of the symbols."""
    _, high = bounds(a - b)
    if high is not None and high <= 0:
        return True
    # Through the outermost min or max of either side.
    largest, smallest = _operands("max", a), _operands("min", a)
    if len(largest) > 1:
        return all(_at_most(x, b) for x in largest)
    if len(smallest) > 1 and any(_at_most(x, b) for x in smallest):
        return True
    largest, smallest = _operands("max", b), _operands("min", b)
    if len(smallest) > 1:
        return all(_at_most(a, y) for y in smallest)
    return len(largest) > 1 and any(_at_most(a, y) for y in largest)


def bounds(d: Dim) -> tuple[int | None, int | None]:
    """(lower, upper) bounds that hold for all non-negative symbol values; None = unbounded."""
    if isinstance(d, int):
        return d, d
    low: int | None = 0
    high: int | None = 0
    for monomial, factor in d.terms:
        ends = tuple(None if end is None else end * factor for end in _monomial_bounds(monomial))
        small, large = ends if factor > 0 else ends[::-1]
        low = None if low is None or small is None else low + small
        high = None if high is None or large is None else high + large
    return low, high


def _monomial_bounds(monomial: Monomial) -> tuple[int | None, int | None]:
    if len(monomial) == 1:
        return _atom_bounds(monomial[0])
    low, high = 1, 1
    bounded = True
    for atom in monomial:
        atom_low, atom_high = _atom_bounds(atom)
        if atom_low is None or atom_low < 0:
            return None, None
        low *= atom_low
        bounded = bounded and atom_high is not None
        high = high * atom_high if atom_high is not None and bounded else high
    return low, high if bounded else None


def _atom_bounds(atom: Atom) -> tuple[int | None, int | None]:
    if isinstance(atom, Symbol):
        return 0, None
    (a_low, a_high), (b_low, b_high) = bounds(atom.args[0]), bounds(atom.args[1])
    if atom.op == "//":
        divisor = atom.args[1]
        if isinstance(divisor, int) and divisor > 0:
            return (None if a_low is None else a_low // divisor), (None if a_high is None else a_high // divisor)
        if a_low is not None and a_low >= 0 and b_low is not None and b_low >= 0:
            return 0, a_high
        return None, None
    if atom.op == "%":
        if b_low is not None and b_low >= 0:
            return 0, None if b_high is None else max(0, b_high - 1)
        return None, None
    lows = [x for x in (a_low, b_low) if x is not None]
    highs = [x for x in (a_high, b_high) if x is not None]
    if atom.op == "min":
        return (min(lows) if len(lows) == 2 else None), (min(highs) if highs else None)
    return (max(lows) if lows else None), (max(highs) if len(highs) == 2 else None)


def ceil_div(a: Dim, b: Dim) -> Dim:
    """a / b rounded up, for positive b."""
    return floor_div(a + b - 1, b)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 for none."""
    result: Dim = 1
    for d in dims:
        result = result * d
    return result


def symbols(d: Dim) -> frozenset[str]:
    """Names of all symbols in d."""
    if isinstance(d, int):
        return frozenset()
    found: set[str] = set()
    for monomial, _ in d.terms:
        for atom in monomial:
            if isinstance(atom, Symbol):
                found.add(atom.name)
            else:
                found |= symbols(atom.args[0]) | symbols(atom.args[1])
    return frozenset(found)


_OPERATIONS: dict[str, Callable[[Dim, Dim], Dim]] = {
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
    total: Dim = 0
    for monomial, factor in d.terms:
        term: Dim = factor
        for atom in monomial:
            if isinstance(atom, Symbol):
                term = term * env.get(atom.name, sym(atom.name))
            else:
                term = term * _OPERATIONS[atom.op](substitute(atom.args[0], env), substitute(atom.args[1], env))
        total = total + term
    return total


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
    return _checked(value)


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
                stack.append(_checked(value))
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
                stack.append(_OPERATIONS[item](a, b))
        (result,) = stack
    except (IndexError, ValueError, KeyError):
        raise ShapeError(f"dimension program: malformed {program!r}") from None
    return result


_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_][\w.]*)|(//|[-+*%(),]))")


def parse(text: str) -> Dim:
    """The Dim written as `text`, as `str` prints it.

    Raises:
        ParseError: not a dimension expression.
    """
    tokens: list[str] = []
    position = 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None or len(tokens) > 4096:
            raise ParseError(f"dimension {text!r}: unexpected text at column {position}")
        tokens.append(match.group().strip())
        position = match.end()
    parser = _Parser(tokens, text)
    result = parser.sum(0)
    if parser.position != len(tokens):
        raise ParseError(f"dimension {text!r}: unexpected {tokens[parser.position]!r}")
    return result


class _Parser:
    """Recursive descent over tokens: sum = term (+|- term)*, term = unary (*|//|% unary)*."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self.tokens, self.text, self.position = tokens, text, 0

    def take(self, *accepted: str) -> str | None:
        if self.position < len(self.tokens) and self.tokens[self.position] in accepted:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def expect(self, token: str) -> None:
        if self.take(token) is None:
            raise ParseError(f"dimension {self.text!r}: expected {token!r}")

    def sum(self, depth: int) -> Dim:
        if depth > 64:
            raise ParseError(f"dimension {self.text[:40]!r}…: nested too deeply")
        value = self.term(depth)
        while operator := self.take("+", "-"):
            value = _OPERATIONS[operator](value, self.term(depth))
        return value

    def term(self, depth: int) -> Dim:
        value = self.unary(depth)
        while operator := self.take("*", "//", "%"):
            value = _OPERATIONS[operator](value, self.unary(depth))
        return value

    def unary(self, depth: int) -> Dim:
        if self.take("-"):
            return self.unary(depth + 1) * -1
        if self.take("("):
            value = self.sum(depth + 1)
            self.expect(")")
            return value
        if self.position >= len(self.tokens):
            raise ParseError(f"dimension {self.text!r}: unexpected end")
        token = self.tokens[self.position]
        self.position += 1
        if token.isdigit():
            return _checked(int(token))
        if token in ("min", "max") and self.take("("):
            a = self.sum(depth + 1)
            self.expect(",")
            b = self.sum(depth + 1)
            self.expect(")")
            return _OPERATIONS[token](a, b)
        if token[0].isalpha() or token[0] == "_":
            return sym(token)
        raise ParseError(f"dimension {self.text!r}: unexpected {token!r}")
