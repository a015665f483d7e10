"""A model built with functions registered for onnx-graphsurgeon's graphs: gemm → add → relu → mul → add, checked against NumPy.

    pip install onnx-graphsurgeon
    python examples/build_with_graph_functions.py

`@gs.Graph.register()` makes a function a method of every graph; `self.layer` adds a node and names what it makes. The network then
reads like arithmetic, with operators of Python where they are registered, too.
"""

import numpy as np
import onnx_graphsurgeon as gs

import dovetail

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((8, 16), np.float32)
BIAS, SHIFT, SCALE, LAST = (RNG.standard_normal(16, np.float32) for _ in range(4))


@gs.Graph.register()
def gemm(self, a, b, c):
    """a @ b + c."""
    return self.layer(op="Gemm", inputs=[a, b, c], outputs=["gemm_out"])[0]


@gs.Graph.register()
def relu(self, x):
    """max(x, 0)."""
    return self.layer(op="Relu", inputs=[x], outputs=["relu_out"])[0]


@gs.Graph.register()
def add(self, a, b):
    """a + b."""
    return self.layer(op="Add", inputs=[a, b], outputs=["add_out"])[0]


@gs.Graph.register()
def mul(self, a, b):
    """a * b."""
    return self.layer(op="Mul", inputs=[a, b], outputs=["mul_out"])[0]


def model() -> gs.Graph:
    """x[N, 8] → y[N, 16]."""
    graph = gs.Graph(opset=17)
    x = gs.Variable("x", dtype=np.float32, shape=("N", 8))
    graph.inputs = [x]
    hidden = graph.relu(graph.add(graph.gemm(x, WEIGHT, BIAS), SHIFT))
    y = graph.add(graph.mul(hidden, SCALE), LAST)
    y.name, y.dtype, y.shape = "y", np.dtype(np.float32), ("N", 16)
    graph.outputs = [y]
    return graph


def expected(x: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    return np.maximum(x @ WEIGHT + BIAS + SHIFT, 0) * SCALE + LAST


def main() -> None:
    """Build, run, compare."""
    engine = dovetail.build(model())
    x = np.random.default_rng(1).standard_normal((5, 8), np.float32)
    got = engine.run({"x": x})["y"]
    assert np.allclose(got, expected(x), rtol=1e-5, atol=1e-5), np.abs(got - expected(x)).max()
    print(f"graph functions: {got.shape} as NumPy, in {engine.report().json()['native_steps']} kernels")


if __name__ == "__main__":
    main()
