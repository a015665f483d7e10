"""Models defined in Python are the models that the ONNX importer makes of equal graphs, and bad calls change nothing."""

import threading
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.core.dims import sym
from dovetail.frontend.arguments import type_code
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import read_tensor
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate
from models import zoo
from tests.unit.ir_shape import structure
from tests.unit.network_models import f32, if_network, text
from tests.unit.small_models import classifier

NEWEST = onnx.defs.onnx_opset_version()


class Given:
    """A run-time input of a case."""

    def __init__(self, *shape: int | str, kind: str = "f32") -> None:
        self.shape, self.kind = shape, kind


X = Given("N", 3, 7, 5)
I64 = np.int64

CASES: dict[str, tuple[str, list[Any], dict[str, Any], dict[str, Any]]] = {
    # name: op, inputs (Given = input, array = initializer), attributes, keywords of `op`
    "conv": ("Conv", [X, f32(4, 3, 3, 3), f32(4)], {"pads": [1, 0, 1, 2], "strides": [2, 1]}, {}),
    "conv_same": ("Conv", [X, f32(4, 3, 2, 2)], {"auto_pad": "SAME_UPPER"}, {}),
    "conv_transpose": ("ConvTranspose", [X, f32(3, 2, 3, 3)], {"strides": [2, 2], "output_padding": [1, 1]}, {}),
    "gemm": ("Gemm", [Given("N", 6), f32(4, 6), f32(4)], {"transB": 1, "alpha": 0.5}, {}),
    "batch_norm": ("BatchNormalization", [X, f32(3), f32(3), f32(3), np.abs(f32(3))], {"epsilon": 1e-3}, {}),
    "layer_norm": ("LayerNormalization", [X, f32(5), f32(5)], {"axis": -1}, {}),
    "group_norm": ("GroupNormalization", [Given("N", 4, 3), f32(4), f32(4)], {"num_groups": 2}, {}),
    "max_pool_ceil": ("MaxPool", [X], {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 2]}, {}),
    "max_pool_indices": ("MaxPool", [X], {"kernel_shape": [2, 2]}, {"outputs": 2}),
    "reshape": ("Reshape", [X, np.array([0, -1, 5], I64)], {}, {}),
    "slice": ("Slice", [X, *(np.array(v, I64) for v in ([-1, 1], [-9, 4], [2, 3], [-2, 1]))], {}, {}),
    "pad_negative": ("Pad", [X, np.array([0, 0, 1, -1, 0, 0, 2, 0], I64), np.float32(2)], {"mode": "constant"}, {}),
    "split_sizes": ("Split", [X, np.array([1, 4], I64)], {"axis": 3}, {}),
    "split_number": ("Split", [X], {"axis": 2, "num_outputs": 3}, {}),
    "top_k": ("TopK", [X, np.array([2], I64)], {"axis": -2, "largest": 0}, {}),
    "lstm": (
        "LSTM", [Given(4, "N", 3), f32(2, 8, 3), f32(2, 8, 2), f32(2, 16)], {"hidden_size": 2, "direction": "bidirectional"},
        {"outputs": 3},
    ),
    "gather_nd": ("GatherND", [X, np.array([[0, 1], [0, 2]], I64)], {}, {}),
    "one_hot": ("OneHot", [Given("N", 3, kind="i64"), np.array(5, I64), np.array([-1, 2], np.float32)], {"axis": 1}, {}),
    "resize": ("Resize", [X, None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "linear"}, {}),
    "cast": ("Cast", [X], {"to": TensorProto.FLOAT16}, {}),
    "einsum": ("Einsum", [Given("N", 3, 4), f32(4, 2)], {"equation": "bij,jk->bki"}, {}),
    "concat": ("Concat", [X, X, f32(1, 3, 7, 5)], {"axis": 0}, {}),
    "softmax_empty": ("Softmax", [Given(0, 3)], {"axis": 1}, {}),
    "scalar": ("Neg", [Given()], {}, {}),
    "non_zero": ("NonZero", [Given("N", 3)], {}, {}),
    "cumsum": ("CumSum", [X, np.array(1, np.int32)], {"reverse": 1}, {}),
    "attention": ("Attention", [Given("N", 2, "S", 4)] * 3, {"is_causal": 1}, {}),
    "function_body": ("MeanVarianceNormalization", [X], {"axes": [0, 2, 3]}, {}),
    "old_softmax": ("Softmax", [X], {"axis": 1}, {"opset": 11}),
    "old_dropout": ("Dropout", [X], {"ratio": 0.3}, {"opset": 10}),
    "contrib": ("Gelu", [X], {}, {"domain": "com.microsoft"}),
    "strings": ("StringConcat", [Given("N", kind="str"), Given("N", kind="str")], {}, {}),
    "shape_part": ("Shape", [X], {"start": 1, "end": -1}, {}),
    "constant_of_shape": ("ConstantOfShape", [np.array([2, 3], I64)], {"value": np.array([7], np.int32)}, {}),
}  # fmt: skip


