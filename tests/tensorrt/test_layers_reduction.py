"""Layers over axes, products and resizing."""

import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network

R, MO = trt.ReduceOperation, trt.MatrixOperation


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@exercises(
    "INetworkDefinition.add_reduce", "IReduceLayer.op", "IReduceLayer.axes", "IReduceLayer.keep_dims",
    *(f"ReduceOperation.{n}" for n in ("SUM", "PROD", "MAX", "MIN", "AVG")),
)  # fmt: skip
def test_reduce():
    suite = Suite()
    array = suite.random(3, 4, 5)
    x = suite.input(array, dynamic=True)
    for name, function in {"SUM": np.sum, "PROD": np.prod, "MAX": np.max, "MIN": np.min, "AVG": np.mean}.items():
        layer = suite.net.add_reduce(x, R.SUM, 1, False)
        layer.op, layer.axes, layer.keep_dims = getattr(R, name), 0b101, True
        assert (layer.op, layer.axes, layer.keep_dims) == (getattr(R, name), 0b101, True)
        suite.expect(layer, function(array, axis=(0, 2), keepdims=True))
        suite.expect(suite.net.add_reduce(x, getattr(R, name), 0b010, False), function(array, axis=1))
    suite.run()
    net, log = network()
    layer = net.add_reduce(net.add_input("x", trt.float32, (3, 4)), R.SUM, 0b100, False)
    assert not layer.get_output(0).shape._valid and "expected bits of the 2 axes" in log.errors.pop()


@exercises(
    "INetworkDefinition.add_softmax", "ISoftMaxLayer.axes", "INetworkDefinition.add_ragged_softmax", "INetworkDefinition.add_topk",
    "ITopKLayer.op", "ITopKLayer.k", "ITopKLayer.axes", "ITopKLayer.indices_type", "ITopKLayer.set_input", "TopKOperation.MAX",
    "TopKOperation.MIN", "INetworkDefinition.add_cumulative", "ICumulativeLayer.op", "ICumulativeLayer.exclusive",
    "ICumulativeLayer.reverse", "CumulativeOperation.SUM",
)  # fmt: skip
def test_softmax_topk_and_cumulative():
    suite = Suite(1)
    array = suite.random(2, 3, 4, 5)
    x = suite.input(array)
    layer = suite.net.add_softmax(x)
    assert layer.axes == 1 << 1
    suite.expect(layer, softmax(array, 1))
    layer = suite.net.add_softmax(x)
    layer.axes = 1 << 3
    suite.expect(layer, softmax(array, 3))
    rows, bounds = suite.random(2, 3, 6), np.array([[[6], [1], [4]], [[0], [3], [5]]], np.int32)
    expected = np.zeros_like(rows)
    for b in range(2):
        for r in range(3):
            n = bounds[b, r, 0]
            if n:
                expected[b, r, :n] = softmax(rows[b, r, :n], 0)
    suite.expect(suite.net.add_ragged_softmax(suite.input(rows), suite.input(bounds)), expected)
    flat = suite.random(3, 7)
    y = suite.input(flat)
    layer = suite.net.add_topk(y, trt.TopKOperation.MIN, 1, 1)
    layer.op, layer.k, layer.axes = trt.TopKOperation.MAX, 3, 0b10
    assert (layer.op, layer.k, layer.axes, layer.indices_type) == (trt.TopKOperation.MAX, 3, 2, trt.int32)
    order = np.argsort(-flat, 1)[:, :3]
    suite.expect(layer, np.take_along_axis(flat, order, 1))
    suite.expect(layer.get_output(1), order.astype(np.int32))
    layer = suite.net.add_topk(y, trt.TopKOperation.MIN, 2, 0b01)
    layer.indices_type = trt.int64
    layer.set_input(1, suite.input(np.int32(2)))
    suite.expect(layer.get_output(1), np.argsort(flat, 0)[:2])
    add = trt.CumulativeOperation.SUM
    layer = suite.net.add_cumulative(y, suite.const(np.int32(1)), add, False, False)
    suite.expect(layer, np.cumsum(flat, 1))
    layer = suite.net.add_cumulative(y, suite.const(np.int32(0)), add, False, False)
    layer.exclusive, layer.reverse, layer.op = True, True, add
    assert (layer.exclusive, layer.reverse, layer.op) == (True, True, add)
    suite.expect(layer, np.cumsum(flat[::-1], 0)[::-1] - flat)
    suite.run()


