"""Images that are initializers: templates read them in the order that they want, which no run has put them in."""

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail import builder
from dovetail.builder.options import BuildOptions
from tests.unit.small_models import model

node = helper.make_node


@pytest.mark.parametrize("residual", [False, True])
def test_images_that_are_weights(residual):
    """A bias of the run makes the convolution of an initializer one of the run; so does adding that image to it."""
    rng = np.random.default_rng(3)
    image, filters = rng.standard_normal((1, 8, 5, 7), np.float32), rng.standard_normal((8, 8, 1, 1), np.float32)
    x = rng.standard_normal(8).astype(np.float32)
    nodes = [node("Conv", ["image", "filters", "x"], ["c" if residual else "y"])]
    if residual:
        nodes += [node("Add", ["image", "c"], ["y"])]
    engine = dovetail.build(
        model(nodes, {"x": [8]}, {"y": [1, 8, 5, 7]}, {"image": image, "filters": filters}), verify="off", tune=False
    )

    def want(image):
        return np.einsum("nchw,dc->ndhw", image, filters[:, :, 0, 0]) + x[None, :, None, None] + (image if residual else 0)

    np.testing.assert_allclose(engine.run({"x": x})["y"], want(image), atol=1e-4)
    engine.refit({"image": 2 * image})
    np.testing.assert_allclose(engine.run({"x": x})["y"], want(2 * image), atol=1e-4)


@pytest.mark.parametrize("taps", [1, 3])
def test_a_bias_that_is_a_view(taps):
    """Every second element of what the run computes; templates read biases in vectors."""
    rng = np.random.default_rng(5)
    filters = rng.standard_normal((8, 8, taps, taps), np.float32)
    image, x = rng.standard_normal((1, 8, 4, 4), np.float32), rng.standard_normal(16).astype(np.float32)
    nodes = [
        node("Relu", ["x"], ["r"]), node("Slice", ["r", "zero", "end", "zero", "two"], ["b"]),
        node("Conv", ["image", "filters", "b"], ["y"], pads=[taps // 2] * 4),
        node("Conv", ["image", "filters"], ["z"], pads=[taps // 2] * 4),
    ]  # fmt: skip
    weights = {"filters": filters, "zero": np.array([0]), "end": np.array([16]), "two": np.array([2])}
    shape = [1, 8, 4, 4]
    made = model(nodes, {"x": [16], "image": shape}, {"y": shape, "z": shape, "r": [16]}, weights)
    found = dovetail.build(made, verify="off", tune=False).run({"x": x, "image": image})
    np.testing.assert_allclose(found["y"], found["z"] + np.maximum(x[::2], 0)[None, :, None, None], atol=1e-4)


def test_a_bias_of_one_number_on_a_gpu():
    """A transposed convolution with strides repeats its bias for each phase; that of one channel is one number."""
    pytest.importorskip("triton")
    from dovetail import runtime
    from dovetail.codegen.triton_host import host_driver

    rng = np.random.default_rng(6)
    image, filters = rng.standard_normal((1, 4, 1, 5), np.float32), rng.standard_normal((4, 1, 1, 1), np.float32)
    nodes = [node("ConvTranspose", ["image", "filters", "x"], ["y"], strides=[2, 2])]
    made = model(nodes, {"image": [1, 4, 1, 5], "x": [1]}, {"y": [1, 1, 1, 9]}, {"filters": filters})
    want = np.full((1, 1, 1, 9), 3, np.float32)
    want[0, 0, 0, ::2] += np.einsum("chw,c->hw", image[0], filters[:, 0, 0, 0])[0]
    feed = {"image": image, "x": np.full(1, 3, np.float32)}
    np.testing.assert_allclose(dovetail.build(made, verify="off", tune=False).run(feed)["y"], want, atol=1e-5)
    built = builder.build(made, BuildOptions(target="cuda:sm_80", verify="off"))
    driver = host_driver(built.kernels, capability=80)
    engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver)
    np.testing.assert_allclose(engine.context().run(feed)["y"], want, atol=1e-5)
