"""A model built with nodes of onnx-graphsurgeon: gemm → add → relu → mul → add, built and run by Dovetail, checked against NumPy.

    pip install onnx-graphsurgeon
    python examples/build_with_graphsurgeon.py

A graph is nodes and tensors that point at each other; constants are arrays. Dovetail takes the graph itself.
"""

import numpy as np
import onnx_graphsurgeon as gs

import dovetail

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((8, 16), np.float32)
BIAS, SHIFT, SCALE, LAST = (RNG.standard_normal(16, np.float32) for _ in range(4))


def model() -> gs.Graph:
    """x[N, 8] → y[N, 16]."""
    x = gs.Variable("x", dtype=np.float32, shape=("N", 8))
    y = gs.Variable("y", dtype=np.float32, shape=("N", 16))
    g, a, r, m = (gs.Variable(name) for name in ("g", "a", "r", "m"))
    weight, bias = gs.Constant("gemm.weight", WEIGHT), gs.Constant("gemm.bias", BIAS)
    nodes = [
        gs.Node("Gemm", "/gemm", inputs=[x, weight, bias], outputs=[g]),
        gs.Node("Add", "/add", inputs=[g, gs.Constant("add.shift", SHIFT)], outputs=[a]),
        gs.Node("Relu", "/relu", inputs=[a], outputs=[r]),
        gs.Node("Mul", "/mul", inputs=[r, gs.Constant("mul.scale", SCALE)], outputs=[m]),
        gs.Node("Add", "/last", inputs=[m, gs.Constant("last.shift", LAST)], outputs=[y]),
    ]
    return gs.Graph(nodes=nodes, inputs=[x], outputs=[y], opset=17)


def expected(x: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    return np.maximum(x @ WEIGHT + BIAS + SHIFT, 0) * SCALE + LAST


def main() -> None:
    """Build, run, compare; then a node is taken out, as graphsurgeon does it."""
    graph = model()
    x = np.random.default_rng(1).standard_normal((5, 8), np.float32)
    engine = dovetail.build(graph)
    got = engine.run({"x": x})["y"]
    assert np.allclose(got, expected(x), rtol=1e-5, atol=1e-5), np.abs(got - expected(x)).max()

    relu = next(node for node in graph.nodes if node.op == "Relu")
    reader = relu.outputs[0].outputs[0]
    reader.inputs[0] = relu.inputs[0]
    graph.cleanup()
    linear = dovetail.build(graph).run({"x": x})["y"]
    assert np.allclose(linear, (x @ WEIGHT + BIAS + SHIFT) * SCALE + LAST, rtol=1e-5, atol=1e-5)
    print(f"graphsurgeon: {got.shape} as NumPy, in {engine.report().json()['native_steps']} kernels; without Relu, too")


if __name__ == "__main__":
    main()
