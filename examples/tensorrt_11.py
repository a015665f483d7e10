"""A program in the style of TensorRT 11: a strongly typed network by the API, a progress monitor, a stream writer, weights
stripped and given back by name, memory by cuda-python's bindings.

    python -m dovetail.tensorrt examples/tensorrt_11.py

It imports nothing of Dovetail. On a machine without a GPU, `cuda` is a stand-in on host memory.
"""

import sys

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart

logger = trt.Logger(trt.Logger.WARNING)


class Progress(trt.IProgressMonitor):
    """Counts the phases and steps of a build."""

    def __init__(self):
        trt.IProgressMonitor.__init__(self)
        self.open, self.phases, self.steps = [], 0, 0

    def phase_start(self, phase_name, parent_phase, num_steps):
        self.open.append(phase_name)
        self.phases += 1

    def step_complete(self, phase_name, step):
        self.steps += 1
        return True

    def phase_finish(self, phase_name):
        self.open.remove(phase_name)


class Writer(trt.IStreamWriter):
    """Collects a serialized engine."""

    def __init__(self):
        trt.IStreamWriter.__init__(self)
        self.data = bytearray()

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def check(result):
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(str(error))
    return values[0] if len(values) == 1 else values


def define(network, weights):
    """Two convolutions with a pooling in between, and a matrix product."""
    x = network.add_input("x", trt.float32, (1, 1, 16, 16))
    conv1 = network.add_convolution_nd(x, 4, (5, 5), weights["conv1.w"], weights["conv1.b"])
    conv1.stride_nd, conv1.name = (1, 1), "conv1"
    relu = network.add_activation(conv1.get_output(0), trt.ActivationType.RELU)
    pool = network.add_pooling_nd(relu.get_output(0), trt.PoolingType.MAX, (2, 2))
    pool.stride_nd = (2, 2)
    flat = network.add_shuffle(pool.get_output(0))
    flat.reshape_dims = trt.Dims2(1, 4 * 6 * 6)
    kernel = network.add_constant(trt.Dims2(10, 4 * 6 * 6), weights["fc.w"])
    product = network.add_matrix_multiply(
        flat.get_output(0), trt.MatrixOperation.NONE, kernel.get_output(0), trt.MatrixOperation.TRANSPOSE
    )
    bias = network.add_constant(trt.Dims2(1, 10), weights["fc.b"])
    total = network.add_elementwise(product.get_output(0), bias.get_output(0), trt.ElementWiseOperation.SUM)
    total.get_output(0).name = "y"
    network.mark_output(total.get_output(0))
    for name, array in weights.items():
        network.set_weights_name(array, name)


def run(engine, x):
    context = engine.create_execution_context()
    stream = check(cudart.cudaStreamCreate())
    y = np.empty(tuple(engine.get_tensor_shape("y")), trt.nptype(engine.get_tensor_dtype("y")))
    to, back = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    device = {"x": check(cudart.cudaMalloc(x.nbytes)), "y": check(cudart.cudaMalloc(y.nbytes))}
    for name, pointer in device.items():
        context.set_tensor_address(name, pointer)
    check(cudart.cudaMemcpyAsync(device["x"], x.ctypes.data, x.nbytes, to, stream))
    if not context.execute_async_v3(stream):
        raise RuntimeError("the run failed")
    check(cudart.cudaMemcpyAsync(y.ctypes.data, device["y"], y.nbytes, back, stream))
    check(cudart.cudaStreamSynchronize(stream))
    for pointer in device.values():
        check(cudart.cudaFree(pointer))
    check(cudart.cudaStreamDestroy(stream))
    return y


def main():
    rng = np.random.default_rng(0)
    shapes = {"conv1.w": (4, 1, 5, 5), "conv1.b": (4,), "fc.w": (10, 144), "fc.b": (10,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) * np.float32(0.2) for name, shape in shapes.items()}
    x = rng.standard_normal((1, 1, 16, 16)).astype(np.float32)

    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    define(network, weights)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 28)
    config.progress_monitor = progress = Progress()
    full = builder.build_engine_with_config(network, config)
    print("phases and steps were told:", progress.phases > 1 and progress.steps > 3 and not progress.open)
    expected = run(full, x)

    # The same without weights: the plan is small, and a refit by name makes it run.
    config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    writer = Writer()
    if not builder.build_serialized_network_to_stream(network, config, writer):
        raise RuntimeError("the build failed")
    engine = trt.Runtime(logger).deserialize_cuda_engine(bytes(writer.data))
    refitter = trt.Refitter(engine, logger)
    print("missing:", ", ".join(sorted(refitter.get_missing_weights())))
    for name, array in weights.items():
        refitter.set_named_weights(name, array)
    if not refitter.refit_cuda_engine():
        raise RuntimeError("the refit failed")
    print("equal after the refit:", bool(np.array_equal(run(engine, x), expected)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