@exercises(
    "INetworkDefinition.add_matrix_multiply", "IMatrixMultiplyLayer.op0", "IMatrixMultiplyLayer.op1", "MatrixOperation.NONE",
    "MatrixOperation.TRANSPOSE", "MatrixOperation.VECTOR", "INetworkDefinition.add_einsum", "IEinsumLayer.equation",
)  # fmt: skip
def test_products():
    suite = Suite(2)
    a, b = suite.random(2, 3, 5), suite.random(1, 4, 5)
    x, y = suite.input(a), suite.input(b)
    layer = suite.net.add_matrix_multiply(x, MO.NONE, y, MO.NONE)
    layer.op1 = MO.TRANSPOSE
    assert (layer.op0, layer.op1) == (MO.NONE, MO.TRANSPOSE)
    suite.expect(layer, a @ b.transpose(0, 2, 1))
    square = suite.random(3, 3)
    layer = suite.net.add_matrix_multiply(suite.input(square), MO.NONE, suite.input(square), MO.NONE)
    layer.op0 = MO.TRANSPOSE
    suite.expect(layer, square.T @ square)
    rows, row = suite.random(2, 5), suite.random(5)
    suite.expect(suite.net.add_matrix_multiply(x, MO.NONE, suite.input(rows), MO.VECTOR), np.einsum("bij,bj->bi", a, rows))
    suite.expect(suite.net.add_matrix_multiply(suite.input(suite.random(2, 3)), MO.VECTOR, x, MO.NONE),
                 np.einsum("bi,bij->bj", list(suite.inputs.values())[-1], a))  # fmt: skip
    suite.expect(suite.net.add_matrix_multiply(suite.input(row), MO.VECTOR, suite.input(row), MO.VECTOR), np.float32(row @ row))
    layer = suite.net.add_einsum([x, y], "bij,ckj->ik")
    suite.expect(layer, np.einsum("bij,ckj->ik", a, b))
    layer = suite.net.add_einsum([x], "bij->bij")
    layer.equation = "bij->jb"
    assert layer.equation == "bij->jb"
    suite.expect(layer, np.einsum("bij->jb", a))
    suite.run()
    net, log = network()
    assert net.add_einsum([], "->") is None and log.errors.pop()


T, IM, RR = trt.ResizeCoordinateTransformation, trt.InterpolationMode, trt.ResizeRoundMode
ROUND = {
    RR.HALF_UP: lambda v: np.floor(v + 0.5), RR.HALF_DOWN: lambda v: np.ceil(v - 0.5), RR.FLOOR: np.floor, RR.CEIL: np.ceil,
}  # fmt: skip


def places(extent, size, transformation):
    at = np.arange(size, dtype=np.float64)
    if transformation is T.ALIGN_CORNERS:
        return at * (extent - 1) / (size - 1) if size > 1 else at * 0
    scale = size / extent
    return at / scale if transformation is T.ASYMMETRIC else (at + 0.5) / scale - 0.5


def nearest(array, size, transformation, rounding):
    for axis, extent in enumerate(array.shape):
        at = ROUND[rounding](places(extent, size[axis], transformation)).clip(0, extent - 1).astype(int)
        array = np.take(array, at, axis)
    return array


def linear(array, size, transformation):
    for axis, extent in enumerate(array.shape):
        at = places(extent, size[axis], transformation).clip(0, extent - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        array = np.take(array, low, axis) * (1 - share) + np.take(array, np.minimum(low + 1, extent - 1), axis) * share
    return array.astype(np.float32)


def cubic(array, size, transformation, a, exclude):
    for axis, extent in enumerate(array.shape):
        at = places(extent, size[axis], transformation)
        low = np.floor(at)
        t = at - low
        weights = np.stack([
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a, ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) ** 2 + 1, ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ])  # fmt: skip
        reads = np.stack([low - 1, low, low + 1, low + 2])
        if exclude:
            weights = np.where((reads < 0) | (reads >= extent), 0, weights)
            weights = weights / weights.sum(0)
        rows = [np.take(array, r.clip(0, extent - 1).astype(int), axis) for r in reads]
        shape = [-1 if x == axis else 1 for x in range(array.ndim)]
        array = sum(row * w.reshape(shape) for row, w in zip(rows, weights, strict=True))
    return array.astype(np.float32)


