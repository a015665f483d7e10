"""An importer that is wrong for one's models, fixed from outside: bool weights that are multiplied.

    python examples/bool_weights.py

ONNX's Mul takes numbers only. An exporter that writes masks as bool weights, and multiplies by them, makes models that are refused.
The importer of Mul gets a Cast in front of it; all other Muls go the way that they went before.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

import dovetail


@dovetail.importer("Mul")
def mul(net, node):
    """Mul, with bool operands as numbers of the other operand's type."""
    kind = next((v.dtype for v in node.inputs if v.dtype.name != "bool"), node.inputs[0].dtype)
    casts = [net.op("Cast", v, to=kind.name) if v.dtype.name == "bool" and kind.name != "bool" else v for v in node.inputs]
    return net.op("Mul", *casts, opset=node.opset)


def model() -> onnx.ModelProto:
    """x[N, 4] → Mul by a bool weight → Mul by a number → y."""
    nodes = [
        helper.make_node("Mul", ["x", "mask"], ["masked"], name="/mask"),
        helper.make_node("Mul", ["masked", "three"], ["y"], name="/scale"),
    ]
    graph = helper.make_graph(
        nodes,
        "mask",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.array([True, False, True, True]), "mask"), numpy_helper.from_array(np.float32(3), "three")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    """Build with and without the fix; the mask is still a weight that a refit knows."""
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    engine = dovetail.build(model())
    assert np.array_equal(engine.run({"x": x})["y"], x * [3, 0, 3, 3])
    engine.refit({"mask": np.array([False, True, False, False])})
    assert np.array_equal(engine.run({"x": x})["y"], x * [0, 3, 0, 0])
    print("with the fix: built, run, and refitted with another mask")
    mul.remove()
    try:
        dovetail.build(model())
        raise AssertionError("the compiler's own Mul has learnt to multiply by bools: this example is out of date")
    except dovetail.ModelError as error:
        print(f"without it: {error}")


if __name__ == "__main__":
    main()
