"""Range-aware simplification of index polynomials: floor divisions and remainders that fold away.

`core.dims` knows nothing about upper bounds. Here every axis symbol `i` ranges over 0 … extent-1, so that
`(4*i + j) // 4` is `i` when j < 4. Inside a loop its extent is at least 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.core.dims import (
    Dim,
    Expr,
    Opaque,
    Symbol,
    bounds,
    floor_div,
    maximum,
    minimum,
    remainder,
    sym,
    symbols,
    total,
)


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def is_multiple(d: Dim, of: int) -> bool:
    """Whether a dim is a multiple of a number whatever its symbols are."""
    return d % of == 0 if isinstance(d, int) else all(factor % of == 0 for _, factor in d.terms)


def coefficient(d: Dim, name: str) -> Dim | None:
    """The factor of a symbol that d is linear in (0 if absent); None if it is not linear."""
    if name not in symbols(d):
        return 0
    assert isinstance(d, Expr)
    found: list[Dim] = []
    for monomial, factor in d.terms:
        count = 0
        term: Dim = factor
        for atom in monomial:
            if isinstance(atom, Symbol) and atom.name == name:
                count += 1
            else:
                if isinstance(atom, Opaque) and name in symbols(_atom(atom)):
                    return None
                term = term * _atom(atom)
        if count > 1:
            return None
        if count:
            found.append(term)
    return total(found)


def _atom(atom: Symbol | Opaque) -> Dim:
    return Expr((((atom,), 1),))


class Ranges:
    """Bounds and simplification for given axis extents."""

    def __init__(self, extents: Mapping[str, Dim]) -> None:
        self.extents = dict(extents)
        self._memo: dict[Dim, Dim] = {}

    # ------------------------------------------------------------------ bounds
    def limits(self, d: Dim) -> tuple[Dim | None, Dim | None]:
        """(lower, upper) bounds of d as Dims without axis symbols; None = unknown."""
        if isinstance(d, int):
            return d, d
        if self._is_fixed(d.symbols):
            return d, d
        lows: list[Dim | None] = []
        highs: list[Dim | None] = []
        for monomial, factor in d.terms:
            lo, hi = self._term(monomial, factor)
            lows.append(lo)
            highs.append(hi)
        return _total(lows), _total(highs)

    def _is_fixed(self, names: frozenset[str]) -> bool:
        """Whether names are of sizes alone: neither axes nor data."""
        return self.extents.keys().isdisjoint(names) and not any(n[0] == "#" for n in names)

    def _term(self, monomial: tuple[Symbol | Opaque, ...], factor: int) -> tuple[Dim | None, Dim | None]:
        lo: Dim | None = 1
        hi: Dim | None = 1
        for atom in monomial:
            a_lo, a_hi = self._atom_limits(atom)
            # Products of ranges are only formed for factors that cannot be negative.
            if a_lo is None or (bounds(a_lo)[0] is None) or (bounds(a_lo)[0] or 0) < 0:
                if len(monomial) == 1:
                    lo, hi = a_lo, a_hi
                    break
                return None, None
            lo = None if lo is None else lo * a_lo
            hi = None if hi is None or a_hi is None else hi * a_hi
        lo = None if lo is None else lo * factor
        hi = None if hi is None else hi * factor
        return (lo, hi) if factor > 0 else (hi, lo)

    def _atom_limits(self, atom: Symbol | Opaque) -> tuple[Dim | None, Dim | None]:
        if isinstance(atom, Symbol):
            if atom.name in self.extents:
                return 0, self.extents[atom.name] - 1
            if atom.name[0] == "#":
                return None, None
            return sym(atom.name), sym(atom.name)
        a, b = atom.args
        if self._is_fixed(atom.symbols):
            return _atom(atom), _atom(atom)
        (a_lo, a_hi), (b_lo, b_hi) = self.limits(a), self.limits(b)
        if atom.op == "//" and isinstance(b, int) and b > 0:
            return (
                None if a_lo is None else floor_div(a_lo, b),
                None if a_hi is None else floor_div(a_hi, b),
            )
        if atom.op == "%" and b_lo is not None and self.non_negative(b_lo):
            return 0, None if b_hi is None else b_hi - 1
        if atom.op == "//" and self.non_negative(a) and self.non_negative(b):
            return 0, a_hi
        if atom.op == "min":
            low = None if a_lo is None or b_lo is None else minimum(a_lo, b_lo)
            high = b_hi if a_hi is None else a_hi if b_hi is None else minimum(a_hi, b_hi)
            return low, high
        if atom.op == "max":
            high = None if a_hi is None or b_hi is None else maximum(a_hi, b_hi)
            low = b_lo if a_lo is None else a_lo if b_lo is None else maximum(a_lo, b_lo)
            return low, high
        return None, None

    def non_negative(self, d: Dim) -> bool:
        """Whether d >= 0 at every point of the iteration space (false if not proven)."""
        low = self.limits(d)[0]
        if low is None:
            return False
        least = bounds(low)[0]
        return least is not None and least >= 0

    def negative(self, d: Dim) -> bool:
        """Whether d < 0 everywhere (false if not proven)."""
        return self.non_negative(-1 - d)

    # ------------------------------------------------------------------ simplification
    def simplify(self, d: Dim) -> Dim:
        """An equal polynomial with fewer divisions, remainders, minima and maxima."""
        if isinstance(d, int):
            return d
        done = self._memo.get(d)
        if done is None:
            terms: list[Dim] = []
            for monomial, factor in d.terms:
                term: Dim = factor
                for atom in monomial:
                    term = term * (_atom(atom) if isinstance(atom, Symbol) else self._opaque(atom))
                terms.append(term)
            done = self._memo[d] = self._pair(total(terms))
        return done

    def _pair(self, d: Dim) -> Dim:
        """b*(x // b) + x % b  ->  x."""
        if isinstance(d, int):
            return d
        for monomial, factor in d.terms:
            for position, atom in enumerate(monomial):
                if isinstance(atom, Opaque) and atom.op == "%":
                    x, b = atom.args
                    rest: Dim = factor
                    for other in monomial[:position] + monomial[position + 1 :]:
                        rest = rest * _atom(other)
                    candidate = d - rest * _atom(atom) - rest * b * floor_div(x, b) + rest * x
                    if _opaque_count(candidate) < _opaque_count(d):
                        return self._pair(candidate)
        return d

    def _opaque(self, atom: Opaque) -> Dim:
        a, b = self.simplify(atom.args[0]), self.simplify(atom.args[1])
        if atom.op == "//":
            exact, rest = self._split(a, b)
            if self._within(rest, b):
                return exact
            return exact + floor_div(rest, b)
        if atom.op == "%":
            _, rest = self._split(a, b)
            return rest if self._within(rest, b) else remainder(rest, b)
        if (a, b) == atom.args and self._is_fixed(atom.symbols):
            return _atom(atom)  # `core.dims` has compared them
        if self.non_negative(a - b):
            return a if atom.op == "max" else b
        if self.non_negative(b - a):
            return b if atom.op == "max" else a
        return minimum(a, b) if atom.op == "min" else maximum(a, b)

    def _within(self, rest: Dim, b: Dim) -> bool:
        return self.non_negative(rest) and self.non_negative(b - 1 - rest)

    def _split(self, a: Dim, b: Dim) -> tuple[Dim, Dim]:
        """(q, r) with a = q*b + r, where q takes every term of a that b divides."""
        if isinstance(a, int):
            return (a // b, a % b) if isinstance(b, int) and b else (0, a)
        exact: list[Dim] = []
        rest: list[Dim] = []
        for monomial, factor in a.terms:
            term = Expr(((monomial, factor),)) if monomial else factor
            if isinstance(b, int):
                whole = factor // b if factor % b == 0 else None
                quotient: Dim | None = None if whole is None else (Expr(((monomial, 1),)) * whole if monomial else whole)
            else:
                divided = floor_div(term, b)
                quotient = divided if divided * b - term == 0 else None
            if quotient is None:
                rest.append(term)
            else:
                exact.append(quotient)
        return total(exact), total(rest)


def _total(parts: list[Dim | None]) -> Dim | None:
    """The sum; None if a part is unknown."""
    known = [part for part in parts if part is not None]
    return total(known) if len(known) == len(parts) else None


def _opaque_count(d: Dim) -> int:
    if isinstance(d, int):
        return 0
    return sum(isinstance(atom, Opaque) for monomial, _ in d.terms for atom in monomial)
