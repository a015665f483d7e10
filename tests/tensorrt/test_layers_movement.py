"""Layers that move elements: shuffles, slices, gathers, scatters and their kin."""

import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network


@exercises(
    "INetworkDefinition.add_shuffle", "IShuffleLayer.first_transpose", "IShuffleLayer.reshape_dims", "IShuffleLayer.second_transpose",
    "IShuffleLayer.zero_is_placeholder", "IShuffleLayer.set_input",
)  # fmt: skip
def test_shuffle():
    suite = Suite()
    array = suite.random(3, 4, 5)
    x, flexible = suite.input(array), suite.input(array, dynamic=True)
    layer = suite.net.add_shuffle(x)
    layer.first_transpose, layer.reshape_dims, layer.second_transpose = (2, 0, 1), (0, 6, -1), trt.Permutation([1, 0, 2])
    assert tuple(layer.first_transpose)[:3] == (2, 0, 1) and layer.reshape_dims == (0, 6, -1) and layer.zero_is_placeholder
    suite.expect(layer, array.transpose(2, 0, 1).reshape(5, 6, 2).transpose(1, 0, 2))
    layer = suite.net.add_shuffle(flexible)
    layer.reshape_dims = (-1, 0)
    suite.expect(layer, array.reshape(15, 4))
    layer = suite.net.add_shuffle(flexible)
    layer.set_input(1, suite.input(np.array([5, -1], np.int32)))
    suite.expect(layer, array.reshape(5, 12))
    empty = suite.net.add_shuffle(suite.input(np.zeros((0, 4), np.float32)))
    empty.zero_is_placeholder = False
    empty.reshape_dims = (2, 3, 0)
    suite.expect(empty, np.zeros((2, 3, 0), np.float32))
    suite.run()
    net, log = network()
    wrong = net.add_shuffle(net.add_input("x", trt.float32, (3, 4)))
    bad = {(5, 2): "as many elements", (-1, -1): "one -1 at most", (0, 2, 0): "within the 2 axes", (5, -1): "divide"}
    for dims, message in bad.items():
        wrong.reshape_dims = dims
        assert not wrong.get_output(0).shape._valid and message in log.errors.pop()
    wrong.reshape_dims, wrong.first_transpose = (12,), (0, 0)
    assert not wrong.get_output(0).shape._valid and "each of the 2 axes once" in log.errors.pop()


@exercises(
    "INetworkDefinition.add_constant", "IConstantLayer.shape", "IConstantLayer.weights", "INetworkDefinition.add_concatenation",
    "IConcatenationLayer.axis", "INetworkDefinition.add_shape", "INetworkDefinition.add_squeeze", "INetworkDefinition.add_unsqueeze",
    "INetworkDefinition.add_reverse_sequence", "IReverseSequenceLayer.batch_axis", "IReverseSequenceLayer.sequence_axis",
)  # fmt: skip
def test_joining_and_reshaping():
    suite = Suite(1)
    array = suite.random(2, 1, 3)
    x, flexible = suite.input(array), suite.input(array, dynamic=True)
    constant = suite.net.add_constant((3,), np.arange(3, dtype=np.float32))
    constant.shape, constant.weights = (2, 1, 3), array + 1
    assert constant.shape == (2, 1, 3) and np.array_equal(constant.weights, (array + 1).reshape(-1))
    suite.expect(constant, array + 1)
    layer = suite.net.add_concatenation([x, constant.get_output(0), x])
    assert layer.axis == 0
    suite.expect(layer, np.concatenate([array, array + 1, array], 0))
    layer = suite.net.add_concatenation([x, flexible])
    layer.axis = 2
    suite.expect(layer, np.concatenate([array, array], 2))
    suite.expect(suite.net.add_shape(flexible), np.array([2, 1, 3], np.int64))
    suite.expect(suite.net.add_squeeze(x, suite.const(np.array([-2], np.int32))), array[:, 0])
    suite.expect(suite.net.add_unsqueeze(x, suite.const(np.array([0, -1], np.int64))), array[None, ..., None])
    long = suite.random(3, 4, 2)
    lengths = np.array([1, 4, 3, 2], np.int32)
    layer = suite.net.add_reverse_sequence(suite.input(long), suite.input(lengths))
    assert (layer.batch_axis, layer.sequence_axis) == (1, 0)
    limited = np.minimum(lengths, 3)
    layer.set_input(1, suite.input(limited))
    expected = long.copy()
    for b, n in enumerate(limited):
        expected[:n, b] = long[:n, b][::-1]
    suite.expect(layer, expected)
    layer = suite.net.add_reverse_sequence(suite.input(long), suite.input(np.array([2, 1], np.int32)))
    layer.batch_axis, layer.sequence_axis = 2, 1
    expected = long.copy()
    expected[:, :2, 0] = long[:, :2, 0][:, ::-1]
    suite.expect(layer, expected)
    suite.run()


