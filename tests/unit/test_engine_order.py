"""Lanes and waits: the order that they state, what must be ordered, and memory that follows it."""

import random
from dataclasses import replace

import pytest

from dovetail.core.errors import PlanFormatError
from dovetail.engine import codec, order
from dovetail.engine.check import check
from dovetail.engine.memory import lifetimes, place
from dovetail.engine.plan import Arg, NativeSegment, Port, Program, postfix
from tests.unit.cuda_engines import plan
from tests.unit.native_plans import N, buffer, step, tensor


def random_steps(rng, count, lanes):
    """Steps over random lanes with random waits."""
    steps = []
    for number in range(count):
        lane = rng.randrange(lanes)
        others = [i for i in range(number) if steps[i].lane != lane]
        waits = tuple(sorted(rng.sample(others, min(len(others), rng.choice([0, 0, 1, 1, 2])))))
        steps.append(step("k_double", 0, 1, lane=lane, waits=waits))
    return steps


def reach(steps):
    """Per step all that it follows, by walking."""
    found = []
    for number, one in enumerate(steps):
        ahead = {i for i in range(number) if steps[i].lane == one.lane} | set(one.waits)
        found.append(ahead.union(*(found[i] for i in ahead)))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_clocks_say_what_walking_says(seed):
    rng = random.Random(seed)
    steps = random_steps(rng, rng.randint(1, 40), rng.randint(1, 5))
    clocks, ahead = order.clocks(steps), reach(steps)
    for later in range(len(steps)):
        assert {i for i in range(later) if clocks.precedes(i, later)} == ahead[later]
    barriers = order.barriers(steps)
    open_ = 0
    for number, barrier in enumerate(barriers[:-1]):
        assert barrier == bool(ahead[number + 1] & set(range(open_, number + 1)))
        open_ = number + 1 if barrier else open_
    assert barriers[-1]


def random_program(rng):
    """x through random steps over many small buffers, each written before it is read; two steps are ordered only where they must be."""
    count = rng.randint(4, 30)
    buffers = [buffer(0, "input", N, name="x"), *(buffer(i, "arena", N) for i in range(1, count)), buffer(count, "output", N, name="y")]
    steps, written = [], [0]
    for target in range(1, count + 1):
        steps.append(step("k_add", rng.choice(written[-6:]), rng.choice(written[-6:]), target))
        written.append(target)
    lanes = rng.randint(2, 4)
    placed = []
    clocks = order.Clocks(lanes)
    for number, one in enumerate(steps):
        lane = rng.randrange(lanes)
        waits = []
        for other in range(number):
            read = {a.buffer for a in one.args[:2]}
            if steps[other].args[2].buffer in read and placed[other].lane != lane:
                waits.append(other)
        clocks.add(lane, waits)
        placed.append(replace(one, lane=lane, waits=tuple(waits)))
    return Program(tuple(buffers), (Port("x", tensor(0, N)),), (Port("y", tensor(count, N)),), (NativeSegment(tuple(placed)),))


@pytest.mark.parametrize("seed", range(30))
def test_steps_that_may_run_at_the_same_time_share_no_memory_that_one_of_them_writes(seed):
    rng = random.Random(seed)
    program = random_program(rng)
    made = plan(program)
    check(made)
    assert codec.loads(codec.dumps(made)) == made
    steps = program.segments[0].steps
    lives = lifetimes(program)
    arena = [b.id for b in program.buffers if b.kind == "arena" and b.id in lives]
    sizes = [64 * rng.randint(1, 9) for _ in arena]
    offsets, total = place(sizes, [lives[b] for b in arena])
    where = {b: (o, o + s) for b, o, s in zip(arena, offsets, sizes, strict=True)}
    ahead = reach(steps)
    shared = 0
    for j, later in enumerate(steps):
        for i, earlier in enumerate(steps[:j]):
            for p, a in enumerate(earlier.args):
                for q, b in enumerate(later.args):
                    if a.buffer in where and b.buffer in where and (p == 2 or q == 2):
                        (low, high), (start, end) = where[a.buffer], where[b.buffer]
                        if low < end and start < high:
                            assert i in ahead[j]
                            shared += a.buffer != b.buffer
    assert total <= sum(sizes)
    assert shared or total == sum(sizes)


def test_a_chain_beside_another_reuses_its_own_memory():
    # Two chains of five steps each over 64 bytes a buffer: each needs two buffers at a time, whatever the other does.
    buffers = [buffer(0, "input", N, name="x"), *(buffer(i, "arena", N) for i in range(1, 11)), buffer(11, "output", N, name="y")]
    chains = [
        [step("k_double", 0 if b in (1, 6) else b - 1, b, lane=lane) for b in ids] for lane, ids in enumerate((range(1, 6), range(6, 11)))
    ]
    mixed = [one for pair in zip(*chains, strict=True) for one in pair]
    program = Program(
        tuple(buffers), (Port("x", tensor(0, N)),), (Port("y", tensor(11, N)),),
        (NativeSegment((*mixed, step("k_add", 5, 10, 11, waits=(9,)))),),
    )  # fmt: skip
    check(plan(program))
    lives = lifetimes(program)
    assert place([64] * 10, [lives[b] for b in range(1, 11)])[1] == 4 * 64


