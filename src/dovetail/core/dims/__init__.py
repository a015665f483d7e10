"""Dimensions: canonical integer expressions over named, non-negative symbols.

A `Dim` is an int or an `Expr`. An Expr is a polynomial over *atoms*: symbols and opaque floor divisions, remainders,
minima and maxima. Equal polynomials are equal (`==`, `hash`), so shapes compare without a solver.
Values are int64; evaluation raises ShapeError on overflow or division by zero.
"""

from __future__ import annotations

from dovetail.core.dims.expression import (
    Atom,
    Dim,
    Expr,
    Monomial,
    Opaque,
    Symbol,
    ceil_div,
    floor_div,
    product,
    remainder,
    sym,
    total,
)
from dovetail.core.dims.order import bounds, compare, maximum, minimum
from dovetail.core.dims.text import parse
from dovetail.core.dims.values import (
    Program,
    evaluate,
    evaluate_at,
    from_program,
    run_program,
    substitute,
    symbols,
    to_program,
)

__all__ = [
    "Atom", "Dim", "Expr", "Monomial", "Opaque", "Program", "Symbol",
    "sym", "total", "product", "floor_div", "ceil_div", "remainder",
    "minimum", "maximum", "bounds", "compare",
    "symbols", "substitute", "evaluate", "evaluate_at", "parse", "to_program", "run_program", "from_program",
]  # fmt: skip