def as_onnx(op: str, inputs: list[Any], attributes: dict[str, Any], outputs: int, opset: int, domain: str) -> onnx.ModelProto:
    declared, initializers, names = {}, {}, []
    for i, value in enumerate(inputs):
        same = next((j for j in range(i) if inputs[j] is value), i)
        names.append("" if value is None else f"i{same}")
        if isinstance(value, Given):
            code = type_code(value.kind)
            declared[f"i{same}"] = helper.make_tensor_value_info(f"i{same}", code, list(value.shape))
        elif value is not None:
            initializers[f"i{i}"] = numpy_helper.from_array(np.asarray(value), f"i{i}")
    given = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, name="n", **given)
    graph = helper.make_graph(
        [node], "one", list(declared.values()), [helper.make_empty_tensor_value_info(r) for r in results], list(initializers.values())
    )
    imports = [helper.make_opsetid("", NEWEST if domain else opset), *([helper.make_opsetid(domain, opset)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("name", CASES)
def test_an_op_is_what_the_importer_makes_of_its_node(name: str) -> None:
    op, inputs, attributes, keywords = CASES[name]
    net = dovetail.Network()
    values: list[Any] = []
    for i, value in enumerate(inputs):
        same = next((j for j in range(i) if inputs[j] is value), i)
        if isinstance(value, Given):
            values.append(values[same] if same < i else net.input(f"i{i}", value.kind, value.shape))
        else:
            values.append(value if value is None or i % 2 else net.weight(f"i{i}", value))
    made = net.op(op, *values, **keywords, **attributes)
    results = made if isinstance(made, tuple) else (made,)
    for i, value in enumerate(results):
        net.output(value, f"y{i}")
    module = net.module()
    verify(module)
    domain = keywords.get("domain", "")
    want = import_onnx(as_onnx(op, inputs, attributes, len(results), keywords.get("opset", 1 if domain else NEWEST), domain))
    assert structure(module) == structure(want)
    assert module.meta["output_names"] == want.meta["output_names"]
    assert [v.name for v in module.main.inputs] == [v.name for v in want.main.inputs]


@pytest.mark.parametrize(
    "name", ["torchvision_squeezenet1_1", "dynamic_loop_if", "dynamic_lstm_gru", "timm_mixer_s32_224", "transformers_vit_opset23"]
)
def test_a_model_node_by_node_is_the_model(name: str) -> None:
    proto = zoo.load(name)
    net, scope = dovetail.Network(), {}
    initializers = {t.name: t for t in proto.graph.initializer}
    for v in proto.graph.input:
        if v.name not in initializers:
            tensor = v.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
            scope[v.name] = net.input(v.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)
    scope |= {n: net.weight(n, read_tensor(t, None)) for n, t in initializers.items()}
    opsets = {o.domain: o.version for o in proto.opset_import}
    for node in proto.graph.node:
        scope |= net.node(node, scope, opsets, functions=proto.functions)
    for o in proto.graph.output:
        net.output(scope[o.name], o.name)
    whole, module = import_onnx(proto), net.module()
    assert structure(module) == structure(whole)
    assert set(module.guards) == set(whole.guards)
    assert [n.origin for n in module.main.nodes if n.op != "Constant"] == [n.origin for n in whole.main.nodes if n.op != "Constant"]


# --- inputs, outputs, weights, names --------------------------------------------------------------


def test_numbers_take_the_element_type_of_their_place() -> None:
    net = dovetail.Network()
    x = net.input("x", "f16", ("N", 4))
    assert net.op("Add", x, 1).dtype.name == "f16"
    assert net.op("Clip", x, 0, 6.5).dtype.name == "f16"
    assert net.op("Reshape", x, (-1, 2)).shape == (sym("N") * 2, 2)
    assert net.op("Where", net.op("Greater", x, 0), x, 0.0).dtype.name == "f16"
    assert net.op("Gather", x, [[0, 1], [2, 3]], axis=1).shape == (sym("N"), 2, 2)
    assert net.op("Pow", x, 2).dtype.name == "f16"
    assert net.op("Add", 1, 2.5, opset=14).dtype.name == "f32"
    assert net.constant([1, 2]).dtype.name == "i64"
    assert net.constant(["a", "b"]).dtype.name == "str"
    assert net.constant(np.zeros((0, 2), np.float16)).shape == (0, 2)


def test_dims_are_sizes_symbols_ranges_or_open() -> None:
    net = dovetail.Network()
    x = net.input("x", np.float32, (2, "N", "1..32", "M=2..8@4", None, np.int64(3)))
    n, anonymous = x.shape[1], x.shape[4]
    y = net.input("y", "i8", (n, anonymous))
    assert x.shape[:2] == (2, sym("N")) and x.shape[5] == 3 and y.shape == (n, anonymous)
    assert len({str(d) for d in x.shape}) == 6
    net.output(net.op("Neg", x), "z")
    bounds = net.module().meta["symbol_bounds"]
    assert bounds == {str(x.shape[2]): [1, 32, 32], "M": [2, 8, 4]}
    module = net.module({"x": (2, 5, "1..4", "K", 7, 3)})
    assert [str(d) for d in module.main.inputs[0].shape] == ["2", "5", str(x.shape[2]), "K", "7", "3"]
    assert [str(d) for d in module.main.inputs[1].shape] == ["5", "7"]
    assert module.main.outputs[0].shape == module.main.inputs[0].shape
    assert module.meta["symbol_bounds"] == {str(x.shape[2]): [1, 4, 4], "K": [2, 8, 4]}
    assert net.module().meta["symbol_bounds"] == bounds


def test_arrays_come_in_every_order_and_kind() -> None:
    net = dovetail.Network()
    plain = f32(3, 4)
    twice = plain[:, ::-1][:, ::-1]
    strange = [plain.astype(">f4"), np.asfortranarray(plain), twice, np.array(2, ml_dtypes.bfloat16), np.array(["a", "bc"])]
    for i, array in enumerate(strange):
        net.output(net.weight(f"w{i}", array), f"y{i}")
    got = evaluate(net.module(), {})
    for i in range(3):
        np.testing.assert_array_equal(got[f"y{i}"], plain)
        assert net._context.module.weights[f"w{i}"].flags.c_contiguous
    assert got["y3"].shape == () and got["y3"].dtype == ml_dtypes.bfloat16 and got["y4"].tolist() == ["a", "bc"]
    with pytest.raises(dovetail.UsageError, match="dtype: got"):
        net.weight("when", np.array(["2020-01-01"], "datetime64[D]"))


@pytest.mark.parametrize(
    "shapes, message",
    [
        ({"q": (1,)}, r"got \['q'\], expected names of inputs: \['x', 'y'\]"),
        ({"x": (1,)}, "got 1 dimensions for input 'x', expected 2"),
        ({"x": (1, 4)}, "got 4 for axis 1 of input 'x', expected 3, which the network was defined with"),
        ({"x": (1, "1..3")}, "got '1..3' for axis 1"),
        ({"x": (1, 3), "y": (2,)}, "got 1 and 2 for N, expected one"),
        ({"x": (-1, 3)}, "got size -1 on axis 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: Any, message: str) -> None:
    net = dovetail.Network()
    net.output(net.op("Mul", net.input("x", "f32", ("N", 3)), 2), "z")
    net.output(net.op("Neg", net.input("y", "f32", ("N",))), "w")
    with pytest.raises(dovetail.ModelError, match=message):
        net.module(shapes)


def test_names_are_origins_and_values_are_unique() -> None:
    net = dovetail.Network()
    x = net.input("x", "f32", ("N", 4))
    a = net.op("Relu", x, name="act")
    b = net.op("Neg", a, name="act")
    with net.named("block"):
        c = net.op("Add", net.op("Exp", b), net.op("Abs", b, name="own"))
    d, e = net.op("Split", c, num_outputs=2, axis=1, outputs=["left", "right"])
    f = net.op("Identity", a, name="same")
    assert (a.name, b.name, d.name, e.name, f) == ("act", "act.1", "left", "right", a)
    origins = [origin for n in net._context.graph.nodes for origin in n.origin]
    assert origins == ["act", "act", "block", "own", "block", "Split_0", "Split_0"]
    _, last = net.op("LSTM", net.input("s", "f32", (3, 1, 2)), f32(1, 8, 2), f32(1, 8, 2), hidden_size=2, outputs=["", "h"])
    assert last.name == "h" and net.op("Neg", a, attributes={}).name == "Neg_0"
    grown = dovetail.Network.from_onnx(text("g (float[4] x) => (float[4] y) { Neg_7 = Neg(x) y = Abs(Neg_7) }"))
    assert grown.op("Neg", grown["x"]).name == "Neg_8"
    net.rename(e, "right hand")
    assert net["right hand"] is e
    with pytest.raises(dovetail.UsageError, match=r"rename: got %x and the name 'z'"):
        net.rename(x, "z")
    net.output(d, "y")
    assert d.name == "y" and net["y"] is d and net["act"] is a and net["x"] is x
    with pytest.raises(dovetail.UsageError, match="got the name 'nothing'"):
        net["nothing"]


def test_any_value_may_become_an_output_later() -> None:
    net = dovetail.Network.from_onnx(classifier())
    assert list(net.inputs) == ["x"] and list(net.outputs) == ["y"]
    middle = net["r"]
    net.output(middle)
    net.output(middle, "half", dtype="f16")
    net.output(net["x"], "back")
    net.output(net["w2"], "matrix")
    net.output(net["y"], "again")
    net.remove_output("y")
    feeds = {"x": f32(2, 3, 12, 12)}
    got, want = evaluate(net.module(), feeds), evaluate(import_onnx(classifier()), feeds, also=["r"])
    assert list(got) == ["r", "half", "back", "matrix", "again"]
    np.testing.assert_array_equal(got["r"], want["r"])
    np.testing.assert_array_equal(got["half"], want["r"].astype(np.float16))
    np.testing.assert_array_equal(got["again"], want["y"])
    np.testing.assert_array_equal(got["back"], feeds["x"])
    engine = dovetail.build(net, tune=False)
    assert [b.name for b in engine.outputs] == list(got)
    for name, array in engine.run(feeds).items():
        np.testing.assert_allclose(array, got[name], rtol=1e-3, atol=1e-5)


def test_unread_weights_and_later_ops_are_no_part_of_a_module() -> None:
    net = dovetail.Network()
    x, _ = net.input("x", "f32", (2,)), net.weight("unread", f32(3))
    net.output(net.op("Add", x, net.weight("w", f32(2))), "y")
    first = net.module()
    net.output(net.op("Neg", net["y"]), "z")
    assert set(first.weights) == {"w"} and len(list(first.main.nodes)) == 2
    assert net.module().meta["output_names"] == ["y", "z"] and net.module().main is not net.module().main


# --- engines --------------------------------------------------------------------------------------


def small_network() -> dovetail.Network:
    net = dovetail.Network()
    x = net.input("x", "f32", ("N=1..4", 3, 9, 7))
    y = net.op("Conv", x, net.weight("conv.w", f32(8, 3, 3, 3)), net.weight("conv.b", f32(8)), pads=(1, 1, 1, 1), name="conv")
    y = net.op("GlobalAveragePool", net.op("Relu", y))
    net.output(net.op("Softmax", net.op("Flatten", y), axis=-1), "y")
    return net


def test_engines_of_networks_run_save_and_compare(tmp_path: Any) -> None:
    net = small_network()
    engine = dovetail.build(net, tune=False)
    feeds = {"x": f32(3, 3, 9, 7)}
    want = evaluate(net.module(), feeds)["y"]
    np.testing.assert_allclose(engine.run(feeds)["y"], want, rtol=1e-5, atol=1e-6)
    assert dovetail.compare(net, engine, layers=True).ok
    engine.save(tmp_path / "net.plan")
    np.testing.assert_array_equal(dovetail.load(tmp_path / "net.plan").run(feeds)["y"], engine.run(feeds)["y"])
    fixed = dovetail.build(net, shapes={"x": (3, 3, 9, 7)}, tune=False)
    assert fixed.inputs[0].shape == (3, 3, 9, 7)
    np.testing.assert_allclose(fixed.run(feeds)["y"], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(dovetail.ShapeError):
        engine.run({"x": f32(5, 3, 9, 7)})


def test_networks_are_independent_across_threads() -> None:
    def work(results: list[Any], index: int) -> None:
        net = if_network()
        results[index] = structure(net.module())

    results: list[Any] = [None] * 4
    threads = [threading.Thread(target=work, args=(results, i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(r == results[0] for r in results) and results[0] is not None


def test_only_onnx_is_read_as_onnx() -> None:
    from dovetail.frontend.reader import read_model

    with pytest.raises(dovetail.UsageError, match="got a Network, expected ONNX"):
        read_model(small_network())


def test_weights_are_what_a_complete_source_of_a_refit_has() -> None:
    net = dovetail.Network()
    x = net.input("x", "f32", (2, 3))
    net.output(net.op("Add", x, net.weight("w", np.ones(3, np.float32))), "y")
    assert "w" not in net.module().meta.get("node_constants", ())
