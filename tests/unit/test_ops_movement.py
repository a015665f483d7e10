"""The movement, selection and vision families: references against specs, imported ONNX against ONNX Runtime."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from dovetail import backend, reference
from dovetail.core import dtypes as d
from dovetail.core.dims import Expr, maximum, sym
from dovetail.core.errors import (
    Error,
    ExecutionError,
    ModelError,
    TypeInferenceError,
    UnsupportedOpError,
)
from dovetail.frontend.importer import import_onnx
from dovetail.ir.graph import Module
from dovetail.ir.types import SequenceType, TensorType
from dovetail.ops import registry as specs
from dovetail.ops import spec
from dovetail.ops.evaluate import evaluate
from tests.samples.movement import SAMPLES
from tests.samples.sample import Array

FAMILIES = ("movement", "selection", "vision")


# ---------------------------------------------------------------- references and specs agree
def test_every_op_has_a_reference_and_a_sample() -> None:
    modules = {f"dovetail.ops.{name}" for name in FAMILIES}
    for module in modules:
        importlib.import_module(module)
    declared = {name for name in specs.names() if spec(name).infer_function.__module__ in modules}
    assert len(declared) == 35
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
        results = reference.call(op, arrays, sample.attrs)
        inferred = spec(op).infer(*types, **sample.attrs)
        assert len(results) == len(inferred)
        for array, type_ in zip(results, inferred, strict=True):
            assert d.dtype(array.dtype) == type_.dtype, sample
            fits = all(isinstance(a, Expr) or a == b for a, b in zip(type_.shape, array.shape, strict=True))
            assert fits and array.ndim == type_.rank, (sample, type_.shape, array.shape)


# ---------------------------------------------------------------- against ONNX Runtime
def _model(
    node: onnx.NodeProto, arrays: Sequence[Array | None], fixed: set[int], outputs: int, opset: int, symbolic: bool
) -> onnx.ModelProto:
    """One node; inputs in `fixed` are initializers, the others graph inputs (with symbolic extents, or plain ones)."""
    inputs, weights = [], []
    for i, array in enumerate(arrays):
        if array is None:
            continue
        if i in fixed:
            weights.append(numpy_helper.from_array(np.ascontiguousarray(array), f"x{i}"))
        else:
            free = symbolic and i == 0
            shape = [f"d{axis}" for axis in range(array.ndim)] if free else list(array.shape)
            inputs.append(helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    results = [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)]
    graph = helper.make_graph([node], "g", inputs, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def check(
    op: str, arrays: Sequence[Array | None], *, opset: int = 19, outputs: int = 1, tolerance: float = 1e-5, **attrs: Any
) -> None:
    """Import with shape inputs as weights, with symbolic extents, and as run-time data; all must equal ONNX Runtime."""
    node = helper.make_node(
        op, ["" if a is None else f"x{i}" for i, a in enumerate(arrays)], [f"y{i}" for i in range(outputs)], **attrs
    )
    present = {i for i, a in enumerate(arrays) if a is not None}
    feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    # The run-time form is what ONNX Runtime runs: it never looks at the values when it loads.
    model = _model(node, arrays, set(), outputs, opset, False)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, feeds)
    for fixed, symbolic in ((present - {0}, False), (present - {0}, True), (set(), False), (set(), True)):
        module = import_onnx(_model(node, arrays, fixed, outputs, opset, symbolic))
        used = {v.name for v in module.main.inputs}
        got = evaluate(module, {k: v for k, v in feeds.items() if k in used})
        for name, want in zip(got, wanted, strict=True):
            assert got[name].shape == want.shape, (op, attrs, fixed, symbolic)
            assert got[name].dtype == want.dtype
            np.testing.assert_allclose(got[name], want, rtol=tolerance, atol=tolerance, err_msg=f"{op} {attrs} {fixed}")


def _i64(*values: int) -> Array:
    return np.array(values, np.int64)


def _x(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "target", "allow_zero"),
    [
        ((2, 3, 4), (4, -1), 0),
        ((2, 3, 4), (0, 0, 2, -1), 0),
        ((2, 3, 4), (-1,), 0),
        ((0, 3), (3, 0), 1),
        ((1,), (1, 1, 1), 0),
        ((7, 1), (0, -1, 1), 0),
    ],
)
def test_reshape(shape: tuple[int, ...], target: tuple[int, ...], allow_zero: int) -> None:
    check("Reshape", [_x(*shape), _i64(*target)], allowzero=allow_zero)


@pytest.mark.parametrize("axes", [(0,), (-1,), (1, 3), (3, 0), (-4, 2)])
def test_unsqueeze_and_squeeze(axes: tuple[int, ...]) -> None:
    x = _x(3, 5)
    check("Unsqueeze", [x, _i64(*axes)] if len(axes) == 2 else [_x(2, 3, 5), _i64(*axes)])
    added = np.expand_dims(x if len(axes) == 2 else _x(2, 3, 5), axes)
    check("Squeeze", [added, _i64(*axes)])


def _slices() -> list[tuple[tuple[int, ...], ...]]:
    rng = np.random.default_rng(7)
    cases = []
    for _ in range(24):
        axes = rng.permutation(3)[: rng.integers(1, 4)]
        steps = rng.choice([-3, -2, -1, 1, 2, 5], len(axes))
        starts, ends = rng.integers(-9, 10, (2, len(axes)))
        signed = np.where(rng.random(len(axes)) < 0.5, axes, axes - 3)
        cases.append(tuple(tuple(int(v) for v in row) for row in (starts, ends, signed, steps)))
    big = 2**63 - 1
    return [*cases, ((1,), (big,), (0,), (1,)), ((big,), (-big,), (1,), (-1,)), ((0, 0), (2**31 - 1, -1), (0, 2), (1, 1))]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), _slices())
def test_slice(starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]) -> None:
    check("Slice", [_x(7, 5, 3), _i64(*starts), _i64(*ends), _i64(*axes), _i64(*steps)])
    if all(step == 1 for step in steps):
        check("Slice", [_x(7, 5, 3), _i64(*starts), _i64(*ends), _i64(*axes)])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    value = np.array(2.5, np.float32) if mode == "constant" else None
    for pads in ((1, 0, 2, 1), (0, 3, 2, 0), (2, 2, 1, 3)):
        check("Pad", [_x(4, 5), _i64(*pads), value], mode=mode)
        check("Pad", [_x(2, 4, 5), _i64(*pads), value, _i64(-1, 1)], mode=mode)
    if mode in ("constant", "edge"):
        check("Pad", [_x(4, 5), _i64(-1, 2, 1, -3), value], mode=mode)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_elements_and_nd(reduction: str) -> None:
    rng = np.random.default_rng(3)
    indices = np.stack([rng.permutation(5)[:3] for _ in range(4)], axis=1)
    check("ScatterElements", [_x(5, 4), indices, _x(3, 4, seed=1)], axis=0, reduction=reduction, opset=18)
    rows = np.array([[0, 1], [3, 2], [2, 2]])
    check("ScatterND", [_x(4, 3, 2), rows, _x(3, 2, seed=1)], reduction=reduction, opset=18)


def test_gathers() -> None:
    check("Gather", [_x(4, 5), np.array([[0, -1], [2, 1]])], axis=1)
    check("GatherElements", [_x(4, 5), np.array([[0, -1], [2, 1]])], axis=1)
    check("GatherND", [_x(2, 3, 4), np.array([[[1]], [[-1]]])], batch_dims=1)


@pytest.mark.parametrize("split", [(2, 5), (0, 7), (3, 3, 1)])
def test_split(split: tuple[int, ...]) -> None:
    check("Split", [_x(7, 2), _i64(*split)], outputs=len(split), axis=0)


def test_split_by_number_has_a_smaller_last_part() -> None:
    check("Split", [_x(2, 7)], outputs=3, axis=-1, num_outputs=3)
    check("Split", [_x(2, 6)], outputs=2, axis=1, opset=13)


def test_expand_tile_concat_trilu_onehot() -> None:
    check("Expand", [_x(3, 1), _i64(2, 1, 4)])
    check("Tile", [_x(2, 3), _i64(2, 0)])
    check("Tile", [_x(2, 3), _i64(1, 3)])
    check("Concat", [_x(2, 3), _x(2, 1)], axis=-1)
    for k, upper in itertools.product((-6, -1, 0, 2, 9), (0, 1)):
        check("Trilu", [_x(4, 5), np.array(k, np.int64)], upper=upper)
    check("OneHot", [np.array([[0, 3], [-1, 9]]), np.array([5], np.int64), np.array([0.5, 2.0], np.float32)], axis=1)


def test_top_k_breaks_ties_by_position() -> None:
    x = np.array([[3, 1, 3, 2, 3], [0, 0, 0, 0, 0]], np.float32)
    for largest in (0, 1):
        check("TopK", [x, _i64(3)], outputs=2, axis=-1, largest=largest)


def test_depth_and_space() -> None:
    for mode in ("DCR", "CRD"):
        check("DepthToSpace", [_x(2, 12, 3, 5)], blocksize=2, mode=mode)
    check("SpaceToDepth", [_x(2, 3, 4, 6)], blocksize=2)


@pytest.mark.parametrize("how", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode: str, how: str) -> None:
    options = {"mode": mode, "coordinate_transformation_mode": how, "tolerance": 2e-5}
    x = _x(1, 2, 5, 7)
    for scales in ((1, 1, 2, 2), (1, 1, 3, 1)):
        check("Resize", [x, None, np.array(scales, np.float32)], **options)
    for sizes in ((1, 2, 10, 14), (1, 2, 13, 9), (1, 2, 3, 4)):
        check("Resize", [x, None, None, _i64(*sizes)], **options)


def test_resize_old_opsets_and_options() -> None:
    x, scales = _x(1, 1, 4, 6), np.array([1, 1, 2.5, 0.5], np.float32)
    check("Upsample", [x, np.array([1, 1, 2, 3], np.float32)], opset=9, mode="nearest")
    check("Resize", [x, scales], opset=10, mode="linear")
    for how in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        check("Resize", [x, None, None, _i64(1, 1, 9, 5)], nearest_mode=how)
    check("Resize", [x, None, None, _i64(1, 1, 2, 3)], mode="linear", antialias=1)
    roi = np.array([0, 0, 0.2, -0.1, 1, 1, 0.7, 1.2], np.float32)
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear", "extrapolation_value": 7.0}
    check("Resize", [x, roi, None, _i64(1, 1, 5, 5)], **crop)
    check("Resize", [x, None, None, _i64(7, 8)], axes=[2, 3], mode="linear")
    for policy in ("not_larger", "not_smaller"):
        check("Resize", [x, None, None, _i64(7, 8)], axes=[2, 3], keep_aspect_ratio_policy=policy)


def test_grid_sample_and_roi_align() -> None:
    rng = np.random.default_rng(5)
    grid = rng.uniform(-1.3, 1.3, (2, 3, 4, 2)).astype(np.float32)
    for mode, padding, align in itertools.product(("linear", "nearest", "cubic"), ("zeros", "border", "reflection"), (0, 1)):
        check("GridSample", [_x(2, 3, 5, 6), grid], opset=20, mode=mode, padding_mode=padding, align_corners=align)
    rois = np.array([[0, 0, 5, 5], [1.5, 2, 4, 6.5], [-1, -1, 2, 3]], np.float32)
    options = {"output_height": 3, "output_width": 2, "spatial_scale": 0.9}
    for how, ratio in itertools.product(("half_pixel", "output_half_pixel"), (0, 2)):
        check(
            "RoiAlign", [_x(2, 3, 7, 8), rois, _i64(0, 1, 1)], opset=16, sampling_ratio=ratio,
            coordinate_transformation_mode=how, tolerance=1e-4, **options,
        )  # fmt: skip


def test_max_roi_pool_and_unpool() -> None:
    rois = np.array([[0, 0, 0, 5, 5], [1, 1, 2, 4, 6]], np.float32)
    check("MaxRoiPool", [_x(2, 3, 7, 8), rois], pooled_shape=[2, 3], spatial_scale=0.8)
    indices = np.array([[[[5, 7], [13, 15]]]])
    check("MaxUnpool", [_x(1, 1, 2, 2), indices], kernel_shape=[2, 2], strides=[2, 2], opset=11)


def test_data_dependent_sizes() -> None:
    x = np.array([[1, 0, 2], [0, 0, 3]], np.float32)
    check("NonZero", [x])
    check("Compress", [x, np.array([False, True, True])], axis=1)
    for ordered in (0, 1):
        check("Unique", [np.array([2, 1, 1, 3, 4, 3], np.float32)], outputs=4, sorted=ordered)
    sample = next(s for s in SAMPLES if s.op == "NonMaxSuppression")
    check("NonMaxSuppression", sample.make())
    check("ReverseSequence", [_x(4, 3), _i64(4, 1, 2)], batch_axis=1, time_axis=0)
    check("CenterCropPad", [_x(5, 4, 3), _i64(2, 7)], axes=[0, 1])


# ---------------------------------------------------------------- shapes become dims
def _import(text: str) -> Module:
    return import_onnx(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]>\n{text}'))


def _result(module: Module) -> tuple[Any, ...]:
    type_ = module.main.outputs[0].type
    assert isinstance(type_, TensorType)
    return type_.shape


def _ops(module: Module) -> list[str]:
    return [node.op for node in module.main.nodes]


def test_exported_view_keeps_its_symbols() -> None:
    module = _import(
        """g (float[batch, seq, 12] x) => (float[a, b, c, e] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}, int64[1] heads = {3}, int64[1] free = {-1}> {
          s = Shape(x)
          b = Gather(s, zero)
          t = Gather(s, one)
          b1 = Unsqueeze(b, axis)
          t1 = Unsqueeze(t, axis)
          target = Concat <axis = 0> (b1, t1, heads, free)
          y = Reshape(x, target)
        }"""
    )
    assert _result(module) == (sym("batch"), sym("seq"), 3, 4)
    assert "BindSymbols" not in _ops(module)


def test_old_upsample_arithmetic_stays_symbolic() -> None:
    module = _import(
        """g (float[1, 2, H, W] x) => (float[a, b, c, e] y)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, float[2] factors = {2.0, 0.5}, float[0] none = {}> {
          s = Shape(x)
          hw = Slice(s, two, four)
          head = Slice(s, zero, two)
          f = Cast <to = 1> (hw)
          scaled = Mul(f, factors)
          floored = Floor(scaled)
          sizes = Cast <to = 7> (floored)
          all = Concat <axis = 0> (head, sizes)
          y = Resize <mode = "nearest"> (x, none, none, all)
        }"""
    )
    assert _result(module) == (1, 2, sym("H") * 2, sym("W") // 2)
    assert "BindSymbols" not in _ops(module)


def test_expand_with_minus_one_mask_is_decided_by_signs() -> None:
    module = _import(
        """g (float[1, 5] x, float[N, 5] like) => (float[a, b] y)
        <int64 minus = {-1}, int64[2] ones = {1, 1}> {
          s = Shape(like)
          flexible = Equal(s, minus)
          target = Where(flexible, ones, s)
          y = Expand(x, target)
        }"""
    )
    assert _result(module) == (sym("N"), 5)
    assert "BindSymbols" not in _ops(module)


def test_neighbouring_slices_of_a_symbolic_axis_have_equal_extents() -> None:
    module = _import(
        """g (float[N] x) => (float[M] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] last = {-1}, int64[1] end = {9223372036854775807}> {
          a = Slice(x, one, end)
          b = Slice(x, zero, last)
          y = Sub(a, b)
        }"""
    )
    assert _result(module) == (maximum(sym("N") - 1, 0),)
    x = np.array([3, 5, 4], np.float32)
    np.testing.assert_array_equal(evaluate(module, {"x": x})["y"], np.diff(x))
    assert evaluate(module, {"x": x[:0]})["y"].shape == (0,)


def test_symbolic_slice_positions_are_clipped() -> None:
    module = _import(
        """g (float[N] x, float[M] like) => (float[K] y)
        <int64[1] zero = {0}> { m = Shape(like)  y = Slice(x, zero, m) }"""
    )
    for n, m in ((5, 3), (3, 5), (0, 2)):
        x = np.arange(n, dtype=np.float32)
        got = evaluate(module, {"x": x, "like": np.zeros(m, np.float32)})["y"]
        np.testing.assert_array_equal(got, x[:m])


# ---------------------------------------------------------------- sequences of static structure
def test_static_sequences_leave_no_list_behind() -> None:
    module = _import(
        """g (float[6, 2] x) => (float[4, 2] y)
        <int64[3] parts = {1, 2, 3}, int64 first = {0}> {
          s = SplitToSequence <axis = 0> (x, parts)
          t = SequenceErase(s, first)
          a = SequenceAt(t, first)
          u = SequenceConstruct(a, a)
          y = ConcatFromSequence <axis = 0> (u)
        }"""
    )
    x = _x(6, 2)
    np.testing.assert_array_equal(evaluate(module, {"x": x})["y"], np.concatenate([x[1:3], x[1:3]]))
    used = {node.op for node in module.main.nodes if any(v.uses or v.is_output for v in node.outputs)}
    assert not {"SequenceAt", "SequenceErase", "SplitToSequence", "ConcatFromSequence"} & used


def test_sequence_types_join_ranks() -> None:
    one, two = TensorType(d.F32, (2, 3)), TensorType(d.F32, (2, 4))
    (joined,) = spec("SequenceConstruct").infer(one, two)
    assert joined == SequenceType(TensorType(d.F32, (2, -1)))
    with pytest.raises(TypeInferenceError, match="one rank"):
        spec("SequenceConstruct").infer(one, TensorType(d.F32, (2,)))


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("Reshape", [(2, 3)], {"shape": (4, 2)}),
        ("Transpose", [(2, 3)], {"perm": (0, 0)}),
        ("Expand", [(2, 3)], {"shape": (3,)}),
        ("Concat", [(2, 3), (3, 3)], {"axis": 1}),
        ("Slice", [(5,)], {"starts": (0,), "ends": (5,), "axes": (1,), "steps": (1,)}),
        ("Pad", [(5,)], {"pads": (-3, -3)}),
        ("Pad", [(5,)], {"pads": (1, 1), "mode": "mirror"}),
        ("TopK", [(5,)], {"k": 6, "axis": 0}),
        ("Resize", [(5,)], {"sizes": (3, 3)}),
    ],
)
def test_bad_operands_are_rejected(op: str, shapes: list[tuple[int, ...]], attrs: dict[str, Any]) -> None:
    with pytest.raises(TypeInferenceError, match=rf"{op}: .*expected .*; "):
        spec(op).infer(*(TensorType(d.F32, shape) for shape in shapes), **attrs)


def test_out_of_range_indices_fail_when_they_run() -> None:
    for op, arrays, attrs in (
        ("Gather", [_x(3), _i64(3)], {"axis": 0}),
        ("GatherElements", [_x(3), _i64(-4)], {"axis": 0}),
        ("ScatterElements", [_x(3), _i64(5), _x(1)], {"axis": 0}),
        ("BindSymbols", [_i64(1, -1)], {"symbols": ("a", "b")}),
    ):
        with pytest.raises(ExecutionError, match=f"{op}: .*expected"):
            reference.call(op, arrays, attrs)


def test_unsupported_and_invalid_models_say_so() -> None:
    with pytest.raises(UnsupportedOpError, match="decode the image first"):
        import_onnx(
            onnx.parser.parse_model(
                '<ir_version: 9, opset_import: ["": 20]> g (uint8[N] x) => (uint8[H, W, 3] y) { y = ImageDecoder(x) }'
            )
        )
    with pytest.raises(ModelError, match="at most one"):
        _import("g (float[6] x) => (float[2, 3] y) <int64[2] s = {-1, -1}> { y = Reshape(x, s) }")
    module = _import("g (float[6] x, int64[1] s) => (float[M] y) { y = Reshape(x, s) }")
    with pytest.raises(Error):
        evaluate(module, {"x": _x(6), "s": _i64(-7)})


def test_concat_of_parts_whose_sizes_come_late_is_not_placed_early() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N] x, float[N] z) => (float[K] y) <int64[1] axis = {0}> {
          e = Exp(x)
          r = NonZero(x)
          rows = Squeeze(r)
          a = Gather(x, rows)
          f = Exp(a)
          h = NonZero(z)
          others = Squeeze(h)
          b = Gather(z, others)
          g = Exp(b)
          y = Concat <axis = 0> (e, f, g)
        }"""
    )
    run = backend.compile(model)
    z = np.array([0, 0, 3], np.float32)
    for x in (np.array([1, 0, 2], np.float32), np.zeros(3, np.float32)):
        (got,) = run([x, z])
        np.testing.assert_allclose(got, np.exp(np.concatenate([x, x[x != 0], z[z != 0]])), rtol=1e-6)
