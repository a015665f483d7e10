"""Arrays of callers and of the device: kinds, streams, bindings, the order of axes."""

import gc

import numpy as np
import pytest

from dovetail.core.errors import (
    BindingError,
    ExecutionError,
    ShapeError,
    UsageError,
)
from dovetail.engine.plan import (
    HostSegment,
    NativeSegment,
    Port,
    Program,
    postfix,
)
from dovetail.runtime.cuda.arrays import DeviceArray
from tests.unit.cuda_engines import (
    buffer,
    chain,
    engine,
    from_cpu,
    host_driver,
    plan,
    scaled,
    step,
    tensor,
)
from tests.unit.native_engines import STEPS, F, expected, ramp
from tests.unit.native_plans import N

RNG = np.random.default_rng(0)

# --- arrays on the device -------------------------------------------------------------------------


class Interface:
    """Somebody's array, known by `__cuda_array_interface__` alone."""

    def __init__(self, array, **changes):
        self.array = array
        self.changes = changes

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__cuda_array_interface__, **self.changes}


def test_results_are_of_the_inputs_kind():
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    x = DeviceArray.of(driver, ramp())
    y = tested.run({"x": x})["y"]
    assert isinstance(y, DeviceArray) and y.dtype == F and y.shape == (8,)
    np.testing.assert_array_equal(y.numpy(), expected(ramp()))
    assert isinstance(tested.run({"x": ramp()})["y"], np.ndarray)
    assert isinstance(tested.run({"x": Interface(x)})["y"], DeviceArray)
    out = np.empty(8, F)
    assert tested.run({"x": x}, {"y": out})["y"] is out
    np.testing.assert_array_equal(out, expected(ramp()))
    bound = DeviceArray.of(driver, np.zeros(8, F))
    assert tested.run({"x": ramp()}, {"y": bound})["y"] is bound
    np.testing.assert_array_equal(bound.numpy(), expected(ramp()))


def test_arrays_that_are_not_aligned_are_copied():
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    big, out = DeviceArray.of(driver, ramp(9)), DeviceArray.of(driver, np.zeros(9, F))
    for _ in range(3):
        shifted = Interface(big, data=(big.address + 4, False), shape=(8,))
        target = Interface(out, data=(out.address + 4, False), shape=(8,))
        tested.run({"x": shifted}, {"y": target})
    np.testing.assert_array_equal(out.numpy(), [0, *expected(ramp(9)[1:])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (8,), "shape": (4,)}, r"input 'x': got strides \(2,\) of shape \(4,\), expected a contiguous"),
        ({"typestr": "<f8"}, "input 'x': got dtype float64, expected float32"),
        ({"typestr": "<V4"}, "input 'x': got dtype"),
        ({"shape": (8, 1)}, "input 'x': got rank 2"),
        ({"data": (64, False)}, "input 'x': got an array in host memory, expected one on cuda:0, where the engine is"),
    ],
)
def test_unusable_device_arrays(changes, message):
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    x = DeviceArray.of(driver, ramp())
    with pytest.raises((BindingError, ShapeError), match=message):
        tested.run({"x": Interface(x, **changes)})
    np.testing.assert_array_equal(tested.run({"x": x})["y"].numpy(), expected(ramp()))


def test_outputs_on_the_device_are_checked():
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    x = DeviceArray.of(driver, ramp())
    with pytest.raises(BindingError, match=r"output 'y': got shape \(3,\), expected \(8,\)"):
        tested.run({"x": x}, {"y": DeviceArray.of(driver, ramp(3))})
    with pytest.raises(BindingError, match="output 'y': got memory that overlaps another binding"):
        tested.run({"x": x}, {"y": x})
    with pytest.raises(BindingError, match="output 'y': got dtype int32"):
        tested.run({"x": x}, {"y": DeviceArray.of(driver, np.zeros(8, np.int32))})
    with pytest.raises(BindingError, match="outputs: got"):
        tested.run({"x": x}, {"z": x})


