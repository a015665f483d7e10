"""The math families: references against their OpSpecs, imported ONNX against ONNX Runtime, and known hard cases."""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dovetail import reference
from dovetail.core import dtypes as d
from dovetail.core.dims import Expr, sym
from dovetail.core.errors import Error, TypeInferenceError, UnsupportedOpError
from dovetail.frontend.importer import import_onnx
from dovetail.ir.types import TensorType
from dovetail.ops import broadcast, spec
from dovetail.ops import registry as specs
from dovetail.ops.evaluate import evaluate
from tests.samples.math import SAMPLES
from tests.samples.sample import Array, Sample

FAMILIES = ("arithmetic", "logic", "activation", "cast", "reduce", "quantize", "random", "signal", "text")


# ---------------------------------------------------------------- references and specs agree
def _declared() -> set[str]:
    modules = {f"dovetail.ops.{name}" for name in FAMILIES}
    for module in modules:
        importlib.import_module(module)
    return {name for name in specs.names() if spec(name).infer_function.__module__ in modules}


def test_every_op_has_a_reference_and_a_sample() -> None:
    declared = _declared()
    assert len(declared) > 85
    assert declared <= set(reference.names())
    assert declared == {s.op for s in SAMPLES}


@pytest.mark.parametrize("op", sorted({s.op for s in SAMPLES}))
def test_reference_matches_inferred_types(op: str) -> None:
    for sample in (s for s in SAMPLES if s.op == op):
        arrays = sample.make()
        types = [None if a is None else TensorType(d.dtype(a.dtype), a.shape) for a in arrays]
        results = reference.call(op, arrays, sample.attrs)
        inferred = spec(op).infer(*types, **sample.attrs)
        assert len(results) == len(inferred)
        for array, type_ in zip(results, inferred, strict=True):
            assert isinstance(array, np.ndarray), (sample, type(array))
            assert d.dtype(array.dtype) == type_.dtype, sample
            fits = all(isinstance(a, Expr) or a == b for a, b in zip(type_.shape, array.shape, strict=True))
            assert fits, (sample, type_.shape, array.shape)


@pytest.mark.parametrize("op", sorted({s.op for s in SAMPLES}))
def test_reference_leaves_its_inputs_alone(op: str) -> None:
    sample = next(s for s in SAMPLES if s.op == op)
    arrays = sample.make()
    for array in arrays:
        if array is not None:
            array.flags.writeable = False
    reference.call(op, arrays, sample.attrs)


# ---------------------------------------------------------------- against ONNX Runtime
_SAME = {
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Cos", "Cosh", "DequantizeLinear", "Det",
    "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Mish", "Mod", "Mul", "Neg", "Not",
    "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
    "Max", "Min", "StringConcat", "StringSplit",
}  # fmt: skip
# Where ONNX leaves room or ONNX Runtime differs from the specification.
_SKIP = {
    ("BitShift", "int32"): "amounts beyond the width are defined since opset 28",
    ("BitShift", "uint8"): "amounts beyond the width are defined since opset 28",
}


def _model(node: onnx.NodeProto, arrays: list[Array | None], n_outputs: int, opset: int, symbolic: bool) -> onnx.ModelProto:
    def info(name: str, array: Array) -> onnx.ValueInfoProto:
        code = TensorProto.STRING if array.dtype == object else helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = [f"{name}_{i}" for i in range(array.ndim)] if symbolic else list(array.shape)
        return helper.make_tensor_value_info(name, code, shape)

    inputs = [info(f"x{i}", a) for i, a in enumerate(arrays) if a is not None]
    outputs = [onnx.ValueInfoProto(name=f"y{i}") for i in range(n_outputs)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _node(sample: Sample, arrays: list[Array | None], n_outputs: int) -> onnx.NodeProto:
    attrs = {k: int(v) if isinstance(v, bool) else v for k, v in sample.attrs.items() if k != "symbols"}
    if attrs.get("output_dtype") is not None:
        attrs["output_dtype"] = helper.np_dtype_to_tensor_dtype(attrs["output_dtype"].numpy)
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    return helper.make_node(sample.op, names, [f"y{i}" for i in range(n_outputs)], **attrs)


def _session(model: onnx.ModelProto) -> ort.InferenceSession | None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error) or "type" in str(error).lower() or "No Op registered" in str(error):
            return None
        raise