def _outside(array, start, shape, stride, mode, fill=0.0):
    places = [np.array([s + i * d for i in range(n)]) for s, n, d in zip(start, shape, stride, strict=True)]
    result = array
    for axis, place in enumerate(places):
        extent = array.shape[axis]
        if mode == "WRAP":
            place = place % extent
        elif mode == "CLAMP":
            place = place.clip(0, extent - 1)
        elif mode == "REFLECT":
            period = max(2 * (extent - 1), 1)
            place = np.minimum(place % period, period - place % period)
        inside = (place >= 0) & (place < extent)
        result = np.take(result, place.clip(0, extent - 1), axis)
        if mode == "FILL":
            shaped = inside.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
            result = np.where(shaped, result, fill)
    return result.astype(array.dtype)


@exercises(
    "INetworkDefinition.add_slice", "ISliceLayer.start", "ISliceLayer.shape", "ISliceLayer.stride", "ISliceLayer.mode",
    "ISliceLayer.axes", "ISliceLayer.set_input", *(f"SampleMode.{m}" for m in ("STRICT_BOUNDS", "WRAP", "CLAMP", "FILL", "REFLECT")),
)  # fmt: skip
def test_slice():
    suite = Suite(2)
    array = suite.random(5, 4, 6)
    x, flexible = suite.input(array), suite.input(array, dynamic=True)
    layer = suite.net.add_slice(x, (0, 0, 0), (1, 1, 1), (1, 1, 1))
    layer.start, layer.shape, layer.stride = (4, 1, 0), (5, 2, 3), (-1, 2, 2)
    assert (layer.start, layer.shape, layer.stride, layer.mode) == ((4, 1, 0), (5, 2, 3), (-1, 2, 2), trt.SampleMode.STRICT_BOUNDS)
    suite.expect(layer, array[::-1, 1::2, ::2])
    layer = suite.net.add_slice(flexible, (0, 0), (4, 2), (1, 1))
    assert layer.axes is None
    layer.axes, layer.stride = (1, 2), (1, 3)
    assert layer.axes == (1, 2)
    suite.expect(layer, array[:, :, :4:3])
    layer = suite.net.add_slice(flexible, (), (), ())
    for index, numbers in enumerate(((1, 0, 5), (3, 2, 3), (1, 2, -2)), 1):
        layer.set_input(index, suite.input(np.array(numbers, np.int32)) if index < 3 else suite.const(np.array(numbers, np.int32)))
    suite.expect(layer, array[1:4, ::2, 5::-2])
    for mode, spans in {
        "WRAP": ((-7, 3, 0), (9, 4, 6), (2, -3, 1)), "CLAMP": ((-2, 5, 1), (8, 3, 3), (1, -3, 1)),
        "FILL": ((-2, 6, 0), (8, 5, 6), (1, -2, 1)), "REFLECT": ((-9, 0, 8), (16, 4, 5), (1, 1, -3)),
        "STRICT_BOUNDS": ((1, 1, 1), (2, 3, 4), (2, 1, 1)),
    }.items():  # fmt: skip
        layer = suite.net.add_slice(x, *spans)
        layer.mode = getattr(trt.SampleMode, mode)
        suite.expect(layer, _outside(array, *spans, mode))
    layer = suite.net.add_slice(x, (-1, 0, 0), (7, 4, 6), (1, 1, 1))
    layer.mode = trt.SampleMode.FILL
    layer.set_input(4, suite.const(np.float32(2.5)))
    suite.expect(layer, _outside(array, (-1, 0, 0), (7, 4, 6), (1, 1, 1), "FILL", 2.5))
    suite.run()


