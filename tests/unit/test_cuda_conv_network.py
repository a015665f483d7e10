"""A small mobile network from ONNX to results on the interpreted driver: its convolutions, layouts and packed weights together."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dovetail import builder, runtime
from dovetail.builder.options import BuildOptions

pytest.importorskip("triton")


class Network:
    """Nodes of an ONNX model under construction, with seeded weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(4)
        self.nodes, self.weights = [], []

    def weight(self, *shape: int) -> str:
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:])))
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array((self.rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def __call__(self, op: str, *inputs: str, **attrs) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        return name

    def conv(self, x: str, channels: int, filters: int, kernel: int = 1, stride: int = 1, group: int = 1) -> str:
        attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group}
        return self("Conv", x, self.weight(filters, channels // group, kernel, kernel), self.weight(filters), **attrs)

    def model(self, result: str):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "g", [value("x", TensorProto.FLOAT, ["N", 3, 20, 18])], [value(result, TensorProto.FLOAT, None)], self.weights
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        made.ir_version = 8
        return made


def mobile() -> tuple[object, str]:
    """Entrance, expansion, depthwise, squeeze and excite, projection with a residual, groups, pooling, a transposed convolution."""
    n = Network()
    first = n("Relu", n.conv("x", 3, 16, 3, 2))
    wide = n("HardSwish", n.conv(first, 16, 48))
    deep = n("HardSwish", n.conv(wide, 48, 48, 3, 1, 48))
    mean = n("GlobalAveragePool", deep)
    scale = n("HardSigmoid", n.conv(n("Relu", n.conv(mean, 48, 12)), 12, 48))
    block = n("Add", n.conv(n("Mul", deep, scale), 48, 16), first)
    grouped = n("Relu", n.conv(block, 16, 32, 3, 1, 4))
    pooled = n("MaxPool", grouped, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    up = n("ConvTranspose", pooled, n.weight(32, 8, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    return n.model(up), up


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_a_mobile_network(precision, tolerance):
    from dovetail.codegen.triton_host import host_driver

    model, result = mobile()
    built = builder.build(model, BuildOptions(device="cuda", target="cuda:sm_90", precision=precision))
    tactics = {choice.tactic.name for choice in built.choices.values()}
    assert {"stem", "depthwise", "vector", "implicit_gemm", "pool"} <= tactics
    prologues = [[n.op for n in c.group.body.nodes] for c in built.choices.values() if c.tactic.name == "implicit_gemm"]
    assert any("Mul" in ops and ops.index("Mul") < ops.index("Conv") for ops in prologues)
    context = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=host_driver(built.kernels)).context()
    rng = np.random.default_rng(9)
    for size in (2, 1):
        x = rng.standard_normal((size, 3, 20, 18)).astype(np.float32)
        (want,) = ReferenceEvaluator(model).run(None, {"x": x})
        got = context.run({"x": x})[result]
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)