def test_host_steps_read_and_write_arrays_on_the_device():
    main = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "arena", N), buffer(2, "output", N)),
        (Port("x", tensor(0, N)),), (Port("y", tensor(2, N)),),
        (HostSegment("Neg", (tensor(0, N),), (tensor(1, N),)), NativeSegment((step("k_double", 1, 2),)),
         HostSegment("Neg", (tensor(2, N),), (tensor(2, N),))),
    )  # fmt: skip
    driver = host_driver()
    tested = engine(plan(main), driver=driver)
    x = DeviceArray.of(driver, ramp())
    for _ in range(3):
        np.testing.assert_array_equal(tested.run({"x": x})["y"].numpy(), 2 * ramp())
        np.testing.assert_array_equal(tested.run({"x": ramp()})["y"], 2 * ramp())


def test_an_output_that_updates_its_input_in_place():
    main = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "output", N, alias=0)),
        (Port("x", tensor(0, N)),), (Port("y", tensor(1, N)),),
        (NativeSegment((step("k_double", 0, 1),)),),
    )  # fmt: skip
    driver = host_driver()
    tested = engine(plan(main), driver=driver)
    x = ramp()
    assert tested.run({"x": x})["y"] is x
    np.testing.assert_array_equal(x, 2 * ramp())
    on_device = DeviceArray.of(driver, ramp())
    for i in range(3):
        assert tested.run({"x": on_device})["y"] is on_device
        np.testing.assert_array_equal(on_device.numpy(), 2 ** (i + 1) * ramp())
    with pytest.raises(BindingError, match="got an array of its own, expected the one bound to input 'x'"):
        tested.run({"x": on_device}, {"y": DeviceArray.of(driver, ramp())})


# --- streams --------------------------------------------------------------------------------------


class Stream:
    def __init__(self, handle):
        self.cuda_stream = handle


def test_streams_of_any_package():
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    x = DeviceArray.of(driver, ramp())
    for stream in (7, Stream(7), 0):
        y = tested.run({"x": x}, stream=stream)["y"]
        np.testing.assert_array_equal(y.numpy(), expected(ramp()))
        np.testing.assert_array_equal(tested.run({"x": ramp()}, stream=stream)["y"], expected(ramp()))
    with pytest.raises(UsageError, match="stream: got str, expected an int handle"):
        tested.run({"x": x}, stream="default")


def test_device_results_in_a_stream_are_not_waited_for():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    x = DeviceArray.of(driver, ramp())
    context.run({"x": x}, stream=7)
    before = driver.log.get("synchronize", 0), driver.log.get("synchronize_event", 0)
    for _ in range(3):
        context.run({"x": x}, stream=7)
    assert (driver.log.get("synchronize", 0), driver.log.get("synchronize_event", 0)) == before
    waits = driver.log["wait"]
    context.run({"x": x}, stream=8)  # another stream waits for the last one, on the device
    assert driver.log["wait"] == waits + 1
    assert (driver.log.get("synchronize", 0), driver.log.get("synchronize_event", 0)) == before


def test_large_arrays_go_around_the_staging_memory(monkeypatch):
    from dovetail.runtime.cuda import queue

    monkeypatch.setattr(queue, "_STAGED", 4096)
    context = engine(plan(chain(*STEPS))).context()
    for n in (8, 5000, 700, 5000, 8, 1024):
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], expected(ramp(n)))
        np.testing.assert_array_equal(context.run_async({"x": ramp(n)}).wait()["y"], expected(ramp(n)))


def test_asynchronous_runs_are_complete_after_wait():
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    pending = tested.run_async({"x": ramp()})
    np.testing.assert_array_equal(pending.wait()["y"], expected(ramp()))
    assert pending.done
    context = tested.context()
    several = [context.run_async({"x": ramp() + i}) for i in range(4)]
    for i, one in enumerate(several):
        np.testing.assert_array_equal(one.wait()["y"], expected(ramp() + i))
    x = DeviceArray.of(driver, ramp())
    np.testing.assert_array_equal(context.run_async({"x": x}, stream=7).wait()["y"].numpy(), expected(ramp()))


