"""Plugins on a real device: host steps between kernels, Triton bodies tuned and checked, sizes of the run, captured graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail.core.dims import ceil_div
from dovetail.plugins import TritonKernel
from tests.unit.plugin_models import F32, call, onnx_model, own_registry


@pytest.fixture(autouse=True)
def _own() -> Any:
    with own_registry():
        yield


def _swirl(with_body: bool) -> Any:
    """The plugin `x * (i % period)`, with i the position in x."""

    @dovetail.plugin("Swirl")
    def swirl(x, *, period: int):
        return (x.reshape(-1) * (np.arange(x.size) % period)).astype(x.dtype).reshape(x.shape)

    if with_body:

        @swirl.triton(configs=[{"block": 128, "warps": 1}, {"block": 1024, "warps": 4}, {"block": 4096, "warps": 8}])
        def body(call, *, block, warps):
            x = call.inputs[0]
            return TritonKernel(
                f"""
@triton.jit
def @ENTRY@(@PARAMS@):
    i = tl.program_id(0) * {block} + tl.arange(0, {block})
    inside = i < {call.dim(x.size)}
    x = tl.load({call.input(0)} + i, mask=inside)
    tl.store({call.output()} + i, x * (i % {call.attributes["period"]}), mask=inside)
""",
                grid=[ceil_div(x.size, block)],
                warps=warps,
            )

    return swirl


def _model() -> Any:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="/relu"),
        call("Swirl", ["r"], ["s"], period=7),
        helper.make_node("MatMul", ["s", "w"], ["y"], name="/product"),
    ]
    w = np.random.default_rng(0).standard_normal((96, 32), np.float32)
    return onnx_model(nodes, {"x": (F32, ["N", 96])}, ["y"], {"w": w}), w


@pytest.mark.parametrize("with_body", [True, False])
@pytest.mark.parametrize("tune", [True, False])
def test_a_plugin_between_kernels(device: Any, with_body: bool, tune: bool) -> None:
    swirl = _swirl(with_body)
    model, w = _model()
    engine = dovetail.build(model, device="cuda", tune=tune, shapes={"x": ["1..512@256", 96]})
    groups = [g for g in engine.plan.meta["report"]["groups"] if g["kind"] == "plugin"]
    assert bool(groups) == with_body
    if groups and tune:
        assert len(groups[0]["measured_us"]) == 3
    for n in (1, 100, 512, 100, 100):
        x = np.random.default_rng(n).standard_normal((n, 96), np.float32)
        want = swirl(np.maximum(x, 0), period=7).astype(np.float64) @ w
        got = engine.run({"x": x})["y"]
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def test_sizes_that_the_run_decides(device: Any) -> None:
    dovetail.plugin("Positive")(lambda x: x[x > 0])
    model = onnx_model([call("Positive", ["x"], ["v"]), helper.make_node("Exp", ["v"], ["y"])], {"x": (F32, ["N"])}, ["y"])
    engine = dovetail.build(model, device="cuda", tune=False)
    for n in (5, 0, 1000):
        x = np.random.default_rng(n).standard_normal(n, np.float32)
        assert np.allclose(engine.run({"x": x})["y"], np.exp(x[x > 0]), rtol=1e-5)


def test_fp16_builds_keep_a_plugins_types(device: Any) -> None:
    swirl = _swirl(True)
    model, w = _model()
    engine = dovetail.build(model, device="cuda", precision="fp16", shapes={"x": [64, 96]}, allow_fallback=True)
    x = np.random.default_rng(1).standard_normal((64, 96), np.float32)
    want = swirl(np.maximum(x, 0), period=7).astype(np.float64) @ w
    got = engine.run({"x": x})["y"]
    assert np.linalg.norm(got - want) <= 2e-3 * np.linalg.norm(want)


def test_python_on_the_arrays_of_the_gpu(device: Any) -> None:
    torch = pytest.importorskip("torch")
    streams = set()

    @dovetail.plugin("Rolled")
    def rolled(x, *, by: int):
        return np.roll(x, by, axis=-1), x.sum(axis=-1)

    @rolled.gpu
    def rolled_on_gpu(x, *, out, stream, by):
        streams.add(stream)
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            source, target, sums = (torch.as_tensor(t, device="cuda") for t in (x, *out))
            target.copy_(torch.roll(source, by, -1))
            torch.sum(source, -1, out=sums)

    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        call("Rolled", ["r"], ["s", "t"], by=3),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
        helper.make_node("Exp", ["t"], ["z"]),
    ]
    w = np.random.default_rng(0).standard_normal((96, 32), np.float32)
    engine = dovetail.build(onnx_model(nodes, {"x": (F32, ["N", 96])}, ["y", "z"], {"w": w}), device="cuda", tune=False)
    for n in (1, 100, 3000, 100):
        x = 0.01 * np.random.default_rng(n).standard_normal((n, 96), np.float32)
        s, t = rolled(np.maximum(x, 0), by=3)
        want = s.astype(np.float64) @ w
        got = engine.run({"x": x})
        assert np.linalg.norm(got["y"] - want) <= 1e-5 * np.linalg.norm(want) and np.allclose(got["z"], np.exp(t), rtol=1e-5)
        on_device = engine.run({"x": torch.from_numpy(x).cuda()})
        assert np.array_equal(on_device["y"].cpu().numpy(), got["y"])
    assert 0 not in streams and streams
