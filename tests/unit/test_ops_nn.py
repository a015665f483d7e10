"""The neural-network and control families: references against specs, imported ONNX against ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from dovetail import reference
from dovetail.core import dtypes as d
from dovetail.core.dims import Expr, ceil_div, sym
from dovetail.core.errors import ModelError, TypeInferenceError, UnsupportedOpError
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.onnx.contraction import same_pads
from dovetail.ir.types import TensorType
from dovetail.ops import registry as specs
from dovetail.ops import spec
from dovetail.ops.evaluate import evaluate
from tests.samples.nn import SAMPLES
from tests.samples.sample import Array

FAMILIES = ("contraction", "pooling", "normalization", "attention", "recurrent")


# ---------------------------------------------------------------- references and specs agree
def test_every_op_has_a_reference_and_a_sample() -> None:
    modules = {f"dovetail.ops.{name}" for name in FAMILIES}
    for module in modules:
        importlib.import_module(module)
    declared = {name for name in specs.names() if spec(name).infer_function.__module__ in modules}
    assert len(declared) == 15
    assert declared <= set(reference.names())
    assert declared == {s.op for s in SAMPLES}


@pytest.mark.parametrize("op", sorted({s.op for s in SAMPLES}))
def test_reference_matches_inferred_types_and_leaves_inputs_alone(op: str) -> None:
    for sample in (s for s in SAMPLES if s.op == op):
        arrays = sample.make()
        for array in arrays:
            if array is not None:
                array.flags.writeable = False
        types = [None if a is None else TensorType(d.dtype(a.dtype), a.shape) for a in arrays]
        results = reference.call(op, arrays, spec(op).complete(sample.attrs))
        inferred = spec(op).infer(*types, **sample.attrs)
        assert [(d.dtype(a.dtype), a.shape) for a in results] == [(t.dtype, t.shape) for t in inferred], sample


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "message"),
    [
        ("MatMul", ((2, 3), (4, 5)), {}, "inner extents, got 3 and 4"),
        ("Conv", ((1, 3, 5, 5), (2, 4, 3, 3)), {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}, "channels of x"),
        ("Conv", ((1, 4, 5, 5), (2, 4, 3, 3)), {"strides": (1,), "pads": (0,) * 4, "dilations": (1, 1)}, "strides, got 1 entries"),
        ("Conv", ((1, 4, 2, 9), (2, 4, 5, 5)), {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}, "larger than its padded"),
        ("MaxPool", ((1, 4),), {"kernel": (), "strides": (), "pads": (), "dilations": ()}, "rank 3 or more"),
        ("LayerNormalization", ((2, 3),), {"axis": 2}, "axis, got 2"),
        ("GroupNormalization", ((1, 5, 2), (5,), (5,)), {"num_groups": 2}, "num_groups, got 2"),
        ("Attention", ((1, 3, 2, 4), (1, 2, 5, 4), (1, 2, 5, 4)), {"scale": 1.0}, "heads, got 3 of q and 2 of k"),
        ("Attention", ((1, 2, 8), (1, 2, 8), (1, 2, 8)), {"scale": 1.0}, "with 0 heads"),
    ],
)
def test_bad_operands_are_named(op: str, shapes: Sequence[tuple[int, ...]], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeInferenceError, match=message):
        spec(op).infer(*(TensorType(d.F32, s) for s in shapes), **attrs)


# ---------------------------------------------------------------- against ONNX Runtime
def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def single(node: onnx.NodeProto, arrays: Sequence[Array | None], weights: set[int], opset: int, symbolic: bool) -> onnx.ModelProto:
    inputs, initializers = [], []
    for i, array in enumerate(arrays):
        if array is None:
            continue
        if i in weights:
            initializers.append(numpy_helper.from_array(array, f"x{i}"))
        else:
            # The first input has free batch and spatial extents; channels are known, as in real models.
            shape = [f"d{a}" if symbolic and i == 0 and a != 1 else n for a, n in enumerate(array.shape)]
            inputs.append(helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    results = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "g", inputs, results, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def check(op: str, arrays: Sequence[Array | None], *, opset: int = 22, outputs: int = 1, symbolic: bool = True, **attrs: Any) -> None:
    """Import with fixed and with symbolic extents, with weights as initializers and as inputs; all equal ONNX Runtime."""
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attrs)
    feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
    wanted = session_of(single(node, arrays, set(), opset, False)).run(None, feeds)
    for weights in (set(range(1, len(arrays))), set[int]()):
        for free in (False, True) if symbolic else (False,):
            module = import_onnx(single(node, arrays, weights, opset, free))
            used = {v.name for v in module.main.inputs}
            got = evaluate(module, {k: v for k, v in feeds.items() if k in used})
            for ours, theirs in zip(got.values(), wanted, strict=True):
                assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, (op, attrs, free)
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=f"{op} {attrs} {free}")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("trans", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm(trans: tuple[int, int]) -> None:
    a, b = normal(3, 4), normal(4, 5)
    arrays = [a.T.copy() if trans[0] else a, b.T.copy() if trans[1] else b, normal(3, 1)]
    check("Gemm", arrays, transA=trans[0], transB=trans[1], alpha=0.5, beta=2.0, symbolic=False)
    check("Gemm", arrays[:2], transA=trans[0], transB=trans[1], symbolic=False)


AUTO = [{"auto_pad": a, "strides": s} for a in ("SAME_UPPER", "SAME_LOWER", "VALID") for s in ((1, 1), (2, 2), (3, 2))]


@pytest.mark.parametrize("attrs", [*AUTO, {"pads": (1, 0, 2, 1), "dilations": (2, 1)}, {"group": 2}])
def test_conv(attrs: dict[str, Any]) -> None:
    check("Conv", [normal(2, 4, 11, 10), normal(6, 4 // attrs.get("group", 1), 3, 4), normal(6)], **attrs)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": (2, 2), "output_padding": (1, 0), "pads": (1, 1, 0, 2)},
        {"strides": (2, 3), "group": 2, "dilations": (1, 2)},
        {"strides": (3, 2), "output_shape": (17, 12)},
        {"strides": (2, 2), "auto_pad": "SAME_UPPER"},
        {"strides": (2, 2), "auto_pad": "SAME_LOWER"},
    ],
)
def test_conv_transpose(attrs: dict[str, Any]) -> None:
    symbolic = "output_shape" not in attrs
    check("ConvTranspose", [normal(2, 4, 6, 5), normal(4, 3, 3, 3), None], symbolic=symbolic, **attrs)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": (3, 2)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1},
        {"kernel_shape": (2, 2), "strides": (3, 3), "pads": (0, 0, 1, 1), "ceil_mode": 1},
        {"kernel_shape": (3, 3), "strides": (2, 2), "auto_pad": "SAME_UPPER"},
        {"kernel_shape": (3, 3), "strides": (2, 1), "auto_pad": "SAME_LOWER"},
        {"kernel_shape": (2, 2), "dilations": (2, 3)},
    ],
)
def test_pools(op: str, attrs: dict[str, Any]) -> None:
    for size in (7, 8, 9, 10):
        check(op, [normal(1, 2, size, size + 1)], **attrs)
        if op == "AveragePool" and not attrs.get("ceil_mode"):
            check(op, [normal(1, 2, size, size + 1)], count_include_pad=1, **attrs)
    if op == "MaxPool":
        check(op, [normal(2, 3, 8, 9)], outputs=2, **attrs)


def test_average_pool_in_ceil_mode_counts_given_pads_only() -> None:
    # ONNX's own reference: the first window sees a pad and two elements, the last one two elements and what ceil adds.
    node = helper.make_node(
        "AveragePool", ["x0"], ["y0"], kernel_shape=(3,), strides=(2,), pads=(1, 0), ceil_mode=1, count_include_pad=1
    )
    x = np.ones((1, 1, 4), np.float32)
    for symbolic in (False, True):
        (y,) = evaluate(import_onnx(single(node, [x], set(), 22, symbolic)), {"x0": x}).values()
        np.testing.assert_allclose(y, [[[2 / 3, 1.0]]], rtol=1e-6)


def test_global_pools_and_lp_pool() -> None:
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        check(op, [normal(2, 3, 5, 4)])
    for p in (1, 2, 3):
        check("GlobalLpPool", [normal(2, 3, 5, 4)], opset=18, p=p)
        check("LpPool", [normal(2, 3, 7, 8)], opset=18, kernel_shape=(2, 3), strides=(2, 2), pads=(0, 1, 1, 1), p=p)


def test_normalizations() -> None:
    x, c = normal(2, 6, 5, 4), [normal(6), normal(6, seed=1)]
    check("BatchNormalization", [x, *c, normal(6, seed=2), np.abs(normal(6, seed=3)) + 0.5], opset=15)
    check("BatchNormalization", [normal(5, 6), *c, normal(6, seed=2), np.abs(normal(6, seed=3)) + 0.5], opset=9)
    check("InstanceNormalization", [x, *c], epsilon=1e-3)
    check("GroupNormalization", [x, *c], opset=21, num_groups=3)
    check("GroupNormalization", [x, normal(3), normal(3, seed=1)], opset=18, num_groups=3)
    check("LayerNormalization", [x, normal(5, 4), normal(5, 4, seed=1)], axis=-2, outputs=3, symbolic=False)
    check("LayerNormalization", [x, normal(4)], axis=3, symbolic=False)
    check("LRN", [x], size=3, alpha=0.01)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_import(op: str, layout: int) -> None:
    gates, h = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 6
    x = normal(5, 3, 4)
    arrays = [x, normal(2, gates * h, 4), normal(2, gates * h, h), normal(2, 2 * gates * h), np.array([2, 5, 3], np.int32)]
    module_attrs: dict[str, Any] = {"hidden_size": h, "direction": "bidirectional"}
    if layout == 0:  # ONNX Runtime has no batch-major layout
        check(op, arrays, outputs=2, symbolic=False, **module_attrs)
        return
    results = []
    for major in (0, 1):
        data = [x.transpose(1, 0, 2).copy() if major else x, *arrays[1:]]
        node = helper.make_node(op, [f"x{i}" for i in range(5)], ["y0", "y1"], layout=major, **module_attrs)
        module = import_onnx(single(node, data, {1, 2, 3, 4}, 22, False))
        results.append(list(evaluate(module, {"x0": data[0]}).values()))
    np.testing.assert_array_equal(results[1][0], results[0][0].transpose(2, 0, 1, 3))
    np.testing.assert_array_equal(results[1][1], results[0][1].transpose(1, 0, 2))


def test_recurrent_activations_take_their_parameters_in_order() -> None:
    attrs = {"activations": ["LeakyRelu", "affine"], "activation_alpha": [0.3, 0.7], "activation_beta": [0.1]}
    node = helper.make_node("GRU", ["x0", "x1", "x2"], ["y0"], hidden_size=2, **attrs)
    arrays = [normal(2, 1, 3), normal(1, 6, 3), normal(1, 6, 2)]
    (gru,) = [n for n in import_onnx(single(node, arrays, {1, 2}, 22, False)).main.nodes if n.op == "GRU"]
    assert gru.attrs["activations"] == ("LeakyRelu", "Affine")
    assert gru.attrs["activation_alpha"] == pytest.approx((0.3, 0.7))
    assert gru.attrs["activation_beta"] == pytest.approx((0.0, 0.1))


def test_same_pads_of_symbolic_extents_give_the_right_size() -> None:
    n = sym("n")
    pads = same_pads([n], [3], [2], upper=True)
    for size in (1, 2, 7, 8):
        low, high = (p if isinstance(p, int) else _at(p, size) for p in pads)
        assert (size + low + high - 3) // 2 + 1 == ceil_div(size, 2)
    assert same_pads([n], [4], [1], upper=False) == (2, 1)


def _at(expression: Expr, n: int) -> int:
    from dovetail.core.dims import evaluate as number

    return number(expression, {"n": n})


def test_batch_norm_parameters_stay_at_weight_time() -> None:
    arrays = [normal(1, 4, 3, 3), normal(4), normal(4), normal(4), np.ones(4, np.float32)]
    node = helper.make_node("BatchNormalization", [f"x{i}" for i in range(5)], ["y0"])
    module = import_onnx(single(node, arrays, {1, 2, 3, 4}, 15, False))
    assert [n.op for n in module.main.nodes if n.outputs[0].time != 0] == ["Mul", "Add"]


# ---------------------------------------------------------------- control flow
def run_both(text: str, feeds: dict[str, Array], rtol: float = 1e-5) -> Any:
    """Parse ONNX text, run it in ONNX Runtime and through the references, compare; returns our module."""
    model = parser.parse_model(text)
    onnx.checker.check_model(model)
    wanted = session_of(model).run(None, feeds)
    module = import_onnx(model)
    got = evaluate(module, {v.name: feeds[v.name] for v in module.main.inputs})
    for ours, theirs in zip(got.values(), wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)
    return module


HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'

IF = HEADER + """
g (bool c, float[n] x, float[n] z) => (float[m] y) {
  y = If (c) <
    then_branch = t () => (float[a] p) { k = Constant <value = float[1] {2.0}> ()  q = Mul(x, k)  p = Concat <axis = 0> (q, z) },
    else_branch = e () => (float[b] r) { r = Relu(x) }
  >
}"""


@pytest.mark.parametrize("taken", [True, False])
def test_if_with_captures_and_branches_of_different_extents(taken: bool) -> None:
    module = run_both(IF, {"c": np.array(taken), "x": normal(3), "z": normal(3, seed=1)})
    (node,) = [n for n in module.main.nodes if n.op == "If"]
    assert [len(r.inputs) for r in node.regions] == [2, 2]
    assert len(node.attrs["symbols"]) == 1


def test_if_with_a_known_condition_leaves_one_branch_and_a_guard() -> None:
    text = IF.replace("bool c, ", "").replace("=> (float[m] y) {", "=> (float[m] y) <bool c = {1}> {")
    model = parser.parse_model(text)
    module = import_onnx(model)
    assert "If" not in {n.op for n in module.main.nodes}
    assert [g.weight for g in module.guards] == ["c"]
    x, z = normal(3), normal(3, seed=1)
    (y,) = evaluate(module, {"x": x, "z": z}).values()
    np.testing.assert_array_equal(y, np.concatenate([2 * x, z]))


def test_if_with_branches_of_different_rank_is_refused() -> None:
    text = IF.replace("float[b] r) { r = Relu(x) }", "float[b, one] r) { k2 = Constant <value = int64[1] {1}> ()  r = Unsqueeze(x, k2) }")
    with pytest.raises(UnsupportedOpError, match="one rank"):
        import_onnx(parser.parse_model(text))


LOOP = HEADER + """
g (int64 count, float[n] x, float[n] step) => (float[n] last, float[t, n] seen) {
  go = Constant <value = bool {1}> ()
  last, seen = Loop (count, go, x) <
    body = b (int64 i, bool more, float[n] v) => (bool again, float[n] w, float[n] scan) {
      again = Identity(more)
      w = Add(v, step)
      scan = Mul(w, w)
    }
  >
}"""


@pytest.mark.parametrize("count", [1, 4])
def test_loop_with_scan_output_and_capture(count: int) -> None:
    run_both(LOOP, {"count": np.array(count, np.int64), "x": normal(3), "step": normal(3, seed=1)})


def test_loop_of_known_length_has_known_shape() -> None:
    text = LOOP.replace("int64 count, ", "").replace("seen) {\n  go", "seen) <int64 count = {5}> {\n  go")
    module = import_onnx(parser.parse_model(text))
    assert module.main.outputs[1].tensor.shape == (5, sym("n"))
    assert {g.weight for g in module.guards} == {"go", "count"}


def test_loop_that_never_runs_keeps_the_extents_of_its_elements() -> None:
    feeds = {"count": np.array(0, np.int64), "x": normal(3), "step": normal(3, seed=1)}
    got = evaluate(import_onnx(parser.parse_model(LOOP)), feeds)
    np.testing.assert_array_equal(got["last"], feeds["x"])
    assert got["seen"].shape == (0, 3)


def test_loop_whose_value_grows() -> None:
    text = HEADER + """
