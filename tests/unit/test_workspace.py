"""Limits of what kernels take beside their operands."""

import logging

import numpy as np
import pytest

import dovetail
import dovetail.tensorrt as trt
from dovetail.api.tuning import tune
from dovetail.api.workspace import within, workspace_of
from dovetail.builder.restore import options_of
from dovetail.core.errors import UsageError
from tests.tensorrt.engines import Log

OPTIONS = {"tune": False, "verify": "off"}


def convolution() -> dovetail.Network:
    """A 3x3 convolution that Winograd computes, with tiles in memory of its own, where that may be."""
    net = dovetail.Network()
    x = net.input("x", "f32", (1, 64, 56, 56))
    w = net.weight("w", np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32) / 24)
    net.output(net.op("Relu", net.op("Conv", x, w, pads=(1, 1, 1, 1))), "y")
    return net


def tactics(engine: dovetail.Engine) -> set[str]:
    """What computes the convolution."""
    return {group["tactic"] for group in engine.plan.meta["report"]["groups"]} & {"winograd", "direct"}


def test_ways_that_take_more_are_left_out() -> None:
    free = dovetail.build(convolution(), **OPTIONS)
    assert tactics(free) == {"winograd"} and options_of(free.plan).workspace is None
    limited = dovetail.build(convolution(), workspace=1 << 20, **OPTIONS)
    assert tactics(limited) == {"direct"} and options_of(limited.plan).workspace == 1 << 20
    assert tactics(dovetail.build(convolution(), workspace=1 << 30, **OPTIONS)) == {"winograd"}
    x = np.random.default_rng(1).standard_normal((1, 64, 56, 56)).astype(np.float32)
    np.testing.assert_allclose(limited.run({"x": x})["y"], free.run({"x": x})["y"], rtol=1e-3, atol=1e-4)
    again = tune(limited, time_budget=1, verify="off")
    assert tactics(again) == {"direct"} and options_of(again.plan).workspace == 1 << 20, "the limit stays with the engine"


def test_where_nothing_fits_the_way_that_takes_least_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        engine = dovetail.build(convolution(), workspace=0, **OPTIONS)
    assert tactics(engine) == {"direct"}
    assert "Conv_0 (Fusion) needs 841 KiB of workspace, more than the 0 B that are allowed" in caplog.text


def test_only_groups_that_exceed_the_limit_are_decided_again() -> None:
    seen = []

    def choose(groups, target, sizes):
        seen.append([[(t.name, tuple(t.configs(g, target))) for t in able] for g, able in groups])
        return [(able[0], able[0].configs(group, target)[0], ()) for group, able in groups]

    net = convolution()
    y = net.op("Softmax", net.input("z", "f32", (4, 10)), axis=-1)
    net.output(y, "s")
    dovetail.build(net, selector=lambda _: within(choose, 1 << 20), **OPTIONS)
    first, second = seen
    assert len(first) == len(second) >= 2
    (conv,) = (i for i, able in enumerate(first) if able[0][0] == "winograd")
    assert "winograd" not in {name for name, _ in second[conv]} and len(second[conv]) >= 1
    for before, after in ((first[i], second[i]) for i in range(len(first)) if i != conv):
        assert after == [(before[0][0], before[0][1][:1])], "what fits stays as it was decided"
    seen.clear()
    dovetail.build(net, selector=lambda _: within(choose, 1 << 30), **OPTIONS)
    assert len(seen) == 1
    assert within(choose, None) is choose


def test_a_gpu_has_limits_too() -> None:
    pytest.importorskip("triton")
    sizes = []

    def noting(choose):
        def decide(groups, target, given):
            made = choose(groups, target, given)
            sizes.extend(workspace_of(g, t, c, target, given) for (g, _), (t, c, _) in zip(groups, made, strict=True))
            return made

        return decide

    net = dovetail.Network()
    x = net.input("x", "f32", (512, 512))
    w = net.weight("w", np.zeros((512, 512), np.float32))
    net.output(net.op("MatMul", x, w), "y")
    for limit in (None, 0):
        dovetail.build(net, target="sm_90", workspace=limit, selector=noting, **OPTIONS)
    free, limited = sizes
    assert free > 0 and limited == 0, "sums in parts need memory for them"


@pytest.mark.parametrize("bad", [-1, 1.5, "64M", True])
def test_limits_that_are_none(bad: object) -> None:
    with pytest.raises(UsageError, match=r"workspace: got .*, expected a number of bytes, 0 or more"):
        dovetail.build(convolution(), workspace=bad, **OPTIONS)  # type: ignore[arg-type]


def test_the_pool_of_tensorrt_is_that_limit() -> None:
    builder = trt.Builder(Log())
    found = []
    for limit in (None, 1 << 20):
        network = builder.create_network(1)
        x = network.add_input("x", trt.float32, (1, 64, 56, 56))
        w = np.zeros((64, 64, 3, 3), np.float32)
        layer = network.add_convolution_nd(x, 64, (3, 3), trt.Weights(w), trt.Weights())
        layer.padding_nd = (1, 1)
        network.mark_output(layer.get_output(0))
        config = builder.create_builder_config()
        config.builder_optimization_level = 0
        if limit is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
        engine = builder.build_engine(network, config)
        found.append(tactics(engine._engine))
    assert found == [{"winograd"}, {"direct"}]
