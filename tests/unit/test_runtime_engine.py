"""Running plans: shapes, bindings, threads, refit, taps, profiles, host steps, control flow."""

import os
import threading

import ml_dtypes
import numpy as np
import pytest

from dovetail import runtime
from dovetail.core.dims import sym
from dovetail.core.dtypes import F32
from dovetail.core.env import override
from dovetail.core.errors import (
    BindingError,
    ExecutionError,
    PlanFormatError,
    RefitError,
    ShapeError,
    UsageError,
)
from dovetail.device.cpu.memory import address
from dovetail.engine.plan import (
    Arg,
    ControlSegment,
    Guard,
    HostSegment,
    NativeSegment,
    Plan,
    Port,
    Program,
    Symbol,
    SymbolDef,
    Tap,
    WeightSpec,
    attribute,
    digest,
    postfix,
)
from tests.unit.native_plans import (
    N,
    buffer,
    chain,
    host_binary,
    kernel_binary,
    plan,
    scaled,
    step,
    tensor,
)

F = np.float32


def engine(program, weights=None, threads=None):
    return runtime.open(
        program, kernels=[kernel_binary()], host=host_binary(), weights=weights, threads=threads
    )


def ramp(n=8):
    return np.arange(n, dtype=F)


STEPS = ("k_double", "k_increment", "k_reverse", "k_double", "k_copy")


def expected(x):
    return (2 * (2 * x + 1))[::-1]


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
        ({}, BindingError, "got no 'x', expected x"),
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


# --- weights --------------------------------------------------------------------------------------


def test_refit_changes_all_later_runs_and_no_earlier_result():
    weights = {"w": ramp(4)}
    tested = engine(scaled(), weights)
    context = tested.context()
    x = np.ones(8, F)
    first = context.run({"x": x})["y"]
    new = np.full(4, 5, F)
    tested.set_weights({"w": new})
    new[:] = 99  # the engine has its own copy
    np.testing.assert_array_equal(context.run({"x": x})["y"], np.full(8, 10, F))
    np.testing.assert_array_equal(first, np.tile(2 * ramp(4), 2))
    np.testing.assert_array_equal(tested.weight("w"), np.full(4, 5, F))
    with pytest.raises(ValueError, match="read-only"):
        tested.weight("w")[0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ww": ramp(4)}, "got the weight 'ww', .*did you mean 'w'"),
        ({"w": ramp(5)}, r"weight 'w': got float32 \(5,\), expected float32 \(4,\)"),
        ({"w": np.zeros(4)}, "got float64"),
    ],
)
def test_refit_is_all_or_nothing(changes, message):
    tested = engine(scaled(), {"w": ramp(4)})
    before = tested.run({"x": np.ones(8, F)})["y"]
    with pytest.raises(RefitError, match=message):
        tested.set_weights({"w": np.full(4, 7, F), **changes})
    np.testing.assert_array_equal(tested.run({"x": np.ones(8, F)})["y"], before)


def test_guarded_weights_must_keep_their_value():
    from dataclasses import replace

    guard = Guard("w", digest(ramp(4)), "Clip's bounds were read from it")
    tested = engine(replace(scaled(), guards=(guard,)), {"w": ramp(4)})
    tested.set_weights({"w": ramp(4)})
    with pytest.raises(RefitError, match="because Clip's bounds were read from it; rebuild"):
        tested.set_weights({"w": ramp(4) + 1})