@exercises(
    "INetworkDefinition.add_resize", "IResizeLayer.shape", "IResizeLayer.scales", "IResizeLayer.resize_mode",
    "IResizeLayer.coordinate_transformation", "IResizeLayer.nearest_rounding", "IResizeLayer.selector_for_single_pixel",
    "IResizeLayer.exclude_outside", "IResizeLayer.cubic_coeff", "IResizeLayer.set_input", "InterpolationMode.NEAREST",
    "InterpolationMode.LINEAR", "InterpolationMode.CUBIC", *(f"ResizeCoordinateTransformation.{n}" for n in T.__members__),
    *(f"ResizeRoundMode.{n}" for n in RR.__members__), "ResizeSelector.FORMULA", "ResizeSelector.UPPER", "ResizeMode",
)  # fmt: skip
def test_resize():
    suite = Suite(3)
    array = suite.random(1, 2, 5, 7)
    x = suite.input(array)
    size = (1, 2, 8, 10)
    for transformation in (T.ALIGN_CORNERS, T.ASYMMETRIC, T.HALF_PIXEL):
        for rounding in (RR.HALF_UP, RR.HALF_DOWN, RR.FLOOR, RR.CEIL):
            layer = suite.net.add_resize(x)
            layer.shape, layer.resize_mode = size, IM.NEAREST
            layer.coordinate_transformation, layer.nearest_rounding = transformation, rounding
            assert (layer.shape, layer.nearest_rounding) == (size, rounding)
            suite.expect(layer, nearest(array, size, transformation, rounding))
        layer = suite.net.add_resize(x)
        layer.shape, layer.resize_mode, layer.coordinate_transformation = size, IM.LINEAR, transformation
        suite.expect(layer, linear(array, size, transformation))
        layer = suite.net.add_resize(x)
        layer.scales, layer.resize_mode, layer.coordinate_transformation = [1, 1, 1.6, 2], IM.CUBIC, transformation
        layer.cubic_coeff, layer.exclude_outside = -0.5, transformation is T.HALF_PIXEL
        assert layer.scales == [1, 1, 1.6, 2] and (layer.cubic_coeff, layer.exclude_outside) == (-0.5, transformation is T.HALF_PIXEL)
        suite.expect(layer, cubic(array, (1, 2, 8, 14), transformation, -0.5, layer.exclude_outside), 1e-4)
    assert trt.ResizeMode.LINEAR is IM.LINEAR
    layer = suite.net.add_resize(x)
    layer.set_input(1, suite.input(np.array([1, 2, 3, 4], np.int32)))
    suite.expect(layer, nearest(array, (1, 2, 3, 4), T.ASYMMETRIC, RR.FLOOR))
    for selector, row in ((trt.ResizeSelector.FORMULA, 2), (trt.ResizeSelector.UPPER, 0)):
        layer = suite.net.add_resize(x)
        layer.shape, layer.coordinate_transformation, layer.nearest_rounding = (1, 2, 1, 7), T.HALF_PIXEL, RR.FLOOR
        layer.selector_for_single_pixel = selector
        assert layer.selector_for_single_pixel is selector
        suite.expect(layer, array[:, :, row : row + 1])
    suite.run()
    net, log = network()
    assert not net.add_resize(net.add_input("x", trt.float32, (2, 3))).get_output(0).shape._valid
    assert "neither a shape nor scales" in log.errors.pop()
    with pytest.raises(TypeError):
        net.add_resize(net.get_input(0)).scales = 2


@exercises(
    "INetworkDefinition.add_grid_sample", "IGridSampleLayer.interpolation_mode", "IGridSampleLayer.align_corners",
    "IGridSampleLayer.sample_mode",
)  # fmt: skip
def test_grid_sample():
    suite = Suite(4)
    image = suite.random(1, 2, 4, 5)
    ys, xs = np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 5), indexing="ij")
    grid = np.stack([xs, ys], -1)[None].astype(np.float32)
    x = suite.input(image)
    layer = suite.net.add_grid_sample(x, suite.input(grid))
    assert (layer.interpolation_mode, layer.align_corners, layer.sample_mode) == (IM.LINEAR, False, trt.SampleMode.FILL)
    layer.align_corners = True
    suite.expect(layer, image)
    outside = suite.input(grid + 2)
    middle = np.array([[[[0.1, 0.1]]]], np.float32)
    for mode, expected in ((trt.SampleMode.FILL, 0 * image[..., -1:, -1:]), (trt.SampleMode.CLAMP, image[..., -1:, -1:])):
        layer = suite.net.add_grid_sample(x, suite.input(np.full((1, 1, 1, 2), 3, np.float32)))
        layer.sample_mode = mode
        suite.expect(layer, expected)
    layer = suite.net.add_grid_sample(x, outside)
    layer.sample_mode, layer.align_corners = trt.SampleMode.REFLECT, True
    suite.expect(layer, image[..., ::-1, ::-1])
    layer = suite.net.add_grid_sample(x, suite.input(middle))
    layer.interpolation_mode, layer.align_corners = IM.NEAREST, True
    suite.expect(layer, image[:, :, 2:3, 2:3])
    suite.run()
    layer.sample_mode = trt.SampleMode.WRAP
    assert not layer.get_output(0).shape._valid and "expected one of" in suite.log.errors.pop()
