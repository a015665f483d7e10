"""Small engines on the CPU with a record, for tests of what runs them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import dovetail
import dovetail.tensorrt as trt
from dovetail.tensorrt.record import Layer, ProfileRecord, Record


class Log(trt.ILogger):
    """Keeps messages."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[tuple[Any, str]] = []

    def log(self, severity: Any, msg: str) -> None:
        """Keep one."""
        self.messages.append((severity, msg))

    def errors(self) -> list[str]:
        """Errors since the last call."""
        found = [text for severity, text in self.messages if severity is trt.Logger.ERROR]
        self.messages.clear()
        return found


class Errors(trt.IErrorRecorder):
    """Keeps codes and texts."""

    def __init__(self) -> None:
        trt.IErrorRecorder.__init__(self)
        self.kept: list[tuple[Any, str]] = []

    def report_error(self, code: Any, desc: str) -> bool:
        """Keep one."""
        self.kept.append((code, desc))
        return True


def built(net: dovetail.Network, **options: Any) -> dovetail.Engine:
    """An engine by rule, unverified: quick, and the same every time."""
    return dovetail.build(net, verify="off", tune=False, threads=1, **options)


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Seeded normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _profile(low: int, best: int, high: int) -> ProfileRecord:
    return ProfileRecord({"x": tuple((n, 3, 6, 5) for n in (low, best, high))})  # type: ignore[arg-type]


IMAGE = Record(
    name="image",
    inputs=("x",),
    outputs=("y", "raw"),
    layers=(Layer("conv", "CONVOLUTION", "[ONNX Layer: conv]"), Layer("relu", "ACTIVATION"), Layer("soft", "SOFTMAX")),
    profiles=(_profile(1, 2, 4), _profile(3, 5, 8)),
    refittable=True,
    roles=(("conv", "KERNEL", "conv.w"), ("conv", "BIAS", "conv.b")),
    debug=("shown",),
    debug_unfused=True,
    verbosity="DETAILED",
    tactic_sources=5,
    max_workspace_size=1 << 20,
    ranges={"y": (-1.0, 1.0)},
)


@functools.cache
def image() -> bytes:
    """x [1..8, 3, 6, 5] → y, the softmax of a convolution, and raw, the convolution; `shown` is a debug tensor."""
    net = dovetail.Network()
    x = net.input("x", "f32", ("1..8", 3, 6, 5))
    w, b = net.weight("conv.w", normal(4, 3, 3, 3)), net.weight("conv.b", normal(4))
    conv = net.op("Conv", x, w, b, pads=(1, 1, 1, 1), name="conv")
    relu = net.op("Relu", conv, name="relu")
    net.output(net.op("Softmax", relu, axis=1, name="soft"), "y")
    net.output(relu, "raw")
    net.output(net.op("Neg", relu, name="neg"), "shown")
    engine = built(net)
    IMAGE.attach(engine)
    return engine.to_bytes()


@functools.cache
def bare() -> bytes:
    """x [N, 5] → y = relu(x w), of an engine that knows nothing of TensorRT."""
    net = dovetail.Network()
    net.output(net.op("Relu", net.op("MatMul", net.input("x", "f32", ("N", 5)), net.weight("w", normal(5, 3)), name="product")), "y")
    return built(net).to_bytes()


@functools.cache
def positions() -> bytes:
    """x [1..9, 4] → t, where x is positive: [2, count]; z = 2 x."""
    net = dovetail.Network()
    x = net.input("x", "f32", ("1..9", 4))
    net.output(net.op("NonZero", net.op("Greater", x, np.float32(0))), "t")
    net.output(net.op("Mul", x, np.float32(2)), "z")
    return built(net).to_bytes()


