"""Dilated convolutions as tf2onnx writes them: `python -m tests.tensorflow.make_dilated tests/samples/tensorflow` writes the samples.

TensorFlow spells a dilated convolution as SpaceToBatchND, a convolution, BatchToSpaceND. tf2onnx folds the three back into one Conv with
`dilations` where nothing lies between them, crops begin at zero and paddings are constant. What it does not fold, and what versions
before that rewrite gave, is a chain of a dozen nodes around SpaceToDepth and DepthToSpace. Each case is exported in these forms:

    chain    the rewrite off, tf2onnx's optimizers on: what users of older tf2onnx have in their files
    raw      the rewrite and the optimizers off
    folded   tf2onnx as it is: one Conv with dilations

and, from tf2onnx as it is: `bias` (an addition between convolution and BatchToSpaceND), `crops` (cut at both ends) and `dynamic` (sizes
unknown). Every sample is checked against TensorFlow before it is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

Function = Callable[[Any], Any]
LARGEST = 20_000
"""No sample is larger than this many bytes."""


def cases() -> Iterator[tuple[str, list[int | None], Function]]:
    """Name, shape of the input and function of every case."""
    import tensorflow as tf

    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return tf.constant(rng.standard_normal(shape).astype(np.float32) * 0.3)

    dense, bias, narrow = weights(3, 3, 3, 4), weights(4), weights(3, 2, 3, 4)
    depthwise, big = weights(3, 3, 4, 1), weights(5, 5, 2, 3)
    # Name, sizes, paddings, dilation, kernel, whether it is depthwise. TensorFlow's layers compute SAME as atrous_conv2d does.
    for name, sizes, padding, rate, kernel in (
        ("same_2", (8, 8), "SAME", 2, dense),
        ("same_2_odd", (9, 7), "SAME", 2, dense),
        ("same_3", (9, 9), "SAME", 3, dense),
        ("same_4_odd", (11, 10), "SAME", 4, dense),
        ("same_2_kernel_3x2", (7, 8), "SAME", 2, narrow),
        ("same_2_kernel_5", (9, 8), "SAME", 2, big),
        ("valid_2", (8, 8), "VALID", 2, dense),
        ("valid_2_odd", (9, 7), "VALID", 2, dense),
        ("valid_3_odd", (11, 10), "VALID", 3, dense),
    ):
        yield name, [1, *sizes, int(kernel.shape[2])], _dilated(tf.nn.conv2d, kernel, rate, padding)
    for name, sizes, padding, rate in (
        ("depthwise_same_2", (8, 8), "SAME", 2),
        ("depthwise_same_2_odd", (9, 7), "SAME", 2),
        ("depthwise_valid_3_odd", (10, 11), "VALID", 3),
    ):
        yield name, [1, *sizes, 4], _dilated(_depthwise, depthwise, rate, padding)
    yield "same_2_batch", [None, 8, 8, 3], _dilated(tf.nn.conv2d, dense, 2, "SAME")

    def between(x: Any) -> Any:
        y = tf.space_to_batch(x, [2, 2], [[2, 3], [2, 3]])
        return tf.batch_to_space(tf.nn.conv2d(y, dense, 1, "VALID") + bias, [2, 2], [[0, 1], [0, 1]])

    stem, second = weights(3, 3, 3, 4), weights(3, 3, 4, 4)

    def network(x: Any) -> Any:
        y = tf.nn.relu(tf.nn.conv2d(x, stem, 2, "SAME"))
        y = tf.nn.relu(_dilated(_depthwise, depthwise, 2, "SAME")(y) + bias)
        return tf.nn.relu(_dilated(tf.nn.conv2d, second, 4, "SAME")(y) + y)

    yield "network", [1, 18, 15, 3], network
    yield "network_batch", [None, 18, 15, 3], network

    yield "bias", [1, 7, 9, 3], between

    def cut_at_both_ends(x: Any) -> Any:
        y = tf.space_to_batch(x, [2, 2], [[4, 4], [4, 4]])
        return tf.batch_to_space(tf.nn.conv2d(y, dense, 1, "VALID"), [2, 2], [[2, 2], [2, 2]])

    yield "crops", [1, 8, 8, 3], cut_at_both_ends
    yield "dynamic", [None, None, None, 3], _dilated(tf.nn.conv2d, dense, 2, "SAME")


def _depthwise(x: Any, kernel: Any, strides: int, padding: str) -> Any:
    import tensorflow as tf

    return tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], padding)


def _dilated(convolution: Callable[..., Any], kernel: Any, rate: int, padding: str) -> Function:
    """The three ops that TensorFlow's layers have written since version 1."""
    import tensorflow as tf

    def function(x: Any) -> Any:
        return tf.nn.with_space_to_batch(
            x, [rate, rate], padding, lambda y, _, inner: convolution(y, kernel, 1, inner), filter_shape=kernel.shape[:2]
        )

    return function


@contextmanager
def rewrite_off() -> Iterator[None]:
    """tf2onnx without its rewrite to `dilations`, as it was before version 1.8."""
    from tf2onnx import tfonnx

    rewrite = tfonnx.rewrite_conv_dilations
    tfonnx.rewrite_conv_dilations = lambda graph, ops: ops
    try:
        yield
    finally:
        tfonnx.rewrite_conv_dilations = rewrite


def export(function: Function, shape: list[int | None], *, optimized: bool = True, opset: int = 13) -> onnx.ModelProto:
    """One function of one NHWC tensor as tf2onnx writes it, with the names x and y."""
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader
    from tf2onnx.tfonnx import process_tf_graph

    concrete = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, name="x")]).get_concrete_function()
    inputs, outputs = [concrete.inputs[0].name], [concrete.outputs[0].name]
    frozen = tf_loader.from_function(concrete, inputs, outputs)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen, name="")
        names = {inputs[0]: "x", outputs[0]: "y"}
        result = process_tf_graph(graph, opset=opset, input_names=inputs, output_names=outputs, tensors_to_rename=names)
        if optimized:
            result = optimizer.optimize_graph(result)
    return result.make_model("dilated")


def check(model: onnx.ModelProto, function: Function, shape: list[int | None]) -> float:
    """The largest absolute difference of model and TensorFlow on a seeded input."""
    sizes = [size or (2, 7, 9)[axis] for axis, size in enumerate(shape)]
    x = np.random.default_rng(1).standard_normal(sizes).astype(np.float32)
    (got,) = ReferenceEvaluator(model).run(None, {"x": x})
    want = function(x).numpy()
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max())


def main(folder: Path) -> None:
    """Write every sample to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape, function in cases():
        models = {}
        if name in ("bias", "crops", "dynamic"):
            models[name] = export(function, shape)
        else:
            models[f"{name}_folded"] = export(function, shape)
            with rewrite_off():
                models[f"{name}_chain"] = export(function, shape)
                models[f"{name}_raw"] = export(function, shape, optimized=False)
                if name == "same_2_odd":
                    models[f"{name}_chain_opset_9"] = export(function, shape, opset=9)  # Pad and Slice by attributes
                    models[f"{name}_chain_opset_18"] = export(function, shape, opset=18)
        for file, model in models.items():
            onnx.checker.check_model(model, full_check=True)
            error = check(model, function, shape)
            assert error < 1e-5, (file, error)
            data = model.SerializeToString(deterministic=True)
            assert len(data) < LARGEST, (file, len(data))
            (folder / f"dilated_{file}.onnx").write_bytes(data)
            print(f"{file}: {len(model.graph.node)} nodes, {len(data)} bytes: {' '.join(n.op_type for n in model.graph.node)}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(Path(sys.argv[1]))
