"""Lower precision: what becomes fp16 or bf16, what stays fp32 and why, constants, casts, and what it does to whole models."""

import math
from collections import Counter

import numpy as np
import pytest

from dovetail.builder import optimise
from dovetail.builder.verify_engine import distance
from dovetail.core.dims import sym
from dovetail.core.dtypes import BF16, BOOL, F16, F32, I64, U8
from dovetail.frontend.importer import import_onnx
from dovetail.ir.graph import Module, Time, Value
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate, trace
from dovetail.passes.precision import lower_precision, split_casts
from dovetail.passes.simplify import simplify
from models import zoo
from tests.unit.ir_builder import Build, built, feeds


def lowered(build: Build, precision: str = "fp16", symbols=None, tolerance: float = 2e-3) -> tuple[Module, dict[str, str]]:
    """The module after the pass, checked against the one before, and why nodes were kept in fp32, by op."""
    before, after = built(build), built(build)
    log = lower_precision(after, precision)
    verify(after)
    inputs = feeds(before, symbols)
    with np.errstate(all="ignore"):
        expected, got = evaluate(before, inputs), evaluate(after, inputs)
    for want, have in zip(expected.values(), got.values(), strict=True):
        assert have.dtype == want.dtype and have.shape == want.shape
        assert distance(have, want) <= tolerance
    return after, {where.rpartition("(")[2][:-1]: reason for where, reason in log.kept}


def types(module: Module, *ops: str) -> list[str]:
    """Element types of the results of the run-time nodes of some ops, in order."""
    return [n.outputs[0].tensor.dtype.name for n in module.main.nodes if n.op in ops and n.outputs[0].time == Time.RUN]


def casts(module: Module) -> Counter[tuple[str, str]]:
    """(from, to) of the run-time Casts."""
    return Counter(
        (n.input(0).tensor.dtype.name, n.output.tensor.dtype.name)
        for n in module.main.nodes
        if n.op == "Cast" and n.output.time == Time.RUN
    )


def convnet(b) -> Value:
    x = b.input(sym("N"), 3, 9, 9)
    y = b("Relu", b.conv(x, b.random(8, 3, 3, 3), b.random(8)))
    z = b("Add", y, b.conv(y, b.random(8, 8, 1, 1)))
    mean = b("ReduceMean", z, axes=(2, 3), keepdims=False)
    return b("MatMul", mean, b.random(8, 5))


# ---------------------------------------------------------------------- what becomes narrow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_network_is_narrow_between_one_cast_at_either_end(precision):
    module, kept = lowered(convnet, precision, {"N": 2}, 2e-3 if precision == "fp16" else 2e-2)
    narrow = {"fp16": "f16", "bf16": "bf16"}[precision]
    assert types(module, "Conv", "Relu", "Add", "ReduceMean", "MatMul") == [narrow] * 6
    assert casts(module) == {("f32", narrow): 1, (narrow, "f32"): 1} and not kept
    assert module.main.inputs[0].tensor.dtype == F32 and module.main.outputs[0].tensor.dtype == F32


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_other_precisions_change_nothing(precision):
    module = built(convnet)
    before = [repr(n) for n in module.main.nodes]
    log = lower_precision(module, precision)
    assert [repr(n) for n in module.main.nodes] == before and not log.kept and not log.narrow


def test_weights_keep_names_and_arithmetic_of_weights_stays_in_fp32():
    def build(b):
        w = b.weight(b.rng.standard_normal((4, 3, 1, 1)).astype(np.float32), "conv.weight")
        scale = b.weight(np.full((4, 1, 1, 1), 3.0, np.float32), "bn")
        return b.conv(b.input(1, 3, 5, 5), b("Mul", w, scale))

    module, _ = lowered(build)
    assert set(module.weights) == {"conv.weight", "bn"} and all(a.dtype == np.float32 for a in module.weights.values())
    (mul,) = [n for n in module.main.nodes if n.op == "Mul"]
    (reader,) = mul.output.consumers
    assert mul.output.tensor.dtype == F32 and reader.op == "Cast" and reader.output.time == Time.WEIGHT
    assert reader.output.consumers[0].op == "Conv"


