"""Running plans: shapes, bindings, arrays of other kinds, threads, unusual outputs."""

import gc
import os
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest

from dovetail.core.errors import (
    BindingError,
    ExecutionError,
    ShapeError,
    UsageError,
)
from dovetail.device.cpu.memory import address
from dovetail.engine.plan import (
    HostSegment,
    NativeSegment,
    Plan,
    Port,
    Program,
    Symbol,
    WeightSpec,
)
from tests.unit.native_engines import STEPS, F, engine, expected, ramp
from tests.unit.native_plans import (
    N,
    buffer,
    chain,
    plan,
    step,
    tensor,
)


@pytest.fixture(scope="module")
def simple():
    return engine(plan(chain(*STEPS)))


# --- shapes and bindings --------------------------------------------------------------------------


def test_dynamic_shapes_share_one_context(simple):
    context = simple.context()
    for n in (8, 1, 100_000, 0, 8, 33):
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], expected(ramp(n)))


def test_many_shapes_evict_old_bindings(simple):
    context = simple.context()
    for n in [*range(1, 40), 3, 2, 1]:
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], expected(ramp(n)))
    assert len(context._runner._stages) <= 16


@pytest.mark.parametrize("in_place", [False, True])
def test_results_are_bitwise_equal_for_every_team(in_place):
    steps = ["k_double", "k_increment", "k_double", "k_increment"] if in_place else STEPS
    tested = engine(plan(chain(*steps, in_place=in_place)))
    x = np.random.default_rng(0).standard_normal(10_001).astype(F)
    results = [tested.run({"x": x}, threads=t)["y"].tobytes() for t in (1, 2, 3, 1)]
    assert len(set(results)) == 1


def test_outputs_belong_to_the_caller(simple):
    first = simple.run({"x": ramp()})["y"]
    kept = first.copy()
    second = simple.run({"x": ramp() + 1})["y"]
    np.testing.assert_array_equal(first, kept)
    assert not np.may_share_memory(first, second)


def test_bound_outputs_are_filled_in_place(simple):
    y = np.empty(8, F)
    assert simple.run({"x": ramp()}, {"y": y})["y"] is y
    np.testing.assert_array_equal(y, expected(ramp()))


def test_a_warm_bound_run_keeps_no_memory(simple):
    import tracemalloc

    context, inputs, outputs = simple.context(), {"x": ramp()}, {"y": np.empty(8, F)}
    for _ in range(5):
        context.run(inputs, outputs, threads=1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            context.run(inputs, outputs, threads=1)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Free lists of the interpreter grow a little; a run that kept anything would show 1000 times.
    assert after - before < 16_000 and peak - before < 20_000


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, BindingError, r"got no 'x' among \[\], expected x"),
        ({"x": ramp(), "z": 1}, BindingError, r"got \['z'\], expected only x"),
        (
            {"x": ramp().astype(np.float64)},
            BindingError,
            "'x': got dtype float64, expected float32",
        ),
        ({"x": ramp().reshape(2, 4)}, ShapeError, r"'x': got rank 2 .* expected \(N\)"),
        ({"x": 3}, BindingError, "'x': got int, expected an array"),
        ({"x": "text"}, BindingError, "expected an array"),
        ({"x": ramp().astype(">f4")}, BindingError, "got dtype >f4"),
    ],
)
def test_wrong_inputs_say_what_was_expected(simple, inputs, error, message):
    with pytest.raises(error, match=message):
        simple.run(inputs)


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"q": np.empty(8, F)}, r"got \['q'\], expected some of y"),
        ({"y": np.empty(7, F)}, r"got shape \(7,\), expected \(8,\)"),
        ({"y": np.empty(8, np.float64)}, "got dtype float64"),
        ({"y": np.empty(16, F)[::2]}, "expected a C-contiguous array"),
        ({"y": read_only(np.empty(8, F))}, "read-only"),
    ],
)
def test_wrong_outputs_are_refused(simple, outputs, message):
    with pytest.raises(BindingError, match=message):
        simple.run({"x": ramp()}, outputs)


