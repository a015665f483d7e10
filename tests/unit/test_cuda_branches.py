"""Branches on the interpreted driver: lanes of real networks, graphs replayed in any order that they allow, memory, options."""

import gc
import random
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from dovetail import builder, runtime
from dovetail.api.report import report
from dovetail.builder import branches
from dovetail.builder.branches import Cost, Spread, arranged
from dovetail.builder.options import BuildOptions
from dovetail.builder.restore import as_recorded, options_of, restore, spread_of
from dovetail.builder.select import by_rule
from dovetail.cli import explain, inspect_plan
from dovetail.core.errors import UsageError
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.engine import order
from dovetail.engine.check import check
from dovetail.engine.plan import NativeSegment, Port, Program
from dovetail.runtime.cuda.arrays import DeviceArray
from dovetail.tuner.cuda_choose import CudaTuner
from dovetail.tuner.cuda_plans import PlanTimer
from dovetail.tuner.cuda_time import GraphTimer
from dovetail.tuner.timing_cache import TimingCache
from tests.unit import cuda_engines
from tests.unit.cuda_engines import engine, plan
from tests.unit.native_plans import N, buffer, step, tensor
from tests.unit.test_cuda_conv_network import Network

# --- a driver that replays graphs in another order ------------------------------------------------


class Shuffled(HostDriver):
    """Replays what was captured in a random order that the captured dependencies allow, kernels that come late rather first."""

    def __init__(self, run, rng):
        super().__init__(run)
        self.rng = rng
        self.fronts = {}  # stream -> captured nodes that its next one depends on
        self.recorded = {}  # event -> the same
        self.after = []  # per node of the capture, what it depends on
        self.early = []  # per node, whether it may start before the one ahead has ended
        self.graphs = {}

    def begin_capture(self, stream):
        super().begin_capture(stream)
        self.fronts, self.recorded, self.after, self.early = {stream: set()}, {}, [], []

    def launch(self, launch, stream):
        if stream in self.fronts:
            self.after.append(self.fronts[stream])
            self.early.append(launch.pdl)
            self.fronts[stream] = {len(self.after) - 1}
        super().launch(launch, stream)

    def record(self, event, stream, *, external=False):
        if stream in self.fronts:
            self.recorded[event] = set(self.fronts[stream])
        super().record(event, stream, external=external)

    def wait(self, stream, event):
        if event in self.recorded:
            self.fronts[stream] = self.fronts.get(stream, set()) | self.recorded[event]
        super().wait(stream, event)

    def end_capture(self, stream):
        graph = super().end_capture(stream)
        self.graphs[id(graph)] = (list(self.after), list(self.early))
        self.fronts = {}
        return graph

    def launch_graph(self, graph, stream):
        self._note("launch_graph")
        after, _ = self.graphs[id(graph)]
        assert len(after) == len(graph.work)
        done = set()
        while len(done) < len(after):
            ready = [i for i in range(len(after)) if i not in done and after[i] <= done]
            number = max(self.rng.sample(ready, min(2, len(ready))))
            graph.work[number]()
            done.add(number)


def depth(after):
    """The longest chain of nodes."""
    found = []
    for ahead in after:
        found.append(1 + max((found[a] for a in ahead), default=0))
    return max(found)


# --- lanes by the model ---------------------------------------------------------------------------

TINY, FULL = Cost(4.0, 0.1), Cost(4.0, 1.0)


def module(branch=(1, 2, 3), costs=TINY, lanes=4, crossing=1.2):
    """Steps of a module as Inception has them: one kernel, chains of some lengths beside each other, one that joins them."""
    steps, pairs, ends = [step("k_double", 0, 1)], [], []
    for length in branch:
        ahead = 0
        for _ in range(length):
            pairs.append((ahead, len(steps)))
            ahead = len(steps)
            steps.append(step("k_double", 0, 1))
        ends.append(ahead)
    pairs += [(end, len(steps)) for end in ends]
    steps.append(step("k_double", 0, 1))
    return arranged(steps, pairs, [costs] * len(steps), Spread(lanes, crossing))


def test_branches_of_a_module_get_lanes_and_join():
    steps, (before, after) = module()
    assert [s.lane for s in steps] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert [s.waits for s in steps] == [(), (), (0,), (), (0,), (), (), (1, 3)]
    assert before == 8 * 4 and after < before


def test_most_lanes_are_kept_to():
    assert {s.lane for s in module(lanes=2)[0]} == {0, 1}
    steps, us = module(lanes=1)
    assert {s.lane for s in steps} == {0} and not any(s.waits for s in steps) and us[0] == us[1]


def test_kernels_that_fill_the_gpu_stay_in_line():
    assert {s.lane for s in module(costs=FULL)[0]} == {0}