def test_runs_pin_their_weights_while_others_refit():
    tested = engine(scaled(), {"w": np.ones(4, F)})
    errors, stop = [], threading.Event()

    def runner():
        context = tested.context()
        while not stop.is_set():
            y = context.run({"x": np.ones(400, F)})["y"]
            if len(set(y.tolist())) != 1:
                errors.append(set(y.tolist()))

    threads = [threading.Thread(target=runner) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(100):
        tested.set_weights({"w": np.full(4, i, F)})
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors


def test_old_weights_are_freed():
    import gc
    import weakref

    tested = engine(scaled(), {"w": np.ones(4, F)})
    tested.run({"x": np.ones(8, F)})
    old = weakref.ref(tested._weights)
    tested.set_weights({"w": np.zeros(4, F)})
    gc.collect()
    assert old() is None


def test_missing_weights_are_named():
    with pytest.raises(RefitError, match="got no 'w'"):
        engine(scaled())


# --- profiles, taps, NaN --------------------------------------------------------------------------


def test_profiles_name_steps_and_times(simple):
    outputs, records = simple.profile({"x": ramp(100_000)})
    np.testing.assert_array_equal(outputs["y"], expected(ramp(100_000)))
    assert [r.kernel for r in records] == list(STEPS)
    assert [r.origin for r in records] == [(f"node{i}",) for i in range(5)]
    assert records[0].tactic == "tactic0" and all(0 < r.nanoseconds < 1e9 for r in records)


@pytest.mark.parametrize("in_place", [False, True])
def test_taps_copy_values_between_steps(in_place):
    steps = ("k_double", "k_increment", "k_double", "k_increment")
    tested = engine(plan(chain(*steps, in_place=in_place)))
    x = ramp()
    outputs, taps = tested.tap({"x": x}, ["value0", "value2", "value3"], threads=2)
    np.testing.assert_array_equal(taps["value0"][0], 2 * x)
    np.testing.assert_array_equal(taps["value2"][0], 2 * (2 * x + 1))
    np.testing.assert_array_equal(taps["value3"][0], outputs["y"])
    np.testing.assert_array_equal(outputs["y"], tested.run({"x": x})["y"])
    with pytest.raises(BindingError, match="nowhere"):
        tested.tap({"x": x}, ["nowhere"])


def test_the_first_nan_is_named():
    tested = engine(plan(chain("k_double", "k_increment")))
    x = ramp()
    x[3] = np.nan
    with pytest.raises(ExecutionError, match="node0: got 1 NaN of 8 elements in 'value0'"):
        tested.check_nan({"x": x})
    with override(check_nan=True), pytest.raises(ExecutionError, match="node0"):
        tested.run({"x": x})
    tested.run({"x": x})


# --- host steps -----------------------------------------------------------------------------------


def with_host(op, attrs=None, out=N, dtype="f32", kind="arena"):
    """x → double → host op → copy → y."""
    return Program(
        (
            buffer(0, "input", N, name="x"),
            buffer(1, "arena", N),
            buffer(2, kind, out, dtype=dtype),
            buffer(3, "output", out, dtype=dtype, name="y"),
        ),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(3, out, dtype=dtype)),),
        (
            NativeSegment((step("k_double", 0, 1),)),
            HostSegment(
                op, (tensor(1, N),), (tensor(2, out, dtype=dtype),), attrs or {}, (), ("host node",)
            ),
            NativeSegment((step("k_copy", 2, 3, dims=(out,)),)),
        ),
        (Tap("t", tensor(2, out, dtype=dtype), 1),),
    )


@pytest.mark.parametrize("kind", ["arena", "host"])
def test_host_steps_stand_between_segments(kind):
    tested = engine(plan(with_host("Neg", kind=kind)))
    np.testing.assert_array_equal(tested.run({"x": ramp()})["y"], -2 * ramp())
    _, records = tested.profile({"x": ramp()})
    assert [(r.kind, r.kernel) for r in records] == [
        ("native", "k_double"), ("host", "Neg"), ("native", "k_copy"),
    ]  # fmt: skip
    assert records[1].origin == ("host node",)
    np.testing.assert_array_equal(tested.tap({"x": ramp()}, ["t"])[1]["t"][0], -2 * ramp())


def test_host_attributes_are_evaluated():
    tested = engine(plan(with_host("Tile", {"repeats": attribute((N,))}, out=N * N)))
    np.testing.assert_array_equal(tested.run({"x": ramp(3)})["y"], np.tile(2 * ramp(3), 3))


