"""Running plans: host steps, views, shapes that depend on data."""


import numpy as np
import pytest

from dovetail.core.dims import sym
from dovetail.core.dtypes import F32
from dovetail.core.errors import (
    BindingError,
    ExecutionError,
    PlanFormatError,
)
from dovetail.engine.plan import (
    HostSegment,
    NativeSegment,
    Port,
    Program,
    SymbolDef,
    Tap,
    attribute,
)
from tests.unit.native_engines import F, engine, ramp
from tests.unit.native_plans import (
    N,
    buffer,
    plan,
    step,
    tensor,
)

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
