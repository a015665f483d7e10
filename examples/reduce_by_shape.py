"""A reduction done by a plugin or by layers, chosen by shape.

    python examples/reduce_by_shape.py

Sums of long rows go to a plugin that adds in float64 and rounds once; short ones stay with the compiler's own kernels, which fuse
with what surrounds them. The importer sees shapes when it chooses: sizes where they are known, symbols where they are not.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

import dovetail

LONG = 10_000


@dovetail.plugin("ExactSum")
def exact_sum(x, *, keepdims: bool):
    """Sums along the last axis, in float64, rounded once."""
    return x.sum(-1, keepdims=keepdims, dtype=np.float64).astype(np.float32)


@exact_sum.shape
def exact_sum_shape(x, *, keepdims):
    """The last axis is 1 or gone."""
    return (*x.shape[:-1], 1) if keepdims else x.shape[:-1]


@exact_sum.c(configs=[{"lanes": 8}, {"lanes": 32}, {"lanes": 1}])
def exact_sum_c(call, *, lanes):
    """Threads share rows; each row has as many running sums as there are lanes, added in a fixed order."""
    *outer, length = call.inputs[0].shape
    rows = 1
    for extent in outer:
        rows = rows * extent
    n = call.dim(length)
    return f"""
{call.prototype} {{
  const float *x = {call.input(0)};
  float *y = {call.output()};
  const int64_t rows = {call.dim(rows)};
  for (int64_t r = rows * tid / nt; r < rows * (tid + 1) / nt; r++) {{
    const float *row = x + r * {n};
    double sums[{lanes}] = {{0}}, total = 0;
    int64_t i = 0;
    for (; i + {lanes} <= {n}; i += {lanes}) for (int64_t k = 0; k < {lanes}; k++) sums[k] += row[i + k];
    for (; i < {n}; i++) total += row[i];
    for (int64_t k = 0; k < {lanes}; k++) total += sums[k];
    y[r] = (float)total;
  }}
}}"""


@dovetail.importer("ReduceSum", opset=(13, None))
def reduce_sum(net, node):
    """The plugin for long rows of fp32, else what the compiler has."""
    x, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    known = None if axes is None else net.read(axes, "the axes of a ReduceSum")
    last = known is not None and [a % len(x.shape) for a in known.tolist()] == [len(x.shape) - 1]
    long = isinstance(x.shape[-1], int) and x.shape[-1] >= LONG
    if last and long and x.dtype.name == "f32":
        return net.plugin("ExactSum", x, keepdims=bool(node.attrs.get("keepdims", 1)))
    return net.op("ReduceSum", *node.inputs, opset=node.opset, **node.attrs)


def model(length: int | str) -> onnx.ModelProto:
    """x[N, length] → Relu → ReduceSum → y[N]."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="/relu"),
        helper.make_node("ReduceSum", ["r", "axes"], ["y"], name="/sum", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", length])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.array([-1]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    """One model per length; says which way each took."""
    rng = np.random.default_rng(0)
    for declared, length in ((100, 100), (50_000, 50_000), ("L", 50_000)):
        engine = dovetail.build(model(declared))
        x = rng.standard_normal((4, length), np.float32)
        exact = np.maximum(x, 0).astype(np.float64).sum(-1)
        error = np.abs(engine.run({"x": x})["y"] - exact).max() / exact.max()
        assert error < 1e-5
        print(f"length {declared}: by {' and '.join(engine.report().tactics)}, relative error {error:.1e}")
        assert ("plugin" in engine.report().tactics) == (declared == 50_000)


if __name__ == "__main__":
    main()
