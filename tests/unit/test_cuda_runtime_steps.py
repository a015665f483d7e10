"""Steps of CUDA plans beside plain kernels: library calls, loops, steps in streams of their own."""

import gc
from dataclasses import replace

import numpy as np
import pytest

from dovetail.core.dims import sym
from dovetail.core.errors import (
    DeviceError,
)
from dovetail.device.cuda import libraries
from dovetail.engine.plan import (
    ControlSegment,
    KernelRef,
    NativeSegment,
    Port,
    Program,
    SymbolDef,
)
from dovetail.runtime.cuda.arrays import DeviceArray
from tests.unit import cuda_engines
from tests.unit.cuda_engines import (
    buffer,
    chain,
    engine,
    host_driver,
    plan,
    step,
    tensor,
)
from tests.unit.native_engines import F, ramp
from tests.unit.native_plans import N

# --- libraries ------------------------------------------------------------------------------------


class _Doubled:
    """A library call that doubles."""

    workspace = 1000

    def __init__(self, driver, call, dims):
        assert call == {"what": "double"}
        self.driver, self.n = driver, dims[0]

    def launch(self, pointers, workspace, stream):
        source, target = pointers

        def work():
            self.driver.view(workspace, self.workspace)[:] = 1
            self.driver.view(target, 4 * self.n).view(F)[:] = 2 * self.driver.view(source, 4 * self.n).view(F)

        self.driver._queue(stream, work)


def _with_library(names=("k_increment", "k_library", "k_increment")):
    kernels = (*cuda_engines.KERNELS, KernelRef("k_library", 2, 1, library="cublaslt", call={"what": "double"}))
    made = chain(*names)
    steps = tuple(replace(s, grid=((1,), (1,), (1,)) if s.kernel != "k_library" else ()) for s in made.segments[0].steps)
    main = replace(made, segments=(NativeSegment(steps),))
    fixed = plan(replace(main, segments=()))
    return replace(fixed, main=replace(main, segments=(NativeSegment(tuple(_gridded(s) for s in steps)),)), kernels=kernels)


def _gridded(one):
    return one if one.kernel == "k_library" else replace(one, grid=(cuda_engines._grid(one)[0], (1,), (1,)))


def test_library_calls_run_between_kernels(monkeypatch):
    monkeypatch.setattr(libraries, "_prepared", {})
    libraries.register("cublaslt", _Doubled)
    driver = host_driver()
    context = engine(_with_library(), driver=driver).context()
    for n in (8, 8, 8, 3, 3):
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], 2 * (ramp(n) + 1) + 1)
        np.testing.assert_array_equal(context.run({"x": DeviceArray.of(driver, ramp(n))})["y"].numpy(), 2 * (ramp(n) + 1) + 1)
    _, records = context.engine.profile({"x": ramp()})
    assert [r.kernel for r in records] == ["k_increment", "k_library", "k_increment"]


def test_library_calls_start_when_the_kernel_ahead_has_ended(monkeypatch):
    monkeypatch.setattr(libraries, "_prepared", {})
    order = []

    class Noted(_Doubled):
        def launch(self, pointers, workspace, stream):
            order.append("call")
            super().launch(pointers, workspace, stream)

    libraries.register("cublaslt", Noted)
    driver = host_driver()
    for name in ("fence", "launch"):
        inner = getattr(driver, name)
        monkeypatch.setattr(driver, name, lambda *a, inner=inner, name=name: (order.append(name), inner(*a))[1])
    context = engine(_with_library(), driver=driver).context()
    for _ in range(2):  # one by one, then captured
        order.clear()
        context.run({"x": ramp()})
        assert order == ["launch", "fence", "call", "launch"]


