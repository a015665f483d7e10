"""The graph keeps its invariants, times follow operands, and its text round-trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.core.dims import sym
from dovetail.core.dtypes import F16, F32, I64
from dovetail.core.errors import ParseError, VerifyError
from dovetail.ir import Graph, Module, TensorType, Time, Value, channels_last
from dovetail.ir.layout import strided
from dovetail.ir.parser import parse_module
from dovetail.ir.printer import print_module
from dovetail.ir.verifier import verify

ATTRIBUTES = st.recursive(
    st.one_of(
        st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=8), st.booleans(), st.none(),
        st.sampled_from([F16, F32, I64]), st.just(sym("N") * 3 + 1),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)  # fmt: skip
NAMES = st.one_of(st.text(min_size=1, max_size=6), st.sampled_from(["a", "/b/c", "x.1", "w:0"]))


@st.composite
def modules(draw: st.DrawFn) -> Module:
    """A graph of nodes with arbitrary attributes, layouts and names."""
    graph = Graph()
    shape = (sym("N"), 4, 8, 8)
    layouts = [None, channels_last(4), strided((sym("N") * 2, 1, 3, 5), sym("N") + 2)]
    values: list[Value] = [graph.add_input(draw(NAMES), TensorType(F32, shape))]
    values.append(graph.add("Constant", (), {"name": draw(st.text(max_size=5))}, types=[TensorType(F32, (4,))]).output)
    for _ in range(draw(st.integers(0, 6))):
        inputs = draw(st.lists(st.one_of(st.none(), st.sampled_from(values)), max_size=3))
        type_ = TensorType(F32, shape).with_layout(draw(st.sampled_from(layouts)))
        attrs = draw(st.dictionaries(st.from_regex(r"[a-z]\w{0,5}", fullmatch=True), ATTRIBUTES, max_size=3))
        attrs.pop("symbols", None)
        attrs.pop("impure", None)
        node = graph.add("Op", inputs, attrs, types=[type_], names=[draw(NAMES)], origin=draw(st.lists(NAMES, max_size=2)))
        values += node.outputs
    graph.set_outputs([values[-1]])
    return Module(graph)


@given(modules())
def test_text_round_trips(module: Module) -> None:
    verify(module)
    text = print_module(module)
    again = parse_module(text)
    verify(again)
    assert print_module(again) == text


def _chain() -> tuple[Graph, Value, Value, Value]:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (2,)))
    a = graph.add("Relu", (x,), types=[x.type]).output
    b = graph.add("Add", (a, a), types=[x.type]).output
    graph.set_outputs([b])
    return graph, x, a, b


def test_use_lists_follow_mutation() -> None:
    graph, x, a, b = _chain()
    assert [p for _, p in a.uses] == [0, 1]
    graph.replace_uses(a, x)
    assert not a.uses and len(x.uses) == 3
    assert a.producer is not None
    graph.erase(a.producer)
    verify(Module(graph))
    assert [n.op for n in graph.nodes] == ["Add"]
    assert b.is_output


def test_nodes_may_change_while_iterating() -> None:
    graph, x, _, _ = _chain()
    seen = []
    for node in graph.nodes:
        seen.append(node.op)
        if node.op == "Relu":
            graph.add("Neg", (x,), types=[x.type], before=node.next)
            graph.replace_uses(node.output, x)
            graph.erase(node)
    assert seen == ["Relu", "Neg", "Add"]


def test_times_are_the_latest_operand() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(F32, (sym("N"),)))
    w = graph.add("Constant", (), {"name": "w"}, types=[TensorType(F32, (1,))]).output
    n = graph.add("DimTensor", (), {"values": (sym("N"),)}, types=[TensorType(I64, (1,))]).output
    u = graph.add("NonZero", (x,), {"symbols": ("u0",)}, types=[TensorType(I64, (1, sym("u0")))]).output
    full = graph.add("Full", (), {"shape": (sym("u0"),)}, types=[TensorType(F32, (sym("u0"),))]).output
    assert (w.time, n.time, u.time, full.time) == (Time.WEIGHT, Time.SHAPE, Time.RUN, Time.RUN)


def test_the_verifier_names_what_is_broken() -> None:
    graph, x, a, _ = _chain()
    a.name = x.name
    with pytest.raises(VerifyError, match="%x is defined twice"):
        verify(Module(graph))
    a.name = "a"
    assert a.producer is not None
    graph.move(a.producer, None)
    with pytest.raises(VerifyError, match="is not defined before it"):
        verify(Module(graph))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dovetail.ir 9\n", "version"),
        ("dovetail.ir 1\n@main(%x: f32[2]) { %y = Relu(%z) : f32[2]\n return %y }", "%z is not defined"),
        ("dovetail.ir 1\n@main(%x: f99[2]) { return %x }", "f99"),
        ("dovetail.ir 1\n@main(%x: f32[2]) { return %x", "expected '}'"),
        ("dovetail.ir 1\n@main(%x: f32[(2]) { return %x }", "unexpected end"),
        ("dovetail.ir 1\n@other() { return }", "@other"),
        ("dovetail.ir 1\n@main(%x: f32[2]<1>) { return %x }", "does not fit rank"),
    ],
)
def test_bad_text_says_where(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_module(text)
