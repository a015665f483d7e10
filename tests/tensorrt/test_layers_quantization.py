"""Quantization, normalization and fill layers."""

import ml_dtypes
import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network

FP8, FP4, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu


@exercises(
    "INetworkDefinition.add_quantize", "INetworkDefinition.add_dequantize", "IQuantizeLayer.axis", "IQuantizeLayer.to_type",
    "IQuantizeLayer.block_shape", "IDequantizeLayer.axis", "IDequantizeLayer.to_type", "IDequantizeLayer.block_shape",
)  # fmt: skip
def test_quantize_and_dequantize():
    suite = Suite()
    array = (4 * suite.random(3, 8)).astype(np.float32)
    x = suite.input(array)

    def both(scale, expand, kind, limits, narrow, axis=None, block=None):
        q = suite.net.add_quantize(x, suite.const(scale), kind)
        if axis is not None:
            q.axis = axis
            assert q.axis == axis
        assert q.to_type is kind and q.get_output(0).dtype is kind
        d = suite.net.add_dequantize(q.get_output(0), suite.const(scale), trt.float32)
        d.axis = q.axis
        if block is not None:
            q.block_shape = d.block_shape = block
            assert q.block_shape == d.block_shape == block
        ratio = (array / expand).clip(*limits)
        codes = (np.round(ratio) if narrow is np.int8 else ratio.astype(narrow)).astype(np.float32)
        suite.expect(d, codes * expand)

    both(np.float32(0.05), 0.05, trt.int8, (-128, 127), np.int8)
    each = np.array([0.05, 0.1, 0.2], np.float32)
    both(each, each[:, None], trt.int8, (-128, 127), np.int8, axis=0)
    both(np.float32(0.02), 0.02, trt.fp8, (-448, 448), FP8)
    blocks = suite.rng.uniform(0.5, 1, (3, 2)).astype(np.float32)
    both(blocks, np.repeat(blocks, 4, 1), trt.int4, (-8, 7), np.int8, axis=1, block=(1, 4))
    half = suite.net.add_dequantize(suite.input(np.array([[3, -4]], np.int8)), suite.const(np.float32(0.5)), trt.float32)
    half.to_type = trt.float16
    assert half.to_type is trt.float16
    suite.expect(half, np.array([[1.5, -2]], np.float16))
    codes = suite.net.add_quantize(x, suite.const(np.float32(0.05)), trt.fp8)
    codes.to_type = trt.int8
    suite.expect(codes, np.round(array / np.float32(0.05)).clip(-128, 127).astype(np.int8))
    suite.run()


@exercises(
    "INetworkDefinition.add_dynamic_quantize", "INetworkDefinition.add_dynamic_quantize_v2", "IDynamicQuantizeLayer.axis",
    "IDynamicQuantizeLayer.block_size", "IDynamicQuantizeLayer.block_shape", "IDynamicQuantizeLayer.to_type",
    "IDynamicQuantizeLayer.output_type", "IDynamicQuantizeLayer.scale_type",
)  # fmt: skip
def test_dynamic_quantize():
    suite = Suite(1)
    array = suite.random(3, 32)
    x = suite.input(array)
    layer = suite.net.add_dynamic_quantize(x, 0, 1, trt.fp8, trt.e8m0)
    layer.axis, layer.block_size, layer.to_type, layer.scale_type = 1, 16, trt.fp4, trt.fp8
    assert (layer.axis, layer.block_size, layer.to_type, layer.output_type, layer.scale_type) == (1, 16, trt.fp4, trt.fp4, trt.fp8)
    second = np.float32(0.25)
    layer.set_input(1, suite.const(second))
    cut = array.reshape(3, 2, 16)
    scales = (np.abs(cut).max(-1) / np.float32(6) / second).astype(FP8)
    factor = scales.astype(np.float32)[..., None] * second
    codes = (cut / factor).clip(-6, 6).astype(FP4)
    one = suite.const(np.float32(1))
    suite.expect(suite.net.add_dequantize(layer.get_output(0), one, trt.float32), codes.astype(np.float32).reshape(3, 32))
    suite.expect(suite.net.add_dequantize(layer.get_output(1), one, trt.float32), scales.astype(np.float32))
    layer = suite.net.add_dynamic_quantize_v2(x, (3, 8), trt.fp8, trt.e8m0)
    assert layer.block_shape == (3, 8)
    cut = array.reshape(1, 3, 4, 8)
    ideal = np.abs(cut).max((1, 3)) / 448
    powers = 2.0 ** np.ceil(np.log2(ideal))
    suite.expect(suite.net.add_cast(layer.get_output(1), trt.float32), powers.astype(np.float32))
    codes = (cut / powers[:, None, :, None]).astype(FP8).astype(np.float32).reshape(3, 32)
    suite.expect(suite.net.add_cast(layer.get_output(0), trt.float32), codes)
    layer = suite.net.add_dynamic_quantize_v2(x, (3, 8), trt.fp8, trt.e8m0)
    layer.block_shape = (1, -1)
    assert layer.get_output(1).shape == (3, 1)
    suite.run()
    net, log = network()
    layer = net.add_dynamic_quantize(net.add_input("x", trt.float32, (3, 30)), 1, 16, trt.fp4, trt.fp8)
    assert not layer.get_output(0).shape._valid and "sizes that divide it" in log.errors.pop()