def _close(got: Array, want: Array, exact: bool, what: Any) -> None:
    assert got.dtype == want.dtype or got.dtype.kind == want.dtype.kind == "O", what
    assert got.shape == want.shape, what
    if want.dtype.kind in "OSU":
        assert got.tolist() == want.tolist(), what
        return
    tolerance = 2e-3 if want.dtype.itemsize == 2 else 2e-5
    a, b = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(a, b, rtol=0 if exact else tolerance, atol=0 if exact else tolerance, err_msg=str(what))


@pytest.mark.parametrize("op", sorted(_SAME))
def test_import_agrees_with_onnxruntime(op: str) -> None:
    compared = 0
    for sample in (s for s in SAMPLES if s.op == op):
        arrays = sample.make()
        first = next((a for a in arrays if a is not None), None)
        if first is None or (op, str(first.dtype)) in _SKIP or first.dtype == ml_dtypes.bfloat16:
            continue
        n = len(spec(op).infer(*[None if a is None else TensorType(d.dtype(a.dtype), a.shape) for a in arrays], **sample.attrs))
        node = _node(sample, arrays, n)
        session = _session(_model(node, arrays, n, 24, symbolic=False))
        if session is None:
            continue
        feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
        try:
            want = session.run(None, feeds)
        except Exception:
            continue
        # Two symbols broadcast to their maximum, which is wrong only for 0 against 1.
        symbolic = all(a is None or a.size for a in arrays)
        module = import_onnx(_model(node, arrays, n, 24, symbolic=symbolic))
        got = evaluate(module, feeds)
        for i, expected in enumerate(want):
            if d.dtype(got[f"y{i}"].dtype).bits == 8 and d.dtype(got[f"y{i}"].dtype).is_float:
                got[f"y{i}"] = got[f"y{i}"].view(np.uint8)  # how ONNX Runtime hands them over
            exact = sample.exact and np.asarray(expected).dtype.kind != "f"
            _close(got[f"y{i}"], np.asarray(expected), exact, sample)
        compared += 1
    if op not in ("BitShift", "Swish"):
        assert compared, f"no sample of {op} was compared"


def _imported(node: onnx.NodeProto, opset: int, arrays: list[Array | None], n: int = 1) -> list[Array]:
    feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
    module = import_onnx(_model(node, arrays, n, opset, symbolic=True))
    result = evaluate(module, feeds)
    return [result[f"y{i}"] for i in range(n)]


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[0], [-1], [0, 2], [1, 2], None])
@pytest.mark.parametrize(
    "op",
    ["ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
     "ReduceSum", "ReduceSumSquare"],
)  # fmt: skip
def test_reductions_in_every_form(op: str, axes: list[int] | None, keepdims: int) -> None:
    """Axes as an attribute (opset 11), and as run-time data (opset 18), give what ONNX Runtime gives."""
    x = np.random.default_rng(1).uniform(0.1, 2, (3, 4, 5)).astype(np.float32)
    given_axes = {} if axes is None else {"axes": axes}
    old = helper.make_node(op, ["x0"], ["y0"], keepdims=keepdims, **given_axes)
    session = _session(_model(old, [x], 1, 11, symbolic=False))
    assert session is not None
    want = session.run(None, {"x0": x})[0]
    _close(_imported(old, 11, [x])[0], want, False, op)
    if axes is not None:
        new = helper.make_node(op, ["x0", "x1"], ["y0"], keepdims=keepdims)
        data = np.array(axes, np.int64)
        module = import_onnx(_model(new, [x, data], 1, 18, symbolic=False))
        _close(evaluate(module, {"x0": x, "x1": data})["y0"], want, False, op)


def test_reduce_log_sum_exp_does_not_overflow() -> None:
    x = np.array([[1000.0, 1000.0], [-np.inf, -np.inf], [np.inf, 0.0]], np.float32)
    node = helper.make_node("ReduceLogSumExp", ["x0"], ["y0"], keepdims=0, axes=[1])
    got = _imported(node, 13, [x])[0]
    np.testing.assert_allclose(got, [1000 + math.log(2), -np.inf, np.inf], rtol=1e-6)


