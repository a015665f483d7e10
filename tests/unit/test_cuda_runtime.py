"""The runtime of CUDA engines on a driver that runs kernels on host memory: all that the CPU runtime does, and what only a GPU has."""

import gc
import importlib
import inspect
import threading
from dataclasses import replace

import numpy as np
import pytest

from dovetail.core.dims import sym
from dovetail.core.errors import (
    BindingError,
    DeviceError,
    ExecutionError,
    PlanFormatError,
    ShapeError,
    UsageError,
)
from dovetail.device.cuda import libraries
from dovetail.engine.plan import (
    Arg,
    ControlSegment,
    HostSegment,
    KernelRef,
    NativeSegment,
    Port,
    Program,
    Symbol,
    SymbolDef,
    TensorMapArg,
    postfix,
)
from dovetail.runtime.cuda import code
from dovetail.runtime.cuda.arrays import DeviceArray, is_device_array
from tests.unit import cuda_engines
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

# --- what the CPU runtime does --------------------------------------------------------------------

_MODULES = [importlib.import_module(f"tests.unit.test_runtime_{name}") for name in ("engine", "control", "host", "weights")]
# About threads and shared objects, which only the CPU has, or about arrays on a GPU, which are welcome here.
_OTHER = {"test_other_devices_are_refused"}


def _cases():
    for module in _MODULES:
        for name, function in vars(module).items():
            if name.startswith("test_") and name not in _OTHER:
                given = inspect.signature(function).parameters
                if "simple" not in given and "engine(" not in inspect.getsource(function):
                    continue
                for number, values in enumerate(_parameters(function)):
                    if set(given) <= {*values, "monkeypatch", "simple"}:
                        # Values have addresses and uninitialised memory in their text: workers must agree on the names.
                        yield pytest.param(module, name, values, id=f"{name.removeprefix('test_')}-{number}")


def _parameters(function):
    """What `parametrize` gives a test, as keyword arguments."""
    found = [{}]
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            names, rows = mark.args
            names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
            found = [{**one, **dict(zip(names, row if len(names) > 1 else [row], strict=True))} for one in found for row in rows]
    return found


def _engine(cpu_plan, weights=None, threads=None):
    return engine(from_cpu(cpu_plan), weights, threads=threads)


@pytest.mark.parametrize(("module", "name", "values"), list(_cases()))
def test_as_on_the_cpu(module, name, values, monkeypatch):
    function = getattr(module, name)
    monkeypatch.setattr(module, "engine", _engine)
    given = inspect.signature(function).parameters
    if "monkeypatch" in given:
        values = {**values, "monkeypatch": monkeypatch}
    if "simple" in given:
        values = {**values, "simple": engine(plan(chain(*STEPS)))}
    function(**values)


# --- graphs ---------------------------------------------------------------------------------------


def test_the_second_run_of_a_shape_captures_and_later_ones_replay():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    for run in range(5):
        np.testing.assert_array_equal(context.run({"x": ramp()})["y"], expected(ramp()))
        assert driver.log.get("end_capture", 0) == (run > 0)
        assert driver.log.get("launch_graph", 0) == run
    assert driver.log["launch"] == 2 * len(STEPS)
    assert "update" not in driver.log  # arrays on the host go through memory that stays where it is


def test_graphs_follow_arrays_that_move():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    arrays = [DeviceArray.of(driver, ramp() + i) for i in range(6)]
    for i, x in enumerate(arrays):
        y = context.run({"x": x})["y"]
        np.testing.assert_array_equal(y.numpy(), expected(ramp() + i))
    assert driver.log["end_capture"] == 1
    assert driver.log["update"] > 0
    assert driver.log.get("copy", 0) == 0  # read and written in place


def test_bindings_are_bounded():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    for _ in range(2):
        for n in range(1, 60):
            for _ in range(2):
                np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], expected(ramp(n)))
    assert len(context._runner._stages) <= 16
    gc.collect()
    alive = driver.log["end_capture"] - driver.log["destroy_graph"]
    assert 0 < alive <= 16
    assert driver.allocations <= 4  # one arena, one slot per input and output


def test_a_larger_shape_replaces_the_arena():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    for n in (5, 5, 4000, 4000, 5, 4000, 5):
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], expected(ramp(n)))
    gc.collect()
    assert driver.allocations == 3


def test_contexts_give_their_memory_back():
    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    before = driver.allocations
    context = tested.context()
    context.run({"x": ramp()})
    assert driver.allocations > before
    streams = driver.log["create_stream"] - driver.log.get("destroy_stream", 0)
    del context
    gc.collect()
    assert driver.allocations == before
    assert driver.log["create_stream"] - driver.log["destroy_stream"] == streams - 1


