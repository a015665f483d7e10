"""Contexts and threads on one engine on a GPU: results stay what one thread alone gets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dovetail
from models import zoo

THREADS, RUNS = 8, 60


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.load("dynamic_bert4")


@pytest.fixture(scope="module")
def engine(model: Any) -> dovetail.Engine:
    return dovetail.build(model, device="cuda", precision="fp16", verify="off", tune=False)


@pytest.fixture(scope="module")
def cases(model: Any, engine: dovetail.Engine) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    """Inputs of several shapes, and what the engine gives for them alone."""
    found = []
    for seed, (batch, seq) in enumerate(((1, 16), (2, 33), (3, 7), (1, 128), (4, 64), (1, 1))):
        feeds = zoo.inputs(model, batch=batch, seed=seed, seq=seq)
        found.append((feeds, {k: np.asarray(v).tobytes() for k, v in engine.run(feeds).items()}))
    return found


def together(work: Callable[[int], None]) -> None:
    """Run on all threads at once; raise what the first failure raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(THREADS)

    def body(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def compare(results: Any, wanted: dict[str, bytes]) -> None:
    for name, data in wanted.items():
        assert np.asarray(results[name]).tobytes() == data, name


def test_one_engine_many_threads(engine: dovetail.Engine, cases: Any) -> None:
    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(RUNS):
            feeds, wanted = cases[int(rng.integers(len(cases)))]
            compare(engine.run(feeds), wanted)

    together(work)


def test_contexts_of_their_own(engine: dovetail.Engine, cases: Any) -> None:
    def work(number: int) -> None:
        context = engine.context()
        for turn in range(RUNS):
            feeds, wanted = cases[(number + turn) % len(cases)]
            compare(context.run(feeds), wanted)

    together(work)


def test_contexts_come_and_go(engine: dovetail.Engine, cases: Any) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            feeds, wanted = cases[(number + turn) % len(cases)]
            compare(engine.context().run(feeds), wanted)

    together(work)


def test_refits_while_runs_are_queued(model: Any, cases: Any) -> None:
    """Memory of old weights serves again when no run that is queued reads it any more, whatever became of the run's context."""
    own = dovetail.build(model, device="cuda", precision="fp16", verify="off", tune=False)
    name = max((w for w in own.plan.weights if w.dtype == "f32" and len(w.shape) == 2), key=lambda w: w.shape[0]).name
    old = own.weight(name).copy()
    feeds, _ = cases[1]
    known = []
    for factor in (1, 2, 3):
        own.refit({name: old * factor})
        known.append({k: np.asarray(v).tobytes() for k, v in own.run(feeds).items()})
    assert known[0] != known[1] != known[2]
    for turn in range(40):
        own.refit({name: old * (1 + turn % 3)})
        pending = [own.run_async(feeds) for _ in range(6)]
        context = own._runtime.context()
        pending += [context.run_async(feeds) for _ in range(2)]
        del context
        own.refit({name: old * (1 + (turn + 1) % 3)})
        own.refit({name: old * (1 + (turn + 2) % 3)})
        for run in pending:
            assert {k: np.asarray(v).tobytes() for k, v in run.wait().items()} == known[turn % 3]


def test_refits_between_runs(model: Any, cases: Any) -> None:
    """Every run sees one set of weights, the old or the new, never a mixture."""
    own = dovetail.build(model, device="cuda", precision="fp16", verify="off", tune=False)
    name = max((w for w in own.plan.weights if w.dtype == "f32" and len(w.shape) == 2), key=lambda w: w.shape[0]).name
    old = own.weight(name).copy()
    feeds, wanted = cases[1]
    before = {k: np.asarray(v).tobytes() for k, v in own.run(feeds).items()}
    own.refit({name: old * 2})
    after = {k: np.asarray(v).tobytes() for k, v in own.run(feeds).items()}
    assert before == wanted and after != before
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            for turn in range(12):
                own.refit({name: old * (1 + turn % 2)})
            stop.set()
            return
        while not stop.is_set():
            got = {k: np.asarray(v).tobytes() for k, v in own.run(feeds).items()}
            assert got in (before, after)

    together(work)