def test_outputs_may_not_overlap_inputs(simple):
    both = np.zeros(12, F)
    with pytest.raises(BindingError, match="overlaps another binding"):
        simple.run({"x": both[:8]}, {"y": both[4:]})


def test_symbols_must_agree_and_stay_in_bounds():
    main = Program(
        (
            buffer(0, "input", N, name="a"),
            buffer(1, "input", N, name="b"),
            buffer(2, "output", N, name="y"),
        ),
        (Port("a", tensor(0, N)), Port("b", tensor(1, N))),
        (Port("y", tensor(2, N)),),
        (NativeSegment((step("k_add", 0, 1, 2),)),),
    )
    tested = engine(Plan("cpu", main, (Symbol("N", 2, 9),), kernels=plan(main).kernels))
    np.testing.assert_array_equal(tested.run({"a": ramp(), "b": ramp()})["y"], 2 * ramp())
    with pytest.raises(ShapeError, match=r"'b'.* 8 on axis 0 because N = 8 from 'a' axis 0"):
        tested.run({"a": ramp(8), "b": ramp(7)})
    for n in (1, 10):
        with pytest.raises(ShapeError, match=rf"got {n} on axis 0 \(N\), expected 2 to 9"):
            tested.run({"a": ramp(n), "b": ramp(n)})


# --- arrays of other kinds ------------------------------------------------------------------------


