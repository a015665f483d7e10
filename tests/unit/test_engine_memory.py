"""Memory planning: lifetimes from segments, placement without overlap."""

import random

from dovetail.engine.memory import ALIGNMENT, Lifetime, lifetimes, lower_bound, place
from dovetail.engine.plan import NativeSegment, Port, Program
from tests.unit.native_plans import N, buffer, chain, step, tensor


def overlap(a, b):
    return a.first <= b.last and b.first <= a.last


def test_placement_never_overlaps_live_buffers_and_stays_near_the_bound():
    rng = random.Random(0)
    for _ in range(60):
        count = rng.randint(1, 40)
        lives = []
        for _ in range(count):
            first = rng.randint(0, 30)
            lives.append(Lifetime(first, first + rng.randint(0, 8)))
        sizes = [rng.choice([0, 1, 64, 100, 4096, rng.randint(1, 10_000)]) for _ in range(count)]
        offsets, total = place(sizes, lives)
        for i in range(count):
            assert offsets[i] % ALIGNMENT == 0 and offsets[i] + sizes[i] <= total
            for j in range(i):
                if overlap(lives[i], lives[j]) and sizes[i] and sizes[j]:
                    low, high = sorted((i, j), key=lambda k: offsets[k])
                    assert offsets[low] + sizes[low] <= offsets[high]
        bound = lower_bound(sizes, lives)
        assert bound <= total <= 2 * bound + ALIGNMENT


def test_an_inverted_bottleneck_reaches_the_bound():
    # Largest first leaves the last two apart: the narrow one has to lie where the wide one will not be.
    sizes = [1605632, 1605632, 802816, 2408448]
    lives = [Lifetime(2, 3), Lifetime(3, 4), Lifetime(4, 5), Lifetime(5, 6)]
    offsets, total = place(sizes, lives)
    assert total == lower_bound(sizes, lives) == 1605632 * 2
    assert place(sizes, lives) == (offsets, total)


def test_nothing_to_place():
    assert place([], []) == ([], 0)


def test_random_chains_with_residuals_need_a_tenth_more_than_the_bound_on_average_at_most():
    rng = random.Random(1)
    totals, bounds = [], []
    for _ in range(20):
        sizes, lives = [], []
        for position in range(60):
            sizes.append(rng.choice([1, 2, 3, 4, 6]) * 4096)
            lives.append(Lifetime(position, position + rng.choice([1, 1, 1, 1, 4, 9])))
        totals.append(place(sizes, lives)[1])
        bounds.append(lower_bound(sizes, lives))
    assert sum(totals) <= 1.1 * sum(bounds)


def test_a_chain_needs_two_buffers():
    program = chain(*["k_double"] * 10)
    lives = lifetimes(program)
    arena = [b.id for b in program.buffers if b.kind == "arena"]
    sizes = [4096] * len(arena)
    _, total = place(sizes, [lives[b] for b in arena])
    assert total == lower_bound(sizes, [lives[b] for b in arena]) == 2 * 4096


def test_in_place_chains_share_one_buffer():
    program = chain(*["k_double"] * 10, in_place=True)
    roots = {b for b in lifetimes(program) if program.buffers[b].kind == "arena"}
    assert len(roots) == 1


def test_lanes_keep_their_buffers_apart():
    def program(lane):
        return Program(
            (
                buffer(0, "input", N, name="x"),
                buffer(1, "arena", N),
                buffer(2, "arena", N),
                buffer(3, "output", N, name="y"),
            ),
            (Port("x", tensor(0, N)),),
            (Port("y", tensor(3, N)),),
            (
                NativeSegment(
                    (
                        step("k_double", 0, 1),
                        step("k_double", 1, 3),
                        step("k_double", 0, 2, lane=lane),
                    )
                ),
            ),
        )

    def total(lane):
        lives = lifetimes(program(lane))
        return place([64, 64], [lives[1], lives[2]])[1]

    assert (total(0), total(1)) == (64, 128)


def test_outputs_live_to_the_end():
    program = chain("k_double", "k_double", "k_double")
    lives = lifetimes(program)
    assert lives[1].last > max(life.last for b, life in lives.items() if b != 1)
