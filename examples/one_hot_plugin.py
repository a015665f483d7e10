"""OneHot done by a plugin: ONNX gives the depth and the values as inputs, the plugin takes them as attributes.

    python examples/one_hot_plugin.py

Aligning the two is the importer's work: it reads the depth and the two values, which have to be weights of the model, and hands
the axis through. A refit may then not change them, and says so.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

import dovetail


@dovetail.plugin("OneHot", version="1")
def one_hot(x: np.ndarray, *, depth: int, axis: int = -1, on: float = 1.0, off: float = 0.0) -> np.ndarray:
    """`on` where the new axis counts to x (from behind where x is negative), `off` elsewhere."""
    shape = [1] * (x.ndim + 1)
    shape[axis] = depth
    at = np.where(x < 0, x + depth, x)
    return np.where(np.expand_dims(at, axis) == np.arange(depth).reshape(shape), np.float32(on), np.float32(off))


@one_hot.shape
def one_hot_shape(x, *, depth, axis, **_):
    """x's shape with `depth` at `axis`."""
    place = axis % (x.rank + 1)
    return (*x.shape[:place], depth, *x.shape[place:]), "f32"


def import_one_hot(net, node):
    """Inputs indices, depth, values=[off, on] and attribute axis, as the plugin's input and attributes."""
    indices, depth, values = node.inputs
    known_depth, known_values = net.read(depth, "the depth of a OneHot"), net.read(values, "the values of a OneHot")
    if known_depth is None or known_values is None or values.dtype.name != "f32" or indices.dtype.is_float:
        return net.op("OneHot", *node.inputs, opset=node.opset, **node.attrs)  # what the plugin does not cover
    off, on = known_values.tolist()
    return net.plugin("OneHot", indices, depth=int(known_depth.reshape(-1)[0]), axis=node.attrs.get("axis", -1), on=on, off=off)


def model(axis: int) -> onnx.ModelProto:
    """indices[N, 3] → OneHot of depth 5 → Softmax."""
    nodes = [
        helper.make_node("OneHot", ["indices", "depth", "values"], ["hot"], name="/hot", axis=axis),
        helper.make_node("Softmax", ["hot"], ["y"], name="/softmax", axis=axis),
    ]
    graph = helper.make_graph(
        nodes,
        "one_hot",
        [helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, ["N", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 3)],
        [numpy_helper.from_array(np.array(5), "depth"), numpy_helper.from_array(np.array([-1, 2], np.float32), "values")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    """Compare engines with and without the plugin."""
    indices = np.array([[0, 1, 2], [4, -1, -5]])
    for axis in (-1, 1):
        with dovetail.importer("OneHot").use(import_one_hot):
            engine = dovetail.build(model(axis))
        own = dovetail.build(model(axis))
        assert [p["name"] for p in engine.plan.meta["plugins"]] == ["OneHot"] and "plugins" not in own.plan.meta
        got, want = engine.run({"indices": indices})["y"], own.run({"indices": indices})["y"]
        assert got.shape == want.shape and np.allclose(got, want, atol=1e-6)
        print(f"axis {axis}: {got.shape}, as the compiler's own OneHot")
    try:
        engine.refit({"depth": np.array(6)})
    except dovetail.RefitError as error:
        print(f"refit of the depth: {error}")


if __name__ == "__main__":
    main()
