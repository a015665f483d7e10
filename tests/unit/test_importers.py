"""Importers that users register, the five cases of work on custom ops, and the survey of what can be imported."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, parser

import dovetail
from dovetail.frontend import registry
from dovetail.frontend.importer import import_onnx
from dovetail.ops.evaluate import evaluate
from dovetail.plugins import unregister
from tests.unit.ir_shape import structure

RNG = np.random.default_rng(11)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No importer of a test is seen by another one."""
    before = list(registry._overrides)
    yield
    assert registry._overrides == before


def text(body: str, opset: int = 20, more: str = "") -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}{more}]>\n{body}')


def ops(model: Any) -> list[str]:
    return [n.op for n in import_onnx(model).main.nodes if n.op != "Constant"]


SIGN = text("g (float[N,3,4] x) => (float[N,3,4] y) { y = Sign(x) }")


def sign_by_layers(net: Any, node: Any) -> Any:
    x = node.inputs[0]
    up = net.op("Cast", net.op("Greater", x, 0), to="f32")
    return net.op("Sub", up, net.op("Cast", net.op("Less", x, 0), to="f32"))


# --- the five cases -------------------------------------------------------------------------------


def test_a_missing_op_by_a_plugin_of_its_name() -> None:
    body = "g (float[N,3,4] x) => (float[N,3,4] y) { y = my.own.Scale <factor = 3, plugin_version = \"2\"> (x) }"
    model = text(body, more=', "my.own": 1')

    @dovetail.plugin("Scale", version="2")
    def scale(x: Any, *, factor: float = 1.0) -> Any:
        return x * np.float32(factor)

    try:
        module = import_onnx(model)
        assert [(n.op, n.origin) for n in module.main.nodes] == [("Plugin", ("y",))]
        np.testing.assert_array_equal(evaluate(module, {"x": X})["y"], X * 3)
        net = dovetail.Network()
        net.output(net.plugin("Scale", net.input("x", "f32", ("N", 3, 4)), version="2", factor=3), "y")
        assert structure(net.module()) == structure(module)
        np.testing.assert_array_equal(dovetail.build(net, tune=False).run({"x": X})["y"], X * 3)
        with pytest.raises(dovetail.ModelError, match=r"here \(Scale\): plugin Scale .*unknown attribute 'factr'"):
            net.plugin("Scale", net["x"], version="2", label="here", factr=3)
    finally:
        unregister("Scale", "2")
    with pytest.raises(dovetail.UnsupportedOpError, match=r"y \(my.own::Scale\): no importer, no function body and no plugin"):
        import_onnx(model)


def test_a_missing_op_by_layers() -> None:
    model = text("g (float[N,3,4] x) => (float[N,3,4] y) { y = my.own.Sign (x) }", more=', "my.own": 1')
    with dovetail.importer("Sign", domain="my.own").use(sign_by_layers):
        module = import_onnx(model)
        engine = dovetail.build(model, tune=False)
    assert [n.op for n in module.main.nodes if n.op != "Constant"] == ["Greater", "Cast", "Less", "Cast", "Sub"]
    assert {n.origin for n in module.main.nodes if n.op != "Constant"} == {("y",)} and module.main.outputs[0].name == "y"
    np.testing.assert_array_equal(evaluate(module, {"x": X})["y"], np.sign(X))
    np.testing.assert_array_equal(engine.run({"x": X})["y"], np.sign(X))


def test_a_slow_op_replaced_and_put_back() -> None:
    assert ops(SIGN) == ["Sign"]

    @dovetail.importer("Sign")
    def by_layers(net: Any, node: Any) -> Any:
        return sign_by_layers(net, node)

    assert len(ops(SIGN)) == 5
    by_layers.remove()
    by_layers.remove()
    assert ops(SIGN) == ["Sign"]


def test_a_choice_by_shape_and_attribute() -> None:
    def short_rows_by_products(net: Any, node: Any) -> Any:
        x = node.inputs[0]
        if x.shape[-1] != 4 or not node.attrs.get("keepdims", 1):
            return net.op("ReduceSum", *node.inputs, opset=node.opset, **node.attrs)  # as without this importer
        return net.op("MatMul", x, np.ones((4, 1), np.float32))

    def sums(length: int, keep: int) -> onnx.ModelProto:
        return text(f"g (float[N,3,{length}] x) => (float[A,B,C] y) <int64[1] a = {{-1}}> {{ y = ReduceSum<keepdims={keep}>(x, a) }}")

    with dovetail.importer("ReduceSum").use(short_rows_by_products):
        assert (ops(sums(4, 1)), ops(sums(5, 1)), ops(sums(4, 0))) == (["MatMul"], ["ReduceSum"], ["ReduceSum"])
        got = evaluate(import_onnx(sums(4, 1)), {"x": X})["y"]
    np.testing.assert_allclose(got, X.sum(-1, keepdims=True), rtol=1e-6)


