"""If, Loop and Scan of models defined in Python: what the ONNX importer makes of equal graphs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import dovetail
from dovetail.frontend.importer import import_onnx
from dovetail.ir.clone import clone
from dovetail.ir.printer import print_module
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate
from tests.unit.ir_shape import structure
from tests.unit.network_models import f32, if_network, text

# --- regions --------------------------------------------------------------------------------------


IF = text("""
g (bool c, float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,2] s) {
  a = Mul(x, z)
  y, s = If(c) <
    then_branch = t () => (float[N,4] u, float[N,2] p) { u = Add(x, a) k = Constant<value_ints=[1, 3]>() p = Gather<axis=1>(x, k) },
    else_branch = e () => (float[N,4] u, float[N,2] p) { u = Sub(a, z) k = Constant<value_ints=[0, 1]>() p = Gather<axis=1>(u, k) }>
}""")

LOOP = text("""
g (int64 n, float[M,2] x, float[M,2] w) => (float[M,2] y, float[K,M,2] all) {
  keep = Constant<value = bool {1}>()
  y, all = Loop(n, keep, x) <body = b (int64 i, bool go, float[M,2] a) => (bool more, float[M,2] b, float[M,2] c) {
    b = Mul(a, w)
    f = Cast<to=1>(i)
    c = Add(b, f)
    limit = Constant<value = float {9.0}>()
    s = ReduceMax<keepdims=0>(b)
    more = Less(s, limit)
  }>
}""")

GROWING = text("""
g (int64 n, float[1,2] x) => (float[K,2] y) {
  keep = Constant<value = bool {1}>()
  y = Loop(n, keep, x) <body = b (int64 i, bool go, float[r,2] a) => (bool more, float[q,2] b) {
    b = Concat<axis=0>(a, x)
    more = Constant<value = bool {1}>()
  }>
}""")

SCAN = text("""
g (float[2] h, float[3,T,2] x, float[2,2] w) => (float[2] y, float[2,T,3] out) {
  y, out = Scan <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1], scan_output_axes=[-2], scan_output_directions=[0],
    body = b (float[2] s, float[3,2] p) => (float[2] t, float[2,3] q) {
      r = MatMul(p, w)
      m = ReduceSum<keepdims=0>(r, axes)
      t = Add(s, m)
      q = Transpose(r)
    }>(h, x)
}""".replace("r = MatMul", "axes = Constant<value_ints=[0]>() r = MatMul"))  # fmt: skip


def loop_network() -> dovetail.Network:
    net = dovetail.Network()
    n, x, w = net.input("n", "i64", ()), net.input("x", "f32", ("M", 2)), net.input("w", "f32", ("M", 2))

    def body(inner: Any, i: Any, a: Any) -> tuple[Any, Any, Any]:
        b = inner.op("Mul", a, w)
        c = inner.op("Add", b, inner.op("Cast", i, to="f32"))
        return inner.op("Less", inner.op("ReduceMax", b, keepdims=0), 9.0), b, c

    for value, name in zip(net.loop(body, x, trips=n, condition=True), ("y", "all"), strict=True):
        net.output(value, name)
    return net


def growing_network() -> dovetail.Network:
    net = dovetail.Network()
    n, x = net.input("n", "i64", ()), net.input("x", "f32", (1, 2))
    (y,) = net.loop(lambda inner, i, a: (True, inner.op("Concat", a, x, axis=0)), x, trips=n, condition=True)
    net.output(y, "y")
    return net


def scan_network() -> dovetail.Network:
    net = dovetail.Network()
    h, x, w = net.input("h", "f32", (2,)), net.input("x", "f32", (3, "T", 2)), net.input("w", "f32", (2, 2))

    def body(inner: Any, s: Any, p: Any) -> tuple[Any, Any]:
        r = inner.op("MatMul", p, w)
        return inner.op("Add", s, inner.op("ReduceSum", r, [0], keepdims=0)), inner.op("Transpose", r)

    y, out = net.scan(body, [h], [x], axes=[1], reverse=[True], output_axes=[-2], output_reverse=[False])
    net.output(y, "y")
    net.output(out, "out")
    return net


def feeds_of(kind: str) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    draw = lambda *s: rng.uniform(0.5, 2, s).astype(np.float32)  # noqa: E731
    return {
        "if": {"c": np.array(False), "x": draw(3, 4), "z": draw(3, 4)},
        "loop": {"n": np.array(6), "x": draw(1, 2), "w": draw(1, 2)},
        "growing": {"n": np.array(3), "x": draw(1, 2)},
        "scan": {"h": draw(2), "x": draw(3, 5, 2), "w": draw(2, 2)},
    }[kind]


REGIONS: dict[str, tuple[onnx.ModelProto, Callable[[], dovetail.Network]]] = {
    "if": (IF, if_network), "loop": (LOOP, loop_network), "growing": (GROWING, growing_network), "scan": (SCAN, scan_network),
}  # fmt: skip


@pytest.mark.parametrize("kind", REGIONS)
def test_a_region_is_what_the_importer_makes_of_its_graph(kind: str) -> None:
    proto, make = REGIONS[kind]
    module, want = make().module(), import_onnx(proto)
    verify(module)
    if kind == "growing":  # symbols have the numbers of another run of the importer
        assert [n.op for n in module.main.nodes] == [n.op for n in want.main.nodes]
    else:
        assert structure(module) == structure(want)
    feeds = feeds_of(kind)
    for name, array in evaluate(want, feeds).items():
        np.testing.assert_array_equal(evaluate(module, feeds)[name], array)


def test_captures_pass_through_every_level_between() -> None:
    net = dovetail.Network()
    c, x, w = net.input("c", "bool", ()), net.input("x", "f32", ("N", 3)), net.weight("w", f32(3))

    def body(loop: Any, i: Any, a: Any) -> tuple[bool, Any]:
        doubled = loop.op("Add", a, a)
        return True, loop.if_(c, lambda t: t.op("Add", doubled, w), lambda e: e.op("Mul", x, e.op("Sub", a, w)))

    (y,) = net.loop(body, x, trips=3)
    net.output(y, "y")
    module = net.module()
    verify(module)
    (outer,) = [n for n in module.main.nodes if n.op == "Loop"]
    (inner,) = [n for n in outer.regions[0].nodes if n.op == "If"]
    assert {v.name for v in outer.operands[2:]} == {"c", "w", "x"}
    assert all([v.type for v in r.inputs] == [v.type for v in inner.operands[1:]] for r in inner.regions)
    feed = f32(2, 3)
    weight = module.weights["w"]
    for condition in (True, False):
        want = feed
        for _ in range(3):
            want = want + want + weight if condition else feed * (want - weight)
        np.testing.assert_array_equal(evaluate(module, {"c": np.array(condition), "x": feed})["y"], want)


def test_weights_of_a_body_that_is_traced_twice_are_there_once() -> None:
    net = dovetail.Network()
    x, w = net.input("x", "f32", (1, 2)), f32(1, 2)
    calls: list[int] = []

    def body(inner: Any, i: Any, a: Any) -> tuple[bool, Any]:
        calls.append(1)
        return True, inner.op("Concat", a, inner.weight("row", w), axis=0)

    (y,) = net.loop(body, x, trips=2)
    net.output(y, "y")
    module = net.module()
    verify(module)
    assert len(calls) > 1 and [n for n in module.weights if not n.startswith("~")] == ["row"]
    feed = f32(1, 2)
    np.testing.assert_array_equal(evaluate(module, {"x": feed})["y"], np.concatenate([feed, w, w]))


def test_a_condition_that_is_known_leaves_its_branch() -> None:
    net = dovetail.Network()
    x = net.input("x", "f32", (4,))
    flag = net.weight("flag", np.array(True))
    net.output(net.if_(flag, lambda n: n.op("Neg", x), lambda n: n.op("Abs", x)), "y")
    module = net.module()
    assert [n.op for n in module.main.nodes if n.op != "Constant"] == ["Neg"]
    assert [(g.weight, g.rewrite) for g in module.guards] == [("flag", "branch of If_0")]


def test_bodies_use_the_net_they_get() -> None:
    net = dovetail.Network()
    x = net.input("x", "f32", (4,))
    kept: list[Any] = []

    def body(inner: Any, i: Any, a: Any) -> tuple[bool, Any]:
        kept.append(inner)
        return True, net.op("Neg", a)

    before = print_module(clone(net._context.module))
    with pytest.raises(dovetail.UsageError, match=r"network that is closed, while loop\.body is built; use the net"):
        net.loop(body, x, trips=2)
    with pytest.raises(dovetail.UsageError, match=r"since loop\.body is built"):
        kept[0].op("Neg", x)
    with pytest.raises(dovetail.UsageError, match="got 1 results of the function, expected at least 2"):
        net.loop(lambda inner, i, a: True, x, trips=2)
    with pytest.raises(dovetail.UsageError, match="expected a function that builds the body"):
        net.if_(True, x, x)
    with pytest.raises(dovetail.ModelError, match=r"loop\.body: its function .*lambda.* failed \(ZeroDivisionError"):
        net.loop(lambda inner, i, a: 1 // 0, x, trips=2)
    with pytest.raises(dovetail.UnsupportedOpError, match=r"carried value 0 enters as f32\[4\] and leaves as i64\[4\]"):
        net.loop(lambda inner, i, a: (True, inner.op("Cast", a, to="i64")), x, trips=2)
    assert print_module(clone(net._context.module)) == before