def test_failures_of_host_steps_name_the_node():
    tested = engine(plan(with_host("Reshape", {"shape": (3, 3)})))
    with pytest.raises(ExecutionError, match="host node: "):
        tested.run({"x": ramp(8)})
    tested = engine(plan(with_host("Neg", out=N + 1)))
    with pytest.raises(ExecutionError, match=r"host node: the host step returned .* \(8,\), exp"):
        tested.run({"x": ramp(8)})


def test_views_reach_strided_parts_of_a_buffer():
    main = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "arena", 2 * N), buffer(2, "output", N)),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(2, N)),),
        (
            HostSegment("Neg", (tensor(0, N),), (tensor(1, N, strides=(2,)),)),
            HostSegment("Exp", (tensor(0, N),), (tensor(1, N, strides=(2,), offset=1),)),
            HostSegment("Neg", (tensor(1, N, strides=(2,)),), (tensor(2, N),)),
        ),
        (Tap("pairs", tensor(1, N, 2), 1),),
    )
    tested = engine(plan(main))
    x = ramp(5)
    y, taps = tested.tap({"x": x}, ["pairs"])
    np.testing.assert_array_equal(y["y"], x)
    np.testing.assert_array_equal(taps["pairs"][0][:, 0], -x)
    np.testing.assert_allclose(taps["pairs"][0][:, 1], np.exp(x), rtol=1e-6)


def test_views_may_not_leave_their_buffer():
    main = with_host("Neg")
    segment = HostSegment("Neg", (tensor(1, N, offset=1),), (tensor(2, N),))
    broken = Program(
        main.buffers, main.inputs, main.outputs, (main.segments[0], segment, main.segments[2])
    )
    with pytest.raises(PlanFormatError, match="leaves buffer"):
        engine(plan(broken)).run({"x": ramp()})


def test_data_dependent_shapes_bind_the_next_stage():
    u = sym("u0")
    main = Program(
        (
            buffer(0, "input", N, name="x"),
            buffer(1, "host", u, dtype="i64"),
            buffer(2, "arena", u, dtype="f32"),
            buffer(3, "arena", u, dtype="f32"),
            buffer(4, "output", u, dtype="f32"),
        ),
        (Port("x", tensor(0, N)),),
        (Port("indices", tensor(1, 1, u, dtype="i64")), Port("y", tensor(4, u))),
        (
            HostSegment(
                "NonZero",
                (tensor(0, N),),
                (tensor(1, 1, u, dtype="i64"),),
                defines=(SymbolDef("u0", 1, 0),),
            ),
            HostSegment(
                "Cast",
                (tensor(1, u, dtype="i64"),),
                (tensor(2, u),),
                {"to": F32},
            ),
            NativeSegment(
                (
                    step("k_double", 2, 3, dims=(u,)),
                    step("k_increment", 3, 4, dims=(u,), origin=("last",)),
                )
            ),
        ),
    )
    context = engine(plan(main)).context()
    for values in ([1, 0, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1], [0, 5, 0, 6]):
        x = np.array(values, F)
        result = context.run({"x": x})
        (indices,) = np.nonzero(x)
        np.testing.assert_array_equal(result["indices"], [indices])
        np.testing.assert_array_equal(result["y"], 2 * indices + 1)
    y = np.empty(4, F)
    assert context.run({"x": np.ones(4, F)}, {"y": y})["y"] is y


def bound(values_dtype="i64"):
    """y = first u0 elements of x, where u0 is the value of n."""
    u = sym("u0")
    return Program(
        (
            buffer(0, "input", N, name="x"),
            buffer(1, "input", 1, dtype=values_dtype, name="n"),
            buffer(2, "output", u),
        ),
        (Port("x", tensor(0, N)), Port("n", tensor(1, 1, dtype=values_dtype))),
        (Port("y", tensor(2, u)),),
        (
            HostSegment(
                "BindSymbols",
                (tensor(1, 1, dtype=values_dtype),),
                (),
                defines=(SymbolDef("u0", 0),),
                origin=("reshape",),
            ),
            NativeSegment((step("k_double", 0, 2, dims=(u,)),)),
        ),
    )