# ---------------------------------------------------------------- old opsets
def test_legacy_broadcast_aligns_at_axis() -> None:
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    b = np.array([10, 20, 30], np.float32)
    node = helper.make_node("Add", ["x0", "x1"], ["y0"], axis=1, broadcast=1)
    np.testing.assert_array_equal(_imported(node, 6, [a, b])[0], a + b[:, None])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_before_13_takes_all_trailing_axes(op: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    got = _imported(helper.make_node(op, ["x0"], ["y0"], axis=1), 11, [x])[0]
    flat = _imported(helper.make_node(op, ["x0"], ["y0"], axis=-1), 13, [x.reshape(2, 12)])[0]
    np.testing.assert_array_equal(got, flat.reshape(2, 3, 4))


def test_clip_in_every_opset() -> None:
    x = np.array([-3, -1, 0, 1, 3], np.float32)
    low, high = np.array(-1, np.float32), np.array(2, np.float32)
    want = np.clip(x, -1, 2)
    np.testing.assert_array_equal(_imported(helper.make_node("Clip", ["x0"], ["y0"], min=-1.0, max=2.0), 6, [x])[0], want)
    node = helper.make_node("Clip", ["x0", "x1", "x2"], ["y0"])
    np.testing.assert_array_equal(_imported(node, 12, [x, low, high])[0], want)
    only_max = helper.make_node("Clip", ["x0", "", "x2"], ["y0"])
    np.testing.assert_array_equal(_imported(only_max, 12, [x, None, high])[0], np.minimum(x, 2))


def test_prelu_before_7_runs_along_channels() -> None:
    x = -np.ones((2, 3, 4), np.float32)
    slope = np.array([1, 2, 3], np.float32)
    got = _imported(helper.make_node("PRelu", ["x0", "x1"], ["y0"]), 6, [x, slope])[0]
    np.testing.assert_array_equal(got, x * slope[:, None])


def test_cast_by_name_before_6() -> None:
    x = np.array([1.7, -1.7], np.float32)
    got = _imported(helper.make_node("Cast", ["x0"], ["y0"], to="INT32"), 5, [x])[0]
    assert got.dtype == np.int32 and got.tolist() == [1, -1]


@pytest.mark.parametrize("opset", [6, 7, 12, 22])
def test_dropout_is_the_identity(opset: int) -> None:
    x = np.ones((2, 3), np.float32)
    got, mask = _imported(helper.make_node("Dropout", ["x0"], ["y0", "y1"]), opset, [x], 2)
    np.testing.assert_array_equal(got, x)
    assert mask.shape == x.shape and mask.astype(bool).all()


def test_training_dropout_keeps_the_mean() -> None:
    x = np.ones((400, 50), np.float32)
    node = helper.make_node("Dropout", ["x0", "x1", "x2"], ["y0", "y1"], seed=3)
    feeds: list[Array | None] = [x, np.array(0.3, np.float32), np.array(True)]
    got, mask = _imported(node, 22, feeds, 2)
    assert abs(float(got.mean()) - 1) < 0.02 and abs(float(mask.mean()) - 0.7) < 0.02
    np.testing.assert_array_equal(got != 0, mask)


# ---------------------------------------------------------------- hard cases
def test_integer_division_rounds_towards_zero() -> None:
    a = np.array([-7, 7, -7, 7, -2147483648, 5], np.int32)
    b = np.array([2, -2, -2, 2, -1, 0], np.int32)
    assert reference.lookup("Div")(a, b).tolist() == [-3, -3, 3, 3, -2147483648, 0]


def test_mod_signs() -> None:
    a, b = np.array([-7, 7, -7, 7], np.int64), np.array([3, -3, -3, 3], np.int64)
    assert reference.lookup("Mod")(a, b).tolist() == [2, -2, -1, 1]
    assert reference.lookup("Mod")(a, b, fmod=True).tolist() == [-1, 1, -1, 1]


def test_round_halves_to_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    assert reference.lookup("Round")(x).tolist() == [0, 2, 2, 0, -2]


@given(st.floats(-8, 8))
@settings(max_examples=200, deadline=None)
def test_erf_matches_the_c_library(x: float) -> None:
    got = float(reference.lookup("Erf")(np.array([x]))[0])
    assert got == pytest.approx(math.erf(x), rel=1e-13, abs=1e-300)


@given(st.floats(-9, 9, width=32))
@settings(max_examples=200, deadline=None)
def test_gelu_keeps_its_relative_accuracy(x: float) -> None:
    got = float(reference.lookup("Gelu")(np.array([x], np.float32))[0])
    assert got == pytest.approx(0.5 * x * math.erfc(-x / math.sqrt(2)), rel=2e-7, abs=1e-15)


def test_cast_saturates_8_bit_floats() -> None:
    x = np.array([1e9, -np.inf, np.nan, 1.0], np.float32)
    cast = reference.lookup("Cast")
    kept = cast(x, to=d.F8E4M3, saturate=True).astype(np.float32)
    assert kept[0] == 448 and kept[1] == -448 and np.isnan(kept[2]) and kept[3] == 1
    assert np.isnan(cast(x, to=d.F8E4M3, saturate=False).astype(np.float32)[0])
    assert np.isinf(cast(x, to=d.F8E5M2, saturate=False).astype(np.float32)[0])


def test_cast_keeps_low_bits_of_integers() -> None:
    x = np.array([200, 300, -1], np.int64)
    assert reference.lookup("Cast")(x, to=d.I8).tolist() == [-56, 44, -1]
    assert reference.lookup("Cast")(x, to=d.U4).astype(int).tolist() == [8, 12, 15]
    assert reference.lookup("Cast")(x, to=d.I4).astype(int).tolist() == [-8, -4, -1]


def test_arg_extrema_of_equals() -> None:
    x = np.array([[1, 5, 5, 2]], np.float32)
    assert reference.lookup("ArgMax")(x, axis=1).tolist() == [[1]]
    assert reference.lookup("ArgMax")(x, axis=1, select_last_index=True).tolist() == [[2]]


def test_narrow_floats_round_once() -> None:
    x = np.full(3000, 1.0, np.float16)
    assert reference.lookup("ReduceSum")(x, axes=(0,), keepdims=False) == 3000
    half = np.full(5000, 0.1, ml_dtypes.bfloat16)
    got = float(reference.lookup("ReduceMean")(half, axes=(0,), keepdims=False))
    assert got == float(half[0])


def test_softmax_of_a_fully_masked_row_is_nan() -> None:
    """As in ONNX: exp(-inf - -inf) has no value; a mask has to leave one position."""
    x = np.array([[-np.inf, -np.inf], [0, -np.inf]], np.float32)
    got = reference.lookup("Softmax")(x, axis=1)
    assert np.isnan(got[0]).all() and got[1].tolist() == [1, 0]


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, 1e9, -1e9], np.float32)
    got = reference.lookup("QuantizeLinear")(x, np.array(1, np.float32), np.array(1, np.uint8), axis=0)
    assert got.tolist() == [1, 3, 3, 255, 0]


