"""What a run costs beside its kernels: python -m bench.gpu.overhead [layers]

A chain of small products, run in every way that the runtime has: bound arrays, arrays that stay, arrays that move (kernel nodes get new
arguments), arrays on the host, a capture from scratch. Host time per call, and time per run with the device's work.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dovetail
from dovetail.runtime.cuda import CudaEngine
from dovetail.runtime.cuda.arrays import DeviceArray

SIZE = 256
REPEATS = 200


def model(layers: int) -> ModelProto:
    """x → (relu(x w)) `layers` times."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        weights.append(numpy_helper.from_array((rng.standard_normal((SIZE, SIZE)) / 12).astype(np.float32), f"w{i}"))
        out = "y" if i == layers - 1 else f"r{i}"
        nodes += [helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]), helper.make_node("Relu", [f"m{i}"], [out])]
        last = out
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "chain", [value("x", TensorProto.FLOAT, [16, SIZE])], [value("y", TensorProto.FLOAT, [16, SIZE])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def timed(call: Callable[[], object], wait: Callable[[], None]) -> tuple[float, float]:
    """Microseconds of the host per call, and per call with the device's work; medians."""
    for _ in range(5):
        call()
    wait()
    host, whole = [], []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(REPEATS // 9):
            call()
        queued = time.perf_counter()
        wait()
        host.append((queued - start) / (REPEATS // 9) * 1e6)
        whole.append((time.perf_counter() - start) / (REPEATS // 9) * 1e6)
    return statistics.median(host), statistics.median(whole)


def main() -> None:
    """Print the table."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    engine = dovetail.build(model(layers), device="cuda", precision="fp16", verify="off")
    runtime = engine.runtime
    assert isinstance(runtime, CudaEngine)
    driver = runtime.driver
    x = np.ones((16, SIZE), engine.inputs[0].dtype.numpy)
    sets = [(DeviceArray.of(driver, x), DeviceArray.of(driver, x.astype(engine.outputs[0].dtype.numpy))) for _ in range(4)]
    context = runtime.context()
    stream = context.queue.own

    def wait() -> None:
        with driver.active():
            driver.synchronize(stream)

    turn = iter(range(1 << 60))

    def moving() -> None:
        a, b = sets[next(turn) % len(sets)]
        context.run({"x": a}, {"y": b}, stream=stream)

    def captured() -> None:
        fresh = runtime.context()
        for _ in range(2):  # the second run captures
            fresh.run({"x": sets[0][0]}, {"y": sets[0][1]})

    binding = context.bind({"x": sets[0][0]}, {"y": sets[0][1]})
    ways: dict[str, Callable[[], object]] = {
        "bound arrays": lambda: binding.run(stream),
        "device arrays that stay": lambda: context.run({"x": sets[0][0]}, {"y": sets[0][1]}, stream=stream),
        "device arrays that move": moving,
        "host arrays": lambda: context.run({"x": x}),
    }
    print(f"{layers} layers on {driver.properties.name}; microseconds of the host per call, of a call with its work")
    for name, call in ways.items():
        host, whole = timed(call, wait)
        print(f"{name:26} {host:8.1f} {whole:8.1f}")
    start = time.perf_counter()
    captured()
    print(f"{'new context and capture':26} {(time.perf_counter() - start) * 1e6:8.1f}")


if __name__ == "__main__":
    main()
