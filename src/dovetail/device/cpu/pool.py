"""The worker pool: one per process, lazy, shared by all engines.

Workers are daemon Python threads. With futex (Linux on x86-64 and aarch64) each enters the native
loop once and stays there; elsewhere it waits on a Python condition variable and enters native code
per job. A run takes the workers that are idle, at least the calling thread, and never waits for
more, so engines and callers neither deadlock nor oversubscribe.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dovetail.core.env import env
from dovetail.core.errors import UsageError
from dovetail.device.cpu.host import HostLibrary
from dovetail.device.cpu.memory import address, aligned_bytes

MAX_THREADS = 64
"""Largest team; kernels size the scratch that threads do not share for it."""

_SPIN_S = 50e-6  # a few barriers' worth: longer only steals time from other processes
_START_S = 2.0  # how long a call waits for workers that it has just started


def default_threads() -> int:
    """The CPUs this process may use: its affinity mask, less a cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count or 1, math.ceil(int(quota) / int(period)))
    return max(1, min(count or 1, MAX_THREADS))


class Pool:
    """Worker threads for one process. Use `pool()`; construct one directly only in tests."""

    def __init__(
        self, host: HostLibrary, affinity: tuple[int, ...] = (), futex: bool = True
    ) -> None:
        self.host = host
        self.affinity = affinity
        self._futex = bool(host.has_futex()) and futex
        self._memory = aligned_bytes(host.pool_size())
        self._memory[:] = 0
        self._words = self._memory.view(np.uint32)
        self.address = address(self._memory)
        # On one CPU spinning only delays the thread that is waited for.
        tick = host.nanoseconds_per_tick(200_000) * 1e-9
        spin = int(_SPIN_S / tick) if tick and default_threads() > 1 else 0
        self._memory.view(np.uint64)[1] = spin
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._stopped = False
        self._fallback: list[_PortableWorker] = []

    @property
    def workers(self) -> int:
        """Threads started so far, the callers' own not counted."""
        return len(self._threads)

    def grow(self, threads: int) -> None:
        """Start workers so that a team of `threads` is possible; keeps those that exist.

        Raises:
            UsageError: more than `MAX_THREADS`, or fewer than one.
        """
        check_threads(threads)
        if threads - 1 <= len(self._threads):
            return
        with self._lock:
            if self._stopped:
                return
            for index in range(len(self._threads), threads - 1):
                name = f"dovetail-{index + 1}"
                if self._futex:
                    thread = threading.Thread(
                        target=self._work, args=(index,), name=name, daemon=True
                    )
                else:
                    worker = _PortableWorker(self.host, self._pin, index)
                    thread = threading.Thread(target=worker.work, name=name, daemon=True)
                    self._fallback.append(worker)
                thread.start()
                self._threads.append(thread)
            if self._futex:
                self._words[1] = len(self._threads)
                deadline = time.monotonic() + _START_S
                while self.host.present(self.address) < len(self._threads):
                    if time.monotonic() > deadline:  # a starved machine: go on with who is there
                        break
                    time.sleep(0.0002)

    def run(self, steps: int, n_steps: int, threads: int, stamps: int | None = None) -> int:
        """Run a step table and return the size of the team that ran it.

        `steps` is the address of `n_steps` steps of `STEP_WORDS` words; `stamps`, where given, that
        of `n_steps + 1` int64 which receive ticks: the start, then the end of every step.
        """
        if threads - 1 > len(self._threads):
            self.grow(threads)
        if self._futex:
            team: int = self.host.run(self.address, steps, n_steps, threads, stamps)
            return team
        return self._run_portable(steps, n_steps, threads, stamps)

    def stop(self) -> None:
        """Stop and join the workers; a later run has the calling thread only."""
        with self._lock:
            self._stopped = True
            if self._futex:
                self.host.stop(self.address)
            for worker in self._fallback:
                worker.stop()
            for thread in self._threads:
                thread.join()

    def _pin(self, index: int) -> None:
        if self.affinity and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {self.affinity[index % len(self.affinity)]})

    def _work(self, index: int) -> None:
        self._pin(index)
        self.host.worker(self.address, index)

    def _run_portable(self, steps: int, n_steps: int, threads: int, stamps: int | None) -> int:
        team: list[_PortableWorker] = []
        for worker in self._fallback:
            if len(team) + 1 >= threads:
                break
            if worker.idle.acquire(blocking=False):
                team.append(worker)
        memory = aligned_bytes(self.host.job_size())
        job = address(memory)
        self.host.job_init(job, steps, n_steps, len(team) + 1, stamps)
        for tid, worker in enumerate(team, 1):
            worker.start(job, tid)
        self.host.job_enter(job, 0)
        self.host.job_join(job)
        return len(team) + 1


class _PortableWorker:
    """A worker for systems without futex: sleeps in Python, works in native code."""

    def __init__(self, host: HostLibrary, pin: object, index: int) -> None:
        self._host, self._pin, self._index = host, pin, index
        self.idle = threading.Lock()
        self._wake = threading.Semaphore(0)
        self._job: tuple[int, int] | None = None

    def start(self, job: int, tid: int) -> None:
        self._job = (job, tid)
        self._wake.release()

    def stop(self) -> None:
        self.idle.acquire()  # a worker in a job finishes it first
        self._job = None
        self._wake.release()

    def work(self) -> None:
        if callable(self._pin):
            self._pin(self._index)
        while True:
            self._wake.acquire()
            if self._job is None:
                return
            job, tid = self._job
            self._host.job_enter(job, tid)
            self.idle.release()


def check_threads(threads: int) -> int:
    """`threads` if it is a possible team size.

    Raises:
        UsageError: it is not.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads: got {threads}, expected 1 to {MAX_THREADS}")
    return threads


class _Process:
    """What this process shares: the pool, its affinity, and the lock that guards both."""

    pool: Pool | None = None
    affinity: tuple[int, ...] | None = None  # None: as the environment says
    lock = threading.Lock()


def pool(host: HostLibrary) -> Pool:
    """The pool of this process, created on first use and again after a fork."""
    found = _Process.pool
    if found is None:
        with _Process.lock:
            if _Process.pool is None:
                asked = env().affinity if _Process.affinity is None else _Process.affinity
                _Process.pool = Pool(host, _usable(asked))
            found = _Process.pool
    return found


def set_affinity(cpus: Iterable[int]) -> None:
    """Pin worker threads to these CPUs, in turn; an empty list pins none. The calling thread stays as it is.

    It holds for all engines of this process, which share their workers, and goes before DOVETAIL_AFFINITY. Runs in progress
    finish first.

    Raises:
        UsageError: a CPU that this process may not use.
    """
    wanted = _usable(tuple(cpus))
    with _Process.lock:
        _Process.affinity = wanted
        old, _Process.pool = _Process.pool, None
    if old is not None:
        old.stop()


def _usable(cpus: tuple[int, ...]) -> tuple[int, ...]:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    if missing := sorted(set(cpus) - allowed):
        raise UsageError(f"affinity: got CPU {missing[0]}, expected some of {sorted(allowed)}, which this process may use")
    return cpus


def _stop_at_exit() -> None:
    if _Process.pool is not None:
        _Process.pool.stop()


def _forget_after_fork() -> None:
    """The child has none of its parent's threads; its lock may have been held by one of them."""
    _Process.pool = None
    _Process.lock = threading.Lock()


atexit.register(_stop_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