def test_the_last_ops_before_an_output_are_stored_in_fp32_without_rounding():
    def build(b):
        y = b.conv(b.input(2, 3, 4, 4), b.random(6, 3, 1, 1))
        parts = [b("Sigmoid", y), b("Add", y, b.random(6, 1, 1))]
        return b("Reshape", b("Concat", *parts, axis=1), shape=(2, 12, 16))

    module, _ = lowered(build)
    assert types(module, "Conv") == ["f16"] and types(module, "Sigmoid", "Add", "Concat", "Reshape") == ["f32"] * 4
    assert module.main.outputs[0].producer.op != "Cast"


def test_statistics_of_a_norm_stay_fp32():
    def build(b):
        x = b("Relu", b.input(2, 8))
        y, mean, _ = b("LayerNormalization", x, b.random(8), b.random(8), axis=1, outputs=3)
        return b("MatMul", y, b.random(8, 3)), mean

    module, _ = lowered(build)
    (norm,) = [n for n in module.main.nodes if n.op == "LayerNormalization"]
    assert [v.tensor.dtype for v in norm.outputs] == [F16, F32, F32]


# ---------------------------------------------------------------------- what stays wide
def test_an_unrecognised_variance_stays_in_fp32():
    def build(b):
        x = b("Add", b("Mul", b("Tanh", b.input(3, 64)), b.weight(0.02)), b.weight(300.0))
        d = b("Sub", x, b("ReduceMean", x, axes=(1,), keepdims=True))
        var = b("ReduceMean", b("Mul", d, d), axes=(1,), keepdims=True)
        return b("MatMul", b("Div", d, b("Sqrt", b("Add", var, b.weight(1e-9)))), b.random(64, 4))

    module, kept = built(build), {}
    log = lower_precision(module, "fp16")
    kept = {where.rpartition("(")[2][:-1] for where, _ in log.kept}
    assert {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"} <= kept
    assert types(module, "ReduceMean", "Sub", "Sqrt", "Div") == ["f32"] * 5 and types(module, "MatMul") == ["f16"]


def test_squares_that_overflow_fp16_do_not():
    def build(b):
        x = b("Mul", b("Relu", b.input(2, 16)), b.weight(1000.0))
        norm = b("Sqrt", b("ReduceSum", b("Mul", x, x), axes=(1,), keepdims=True))
        return b("MatMul", b("Div", x, b("Max", norm, b.weight(1e-12))), b.random(16, 3))

    module, kept = lowered(build)
    assert kept["ReduceSum"] == "sums overflow" and types(module, "MatMul") == ["f16"]


def test_whole_numbers_and_angles_stay_in_fp32():
    def build(b):
        position = b("Cast", b.input(2, 50, dtype=I64), to=F32)
        far = b("Add", b("Reshape", position, shape=(2, 50, 1)), b.weight(3000.0))
        angle = b("MatMul", far, b.weight(np.array([[1.0, 0.37, 0.01]], np.float32)))
        return b("MatMul", b("Cos", angle), b.random(3, 4))

    module, kept = lowered(build)
    assert types(module, "MatMul") == ["f32", "f16"] and types(module, "Add", "Cos") == ["f32", "f32"]
    assert kept["Cast"] == "whole numbers" and "angles" in kept["Cos"]


def test_pixels_are_exact_in_fp16():
    module, _ = lowered(lambda b: b.conv(b("Cast", b.input(1, 3, 4, 4, dtype=U8), to=F32), b.random(2, 3, 1, 1)))
    assert casts(module) == {("u8", "f16"): 1, ("f16", "f32"): 1}


def test_coordinates_of_a_sampler_are_read_in_fp32_and_its_image_narrow():
    def build(b):
        image = b.conv(b.input(1, 3, 6, 6), b.random(4, 3, 1, 1))
        grid = b("Clip", b.input(1, 5, 5, 2), min=-1.0, max=1.0)
        return b.conv(b("GridSample", image, grid), b.random(2, 4, 1, 1))

    module, _ = lowered(build)
    (sampler,) = [n for n in module.main.nodes if n.op == "GridSample"]
    assert [v.tensor.dtype for v in (*sampler.operands, sampler.output)] == [F16, F32, F16]
    assert types(module, "Clip") == ["f32"]


def test_exponentials_are_wide_and_what_bounds_them_is_narrow_again():
    def build(b):
        x = b("Mul", b.input(4, 8), b.weight(6.0))
        e = b("Exp", x)
        return b("MatMul", b("Div", e, b("ReduceSum", e, axes=(1,), keepdims=True)), b.random(8, 3))

    module, kept = lowered(build)
    assert kept["Exp"] == "exponentials overflow" and types(module, "Exp", "ReduceSum", "Div", "MatMul") == ["f32"] * 3 + ["f16"]


def test_topk_orders_fp32_values():
    module, _ = lowered(lambda b: b("TopK", b("MatMul", b.input(3, 8), b.random(8, 20)), k=4, axis=1)[0])
    assert types(module, "TopK") == ["f32"] and types(module, "MatMul") == ["f16"]


def test_a_users_casts_keep_their_meaning():
    def build(b):
        half = b("Cast", b.input(2, 8), to=F16)
        wide = b("Cast", b("MatMul", half, b.weight(b.rng.standard_normal((8, 8)).astype(np.float16))), to=F32)
        return b("Cast", b("Mul", wide, b.weight(1e5)), to=F32), half

    module, kept = lowered(build)
    assert types(module, "MatMul") == ["f16"] and types(module, "Mul") == ["f32"]
    assert kept["Mul"] == "its operands are kept in fp32"


# ---------------------------------------------------------------------- constants
@pytest.mark.parametrize(("precision", "largest"), [("fp16", 65504.0), ("bf16", 3.3895313892515355e38)])
def test_masks_beyond_the_range_become_its_end_and_infinities_stay(precision, largest):
    low = float(np.finfo(np.float32).min)

    def build(b):
        x = b("MatMul", b.input(2, 4), b.random(4, 4))
        hidden = b("Where", b.input(2, 4, dtype=BOOL), x, b.weight(low))
        biased = b("Add", hidden, b.weight(np.array([0, 0, -np.inf, 0], np.float32), "bias"))
        padded = b("Pad", b("Clip", biased, min=low, max=-low), pads=(0, 0, 0, 1), value=low)
        filled = b("Add", padded, b("Full", shape=(5,), value=low, dtype=F32))
        return b("Softmax", b("Max", filled, padded), axis=1)

    module, _ = lowered(build, precision, tolerance=2e-2)
    values = trace(module, feeds(module))
    for value in values.values():
        assert value.dtype.kind not in "f" or not np.isnan(value.astype(np.float32)).any()
    biases = [v for k, v in values.items() if k.startswith("bias") and v.dtype.itemsize == 2]
    assert all(np.isneginf(b.astype(np.float32)).sum() == 1 for b in biases) and biases
    (pad,) = [n for n in module.main.nodes if n.op == "Pad"]
    (clip,) = [n for n in module.main.nodes if n.op == "Clip"]
    assert pad.attrs["value"] == -largest and clip.attrs == {"min": -largest, "max": largest}
    assert all(np.isfinite(v.astype(np.float32)).all() for k, v in values.items() if k.startswith("full") and v.dtype.itemsize == 2)


def test_a_mask_computed_at_run_time_is_clamped_where_it_becomes_narrow():
    low = float(np.finfo(np.float32).min)

    def build(b):
        mask = b("Cast", b.input(2, 6, dtype=I64), to=F32)
        bias = b("Mul", b("Sub", b.weight(1.0), b("Clip", mask, min=0.0, max=1.0)), b.weight(low))
        q, k, v = (b.input(2, 2, 6, 8) for _ in range(3))
        return b("Attention", q, k, v, b("Reshape", bias, shape=(2, 1, 1, 6)), scale=0.35)

    module, _ = lowered(build)
    (attention,) = [n for n in module.main.nodes if n.op == "Attention"]
    assert [v.tensor.dtype for v in attention.operands] == [F16] * 4
    array = trace(module, feeds(module))[attention.input(3).name].astype(np.float32)
    assert np.isfinite(array).all() and array.min() == -65504.0


def test_clamping_casts_against_numpy():
    from dovetail.reference.registry import lookup

    x = np.array([0.0, -0.0, 65519.9, 65520.0, -1e9, 3.4028235e38, np.inf, -np.inf, np.nan, 1e-8], np.float32)
    got = lookup("Cast")(x, to=F16, clamp=True).astype(np.float32)
    np.testing.assert_array_equal(got, np.array([0, -0.0, 65504, 65504, -65504, 65504, np.inf, -np.inf, np.nan, 0], np.float32))
    assert math.copysign(1, got[1]) == -1
    brain = lookup("Cast")(x, to=BF16, clamp=True).astype(np.float32)
    assert np.isfinite(brain[5]) and np.isinf(brain[6:8]).all()
    plain = lookup("Cast")(x, to=F16).astype(np.float32)
    assert np.isinf(plain[3:8]).all()


# ---------------------------------------------------------------------- casts and fusion
def test_widening_casts_are_not_shared_between_readers():
    def build(b):
        y = b.conv(b.input(1, 3, 4, 4), b.random(4, 3, 1, 1))
        return b("ReduceSum", y, axes=(1,), keepdims=True), b("Exp", y), b("Relu", b.conv(y, b.random(2, 4, 1, 1)))

    module, _ = lowered(build)
    simplify(module)
    assert casts(module)["f16", "f32"] == 2  # shared by the sum and the exponential
    split_casts(module.main)
    verify(module)
    assert casts(module)["f16", "f32"] == 3
    assert all(len(n.output.uses) + n.output.is_output == 1 for n in module.main.nodes if n.op == "Cast" and n.output.tensor.dtype == F32)


def test_values_pass_through_simplify_once_lowered():
    module, _ = lowered(convnet, symbols={"N": 2})
    before = casts(module)
    simplify(module)
    verify(module)
    assert casts(module) == before


# ---------------------------------------------------------------------- whole models
# The oracle rounds after every op where kernels round at stores only, so it is further off than an engine.
MODELS = {
    # name: (sizes, tolerance for fp16, tolerance for bf16; None: not looked at)
    "torchvision_squeezenet1_1": ({}, 2e-3, 1e-2),
    "torchvision_mobilenet_v3_small": ({}, 4e-3, 4e-2),
    "torchvision_resnet50": ({}, 2.5e-2, None),  # seeded weights amplify rounding
    "dynamic_bert4": ({"seq": 9}, 2e-3, None),
    "dynamic_yolo": ({"height": 64, "width": 64}, 2e-3, 1e-2),
    "dynamic_unet": ({"height": 32, "width": 64}, 4e-3, 3e-2),
    "dynamic_decoder_kv_cache": ({}, 4e-3, 3e-2),
    "dynamic_lstm_gru": ({}, 2e-3, 1e-2),
    "dynamic_loop_if": ({}, 2e-3, 1e-2),
    "transformers_llama_tiny_opset20": ({}, 2e-3, 1.5e-2),
    "transformers_vit_opset23": ({}, 2e-3, 1.5e-2),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_stay_close_to_fp32(name):
    sizes, *tolerances = MODELS[name]
    model = zoo.load(name)
    given = zoo.inputs(model, **sizes)
    want = None
    for precision, tolerance in zip(("fp16", "bf16"), tolerances, strict=True):
        if tolerance is None:
            continue
        module = import_onnx(model, None)
        optimise(module)
        inputs = {v.name: given[v.name] for v in module.main.inputs}
        want = evaluate(module, inputs) if want is None else want
        log = lower_precision(module, precision)
        simplify(module)
        verify(module)
        assert log.narrow
        got = evaluate(module, inputs)
        for output, expected in want.items():
            assert np.isfinite(got[output]).all(), output
            assert distance(got[output], expected) <= tolerance, output