# ---------------------------------------------------------------- compositions
_EINSUMS = [
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("ij->ji", [(2, 3)]),
    ("ij->", [(2, 3)]),
    ("ii->i", [(3, 3)]),
    ("ii", [(3, 3)]),
    ("iji->j", [(3, 2, 3)]),
    ("i,j->ij", [(2,), (3,)]),
    ("i,i", [(4,), (4,)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 2)]),
    ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    ("abc,cd,a->bd", [(2, 3, 4), (4, 5), (2,)]),
    ("...i->...", [(2, 3, 4)]),
    ("ij,ij->ij", [(2, 3), (2, 3)]),
    ("bn,anm,bm->ba", [(2, 3), (4, 3, 5), (2, 5)]),
]


@pytest.mark.parametrize(("equation", "shapes"), _EINSUMS, ids=[e for e, _ in _EINSUMS])
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    arrays: list[Array | None] = [rng.normal(size=s).astype(np.float32) for s in shapes]
    node = helper.make_node("Einsum", [f"x{i}" for i in range(len(shapes))], ["y0"], equation=equation)
    module = import_onnx(_model(node, arrays, 1, 12, symbolic=False))
    got = evaluate(module, {f"x{i}": a for i, a in enumerate(arrays)})["y0"]
    np.testing.assert_allclose(got, np.einsum(equation, *arrays), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "limit", "delta"), [(0, 5, 1), (3, -8, -3), (5, 5, 1), (9, 2, 4), (-2, 10, 5)])