def test_an_importer_that_is_wrong_is_put_right() -> None:
    """Exporters write comparisons of bools with weights that another runtime stores as bytes: cast them at import."""
    model = text("g (bool[4] x) => (bool[4] y) <uint8[4] w = {1, 0, 1, 1}> { y = And(x, w) }")

    def cast_weights(net: Any, node: Any) -> Any:
        return net.op("And", *(v if v.dtype.name == "bool" else net.op("Cast", v, to="bool") for v in node.inputs))

    with dovetail.importer("And", opset=(7, None)).use(cast_weights):
        module = import_onnx(model)
    x = np.array([True, True, False, True])
    np.testing.assert_array_equal(evaluate(module, {"x": x})["y"], [True, False, False, True])
    assert not module.guards and "w" in module.weights  # the weight may still be refitted


# --- rules ----------------------------------------------------------------------------------------


def tagged(name: str) -> Any:
    return lambda net, node: net.op(name, node.inputs[0])


def test_the_last_importer_wins_and_stands_on_the_one_before() -> None:
    with dovetail.importer("Sign").use(tagged("Abs")):
        with dovetail.importer("Sign").use(lambda net, node: net.op("Neg", net.op("Sign", node.inputs[0]))):
            assert ops(SIGN) == ["Abs", "Neg"]
        assert ops(SIGN) == ["Abs"]
        assert registry.find_importer("Sign", 20).__class__ is registry.Override


def test_an_overridden_op_takes_what_its_importer_takes() -> None:
    seen: list[Any] = []

    def add(net: Any, node: Any) -> Any:
        seen.append(([v.dtype.name for v in node.inputs], node.attrs))
        return net.op("Sum", *(net.op("Cast", v, to="f16") for v in node.inputs))

    net = dovetail.Network()
    x, flags = net.input("x", "f16", (2,)), net.input("b", "bool", (2,))
    with dovetail.importer("Add").use(add):
        net.op("Add", x, 1, flags, odd=(1, 2))
    assert seen == [(["f16", "f16", "bool"], {"odd": [1, 2]})]


def test_opset_ranges_and_domains_select() -> None:
    model = lambda opset: text("g (float[4] x) => (float[4] y) { y = Sign(x) }", opset)  # noqa: E731
    with dovetail.importer("Sign", opset=(10, 13)).use(tagged("Abs")), dovetail.importer("Sign", "other").use(tagged("Exp")):
        assert [ops(model(v)) for v in (9, 10, 13, 14)] == [["Sign"], ["Abs"], ["Abs"], ["Sign"]]
    with dovetail.importer("Sign", "ai.onnx", opset=14).use(tagged("Abs")):
        assert [ops(model(v)) for v in (13, 14, 20)] == [["Sign"], ["Abs"], ["Abs"]]


def test_importers_serve_subgraphs_functions_and_networks() -> None:
    branches = text("""
g (bool c, float[N,3,4] x) => (float[N,3,4] y) {
  y = If(c) <then_branch = t () => (float[N,3,4] u) { u = Sign(x) }, else_branch = e () => (float[N,3,4] u) { u = local.twice(x) }>
}
<domain: "local", opset_import: ["" : 20]> twice (a) => (b) { s = Sign(a) b = Add(s, s) }""", more=', "local": 1')
    with dovetail.importer("Sign").use(tagged("Abs")):
        (node,) = [n for n in import_onnx(branches).main.nodes if n.op == "If"]
        assert [[n.op for n in r.nodes] for r in node.regions] == [["Abs"], ["Abs", "Add"]]
        net = dovetail.Network()
        net.output(net.op("Sign", net.input("x", "f32", (2,))), "y")
    assert [n.op for n in net.module().main.nodes] == ["Abs"]


def test_regions_weights_and_constants_inside_of_importers() -> None:
    def clever(net: Any, node: Any) -> Any:
        x = node.inputs[0]
        scale = net.read(node.inputs[1], "scale of Clever")
        (steps,) = net.dims(net.op("Shape", x, start=0, end=1))
        assert scale is not None and net.read(x, "nothing") is None and str(steps) == "N"
        (total,) = net.loop(lambda inner, i, a: (True, inner.op("Add", a, x)), x, trips=int(scale[0]))
        return total, net.constant(scale), None

    model = text("g (float[N,3] x) => (float[N,3] y, float[1] s) <float[1] k = {2}> { y, s, t = my.Clever(x, k) }", more=', "my": 1')
    with dovetail.importer("Clever", "my").use(clever):
        module = import_onnx(model)
    assert [(g.weight, g.rewrite) for g in module.guards] == [("k", "scale of Clever")]
    x = X[:, 0, :3]
    got = evaluate(module, {"x": x})
    np.testing.assert_array_equal(got["y"], x + x + x)
    np.testing.assert_array_equal(got["s"], [2])