def test_only_kernels_behind_kernels_start_early():
    seen = []
    driver = host_driver()
    launch = driver.launch
    driver.launch = lambda one, stream: (seen.append(one.pdl), launch(one, stream))[1]
    engine(plan(chain(*STEPS)), driver=driver).run({"x": ramp()})
    assert seen == [False, True, True, True, True]
    seen.clear()
    engine(plan(chain(*STEPS)), driver=driver).profile({"x": ramp()})
    assert seen == [False] * 5


def test_counters_are_zero_and_apart_per_shape():
    main = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "arena", N), buffer(2, "output", N), buffer(3, "counters", 1, dtype="i32"),
         buffer(4, "counters", N, dtype="i32")),
        (Port("x", tensor(0, N)),), (Port("y", tensor(2, N)),),
        (NativeSegment((step("k_counted", 0, 1, 3), step("k_counted", 1, 2, 4))),),
    )  # fmt: skip
    context = engine(plan(main)).context()
    for n in (3, 3, 9, 9, 3, 200, 3):
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], 4 * ramp(n))


def test_tensor_maps_follow_their_addresses_and_shapes():
    described = TensorMapArg(((1,), postfix(N)), (postfix(N), (1,)), (1, 4))
    main = Program(
        (buffer(0, "input", N, name="x"), buffer(1, "arena", N), buffer(2, "output", N)),
        (Port("x", tensor(0, N)),), (Port("y", tensor(2, N)),),
        (NativeSegment((step("k_mapped", Arg(0, map=described), 1), step("k_mapped", Arg(1, map=described), 2))),),
    )  # fmt: skip
    driver = host_driver()
    context = engine(plan(main), driver=driver).context()
    for n in (4, 4, 4, 64, 64, 4):
        np.testing.assert_array_equal(context.run({"x": ramp(n)})["y"], 9 * ramp(n))
        np.testing.assert_array_equal(context.run({"x": DeviceArray.of(driver, ramp(n))})["y"].numpy(), 9 * ramp(n))
    broken = replace(plan(main), kernels=tuple(replace(k, launch=replace(k.launch, descriptors=())) for k in cuda_engines.KERNELS))
    with pytest.raises(PlanFormatError, match="tensor map that its kernel does not describe"):
        engine(broken).run({"x": ramp()})


def test_grids_of_no_programs_launch_nothing():
    driver = host_driver()
    context = engine(plan(chain(*STEPS)), driver=driver).context()
    for _ in range(3):
        assert context.run({"x": ramp(0)})["y"].shape == (0,)
    assert "launch" not in driver.log


def test_tensors_and_grids_that_no_kernel_can_have(monkeypatch):
    tested = engine(plan(chain(*STEPS)))
    monkeypatch.setattr(code, "_MAX_ELEMENTS", 100)
    with pytest.raises(ExecutionError, match=r"node0: got sizes of \[101\], expected at most 100 on a GPU; use smaller"):
        tested.run({"x": ramp(101)})
    with pytest.raises(ExecutionError, match="node0: got a tensor of 150 elements, expected at most 100 on a GPU; use smaller"):
        wide = chain("k_double", "k_copy")
        buffers = tuple(replace(b, size=(*b.size, 3, "*")) if b.kind == "arena" else b for b in wide.buffers)
        engine(plan(replace(wide, buffers=buffers))).run({"x": ramp(50)})
    monkeypatch.setattr(code, "_MAX_GRID", (10, 1, 1))
    with pytest.raises(ExecutionError, match=r"node0: got a grid of \(25, 1, 1\) blocks"):
        tested.run({"x": ramp(100)})
    np.testing.assert_array_equal(tested.run({"x": ramp(40)})["y"], expected(ramp(40)))


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


# --- weights --------------------------------------------------------------------------------------


def test_refit_there_and_back_is_bitwise():
    a, b = RNG.standard_normal(4).astype(F), RNG.standard_normal(4).astype(F)
    driver = host_driver()
    tested = engine(from_cpu(scaled()), {"w": a}, driver=driver)
    context, x = tested.context(), ramp()
    want = {id(w): x * np.tile(2 * w, 2) for w in (a, b)}
    for weights in (a, b, a, b):
        tested.set_weights({"w": weights})
        for _ in range(3):
            np.testing.assert_array_equal(context.run({"x": x})["y"], want[id(weights)])
    gc.collect()
    assert driver.allocations <= 4  # old sets are gone