# --- plans that contradict themselves -------------------------------------------------------------


def refused(*steps, kinds="aao", aliases=()):
    """The error of a plan of these steps over x (buffer 0) and arena or workspace buffers."""
    names = {"a": "arena", "w": "workspace", "c": "counters", "o": "output"}
    aliases = dict(aliases)
    buffers = [buffer(0, "input", N, name="x")]
    buffers += [
        buffer(i, names[k], N, dtype="i32" if k == "c" else "f32", name="y" if k == "o" else "", alias=aliases.get(i))
        for i, k in enumerate(kinds, 1)
    ]
    last = len(kinds)
    program = Program(tuple(buffers), (Port("x", tensor(0, N)),), (Port("y", tensor(last, N)),), (NativeSegment(steps),))
    with pytest.raises(PlanFormatError) as found:
        check(plan(program))
    return str(found.value)


def test_lanes_and_waits_are_in_range():
    first = step("k_double", 0, 1)
    assert "steps[1]: expected a lane of 0 to 7" in refused(first, step("k_double", 1, 3, lane=8))
    assert "a lane of 0 to 7" in refused(first, step("k_double", 1, 3, lane=-1))
    for waits in [(1,), (2,), (-1,), (0, 5)]:
        assert "waits for earlier steps of other lanes" in refused(first, step("k_double", 1, 3, lane=1, waits=waits))
    assert "waits for earlier steps of other lanes" in refused(first, step("k_double", 1, 3, waits=(0,)))
    assert "distinct waits in order" in refused(first, step("k_double", 1, 3, lane=1, waits=(0, 0)))


def test_what_is_read_is_written_before():
    assert "steps[1]: expected to follow step 0" in refused(step("k_double", 0, 1), step("k_double", 1, 3, lane=1))
    third = step("k_add", 1, 2, 3, waits=(1,))
    assert "steps[1]: expected to follow step 0" in refused(step("k_double", 0, 1), step("k_double", 1, 2, lane=1), third)


def test_what_is_overwritten_has_been_read():
    # Step 2 doubles buffer 1 in place while step 1 may still read it.
    first = (step("k_double", 0, 1), step("k_double", 1, 2, lane=1, waits=(0,)))
    last = step("k_add", 2, 3, 4, waits=(1,))
    assert "steps[2]: expected to follow step 1" in refused(*first, step("k_double", 1, 3), last, kinds="aaao", aliases={3: 1})


def test_nothing_is_written_twice_at_a_time():
    pair = (step("k_double", 0, 1), step("k_reverse", 0, 1, lane=1))
    last = step("k_double", 1, 2, waits=(1,))
    assert "steps[1]: expected to follow step 0" in refused(*pair, last, kinds="ao")
    parts = (step("k_double", 0, 1), step("k_reverse", 0, Arg(1, postfix(4 * N)), lane=1))  # beside each other, as in a concat
    program = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "arena", 2 * N), buffer(2, "output", N, name="y")),
        (Port("x", tensor(0, N)),), (Port("y", tensor(2, N)),), (NativeSegment((*parts, last)),),
    )  # fmt: skip
    check(plan(program))
    counted = (step("k_counted", 0, 1, 3), step("k_counted", 0, 2, 3, lane=1))
    assert "steps[1]: expected to follow step 0" in refused(*counted, step("k_add", 1, 2, 4, waits=(1,)), kinds="aaco")


def test_a_kernel_that_does_not_say_what_it_writes_may_write_anything():
    program = Program(
        (buffer(0, "input", N, name="x"), *(buffer(i, "arena", N) for i in (1, 2, 3)), buffer(4, "output", N, name="y")),
        (Port("x", tensor(0, N)),), (Port("y", tensor(4, N)),),
        (NativeSegment((
            step("k_double", 0, 1), step("k_double", 1, 2), step("k_reverse", 1, 3, lane=1, waits=(0,)), step("k_add", 2, 3, 4, waits=(2,)),
        )),),
    )  # fmt: skip
    made = plan(program)
    check(made)
    kernels = tuple(replace(k, writes=None) for k in made.kernels)
    with pytest.raises(PlanFormatError, match="to follow step 1"):
        check(replace(made, kernels=kernels))
    with pytest.raises(PlanFormatError, match="what it writes among its pointers"):
        check(replace(made, kernels=tuple(replace(k, writes=(k.pointers,)) for k in made.kernels)))
    with pytest.raises(PlanFormatError, match="distinct positions"):
        check(replace(made, kernels=tuple(replace(k, writes=(0, 0)) for k in made.kernels)))
