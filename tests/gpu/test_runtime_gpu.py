"""The runtime on a GPU: launches, graphs, programmatic dependent launch, tensor maps, streams, arrays of PyTorch, threads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dovetail.core.errors import BindingError, DeviceError, ExecutionError
from dovetail.device.cuda import Arguments, DeviceMemory, Launch
from dovetail.device.cuda.driver import driver as driver_of
from dovetail.runtime.cuda.arrays import DeviceArray
from tests.gpu import kernels
from tests.gpu.kernels import F

RNG = np.random.default_rng(0)
LENGTH = 7


@pytest.fixture(scope="module")
def machine(device):
    return kernels.machine(device.properties.capability)


@pytest.fixture(scope="module")
def engine(machine):
    return machine.engine(machine.plan(kernels.chain(machine, LENGTH)))


def values(n):
    return RNG.standard_normal(n).astype(F)


# --- the driver -----------------------------------------------------------------------------------


def test_properties(device):
    found = device.properties
    assert found.capability >= 80 and found.multiprocessors > 0 and found.memory > 1 << 30 and found.name


def test_a_launch_by_hand(device, machine):
    n = 1000
    x, y = values(n), np.empty(n, F)
    compiled = machine.compiled[machine.entry("double")]
    with device.active():
        function = device.load(bytes(compiled.binary), machine.entry("double"), compiled.shared)
        a, b = DeviceMemory(device, 4 * n), DeviceMemory(device, 4 * n)
        stream = device.create_stream()
        device.upload(a.address, x, stream)
        arguments = Arguments([0, 0], [n])
        arguments.set_pointer(0, a.address)
        arguments.set_pointer(1, b.address)
        device.launch(Launch(function, (1, 1, 1), compiled.threads, compiled.shared, arguments), stream)
        device.download(y, b.address, stream)
        device.synchronize(stream)
        device.destroy_stream(stream)
        assert device.owner(a.address) == 0 and device.owner(y.ctypes.data) is None
    np.testing.assert_array_equal(y, 2 * x)


def test_copies_fills_events_and_pinned_memory(device):
    with device.active():
        memory = DeviceMemory(device, 1 << 20)
        stream = device.create_stream()
        start, end = device.create_event(True), device.create_event(True)
        pinned = device.host_memory(1 << 20)
        pinned[:] = RNG.integers(0, 255, 1 << 20)
        device.record(start, stream)
        device.upload(memory.address, pinned, stream)
        device.zero(memory.address, 100, stream)
        device.copy(memory.address + 1000, memory.address + 5000, 500, stream)
        device.record(end, stream)
        back = np.empty(1 << 20, np.uint8)
        device.download(back, memory.address, stream)
        device.synchronize(stream)
        assert device.reached(end) and device.elapsed_ns(start, end) > 0
        ordered = device.allocate_ordered(1000, stream)
        device.free_ordered(ordered, stream)
        device.synchronize(stream)
    want = pinned.copy()
    want[:100] = 0
    want[1000:1500] = want[5000:5500]
    np.testing.assert_array_equal(back, want)


def test_a_device_that_is_not_there(device):
    with pytest.raises(DeviceError, match="got the device cuda:97, expected one of"):
        driver_of(97)


# --- running --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 31, 1024, 100_003, 3_000_001])
def test_runs_and_graphs(engine, n):
    context = engine.context()
    for _ in range(5):  # the first run launches, the second captures
        x = values(n)
        np.testing.assert_array_equal(context.run({"x": x})["y"], kernels.expected(x, LENGTH))


def test_many_shapes_on_one_engine(engine):
    context = engine.context()
    for n in [*range(1, 60), *range(1, 60), 70_000, 5, 70_000]:
        x = values(n)
        np.testing.assert_array_equal(context.run({"x": x})["y"], kernels.expected(x, LENGTH))


def test_long_chains_are_right_from_run_to_run(machine):
    """Programmatic dependent launch: a kernel that started too early would read what is not there yet."""
    length = 200
    tested = machine.engine(machine.plan(kernels.chain(machine, length))).context()
    x = (values(50_000) * 1e-3).astype(F)
    first = tested.run({"x": x})["y"]
    for _ in range(20):
        np.testing.assert_array_equal(tested.run({"x": x})["y"], first)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(first, kernels.expected(x, length))


def test_counters_are_zero_whenever_a_kernel_starts(machine):
    tested = machine.engine(machine.plan(kernels.summed(machine))).context()
    for n in (1, 5000, 300_000, 5000, 300_000):
        x = RNG.integers(-8, 8, n).astype(F)
        for _ in range(4):
            assert tested.run({"x": x})["y"][0] == x.sum()


def test_tensor_maps_follow_their_addresses(machine, device):
    if "mapped" not in machine.kernels:
        pytest.skip("no copy engine")
    tested = machine.engine(machine.plan(kernels.tripled(machine))).context()
    for n in (16, 1, 37):
        for _ in range(3):
            x = values(n * kernels.COLUMNS).astype(np.float16).reshape(n, -1)
            np.testing.assert_array_equal(tested.run({"x": x})["y"], 3 * x)
            on_device = DeviceArray.of(device, x)
            np.testing.assert_array_equal(tested.run({"x": on_device})["y"].numpy(), 3 * x)


def test_host_steps_between_segments(machine):
    tested = machine.engine(machine.plan(kernels.with_host_step(machine)))
    for _ in range(4):
        x = values(1000)
        np.testing.assert_array_equal(tested.run({"x": x})["y"], -4 * x)


def test_steps_beside_each_other(machine, device):
    tested = machine.engine(machine.plan(kernels.forked(machine))).context()
    for n in (1000, 1000, 1000, 300_000, 300_000, 1000):
        x = RNG.integers(-100, 100, n).astype(F)
        np.testing.assert_array_equal(tested.run({"x": x})["y"], 3 * x + 4)
        np.testing.assert_array_equal(tested.run({"x": DeviceArray.of(device, x)})["y"].numpy(), 3 * x + 4)


def test_loops_keep_their_state_on_the_device(machine, device):
    tested = machine.engine(machine.plan(kernels.looped(machine))).context()
    for n, trips in ((1000, 4), (1000, 4), (50_000, 20), (7, 0), (50_000, 20)):
        x = RNG.integers(-4, 4, n).astype(F)
        state = x + 1
        for _ in range(trips):
            state = 2 * state + x
        np.testing.assert_array_equal(tested.run({"n": np.array(trips), "x": x})["y"], 2 * state)
        found = tested.run({"n": np.array(trips), "x": DeviceArray.of(device, x)})["y"]
        np.testing.assert_array_equal(found.numpy(), 2 * state)


def test_refit_there_and_back_is_bitwise(machine):
    a, b, x = values(3000), values(3000), values(3000)
    tested = machine.engine(kernels.weighted(machine, 3000), {"w": a})
    for weights in (a, b, a):
        tested.set_weights({"w": weights})
        for _ in range(3):
            np.testing.assert_array_equal(tested.run({"x": x})["y"], x + 2 * weights)


def test_profile_and_taps(engine):
    x = values(200_000)
    outputs, records = engine.profile({"x": x})
    np.testing.assert_array_equal(outputs["y"], kernels.expected(x, LENGTH))
    assert [r.origin for r in records] == [(f"node{i}",) for i in range(LENGTH)]
    assert all(100 < r.nanoseconds < 1e6 for r in records)
    _, taps = engine.tap({"x": x}, ["value0", "value3"])
    np.testing.assert_array_equal(taps["value0"][0], kernels.expected(x, 1))
    np.testing.assert_array_equal(taps["value3"][0], kernels.expected(x, 4))


def test_too_little_memory_is_one_error(engine, device):
    with pytest.raises(DeviceError, match=r"cannot allocate .* MiB are free"), device.active():
        device.allocate(1 << 45)
    x = values(10)
    np.testing.assert_array_equal(engine.run({"x": x})["y"], kernels.expected(x, LENGTH))


# --- streams, asynchronous runs, arrays of PyTorch ------------------------------------------------


def test_asynchronous_runs(engine, device):
    x = values(1_000_000)
    context = engine.context()
    pending = [context.run_async({"x": DeviceArray.of(device, x)}) for _ in range(4)]
    for one in pending:
        np.testing.assert_array_equal(one.wait()["y"].numpy(), kernels.expected(x, LENGTH))
        assert one.done
    host = engine.run_async({"x": x})
    np.testing.assert_array_equal(host.wait()["y"], kernels.expected(x, LENGTH))


def test_torch_tensors_in_and_out_without_copies(engine, torch):
    x = torch.randn(4097, device="cuda")
    want = kernels.expected(x.cpu().numpy(), LENGTH)
    for _ in range(3):
        y = engine.run({"x": x})["y"]
        assert isinstance(y, torch.Tensor) and y.device == x.device
        np.testing.assert_array_equal(y.cpu().numpy(), want)
    bound = torch.empty_like(x)
    assert engine.run({"x": x}, {"y": bound})["y"] is bound
    np.testing.assert_array_equal(bound.cpu().numpy(), want)
    shifted = torch.randn(4100, device="cuda")[1:4098]  # not aligned to 16 bytes
    y = engine.run({"x": shifted})["y"]
    np.testing.assert_array_equal(y.cpu().numpy(), kernels.expected(shifted.cpu().numpy(), LENGTH))
    with pytest.raises(BindingError, match="contiguous"):
        engine.run({"x": torch.randn(100, device="cuda")[::2]})
    with pytest.raises(BindingError, match="got dtype float16, expected float32"):
        engine.run({"x": x.half()})


def test_bound_tensors(engine, torch):
    context = engine.context()
    x, y = torch.randn(100_000, device="cuda"), torch.empty(100_000, device="cuda")
    binding = context.bind({"x": x}, {"y": y})
    stream = torch.cuda.Stream()
    for i in range(4):
        x.normal_()
        torch.cuda.synchronize()
        binding.run(stream if i % 2 else None)
        stream.synchronize()
        np.testing.assert_array_equal(y.cpu().numpy(), kernels.expected(x.cpu().numpy(), LENGTH))
        other = values(3_000_000)  # grows the context's memory; the binding keeps what it has
        np.testing.assert_array_equal(context.run({"x": other})["y"], kernels.expected(other, LENGTH))


def test_the_callers_stream_orders_runs(engine, torch):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.randn(2_000_000, device="cuda")
        for _ in range(10):
            x.add_(1)
            y = engine.run({"x": x}, stream=stream)["y"]
            z = y * 2
    stream.synchronize()
    np.testing.assert_array_equal(z.cpu().numpy(), 2 * kernels.expected(x.cpu().numpy(), LENGTH))


def test_the_default_stream(engine, torch):
    x = torch.randn(1000, device="cuda")
    for _ in range(3):
        y = engine.run({"x": x}, stream=torch.cuda.default_stream())["y"]
        np.testing.assert_array_equal(y.cpu().numpy(), kernels.expected(x.cpu().numpy(), LENGTH))


def test_capture_inside_the_callers_graph(engine, machine, torch):
    x = torch.randn(5000, device="cuda")
    y = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x2 = x * 2
        engine.run({"x": x2}, {"y": y}, stream=torch.cuda.current_stream())
        z = y + 1
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        np.testing.assert_array_equal(z.cpu().numpy(), kernels.expected(2 * x.cpu().numpy(), LENGTH) + 1)
    with_host = machine.engine(machine.plan(kernels.with_host_step(machine)))
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ExecutionError, match="the host node"), torch.cuda.graph(graph):
        with_host.run({"x": x}, {"y": y}, stream=torch.cuda.current_stream())


def test_captured_reductions_keep_their_counters(machine, torch):
    tested = machine.engine(machine.plan(kernels.summed(machine)))
    x, y = torch.zeros(100_000, device="cuda"), torch.empty(1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tested.run({"x": x}, {"y": y}, stream=torch.cuda.current_stream())
    for _ in range(3):
        x.copy_(torch.randint(-8, 8, x.shape, device="cuda"))
        graph.replay()
        tested.run({"x": x.cpu().numpy()})  # has memory of its own
        torch.cuda.synchronize()
        assert y.item() == x.sum().item()


# --- threads and devices --------------------------------------------------------------------------


def test_threads_and_refits_at_the_same_time(machine):
    tested = machine.engine(kernels.weighted(machine, 4096), {"w": np.ones(4096, F)})
    errors, stop = [], threading.Event()

    def work():
        context, x = tested.context(), np.zeros(4096, F)
        try:
            while not stop.is_set():
                y = context.run({"x": x})["y"]
                assert (y == y[0]).all() and y[0] % 2 == 0, y
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for i in range(50):
        tested.set_weights({"w": np.full(4096, i, F)})
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def test_pooled_contexts_serve_many_threads(engine):
    errors = []

    def work(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                x = rng.standard_normal(int(rng.integers(1, 3000))).astype(F)
                np.testing.assert_array_equal(engine.run({"x": x})["y"], kernels.expected(x, LENGTH))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def test_the_second_device_alone(machine, torch):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device only")
    root = Path(__file__).resolve().parents[2]
    program = (
        "import numpy as np, sys\n"
        "from cuda.bindings import driver as api\n"
        "from tests.gpu import kernels\n"
        "from dovetail.device.cuda.driver import driver\n"
        "m = kernels.machine(driver(1).properties.capability)\n"
        "e = m.engine(m.plan(kernels.chain(m, 7)), device='cuda:1')\n"
        "x = np.arange(100, dtype=np.float32)\n"
        "assert (e.run({'x': x})['y'] == kernels.expected(x, 7)).all()\n"
        "err, flags, active = api.cuDevicePrimaryCtxGetState(api.cuDeviceGet(0)[1])\n"
        "assert not active, 'cuda:0 has a context'\n"
    )
    paths = os.pathsep.join([str(root / "src"), str(root)])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env=environment)
    tested = machine.engine(machine.plan(kernels.chain(machine, LENGTH)), device="cuda:1")
    with pytest.raises(BindingError, match="got an array in cuda:0, expected one on cuda:1"):
        tested.run({"x": torch.zeros(5, device="cuda:0")})
    assert tested.run({"x": torch.zeros(5, device="cuda:1")})["y"].device.index == 1