def test_raw_weights_are_read_by_kernels_and_host_steps():
    count = 4
    main = Program(
        (buffer(0, "input", count, name="x"), buffer(1, "output", count), buffer(2, "weight", count, name="w"), buffer(3, "arena", count),
         buffer(4, "packed", count, name="p")),
        (Port("x", tensor(0, count)),), (Port("y", tensor(1, count)),),
        (NativeSegment((step("k_add", 0, 2, 3, dims=(count,)),)),
         HostSegment("Add", (tensor(3, count), tensor(2, count)), (tensor(3, count),)),
         HostSegment("Add", (tensor(3, count), tensor(4, count)), (tensor(1, count),))),
    )  # fmt: skip
    weights_program = Program(
        (buffer(0, "weight", count, name="w"), buffer(1, "arena", count), buffer(2, "output", count)),
        (), (Port("p", tensor(2, count)),),
        (HostSegment("Neg", (tensor(0, count),), (tensor(1, count),)), NativeSegment((step("k_double", 1, 2, dims=(count,)),))),
    )  # fmt: skip
    spec = scaled().weights
    tested = engine(plan(main, weights=spec, weights_program=weights_program), {"w": ramp(4)})
    for weights in (ramp(4), np.full(4, 3, F)):
        tested.set_weights({"w": weights})
        for _ in range(2):  # x + w + w - 2 * w
            np.testing.assert_array_equal(tested.run({"x": np.ones(4, F)})["y"], np.ones(4, F))


def test_large_weights_go_through_pinned_memory_in_pieces(monkeypatch):
    from dovetail.device.cuda import memory

    monkeypatch.setattr(memory, "_CHUNK", 1000)
    monkeypatch.setattr(memory, "_SMALL", 100)
    count = 1777
    weights = RNG.standard_normal(count).astype(F)
    tested = engine(from_cpu(scaled(count)), {"w": weights})
    np.testing.assert_array_equal(tested.run({"x": np.ones(count, F)})["y"], 2 * weights)


# --- threads and devices --------------------------------------------------------------------------


def test_threads_with_contexts_of_their_own_and_pooled_ones():
    tested = engine(from_cpu(scaled()), {"w": np.ones(4, F)})
    errors, stop = [], threading.Event()

    def work(pooled):
        context = tested.context()
        try:
            while not stop.is_set():
                y = (tested if pooled else context).run({"x": np.ones(8, F)})["y"]
                assert (y == y[0]).all() and y[0] % 2 == 0, y
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for i in range(20):
        tested.set_weights({"w": np.full(4, i, F)})
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def test_an_engine_uses_its_own_device_alone():
    first, second = host_driver(0), host_driver(1)
    tested = engine(plan(chain(*STEPS)), driver=second)
    assert tested.device == "cuda:1"
    for _ in range(3):
        np.testing.assert_array_equal(tested.run({"x": ramp()})["y"], expected(ramp()))
        np.testing.assert_array_equal(tested.run({"x": DeviceArray.of(second, ramp())})["y"].numpy(), expected(ramp()))
    tested.profile({"x": ramp()})
    assert first.log == {}
    with pytest.raises(BindingError, match="got an array in cuda:0, expected one on cuda:1, where the engine is"):
        tested.run({"x": _Exported(DeviceArray.of(first, ramp()))})


