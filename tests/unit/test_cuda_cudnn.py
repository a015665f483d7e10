"""cuDNN calls without cuDNN: what is described, what is refused and why, which descriptors a graph is made of."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from dovetail.codegen.tactic import Group
from dovetail.core.dims import sym
from dovetail.core.dtypes import F16, F32
from dovetail.core.env import override
from dovetail.core.errors import DeviceError
from dovetail.device.cuda import cudnn, cudnn_backend, libraries, shared_library
from dovetail.device.cuda.cudnn import Attention, Convolution, describe, parse
from dovetail.device.cuda.cudnn_backend import Kind, Name, Type
from dovetail.ir.layout import channels_last
from dovetail.kernels.cuda.cudnn_tactic import CudnnAttention, CudnnConv, Problem
from dovetail.reference import lookup
from dovetail.tuner.launch import with_packs
from tests.unit.cuda_harness import SM90, Body, expected, fused

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]
NHWC = channels_last(4)
CONV: dict[str, Any] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}


def conv(build: Any) -> Group:
    return fused(build, kind="conv", anchor="Conv", layout=NHWC)


def image(b: Body, *shape: Any) -> Any:
    return b.input(F32, *shape, layout=NHWC)


def bottleneck(b: Body) -> Any:
    """Bias inside the convolution, a residual and ReLU behind it."""
    y = b("Conv", image(b, 2, 5, 9, 8), b.weight(F32, 6, 5, 3, 3), b.weight(F32, 6), strides=(2, 1), pads=(1, 0, 1, 2), dilations=(1, 2))
    return b("Relu", b("Add", y, image(b, 2, 6, 5, 6)))


CASES: dict[str, Any] = {
    "plain": lambda b: b("Conv", image(b, 2, 5, 7, 8), b.weight(F32, 3, 5, 3, 2), **CONV),
    "one tap": lambda b: b("Conv", image(b, 1, 5, 7, 8), b.weight(F32, 3, 5, 1, 1), **CONV),
    "residual": bottleneck,
    "bias outside": lambda b: b(
        "Sigmoid", b("Add", b("Conv", image(b, 1, 4, 5, 5), b.weight(F32, 3, 4, 3, 3), **CONV), b.weight(F32, 1, 3, 1, 1))),
    "groups": lambda b: b("Swish", b("Conv", image(b, 1, 6, 5, 5), b.weight(F32, 4, 3, 3, 3), group=2, **CONV)),
    "relu6": lambda b: b("Clip", b("Conv", image(b, 1, 4, 5, 5), b.weight(F32, 3, 4, 1, 1), **CONV), min=0.0, max=6.0),
}  # fmt: skip

ACTIVATIONS: dict[str, Any] = {
    "": lambda x: x, "relu": lambda x: np.maximum(x, 0), "relu6": lambda x: np.clip(x, 0, 6), "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
}  # fmt: skip


def as_laid(array: Array, tensor: cudnn.Tensor) -> Array:
    """The values that a described tensor has, read from memory that holds `array` as its operand does."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return np.lib.stride_tricks.as_strided(flat, tensor.dims, [4 * s for s in tensor.strides])


