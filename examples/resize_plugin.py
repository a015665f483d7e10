"""Resize done by a plugin: doubling images by bilinear interpolation, with a kernel in C that knows nothing else.

    python examples/resize_plugin.py

The compiler's own Resize handles every mode, scale and axis: it computes the position and the weights of its neighbours anew for
each pixel. This one knows that the factor is 2, so the weights are 1/4 and 3/4. The importer sends only those nodes to it.
"""

import time

import numpy as np
import onnx
from onnx import helper, numpy_helper

import dovetail


@dovetail.plugin("DoubleImage")
def double_image(x):
    """Twice the height and width of images [N, C, H, W], as ONNX Resize(mode="linear") with scales 1, 1, 2, 2."""
    for axis in (2, 3):
        before = np.concatenate([x.take([0], axis), x.take(range(x.shape[axis] - 1), axis)], axis)
        after = np.concatenate([x.take(range(1, x.shape[axis]), axis), x.take([-1], axis)], axis)
        pair = np.stack([before * 0.25 + x * 0.75, x * 0.75 + after * 0.25], axis + 1)
        x = pair.reshape([*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :]]).astype(np.float32)
    return x


@double_image.shape
def double_image_shape(x):
    """[N, C, 2 H, 2 W]."""
    n, c, h, w = x.shape
    return (n, c, 2 * h, 2 * w)


@double_image.c()
def double_image_c(call):
    """One row of results at a time: two rows of the image are mixed into one on the stack, which is then stretched."""
    n, c, h, w = call.inputs[0].shape
    if not isinstance(w, int) or w > 8192:
        call.decline("rows are too long for the stack, or their length is not known")
    return f"""
{call.prototype} {{
  const float *restrict x = {call.input(0)};
  float *restrict y = {call.output()};
  const int64_t h = {call.dim(h)}, rows = {call.dim(n * c * h)} * 2;
  float mixed[{w} + 2];
  for (int64_t r = rows * tid / nt; r < rows * (tid + 1) / nt; r++) {{
    const int64_t i = r / 2 % h, other = r % 2 ? (i + 1 < h ? i + 1 : i) : (i > 0 ? i - 1 : i);
    const float *restrict near = x + r / 2 * {w}, *restrict far = near + (other - i) * {w};
    for (int64_t j = 0; j < {w}; j++) mixed[j + 1] = 0.75f * near[j] + 0.25f * far[j];
    mixed[0] = mixed[1]; mixed[{w} + 1] = mixed[{w}];
    float *restrict row = y + r * {2 * w if isinstance(w, int) else 0};
    for (int64_t j = 0; j < {w}; j++) {{
      row[2 * j] = 0.25f * mixed[j] + 0.75f * mixed[j + 1];
      row[2 * j + 1] = 0.75f * mixed[j + 1] + 0.25f * mixed[j + 2];
    }}
  }}
}}"""


def resize(net, node):
    """Import Resize: the plugin for bilinear doubling of images, the compiler's own way for all else."""
    x, scales = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    factors = None if scales is None else net.read(scales, "the factors of a Resize")
    ours = (
        node.attrs.get("mode") == "linear"
        and node.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
        and not node.attrs.get("antialias", 0)
        and factors is not None
        and factors.tolist() == [1, 1, 2, 2]
        and x.dtype.name == "f32"
    )
    return net.plugin("DoubleImage", x) if ours else net.op("Resize", *node.inputs, opset=node.opset, **node.attrs)


def model(shape: list[int | str]) -> onnx.ModelProto:
    """x → Resize by 2 → y."""
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="/resize", mode="linear")
    graph = helper.make_graph(
        [node],
        "resize",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def microseconds(engine: dovetail.Engine, x: np.ndarray) -> float:
    """The least time of some runs."""
    context, y = engine.context(), np.empty([*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]], np.float32)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        context.run({"x": x}, {"y": y})
        times.append(time.perf_counter() - start)
    return 1e6 * min(times)


def main() -> None:
    """Build the model both ways, compare, and time."""
    x = np.random.default_rng(0).standard_normal((1, 32, 128, 128), np.float32)
    own = dovetail.build(model([1, 32, 128, 128]))
    with dovetail.importer("Resize").use(resize):
        faster = dovetail.build(model([1, 32, 128, 128]))
        anysize = dovetail.build(model(["N", 3, "H", 20]))
    assert faster.report().tactics == {"plugin": 1}
    difference = np.abs(own.run({"x": x})["y"] - faster.run({"x": x})["y"]).max()
    assert difference < 1e-5, difference
    small = x[:, :3, :9, :20]
    assert np.allclose(anysize.run({"x": small})["y"], double_image(small), atol=1e-5)
    print(f"largest difference {difference:.1e}")
    print(f"the compiler's own Resize {microseconds(own, x):.0f} us, the plugin {microseconds(faster, x):.0f} us")


if __name__ == "__main__":
    main()