def test_the_more_a_crossing_costs_the_fewer_forks():
    made = [module(branch=(1, 1, 2, 3), costs=Cost(2.0, 0.1), crossing=us)[0] for us in (0.1, 1.2, 2.5, 9.0)]
    forks = [sum(len(s.waits) for s in steps) for steps in made]
    assert forks == sorted(forks, reverse=True) and forks[0] > forks[-1] == 0


def test_what_a_report_states_is_checked():
    for stored in (None, {}, {"lanes": 0}, {"lanes": 9}, {"lanes": True}, {"lanes": "4"}, {"lanes": 4, "crossing_us": "much"}):
        assert branches.Decision.parse(stored) is None
    assert branches.Decision.parse(branches.Decision(Spread(4, 3.5), "").json()) == Spread(4, 3.5)


def test_a_kernel_shorter_than_a_crossing_stays_in_line():
    assert {s.lane for s in module(branch=(1, 1), costs=Cost(1.0, 0.1))[0]} == {0}


def test_waits_name_no_more_than_needed():
    rng = random.Random(3)
    for _ in range(30):
        count = rng.randint(2, 40)
        pairs = [(a, b) for b in range(1, count) for a in rng.sample(range(b), min(b, rng.randint(0, 3)))]
        costs = [Cost(rng.uniform(2, 9), rng.random()) for _ in range(count)]
        steps, _ = arranged([step("k_double", 0, 1)] * count, pairs, costs, Spread(4))
        clocks = order.clocks(steps)
        assert all(clocks.precedes(a, b) for a, b in pairs)
        for number, one in enumerate(steps):
            for wait in one.waits:
                fewer = replace(one, waits=tuple(w for w in one.waits if w != wait))
                without = order.clocks([*steps[:number], fewer, *steps[number + 1 :]])
                assert not without.precedes(wait, number) or any(not without.precedes(a, b) for a, b in pairs if b == number)


# --- hand-written plans ---------------------------------------------------------------------------


def random_program(rng):
    """Kernels over random operands, some in place where nobody reads the old value later."""
    count = rng.randint(5, 24)
    buffers = [buffer(0, "input", N, name="x")]
    steps, alive = [], [0]
    for _ in range(count):
        a, b = rng.choice(alive[-5:]), rng.choice(alive[-5:])
        target = len(buffers)
        alias = a if a and a != b and rng.random() < 0.3 and buffers[a].alias is None else None
        buffers.append(buffer(target, "arena", N, alias=alias))
        kernel = rng.choice(["k_add", "k_double", "k_increment"])
        steps.append(step(kernel, a, b, target) if kernel == "k_add" else step(kernel, a, target))
        if alias is not None:
            alive.remove(a)
        alive.append(target)
    last = len(buffers)
    buffers.append(buffer(last, "output", N, name="y"))
    steps.append(step("k_add", alive[-1], alive[-2], last))
    return Program(tuple(buffers), (Port("x", tensor(0, N)),), (Port("y", tensor(last, N)),), (NativeSegment(tuple(steps)),))


@pytest.mark.parametrize("seed", range(25))
def test_random_programs_compute_the_same_whatever_order_their_graphs_run_in(seed):
    rng = random.Random(seed)
    alone = plan(random_program(rng))
    spread, (before, after) = branches.spread(alone, lambda s: Cost(5.0, 0.2), Spread(rng.choice([2, 3, 4, 8])))
    check(spread)
    assert after <= before
    driver = Shuffled(cuda_engines.run, rng)
    one, many = engine(alone), engine(spread, driver=driver).context()
    for n in (5, 5, 5, 130, 130, 130, 5):
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        np.testing.assert_array_equal(many.run({"x": x})["y"], one.run({"x": x})["y"])
    again = [branches.spread(alone, lambda s: Cost(5.0, 0.2), Spread(4)) for _ in range(2)]
    assert again[0] == again[1]


# --- networks -------------------------------------------------------------------------------------


