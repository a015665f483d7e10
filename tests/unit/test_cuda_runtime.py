"""The runtime of CUDA engines on a driver that runs kernels on host memory: all that the CPU runtime does, and what only a GPU has."""

import gc
import importlib
import inspect
import threading
from dataclasses import replace

import numpy as np
import pytest

from dovetail.core.errors import (
    BindingError,
    DeviceError,
    ExecutionError,
    PlanFormatError,
    ShapeError,
    UsageError,
)
from dovetail.engine.plan import (
    Arg,
    HostSegment,
    NativeSegment,
    Port,
    Program,
    Symbol,
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
    gc.collect()
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
    monkeypatch.setattr(code, "MAX_ELEMENTS", 100)
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
    monkeypatch.setattr(memory, "_PIECE", 250)
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
