"""TensorRT's plugins on a GPU: device addresses and streams for torch, a Triton kernel compiled ahead of time."""

from typing import Any

import numpy as np
import pytest

import dovetail.tensorrt as trt
import dovetail.tensorrt.plugin as trtp

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def add_kernel(x_ptr, n_elements, y_ptr, BLOCK_SIZE: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = offsets < n_elements
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask=inside) + 1, mask=inside)


@trtp.register("gpu::add")
def add_desc(x: trtp.TensorDesc, block: int) -> trtp.TensorDesc:
    return x.like()


@trtp.impl("gpu::add")
def add(x: trtp.Tensor, block: int, outputs: tuple[trtp.Tensor], stream: int) -> None:
    with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
        source, target = (torch.as_tensor(t, device="cuda") for t in (x, outputs[0]))
        add_kernel[(triton.cdiv(x.numel(), block),)](source, x.numel(), target, BLOCK_SIZE=block)


@trtp.aot_impl("gpu::add")
def add_compiled(x: trtp.TensorDesc, block: int, outputs: tuple[trtp.TensorDesc]):
    source = triton.compiler.ASTSource(
        fn=add_kernel, signature={"x_ptr": "*fp32", "n_elements": "i32", "y_ptr": "*fp32", "BLOCK_SIZE": "constexpr"},
        constexprs={"BLOCK_SIZE": block},
    )  # fmt: skip
    compiled = triton.compile(source)
    count = x.shape_expr.numel()
    params = trtp.KernelLaunchParams()
    params.grid_x, params.block_x = trtp.cdiv(count, block), compiled.metadata.num_warps * 32
    params.shared_mem = compiled.metadata.shared
    arguments = trtp.SymIntExprs(1)
    arguments[0] = trtp.SymInt32(count)
    return compiled.metadata.name, compiled.asm["ptx"], params, arguments


@pytest.mark.parametrize("aot", [False, True])
def test_a_plugin_between_layers_runs_on_device_memory(aot: bool) -> None:
    logger = trt.Logger()
    builder = trt.Builder(logger)
    network = builder.create_network()
    x = network.add_input("x", trt.float32, (-1, 33))
    relu = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    made = network.add_plugin(trtp.op.gpu.add(relu, block=64), aot=aot).get_output(0)
    last = network.add_elementwise(made, x, trt.ElementWiseOperation.SUM).get_output(0)
    last.name = "y"
    network.mark_output(last)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 33), (8, 33), (64, 33))
    config.add_optimization_profile(profile)
    engine: Any = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()
    for rows in (1, 8, 61):
        given = torch.from_numpy(np.random.default_rng(rows).standard_normal((rows, 33)).astype(np.float32)).cuda()
        result = torch.empty_like(given)
        torch.cuda.synchronize()
        assert context.set_input_shape("x", tuple(given.shape))
        assert context.set_tensor_address("x", given.data_ptr()) and context.set_tensor_address("y", result.data_ptr())
        assert context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        torch.testing.assert_close(result, torch.relu(given) + 1 + given)