def test_library_calls_read_and_write_in_one_place(monkeypatch):
    monkeypatch.setattr(libraries, "_prepared", {})
    libraries.register("cublaslt", _Doubled)
    driver = host_driver()
    context = engine(_with_library(("k_library", "k_increment", "k_library")), driver=driver).context()
    x, y = DeviceArray.of(driver, ramp()), DeviceArray.of(driver, ramp())
    for _ in range(4):
        context.run({"x": x}, {"y": y})
        np.testing.assert_array_equal(y.numpy(), 2 * (2 * ramp() + 1))
    assert driver.log["end_capture"] == 1 and "copy" not in driver.log  # in place, as long as nothing moves
    alive = []
    for i in range(6):
        alive.append(DeviceArray.of(driver, ramp() + i))
        found = context.run({"x": alive[-1]})["y"]
        np.testing.assert_array_equal(found.numpy(), 2 * (2 * (ramp() + i) + 1))
        alive.append(found)
        np.testing.assert_array_equal(context.run({"x": ramp()})["y"], 2 * (2 * ramp() + 1))
    assert driver.log["end_capture"] == 2


def test_library_calls_beside_each_other_have_a_workspace_each(monkeypatch):
    monkeypatch.setattr(libraries, "_prepared", {})
    libraries.register("cublaslt", _Doubled)
    seen = []
    launch = _Doubled.launch

    def noted(self, pointers, workspace, stream):
        seen.append((workspace, stream))
        launch(self, pointers, workspace, stream)

    monkeypatch.setattr(_Doubled, "launch", noted)
    steps = (
        step("k_library", 0, 1), step("k_library", 0, 2, lane=1), step("k_library", 2, 3, lane=1),
        _gridded(step("k_add", 1, 3, 4, waits=(2,))),
    )  # fmt: skip
    main = Program(
        (buffer(0, "input", N, name="x"), *(buffer(i, "arena", N) for i in (1, 2, 3)), buffer(4, "output", N, name="y")),
        (Port("x", tensor(0, N)),), (Port("y", tensor(4, N)),), (NativeSegment(steps),),
    )  # fmt: skip
    made = _with_library()
    context = engine(replace(made, main=main)).context()
    for _ in range(3):
        np.testing.assert_array_equal(context.run({"x": ramp(9)})["y"], 6 * ramp(9))
    (first, _), (second, _), (third, _) = seen[:3]
    assert second == third and abs(first - second) >= _Doubled.workspace
    own = context.queue.own
    assert [stream == own for _, stream in seen] == [True, True, True, True, False, False]  # launched one by one, then captured


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setattr(libraries, "_prepared", {})
    monkeypatch.setattr(libraries, "_MODULES", {"cublaslt": "dovetail.device.cuda.no_such_module"})
    tested = engine(_with_library())
    with pytest.raises(DeviceError, match="the engine calls the library 'cublaslt', which cannot be used here"):
        tested.run({"x": ramp()})


# --- control flow ---------------------------------------------------------------------------------


def _loop(scanned):
    """state = 2 * state + x, n times; `scanned` collects the states."""
    body = Program(
        (buffer(0, "input", 1, dtype="i64", name="i"), buffer(1, "input", 1, dtype="bool", name="c"), buffer(2, "input", N, name="s"),
         buffer(3, "input", N, name="x"), buffer(4, "arena", N), buffer(5, "output", N)),
        (Port("i", tensor(0, dtype="i64")), Port("c", tensor(1, dtype="bool")), Port("s", tensor(2, N)), Port("x", tensor(3, N))),
        (Port("more", tensor(1, dtype="bool")), Port("state", tensor(5, N)), *([Port("seen", tensor(4, N))] if scanned else [])),
        (NativeSegment((step("k_double", 2, 4), step("k_add", 4, 3, 5))),),
    )  # fmt: skip
    outputs = (tensor(3, N), tensor(4, sym("trips"), N)) if scanned else (tensor(3, N),)
    defines = (SymbolDef("trips", 0, 1),) if scanned else ()
    main = Program(
        (buffer(0, "input", 1, dtype="i64", name="n"), buffer(1, "input", N, name="x"), buffer(2, "arena", N), buffer(3, "host", N),
         buffer(4, "host", sym("trips") * N if scanned else N), buffer(5, "output", N)),
        (Port("n", tensor(0, dtype="i64")), Port("x", tensor(1, N))),
        (Port("y", tensor(5, N)), *([Port("seen", tensor(4, sym("trips"), N))] if scanned else [])),
        (NativeSegment((step("k_increment", 1, 2),)),
         ControlSegment("Loop", (body,), (tensor(0, dtype="i64"), None, tensor(2, N), tensor(1, N)), outputs, carried=1, defines=defines),
         NativeSegment((step("k_copy", 3, 5),))),
    )  # fmt: skip
    return plan(main)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("count", [3, 3000])