@exercises(
    "INetworkDefinition.add_gather", "INetworkDefinition.add_gather_v2", "IGatherLayer.axis", "IGatherLayer.num_elementwise_dims",
    "IGatherLayer.mode", "GatherMode.DEFAULT", "GatherMode.ELEMENT", "GatherMode.ND",
)  # fmt: skip
def test_gather():
    suite = Suite(3)
    array = suite.random(3, 4, 5)
    x = suite.input(array)
    indices = np.array([[3, 0], [1, -1]], np.int32)
    layer = suite.net.add_gather(x, suite.input(indices), 0)
    layer.axis = 1
    assert (layer.axis, layer.mode, layer.num_elementwise_dims) == (1, trt.GatherMode.DEFAULT, 0)
    suite.expect(layer, np.take(array, indices % 4, 1))
    rows = np.array([[0, 2], [1, 3], [3, 3]], np.int32)
    layer = suite.net.add_gather_v2(x, suite.input(rows), trt.GatherMode.DEFAULT)
    layer.axis, layer.num_elementwise_dims = 2, 1
    suite.expect(layer, np.stack([array[b][:, rows[b]] for b in range(3)]))
    each = suite.rng.integers(0, 4, (3, 2, 5)).astype(np.int32)
    layer = suite.net.add_gather_v2(x, suite.input(each), trt.GatherMode.DEFAULT)
    layer.mode, layer.axis = trt.GatherMode.ELEMENT, 1
    suite.expect(layer, np.take_along_axis(array, each.astype(np.int64), 1))
    places = np.array([[3, 4], [0, 0], [2, 1]], np.int32)
    layer = suite.net.add_gather_v2(x, suite.input(places), trt.GatherMode.ND)
    layer.num_elementwise_dims = 1
    suite.expect(layer, np.array([array[b, i, j] for b, (i, j) in enumerate(places)]))
    suite.run()


@exercises(
    "INetworkDefinition.add_scatter", "IScatterLayer.axis", "IScatterLayer.mode", "ScatterMode.ELEMENT", "ScatterMode.ND",
    "INetworkDefinition.add_one_hot", "IOneHotLayer.axis", "INetworkDefinition.add_non_zero", "INonZeroLayer.indices_type",
)  # fmt: skip
def test_scatter_one_hot_and_non_zero():
    suite = Suite(4)
    array, updates = suite.random(4, 5), suite.random(2, 5)
    x, u = suite.input(array), suite.input(updates)
    rows = np.array([[0, 1, 2, 3, 0], [3, 3, 0, 1, 2]], np.int32)
    layer = suite.net.add_scatter(x, suite.input(rows), u, trt.ScatterMode.ND)
    layer.mode, layer.axis = trt.ScatterMode.ELEMENT, 0
    expected = array.copy()
    np.put_along_axis(expected, rows.astype(np.int64), updates, 0)
    suite.expect(layer, expected)
    columns = np.array([[4], [0], [2], [1]], np.int32)
    layer = suite.net.add_scatter(x, suite.input(columns), suite.input(updates[:1, :4].T.copy()), trt.ScatterMode.ELEMENT)
    layer.axis = 1
    expected = array.copy()
    np.put_along_axis(expected, columns.astype(np.int64), updates[:1, :4].T, 1)
    suite.expect(layer, expected)
    expected = array.copy()
    expected[[3, 1]] = updates
    suite.expect(suite.net.add_scatter(x, suite.input(np.array([[3], [1]], np.int32)), u, trt.ScatterMode.ND), expected)
    labels = np.array([[2, 0, 1]], np.int32)
    off_on = suite.const(np.array([-1, 5], np.float32))
    layer = suite.net.add_one_hot(suite.input(labels), off_on, suite.const(np.int32(4)), -1)
    hot = np.where(np.arange(4) == labels[..., None], 5, -1).astype(np.float32)
    suite.expect(layer, hot)
    layer = suite.net.add_one_hot(suite.input(labels), off_on, suite.const(np.int32(4)), -1)
    layer.axis = 1
    suite.expect(layer, np.moveaxis(hot, -1, 1))
    sparse = np.array([[0, 2, 0], [3, 0, 1]], np.float32)
    suite.expect(suite.net.add_non_zero(suite.input(sparse)), np.array(np.nonzero(sparse), np.int32))
    layer = suite.net.add_non_zero(suite.input(sparse))
    layer.indices_type = trt.int64
    suite.expect(layer, np.array(np.nonzero(sparse)))
    suite.run()


def test_bad_calls():
    net, log = network()
    x = net.add_input("x", trt.float32, (3, 4))
    assert net.add_constant((2, 2), np.zeros(3, np.float32)) is None and "got 3 elements" in log.errors.pop()
    assert net.add_concatenation([]) is None and log.errors.pop()
    other, _ = network()
    assert net.add_concatenation([x, other.add_input("y", trt.float32, (3, 4))]) is None and "another network" in log.errors.pop()
    layer = net.add_slice(x, (0,), (1,), (1,))
    assert not layer.get_output(0).shape._valid and "as many numbers as axes" in log.errors.pop()
    layer = net.add_gather(x, net.add_input("i", trt.int32, (2,)), 2)
    assert not layer.get_output(0).shape._valid and "got the axis 2" in log.errors.pop()
    with pytest.raises(TypeError):
        net.add_slice(x, 0, (1, 1), (1, 1))
    with pytest.raises(TypeError):
        net.add_shuffle(x).first_transpose = "01"
