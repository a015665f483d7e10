"""Branches beside each other on the GPU: the same results to the last bit in every run, in streams of the caller and in his graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dovetail import builder, runtime
from dovetail.builder.branches import Spread
from dovetail.builder.options import BuildOptions
from dovetail.builder.restore import as_recorded, options_of, restore
from dovetail.device.cuda.driver import driver
from dovetail.engine import order
from dovetail.runtime.cuda.arrays import DeviceArray
from dovetail.tuner.cuda_plans import PlanTimer
from dovetail.tuner.timing_cache import TimingCache
from tests.unit.test_cuda_branches import inception

RUNS = 200


@pytest.fixture(scope="module")
def variants(device):
    """The network over one lane, and the same kernels over up to eight; name of the result."""
    model, result = inception()
    alone = builder.build(model, BuildOptions(device="cuda", precision="fp16", branches=1, verify="off"))
    found = {}
    for lanes in (1, 2, 4, 8):
        module = restore(alone.graph_text, alone.plan, alone.module.weights)
        found[lanes] = builder.compile_module(
            module, options_of(alone.plan), choose=as_recorded(alone.plan), spread=Spread(lanes, 0.1)
        )
    return found, result


def opened(built):
    return runtime.make(built.plan, [built.binary], None, built.module.weights, None, None)


@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_results_are_the_same_in_every_run(variants, lanes):
    built, result = variants
    assert order.lanes_of(built[lanes].plan.main.segments[0].steps) > 1
    alone, beside = opened(built[1]).context(), opened(built[lanes]).context()
    rng = np.random.default_rng(lanes)
    for size in (1, 3, 1):
        x = rng.standard_normal((size, 3, 20, 18)).astype(np.float32)
        want = alone.run({"x": x})[result]
        given = DeviceArray.of(driver(0), x)
        out = DeviceArray.of(driver(0), np.zeros_like(want))
        bound = beside.bind({"x": given}, {result: out})
        for _ in range(RUNS):
            bound.run()
            np.testing.assert_array_equal(out.numpy(), want)


def test_a_graph_of_the_caller_forks(variants, device):
    built, result = variants
    tested = opened(built[4])
    x = np.random.default_rng(0).standard_normal((2, 3, 20, 18)).astype(np.float32)
    want = opened(built[1]).run({"x": x})[result]
    given, out = DeviceArray.of(device, x), DeviceArray.of(device, np.zeros_like(want))
    with device.active():
        stream = device.create_stream()
        device.begin_capture(stream)
        tested.run({"x": given}, {result: out}, stream=stream)
        graph = device.end_capture(stream)
        for _ in range(RUNS):
            device.launch_graph(graph, stream)
            device.synchronize(stream)
            np.testing.assert_array_equal(out.numpy(), want)
        device.destroy_graph(graph)
        device.destroy_stream(stream)


def test_plans_are_timed(variants, device, tmp_path):
    built, _ = variants
    timer = PlanTimer(device, "here", TimingCache(tmp_path / "times"))
    plans = [replace(built[n].plan, meta={}) for n in (1, 2, 4)]
    us = timer(plans, built[1].binary, built[1].module.weights, {"N": 1})
    assert us is not None and len(us) == 3 and min(us) > 0
    assert timer(plans, built[1].binary, built[1].module.weights, {"N": 1}) == us