def test_loops_keep_their_state_on_the_device(scanned, count):
    driver = host_driver()
    tested = engine(_loop(scanned), driver=driver)
    for trips in (5, 1, 7) if scanned else (5, 0, 1, 7):  # no trip tells symbolic extents of what it would have collected
        x = ramp(count)
        state, seen = x + 1, []
        for _ in range(trips):
            seen.append(2 * state)
            state = 2 * state + x
        for given in (x, DeviceArray.of(driver, x)):
            found = tested.run({"n": np.array(trips), "x": given})
            np.testing.assert_array_equal(np.asarray(found["y"] if given is x else found["y"].numpy()), state)
            if scanned:
                values = found["seen"] if given is x else found["seen"].numpy()
                np.testing.assert_array_equal(values, np.array(seen, F).reshape(trips, count))
    gc.collect()
    log = dict(driver.log)
    x = DeviceArray.of(driver, ramp(count))
    uploads = driver.log["upload"]
    y = tested.run({"n": np.array(50), "x": x})
    gc.collect()
    if not scanned:
        assert driver.log["download"] == log["download"]
        assert driver.log["upload"] == uploads  # iteration numbers and conditions are for the host alone
        assert driver.allocations < 20
    assert isinstance(y["y"], DeviceArray)


# --- steps beside each other ----------------------------------------------------------------------


def test_lanes_are_captured_in_streams_of_their_own():
    main = Program(
        (buffer(0, "input", N, name="x"), *(buffer(i, "arena", N) for i in range(1, 5)), buffer(5, "output", N)),
        (Port("x", tensor(0, N)),), (Port("y", tensor(5, N)),),
        (NativeSegment((
            step("k_increment", 0, 1),
            step("k_double", 1, 2), step("k_reverse", 1, 3, lane=1, waits=(0,)), step("k_copy", 1, 4, lane=2, waits=(0,)),
            step("k_add", 2, 3, 2, waits=(2,)), step("k_add", 2, 4, 5, waits=(3,)),
        )),),
    )  # fmt: skip
    driver, seen = host_driver(), []
    launch = driver.launch
    driver.launch = lambda one, stream: (seen.append((one.pdl, stream)), launch(one, stream))[1]
    context = engine(plan(main), driver=driver).context()
    for n in (6, 6, 6, 9, 9):
        x = ramp(n) + 1
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], 2 * x + x[::-1] + x)
        on_device = DeviceArray.of(driver, ramp(n))
        np.testing.assert_array_equal(context.run({"x": on_device})["y"].numpy(), 2 * x + x[::-1] + x)
    own = context.queue.own
    # One after the other in the first run; in the graph a kernel starts early only where all that it follows is the one ahead.
    assert [pdl for pdl, _ in seen[:6]] == [False, True, True, True, True, True]
    assert [pdl for pdl, _ in seen[6:12]] == [False, True, False, False, False, False]
    captured = [stream for _, stream in seen[6:12]]
    assert captured == [own, own, captured[2], captured[3], own, own]
    assert len({own, captured[2], captured[3]}) == 3