@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_range_from_constants_and_from_data(start: int, limit: int, delta: int, kind: Any) -> None:
    parts = [np.array(v, kind) for v in (start, limit, delta)]
    want = np.arange(start, limit, delta).astype(kind)
    node = helper.make_node("Range", ["x0", "x1", "x2"], ["y0"])
    np.testing.assert_array_equal(_imported(node, 11, list(parts))[0], want)
    model = _model(node, list(parts), 1, 11, symbolic=False)
    del model.graph.input[:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(p, f"x{i}") for i, p in enumerate(parts))
    np.testing.assert_array_equal(evaluate(import_onnx(model), {})["y0"], want)


def test_matmul_integer_with_zero_points_per_row_and_column() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (3, 4)).astype(np.uint8), rng.integers(-128, 128, (4, 5)).astype(np.int8)
    a_zero, b_zero = np.array([1, 2, 3], np.uint8), np.array([5, 4, 3, 2, 1], np.int8)
    node = helper.make_node("MatMulInteger", ["x0", "x1", "x2", "x3"], ["y0"])
    got = _imported(node, 10, [a, b, a_zero, b_zero])[0]
    want = (a.astype(int) - a_zero[:, None].astype(int)) @ (b.astype(int) - b_zero.astype(int))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_qlinear_conv_agrees_with_onnxruntime(per_channel: bool, group: int) -> None:
    rng = np.random.default_rng(0)
    arrays: list[Array | None] = [
        rng.integers(0, 256, (2, 4, 9, 7)).astype(np.uint8),
        np.array(0.02, np.float32),
        np.array(120, np.uint8),
        rng.integers(-128, 128, (6, 4 // group, 3, 2)).astype(np.int8),
        rng.uniform(0.01, 0.05, 6).astype(np.float32) if per_channel else np.array(0.03, np.float32),
        np.zeros(6, np.int8) if per_channel else np.array(0, np.int8),
        np.array(0.4, np.float32),
        np.array(100, np.uint8),
        rng.integers(-999, 999, 6).astype(np.int32),
    ]
    node = helper.make_node(
        "QLinearConv", [f"x{i}" for i in range(9)], ["y0"], group=group, strides=[2, 1], pads=[1, 0, 1, 1]
    )
    session = _session(_model(node, arrays, 1, 13, symbolic=False))
    assert session is not None
    want = session.run(None, {f"x{i}": a for i, a in enumerate(arrays)})[0]
    got = evaluate(
        import_onnx(_model(node, arrays, 1, 13, symbolic=False)), {f"x{i}": a for i, a in enumerate(arrays)}
    )["y0"]
    assert got.dtype == np.uint8 and got.std() > 10
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
    assert (got == want).mean() > 0.99


@pytest.mark.parametrize("zero_points", [0, 1, 2])
def test_conv_integer_pads_after_the_zero_point(zero_points: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (1, 2, 5, 5)).astype(np.uint8), rng.integers(0, 256, (3, 2, 3, 3)).astype(np.uint8)
    zeros: list[Array | None] = [np.array(17, np.uint8), np.array(3, np.uint8)][:zero_points]
    arrays = [x, w, *zeros]
    node = helper.make_node("ConvInteger", [f"x{i}" for i in range(len(arrays))], ["y0"], pads=[1, 1, 1, 1])
    session = _session(_model(node, arrays, 1, 10, symbolic=False))
    assert session is not None
    feeds = {f"x{i}": a for i, a in enumerate(arrays)}
    got = evaluate(import_onnx(_model(node, arrays, 1, 10, symbolic=False)), feeds)["y0"]
    np.testing.assert_array_equal(got, session.run(None, feeds)[0])


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_random_ops_have_their_distributions(kind: Any) -> None:
    def run(node: onnx.NodeProto, arrays: list[Array | None]) -> Array:
        return _imported(node, 22, arrays)[0].astype(np.float64)

    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    shape = [200, 100]
    uniform = run(helper.make_node("RandomUniform", [], ["y0"], shape=shape, low=-1.0, high=3.0, dtype=code), [])
    assert uniform.shape == (200, 100) and abs(uniform.mean() - 1) < 0.05
    assert uniform.min() >= -1 and uniform.max() <= 3 and abs(uniform.std() - 4 / math.sqrt(12)) < 0.05
    like = np.zeros(shape, kind)
    normal = run(helper.make_node("RandomNormalLike", ["x0"], ["y0"], mean=2.0, scale=0.5), [like])
    assert abs(normal.mean() - 2) < 0.05 and abs(normal.std() - 0.5) < 0.05
    hits = run(helper.make_node("Bernoulli", ["x0"], ["y0"]), [like + kind(0.25)])
    assert set(np.unique(hits)) == {0.0, 1.0} and abs(hits.mean() - 0.25) < 0.03
    weights = np.log(np.array([[0.1, 0.2, 0.7]])).astype(kind)
    classes = run(helper.make_node("Multinomial", ["x0"], ["y0"], sample_size=20000), [weights])
    np.testing.assert_allclose(np.bincount(classes.astype(int).reshape(-1)) / 20000, [0.1, 0.2, 0.7], atol=0.02)


def test_seeds_repeat_and_no_seed_does_not() -> None:
    def run(**attrs: Any) -> Array:
        return _imported(helper.make_node("RandomNormal", [], ["y0"], shape=[50], **attrs), 22, [])[0]

    np.testing.assert_array_equal(run(seed=1.0), run(seed=1.0))
    assert (run(seed=1.0) != run(seed=2.0)).any()
    assert (run() != run()).any()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_cross_entropy(reduction: str, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 5, 2)).astype(np.float32)
    labels = np.array([[0, 4], [2, -1], [1, 1]], np.int64)
    weight = rng.uniform(0.5, 2, 5).astype(np.float32) if weighted else None
    names = ["x0", "x1", "x2"] if weighted else ["x0", "x1"]
    node = helper.make_node("SoftmaxCrossEntropyLoss", names, ["y0"], reduction=reduction, ignore_index=-1)
    arrays: list[Array | None] = [scores, labels, weight] if weighted else [scores, labels]
    got = _imported(node, 13, arrays)[0]
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    kept = labels >= 0
    safe = np.where(kept, labels, 0)
    factor = (weight[safe] if weight is not None else np.ones(labels.shape)) * kept
    loss = -np.take_along_axis(log_p, safe[:, None], 1)[:, 0] * factor
    want = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / factor.sum()}[reduction]
    np.testing.assert_allclose(got, want, rtol=1e-5)


