"""Dims as canonical polynomials over symbols and opaque operations, and their arithmetic.

A monomial is a sorted tuple of atoms; a polynomial maps monomials to non-zero coefficients. Texts, which order terms and
print them, are kept with the objects: expressions are shared, and sums of many terms are built all the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Union

from dovetail.core.errors import ShapeError

_LIMIT = 2**63
_MAX_TERMS = 512

Atom = Union["Symbol", "Opaque"]
Monomial = tuple[Atom, ...]


class _Base:
    __slots__ = ()


class Symbol(_Base):
    """A named non-negative integer."""

    __slots__ = ("_hash", "key", "name", "symbols")

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = ("", name)
        """What the order of factors goes by."""
        self._hash = hash(name)
        self.symbols = frozenset((name,))
        """Its own name."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Symbol) and other.name == self.name

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.name


class Opaque(_Base):
    """An operation that a polynomial cannot absorb: `//`, `%`, `min`, `max` of two dims."""

    __slots__ = ("_hash", "_key", "args", "op", "symbols")

    def __init__(self, op: str, args: tuple[Dim, Dim]) -> None:
        self.op, self.args = op, args
        self._hash = hash((op, args))
        self._key: tuple[str, ...] | None = None
        self.symbols: frozenset[str] = frozenset().union(*(a.symbols for a in args if isinstance(a, Expr)))
        """Names of all symbols in it."""

    @property
    def key(self) -> tuple[str, ...]:
        """What the order of factors goes by."""
        if self._key is None:
            self._key = (self.op, *(str(a) for a in self.args))
        return self._key

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Opaque) and self._hash == other._hash and (other.op, other.args) == (self.op, self.args)

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        a, b = self.args
        if self.op in ("min", "max"):
            return f"{self.op}({a}, {b})"
        return f"{_wrap(a)}{self.op}{_wrap(b)}"


class Expr(_Base):
    """A polynomial with at least one symbol; arithmetic with ints and Exprs gives Dims."""

    __slots__ = ("_hash", "_symbols", "_text", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None
        self._symbols: frozenset[str] | None = None

    @property
    def symbols(self) -> frozenset[str]:
        """Names of all symbols in it."""
        if self._symbols is None:
            self._symbols = frozenset().union(*(a.symbols for monomial, _ in self.terms for a in monomial))
        return self._symbols

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Expr) and self._hash == other._hash and other.terms == self.terms

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
        if self._text is not None:
            return self._text
        text = ""
        for monomial, factor in self.terms:
            body = "*".join(_factor(atom) for atom in monomial)
            sign = "-" if factor < 0 else "+" if text else ""
            size = abs(factor)
            text += sign + (body if size == 1 and body else f"{size}*{body}" if body else str(size))
        self._text = text
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
        return checked(kept[()])
    # Highest degree first, constant last: "2*N+1".
    order = sorted(kept.items(), key=lambda t: (-len(t[0]), [a.key for a in t[0]]))
    return Expr(tuple(order))


def checked(value: int) -> int:
    """A value that fits int64, else ShapeError."""
    if not -_LIMIT <= value < _LIMIT:
        raise ShapeError(f"dimension: got {value}, expected a value that fits int64")
    return value


def _sum(a: Dim, b: Dim, sign: int) -> Dim:
    terms = _terms(a)
    for monomial, factor in _terms(b).items():
        terms[monomial] = terms.get(monomial, 0) + sign * factor
    return _make(terms)


def total(parts: Iterable[Dim]) -> Dim:
    """The sum of dims; 0 for none. Its cost is that of one sum, where adding one by one takes the square."""
    terms: dict[Monomial, int] = {}
    for part in parts:
        for monomial, factor in part.terms if isinstance(part, Expr) else (((), int(part)),):
            terms[monomial] = terms.get(monomial, 0) + factor
    return _make(terms)


def _product(a: Dim, b: Dim) -> Dim:
    if isinstance(b, int):
        a, b = b, a
    if isinstance(a, int) and isinstance(b, Expr):
        return b if a == 1 else Expr(tuple((m, c * a) for m, c in b.terms)) if a else 0
    terms: dict[Monomial, int] = {}
    for m1, c1 in _terms(a).items():
        for m2, c2 in _terms(b).items():
            monomial = tuple(sorted(m1 + m2, key=lambda atom: atom.key))
            terms[monomial] = terms.get(monomial, 0) + c1 * c2
    return _make(terms)


def opaque(op: str, a: Dim, b: Dim) -> Dim:
    """The dim that is `op` of a and b, as it is."""
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
        return opaque("//", a, b)
    if a == b:
        return 1
    if isinstance(a, int):
        return 0 if a == 0 else opaque("//", a, b)
    if len(b.terms) == 1:
        quotient = _divide_exactly(a, b)
        if quotient is not None:
            return quotient
    return opaque("//", a, b)


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
        return rest % b if isinstance(rest, int) else opaque("%", rest, b)
    if isinstance(a, Expr) and isinstance(b, Expr) and len(b.terms) == 1 and _divide_exactly(a, b) is not None:
        return 0
    return opaque("%", a, b)
def ceil_div(a: Dim, b: Dim) -> Dim:
    """a / b rounded up, for positive b."""
    return floor_div(a + b - 1, b)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 for none."""
    result: Dim = 1
    for d in dims:
        result = result * d
    return result