class _Exported:
    """Somebody's array, known by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **asked):
        self.asked = asked
        return self.array.__dlpack__(**asked)


def test_dlpack_capsules_are_read_and_let_go():
    from dovetail.runtime.cuda import arrays

    driver = host_driver()
    tested = engine(plan(chain(*STEPS)), driver=driver)
    x = _Exported(DeviceArray.of(driver, ramp()))
    assert is_device_array(x)
    for _ in range(3):
        np.testing.assert_array_equal(tested.run({"x": x}, stream=0)["y"].numpy(), expected(ramp()))
    assert x.asked == {"stream": 1}  # DLPack's name of the legacy default stream
    del tested
    gc.collect()
    assert not arrays._exported


def test_a_device_that_lacks_what_the_plan_needs():
    with pytest.raises(DeviceError, match=r"got a device of compute capability 8.0 .* expected one for sm_90; build for this device"):
        engine(plan(chain(*STEPS)), driver=host_driver(capability=80))
    older = replace(plan(chain(*STEPS)), target="cuda:sm_80")
    engine(older, driver=host_driver(capability=86)).run({"x": ramp()})
    with pytest.raises(DeviceError, match="expected one for sm_80"):
        engine(older, driver=host_driver(capability=90))


def test_too_little_memory_leaves_the_engine_usable():
    driver = host_driver(memory=100_000)
    tested = engine(plan(chain(*STEPS)), driver=driver)
    tested.run({"x": ramp()})
    with pytest.raises(DeviceError, match=r"cuda:0: cannot allocate .* MiB are free; use smaller shapes"):
        tested.run({"x": ramp(1 << 20)})
    np.testing.assert_array_equal(tested.run({"x": ramp()})["y"], expected(ramp()))


def test_missing_machine_code_and_launches():
    from dovetail import runtime
    from dovetail.engine import cubins

    with pytest.raises(PlanFormatError, match="no machine code for the kernel k_increment"):
        runtime.open(plan(chain(*STEPS)), kernels=[cubins.pack({"k_double": b""})], driver=host_driver())
    with pytest.raises(PlanFormatError, match="grid"):
        engine(replace(plan(chain(*STEPS)), kernels=tuple(replace(k, launch=None) for k in cuda_engines.KERNELS)))


def test_shapes_outside_their_range():
    tested = engine(plan(chain(*STEPS), symbols=(Symbol("N", 2, 9),)))
    with pytest.raises(ShapeError, match=r"got 10 on axis 0 \(N\), expected 2 to 9"):
        tested.run({"x": ramp(10)})


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


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setattr(libraries, "_prepared", {})
    monkeypatch.setattr(libraries, "_MODULES", {"cublaslt": "dovetail.device.cuda.no_such_module"})
    tested = engine(_with_library())
    with pytest.raises(DeviceError, match="the engine calls the library 'cublaslt', which cannot be used here"):
        tested.run({"x": ramp()})


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


# --- engine files ---------------------------------------------------------------------------------


def test_files_open_on_the_device_asked_for(tmp_path):
    from dovetail import runtime
    from dovetail.engine.file import TargetFiles, write_engine
    from dovetail.runtime.cuda import CudaEngine
    from tests.unit import native_plans

    on_gpu = plan(chain(*STEPS))
    on_cpu = replace(native_plans.plan(native_plans.chain(*STEPS)), target="cpu:generic")
    path = tmp_path / "m.plan"
    write_engine(
        path, graph="", weights={},
        targets={
            "cuda:sm_90": TargetFiles(on_gpu, cuda_engines.BUNDLE),
            "cuda:sm_80": TargetFiles(replace(on_gpu, target="cuda:sm_80"), cuda_engines.BUNDLE),
            "cpu:generic": TargetFiles(on_cpu, native_plans.kernel_binary(), native_plans.host_binary()),
        },
    )  # fmt: skip

    def opened(device, capability=90):
        found = runtime.open(path, device=device, driver=host_driver(1, capability=capability))
        np.testing.assert_array_equal(found.run({"x": ramp()})["y"], expected(ramp()))
        assert isinstance(found, CudaEngine) == found.plan.target.startswith("cuda")
        return found.plan.target

    assert opened(None) == opened("cuda:1") == "cuda:sm_90"
    assert opened(None, capability=86) == "cuda:sm_80"
    assert opened(None, capability=70) == opened("cpu") == "cpu:generic"
    with pytest.raises(DeviceError, match=r"compute capability 7.0 .* expected one for sm_80.*; .* expected one for sm_90"):
        opened("cuda", capability=70)
    for wrong in ("gpu", "cuda:x", "cuda:", "cuda0"):
        with pytest.raises(UsageError, match="device: got"):
            opened(wrong)
    with pytest.raises(UsageError, match="got the device cpu"):
        runtime.open(path, device="cpu", target="cuda:sm_90")


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


def test_steps_without_a_barrier_are_captured_in_streams_of_their_own():
    main = Program(
        (buffer(0, "input", N, name="x"), *(buffer(i, "arena", N) for i in range(1, 5)), buffer(5, "output", N)),
        (Port("x", tensor(0, N)),), (Port("y", tensor(5, N)),),
        (NativeSegment((
            step("k_increment", 0, 1),
            step("k_double", 1, 2, barrier=False), step("k_reverse", 1, 3, barrier=False), step("k_copy", 1, 4),
            step("k_add", 2, 3, 2), step("k_add", 2, 4, 5),
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
    assert [pdl for pdl, _ in seen[:6]] == [False, False, False, False, False, True]
    captured = [stream for _, stream in seen[6:12]]
    assert captured == [own, own, captured[2], captured[3], own, own]
    assert len({own, captured[2], captured[3]}) == 3


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