def normal(x, axes, epsilon):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon)


@exercises(
    "INetworkDefinition.add_normalization", "INetworkDefinition.add_normalization_v2", "INormalizationLayer.epsilon",
    "INormalizationLayer.axes", "INormalizationLayer.num_groups", "INormalizationLayer.compute_precision", "INormalizationLayer.is_v2",
)  # fmt: skip
def test_normalization():
    suite = Suite(2)
    array = suite.random(2, 6, 4, 3)
    x = suite.input(array)
    add, v2 = suite.net.add_normalization, suite.net.add_normalization_v2
    s, b = suite.random(1, 6, 1, 1), suite.random(1, 6, 1, 1)
    layer = add(x, suite.const(s), suite.const(b), 0b1000)
    layer.axes, layer.epsilon, layer.compute_precision = 0b1100, 0.25, trt.float16
    assert (layer.axes, layer.epsilon, layer.compute_precision, layer.is_v2) == (0b1100, 0.25, trt.float16, False)
    suite.expect(layer, normal(array, (2, 3), 0.25) * s + b)
    full, more = suite.random(1, 6, 4, 3), suite.random(1, 6, 4, 3)
    suite.expect(add(x, suite.const(full), suite.const(more), 0b1110), normal(array, (1, 2, 3), 1e-5) * full + more)
    odd = add(x, suite.const(s), suite.const(b), 0b0101)
    suite.expect(odd, normal(array, (0, 2), 1e-5) * s + b)
    grouped = normal(array.reshape(2, 3, 2, 4, 3), (2, 3, 4), 1e-5)
    per_group = [suite.random(1, 3, 1, 1) for _ in range(2)]
    layer = add(x, *map(suite.const, per_group), 0b1100)
    layer.num_groups = 3
    assert layer.num_groups == 3
    suite.expect(layer, (grouped * per_group[0][:, :, None] + per_group[1][:, :, None]).reshape(array.shape))
    layer = v2(x, suite.const(s), suite.const(b), 0b1100)
    layer.num_groups = 3
    assert layer.is_v2
    suite.expect(layer, grouped.reshape(array.shape) * s + b)
    suite.run()


