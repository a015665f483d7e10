"""Plugins whose function works on the GPU's arrays: no copies, views, weights, failures, control flow; on a host driver."""

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail import builder, runtime
from dovetail.codegen.triton_host import host_driver
from dovetail.core.errors import ExecutionError
from dovetail.device.cuda.driver_host import memory_at
from tests.unit.plugin_models import BOOL, F32, call, onnx_model, own_registry


@pytest.fixture(autouse=True)
def _own():
    with own_registry():
        yield


def opened(model):
    built = builder.build(model, builder.BuildOptions(target="cuda:sm_90", tune=False, verify="off"))
    driver = host_driver(built.kernels)
    return runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver), driver


def host(array):
    """An array of the device as one of the host, where its memory really is."""
    interface = array.__cuda_array_interface__
    assert interface["strides"] is None and interface["shape"] == array.shape
    return memory_at(array.address, array.nbytes).view(array.dtype).reshape(array.shape)


def rng():
    return np.random.default_rng(3)


def scaled(calls):
    @dovetail.plugin("Scaled")
    def function(x, w, *, by: float):
        return (x * w * by).astype(np.float32), (x > 0)

    @function.gpu
    def on_gpu(x, w, *, out, stream, by):
        assert stream
        calls.append((x.address, *(o.address for o in out)))
        y, positive = out
        host(y)[...] = host(x) * host(w) * np.float32(by)
        host(positive)[...] = host(x) > 0

    return function


def model():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]), call("Scaled", ["r", "w"], ["s", "p"], by=2.0),
        helper.make_node("Exp", ["s"], ["y"]), helper.make_node("Not", ["p"], ["q"]),
    ]  # fmt: skip
    return onnx_model(nodes, {"x": (F32, ["N", 5])}, ["y", "q"], {"w": np.arange(5, dtype=np.float32)})


def test_the_function_gets_the_memory_of_kernels_and_nothing_is_copied() -> None:
    calls = []
    function = scaled(calls)
    engine, driver = opened(model())
    for n in (3, 1, 0, 40, 3):
        x = rng().standard_normal((n, 5), np.float32)
        before = dict(driver.log)
        got = engine.run({"x": x})
        s, p = function(np.maximum(x, 0), np.arange(5, dtype=np.float32), by=2.0)
        assert np.allclose(got["y"], np.exp(s), rtol=1e-6) and np.array_equal(got["q"], ~p)
        moved = {way: driver.log[way] - before.get(way, 0) for way in ("upload", "download")}
        assert n == 0 or moved["download"] == 2, moved
    assert len(calls) == 5
    allocations = driver.allocations
    engine.run({"x": np.ones((3, 5), np.float32)})
    assert driver.allocations == allocations, "temporary memory goes back"


def test_what_it_leaves_to_the_host_runs_there() -> None:
    @dovetail.plugin("Half")
    def half(x):
        return x / 2

    @half.gpu
    def half_gpu(x, *, out, stream):
        if x.shape[0] > 2:
            return NotImplemented
        host(out[0])[...] = host(x) / 2 + 1  # told apart from the reference

    engine, _ = opened(onnx_model([helper.make_node("Relu", ["x"], ["r"]), call("Half", ["r"], ["y"])], {"x": (F32, ["N", 2])}, ["y"]))
    assert engine.run({"x": np.full((2, 2), 4, np.float32)})["y"].tolist() == [[3, 3], [3, 3]]
    assert engine.run({"x": np.full((3, 2), 4, np.float32)})["y"].tolist() == [[2, 2]] * 3


def test_views_arrive_dense_and_results_are_the_callers() -> None:
    @dovetail.plugin("Twice")
    def twice(x):
        return 2 * x

    @twice.gpu
    def twice_gpu(x, *, out, stream):
        host(out[0])[...] = 2 * host(x)

    nodes = [
        helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]), call("Twice", ["t"], ["y"]),
        helper.make_node("Split", ["y"], ["a", "b"], axis=1, num_outputs=2), call("Twice", ["b"], ["z"]),
    ]  # fmt: skip
    engine, _ = opened(onnx_model(nodes, {"x": (F32, [4, "M"])}, ["y", "z", "a"]))
    x = rng().standard_normal((4, 3), np.float32)
    first = engine.run({"x": x})
    want = 2 * np.maximum(x, 0).T
    engine.run({"x": -x})
    assert np.array_equal(first["y"], want) and np.array_equal(first["z"], 2 * want[:, 2:]) and np.array_equal(first["a"], want[:, :2])


def test_in_a_branch_and_under_a_profile() -> None:
    calls = []
    scaled(calls)
    then = helper.make_graph(
        [call("Scaled", ["x", "w"], ["s", "p"], by=3.0)], "then", [], [helper.make_tensor_value_info("s", F32, ["N", 5])]
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "else", [], [helper.make_tensor_value_info("n", F32, ["N", 5])])
    nodes = [helper.make_node("If", ["c"], ["b"], then_branch=then, else_branch=other), helper.make_node("Exp", ["b"], ["y"])]
    w = np.linspace(-1, 1, 5, dtype=np.float32)
    engine, _ = opened(onnx_model(nodes, {"x": (F32, ["N", 5]), "c": (BOOL, [])}, ["y"], {"w": w}))
    x = rng().standard_normal((6, 5), np.float32)
    assert np.allclose(engine.run({"x": x, "c": np.array(True)})["y"], np.exp(3 * x * w), rtol=1e-5)
    assert np.allclose(engine.run({"x": x, "c": np.array(False)})["y"], np.exp(-x), rtol=1e-5)
    assert len(calls) >= 1


def test_failures_name_node_and_plugin_and_the_engine_goes_on() -> None:
    @dovetail.plugin("Faulty")
    def faulty(x):
        return x

    answers = []

    @faulty.gpu
    def faulty_gpu(x, *, out, stream):
        if not answers:
            raise ValueError("no such kernel")
        host(out[0])[...] = host(x)
        return answers.pop()

    engine, _ = opened(onnx_model([helper.make_node("Relu", ["x"], ["r"]), call("Faulty", ["r"], ["y"])], {"x": (F32, ["N"])}, ["y"]))
    with pytest.raises(ExecutionError, match=r"/faulty.*plugin Faulty failed on the GPU \(ValueError: no such kernel\)"):
        engine.run({"x": np.ones(2, np.float32)})
    answers.append(np.ones(2))
    with pytest.raises(ExecutionError, match="got a ndarray from its GPU function, expected None"):
        engine.run({"x": np.ones(2, np.float32)})
    answers.append(None)
    assert engine.run({"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1]


def test_a_changed_function_is_another_plugin() -> None:
    function = scaled([])
    before = function.fingerprint
    function.gpu(lambda x, w, *, out, stream, by: None)
    assert function.fingerprint != before