def test_a_run_becomes_part_of_the_callers_graph():
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    x, y = DeviceArray.of(driver, np.zeros(8, F)), DeviceArray.of(driver, np.zeros(8, F))
    with driver.active():
        driver.begin_capture(9)
    result = tested.run({"x": x}, {"y": y}, stream=9)
    assert result["y"] is y
    with driver.active():
        graph = driver.end_capture(9)
    assert len(graph.work) == len(STEPS)
    for i in range(3):
        # Other runs have other memory, and other graphs.
        np.testing.assert_array_equal(tested.run({"x": ramp()})["y"], expected(ramp()))
        with driver.active():
            driver.upload(x.address, ramp() + i, 9)
            driver.launch_graph(graph, 9)
        np.testing.assert_array_equal(y.numpy(), expected(ramp() + i))


def test_what_cannot_be_captured_says_why():
    driver = host_driver()
    host = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "output", N)),
        (Port("x", tensor(0, N)),), (Port("y", tensor(1, N)),),
        (HostSegment("Neg", (tensor(0, N),), (tensor(1, N),), origin=("negation",)),),
    )  # fmt: skip
    x = DeviceArray.of(driver, ramp())
    with driver.active():
        driver.begin_capture(9)
    with pytest.raises(ExecutionError, match=r"capture: .* the node negation \(Neg\) runs on the host"):
        engine(plan(host), driver=driver).run({"x": x}, stream=9)
    tested = engine(plan(chain(*STEPS)), driver=driver)
    with pytest.raises(BindingError, match="input 'x': got an array in host memory"):
        tested.run({"x": ramp()}, stream=9)
    with pytest.raises(BindingError, match="output 'y': got an array in host memory"):
        tested.run({"x": x}, {"y": np.empty(8, F)}, stream=9)
    with driver.active():
        driver.abandon_capture(9)
    np.testing.assert_array_equal(tested.run({"x": x})["y"].numpy(), expected(ramp()))


def test_streams_are_for_a_gpu():
    from tests.unit import native_engines, native_plans

    on_cpu = native_engines.engine(native_plans.plan(native_plans.chain(*STEPS)))
    with pytest.raises(UsageError, match="stream: got one for an engine on the CPU"):
        on_cpu.run({"x": ramp()}, stream=3)
    with pytest.raises(UsageError, match="run_async"):
        on_cpu.run_async({"x": ramp()})


# --- bound arrays ---------------------------------------------------------------------------------


def test_bound_arrays_are_read_and_written_by_every_run():
    driver = host_driver()
    tested = engine(from_cpu(scaled()), {"w": ramp(4)}, driver=driver)
    context = tested.context()
    x, y = DeviceArray.of(driver, ramp()), DeviceArray.of(driver, np.zeros(8, F))
    binding = context.bind({"x": x}, {"y": y})
    for weights in (ramp(4), np.full(4, 3, F)):
        tested.set_weights({"w": weights})
        for i in range(3):
            with driver.active():
                driver.upload(x.address, ramp() + i, 0)
            assert binding.run(7 if i else None)["y"] is y
            np.testing.assert_array_equal(y.numpy(), (ramp() + i) * np.tile(2 * weights, 2))
            # Other runs of the context, of larger shapes, leave the binding alone.
            np.testing.assert_array_equal(context.run({"x": np.ones(64 * 4**i, F)})["y"][:4], 2 * weights)


def test_what_cannot_be_bound():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    x = DeviceArray.of(driver, ramp())
    with pytest.raises(BindingError, match="bind: got ndarray for 'x', expected an array on cuda:0"):
        context.bind({"x": ramp()}, {"y": x})
    with pytest.raises(BindingError, match="bind: got NoneType for 'y'"):
        context.bind({"x": x}, {})


def test_contexts_of_asynchronous_runs_serve_others_after_the_wait():
    tested = engine(plan(chain(*STEPS)))
    first = tested.run_async({"x": ramp()})
    second = tested.run_async({"x": ramp() + 1})
    np.testing.assert_array_equal(tested.run({"x": ramp() + 2})["y"], expected(ramp() + 2))
    assert len(tested._contexts) == 1
    np.testing.assert_array_equal(second.wait()["y"], expected(ramp() + 1))
    assert len(tested._contexts) == 2
    np.testing.assert_array_equal(first.wait()["y"], expected(ramp()))
    np.testing.assert_array_equal(first.wait()["y"], expected(ramp()))
    assert len(tested._contexts) == 3
    del first, second
    gc.collect()
    assert len(tested._contexts) == 3


# --- the caller's order of axes -------------------------------------------------------------------