def test_an_importer_may_try_and_do_something_else() -> None:
    def careful(net: Any, node: Any) -> Any:
        x = node.inputs[0]
        for attempt in ("Nowhere", "Gemm", "Resize", "Abs"):
            try:
                return net.op(attempt, x)
            except dovetail.ModelError:
                continue

    def careful_body(net: Any, node: Any) -> Any:
        x, c = node.inputs[0], net.op("Greater", net.op("ReduceMax", node.inputs[0], keepdims=0), 0)
        return net.if_(c, lambda inner: careful(inner, node), lambda inner: inner.op("Neg", x))

    with dovetail.importer("Sign").use(careful):
        assert ops(SIGN) == ["Abs"] and not import_onnx(SIGN).weights
    with dovetail.importer("Sign").use(careful_body):
        module = import_onnx(SIGN)
    assert [[n.op for n in r.nodes] for n in module.main.nodes for r in n.regions] == [["Abs"], ["Neg"]]
    np.testing.assert_array_equal(evaluate(module, {"x": X})["y"], np.abs(X))


@pytest.mark.parametrize(
    "function, kind, message",
    [
        (lambda net, node: net.unsupported("too odd", "do without"), dovetail.UnsupportedOpError, r"y \(Sign\): too odd; do without"),
        (lambda net, node: node.nothing, dovetail.ModelError, r"y \(Sign\): its importer .* failed \(AttributeError: .*that function"),
        (lambda net, node: np.zeros(3), dovetail.ModelError, "returned array.* as output 0, expected a value"),
        (lambda net, node: None, dovetail.ModelError, "outputs .*'y'.* are computed by no node"),
        (lambda net, node: (), dovetail.ModelError, "got 1 outputs in the model, expected at most 0"),
        (lambda net, node: net.op("Add", node.inputs[0], np.zeros(7, np.float32)), dovetail.ModelError, r"y \(Add\): broadcast"),
        (lambda net, node: dovetail.Network().input("q", "f32", (1,)), dovetail.UsageError, "a value of another network"),
        (lambda net, node: net.op("Nowhere", node.inputs[0]), dovetail.UnsupportedOpError, r"y \(Nowhere\): no importer"),
    ],
    ids=["unsupported", "bug", "array", "none", "empty", "shapes", "foreign", "unknown"],
)
def test_faults_of_importers_say_where_they_are(function: Any, kind: type[Exception], message: str) -> None:
    with dovetail.importer("Sign").use(function), pytest.raises(kind, match=message):
        import_onnx(SIGN)


@pytest.mark.parametrize("arguments", [("",), (3,), ("Sign", "", (3, 2)), ("Sign", "", ("1", None)), ("Sign", "", 1.5)])
def test_registrations_that_make_no_sense_are_refused(arguments: Any) -> None:
    with pytest.raises(dovetail.UsageError, match="importer"):
        dovetail.importer(*arguments)
    with pytest.raises(dovetail.UsageError, match="expected a function"):
        dovetail.importer("Sign").use("text")  # type: ignore[arg-type]
    with pytest.raises(dovetail.UsageError, match=r"others are registered with importer\(…\)\.use"):
        dovetail.importer("Sign")(max)


# --- survey ---------------------------------------------------------------------------------------


def test_a_survey_says_of_every_node_how_it_fares() -> None:
    model = text("""
g (float[4] x, bool c) => (float[4] y) <float[3] w = {1, 2, 3}> {
  a = Neg(x)
  b = my.Nowhere(a)
  d = Add(a, w)
  e = Add(b, d)
  f = other.Nohow(e)
  y = If(c) <then_branch = t () => (float[4] u) { u = Sign(a) }, else_branch = s () => (float[4] u) { v = my.Nowhere(a) u = my.Nohow(v) }>
}""", more=', "my": 1, "other": 1')
    found = dovetail.survey(model)
    assert [(s.index, s.name, s.op, s.domain, s.supported, s.blocked) for s in found] == [
        (0, "a", "Neg", "", True, False),
        (1, "b", "Nowhere", "my", False, False),
        (2, "d", "Add", "", False, False),
        (3, "e", "Add", "", True, True),
        (4, "f", "Nohow", "other", False, False),
        (5, "y", "If", "", False, False),
    ]
    assert found[2].reasons[0].startswith("d (Add): broadcast: shapes")
    assert [r.split(":", 1)[0] for r in found[5].reasons] == ["v (my", "u (my"]
    with dovetail.importer("Nowhere", "my").use(tagged("Abs")):
        assert [s.supported for s in dovetail.survey(model)] == [True, True, False, True, False, False]
    with pytest.raises(dovetail.ModelError, match=r"got \['q'\], expected names of inputs"):
        dovetail.survey(model, {"q": (1,)})
    assert all(s.supported and not s.reasons for s in dovetail.survey(SIGN))


def test_a_survey_of_a_node_that_is_invalid_goes_on() -> None:
    node = helper.make_node("Relu", ["nothing"], ["z"], name="lost")
    model = text("g (float[4] x) => (float[4] y) { y = Neg(x) }")
    model.graph.node.insert(0, node)
    first, second = dovetail.survey(model)
    assert not first.supported and "'nothing' is used before any node computes it" in first.reasons[0] and second.supported
