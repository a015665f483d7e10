"""TensorRT's runtime on a GPU: addresses and streams of torch, captures, output allocators, refits from the device."""

import numpy as np
import pytest

import dovetail
import dovetail.tensorrt as trt

torch = pytest.importorskip("torch")


class Log(trt.ILogger):
    """Keeps errors."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, msg):
        if severity <= trt.Logger.ERROR:
            self.errors.append(msg)


@pytest.fixture(scope="module")
def engine():
    """x [1..8, 16, 12, 12] → y, a convolution with its activation."""
    rng = np.random.default_rng(0)
    net = dovetail.Network()
    x = net.input("x", "f32", ("1..8", 16, 12, 12))
    w = net.weight("w", rng.standard_normal((32, 16, 3, 3)).astype(np.float32))
    b = net.weight("b", rng.standard_normal(32).astype(np.float32))
    y = net.op("Relu", net.op("Conv", x, w, b, pads=(1, 1, 1, 1)))
    net.output(y, "y")
    data = dovetail.build(net, device="cuda", verify="off", tune=False).to_bytes()
    made = trt.Runtime(Log()).deserialize_cuda_engine(data)
    assert made is not None and made.get_tensor_location("x") is trt.TensorLocation.DEVICE
    return made


def expected(engine, x):
    w, b = (torch.from_numpy(np.array(engine._engine.weight(n))).cuda() for n in ("w", "b"))
    with torch.backends.cudnn.flags(allow_tf32=False):
        return torch.nn.functional.conv2d(x, w, b, padding=1).relu()


def close(y, want):
    torch.cuda.synchronize()
    assert torch.allclose(y, want, rtol=1e-3, atol=1e-3), (y - want).abs().max()


def test_runs_in_torchs_streams_and_without(engine):
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()
    for n in (2, 5, 2):
        with torch.cuda.stream(stream):
            x = torch.randn(n, 16, 12, 12, device="cuda")
            y = torch.empty(n, 32, 12, 12, device="cuda")
            assert context.set_input_shape("x", tuple(x.shape))
            assert context.set_tensor_address("x", x.data_ptr()) and context.set_tensor_address("y", y.data_ptr())
            for _ in range(3):
                y.zero_()
                assert context.execute_async_v3(stream.cuda_stream)
        close(y, expected(engine, x))
        y.zero_()
        assert context.execute_v2([x.data_ptr(), y.data_ptr()])
        close(y, expected(engine, x))


def test_runs_are_captured_in_torchs_graphs(engine):
    context = engine.create_execution_context()
    x, y = torch.randn(4, 16, 12, 12, device="cuda"), torch.empty(4, 32, 12, 12, device="cuda")
    context.set_input_shape("x", tuple(x.shape))
    context.set_tensor_address("x", x.data_ptr())
    context.set_tensor_address("y", y.data_ptr())
    assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    for _ in range(2):
        x.normal_()
        graph.replay()
        close(y, expected(engine, x))


def test_allocators_memory_and_times(engine):
    class Allocator(trt.IOutputAllocator):
        def reallocate_output_async(self, tensor_name, memory, size, alignment, stream):
            self.memory = torch.empty(size // 4, device="cuda")
            return self.memory.data_ptr()

        def notify_shape(self, tensor_name, shape):
            self.shape = tuple(shape)

    class Times(trt.IProfiler):
        def report_layer_time(self, layer_name, ms):
            layers[layer_name] = ms

    layers = {}
    allocator, times = Allocator(), Times()
    context = engine.create_execution_context_without_device_memory()
    x = torch.randn(3, 16, 12, 12, device="cuda")
    context.set_input_shape("x", tuple(x.shape))
    size = context.update_device_memory_size_for_shapes()
    arena = torch.empty(size, dtype=torch.uint8, device="cuda")
    context.set_device_memory(arena.data_ptr(), size)
    context.set_tensor_address("x", x.data_ptr())
    context.set_output_allocator("y", allocator)
    context.profiler = times
    assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    assert allocator.shape == (3, 32, 12, 12) and layers and sum(layers.values()) > 0
    close(allocator.memory[: 3 * 32 * 144].view(3, 32, 12, 12), expected(engine, x))


def test_weights_on_the_device(engine):
    log = Log()
    refitter = trt.Refitter(engine, log)
    new = torch.randn(32, device="cuda")
    torch.cuda.synchronize()
    assert refitter.set_named_weights("b", trt.Weights(trt.float32, new.data_ptr(), 32), trt.TensorLocation.DEVICE)
    assert refitter.refit_cuda_engine(), log.errors
    np.testing.assert_array_equal(engine._engine.weight("b"), new.cpu().numpy())
    context = engine.create_execution_context()
    x, y = torch.randn(1, 16, 12, 12, device="cuda"), torch.empty(1, 32, 12, 12, device="cuda")
    context.set_input_shape("x", tuple(x.shape))
    torch.cuda.synchronize()
    assert context.execute_v2([x.data_ptr(), y.data_ptr()])
    close(y, expected(engine, x))