def test_symbols_are_read_from_data():
    tested = engine(plan(bound()))
    for n in (3, 8, 0, 3):
        y = tested.run({"x": ramp(), "n": np.array([n])})["y"]
        np.testing.assert_array_equal(y, 2 * ramp()[:n])
    with pytest.raises(ExecutionError, match="reshape: got -1 for the dimension u0"):
        tested.run({"x": ramp(), "n": np.array([-1])})


def test_host_values_are_freed_after_their_last_use(monkeypatch):
    """A chain of host values: when the last one is made, only its input is still alive."""
    import weakref

    from dovetail import reference

    alive, counts = [], []

    def make(x):
        counts.append(sum(ref() is not None for ref in alive))
        result = x + 1
        alive.append(weakref.ref(result))
        return result

    monkeypatch.setattr(reference, "lookup", lambda name: make)
    buffers = [buffer(0, "input", N), *(buffer(i, "host", N) for i in range(1, 7))]
    main = Program(
        tuple(buffers),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(6, N)),),
        tuple(HostSegment("Step", (tensor(i, N),), (tensor(i + 1, N),)) for i in range(6)),
    )
    np.testing.assert_array_equal(engine(plan(main)).run({"x": ramp()})["y"], ramp() + 6)
    assert counts == [0, 1, 1, 1, 1, 1]


def test_a_symbol_may_come_from_a_dying_host_value():
    u = sym("u0")
    main = Program(
        (
            buffer(0, "input", 1, dtype="i64"),
            buffer(1, "host", 1, dtype="i64"),
            buffer(2, "host", u),
        ),
        (Port("n", tensor(0, 1, dtype="i64")),),
        (Port("y", tensor(2, u)),),
        (
            HostSegment("Neg", (tensor(0, 1, dtype="i64"),), (tensor(1, 1, dtype="i64"),)),
            HostSegment(
                "BindSymbols", (tensor(1, 1, dtype="i64"),), (), defines=(SymbolDef("u0", 0),)
            ),
            HostSegment(
                "Full", (), (tensor(2, u),), {"shape": attribute((u,)), "value": 1.0, "dtype": F32}
            ),
        ),
    )
    y = engine(plan(main)).run({"n": np.array([-3])})["y"]
    np.testing.assert_array_equal(y, np.ones(3, F))


def test_strings_pass_through_host_steps():
    main = Program(
        (buffer(0, "input", N, dtype="str", name="x"), buffer(1, "host", N, dtype="str")),
        (Port("x", tensor(0, N, dtype="str")),),
        (Port("y", tensor(1, N, dtype="str")),),
        (
            HostSegment(
                "StringNormalizer",
                (tensor(0, N, dtype="str"),),
                (tensor(1, N, dtype="str"),),
                {"case_change_action": "UPPER"},
            ),
        ),
    )
    tested = engine(plan(main))
    for x in (np.array(["a", "bc"]), np.array(["a", "bc"], object)):
        assert tested.run({"x": x})["y"].tolist() == ["A", "BC"]
    with pytest.raises(BindingError, match="expected strings"):
        tested.run({"x": ramp()})


