"""A model built with onnx.helper: gemm → add → relu → mul → add, built and run by Dovetail, checked against NumPy.

    python examples/build_with_onnx_helper.py

Protos are written by hand: every node, name and type is said, nothing is checked until onnx.checker is asked.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import dovetail

RNG = np.random.default_rng(0)
WEIGHTS = {
    "gemm.weight": RNG.standard_normal((8, 16), np.float32),
    "gemm.bias": RNG.standard_normal(16, np.float32),
    "add.shift": RNG.standard_normal(16, np.float32),
    "mul.scale": RNG.standard_normal(16, np.float32),
    "last.shift": RNG.standard_normal(16, np.float32),
}


def model() -> onnx.ModelProto:
    """x[N, 8] → y[N, 16]."""
    nodes = [
        helper.make_node("Gemm", ["x", "gemm.weight", "gemm.bias"], ["g"], name="/gemm"),
        helper.make_node("Add", ["g", "add.shift"], ["a"], name="/add"),
        helper.make_node("Relu", ["a"], ["r"], name="/relu"),
        helper.make_node("Mul", ["r", "mul.scale"], ["m"], name="/mul"),
        helper.make_node("Add", ["m", "last.shift"], ["y"], name="/last"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
        initializer=[numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )
    opset = 17
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        # The newest IR version of onnx may be too new for other tools; the lowest that the opset needs is enough.
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", opset)]),
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def expected(x: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    w = WEIGHTS
    hidden = np.maximum(x @ w["gemm.weight"] + w["gemm.bias"] + w["add.shift"], 0)
    return hidden * w["mul.scale"] + w["last.shift"]


def main() -> None:
    """Build, run, compare."""
    engine = dovetail.build(model())
    x = np.random.default_rng(1).standard_normal((5, 8), np.float32)
    got = engine.run({"x": x})["y"]
    assert np.allclose(got, expected(x), rtol=1e-5, atol=1e-5), np.abs(got - expected(x)).max()
    print(f"onnx.helper: {got.shape} as NumPy, in {engine.report().json()['native_steps']} kernels")


if __name__ == "__main__":
    main()
