"""cuBLASLt and cuDNN on a GPU: every kind of call against the references, in graphs, with stored algorithms and plans."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from dovetail.codegen.tactic import Group, Tactic
from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.core.errors import DeviceError
from dovetail.device.cuda import cublaslt, cudnn, shared_library
from dovetail.device.cuda.memory import DeviceMemory
from dovetail.ir.layout import Layout, channels_last
from dovetail.kernels.cuda.cublaslt_tactic import CublasLt, problem
from dovetail.kernels.cuda.cudnn_tactic import CudnnAttention, CudnnConv, Problem
from tests.gpu.harness import device, run_on_gpu, target
from tests.gpu.reference import relative_l2
from tests.unit.cuda_harness import Body, expected, fused

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]
ERROR = {"f32": 1e-5, "f16": 1e-3, "bf16": 8e-3}
NHWC = channels_last(4)

needs_cublaslt = pytest.mark.skipif(shared_library.missing("cublaslt") is not None, reason=str(shared_library.missing("cublaslt")))
needs_cudnn = pytest.mark.skipif(shared_library.missing("cudnn") is not None, reason=str(shared_library.missing("cudnn")))


def arrays_of(group: Group) -> list[Array]:
    """Operands whose products stay of order one."""
    found = []
    for value in group.inputs:
        kind = value.tensor
        depth = int(np.prod(kind.shape[1:])) if kind.rank == 4 else int(kind.shape[-2]) if kind.rank > 1 else 1
        scale = 1.0 / np.sqrt(max(1, depth)) if value.producer is not None and kind.rank > 1 else 1.0
        found.append((RNG.standard_normal(kind.shape) * scale).astype(kind.dtype.numpy))
    return found


def agrees(group: Group, tactic: Tactic, n: int = 0) -> None:
    config = tuple(tactic.configs(group, target()))[n]
    arrays = arrays_of(group)
    (got,) = run_on_gpu(group, tactic, config, arrays)
    (want,) = expected(group, arrays)
    kind = group.outputs[0].tensor.dtype.name
    error = relative_l2(got, want)
    assert error <= ERROR[kind], f"relative L2 {error:.1e}"


# --- products -------------------------------------------------------------------------------------


def product(kind: DType, m: int, k: int, n: int, *extra: str, batch: tuple[int, ...] = (), transpose: str = "") -> Group:
    rank = len(batch) + 2
    swapped = Layout((*range(rank - 2), rank - 1, rank - 2))

    def build(b: Body) -> Any:
        first = b.input(kind, *batch, m, k, layout=swapped if "a" in transpose else None)
        if batch:
            second = b.input(kind, *batch, k, n, layout=swapped if "b" in transpose else None)
        else:
            second = b.weight(kind, k, n)
        y = b("MatMul", first, second)
        for step in extra:
            if step == "bias":
                y = b("Add", y, b.weight(kind, n))
            elif step == "residual":
                y = b("Add", b.input(kind, *batch, m, n), y)
            else:
                y = b("Relu", y) if step == "relu" else b("Gelu", y, approximate="tanh")
        return y

    return fused(build, kind="matmul", anchor="MatMul")


PRODUCTS = {
    "plain": product(F16, 128, 768, 768),
    "bias": product(F16, 128, 768, 3072, "bias"),
    "bias, gelu": product(F16, 128, 768, 3072, "bias", "gelu"),
    "bias, relu": product(F16, 100, 200, 136, "bias", "relu"),
    "residual, bias": product(F16, 128, 3072, 768, "residual", "bias"),
    "relu alone": product(F16, 64, 64, 64, "relu"),
    "one row": product(F16, 1, 2048, 1000, "bias"),
    "odd sizes": product(F16, 37, 53, 29, "bias"),
    "many rows": product(F16, 4096, 768, 768, "bias"),
    "batches": product(F16, 197, 64, 197, batch=(12,)),
    "batches, second transposed": product(F16, 197, 64, 197, batch=(3, 4), transpose="b"),
    "batches, first transposed": product(F16, 64, 96, 48, batch=(5,), transpose="a"),
    "bf16": product(BF16, 128, 768, 768, "bias", "relu"),
    "fp32": product(F32, 128, 256, 192, "bias"),
}


@needs_cublaslt
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    agrees(PRODUCTS[name], CublasLt())


@needs_cublaslt
def test_other_proposals_agree_too() -> None:
    for n in range(1, 4):
        agrees(PRODUCTS["bias, gelu"], CublasLt(), n)


@needs_cublaslt
def test_a_recorded_algorithm_is_used_again_and_another_version_asks_anew() -> None:
    group = PRODUCTS["bias"]
    found = problem(group, target())
    assert not isinstance(found, str)
    dims = [int(found.dims[name]) for name in cublaslt.DIMS]  # type: ignore[arg-type]  # all known here
    with device().active():
        made = cublaslt.Matmul(device(), found.call, dims)
        record = made.recorded()
        again = cublaslt.prepare(device(), record, dims)
        assert again.recorded() == record and again.workspace == made.workspace
        stale = cublaslt.prepare(device(), record | {"version": 1}, dims)
        assert stale.recorded()["version"] == cublaslt.version()


@needs_cublaslt
def test_a_product_in_a_graph() -> None:
    m, n, k = 64, 96, 128
    a, b = (RNG.standard_normal(s).astype(np.float16) for s in ((m, k), (k, n)))
    gpu = device()
    call = cublaslt.Description("f16", "f16")
    with gpu.active():
        matmul = cublaslt.prepare(gpu, call.json(), (m, n, k, k, n, n, n, 1, 0, 0, 0, 0))
        memory = [DeviceMemory(gpu, size) for size in (a.nbytes, b.nbytes, 2 * m * n, matmul.workspace)]
        stream = gpu.create_stream()
        at = [x.address for x in memory]
        gpu.upload(at[0], a, stream)
        gpu.upload(at[1], b, stream)
        gpu.synchronize(stream)
        gpu.begin_capture(stream)
        matmul.launch(at[:3], at[3], stream)
        graph = gpu.end_capture(stream)
        gpu.zero(at[2], 2 * m * n, stream)
        for _ in range(3):
            gpu.launch_graph(graph, stream)
        got = np.empty((m, n), np.float16)
        gpu.download(got, at[2], stream)
        gpu.synchronize(stream)
        gpu.destroy_graph(graph)
        gpu.destroy_stream(stream)
    want = a.astype(np.float32) @ b.astype(np.float32)
    assert relative_l2(got, want) <= 1e-3


@needs_cublaslt
def test_the_structures_are_the_librarys() -> None:
    assert cublaslt.version() >= 120000
    assert ctypes.sizeof(cublaslt.HeuristicResult) == 96


# --- convolutions ---------------------------------------------------------------------------------


def convolution(
    kind: DType, x: tuple[int, int, int, int], filters: int, taps: int, *extra: str, stride: int = 1, group: int = 1
) -> Group:
    pad = taps // 2
    attrs = {"strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (1, 1), "group": group}

    def build(b: Body) -> Any:
        n, c, h, w = x
        out = [(d + 2 * pad - taps) // stride + 1 for d in (h, w)]
        weights = b.weight(kind, filters, c // group, taps, taps)
        inner = b.weight(kind, filters) if "bias" in extra else None
        y = b("Conv", b.input(kind, n, c, h, w, layout=NHWC), weights, *([inner] if inner is not None else []), **attrs)
        for step in extra:
            if step == "residual":
                y = b("Add", y, b.input(kind, n, filters, *out, layout=NHWC))
            elif step != "bias":
                y = b(step, y)
        return y

    return fused(build, kind="conv", anchor="Conv", layout=NHWC)


CONVOLUTIONS = {
    "plain": convolution(F16, (2, 64, 14, 14), 64, 3),
    "1x1, bias, relu": convolution(F16, (1, 256, 14, 14), 64, 1, "bias", "Relu"),
    "3x3, bias, relu": convolution(F16, (1, 64, 28, 28), 64, 3, "bias", "Relu"),
    "stride, bias, relu": convolution(F16, (2, 128, 28, 28), 128, 3, "bias", "Relu", stride=2),
    "residual": convolution(F16, (2, 64, 14, 14), 256, 1, "bias", "residual", "Relu"),
    "swish": convolution(F16, (1, 32, 14, 14), 48, 1, "bias", "Swish"),
    "bf16": convolution(BF16, (1, 64, 14, 14), 64, 3, "bias", "Relu"),
    "groups": convolution(F16, (1, 96, 14, 14), 96, 3, group=4),
}


@needs_cudnn
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    try:
        agrees(CONVOLUTIONS[name], CudnnConv())
    except DeviceError as error:
        if name in ("groups", "swish") and "engines for" in str(error):
            pytest.skip(str(error))
        raise


@needs_cudnn
def test_an_execution_plan_is_restored_from_its_text(tmp_path: Any) -> None:
    from dovetail.core.env import override

    found = CudnnConv().problem(CONVOLUTIONS["1x1, bias, relu"], target())
    assert isinstance(found, Problem)
    with override(cache=tmp_path), device().active():
        made = cudnn.Ready(device(), cudnn.describe(found.call))
        record = made.recorded()
        restored = cudnn.Ready(device(), record)
        assert restored.workspace == made.workspace and len(record["plan"]) > 100
        assert len(list((tmp_path / "cudnn").glob("*.json"))) == 1


@needs_cudnn
def test_attention() -> None:
    if cudnn.version() < 91300:
        pytest.skip(f"cuDNN {cudnn.version()} has no attention operation")

    def build(b: Body) -> Any:
        q, k, v = (b.input(F16, 2, 12, 128, 64) for _ in range(3))
        return b("Attention", q, k, v, scale=0.125)

    agrees(fused(build, kind="attention", anchor="Attention"), CudnnAttention())
