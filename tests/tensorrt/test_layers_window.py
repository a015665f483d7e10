"""Convolution, pooling, padding and local response normalization, against loops in NumPy."""

import itertools

import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network

M = trt.PaddingMode


def padded(x, pre, post, value=0.0):
    spatial = x.ndim - len(pre)
    return np.pad(x, [(0, 0)] * spatial + list(zip(pre, post, strict=True)), constant_values=value)


def windows(x, kernel, stride, dilation):
    """(…, out…, kernel…) of an image."""
    rank = len(kernel)
    out = [(e - (k - 1) * d - 1) // s + 1 for e, k, s, d in zip(x.shape[-rank:], kernel, stride, dilation, strict=True)]
    made = np.empty((*x.shape[:-rank], *out, *kernel), x.dtype)
    for place in itertools.product(*map(range, out)):
        part = tuple(slice(p * s, p * s + (k - 1) * d + 1, d) for p, s, k, d in zip(place, stride, kernel, dilation, strict=True))
        made[(..., *place, *([slice(None)] * rank))] = x[(..., *part)]
    return made


def conv(x, w, bias, stride, pre, post, dilation, groups=1):
    rank = w.ndim - 2
    parts = windows(padded(x, pre, post), w.shape[2:], stride, dilation)
    maps, per = w.shape[0] // groups, w.shape[1]
    results = []
    for g in range(groups):
        cut = parts[:, g * per : (g + 1) * per]
        results.append(np.tensordot(cut, w[g * maps : (g + 1) * maps], axes=([1, *range(-rank, 0)], list(range(1, rank + 2)))))
    whole = np.moveaxis(np.concatenate(results, -1), -1, 1)
    return (whole + bias.reshape(1, -1, *(1,) * rank)).astype(np.float32)


@exercises(
    "INetworkDefinition.add_convolution_nd", "IConvolutionLayer.num_output_maps", "IConvolutionLayer.kernel", "IConvolutionLayer.bias",
    "IConvolutionLayer.kernel_size_nd", "IConvolutionLayer.stride_nd", "IConvolutionLayer.padding_nd", "IConvolutionLayer.dilation_nd",
    "IConvolutionLayer.num_groups", "IConvolutionLayer.pre_padding", "IConvolutionLayer.post_padding", "INetworkDefinition.add_convolution",
    "IConvolutionLayer.kernel_size", "IConvolutionLayer.stride", "IConvolutionLayer.padding", "IConvolutionLayer.dilation",
)  # fmt: skip
def test_convolution():
    suite = Suite()
    image, w, bias = suite.random(2, 4, 9, 7), suite.random(6, 2, 3, 2), suite.random(6)
    x = suite.input(image, dynamic=False)
    layer = suite.net.add_convolution_nd(x, 4, (1, 1), np.zeros(16, np.float32))
    layer.num_output_maps, layer.kernel_size_nd, layer.kernel, layer.bias = 6, (3, 2), w, bias
    layer.stride_nd, layer.dilation_nd, layer.num_groups = (2, 1), (1, 2), 2
    layer.padding_nd = (1, 2)
    assert layer.pre_padding == layer.post_padding == (1, 2) and layer.padding_nd == layer.padding == (1, 2)
    layer.post_padding = (0, 1)
    assert (layer.kernel_size, layer.stride, layer.dilation) == ((3, 2), (2, 1), (1, 2))
    assert np.array_equal(layer.kernel, w.reshape(-1)) and np.array_equal(layer.bias, bias)
    suite.expect(layer, conv(image, w, bias, (2, 1), (1, 2), (0, 1), (1, 2), 2))
    square = suite.random(3, 4, 3, 3)
    old = suite.net.add_convolution(x, 3, (3, 3), square, np.ones(3, np.float32))
    old.stride, old.padding, old.dilation = (3, 2), (2, 1), (2, 1)
    suite.expect(old, conv(image, square, np.ones(3), (3, 2), (2, 1), (2, 1), (2, 1)))
    old = suite.net.add_convolution(x, 3, (1, 1), square)
    old.kernel_size = (3, 3)
    suite.expect(old, conv(image, square, np.zeros(3), (1, 1), (0, 0), (0, 0), (1, 1)))
    volume, w3 = suite.random(1, 2, 4, 5, 3), suite.random(3, 2, 2, 3, 1)
    layer = suite.net.add_convolution_nd(suite.input(volume), 3, (2, 3, 1), w3)
    layer.stride_nd = (1, 2, 2)
    suite.expect(layer, conv(volume, w3, np.zeros(3), (1, 2, 2), (0,) * 3, (0,) * 3, (1,) * 3))
    # The kernel and the bias may be tensors.
    layer = suite.net.add_convolution_nd(x, 3, (3, 3), trt.Weights())
    layer.set_input(1, suite.input(square))
    layer.set_input(2, suite.input(bias[:3]))
    suite.expect(layer, conv(image, square, bias[:3], (1, 1), (0, 0), (0, 0), (1, 1)))
    suite.run()


PADDINGS = {
    # name: what is added after the last element of 8 with a kernel of 3 and a stride of 2, padded by 1 on both sides
    "EXPLICIT_ROUND_DOWN": ((1, 1), (1, 1)), "CAFFE_ROUND_DOWN": ((1, 1), (1, 1)), "EXPLICIT_ROUND_UP": ((1, 1), (2, 2)),
    "CAFFE_ROUND_UP": ((1, 1), (2, 2)), "SAME_UPPER": ((0, 0), (1, 1)), "SAME_LOWER": ((1, 1), (0, 0)),
}  # fmt: skip


@exercises("IConvolutionLayer.padding_mode", "IPoolingLayer.padding_mode", *(f"PaddingMode.{name}" for name in PADDINGS))
def test_padding_modes():
    suite = Suite(1)
    image, w = suite.random(1, 2, 8, 8), suite.random(3, 2, 3, 3)
    x = suite.input(image)
    for name, (pre, post) in PADDINGS.items():
        layer = suite.net.add_convolution_nd(x, 3, (3, 3), w)
        layer.stride_nd, layer.padding_nd, layer.padding_mode = (2, 2), (1, 1), getattr(M, name)
        assert layer.padding_mode is getattr(M, name)
        suite.expect(layer, conv(image, w, np.zeros(3), (2, 2), pre, post, (1, 1)))
        pool = suite.net.add_pooling_nd(x, trt.PoolingType.MAX, (3, 3))
        pool.stride_nd, pool.padding_nd, pool.padding_mode = (2, 2), (1, 1), getattr(M, name)
        suite.expect(pool, windows(padded(image, pre, post, -np.inf), (3, 3), (2, 2), (1, 1)).max((-1, -2)))
        pool = suite.net.add_pooling_nd(x, trt.PoolingType.AVERAGE, (3, 3))
        pool.stride_nd, pool.padding_nd, pool.padding_mode = (2, 2), (1, 1), getattr(M, name)
        sums = windows(padded(image, pre, post), (3, 3), (2, 2), (1, 1)).sum((-1, -2))
        suite.expect(pool, sums / windows(padded(np.ones_like(image), pre, post), (3, 3), (2, 2), (1, 1)).sum((-1, -2)))
    suite.run()


def deconv(x, w, bias, stride, pre, post, dilation, groups):
    rank, per = w.ndim - 2, w.shape[1]
    out = [(e - 1) * s + (k - 1) * d + 1 for e, s, k, d in zip(x.shape[2:], stride, w.shape[2:], dilation, strict=True)]
    made = np.zeros((x.shape[0], per * groups, *out), np.float64)
    inputs = x.shape[1] // groups
    for place in itertools.product(*map(range, x.shape[2:])):
        part = tuple(slice(p * s, p * s + (k - 1) * d + 1, d) for p, s, k, d in zip(place, stride, w.shape[2:], dilation, strict=True))
        for g in range(groups):
            one = x[(slice(None), slice(g * inputs, (g + 1) * inputs), *place)]
            made[(slice(None), slice(g * per, (g + 1) * per), *part)] += np.tensordot(one, w[g * inputs : (g + 1) * inputs], 1)
    cut = tuple(slice(a, made.shape[2 + i] - b) for i, (a, b) in enumerate(zip(pre, post, strict=True)))
    return (made[(..., *cut)] + bias.reshape(1, -1, *(1,) * rank)).astype(np.float32)


@exercises(
    "INetworkDefinition.add_deconvolution_nd", "INetworkDefinition.add_deconvolution", "IDeconvolutionLayer.num_output_maps",
    "IDeconvolutionLayer.kernel", "IDeconvolutionLayer.bias", "IDeconvolutionLayer.kernel_size_nd", "IDeconvolutionLayer.kernel_size",
    "IDeconvolutionLayer.stride_nd", "IDeconvolutionLayer.stride", "IDeconvolutionLayer.padding_nd", "IDeconvolutionLayer.padding",
    "IDeconvolutionLayer.dilation_nd", "IDeconvolutionLayer.num_groups", "IDeconvolutionLayer.pre_padding",
    "IDeconvolutionLayer.post_padding", "IDeconvolutionLayer.padding_mode",
)  # fmt: skip
def test_deconvolution():
    suite = Suite(2)
    image, w, bias = suite.random(2, 4, 5, 3), suite.random(4, 3, 3, 2), suite.random(6)
    x = suite.input(image)
    layer = suite.net.add_deconvolution_nd(x, 1, (1, 1), np.zeros(4, np.float32))
    layer.num_output_maps, layer.kernel_size_nd, layer.kernel, layer.bias = 6, (3, 2), w, bias
    layer.stride_nd, layer.dilation_nd, layer.num_groups, layer.padding_nd = (2, 3), (1, 2), 2, (1, 0)
    layer.post_padding = (2, 1)
    assert layer.pre_padding == layer.padding_nd == (1, 0) and layer.kernel_size == (3, 2)
    suite.expect(layer, deconv(image, w, bias, (2, 3), (1, 0), (2, 1), (1, 2), 2))
    one = suite.random(4, 2, 2, 2)
    old = suite.net.add_deconvolution(x, 2, (2, 2), one, np.ones(2, np.float32))
    old.stride, old.padding = (2, 1), (1, 1)
    suite.expect(old, deconv(image, one, np.ones(2), (2, 1), (1, 1), (1, 1), (1, 1), 1))
    same = suite.net.add_deconvolution_nd(x, 2, (2, 2), one)
    same.padding_mode, same.stride_nd = M.SAME_UPPER, (1, 1)
    suite.expect(same, deconv(image, one, np.zeros(2), (1, 1), (0, 0), (1, 1), (1, 1), 1))
    suite.run()


@exercises(
    "INetworkDefinition.add_fully_connected", "IFullyConnectedLayer.kernel", "IFullyConnectedLayer.bias",
    "IFullyConnectedLayer.num_output_channels",
)  # fmt: skip
def test_fully_connected():
    suite = Suite(3)
    image, w, bias = suite.random(3, 2, 3, 5), suite.random(4, 30), suite.random(4)
    layer = suite.net.add_fully_connected(suite.input(image), 2, w[:2], bias[:2])
    layer.num_output_channels, layer.kernel, layer.bias = 4, w, bias
    suite.expect(layer, (image.reshape(3, 30) @ w.T + bias).reshape(3, 4, 1, 1))
    suite.run()


@exercises(
    "INetworkDefinition.add_pooling_nd", "INetworkDefinition.add_pooling", "IPoolingLayer.type", "IPoolingLayer.window_size_nd",
    "IPoolingLayer.window_size", "IPoolingLayer.stride_nd", "IPoolingLayer.stride", "IPoolingLayer.padding_nd", "IPoolingLayer.padding",
    "IPoolingLayer.pre_padding", "IPoolingLayer.post_padding", "IPoolingLayer.blend_factor", "IPoolingLayer.average_count_excludes_padding",
    "PoolingType.MAX", "PoolingType.AVERAGE", "PoolingType.MAX_AVERAGE_BLEND",
)  # fmt: skip
def test_pooling():
    suite = Suite(4)
    image = suite.random(2, 3, 7, 6)
    x = suite.input(image)
    pre, post = (1, 0), (1, 1)
    top = windows(padded(image, pre, post, -np.inf), (3, 2), (2, 1), (1, 1)).max((-1, -2))
    sums = windows(padded(image, pre, post), (3, 2), (2, 1), (1, 1)).sum((-1, -2))
    counts = windows(padded(np.ones_like(image), pre, post), (3, 2), (2, 1), (1, 1)).sum((-1, -2))
    expected = {
        trt.PoolingType.MAX: top,
        trt.PoolingType.AVERAGE: sums / counts,
        trt.PoolingType.MAX_AVERAGE_BLEND: 0.25 * (sums / counts) + 0.75 * top,
    }
    for kind, array in expected.items():
        layer = suite.net.add_pooling_nd(x, trt.PoolingType.MAX, (1, 1))
        layer.type, layer.window_size_nd, layer.stride_nd, layer.padding_nd = kind, (3, 2), (2, 1), pre
        layer.post_padding, layer.blend_factor = post, 0.25
        assert (layer.type, layer.window_size, layer.stride, layer.pre_padding, layer.blend_factor) == (kind, (3, 2), (2, 1), pre, 0.25)
        suite.expect(layer, array)
    layer = suite.net.add_pooling(x, trt.PoolingType.AVERAGE, (2, 2))
    layer.window_size, layer.stride, layer.padding = (3, 2), (2, 1), (1, 1)
    assert layer.average_count_excludes_padding
    layer.average_count_excludes_padding = False
    suite.expect(layer, windows(padded(image, (1, 1), (1, 1)), (3, 2), (2, 1), (1, 1)).mean((-1, -2)))
    suite.run()


@exercises(
    "INetworkDefinition.add_padding_nd", "INetworkDefinition.add_padding", "IPaddingLayer.pre_padding_nd", "IPaddingLayer.post_padding_nd",
    "IPaddingLayer.pre_padding", "IPaddingLayer.post_padding", "INetworkDefinition.add_lrn", "ILRNLayer.window_size", "ILRNLayer.alpha",
    "ILRNLayer.beta", "ILRNLayer.k",
)  # fmt: skip
def test_padding_and_response_normalization():
    suite = Suite(5)
    image = suite.random(2, 5, 4, 3)
    x = suite.input(image)
    layer = suite.net.add_padding_nd(x, (0, 0), (0, 0))
    layer.pre_padding_nd, layer.post_padding_nd = (2, -1), (0, 3)
    assert (layer.pre_padding, layer.post_padding) == ((2, -1), (0, 3))
    suite.expect(layer, padded(image[..., 1:], (2, 0), (0, 3)))
    old = suite.net.add_padding(x, (1, 1), (0, 0))
    old.pre_padding, old.post_padding = (0, 1), (1, 0)
    suite.expect(old, padded(image, (0, 1), (1, 0)))
    layer = suite.net.add_lrn(x, 5, 1.0, 1.0, 1.0)
    layer.window_size, layer.alpha, layer.beta, layer.k = 3, 0.5, 0.75, 2.0
    assert (layer.window_size, layer.alpha, layer.beta, layer.k) == (3, 0.5, 0.75, 2.0)
    squares = np.pad(image**2, [(0, 0), (1, 1), (0, 0), (0, 0)])
    sums = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
    suite.expect(layer, image / (2 + 0.5 / 3 * sums) ** 0.75)
    suite.run()


def test_bad_calls():
    net, log = network()
    x = net.add_input("x", trt.float32, (1, 3, 4, 4))
    assert net.add_convolution_nd(x, 0, (3, 3), trt.Weights()) is None and "expected positive numbers" in log.errors.pop()
    assert net.add_pooling_nd(x, trt.PoolingType.MAX, (0, 1)) is None and log.errors.pop()
    layer = net.add_convolution_nd(x, 2, (3, 3), np.zeros(5, np.float32))
    assert not layer.get_output(0).shape._valid and "got 5 elements of KERNEL weights" in log.errors.pop()
    layer = net.add_convolution_nd(net.add_input("y", trt.float32, (1, 3, 4)), 2, (3, 3), np.zeros(54, np.float32))
    assert not layer.get_output(0).shape._valid and "expected 4 for a kernel of 2" in log.errors.pop()
    with pytest.raises(TypeError):
        layer.stride_nd = "11"
    with pytest.raises(TypeError):
        layer.stride = (1, 2, 3)