# ---------------------------------------------------------------- registries
def test_unknown_attribute_and_missing_input_are_errors() -> None:
    x = TensorType(d.F32, (2, 3))
    with pytest.raises(TypeInferenceError, match="unknown attribute 'beta'"):
        spec("LeakyRelu").infer(x, beta=1.0)
    with pytest.raises(TypeInferenceError, match="input 1"):
        spec("Add").infer(x)
    with pytest.raises(TypeInferenceError, match="at most 1"):
        spec("Relu").infer(x, x)
    with pytest.raises(TypeInferenceError, match="missing attribute 'axes'"):
        spec("ReduceSum").infer(x)
    with pytest.raises(TypeInferenceError, match="one dtype"):
        spec("Add").infer(x, TensorType(d.I64, (2, 3)))
    with pytest.raises(UnsupportedOpError, match="NoSuchOp"):
        spec("NoSuchOp")
    with pytest.raises(UnsupportedOpError, match="NoSuchOp"):
        reference.lookup("NoSuchOp")


def test_broadcast_of_symbols() -> None:
    n, m = sym("N"), sym("M")
    assert broadcast((n, 1, 3), (4, 1)) == (n, 4, 3)
    assert broadcast((n,), (n,)) == (n,)
    assert broadcast((n,), (5,)) == (5,)
    assert broadcast() == ()
    assert broadcast((n,), (m,)) == broadcast((m,), (n,))
    with pytest.raises(TypeInferenceError, match="got 2 against 3"):
        broadcast((2,), (3,))


def test_attribute_defaults_are_filled_in() -> None:
    assert spec("Elu").complete({}) == {"alpha": 1.0}
    assert spec("QuantizeLinear").complete({"axis": 0})["block_size"] == 0


def test_errors_are_ours() -> None:
    for op, attrs in (("BitShift", {"direction": "UP"}), ("Gelu", {"approximate": "fast"})):
        x = TensorType(d.F32 if op == "Gelu" else d.U8, (2,))
        with pytest.raises(Error, match="expected"):
            spec(op).infer(*([x] if op == "Gelu" else [x, x]), **attrs)


def test_references_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sample in SAMPLES:
            reference.call(sample.op, sample.make(), sample.attrs)