@exercises(
    "INetworkDefinition.add_fill", "IFillLayer.shape", "IFillLayer.operation", "IFillLayer.alpha", "IFillLayer.beta", "IFillLayer.to_type",
    "IFillLayer.set_input", "IFillLayer.is_alpha_beta_int64", "FillOperation.LINSPACE", "FillOperation.RANDOM_UNIFORM",
    "FillOperation.RANDOM_NORMAL",
)  # fmt: skip
def test_fill():
    suite = Suite(3)
    layer = suite.net.add_fill((2,), trt.FillOperation.LINSPACE)
    layer.shape, layer.alpha, layer.beta = (5,), 2.0, 0.5
    assert (layer.shape, layer.alpha, layer.beta, layer.to_type) == ((5,), 2.0, 0.5, trt.float32) and not layer.is_alpha_beta_int64()
    suite.expect(layer, 2 + 0.5 * np.arange(5, dtype=np.float32))
    layer = suite.net.add_fill((3,), trt.FillOperation.LINSPACE, trt.float32)
    layer.to_type, layer.alpha, layer.beta = trt.int64, 10**15, -3
    assert layer.is_alpha_beta_int64()
    suite.expect(layer, 10**15 - 3 * np.arange(3))
    layer = suite.net.add_fill((), trt.FillOperation.LINSPACE, trt.int32)
    for index, value in enumerate((np.array([2, 3], np.int32), np.int32(7), np.array([10, 1], np.int32))):
        layer.set_input(index, suite.input(value))
    suite.expect(layer, np.array([[7, 8, 9], [17, 18, 19]], np.int32))
    drawn = {}
    for kind, (a, b) in {"RANDOM_UNIFORM": (3.0, 5.0), "RANDOM_NORMAL": (-2.0, 0.5)}.items():
        layer = suite.net.add_fill((40, 50), trt.FillOperation.LINSPACE)
        layer.operation, layer.alpha, layer.beta = getattr(trt.FillOperation, kind), a, b
        assert layer.operation is getattr(trt.FillOperation, kind) and layer.get_output(0).shape == (40, 50)
        layer.get_output(0).name = kind
        suite.net.mark_output(layer.get_output(0))
        drawn[kind] = layer
    results = suite.run()
    uniform, gauss = results["RANDOM_UNIFORM"], results["RANDOM_NORMAL"]
    assert 3 <= uniform.min() < 3.1 and 4.9 < uniform.max() <= 5 and abs(uniform.mean() - 4) < 0.1
    assert abs(gauss.mean() + 2) < 0.1 and abs(gauss.std() - 0.5) < 0.05
    with pytest.raises(TypeError):
        drawn["RANDOM_NORMAL"].alpha = "1"


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def suppressed(boxes, scores, most, overlap, least):
    rows = []
    for b in range(scores.shape[0]):
        found = []
        for c in range(scores.shape[2]):
            own = boxes[b, :, c] if boxes.ndim == 4 else boxes[b]
            kept = []
            for i in np.argsort(-scores[b, :, c]):
                if scores[b, i, c] > least and len(kept) < most and all(iou(own[i], own[j]) <= overlap for j in kept):
                    kept.append(i)
            found += [(scores[b, i, c], (b, c, i)) for i in kept]
        rows += [row for _, row in sorted(found, key=lambda pair: -pair[0])]
    return np.array(rows, np.int32)


@exercises(
    "INetworkDefinition.add_nms", "INMSLayer.bounding_box_format", "INMSLayer.topk_box_limit", "INMSLayer.indices_type",
    "INMSLayer.set_input", "BoundingBoxFormat.CORNER_PAIRS", "BoundingBoxFormat.CENTER_SIZES",
)  # fmt: skip
def test_non_maximum_suppression():
    suite = Suite(4)
    corner = suite.rng.uniform(0, 4, (2, 9, 2))
    boxes = np.concatenate([corner, corner + suite.rng.uniform(1, 4, (2, 9, 2))], -1).astype(np.float32)
    scores = suite.rng.permutation(54).reshape(2, 9, 3).astype(np.float32) / 54
    most, s = suite.const(np.int32(4)), suite.input(scores)
    layer = suite.net.add_nms(suite.input(boxes), s, most)
    layer.set_input(3, suite.const(np.float32(0.3)))
    layer.set_input(4, suite.const(np.float32(0.4)))
    expected = suppressed(boxes, scores, 4, 0.3, 0.4)
    suite.expect(layer, expected)
    suite.expect(layer.get_output(1), np.array(len(expected), np.int32))
    centers = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
    layer = suite.net.add_nms(suite.input(centers), s, most)
    layer.bounding_box_format, layer.indices_type = trt.BoundingBoxFormat.CENTER_SIZES, trt.int64
    assert layer.bounding_box_format is trt.BoundingBoxFormat.CENTER_SIZES
    suite.expect(layer, suppressed(boxes, scores, 4, 0.0, 0.0).astype(np.int64))
    layer = suite.net.add_nms(suite.input(boxes), s, most)
    layer.bounding_box_format, layer.topk_box_limit = trt.BoundingBoxFormat.CORNER_PAIRS, 2
    assert layer.topk_box_limit == 2
    limited = np.where(scores >= np.sort(scores, 1)[:, -2:-1], scores, -1)
    suite.expect(layer, suppressed(boxes, limited, 4, 0.0, 0.0))
    layer = suite.net.add_nms(suite.input(boxes, dynamic=True), suite.input(scores, dynamic=True), most)
    layer.topk_box_limit = 2
    suite.expect(layer, suppressed(boxes, limited, 4, 0.0, 0.0))
    own = np.stack([boxes, boxes[:, ::-1], boxes + 1], 2)
    suite.expect(suite.net.add_nms(suite.input(own), s, most), suppressed(own, scores, 4, 0.0, 0.0))
    suite.run()
