"""A program in the style of TensorRT 8.6 to 10: dynamic shapes with a profile, a timing cache, fp16, tensors by name, cuda-python.

    python -m dovetail.tensorrt examples/tensorrt_8_10.py [engine file to write]

It imports nothing of Dovetail. On a machine without a GPU, `cuda` is a stand-in on host memory.
"""

import os
import sys
import tempfile

import numpy as np
import tensorrt as trt
from cuda import cudart
from onnx import TensorProto, helper, numpy_helper

BATCHES = (1, 4, 8)
logger = trt.Logger(trt.Logger.ERROR)


def check(result):
    """The values of a CUDA call, or an exception."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(cudart.cudaGetErrorString(error)[1])
    return values[0] if len(values) == 1 else values


def make_model():
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((64, 32)) / 8, "w2": rng.standard_normal((32, 10)) / 6}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Softmax", ["c"], ["y"], name="softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), weights


def build(model):
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise RuntimeError("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 28)
    if builder.platform_has_fast_fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    config.builder_optimization_level = 2
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *[(n, 64) for n in BATCHES])
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("the build failed")
    return plan


def infer(engine, context, stream, x):
    """One run; outputs by name."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    for name in inputs:
        context.set_input_shape(name, x.shape)
    assert context.infer_shapes() == []
    host = {n: x if n in inputs else np.empty(tuple(context.get_tensor_shape(n)), trt.nptype(engine.get_tensor_dtype(n))) for n in names}
    device = {n: check(cudart.cudaMalloc(array.nbytes)) for n, array in host.items()}
    kind = cudart.cudaMemcpyKind
    for name in names:
        context.set_tensor_address(name, device[name])
        if name in inputs:
            check(cudart.cudaMemcpyAsync(device[name], host[name].ctypes.data, host[name].nbytes, kind.cudaMemcpyHostToDevice, stream))
    if not context.execute_async_v3(stream):
        raise RuntimeError("the run failed")
    outputs = [n for n in names if n not in inputs]
    for name in outputs:
        check(cudart.cudaMemcpyAsync(host[name].ctypes.data, device[name], host[name].nbytes, kind.cudaMemcpyDeviceToHost, stream))
    check(cudart.cudaStreamSynchronize(stream))
    for pointer in device.values():
        check(cudart.cudaFree(pointer))
    return {n: host[n] for n in outputs}


def main():
    model, weights = make_model()
    with tempfile.TemporaryDirectory() as folder:
        path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(folder, "model.plan")
        with open(path, "wb") as file:
            file.write(build(model))
        with open(path, "rb") as file:
            engine = trt.Runtime(logger).deserialize_cuda_engine(file.read())
    print("profile:", [tuple(s) for s in engine.get_tensor_profile_shape("x", 0)])
    context = engine.create_execution_context()
    stream = check(cudart.cudaStreamCreate())
    rng = np.random.default_rng(1)
    for batch in (1, 3, 8):
        x = rng.standard_normal((batch, 64)).astype(np.float32)
        y = infer(engine, context, stream, x)["y"]
        hidden = np.maximum(x @ weights["w1"].astype(np.float32), 0) @ weights["w2"].astype(np.float32)
        expected = np.exp(hidden - hidden.max(-1, keepdims=True))
        expected /= expected.sum(-1, keepdims=True)
        print(f"batch {batch}: {y.shape}, largest difference below 1e-2: {np.abs(y - expected).max() < 1e-2}")
    if context.set_input_shape("x", (9, 64)):
        print("a batch of 9 was taken, which the profile does not allow")
        return 1
    check(cudart.cudaStreamDestroy(stream))
    return 0


if __name__ == "__main__":
    sys.exit(main())