@pytest.mark.parametrize("name", CASES)
def test_the_description_means_what_the_group_means(name: str) -> None:
    group, tactic = conv(CASES[name]), CudnnConv()
    config = tactic.configs(group, SM90)[0]
    packed = with_packs(group, tactic, config, SM90)
    found = tactic.problem(packed, SM90)
    assert isinstance(found, Problem) and isinstance(found.call, Convolution), found
    call = found.call
    arrays = [RNG.standard_normal(v.tensor.shape).astype(np.float32) for v in group.inputs]
    memory = {}
    for argument, operand in zip(call.arguments, found.operands, strict=True):
        if operand.role == "in":
            array = arrays[operand.index]
            # Images and filters lie with channels innermost, biases as they are.
            memory[argument] = array.transpose(0, 2, 3, 1) if argument in ("x", "w", "residual") else array
    x, w = as_laid(memory["x"], call.x), as_laid(memory["w"], call.w)
    pads = (*call.low, *call.high)
    y = lookup("Conv")(x, w, strides=call.strides, pads=pads, dilations=call.dilations, group=x.shape[1] // w.shape[1])
    if call.bias:
        y = y + memory["bias"].reshape(1, -1, 1, 1)
    if call.residual is not None:
        y = y + as_laid(memory["residual"], call.residual)
    np.testing.assert_allclose(ACTIVATIONS[call.activation](y), expected(group, arrays)[0], rtol=2e-5, atol=2e-5)
    assert call.y.dims == y.shape and call.y.strides[1] == 1


def test_the_residual_of_one_image_has_strides_of_its_own() -> None:
    def build(b: Body) -> Any:
        return b("Add", b("Conv", image(b, 1, 4, 5, 5), b.weight(F32, 3, 4, 1, 1), **CONV), image(b, 1, 3, 5, 5))

    found = CudnnConv().problem(conv(build), SM90)
    assert isinstance(found, Problem) and isinstance(found.call, Convolution)
    assert found.call.residual == found.call.y and 0 not in found.call.y.strides


N = sym("N")
REFUSED: dict[str, tuple[Any, str]] = {
    "unknown batch": (lambda b: b("Conv", image(b, N, 5, 7, 8), b.weight(F32, 3, 5, 1, 1), **CONV), "not known at build"),
    "depthwise": (lambda b: b("Conv", image(b, 1, 4, 7, 8), b.weight(F32, 4, 1, 3, 3), group=4, **CONV), "depthwise"),
    "run-time filters": (lambda b: b("Conv", image(b, 1, 4, 7, 8), b.input(F32, 4, 4, 3, 3), **CONV), "computed at run time"),
    "scale": (lambda b: b("Mul", b("Conv", image(b, 1, 4, 7, 8), b.weight(F32, 4, 4, 1, 1), **CONV), b.weight(F32, 4, 1, 1)), "has Mul"),
    "one axis": (
        lambda b: b("Conv", b.input(F32, 1, 4, 7), b.weight(F32, 4, 4, 3), strides=(1,), pads=(0, 0), dilations=(1,)), "1 spatial axes"),
    "bias along rows": (
        lambda b: b("Add", b("Conv", image(b, 1, 4, 7, 8), b.weight(F32, 4, 4, 1, 1), **CONV), b.weight(F32, 7, 1)), "neither one bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_library_has_no_graph_for_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, reason = REFUSED[name]
    layout = None if name == "one axis" else NHWC
    group = fused(build, kind="conv", anchor="Conv", layout=layout)
    monkeypatch.setattr(shared_library, "missing", lambda name: None)
    said = CudnnConv().supports(group, SM90)
    assert said is not None and reason in said


def attention(b: Body, **attrs: Any) -> Any:
    q, k, v = b.input(F16, 2, 5, 48), b.input(F16, 2, 7, 16), b.input(F16, 2, 7, 16)
    return b("Attention", q, k, v, scale=0.25, q_heads=3, kv_heads=1, **attrs)


def test_attention_with_heads_packed_in_rows() -> None:
    group = fused(attention, kind="attention", anchor="Attention")
    found = CudnnAttention().problem(group, SM90)
    assert isinstance(found, Problem) and isinstance(found.call, Attention), found
    assert found.call.q == cudnn.Tensor((2, 3, 5, 16), (240, 16, 48, 1))
    assert found.call.k == cudnn.Tensor((2, 1, 7, 16), (112, 16, 16, 1))
    assert found.call.o.dims == (2, 3, 5, 16) and found.call.scale == 0.25
    causal = fused(lambda b: attention(b, is_causal=True), kind="attention", anchor="Attention")
    assert "causal" in str(CudnnAttention().problem(causal, SM90))


def test_calls_survive_the_plan() -> None:
    call = Convolution(
        "f16", cudnn.Tensor((1, 8, 4, 4), (128, 1, 32, 8)), cudnn.Tensor((8, 8, 1, 1), (8, 1, 8, 8)),
        cudnn.Tensor((1, 8, 4, 4), (128, 1, 32, 8), 2), (1, 1), (1, 1), (0, 0), (0, 0), True, None, "gelu_erf", heuristic=2,
    )  # fmt: skip
    assert parse(describe(call)) == call
    assert parse(describe(call) | {"plan": "{}", "version": 91900}) == call
    for change in ({"op": "matmul"}, {"type": "i8"}, {"activation": "tan"}, {"x": 3}, {"more": 1}):
        with pytest.raises(DeviceError, match=r"cudnn: got the call"):
            parse(describe(call) | change)


def test_a_missing_library_is_an_error_of_the_engine_that_calls_it() -> None:
    with override(cudnn="/nowhere/libcudnn.so.9"):
        assert "is not installed here" in str(CudnnConv().supports(conv(CASES["plain"]), SM90))
        cudnn_backend.library.cache_clear()
        with pytest.raises(DeviceError, match=r"libcudnn\.so\.9, which cannot be loaded here"):
            libraries.prepare("cudnn", FakeDriver(), describe(call_of("plain")), ())  # type: ignore[arg-type]


def call_of(name: str) -> Convolution:
    found = CudnnConv().problem(conv(CASES[name]), SM90)
    assert isinstance(found, Problem) and isinstance(found.call, Convolution)
    return found.call


class FakeDriver:
    """Enough of a device to be asked which one it is."""

    class properties:
        ordinal, name, capability, driver_version = 7, "a device for tests", 90, 13000

    @contextmanager
    def active(self) -> Iterator[None]:
        yield


class FakeLibrary:
    """Records what descriptors are made of; offers engines with the given notes."""

    def __init__(self, notes: list[list[int]]) -> None:
        self.numbers = itertools.count(1)
        self.kinds: dict[int, int] = {}
        self.attributes: dict[int, dict[int, list[Any]]] = {}
        self.notes, self.engines, self.executed = notes, dict[int, int](), list[Any]()

    def cudnnGetVersion(self) -> int:
        return 91900

    def cudnnCreate(self, out: Any) -> int:
        out._obj.value = 4711
        return 0

    def cudnnSetStream(self, handle: int, stream: int) -> int:
        self.stream = stream
        return 0

    def cudnnBackendCreateDescriptor(self, kind: int, out: Any) -> int:
        number = next(self.numbers)
        self.kinds[number], self.attributes[number] = int(kind), {}
        out._obj.value = number
        return 0

    def cudnnBackendDestroyDescriptor(self, handle: Any) -> int:
        return 0

    def cudnnBackendFinalize(self, handle: Any) -> int:
        return 0

    def cudnnBackendSetAttribute(self, handle: Any, name: int, type_: int, count: int, array: Any) -> int:
        self.attributes[handle.value][int(name)] = [array] if isinstance(array, bytes) else list(array)
        return 0

    def cudnnBackendGetAttribute(self, handle: Any, name: int, type_: int, most: int, count: Any, array: Any) -> int:
        number = handle.value
        if name == Name.HEURISTIC_RESULTS:
            first = self.attributes[number][Name.HEURISTIC_MODE] == [3]
            for n in range(len(self.notes) if first else 0):
                self.engines[array[n]] = n
            count._obj.value = len(self.notes) if first else 0
        elif name == Name.ENGINE_CONFIG_ENGINE:
            self.engines[array[0]] = self.engines[number]
            count._obj.value = 1
        elif name == Name.ENGINE_NUMERICAL_NOTE:
            notes = self.notes[self.engines[number]]
            for n, note in enumerate(notes):
                array[n] = note
            count._obj.value = len(notes)
        elif name == Name.PLAN_WORKSPACE_SIZE:
            array[0] = 1024
            count._obj.value = 1
        elif name == Name.PLAN_JSON:
            text = b'{"engine": 1}\0'
            count._obj.value = len(text)
            if array is not None:
                ctypes.memmove(array, text, len(text))
        return 0

    def cudnnBackendExecute(self, handle: int, plan: int, pack: int) -> int:
        self.executed.append((plan, self.attributes[pack]))
        return 0

    def of(self, kind: Kind) -> list[dict[int, list[Any]]]:
        return [self.attributes[n] for n, k in self.kinds.items() if k == kind]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    lib = FakeLibrary([[0], [0, 4], [5], [0]])
    monkeypatch.setattr(cudnn_backend, "library", lambda: lib)
    monkeypatch.setattr(cudnn, "_handles", {})
    with override(cache=tmp_path):
        yield lib


def test_the_graph_of_a_fused_convolution(fake: FakeLibrary) -> None:
    call = call_of("residual")
    ready = cudnn.Ready(FakeDriver(), describe(call) | {"type": "f16"})  # type: ignore[arg-type]
    adds = fake.of(Kind.POINTWISE)
    assert [d[Name.POINTWISE_MODE] for d in adds] == [[0], [0], [100]]
    tensors = fake.of(Kind.TENSOR)
    virtual = [t for t in tensors if Name.TENSOR_IS_VIRTUAL in t]
    assert len(virtual) == 3 and all(t[Name.TENSOR_DATA_TYPE] == [0] for t in virtual)
    assert sorted(t[Name.TENSOR_UNIQUE_ID][0] for t in tensors if t not in virtual) == [1, 2, 3, 4, 5]
    (operation,) = fake.of(Kind.OPERATION_CONVOLUTION_FORWARD)
    assert operation[Name.CONVOLUTION_FORWARD_ALPHA] == [1.0] and operation[Name.CONVOLUTION_FORWARD_BETA] == [0.0]
    (conv_,) = fake.of(Kind.CONVOLUTION)
    assert conv_[Name.CONVOLUTION_PRE_PADDINGS] == [1, 0] and conv_[Name.CONVOLUTION_POST_PADDINGS] == [1, 2]
    (graph,) = fake.of(Kind.GRAPH)
    assert len(graph[Name.GRAPH_OPS]) == 4
    assert ready.workspace == 1024
    ready.launch([10, 20, 30, 40, 50], 60, 70)
    (_, pack), = fake.executed
    assert pack[Name.PACK_UNIQUE_IDS] == [1, 2, 3, 4, 5] and pack[Name.PACK_DATA_POINTERS] == [10, 20, 30, 40, 50]
    assert pack[Name.PACK_WORKSPACE] == [60] and fake.stream == 70


def test_engines_that_vary_or_transform_are_passed_over(fake: FakeLibrary) -> None:
    call = describe(call_of("plain")) | {"type": "f16"}
    first, second = (cudnn.Ready(FakeDriver(), call | {"heuristic": n}) for n in range(2))  # type: ignore[arg-type]
    del first, second
    assert [fake.engines[p[Name.PLAN_ENGINE_CONFIG][0]] for p in fake.of(Kind.PLAN)] == [0, 3]
    with pytest.raises(DeviceError, match=r"got 2 engines .*, expected more than 2"):
        cudnn.Ready(FakeDriver(), call | {"heuristic": 2})  # type: ignore[arg-type]
    # In fp32 the tensor cores would round the operands.
    with pytest.raises(DeviceError, match=r"got 0 engines"):
        cudnn.Ready(FakeDriver(), describe(call_of("plain")))  # type: ignore[arg-type]


def test_plans_are_kept_for_the_next_process_and_for_engine_files(fake: FakeLibrary) -> None:
    call = describe(call_of("plain")) | {"type": "f16"}
    made = cudnn.Ready(FakeDriver(), call)  # type: ignore[arg-type]
    heuristics = len(fake.of(Kind.HEURISTIC))
    again = cudnn.Ready(FakeDriver(), call)  # type: ignore[arg-type]
    assert len(fake.of(Kind.HEURISTIC)) == heuristics, "the plan of the cache was used"
    assert again.recorded() == made.recorded() == call | {"plan": '{"engine": 1}', "version": 91900}


def test_plans_are_made_ahead_in_threads(fake: FakeLibrary) -> None:
    call = describe(call_of("plain")) | {"type": "f16"}
    driver: Any = FakeDriver()
    cudnn.warm(driver, [call, call, call | {"heuristic": 1}, call | {"heuristic": 9}], jobs=2)
    made = len(fake.of(Kind.PLAN))
    assert made == 2
    cudnn.Ready(driver, call | {"heuristic": 1})
    assert fake.of(Kind.PLAN)[made:] == [{Name.PLAN_HANDLE: [4711], Name.PLAN_JSON: [b'{"engine": 1}']}]


def test_attention_passes_its_scale_by_value(fake: FakeLibrary) -> None:
    group = fused(attention, kind="attention", anchor="Attention")
    found = CudnnAttention().problem(group, SM90)
    assert isinstance(found, Problem)
    ready = cudnn.Ready(FakeDriver(), describe(found.call))  # type: ignore[arg-type]
    ready.launch([10, 20, 30, 40], 0, 0)
    pack = fake.executed[0][1]
    assert pack[Name.PACK_UNIQUE_IDS] == [1, 2, 3, 4, 5]
    assert ctypes.c_float.from_address(pack[Name.PACK_DATA_POINTERS][4]).value == 0.25
    (by_value,) = [t for t in fake.of(Kind.TENSOR) if Name.TENSOR_IS_BY_VALUE in t]
    assert by_value[Name.TENSOR_DIMENSIONS] == [1, 1, 1, 1]


def test_numbers_of_the_public_header() -> None:
    assert (Kind.OPERATION_SDPA_FORWARD, Type.DESCRIPTOR, Type.CHAR, Name.PLAN_JSON, Name.SDPA_SCALE) == (41, 15, 24, 405, 2805)
