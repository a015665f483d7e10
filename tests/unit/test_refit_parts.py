"""Refits pack only what depends on the weights that change, into memory of sets that are gone."""

import gc
import itertools
from dataclasses import replace

import numpy as np
import pytest

from dovetail.core.errors import RefitError
from dovetail.device.cpu.memory import ALIGNMENT, Recycler, address, aligned_parts
from dovetail.engine.plan import (
    Arg,
    Buffer,
    Guard,
    HostSegment,
    KernelRef,
    NativeSegment,
    Port,
    Program,
    Step,
    TensorRef,
    digest,
)
from dovetail.runtime.partial import Dependence, weights_of
from tests.unit.native_engines import F, engine, ramp
from tests.unit.native_plans import scaled

SIZE = (8,)


def program(kinds, steps, outputs, names=(), alias=None):
    """Buffers by kind; steps are (kernel, buffers); outputs are buffer ids."""
    alias = alias or {}
    buffers = tuple(
        Buffer(i, kind, "f32", SIZE, dict(enumerate(names)).get(i) or f"b{i}", alias.get(i)) for i, kind in enumerate(kinds)
    )
    ports = tuple(Port(buffers[i].name, TensorRef(i, "f32", (SIZE,))) for i in outputs)
    native = NativeSegment(tuple(Step(k, tuple(map(Arg, args))) for k, args in steps))
    return Program(buffers, (), ports, (native,))


def kernels(**writes):
    return [KernelRef(name, 3, 0, writes=w) for name, w in writes.items()]


def steps_of(part):
    return [(s.kernel, tuple(part.buffers[a.buffer].name for a in s.args)) for segment in part.segments for s in segment.steps]


def test_steps_of_other_weights_are_left_out():
    whole = program(
        ["weight", "weight", "output", "output"], [("k", (0, 2)), ("k", (1, 3))], [2, 3], ["u", "v", "pu", "pv"]
    )
    part = Dependence(whole, kernels(k=(1,))).part({"v"})
    assert steps_of(part) == [("k", ("v", "pv"))]
    assert [p.name for p in part.outputs] == ["pv"] and weights_of(part) == {"v"}
    assert [b.id for b in part.buffers] == list(range(len(part.buffers)))
    assert Dependence(whole, kernels(k=(1,))).part({"w"}) == Program()


def test_what_a_step_reads_besides_is_made_again():
    # scale = f(g); packed = w * scale; other = g
    whole = program(
        ["weight", "weight", "arena", "output", "output"],
        [("f", (0, 2)), ("mul", (1, 2, 3)), ("f", (0, 4))], [3, 4], ["g", "w", "scale", "packed", "other"],
    )  # fmt: skip
    graph = Dependence(whole, kernels(f=(1,), mul=(2,)))
    assert steps_of(graph.part({"w"})) == [("f", ("g", "scale")), ("mul", ("w", "scale", "packed"))]
    assert [p.name for p in graph.part({"g"}).outputs] == ["packed", "other"]


def test_results_that_stay_are_read_where_they_are():
    whole = program(["weight", "weight", "output", "output"], [("f", (0, 2)), ("mul", (1, 2, 3))], [2, 3], ["g", "w", "pg", "pw"])
    part = Dependence(whole, kernels(f=(1,), mul=(2,))).part({"w"})
    assert steps_of(part) == [("mul", ("w", "pg", "pw"))]
    assert {b.name: b.kind for b in part.buffers} == {"w": "weight", "pg": "packed", "pw": "output"}


def test_all_parts_of_a_whole_are_written_again():
    whole = program(["weight", "weight", "output"], [("copy", (0, 2)), ("copy", (1, 2))], [2], ["a", "b", "joined"])
    part = Dependence(whole, kernels(copy=(1,))).part({"b"})
    assert [s[1][0] for s in steps_of(part)] == ["a", "b"]


def test_a_step_never_writes_a_result_that_stays():
    # `both` makes a temporary that is needed again, and a result that would have stayed.
    whole = program(
        ["weight", "weight", "arena", "output", "output"], [("both", (0, 2, 3)), ("mul", (1, 2, 4))], [3, 4],
        ["g", "w", "t", "pg", "pw"],
    )  # fmt: skip
    part = Dependence(whole, kernels(both=(1, 2), mul=(2,))).part({"w"})
    assert [p.name for p in part.outputs] == ["pg", "pw"]
    assert all(b.kind != "packed" for b in part.buffers)


def test_kernels_that_do_not_say_what_they_write_may_write_all():
    kinds = ["weight", "weight", "arena", "output", "output"]
    whole = program(kinds, [("k", (0, 2, 3)), ("k", (1, 2, 4))], [3, 4], ["a", "b", "t", "x", "y"])
    assert len(steps_of(Dependence(whole, kernels(k=None)).part({"b"}))) == 2


