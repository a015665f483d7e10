"""Dims: canonical form, text, programs and bounds agree with plain integer arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.core import dims
from dovetail.core.dims import Dim, sym
from dovetail.core.errors import ParseError, ShapeError

ENV = {"N": 3, "H": 17, "W": 5}


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[Dim, str]:
    """A dim and Python text with the same meaning."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            name = draw(st.sampled_from(sorted(ENV)))
            return sym(name), name
        value = draw(st.integers(-6, 9))
        return value, f"({value})"
    (a, left), (b, right) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    op = draw(st.sampled_from(["+", "-", "*", "//", "%", "min", "max"]))
    if op in ("//", "%"):
        b, right = draw(st.integers(1, 7).map(lambda k: (k, f"({k})")))
        return (dims.floor_div if op == "//" else dims.remainder)(a, b), f"({left}{op}{right})"
    if op in ("min", "max"):
        return (dims.minimum if op == "min" else dims.maximum)(a, b), f"{op}({left},{right})"
    return {"+": a + b, "-": a - b, "*": a * b}[op], f"({left}{op}{right})"


@given(expressions(), st.fixed_dictionaries({k: st.integers(0, 40) for k in ENV}))
def test_dims_mean_what_python_means(pair: tuple[Dim, str], env: Mapping[str, int]) -> None:
    dim, text = pair
    expected = eval(text, {"min": min, "max": max}, dict(env))
    assert dims.evaluate(dim, env) == expected
    assert dims.run_program(dims.to_program(dim), env) == expected
    low, high = dims.bounds(dim)
    assert (low is None or low <= expected) and (high is None or expected <= high)


@given(expressions())
def test_text_and_programs_round_trip(pair: tuple[Dim, str]) -> None:
    dim, _ = pair
    assert dims.parse(str(dim)) == dim
    assert dims.from_program(dims.to_program(dim)) == dim


def test_equal_expressions_are_equal_objects() -> None:
    n, h = sym("N"), sym("H")
    assert (n + 1) * (n - 1) == n * n - 1
    assert hash(n * h) == hash(h * n)
    assert (n * h) // h == n
    assert (4 * n + 6) // 2 == 2 * n + 3
    assert (h // 2) // 2 == h // 4
    assert dims.ceil_div(2 * n, 2) == n
    assert dims.maximum(n, 0) == n


def test_truth_of_a_symbol_is_an_error() -> None:
    with pytest.raises(TypeError, match="not known at build time"):
        bool(sym("N") + 1)


@pytest.mark.parametrize("text", ["", "N+", "(N", "N)", "1..2", "$", "max(N)", "N N"])
def test_bad_text_is_a_parse_error(text: str) -> None:
    with pytest.raises(ParseError, match="dimension"):
        dims.parse(text)


def test_overflow_and_division_by_zero_are_shape_errors() -> None:
    with pytest.raises(ShapeError, match="int64"):
        dims.evaluate(sym("N") * sym("N"), {"N": 2**40})
    with pytest.raises(ShapeError, match="no value for"):
        dims.evaluate(sym("N"), {})
    with pytest.raises(ShapeError, match="division by zero"):
        dims.run_program([1, 0, "//"], {})
    with pytest.raises(ShapeError, match="malformed"):
        dims.run_program([1, 2], {})


@given(st.lists(expressions(depth=2), max_size=6))
def test_total_is_the_sum_of_all(pairs: list[tuple[Dim, str]]) -> None:
    added: Dim = 0
    for dim, _ in pairs:
        added = added + dim
    assert dims.total(dim for dim, _ in pairs) == added


def test_symbols_reach_into_opaque_operations() -> None:
    n, h, w = sym("N"), sym("H"), sym("W")
    assert dims.symbols(dims.minimum(n // 2, h * w) + 1) == {"N", "H", "W"}
    assert dims.symbols(n - n) == frozenset()


def test_remainders_that_are_written_out_have_bounds() -> None:
    n, m = dims.sym("N"), dims.sym("M")
    for a in (n + 3, 2 * n + m, n * m):
        rest = a - (a // 2) * 2
        assert dims.bounds(rest) == (0, 1) and dims.bounds(2 - rest) == (1, 2)
        missing = (2 - rest) - ((2 - rest) // 2) * 2
        assert dims.bounds(missing) == (0, 1) and dims.bounds(n + 5 * missing) == (0, None)
    assert dims.bounds(n - (m // 2) * 2) == (None, None)
