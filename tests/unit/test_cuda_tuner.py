"""Choosing candidates for a GPU: what compiles, what is fastest, what is remembered; on host memory in place of a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Tactic, single
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_compiler import Overdue
from dovetail.codegen.triton_interpreter import interpret
from dovetail.core.dtypes import F16
from dovetail.core.errors import CompileError, DeviceLostError
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.ir.graph import Value
from dovetail.kernels.cuda.writer import Writer
from dovetail.tuner import cuda_choose, cuda_launch, cuda_time
from dovetail.tuner.cuda_choose import UNABLE, CudaTuner
from dovetail.tuner.cuda_launch import DeviceLaunch, Functions
from dovetail.tuner.cuda_time import GraphTimer
from dovetail.tuner.launch import place, with_packs
from dovetail.tuner.timing_cache import TimingCache
from tests.unit.cuda_harness import SM90, Body, aot, fused

KERNELS: dict[str, Kernel] = {}


class Doubling(Tactic):
    """y = 2x, by blocks of a configured size; a block of 3 does not compile."""

    name = "doubling"
    device = "cuda"
    kinds = ("doubling",)

    def supports(self, group: Group, target: Target) -> str | None:
        return None

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        return ((("block", 3),), (("block", 64),), (("block", 128),))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        w = Writer(CudaTarget.of(target))
        x, y = w.pointer(Operand("in", 0), group.inputs[0].tensor), w.pointer(Operand("out", 0), group.outputs[0].tensor)
        n, block = group.outputs[0].tensor.size, dict(config)["block"]
        body = [
            *w.wait,
            f"i = tl.program_id(0) * {block} + tl.arange(0, {block})",
            f"tl.store({y} + i, tl.load({x} + i, mask=i < {n}) * 2, mask=i < {n})",
        ]
        kernel = w.kernel(body, grid=(-(-int(n) // int(block)), 1, 1), warps=1, stages=1, tactic=self.name, config=config, bytes=4 * n)
        KERNELS[kernel.entry] = kernel
        return single(kernel)


def doubling() -> Group:
    def body(b: Body) -> Value:
        x = b.input(F16, 200)
        return b("Add", x, x)

    return fused(body, kind="doubling")


def host_driver() -> HostDriver:
    def run(code: bytes, entry: str, grid: tuple[int, int, int], values: Sequence[object]) -> None:
        kernel = KERNELS[entry]
        interpret(kernel, values[: len(kernel.params)], values[len(kernel.params) :], grid)

    return HostDriver(run)


class Scripted:
    """A timer that gives the times it was told."""

    environment = "test"

    def __init__(self, times: dict[str, float]) -> None:
        self.times, self.calls, self.whole = times, 0, dict[str, float]()

    def start(self):
        pass

    def measure(self, contenders, machine, sizes):
        self.calls += 1
        return [self.times[c.name] for c in contenders]

    def network(self, groups, machine):
        outer = self

        class Whole:
            def compare(self, choices, replays):
                return [sum(outer.whole.get(c.name, 100.0) for c in chosen.values()) for chosen in choices]

            def close(self):
                pass

        return Whole()


def choose(tmp_path, timer, budget_s=60.0, **options):
    tuner = CudaTuner(timer, budget_s, cache=TimingCache(tmp_path / "times.jsonl"), jobs=1, **options)
    ((_, config, times),) = tuner([(doubling(), [Doubling()])], SM90, {})
    return dict(config)["block"], dict(times)


def test_without_a_device_the_first_that_compiles_wins(tmp_path):
    assert choose(tmp_path, None) == (64, {})


def test_the_fastest_wins_and_ties_keep_the_order(tmp_path):
    block, times = choose(tmp_path, Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0}))
    assert block == 128 and times["doubling block=3"] == UNABLE
    tie = Scripted({"doubling block=64": 1.01, "doubling block=128": 1.0})
    assert choose(tmp_path / "other", tie)[0] == 64


def test_known_times_are_not_measured_again(tmp_path):
    timer = Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0})
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 1
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 1
    other = Scripted({"doubling block=64": 1.0, "doubling block=128": 2.0})
    other.environment = "another device"
    assert choose(tmp_path, other)[0] == 64 and other.calls == 1


def test_what_is_close_alone_is_decided_in_the_network(tmp_path):
    timer = Scripted({"doubling block=64": 1.0, "doubling block=128": 1.1})
    timer.whole = {"doubling block=128": 90.0}
    assert choose(tmp_path, timer)[0] == 128
    timer.whole = {}
    assert choose(tmp_path, timer)[0] == 128  # remembered
    far = Scripted({"doubling block=64": 1.0, "doubling block=128": 2.0})
    far.whole, far.environment = {"doubling block=128": 90.0}, "another device"
    assert choose(tmp_path, far)[0] == 64


def test_an_interrupted_build_takes_the_default(tmp_path):
    class Impatient(Scripted):
        def measure(self, contenders, machine, sizes):
            raise KeyboardInterrupt

    assert choose(tmp_path, Impatient({}))[0] == 64


def test_an_interrupted_comparison_in_the_network_keeps_what_is_best_alone(tmp_path):
    class Impatient(Scripted):
        def network(self, groups, machine):
            raise KeyboardInterrupt

    stages = []
    timer = Impatient({"doubling block=64": 1.1, "doubling block=128": 1.0})
    assert choose(tmp_path, timer, progress=lambda *call: stages.append(call))[0] == 128
    assert stages[-2:] != [] and ("refine", 1, 1) in stages, "no bar is left half full"
    # Measured times were kept; only the comparison is made up for.
    timer = Scripted({})
    timer.whole = {"doubling block=64": 90.0}
    assert choose(tmp_path, timer)[0] == 64 and timer.calls == 0


def test_an_interrupted_compilation_takes_the_default(tmp_path, monkeypatch):
    compile_kernels = cuda_choose.compile_kernels
    calls = []

    def impatient(kernels, target, *, deadline=None, **options):
        calls.append(deadline)
        if deadline is not None:
            raise KeyboardInterrupt
        return compile_kernels(kernels, target, **options)

    monkeypatch.setattr(cuda_choose, "compile_kernels", impatient)
    timer = Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0})
    assert choose(tmp_path, timer) == (64, {}) and timer.calls == 0
    assert calls[0] is not None and calls[1:] and set(calls[1:]) == {None}, "what is chosen is compiled, however late it is"


def test_a_budget_of_nothing_measures_nothing_and_says_so_again(tmp_path):
    timer = Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0})
    assert choose(tmp_path, timer, budget_s=0.0) == (64, {}) and timer.calls == 0
    # With the same budget the same engine, although there would be time now; a larger one is a new chance.
    assert choose(tmp_path, timer, budget_s=0.0) == (64, {})
    assert choose(tmp_path, timer, budget_s=300.0)[0] == 128 and timer.calls == 1
    assert choose(tmp_path, timer, budget_s=0.0)[0] == 128, "known times cost nothing"


def test_what_was_compiled_in_time_competes_and_the_others_in_a_larger_budget(tmp_path, monkeypatch):
    compile_kernels = cuda_choose.compile_kernels
    late = []

    def hurried(kernels, target, *, deadline=None, **options):
        given = list(kernels)
        if deadline is not None:
            late.append([dict(k.config)["block"] for k in given])
            given = given[:-1] if len(late) == 1 else given
        return compile_kernels(given, target, **options)

    monkeypatch.setattr(cuda_choose, "compile_kernels", hurried)
    timer = Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0})
    small = choose(tmp_path, timer)
    assert small == (64, {"doubling block=3": UNABLE, "doubling block=64": 2.0}) and late == [[3, 64, 128]]
    assert choose(tmp_path, timer) == small and timer.calls == 1, "the same budget, the same engine"
    assert choose(tmp_path, timer, budget_s=0.0) == small, "a smaller one loses nothing"
    assert choose(tmp_path, timer, budget_s=120.0)[0] == 128 and timer.calls == 2
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 2


def test_a_compiler_that_had_no_cpu_is_asked_again(tmp_path, monkeypatch):
    compile_kernels = cuda_choose.compile_kernels

    def busy(kernels, target, **options):
        found = compile_kernels(kernels, target, **options)
        return found | {k.entry: Overdue("no result after 300 s") for k in kernels if dict(k.config)["block"] == 128}

    timer = Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(cuda_choose, "compile_kernels", busy)
        assert choose(tmp_path, timer) == (64, {"doubling block=3": UNABLE, "doubling block=64": 2.0})
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 2
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 2


def test_likely_winners_of_all_groups_are_compiled_first(tmp_path, monkeypatch):
    class Wide(Doubling):
        def __init__(self, name):
            self.name = name

        def configs(self, group, target):
            return [(("block", 2**n),) for n in range(5, 9)]

    seen = []

    def stop(kernels, target, **options):
        seen.extend((k.tactic, dict(k.config)["block"]) for k in kernels)
        raise KeyboardInterrupt

    monkeypatch.setattr(cuda_choose, "_FIRST", 2)
    monkeypatch.setattr(cuda_choose, "compile_kernels", stop)
    tuner = CudaTuner(Scripted({}), 60.0, cache=TimingCache(tmp_path / "times.jsonl"))
    with pytest.raises(KeyboardInterrupt):  # the second: what is chosen cannot be compiled, either
        tuner([(doubling(), [Wide("a"), Wide("b")])], SM90, {})
    assert seen[:8] == [("a", 32), ("a", 64), ("b", 32), ("b", 64), ("a", 128), ("a", 256), ("b", 128), ("b", 256)]


@pytest.mark.parametrize("level, names", [(0, []), (1, ["doubling block=3", "doubling block=64", "doubling block=128"])])
def test_levels_say_how_many_compete(tmp_path, level, names):
    class Wide(Doubling):
        def configs(self, group, target):
            return (*super().configs(group, target), *((("block", 256), ("copy", i)) for i in range(120)))

    class Counting(Scripted):
        def measure(self, contenders, machine, sizes):
            self.seen = [c.name for c in contenders]
            return [1.0] * len(contenders)

    assert [len(CudaTuner(None, 60.0, n)._contenders(doubling(), [Wide()], SM90)) for n in range(6)] == [6] * 6
    timer = Counting({})
    assert [len(CudaTuner(timer, 60.0, n)._contenders(doubling(), [Wide()], SM90)) for n in range(1, 6)] == list(cuda_choose.CANDIDATES[1:])
    choose(tmp_path, timer, level=level)
    assert getattr(timer, "seen", []) == ([] if level == 0 else names[1:])


@pytest.mark.parametrize(
    "text",
    [
        "{\"key\": \"@\", \"us\": {\"doubling block=64\": 1.0, \"doubl", "[]\nnull\n7\n\"text\"\n", "\0\xff\n" * 50,
        "{\"key\": \"@\", \"us\": [1, 2]}\n", "{\"key\": \"@\", \"us\": {\"doubling block=64\": \"fast\", \"doubling block=128\": null}}\n",
        "{\"key\": \"@\", \"us\": {\"doubling block=7\": 0.1, \"gone\": 0.2}}\n", "{\"key\": \"@\", \"skipped_s\": \"long\"}\n",
        "{\"key\": \"@\", \"us\": {\"doubling block=64\": NaN, \"doubling block=128\": NaN, \"doubling block=3\": NaN}}\n",
        "{\"key\": \"@\", \"us\": {\"doubling block=64\": -1, \"doubling block=128\": 0, \"doubling block=3\": 1}}\n",
    ],
)  # fmt: skip
def test_damaged_and_stale_times_are_measured_again(tmp_path, text):
    timer = Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0})
    key, _ = CudaTuner(timer, 60.0, cache=TimingCache(tmp_path / "none"))._key(doubling(), SM90)
    path = tmp_path / "times.jsonl"
    path.write_text(text.replace("@", key), encoding="latin-1")
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 1
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 1


def test_what_nothing_could_be_measured_of_is_not_remembered(tmp_path):
    timer = Scripted({"doubling block=64": UNABLE, "doubling block=128": UNABLE})
    assert choose(tmp_path, timer) == (64, {}) and timer.calls == 1
    timer.times = {"doubling block=64": 2.0, "doubling block=128": 1.0}
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 2


def test_measuring_makes_do_with_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_time, "_ROUNDS", ())
    for name in ("_LAUNCHES", "_SETS"):
        monkeypatch.setattr(cuda_time, name, 1)
    driver = host_driver()
    driver.free_bytes = 1 << 16
    tuner = CudaTuner(GraphTimer(driver), 60.0, level=1, cache=TimingCache(tmp_path / "times.jsonl"), jobs=1)
    ((_, _, times),) = tuner([(doubling(), [Doubling()])], SM90, {})
    assert min(t for _, t in times) < UNABLE
    del tuner  # and what it measured in
    assert driver.allocations == 0
    driver.free_bytes = 0
    tuner = CudaTuner(GraphTimer(driver), 60.0, level=1, cache=TimingCache(tmp_path / "others.jsonl"), jobs=1)
    ((_, config, times),) = tuner([(doubling(), [Doubling()])], SM90, {})
    assert dict(config)["block"] == 64 and times == ()


def test_a_timing_cache_that_cannot_be_written_costs_the_cache_alone(tmp_path):
    (tmp_path / "times.jsonl").mkdir()
    timer = Scripted({"doubling block=64": 2.0, "doubling block=128": 1.0})
    assert choose(tmp_path, timer)[0] == 128
    assert choose(tmp_path, timer)[0] == 128 and timer.calls == 2


def test_nothing_that_compiles_is_an_error_with_reasons(tmp_path):
    class Broken(Doubling):
        def configs(self, group, target):
            return ((("block", 3),),)

    with pytest.raises(CompileError, match=r"(?s)no candidate compiles and runs for cuda:sm_90; tried doubling block=3: .*power of 2"):
        CudaTuner(None, 60.0, jobs=1)([(doubling(), [Broken()])], SM90, {})


def test_times_come_from_graphs_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_choose, "_CLOSE", 1e9)
    monkeypatch.setattr(cuda_time, "_LAUNCHES", 3)
    monkeypatch.setattr(cuda_time, "_ROUNDS", ((1.35, 8, 1), (1.0, 4, 2)))
    driver = host_driver()
    group, tactic = doubling(), Doubling()
    timer = GraphTimer(driver, pool_bytes=1 << 20)
    tuner = CudaTuner(timer, 60.0, cache=TimingCache(tmp_path / "times.jsonl"), jobs=1)
    ((_, _, times),) = tuner([(group, [tactic])], SM90, {})
    assert driver.log["launch_graph"] >= 2 * (2 + 1) + 2 * 15, "two candidates are compared in the network, too"
    assert times and all(t > 0 for _, t in times)


def test_kernels_that_do_not_end_where_they_are_checked_are_named(monkeypatch):
    group, tactic, config = doubling(), Doubling(), (("block", 64),)
    emitted = tactic.emit(with_packs(group, tactic, config, SM90), config, SM90)
    machine = aot([s.kernel for s in emitted.steps], SM90)
    inputs, outputs = [place(group.inputs[0].tensor, {})], [place(group.outputs[0].tensor, {})]
    driver = host_driver()
    run = DeviceLaunch(emitted, inputs, outputs, {}, Functions(driver, machine))
    monkeypatch.setattr(cuda_launch, "PATIENCE_S", 0.01)
    monkeypatch.setattr(driver, "reached", lambda event: False)
    with pytest.raises(DeviceLostError, match=r"k_\w+ \(doubling\) did not end within 0.01 s, and keep the device busy"):
        run.run()
    run.close()
    del run
    with pytest.raises(DeviceLostError, match="did not end"), driver.active():
        raise AssertionError("not to be reached")


def test_groups_run_between_guards():
    group, tactic = doubling(), Doubling()
    config = (("block", 64),)
    packed = with_packs(group, tactic, config, SM90)
    emitted = tactic.emit(packed, config, SM90)
    machine = aot([s.kernel for s in emitted.steps], SM90)
    x = np.arange(200, dtype=np.float16)
    inputs, outputs = [place(group.inputs[0].tensor, {}, x)], [place(group.outputs[0].tensor, {})]
    run = DeviceLaunch(emitted, inputs, outputs, {}, Functions(host_driver(), machine))
    run.run()
    run.close()
    np.testing.assert_array_equal(outputs[0].array, 2 * x)
    assert inputs[0].intact() and outputs[0].intact()