def test_in_place_results_follow_their_storage():
    whole = program(
        ["weight", "output", "output"], [("f", (0, 1)), ("inc", (1, 2))], [2], ["w", "t", "p"], alias={2: 1},
    )  # fmt: skip
    part = Dependence(whole, kernels(f=(1,), inc=(1,))).part({"w"})
    assert len(steps_of(part)) == 2 and part.buffers[2].alias == 1


def test_host_steps_are_parts_too():
    whole = program(["weight", "output", "weight", "output"], [("f", (0, 1))], [1, 3], ["w", "p", "v", "q"])
    ref = TensorRef(2, "f32", (SIZE,)), TensorRef(3, "f32", (SIZE,))
    host = HostSegment("Neg", (ref[0],), (ref[1],))
    whole = replace(whole, segments=(*whole.segments, host))
    part = Dependence(whole, kernels(f=(1,))).part({"v"})
    assert [type(s).__name__ for s in part.segments] == ["HostSegment"]
    assert part.buffers[part.segments[0].inputs[0].buffer].name == "v"


# --- memory ---------------------------------------------------------------------------------------


def test_parts_are_aligned_and_apart():
    parts = aligned_parts([0, 1, 63, 64, 65, 17 << 20, 3])
    spans = sorted((address(p), p.nbytes) for p in parts if p.nbytes)
    assert [p.nbytes for p in parts] == [0, 1, 63, 64, 65, 17 << 20, 3]
    assert all(start % ALIGNMENT == 0 for start, _ in spans)
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))


def test_memory_is_used_again_when_its_last_view_is_gone():
    memory = Recycler(1 << 20)
    (first,) = memory.parts([4096])
    view = first.view(np.float32)[3:7]
    where = address(first)
    del first
    gc.collect()
    assert memory.held == 0 and address(memory.parts([4096])[0]) != where, "a view is in use"
    del view
    gc.collect()
    assert memory.held == 2 * 4096
    again = memory.parts([4096, 4096])
    assert where in map(address, again) and memory.held == 0
    del again
    gc.collect()
    memory.release()
    assert memory.held == 0


def test_memory_beyond_the_limit_is_let_go():
    memory = Recycler(100)
    parts = memory.parts([64, 64])
    del parts
    gc.collect()
    assert memory.held == 64


def test_refits_reuse_memory_and_never_what_a_caller_holds():
    tested = engine(scaled(), {"w": np.ones(4, F)})
    tested.set_weights({"w": np.full(4, 2, F)})
    kept = tested.weight("w")
    for value in range(3, 12):
        tested.set_weights({"w": np.full(4, value, F)})
        np.testing.assert_array_equal(tested.run({"x": np.ones(8, F)})["y"], np.full(8, 2 * value, F))
    np.testing.assert_array_equal(kept, np.full(4, 2, F))
    tested.release_memory()
    np.testing.assert_array_equal(tested.run({"x": np.ones(8, F)})["y"], np.full(8, 22, F))


# --- all or nothing -------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_listed_at_once():
    plan = replace(scaled(), guards=(Guard("w", digest(ramp(4)), "Clip relied on its value [0 1 2 3]"),))
    tested = engine(plan, {"w": ramp(4)})
    with pytest.raises(RefitError) as caught:
        tested.set_weights({"ww": ramp(4), "w": ramp(4) + 1, "v": ramp(2)})
    text = str(caught.value)
    assert "3 problems, so no weight is changed" in text
    assert "'ww', float32 (4,), expected one of 1; did you mean 'w' (f32 (4,))?" in text
    assert "weight 'w': got a new value [1. 2. 3. 4.], expected the original one, because Clip relied on its value" in text


def test_narrower_floats_are_widened():
    tested = engine(scaled(), {"w": ramp(4)})
    tested.set_weights({"w": ramp(4).astype(np.float16) + 1})
    assert tested.weight("w").dtype == F
    np.testing.assert_array_equal(tested.weight("w"), ramp(4) + 1)
    with pytest.raises(RefitError, match="got int32"):
        tested.set_weights({"w": np.ones(4, np.int32)})


def test_an_undone_refit_is_the_very_set_from_before():
    tested = engine(scaled(), {"w": ramp(4)})
    before = tested._weights
    done = tested.set_weights({"w": ramp(4) + 1})
    assert tested.restore_weights(done) and tested._weights is before
    done = tested.set_weights({"w": ramp(4) + 1})
    tested.set_weights({"w": ramp(4) + 2})  # somebody else
    assert not tested.restore_weights(done)
    np.testing.assert_array_equal(tested.weight("w"), ramp(4))
