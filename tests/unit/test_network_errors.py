"""Bad calls of models defined in Python say what is wrong and change nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail.core.dims import sym
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.session import Session
from dovetail.ir.printer import print_module
from dovetail.ir.verifier import verify
from tests.unit.network_models import f32, text

# --- bad calls ------------------------------------------------------------------------------------


def foreign(net: dovetail.Network) -> Any:
    return dovetail.Network().input("q", "f32", (4,))


BAD: dict[str, tuple[Callable[[dovetail.Network, Any], Any], type[Exception], str]] = {
    "unknown op": (lambda n, x: n.op("Covn", x), dovetail.UnsupportedOpError, r"Covn_0 \(Covn\): no importer.*similar names: Conv"),
    "unknown domain": (lambda n, x: n.op("Relu", x, domain="my.own"), dovetail.UnsupportedOpError, r"Relu_0 \(my.own::Relu\): no importer"),
    "too few": (lambda n, x: n.op("Conv", x, name="c1"), dovetail.ModelError, r"c1 \(Conv\): got 1 inputs, expected 2 to 3 \(X, W, B\)"),
    "too many": (lambda n, x: n.op("Relu", x, x), dovetail.ModelError, r"got 2 inputs, expected 1 \(X\)"),
    "missing input": (lambda n, x: n.op("Add", x, None), dovetail.ModelError, r"got None for input 1 \(B\)"),
    "attribute": (lambda n, x: n.op("Softmax", x, axes=1), dovetail.ModelError, "got the unknown attribute 'axes', expected one of: axis"),
    "missing attribute": (lambda n, x: n.op("Concat", x, x), dovetail.ModelError, "got no attribute 'axis'"),
    "attribute type": (lambda n, x: n.op("Softmax", x, axis=1.5), dovetail.ModelError, r"'axis': got 1.5 \(a float\), expected an int"),
    "attribute list": (lambda n, x: n.op("Transpose", x, perm=1), dovetail.ModelError, "'perm': got 1 .*expected a sequence of ints"),
    "element type": (lambda n, x: n.op("Cast", x, to="f31"), dovetail.ModelError, "'to': got 'f31'"),
    "types": (lambda n, x: n.op("Add", x, np.ones(4)), dovetail.ModelError, r"got f64 for input 1 \(B\), expected f32 as input 0 \(A\)"),
    "number": (lambda n, x: n.op("Gather", x, 1.5), dovetail.ModelError, r"got 1.5 for input 1 \(indices\), expected i64"),
    "shapes": (lambda n, x: n.op("Add", x, f32(3)), dovetail.ModelError, r"Add_0 \(Add\): broadcast: shapes"),
    "a list of values": (lambda n, x: n.op("Concat", [x, x], axis=0), dovetail.UsageError, "got a list of values, .*pass them one by one"),
    "an object": (lambda n, x: n.op("Relu", object()), dovetail.UsageError, "input 0: got <object"),
    "ragged": (lambda n, x: n.op("Gather", x, [[1], [1, 2]]), dovetail.UsageError, "expected numbers in equal rows"),
    "foreign": (lambda n, x: n.op("Relu", foreign(n)), dovetail.UsageError, "%q: got a value of another network"),
    "outputs": (lambda n, x: n.op("Relu", x, outputs=2), dovetail.ModelError, "got 2 outputs, expected 1 to 1"),
    "opset": (lambda n, x: n.op("Relu", x, opset=99), dovetail.UsageError, "opset: got 99"),
    "second input": (lambda n, x: n.input("x", "f32", (1,)), dovetail.UsageError, "got the name 'x', expected one that no other input has"),
    "extent": (lambda n, x: n.input("y", "f32", (-1,)), dovetail.ModelError, "got size -1 on axis 0"),
    "extent text": (lambda n, x: n.input("y", "f32", ("N+1",)), dovetail.ModelError, r"got the size 'N\+1' on axis 0"),
    "extent expression": (lambda n, x: n.input("y", "f32", (sym("N") * 2,)), dovetail.ModelError, "got the size .* on axis 0"),
    "range": (lambda n, x: n.input("y", "f32", ("5..2",)), dovetail.ModelError, "expected low..high"),
    "dtype": (lambda n, x: n.input("y", "f31", (1,)), dovetail.UsageError, "dtype: got 'f31'"),
    "second weight": (lambda n, x: n.weight("w", f32(4)), dovetail.UsageError, "got the name 'w' twice"),
    "weight name": (lambda n, x: n.weight("~w", f32(4)), dovetail.UsageError, 'does not start with "~"'),
    "second output": (lambda n, x: n.output(x, "out"), dovetail.UsageError, "got the name 'out'"),
    "no output": (lambda n, x: n.remove_output("nothing"), dovetail.UsageError, r"got 'nothing', expected one of \['out'\]"),
    "number too large": (lambda n, x: n.op("Add", n["b"], 300), dovetail.ModelError, "got 300 .*expected what i8 can hold"),
    "number to infinity": (lambda n, x: n.op("Add", n["h"], 1e6), dovetail.ModelError, "got 1000000.0 .*expected what f16 can hold"),
    "an input's name": (lambda n, x: n.output(n["first"], "x"), dovetail.UsageError, "got the name 'x', expected one that no other value"),
    "plugin": (lambda n, x: n.plugin("Nowhere", x), dovetail.UnsupportedOpError, r"Nowhere_0 \(Nowhere\): plugin Nowhere"),
    "half done": (lambda n, x: n.op("Gemm", x, f32(3, 4), f32(7)), dovetail.ModelError, "Gemm_0"),
    "run-time shape": (lambda n, x: n.op("Resize", x, None, None, n["i"]), dovetail.Error, "Resize_0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_say_what_is_wrong_and_change_nothing(name: str) -> None:
    call, kind, message = BAD[name]
    net = dovetail.Network()
    x, i, _, _ = (net.input(n, k, s) for n, k, s in (("x", "f32", (4,)), ("i", "i64", ("K",)), ("b", "i8", (2,)), ("h", "f16", (2,))))
    net.output(net.op("Mul", x, net.weight("w", f32(4)), name="first"), "out")
    net.output(i, "i2")
    net.remove_output("i2")
    before, weights = print_module(net.module()), dict(net._context.module.weights)
    nodes, inputs, guards = len(net._context.graph), list(net.inputs), list(net._context.module.guards)
    with pytest.raises(kind, match=message):
        call(net, x)
    assert print_module(net.module()) == before
    assert list(net._context.module.weights) == list(weights) and len(net._context.graph) == nodes
    assert list(net.inputs) == inputs and net._context.module.guards == guards and not net._context.session.problems
    net.output(net.op("Neg", net["out"]), "after")
    verify(net.module())


def test_a_network_without_outputs_cannot_be_built() -> None:
    net = dovetail.Network()
    net.input("x", "f32", (1,))
    with pytest.raises(dovetail.ModelError, match="got no outputs, expected at least one"):
        dovetail.build(net)


def test_bad_nodes_leave_the_network_as_it_was() -> None:
    net = dovetail.Network()
    x = net.input("x", "f32", ("N", 4))
    nested = text("""