class Exporter:
    """A DLPack exporter that is no NumPy array."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **kw):
        return self.array.__dlpack__(**kw)

    def __dlpack_device__(self):
        return self.device


@pytest.mark.parametrize(
    "wrap",
    [
        Exporter,
        memoryview,
        lambda a: np.repeat(a, 2)[::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: Exporter(np.repeat(a, 2)[::2]),
        read_only,
    ],
)
def test_arrays_of_any_kind_are_read(simple, wrap):
    np.testing.assert_array_equal(simple.run({"x": wrap(ramp())})["y"], expected(ramp()))


def test_dlpack_is_read_in_place_and_kept_alive():
    from dovetail.runtime.arrays import as_input

    source = ramp(1000)
    array = as_input("x", Exporter(source), np.dtype(F))
    assert address(array) == address(source)
    source_sum = source.sum()
    del source
    assert array.sum() == source_sum
    assert as_input("x", Exporter(np.zeros((0, 3), F)), np.dtype(F)).shape == (0, 3)


def test_other_devices_are_refused(simple):
    with pytest.raises(BindingError, match="device type 2, expected one in host memory"):
        simple.run({"x": Exporter(ramp(), (2, 0))})


# --- threads --------------------------------------------------------------------------------------


def test_any_number_of_threads_may_run_one_engine(simple):
    errors = []

    def work(seed):
        try:
            for i in range(60):
                x = ramp(10 + (seed * 7 + i) % 50) + seed
                np.testing.assert_array_equal(
                    simple.run({"x": x}, threads=1 + i % 3)["y"], expected(x)
                )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors


def test_a_context_refuses_a_second_thread(simple):
    context = simple.context()
    context._busy.acquire()
    with pytest.raises(ExecutionError, match="one thread per context"):
        context.run({"x": ramp()})
    context._busy.release()
    context.run({"x": ramp()})


def test_a_failed_run_leaves_the_context_usable(simple):
    context = simple.context()
    with pytest.raises(ShapeError):
        context.run({"x": np.zeros((2, 2), F)})
    np.testing.assert_array_equal(context.run({"x": ramp()})["y"], expected(ramp()))
    with pytest.raises(UsageError, match="threads: got 0"):
        context.run({"x": ramp()}, threads=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_engine_survives_a_fork(simple):
    context = simple.context()
    context.run({"x": ramp(1000)}, threads=2)
    child = os.fork()
    if child == 0:
        try:
            good = np.array_equal(
                context.run({"x": ramp(1000)}, threads=2)["y"], expected(ramp(1000))
            )
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- outputs that are not plain -------------------------------------------------------------------


def test_passed_through_repeated_and_static_outputs_are_copies():
    main = Program(
        (
            buffer(0, "input", N, name="x"),
            buffer(1, "output", N),
            buffer(2, "weight", 4, name="w"),
        ),
        (Port("x", tensor(0, N)),),
        (
            Port("same", tensor(0, N)),
            Port("y", tensor(1, N)),
            Port("again", tensor(1, N)),
            Port("w", tensor(2, 4)),
        ),
        (NativeSegment((step("k_double", 0, 1),)),),
    )
    tested = engine(plan(main, weights=(WeightSpec("w", "f32", (4,)),)), {"w": ramp(4)})
    x = ramp()
    result = tested.run({"x": x})
    np.testing.assert_array_equal(result["same"], x)
    np.testing.assert_array_equal(result["again"], 2 * x)
    np.testing.assert_array_equal(result["w"], ramp(4))
    arrays = [x, *result.values(), tested.weight("w")]
    for i, one in enumerate(arrays):
        for other in arrays[:i]:
            assert not np.may_share_memory(one, other)
    given = np.empty(8, F)
    assert tested.run({"x": x}, {"same": given})["same"] is given


def test_an_output_may_update_its_input():
    main = Program(
        (
            buffer(0, "input", N, name="cache"),
            buffer(1, "output", N, name="cache.new", alias=0),
        ),
        (Port("cache", tensor(0, N)),),
        (Port("cache.new", tensor(1, N)),),
        (NativeSegment((step("k_double", 0, 1),)),),
    )
    tested = engine(plan(main))
    cache = ramp()
    assert tested.run({"cache": cache})["cache.new"] is cache
    np.testing.assert_array_equal(cache, 2 * ramp())
    tested.run({"cache": cache}, {"cache.new": cache})
    np.testing.assert_array_equal(cache, 4 * ramp())
    with pytest.raises(BindingError, match="updates in place"):
        tested.run({"cache": cache}, {"cache.new": np.empty(8, F)})
    with pytest.raises(BindingError, match="must be copied"):
        tested.run({"cache": np.repeat(cache, 2)[::2]})
    with pytest.raises(BindingError, match="read-only"):
        tested.run({"cache": read_only(ramp())})


def test_padded_outputs_are_copied_out_dense():
    main = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "output", N * 2)),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(1, N, strides=(2,), offset=0)),),
        (HostSegment("Neg", (tensor(0, N),), (tensor(1, N, strides=(2,)),)),),
    )
    np.testing.assert_array_equal(engine(plan(main)).run({"x": ramp()})["y"], -ramp())


def test_half_floats_pass_host_steps():
    main = Program(
        (buffer(0, "input", N, dtype="bf16", name="x"), buffer(1, "output", N, dtype="bf16")),
        (Port("x", tensor(0, N, dtype="bf16")),),
        (Port("y", tensor(1, N, dtype="bf16")),),
        (HostSegment("Neg", (tensor(0, N, dtype="bf16"),), (tensor(1, N, dtype="bf16"),)),),
    )
    x = ramp().astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(engine(plan(main)).run({"x": x})["y"], -x)
    # As NumPy reads them back from a file, which has no name for them.
    np.testing.assert_array_equal(engine(plan(main)).run({"x": x.view("V2")})["y"], -x)
    with pytest.raises(BindingError, match="got dtype"):
        engine(plan(main)).run({"x": np.zeros(len(x), "V4")})


def test_an_engine_goes_with_its_last_reference():
    gc.collect()
    gc.disable()
    try:
        tested = engine(plan(chain(*STEPS)))
        tested.run({"x": ramp()})
        tested.profile({"x": ramp()})
        context, gone = tested.context(), weakref.ref(tested)
        del tested
        np.testing.assert_array_equal(context.run({"x": ramp()})["y"], expected(ramp()))
        assert gone() is context.engine
        del context
        assert gone() is None
    finally:
        gc.enable()
