"""An op that is missing, done by layers: two comparisons and a difference in the place of Sign.

    python examples/sign_by_layers.py

The op is of a domain that nothing knows. Its importer adds ops that the compiler has, so that they fuse with what surrounds them.
"""

import numpy as np
import onnx
from onnx import helper

import dovetail


@dovetail.importer("Sign", domain="example.ops")
def sign(net, node):
    """1, 0 or -1: (x > 0) - (x < 0)."""
    x = node.inputs[0]
    above = net.op("Cast", net.op("Greater", x, 0.0), to=x.dtype.name)
    below = net.op("Cast", net.op("Less", x, 0.0), to=x.dtype.name)
    return net.op("Sub", above, below)


def model() -> onnx.ModelProto:
    """x[N, 4] → Mul by 2 → example.ops::Sign → y."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"], name="/double"),
        helper.make_node("Sign", ["double"], ["y"], name="/sign", domain="example.ops"),
    ]
    graph = helper.make_graph(
        nodes,
        "sign",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.ops", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def main() -> None:
    """Build, run, and show that it is one kernel."""
    engine = dovetail.build(model())
    x = np.array([[1.5, 0.0, -0.0, -3.0], [np.inf, -np.inf, 1e-30, -1e-30]], np.float32)
    got = engine.run({"x": x})["y"]
    assert np.array_equal(got, np.sign(x)), got
    assert engine.report().json()["native_steps"] == 1 and engine.report().on_generated_code
    print(f"{got.tolist()} in one kernel")


if __name__ == "__main__":
    main()