def inception():
    """Two modules: four branches of one to three kernels that meet in a concat, over images of any number."""
    n = Network()
    x = n("Relu", n.conv("x", 3, 16, 3, 4))
    for _ in range(2):
        first = n("Relu", n.conv(x, 16, 4))
        second = n("Relu", n.conv(n("Relu", n.conv(x, 16, 8)), 8, 4, 3))
        third = x
        for channels, filters in ((16, 8), (8, 8), (8, 4)):
            third = n("Relu", n.conv(third, channels, filters, 3))
        pooled = n("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        x = n("Concat", first, second, third, n("Relu", n.conv(pooled, 16, 4)), axis=1)
    return n.model(x), x


@pytest.fixture(scope="module")
def built():
    """The network with one lane and with four."""
    pytest.importorskip("triton")
    model, result = inception()
    options = BuildOptions(device="cuda", target="cuda:sm_90", precision="fp16", branches=1, verify="off")
    return builder.build(model, options), builder.build(model, replace(options, branches=4)), result


def opened(made, driver):
    return runtime.make(made.plan, [made.binary], None, made.module.weights, None, None, driver=driver)


def interpreter(made):
    from dovetail.codegen.triton_host import host_driver

    return host_driver(made.kernels)._run


def test_a_network_computes_the_same_to_the_last_bit(built):
    alone, beside, result = built
    (segment,) = beside.plan.main.segments
    assert order.lanes_of(segment.steps) > 2 and {k.entry for k in alone.plan.kernels} == {k.entry for k in beside.plan.kernels}
    assert not any(s.lane or s.waits for s in alone.plan.main.segments[0].steps)
    check(beside.plan)
    driver = Shuffled(interpreter(beside), random.Random(1))
    one, many = opened(alone, HostDriver(interpreter(alone))).context(), opened(beside, driver).context()
    rng = np.random.default_rng(0)
    for size in (2, 1):
        x = rng.standard_normal((size, 3, 20, 18)).astype(np.float32)
        want = one.run({"x": x})[result]
        for _ in range(3):  # not captured, captured, replayed
            np.testing.assert_array_equal(many.run({"x": x})[result], want)
    np.testing.assert_array_equal(many.run({"x": DeviceArray.of(driver, x)})[result].numpy(), want)  # arrays that move: nodes are changed
    weights = {name: 2 * w for name, w in list(alone.module.weights.items())[:3]}
    for context in (one, many):
        context.engine.set_weights(weights)
    refitted = one.run({"x": x})[result]
    assert not np.array_equal(refitted, want)
    np.testing.assert_array_equal(many.run({"x": x})[result], refitted)
    after, early = next(iter(driver.graphs.values()))
    assert depth(after) < len(after) == len(segment.steps)
    assert sum(len(a) > 1 for a in after) >= 2, "each module joins"
    assert not any(e and len(a) != 1 for e, a in zip(early, after, strict=True)), "a join is a full dependency"
    assert any(early)


def test_a_graph_of_the_caller_forks_too(built):
    _, beside, result = built
    driver = Shuffled(interpreter(beside), random.Random(2))
    tested = opened(beside, driver)
    x = np.random.default_rng(1).standard_normal((1, 3, 20, 18)).astype(np.float32)
    want = tested.run({"x": x})[result]
    given, target = DeviceArray.of(driver, x), DeviceArray.of(driver, np.zeros_like(want))
    with driver.active():
        stream = driver.create_stream()
        driver.begin_capture(stream)
        tested.run({"x": given}, {result: target}, stream=stream)
        graph = driver.end_capture(stream)
        after, _ = driver.graphs[id(graph)]
        assert depth(after) < len(after)
        driver.launch_graph(graph, stream)
    np.testing.assert_array_equal(target.numpy(), want)


def test_what_was_decided_is_recorded_and_repeated(built):
    alone, beside, _ = built
    assert beside.plan.meta["report"]["branches"]["lanes"] == 4 and spread_of(beside.plan) == Spread(4)
    assert options_of(beside.plan).branches == 4 and spread_of(alone.plan) == Spread(1)
    stored = beside.plan
    again = builder.compile_module(
        restore(beside.graph_text, stored, beside.module.weights), options_of(stored), choose=as_recorded(stored),
        spread=spread_of(stored),
    )
    assert again.plan.main == stored.main and again.plan.kernels == stored.kernels


def decided(made, asked=None, **kw):
    """What is decided on a plan of one lane."""
    return branches.decide(made.plan, made.kernels, made.target, asked, **kw)


def test_what_is_measured_decides(built):
    alone, beside, _ = built
    seen = []

    def measure(us):
        return lambda plans: seen.append(len(plans)) or us[: len(plans)]

    plan_, decision = decided(alone, measure=measure([100.0, 90.0, 80.0, 85.0, 95.0]))
    assert seen and 1 < order.lanes_of(plan_.main.segments[0].steps) <= decision.lanes and "measured" in decision.reason
    assert decision.measured_us[:2] == (("1 lane", 100.0), ("4 lanes", 90.0))
    plan_, decision = decided(alone, measure=measure([100.0, 99.5, 99.2, 99.9, 99.6]))
    assert plan_ == alone.plan and decision.lanes == 1 and "gain nothing" in decision.reason
    plan_, decision = decided(alone, measure=lambda plans: None)
    assert decision.reason.startswith("by rule") and not decision.measured_us
    assert decided(alone, 1, measure=measure([1.0]))[0] == alone.plan
    assert decided(alone, 4)[0].main == beside.plan.main
    assert decided(alone, None, recorded=Spread(4))[0].main == beside.plan.main


# --- timing ---------------------------------------------------------------------------------------


def forked():
    """A plan of two chains beside each other, and the same in one lane."""
    steps = [step("k_increment", 0, 1), step("k_double", 1, 2), step("k_double", 1, 3), step("k_add", 2, 3, 4)]
    buffers = (buffer(0, "input", N, name="x"), *(buffer(i, "arena", N) for i in (1, 2, 3)), buffer(4, "output", N, name="y"))
    alone = plan(Program(buffers, (Port("x", tensor(0, N)),), (Port("y", tensor(4, N)),), (NativeSegment(tuple(steps)),)))
    return alone, branches.spread(alone, lambda s: TINY, Spread(2))[0]


def test_whole_plans_are_timed_once_and_remembered(tmp_path):
    bundle = tmp_path / "bundle"
    bundle.write_bytes(cuda_engines.BUNDLE)
    driver, seen = cuda_engines.host_driver(), []
    timer = PlanTimer(driver, "a GPU", TimingCache(tmp_path / "times"), progress=lambda *a: seen.append(a))
    plans = forked()
    us = timer(plans, bundle, {}, {"N": 8})
    assert us is not None and len(us) == 2 and min(us) > 0 and seen == [("branches", 0, 1), ("branches", 1, 1)]
    assert driver.log["launch_graph"] >= 2 * 40
    gc.collect()  # what the timing left goes back now, not at some later moment
    before = dict(driver.log)
    again = PlanTimer(driver, "a GPU", TimingCache(tmp_path / "times"))
    assert again(plans, bundle, {}, {"N": 8}) == us and driver.log == before
    unwanted = PlanTimer(driver, "another GPU", TimingCache(tmp_path / "times"), wanted=lambda: False)
    assert unwanted(plans, bundle, {}, {"N": 8}) is None and driver.log == before
    gc.collect()
    assert not driver.allocations


def test_plans_that_cannot_be_timed_are_left_to_the_rule(tmp_path, caplog):
    bundle = tmp_path / "bundle"
    bundle.write_bytes(cuda_engines.BUNDLE)
    timer = PlanTimer(cuda_engines.host_driver(memory=100), "a GPU", TimingCache(tmp_path / "times"))
    assert timer(forked(), bundle, {}, {"N": 8}) is None
    assert "could not be timed" in caplog.text and not TimingCache(tmp_path / "times").records.get("plans_us")


def test_the_tuner_of_a_gpu_times_plans_and_a_rule_does_not():
    from dovetail.api.building import plan_timer

    timer = GraphTimer(cuda_engines.host_driver(), "x")
    made = plan_timer(CudaTuner(timer, 5.0), None)
    assert made is not None and made.driver is timer.driver and made.environment == timer.environment
    assert plan_timer(CudaTuner(timer, 0.0), None) is None and plan_timer(CudaTuner(None, 5.0), None) is None
    assert plan_timer(by_rule, None) is None


# --- the command line -----------------------------------------------------------------------------


def test_inspect_and_explain_say_what_runs_beside_what(built):
    alone, beside, _ = built
    lines = [inspect_plan._step_line(s) for s in inspect_plan._steps(beside.plan.main)]
    steps = beside.plan.main.segments[0].steps
    number, joining = next((i, s) for i, s in enumerate(steps) if len(s.waits) > 1)
    assert f"{number} | lane {joining.lane} after {' '.join(map(str, joining.waits))}: " in lines[number]
    assert not any(" | lane" in inspect_plan._step_line(s) for s in inspect_plan._steps(alone.plan.main))
    assert "branches: up to 4 kernels beside each other, asked for" in explain.text(explain.select(beside.plan.meta["report"]))
    assert "branches: one kernel after the other, asked for" in explain.text(explain.select(alone.plan.meta["report"]))
    assert "branches: up to 4 kernels" in str(report(beside.plan)) and "branches" not in str(report(alone.plan))


def test_a_chain_has_no_branches():
    pytest.importorskip("triton")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy")
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))
    model.ir_version = 8
    made = builder.build(model, BuildOptions(target="sm_90", verify="off"))
    assert made.branches.lanes == 1 and "no steps that gain" in made.branches.reason
    made = builder.build(model, BuildOptions(verify="off", tune=False))
    assert made.branches.lanes == 1 and "CPU" in made.branches.reason


def test_bad_options():
    for value in (0, 9, -1, "4"):
        with pytest.raises(UsageError, match=rf"branches: got {value!r}, expected 1 to 8"):
            BuildOptions(target="sm_90", branches=value).check()
    with pytest.raises(UsageError, match="a CPU's threads share each kernel"):
        BuildOptions(branches=2).check()
    assert BuildOptions(branches=1).check().device == "cpu"