g (bool c, float[4] x) => (float y) {
  y = If(c) <then_branch = t () => (float u) { a = Neg(x) u = Nowhere(a) v = Nohow(u) }, else_branch = e () => (float u) { u = Neg(x) }>
}""").graph.node[0]
    with pytest.raises(dovetail.UnsupportedOpError) as caught:
        net.node(nested, {"c": net.input("c", "bool", ()), "x": x})
    assert [p.split(":")[0] for p in caught.value.problems] == ["u (Nowhere)", "v (Nohow)"]
    with pytest.raises(dovetail.ModelError, match="'b' is used before any node computes it"):
        net.node(helper.make_node("Add", ["a", "b"], ["y"]), {"a": x})
    assert len(net._context.graph) == 0 and not net._context.session.problems
    made = net.node(helper.make_node("Split", ["a", ""], ["p", "", "q"], axis=1, num_outputs=3), {"a": x, "other": None})
    assert {n: v.shape for n, v in made.items()} == {"p": (sym("N"), 2), "q": (sym("N"), 0)}


def test_a_rejected_attempt_of_a_loop_leaves_no_weights_and_loses_no_guards() -> None:
    session = Session(text("g (float x) => (float y) { y = Neg(x) }"), None)
    session.module.weights["a"] = f32(1)
    mark = session.mark()
    session.module.weights["b"] = f32(1)
    assert session.undo(mark) == {"b"} and list(session.module.weights) == ["a"]
    body = text("""
g (int64 n, float[1] x) => (float[K] y) {
  keep = Constant<value = bool {1}>()
  y = Loop(n, keep, x) <body = b (int64 i, bool go, float[r] a) => (bool more, float[q] b)
    <int64[1] reps = {2}> { b = Tile(a, reps) more = Constant<value = bool {1}>() }>
}""")
    module = import_onnx(body)
    assert [g.weight for g in module.guards] == ["reps"] and "reps" in module.weights