def test_shape_results_are_computed_once_per_binding():
    shapes = Program(
        (buffer(0, "host", N, dtype="f32"), buffer(1, "output", N)),
        (),
        (Port("table", tensor(1, N)),),
        (
            HostSegment(
                "Full",
                (),
                (tensor(0, N),),
                {
                    "shape": attribute((N,)),
                    "value": 3.0,
                    "dtype": F32,
                },
            ),
            HostSegment("Neg", (tensor(0, N),), (tensor(1, N),)),
        ),
    )
    main = Program(
        (
            buffer(0, "input", N, name="x"),
            buffer(1, "shape", N, name="table"),
            buffer(2, "output", N),
        ),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(2, N)),),
        (NativeSegment((step("k_add", 0, 1, 2),)),),
    )
    tested = engine(plan(main, shapes_program=shapes))
    for n in (4, 9, 4):
        np.testing.assert_array_equal(tested.run({"x": ramp(n)})["y"], ramp(n) - 3)


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


# --- control flow ---------------------------------------------------------------------------------


def region(*kernels, extra=()):
    """A region x (N) → kernels → y, after the inputs in `extra`."""
    inner = chain(*kernels)
    count = len(inner.buffers)
    buffers = [*inner.buffers]
    ports = []
    for i, (name, dtype) in enumerate(extra):
        buffers.append(buffer(count + i, "input", 1, dtype=dtype, name=name))
        ports.append(Port(name, tensor(count + i, dtype=dtype)))
    return Program(
        tuple(buffers), (*ports, *inner.inputs), inner.outputs, inner.segments, inner.taps
    )


def test_if_takes_one_branch():
    main = Program(
        (
            buffer(0, "input", 1, dtype="bool", name="c"),
            buffer(1, "input", N, name="x"),
            buffer(2, "host", N),
            buffer(3, "output", N),
        ),
        (Port("c", tensor(0, dtype="bool")), Port("x", tensor(1, N))),
        (Port("y", tensor(3, N)),),
        (
            ControlSegment(
                "If",
                (region("k_double"), region("k_increment", "k_reverse")),
                (tensor(0, dtype="bool"), tensor(1, N)),
                (tensor(2, N),),
            ),
            NativeSegment((step("k_copy", 2, 3),)),
        ),
    )
    tested = engine(plan(main))
    for c, want in ((True, 2 * ramp()), (False, (ramp() + 1)[::-1])):
        np.testing.assert_array_equal(tested.run({"c": np.array(c), "x": ramp()})["y"], want)
    _, taps = tested.tap({"c": np.array(False), "x": ramp()}, ["value0"])
    np.testing.assert_array_equal(taps["value0"][0], ramp() + 1)


def loop_plan():
    """state = 2 * state + 0 … n times; collects each state."""
    inner = region("k_double", extra=(("i", "i64"), ("c", "bool")))
    body = Program(
        inner.buffers,
        inner.inputs,
        (Port("c", tensor(3, dtype="bool")), *inner.outputs, Port("scan", tensor(1, N))),
        inner.segments,
        inner.taps,
    )
    trips = sym("u0")
    main = Program(
        (
            buffer(0, "input", 1, dtype="i64", name="n"),
            buffer(1, "input", N, name="x"),
            buffer(2, "host", N),
            buffer(3, "host", trips * N),
        ),
        (Port("n", tensor(0, dtype="i64")), Port("x", tensor(1, N))),
        (Port("y", tensor(2, N)), Port("all", tensor(3, trips, N))),
        (
            ControlSegment(
                "Loop",
                (body,),
                (tensor(0, dtype="i64"), None, tensor(1, N)),
                (tensor(2, N), tensor(3, trips, N)),
                carried=1,
                defines=(SymbolDef("u0", 0, 1),),
                origin=("loop",),
            ),
        ),
    )
    return plan(main)


def test_loops_carry_and_collect():
    tested = engine(loop_plan())
    for n in (1, 5, 3):
        result = tested.run({"n": np.array(n), "x": ramp()})
        np.testing.assert_array_equal(result["y"], 2.0**n * ramp())
        want = [2.0**i * ramp() for i in range(1, n + 1)]
        np.testing.assert_array_equal(result["all"], want)
    _, taps = tested.tap({"n": np.array(4), "x": ramp()}, ["value0"])
    assert len(taps["value0"]) == 4


