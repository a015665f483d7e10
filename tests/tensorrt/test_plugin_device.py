"""Plugins where engines are for a GPU: device addresses, a stream, compiled kernels; on the driver of the host."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import dovetail
import dovetail.tensorrt as trt
import dovetail.tensorrt.plugin as trtp
from dovetail import builder, runtime
from dovetail.codegen.triton_host import host_driver
from dovetail.core.env import override
from dovetail.core.errors import ExecutionError
from dovetail.device.cuda.driver_host import HostDriver
from tests.tensorrt.engines import Log
from tests.tensorrt.plugins import V3, V3Creator, registered, tensors, view


class Double(V3):
    name = "DeviceDouble"

    def get_workspace_size(self, inp, out):
        return 128

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        if Double.fails:
            raise ValueError("a fault of the client")
        seen.append((*inputs, *outputs, workspace, stream))
        (x,), (y,) = tensors(input_desc, inputs), tensors(output_desc, outputs)
        view(workspace, (128,), np.uint8)[...] = 1
        y[...] = 2 * x

    fails = False


seen: list = []


@trtp.register("device::add")
def add_desc(x: trtp.TensorDesc, block: int) -> trtp.TensorDesc:
    return x.like()


@trtp.aot_impl("device::add")
def add_compiled(x: trtp.TensorDesc, block: int, outputs: tuple[trtp.TensorDesc]):
    count = x.shape_expr.numel()
    params = trtp.KernelLaunchParams()
    params.grid_x, params.block_x = trtp.cdiv(count, block), 128
    arguments = trtp.SymIntExprs(1)
    arguments[0] = trtp.SymInt32(count - 100)
    return "add_one", "// ptx", params, arguments


def _engine(add):
    """An engine on the CPU of a plugin, whose objects are made in the first run."""
    network = trt.Builder(Log()).create_network()
    made = add(network, network.add_input("x", trt.float32, (-1, 3))).get_output(0)
    made.name = "y"
    network.mark_output(made)
    return dovetail.build(network._model(), tune=False, threads=1, verify="off")


@pytest.fixture
def gpu(monkeypatch):
    def run(code, entry, grid, values):
        assert (code, entry) == (b"// ptx\0", "add_one") and grid == (2, 1, 1)
        source, count, target = values[:3]
        n = np.uint32(count).astype(np.int32) + 100  # an argument of 32 bits, negative here
        view(target, (n,), np.float32)[...] = view(source, (n,), np.float32) + 1

    driver = HostDriver(run)
    monkeypatch.setitem(sys.modules["dovetail.device.cuda.driver"]._drivers, 0, driver)
    with override(tensorrt_device="cuda:0"):
        yield driver


X = np.arange(21, dtype=np.float32).reshape(7, 3)


def test_enqueue_gets_device_addresses_and_a_stream_and_all_memory_goes_back(gpu):
    with registered(V3Creator(Double)):
        engine = _engine(lambda network, x: network.add_plugin_v3([x], [], Double()))
        for x in (X, X[:2]):
            np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)
            *addresses, stream = seen[-1]
            assert len(set(addresses)) == 3 and not any(a % 256 for a in addresses) and stream != 0
            assert gpu.allocations == 0
        Double.fails = True
        with pytest.raises(ExecutionError, match="a fault of the client"):
            engine.run({"x": X})
        Double.fails = False
        assert gpu.allocations == 0 and gpu.log["upload"] == gpu.log["download"] + 1 == 3
    assert gpu.log["create_stream"] == gpu.log["destroy_stream"] == 1


def test_a_compiled_kernel_is_launched_with_inputs_scalars_and_outputs(gpu):
    engine = _engine(lambda network, x: network.add_plugin(trtp.op.device.add(x, block=16), aot=True))
    np.testing.assert_array_equal(engine.run({"x": X})["y"], X + 1)
    np.testing.assert_array_equal(engine.run({"x": X - 5})["y"], X - 4)
    assert gpu.log["load"] == 1 and gpu.log["launch"] == 2


def test_an_engine_for_a_gpu_hands_results_of_kernels_to_the_plugin_and_back(monkeypatch):
    network = trt.Builder(Log()).create_network()
    x = network.add_input("x", trt.float32, (-1, 3))
    relu = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    made = network.add_plugin_v3([relu], [], Double()).get_output(0)
    last = network.add_elementwise(made, x, trt.ElementWiseOperation.SUB).get_output(0)
    last.name = "y"
    network.mark_output(last)
    built = builder.build(network._model(), builder.BuildOptions(target="cuda:sm_90", tune=False, verify="off"))
    driver = host_driver(built.kernels)
    monkeypatch.setitem(sys.modules["dovetail.device.cuda.driver"]._drivers, 0, driver)
    engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver)
    with registered(V3Creator(Double)), override(tensorrt_device="cuda:0"):
        for given in (X - 9, X[:1]):
            before = dict(driver.log)
            np.testing.assert_array_equal(engine.run({"x": given})["y"], 2 * np.maximum(given, 0) - given)
            *addresses, stream = seen[-1]
            assert stream != 0 and not any(a % 256 for a in addresses)
            # The plugin works on the engine's own memory: what is copied is the input and the output of the run.
            assert all(driver.log[way] - before.get(way, 0) == 1 for way in ("upload", "download"))


def test_runs_in_several_threads_have_objects_of_their_own():
    inside, most, lock, both = [0], [0], threading.Lock(), threading.Barrier(2, timeout=60)

    class Waiting(Double):
        name = "DeviceWaiting"

        def enqueue(self, *arguments):
            with lock:
                assert not getattr(self, "busy", False)
                self.busy, inside[0] = True, inside[0] + 1
                most[0] = max(most[0], inside[0])
            both.wait()
            super().enqueue(*arguments)
            with lock:
                self.busy, inside[0] = False, inside[0] - 1

    with registered(V3Creator(Waiting)):
        engine = _engine(lambda network, x: network.add_plugin_v3([x], [], Waiting()))
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda k: engine.run({"x": X + k})["y"], range(4)))
    assert most[0] == 2 and all(np.array_equal(y, 2 * (X + k)) for k, y in enumerate(results))
