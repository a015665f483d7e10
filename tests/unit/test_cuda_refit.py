"""Refits on a device: only what depends on the new weights is uploaded and packed, and nothing is left behind."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail import builder, runtime
from dovetail.builder.options import BuildOptions
from dovetail.core.errors import RefitError

pytest.importorskip("triton")

F = np.float32


def weights(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w": (24, 16), "gain": (16,), "b": (16,), "v": (16, 8)}
    return {n: rng.standard_normal(s).astype(F) for n, s in shapes.items()}


def expected(x, w):
    return np.maximum((x @ w["w"]) * w["gain"] + w["b"], 0) @ w["v"]


@pytest.fixture(scope="module")
def made():
    """A product whose factor is folded into its weight, and another one."""
    from dovetail.codegen.triton_host import host_driver

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Mul", ["m", "gain"], ["g"]),
        helper.make_node("Add", ["g", "b"], ["a"]), helper.make_node("Relu", ["a"], ["r"]), helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["N", 24])], [value("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(a, n) for n, a in weights(0).items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    built = builder.build(model, BuildOptions(device="cuda", target="cuda:sm_90", verify="off"))
    driver = host_driver(built.kernels)
    return runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver), driver


def test_parts_of_the_weights_are_replaced_and_come_back(made):
    engine, _ = made
    context = engine.context()
    x = np.random.default_rng(5).standard_normal((3, 24)).astype(F)
    first = context.run({"x": x})["y"]
    np.testing.assert_allclose(first, expected(x, weights(0)), rtol=1e-4, atol=1e-4)
    new = weights(1)
    for names in (["v"], ["gain"], ["b"], ["w"], ["w", "gain"], list(new)):
        some = {n: new[n] for n in names}
        before = engine._weights
        done = engine.set_weights(some)
        after = engine._weights
        (packed,) = after.values
        assert (after.values[packed] is before.values[packed]) == {"w", "gain"}.isdisjoint(names), "what else was packed"
        assert all((after.device[n] is view) == (n not in names) for n, view in before.device.items())
        np.testing.assert_allclose(context.run({"x": x})["y"], expected(x, weights(0) | some), rtol=1e-4, atol=1e-4)
        assert engine.restore_weights(done) and engine._weights is before
        assert context.run({"x": x})["y"].tobytes() == first.tobytes()
    engine.set_weights(new)
    engine.set_weights(weights(0))
    assert context.run({"x": x})["y"].tobytes() == first.tobytes()


def test_refits_leave_no_memory_behind(made):
    engine, driver = made
    counts = []
    for i in range(6):
        engine.set_weights(weights(i % 2))
        gc.collect()
        counts.append(driver.allocations)
    assert counts[2:] == counts[1:-1], "two sets take turns"
    engine.release_memory()
    engine.set_weights(weights(0))
    with pytest.raises(RefitError):
        engine.set_weights({"w": np.zeros((24, 15), F)})
    gc.collect()
    assert driver.allocations <= counts[-1]


def test_refits_of_some_weights_take_no_new_memory(made):
    engine, driver = made
    some = [{"w": weights(i)["w"]} for i in range(3)]
    for i in range(4):
        engine.set_weights(some[i % 3])
    gc.collect()
    before = {n: driver.log[n] for n in ("allocate", "free", "host_memory")}
    waits = driver.log.get("synchronize_event", 0)
    for i in range(4):
        engine.set_weights(some[i % 3])
    # What is packed on the device passes through memory in the order of the stream, once a refit.
    assert {n: driver.log[n] - count for n, count in before.items()} == {"allocate": 4, "free": 4, "host_memory": 0}
    assert driver.log["synchronize_event"] > waits, "runs that are queued may read what serves again"
    x = np.ones((2, 24), F)
    now = {n: engine.weight(n) for n in weights(0)}
    np.testing.assert_allclose(engine.run({"x": x})["y"], expected(x, now), rtol=1e-4, atol=1e-4)
    engine.release_memory()
    assert driver.log["free"] > before["free"] + 4


def test_a_failure_on_the_device_keeps_the_old_weights(made, monkeypatch):
    from dovetail.core.errors import DeviceError

    engine, driver = made
    engine.set_weights(weights(0))
    x = np.ones((2, 24), F)
    first = engine.run({"x": x})["y"]

    def fail(*args):
        raise DeviceError("cuda: got no memory")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "upload", fail)
        with pytest.raises(DeviceError):
            engine.set_weights(weights(1))
    assert engine.run({"x": x})["y"].tobytes() == first.tobytes()
    np.testing.assert_array_equal(engine.weight("w"), weights(0)["w"])
    engine.set_weights(weights(1))
    np.testing.assert_allclose(engine.run({"x": x})["y"], expected(x, weights(1)), rtol=1e-4, atol=1e-4)
