"""A model of attention, a recurrent layer and selections as an engine for a GPU, its kernels interpreted, against the CPU's engine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail import builder, runtime
from dovetail.builder.options import BuildOptions
from dovetail.engine.plan import HostSegment

pytest.importorskip("triton")

HEADS, WIDTH, STEPS = 2, 16, 12


def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    node = helper.make_node
    nodes = []
    for name in "qkv":
        nodes += [
            node("MatMul", ["x", f"w{name}"], [name]), node("Reshape", [name, "split"], [f"{name}r"]),
            node("Transpose", [f"{name}r"], [f"{name}t"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]  # fmt: skip
    nodes += [
        node("MatMul", ["qt", "kt"], ["s"]), node("Mul", ["s", "scale"], ["scaled"]), node("Softmax", ["scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "vt"], ["o"]), node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ot", "joined"], ["attended"]),
        node("TopK", ["attended", "three"], ["top", "where"], axis=-1),
        node("Transpose", ["attended"], ["by_step"], perm=[1, 0, 2]),
        node("LSTM", ["by_step", "lw", "lr", "lb"], ["", "state"], hidden_size=6, direction="bidirectional"),
        node("Greater", ["attended", "limit"], ["large"]), node("NonZero", ["large"], ["places"]),
        node("Compress", ["attended", "large"], ["values"]),
        node("ScatterND", ["attended", "rows", "updates"], ["scattered"]),
        node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["kept"]),
        node("GatherND", ["scores", "kept_places"], ["chosen"]),
        node("Slice", ["kept", "zero", "three", "one"], ["kept_places"]),
    ]  # fmt: skip
    nodes[-2], nodes[-1] = nodes[-1], nodes[-2]
    weights = {f"w{n}": rng.standard_normal((WIDTH, WIDTH)) * 0.3 for n in "qkv"}
    weights |= {"lw": rng.standard_normal((2, 24, WIDTH)), "lr": rng.standard_normal((2, 24, 6)), "lb": rng.standard_normal((2, 48))}
    weights |= {"scale": np.array(0.3), "limit": np.array(0.4), "overlap": np.array([0.3]), "updates": np.ones((2, STEPS, WIDTH))}
    constants = {k: np.asarray(v, np.float32) for k, v in weights.items()}
    constants |= {
        "split": np.array([0, -1, HEADS, WIDTH // HEADS]), "joined": np.array([0, -1, WIDTH]),
        "rows": np.array([[0], [0]]), "most": np.array([4]), "zero": np.array([0]), "three": np.array([3]), "one": np.array([1]),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    inputs = {"x": ["N", STEPS, WIDTH], "boxes": [1, 20, 4], "scores": [1, 2, 20]}
    outputs = {"top": 1, "where": 7, "state": 1, "places": 7, "values": 1, "scattered": 1, "kept": 7, "chosen": 1}
    graph = helper.make_graph(
        nodes, "g", [value(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [value(n, kind, None) for n, kind in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def test_only_sizes_reach_the_host():
    from dovetail.codegen.triton_host import host_driver

    built = builder.build(model(), BuildOptions(device="cuda", target="cuda:sm_90"))
    hosts = [segment.op for segment in built.plan.main.segments if isinstance(segment, HostSegment)]
    assert set(hosts) == {"BindSymbols"} and len(hosts) == 3
    engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=host_driver(built.kernels))
    context, cpu = engine.context(), dovetail.build(model(), verify="off")
    rng = np.random.default_rng(1)
    for n in (2, 1, 2):
        corners = rng.random((1, 20, 2)) * 4
        feeds = {
            "x": rng.standard_normal((n, STEPS, WIDTH)), "boxes": np.concatenate([corners, corners + 2], -1),
            "scores": rng.random((1, 2, 20)),
        }  # fmt: skip
        feeds = {k: v.astype(np.float32) for k, v in feeds.items()}
        found, wanted = context.run(feeds), cpu.run(feeds)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
