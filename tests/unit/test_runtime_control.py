"""Running plans: If, Loop, Scan; offsets and binaries of kernels."""


import numpy as np
import pytest

from dovetail import runtime
from dovetail.core.dims import sym
from dovetail.core.errors import (
    PlanFormatError,
)
from dovetail.engine.plan import (
    Arg,
    ControlSegment,
    HostSegment,
    NativeSegment,
    Port,
    Program,
    SymbolDef,
    postfix,
)
from tests.unit.native_engines import F, engine, ramp
from tests.unit.native_plans import (
    N,
    buffer,
    chain,
    plan,
    step,
    tensor,
)

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
