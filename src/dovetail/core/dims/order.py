"""What is known of dims for all values of their symbols: bounds, comparison, minima and maxima."""

from __future__ import annotations

from functools import lru_cache

from dovetail.core.dims.expression import Atom, Dim, Expr, Monomial, Opaque, Symbol, opaque


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
        result = opaque(op, result, d)
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
    return (low, high) if low is not None and high is not None else _with_remainders(d, low, high)


def _with_remainders(d: Expr, low: int | None, high: int | None) -> tuple[int | None, int | None]:
    """Bounds of a sum in which remainders are written out: c * (p - k * (p // k)) is c times 0 to k - 1."""
    for monomial, factor in d.terms:
        atom = monomial[0] if len(monomial) == 1 else None
        if not isinstance(atom, Opaque) or atom.op != "//":
            continue
        p, k = atom.args
        if not isinstance(k, int) or k <= 0 or factor % k:
            continue
        c = -factor // k
        rest = d - c * p + c * k * opaque("//", p, k)
        if isinstance(rest, Expr) and len(rest.terms) >= len(d.terms):
            continue  # p is no part of the sum
        small, large = bounds(rest)
        ends = sorted((0, c * (k - 1)))
        if small is not None:
            low = small + ends[0] if low is None else max(low, small + ends[0])
        if large is not None:
            high = large + ends[1] if high is None else min(high, large + ends[1])
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


@lru_cache(maxsize=4096)
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