def test_ports_in_another_order_take_and_give_the_callers_axes():
    from dovetail.engine.plan import TensorRef

    shape = (postfix(N), (2,), (4,), (3,))
    order = (0, 2, 3, 1)
    n = N * 24
    main = Program(
        (buffer(0, "input", n, name="x"), buffer(1, "output", n)),
        (Port("x", TensorRef(0, "f32", shape), order),), (Port("y", TensorRef(1, "f32", shape), order),),
        (NativeSegment((step("k_double", 0, 1, dims=(n,)),)),),
    )  # fmt: skip
    driver = host_driver()
    tested = engine(plan(main), driver=driver)
    for count in (1, 2, 5):
        image = RNG.standard_normal((count, 3, 2, 4)).astype(F)  # as the caller sees it
        last = np.ascontiguousarray(image.transpose(order))
        for given in (image, last.transpose(0, 3, 1, 2)):
            y = tested.run({"x": given})["y"]
            np.testing.assert_array_equal(y, 2 * image)
        on_device = DeviceArray.of(driver, last).transpose((0, 3, 1, 2))
        assert on_device.shape == image.shape
        y = tested.run({"x": on_device})["y"]
        assert y.shape == image.shape and y.strides == on_device.strides
        np.testing.assert_array_equal(y.numpy(), 2 * image)
        bound = DeviceArray.of(driver, np.zeros_like(last)).transpose((0, 3, 1, 2))
        assert tested.run({"x": on_device}, {"y": bound})["y"] is bound
        np.testing.assert_array_equal(bound.numpy(), 2 * image)
    with pytest.raises(BindingError, match=r"expected one whose axes lie in the order \(0, 2, 3, 1\) in memory"):
        tested.run({"x": DeviceArray.of(driver, image)})
    with pytest.raises(ShapeError, match="got rank 3"):
        tested.run({"x": DeviceArray.of(driver, image[0])})


def test_captured_runs_keep_the_memory_of_arrays_that_are_not_aligned():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    x, y = DeviceArray.of(driver, np.zeros(9, F)), DeviceArray.of(driver, np.zeros(9, F))
    with driver.active():
        driver.begin_capture(9)
    given = {name: Interface(a, data=(a.address + 4, False), shape=(8,), strides=None) for name, a in (("x", x), ("y", y))}
    context.run({"x": given["x"]}, {"y": given["y"]}, stream=9)
    with driver.active():
        graph = driver.end_capture(9)
    for n in (8, 500, 100_000):  # grows arena and slots
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], expected(ramp(n)))
        gc.collect()
        with driver.active():
            driver.upload(x.address, ramp(9) + n, 9)
            driver.launch_graph(graph, 9)
        np.testing.assert_array_equal(y.numpy(), [0, *expected(ramp(9)[1:] + n)])


# --- memory goes back with the last reference -----------------------------------------------------


@pytest.fixture
def no_collections():
    """Only references count: what a cycle holds stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_engines_and_contexts_that_go_leave_nothing_on_the_device(no_collections):
    driver = host_driver()
    x = DeviceArray.of(driver, ramp())
    before = driver.allocations

    def used():
        tested = engine(plan(chain(*STEPS)), driver=driver)
        for n in (5, 4000, 5):
            tested.run({"x": ramp(n)})
        tested.run_async({"x": ramp()}).wait()
        tested.run_async({"x": ramp()})
        tested.profile({"x": ramp()})
        y = tested.run({"x": x})["y"]
        context = tested.context()
        context.bind({"x": x}, {"y": y}).run()
        return tested, context

    tested, context = used()
    del tested
    np.testing.assert_array_equal(context.run({"x": ramp()})["y"], expected(ramp()))
    assert context.engine.device == "cuda:0", "a context keeps its engine"
    del context
    assert driver.allocations == before
    tested = engine(plan(chain(*STEPS)), driver=driver)
    with driver.active():
        driver.begin_capture(9)
    tested.run({"x": x}, {"y": DeviceArray.of(driver, ramp())}, stream=9)
    with driver.active():
        driver.end_capture(9)
    assert driver.allocations > before, "the graph needs it as long as the engine is there"
    del tested
    assert driver.allocations == before
    assert driver.log["create_stream"] == driver.log["destroy_stream"]
