"""The worker pool: teams, barriers, concurrent callers, fork, the portable fallback."""

import os
import threading
import time

import numpy as np
import pytest

from dovetail.core.env import cpu_list
from dovetail.core.errors import DeviceError, UsageError
from dovetail.device.cpu import (
    HostLibrary,
    KernelLibrary,
    Pool,
    aligned_bytes,
    aligned_empty,
    set_affinity,
)
from dovetail.device.cpu import pool as process_pool
from dovetail.device.cpu.host import NO_BARRIER
from dovetail.device.cpu.memory import address
from tests.unit.native_plans import host_binary, kernel_binary


@pytest.fixture(scope="module")
def host():
    return HostLibrary.load(host_binary())


class Table:
    """`rounds` times: b = reverse(a), a = b + 1. Wrong without a barrier between the steps."""

    def __init__(self, n=4096, rounds=20, max_threads=0):
        self.library = KernelLibrary(kernel_binary())
        self.a, self.b = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
        self.forth = np.array([address(self.a), address(self.b)], np.uint64)
        self.back = np.array([address(self.b), address(self.a)], np.uint64)
        self.dims = np.array([n], np.int64)
        reverse, increment = map(self.library.address, ("k_reverse", "k_increment"))
        limit = max_threads << 32
        rows = [
            (reverse, address(self.forth), address(self.dims), limit),
            (increment, address(self.back), address(self.dims), limit),
        ] * rounds
        self.steps = np.array(rows, np.uint64)
        self.rounds = rounds

    def run(self, pool, threads, stamps=None):
        where = None if stamps is None else address(stamps)
        return pool.run(address(self.steps), len(self.steps), threads, where)

    def check(self, runs=1):
        start = np.arange(len(self.a), dtype=np.float32)
        turned = start if self.rounds * runs % 2 == 0 else start[::-1]
        np.testing.assert_array_equal(self.a, turned + self.rounds * runs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_run_in_order_on_every_team_size(host, threads):
    table = Table()
    team = table.run(process_pool(host), threads)
    assert 1 <= team <= threads
    table.check()


def test_idle_workers_are_taken(host):
    pool = Pool(host)
    try:
        assert Table(64, 1).run(pool, 3) == 3
        assert pool.workers == 2
    finally:
        pool.stop()


def test_steps_for_one_thread_between_wide_ones(host):
    table = Table(rounds=30)
    table.steps[1::4, 3] |= 1 << 32
    table.steps[2::4, 3] |= 1 << 32
    for _ in range(20):
        table.run(process_pool(host), 3)
    table.check(20)


def test_no_barrier_lets_independent_steps_overlap(host):
    table = Table(rounds=1)
    other = np.zeros_like(table.a)
    extra = np.array([address(table.a), address(other)], np.uint64)
    double = (table.library.address("k_double"), address(extra), address(table.dims), 0)
    rows = [*table.steps[:1].tolist(), double, *table.steps[1:].tolist()]
    rows[0][3] |= NO_BARRIER
    steps = np.array(rows, np.uint64)
    process_pool(host).run(address(steps), 3, 3)
    table.check()
    np.testing.assert_array_equal(other, 2 * np.arange(len(other), dtype=np.float32))


def test_stamps_rise_and_convert_to_nanoseconds(host):
    table = Table(rounds=3)
    stamps = np.zeros(7, np.int64)
    before = time.perf_counter_ns()
    table.run(process_pool(host), 2, stamps)
    took = time.perf_counter_ns() - before
    assert (np.diff(stamps) >= 0).all() and stamps[0] > 0
    assert 0 < (stamps[-1] - stamps[0]) * host.nanoseconds_per_tick() <= took * 1.5, "nanoseconds, not ticks or microseconds"


def test_concurrent_callers_share_the_pool_without_deadlock(host):
    errors = []

    def caller(threads):
        try:
            table = Table(500, 4)
            for _ in range(300):
                table.run(process_pool(host), threads)
            table.check(300)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=caller, args=(1 + i % 3,)) for i in range(5)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert not errors and not any(t.is_alive() for t in callers)


def test_a_stopped_pool_still_runs_on_the_caller(host):
    pool = Pool(host)
    Table().run(pool, 2)
    pool.stop()
    assert not any(t.is_alive() for t in pool._threads)
    table = Table()
    assert table.run(pool, 2) == 1
    table.check()


def test_workers_wake_after_sleeping(host):
    pool = Pool(host)
    try:
        for pause in (0, 0.005, 0.05):
            table = Table()
            table.run(pool, 3)
            table.check()
            time.sleep(pause)
    finally:
        pool.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_a_pool_of_its_own(host):
    Table().run(process_pool(host), 2)
    child = os.fork()
    if child == 0:
        try:
            table = Table()
            team = table.run(process_pool(host), 2)
            table.check()
            os._exit(0 if team == 2 else 2)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    Table().run(process_pool(host), 2)


def test_the_portable_pool_gives_the_same(host):
    pool = Pool(host, futex=False)
    try:
        for _ in range(5):
            table = Table()
            assert 1 <= table.run(pool, 3) <= 3
            table.check()
    finally:
        pool.stop()
    assert not any(t.is_alive() for t in pool._threads)


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "0,,1", "0 1"])
def test_affinity_that_is_no_list_is_refused(text):
    with pytest.raises(UsageError, match="expected CPU numbers and ranges"):
        cpu_list(text)


def test_affinity_lists():
    assert cpu_list("") == ()
    assert cpu_list("2, 0-1,5-5") == (2, 0, 1, 5)


def test_affinity_to_a_missing_cpu_is_refused():
    with pytest.raises(UsageError, match="which this process may use"):
        set_affinity([0, 100_000])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_affinity_pins_workers_only(host):
    mine = os.sched_getaffinity(0)
    pool = Pool(host, affinity=(min(mine),))
    try:
        table = Table()
        table.run(pool, 2)
        table.check()
        worker = pool._threads[0].native_id
        assert os.sched_getaffinity(worker) == {min(mine)}
        assert os.sched_getaffinity(0) == mine
    finally:
        pool.stop()


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_impossible_teams_are_refused(host, threads):
    with pytest.raises(UsageError, match="expected 1 to 64"):
        Pool(host).grow(threads)


def test_libraries_load_from_bytes_and_report_missing_kernels():
    libraries = [KernelLibrary(kernel_binary().read_bytes()) for _ in range(3)]
    assert len({library.address("k_add") for library in libraries}) == 3
    assert "k_nothing" not in libraries[0]
    with pytest.raises(DeviceError, match="no kernel 'k_nothing'"):
        libraries[0].address("k_nothing")
    with pytest.raises(DeviceError, match="cannot load"):
        KernelLibrary(b"not a library")


def test_a_kernel_library_is_no_host_library():
    with pytest.raises(DeviceError, match="expected a host library"):
        HostLibrary(kernel_binary())


@pytest.mark.parametrize("size", [0, 1, 63, 4096, (4 << 20) + 1])
def test_buffers_are_aligned_and_writable(size):
    buffer = aligned_bytes(size)
    buffer[:] = 7
    assert buffer.nbytes == size and (not size or address(buffer) % 64 == 0)
    array = aligned_empty((3, size // 3), np.dtype(np.float32))
    assert array.shape == (3, size // 3) and address(array) % 64 == 0 and array.flags.writeable


def test_address_agrees_with_the_array_interface():
    for array in (np.zeros(5), np.zeros((3, 4))[1:], np.zeros((2, 0)), np.array(1.0)):
        assert address(array) == array.__array_interface__["data"][0]