@functools.cache
def expanded() -> bytes:
    """x [1, 1] and shape [2] → y, x in that shape."""
    net = dovetail.Network()
    shape = net.input("shape", "i32", (2,))
    x = net.input("x", "f32", (1, 1))
    net.output(net.op("Expand", x, net.op("Cast", shape, to=np.int64)), "y")
    engine = built(net)
    values = ((1, 1), (2, 3), (6, 7))
    Record(
        inputs=("shape", "x"), outputs=("y",), shape_inputs=("shape",),
        profiles=(ProfileRecord({"shape": ((2,),) * 3, "x": ((1, 1),) * 3}, {"shape": values}),),
    ).attach(engine)  # fmt: skip
    return engine.to_bytes()


@functools.cache
def batched() -> bytes:
    """x [5] → y = x w [3], with an implicit batch of up to 4."""
    net = dovetail.Network()
    net.output(net.op("MatMul", net.input("x", "f32", ("1..4", 5)), net.weight("w", normal(5, 3))), "y")
    engine = built(net)
    Record(
        inputs=("x",), outputs=("y",), implicit_batch=True, max_batch_size=4,
        profiles=(ProfileRecord({"x": ((1, 5), (4, 5), (4, 5))}),),
    ).attach(engine)  # fmt: skip
    return engine.to_bytes()


@functools.cache
def cache() -> bytes:
    """past [2, 3] and new [2, 3] → now = past + new, in the place of past, and y = 2 past."""
    net = dovetail.Network()
    past, new = net.input("past", "f32", (2, 3)), net.input("new", "f32", (2, 3))
    net.output(net.op("Add", past, new), "now")
    net.output(net.op("Mul", past, np.float32(2)), "y")
    engine = built(net)
    Record(
        inputs=("past", "new"), outputs=("now", "y"), aliased={"now": "past"},
        profiles=(ProfileRecord({"past": ((2, 3),) * 3, "new": ((2, 3),) * 3}),),
    ).attach(engine)  # fmt: skip
    return engine.to_bytes()


@functools.cache
def channels_last() -> bytes:
    """x [1..4, 8, 2, 3] and y of that shape, both with channels last in memory: y = 3 x."""
    net = dovetail.Network()
    net.output(net.op("Mul", net.input("x", "f32", ("1..4", 8, 2, 3)), np.float32(3)), "y")
    engine = built(net, io_formats={"x": "channels_last", "y": "channels_last"})
    Record(
        inputs=("x",), outputs=("y",), formats={"x": "HWC", "y": "HWC"},
        profiles=(ProfileRecord({"x": tuple((n, 8, 2, 3) for n in (1, 2, 4))}),),  # type: ignore[dict-item]
    ).attach(engine)  # fmt: skip
    return engine.to_bytes()


def opened(data: bytes, log: trt.ILogger | None = None, **settings: Any) -> Any:
    """The engine of those bytes."""
    runtime = trt.Runtime(Log() if log is None else log)
    for name, value in settings.items():
        setattr(runtime, name, value)
    engine = runtime.deserialize_cuda_engine(data)
    assert engine is not None
    return engine


def at(array: np.ndarray[Any, Any]) -> int:
    """The array's address."""
    return int(array.ctypes.data)


class Buffers(trt.IOutputAllocator):
    """Gives each output host memory, and keeps what it was told."""

    def __init__(self) -> None:
        trt.IOutputAllocator.__init__(self)
        self.memory: dict[str, np.ndarray[Any, Any]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.asked: list[tuple[str, int, int, int]] = []

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
        """Fresh memory."""
        self.asked.append((tensor_name, memory, size, alignment))
        self.memory[tensor_name] = np.zeros(size, np.uint8)
        return at(self.memory[tensor_name])

    def notify_shape(self, tensor_name: str, shape: Any) -> None:
        """Keep the shape."""
        self.shapes[tensor_name] = tuple(shape)

    def array(self, name: str, dtype: Any) -> np.ndarray[Any, Any]:
        """What was written."""
        return self.memory[name].view(dtype).reshape(self.shapes[name])