def test_scans_slice_and_stack():
    body = Program(
        (
            buffer(0, "input", N),
            buffer(1, "input", N),
            buffer(2, "output", N),
        ),
        (Port("state", tensor(0, N)), Port("slice", tensor(1, N))),
        (Port("state", tensor(2, N)), Port("sum", tensor(2, N))),
        (NativeSegment((step("k_add", 0, 1, 2),)),),
    )
    m = sym("M")
    main = Program(
        (
            buffer(0, "input", N, name="s"),
            buffer(1, "input", N * m, name="x"),
            buffer(2, "arena", N),
            buffer(3, "output", N),
            buffer(4, "output", N * m),
        ),
        (Port("s", tensor(0, N)), Port("x", tensor(1, N, m))),
        (Port("last", tensor(3, N)), Port("sums", tensor(4, m, N))),
        (
            ControlSegment(
                "Scan",
                (body,),
                (tensor(0, N), tensor(1, N, m)),
                (tensor(2, N), tensor(4, m, N)),
                carried=1,
                scan_inputs=1,
                scan_input_axes=(1,),
                scan_input_directions=(1,),
                scan_output_axes=(0,),
                scan_output_directions=(0,),
            ),
            NativeSegment((step("k_copy", 2, 3),)),
        ),
    )
    tested = engine(plan(main, symbols=("N", "M")))
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(F)
    result = tested.run({"s": np.zeros(4, F), "x": x})
    want = np.cumsum(x[:, ::-1], 1).T
    np.testing.assert_allclose(result["sums"], want, rtol=1e-6)
    np.testing.assert_allclose(result["last"], want[-1], rtol=1e-6)


def test_regions_of_changing_shape_bind_each_time():
    """state = concat(state, state) for n iterations: the region's own symbol grows."""
    k, trips = sym("K"), sym("u1")
    body = Program(
        (
            buffer(0, "input", 1, dtype="i64"),
            buffer(1, "input", 1, dtype="bool"),
            buffer(2, "input", k),
            buffer(3, "host", 2 * k),
        ),
        (
            Port("i", tensor(0, dtype="i64")),
            Port("c", tensor(1, dtype="bool")),
            Port("s", tensor(2, k)),
        ),
        (Port("c", tensor(1, dtype="bool")), Port("s", tensor(3, 2 * k))),
        (HostSegment("Concat", (tensor(2, k), tensor(2, k)), (tensor(3, 2 * k),), {"axis": 0}),),
    )
    main = Program(
        (
            buffer(0, "input", 1, dtype="i64", name="n"),
            buffer(1, "input", N, name="x"),
            buffer(2, "host", trips),
        ),
        (Port("n", tensor(0, dtype="i64")), Port("x", tensor(1, N))),
        (Port("y", tensor(2, trips)),),
        (
            ControlSegment(
                "Loop",
                (body,),
                (tensor(0, dtype="i64"), None, tensor(1, N)),
                (tensor(2, trips),),
                carried=1,
                defines=(SymbolDef("u1", 0, 0),),
            ),
        ),
    )
    tested = engine(plan(main))
    for n in (0, 1, 4):
        y = tested.run({"n": np.array(n), "x": ramp(3)})["y"]
        np.testing.assert_array_equal(y, np.tile(ramp(3), 2**n))


def test_kernel_offsets_are_bytes():
    main = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "output", N)),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(1, N)),),
        (
            NativeSegment(
                (
                    step("k_copy", 0, Arg(1), dims=(1,)),
                    step("k_double", Arg(0, (4,)), Arg(1, postfix(4 + 0 * N)), dims=(N - 1,)),
                )
            ),
        ),
    )
    assert engine(plan(main)).run({"x": ramp(4)})["y"].tolist() == [0, 2, 4, 6]


def test_missing_binaries_are_named():
    with pytest.raises(PlanFormatError, match="got no binary for the kernel"):
        runtime.open(plan(chain("k_double")))
