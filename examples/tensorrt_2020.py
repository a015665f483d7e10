"""A program as people wrote it for TensorRT 7 in 2020: parse, build an engine that can be refitted, run with pycuda, refit, run again.

    python -m dovetail.tensorrt examples/tensorrt_2020.py [model.onnx]

It imports nothing of Dovetail. On a machine without a GPU, `pycuda` is a stand-in on host memory.
"""

import sys

import numpy as np
import onnx
import pycuda.autoinit  # noqa: F401
import pycuda.driver as cuda
import tensorrt as trt
from onnx import TensorProto, helper, numpy_helper

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


class HostDeviceMem:
    def __init__(self, host_mem, device_mem):
        self.host = host_mem
        self.device = device_mem


def make_model(seed):
    """A small classifier: a convolution, a pooling, two fully connected layers."""
    rng = np.random.default_rng(seed)
    shapes = {"conv.w": (8, 3, 3, 3), "conv.b": (8,), "fc1.w": (32, 8 * 8 * 8), "fc1.b": (32,), "fc2.w": (10, 32), "fc2.b": (10,)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) * 0.1, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["image", "conv.w", "conv.b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc1.w", "fc1.b"], ["g"], name="fc1", transB=1),
        helper.make_node("Relu", ["g"], ["h"], name="relu1"),
        helper.make_node("Gemm", ["h", "fc2.w", "fc2.b"], ["logits"], name="fc2", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)


def build_engine(model_bytes):
    with trt.Builder(TRT_LOGGER) as builder, builder.create_network(EXPLICIT_BATCH) as network, trt.OnnxParser(network, TRT_LOGGER) as parser:
        builder.max_batch_size = 1
        config = builder.create_builder_config()
        config.max_workspace_size = 1 << 28
        config.set_flag(trt.BuilderFlag.REFIT)
        if not parser.parse(model_bytes):
            for error in range(parser.num_errors):
                print(parser.get_error(error))
            return None, None
        return builder.build_engine(network, config), parser.get_refit_map()


def allocate_buffers(engine):
    inputs, outputs, bindings = [], [], []
    stream = cuda.Stream()
    for binding in engine:
        size = trt.volume(engine.get_binding_shape(binding)) * engine.max_batch_size
        dtype = trt.nptype(engine.get_binding_dtype(binding))
        host_mem = cuda.pagelocked_empty(size, dtype)
        device_mem = cuda.mem_alloc(host_mem.nbytes)
        bindings.append(int(device_mem))
        (inputs if engine.binding_is_input(binding) else outputs).append(HostDeviceMem(host_mem, device_mem))
    return inputs, outputs, bindings, stream


def do_inference_v2(context, bindings, inputs, outputs, stream):
    for inp in inputs:
        cuda.memcpy_htod_async(inp.device, inp.host, stream)
    context.execute_async_v2(bindings=bindings, stream_handle=stream.handle)
    for out in outputs:
        cuda.memcpy_dtoh_async(out.host, out.device, stream)
    stream.synchronize()
    return [out.host.copy() for out in outputs]


def refit(engine, refit_map, model):
    """Give the engine the weights of another model of the same structure."""
    initializers = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    refitter = trt.Refitter(engine, TRT_LOGGER)
    for weight, layer, role in zip(*refit_map):
        if not refitter.set_weights(layer, role, np.ascontiguousarray(initializers[weight])):
            return False
    missing_layers, _ = refitter.get_missing()
    return not missing_layers and refitter.refit_cuda_engine()


def main():
    model = onnx.load(sys.argv[1]) if len(sys.argv) > 1 else make_model(seed=0)
    engine, refit_map = build_engine(model.SerializeToString())
    if engine is None:
        return 1
    print("refit map:", ", ".join(f"{layer}/{role.name}={weight}" for weight, layer, role in zip(*refit_map)))

    # Through a file, as programs do that build once and run often.
    buffer = engine.serialize()
    with trt.Runtime(TRT_LOGGER) as runtime:
        engine = runtime.deserialize_cuda_engine(buffer)
    inputs, outputs, bindings, stream = allocate_buffers(engine)
    rng = np.random.default_rng(1)
    with engine.create_execution_context() as context:
        for inp in inputs:
            inp.host[:] = rng.standard_normal(inp.host.size).astype(inp.host.dtype)
        before = do_inference_v2(context, bindings, inputs, outputs, stream)
        print("before:", " ".join(f"{v:.5f}" for v in before[0][:5]))
        # The same structure with other weights.
        other = onnx.ModelProto()
        other.CopyFrom(model)
        for tensor in other.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name))
        if not refit(engine, refit_map, other):
            print("refit failed")
            return 1
        after = do_inference_v2(context, bindings, inputs, outputs, stream)
        print("after:", " ".join(f"{v:.5f}" for v in after[0][:5]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