g (int64 count, float[1] x) => (float[m] last) {
  go = Constant <value = bool {1}> ()
  last = Loop (count, go, x) <
    body = b (int64 i, bool more, float[k] v) => (bool again, float[l] w) {
      limit = Constant <value = float {20.0}> ()
      total = ReduceSum <keepdims = 0> (v)
      again = Less(total, limit)
      w = Concat <axis = 0> (v, x)
    }
  >
}"""
    module = run_both(text, {"count": np.array(9, np.int64), "x": np.array([3.0], np.float32)})
    (node,) = [n for n in module.main.nodes if n.op == "Loop"]
    (extent,) = node.regions[0].inputs[2].tensor.shape
    assert isinstance(extent, Expr) and str(extent) not in node.attrs["symbols"]
    assert len(module.weights) == len({n.attrs["name"] for g in (module.main, node.regions[0]) for n in g.nodes if n.op == "Constant"})


SCAN = HEADER + """
g (float[2] start, float[2, t] x, float[2] k) => (float[2] last, float[2, t] sums) {
  last, sums = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1], scan_input_directions = [1],
    body = b (float[2] s, float[2] e) => (float[2] total, float[2] out) {
      scaled = Mul(e, k)
      total = Add(s, scaled)
      out = Identity(total)
    }
  > (start, x)
}"""


def test_scan_along_another_axis_backwards() -> None:
    run_both(SCAN, {"start": normal(2), "x": normal(2, 5), "k": normal(2, seed=4)})


def test_scan_8_has_a_batch() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Identity", ["t"], ["o"])],
        "b",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, (2,)) for n in "se"],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, (2,)) for n in "to"],
    )
    node = helper.make_node("Scan", ["", "s0", "x"], ["last", "sums"], num_scan_inputs=1, body=body)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("s0", TensorProto.FLOAT, ("batch", 2)),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4, 2)),
        ],
        [onnx.ValueInfoProto(name="last"), onnx.ValueInfoProto(name="sums")],
    )
    module = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=8))
    start, x = normal(3, 2), normal(3, 4, 2)
    got = evaluate(module, {"s0": start, "x": x})
    np.testing.assert_allclose(got["sums"], start[:, None] + np.cumsum(x, axis=1), rtol=1e-5)
    np.testing.assert_allclose(got["last"], got["sums"][:, -1])


# ---------------------------------------------------------------- functions
FUNCTIONS = """<ir_version: 10, opset_import: ["" : 22, "local" : 1]>
g (float[n] x) => (float[n] y) { y = local.twice <factor = 3.0> (x) }
<domain: "local", opset_import: ["" : 22, "local" : 1]>
twice <factor: float = 2.0> (a) => (b) {
  f = Constant <value_float: float = @factor> ()
  c = local.scale (a, f)
  b = local.scale (c, f)
}
<domain: "local", opset_import: ["" : 22]>
scale (a, f) => (b) { b = Mul(a, f) }
"""


def test_model_functions_expand_with_their_attributes() -> None:
    x = normal(4)
    (y,) = evaluate(import_onnx(parser.parse_model(FUNCTIONS)), {"x": x}).values()
    np.testing.assert_allclose(y, 9 * x, rtol=1e-6)
    text = FUNCTIONS.replace(" <factor = 3.0>", "")
    (y,) = evaluate(import_onnx(parser.parse_model(text)), {"x": x}).values()
    np.testing.assert_allclose(y, 4 * x, rtol=1e-6)


def test_a_function_that_calls_itself_is_refused() -> None:
    with pytest.raises(ModelError, match="calls itself"):
        import_onnx(parser.parse_model(FUNCTIONS.replace("b = Mul(a, f)", "b = local.twice (a)")))


def test_schema_functions_expand() -> None:
    # RotaryEmbedding has no importer of its own: its body comes from the schema and depends on the call.
    arrays = [normal(2, 3, 5, 8), normal(50, 4), normal(50, 4, seed=1), np.arange(10, dtype=np.int64).reshape(2, 5)]
    check("RotaryEmbedding", arrays, opset=23, symbolic=False, interleaved=1)
    check("MeanVarianceNormalization", [normal(2, 3, 5, 4)], opset=13)
