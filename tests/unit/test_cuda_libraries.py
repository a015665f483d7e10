"""Library calls without the libraries: what is described, what is refused and why, what is found where."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.codegen.tactic import Group
from dovetail.core.dims import evaluate, sym
from dovetail.core.dtypes import BF16, F16, F32
from dovetail.core.env import override
from dovetail.core.errors import DeviceError
from dovetail.device.cuda import cublaslt, shared_library
from dovetail.device.cuda.cublaslt import Description, HeuristicResult, matrices
from dovetail.ir.layout import Layout
from dovetail.kernels.cuda import cublaslt_tactic
from dovetail.kernels.cuda.cublaslt_tactic import CublasLt, Problem, problem
from tests.unit.cuda_harness import SM90, Body, expected, fused

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def matmul(build: Any, layout: Layout | None = None) -> Group:
    return fused(build, kind="matmul", anchor="MatMul", layout=layout)


def transposed(rank: int) -> Layout:
    """The last two axes the other way round in memory."""
    return Layout((*range(rank - 2), rank - 1, rank - 2))


def place(array: Array, strides: tuple[int, ...]) -> Array:
    """A flat buffer that holds an array at element strides, NaN elsewhere."""
    flat = np.full(1 + sum((d - 1) * s for d, s in zip(array.shape, strides, strict=True)), np.nan, np.float32)
    np.lib.stride_tricks.as_strided(flat, array.shape, [4 * s for s in strides])[...] = array
    return flat


def by_columns(flat: Array, matrix: cublaslt.Matrix, index: int) -> Array:
    start = flat[index * matrix.stride :]
    return np.lib.stride_tricks.as_strided(start, (matrix.rows, matrix.columns), (4, 4 * matrix.leading))


ACTIVATIONS = {
    "": lambda x: x, "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}  # fmt: skip


def run_as_the_library_would(found: Problem, group: Group, arrays: list[Array], sizes: dict[str, int]) -> Array:
    """D by cuBLASLt's definition: columns first, bias along the rows of the column-major result."""
    call, dims = found.call, [evaluate(found.dims[name], sizes) for name in cublaslt.DIMS]

    def strides(value: Any) -> tuple[int, ...]:
        kind = value.tensor
        return tuple(evaluate(s, sizes) for s in kind.placement.strides(kind.shape))

    flat = {}
    for name, operand in zip(call.arguments, found.operands, strict=True):
        if operand.role == "in":
            flat[name] = place(arrays[operand.index], strides(group.inputs[operand.index]))
    shape = tuple(evaluate(d, sizes) for d in group.outputs[0].tensor.shape)
    own = strides(group.outputs[0])
    flat["d"] = place(np.full(shape, np.nan, np.float32), own)
    a, b, c, d = matrices(call, dims)
    for index in range(dims[cublaslt.DIMS.index("batch")]):
        first, second = by_columns(flat["b"], a, index), by_columns(flat["a"], b, index)
        result = (first.T if call.transb else first) @ (second.T if call.transa else second)
        if call.residual:
            result = result + by_columns(flat["c"], c, index)
        if call.bias:
            result = result + flat["bias"][: d.rows, None]
        by_columns(flat["d"], d, index)[...] = ACTIVATIONS[call.epilogue.removesuffix("bias").removesuffix("_")](result)
    return np.lib.stride_tricks.as_strided(flat["d"], shape, [4 * s for s in own]).copy()


def weights_and_bias(b: Body) -> Any:
    return b("Relu", b("Add", b("MatMul", b.input(F32, 5, 7), b.weight(F32, 7, 3)), b.weight(F32, 3)))


def residual_first(b: Body) -> Any:
    sum_ = b("Add", b.input(F32, 2, 5, 3), b("MatMul", b.input(F32, 2, 5, 7), b.weight(F32, 7, 3)))
    return b("Gelu", b("Add", sum_, b.weight(F32, 1, 3)), approximate="tanh")


def widened(b: Body) -> Any:
    """As lower precision leaves it: casts to fp32 behind the product, and to the result's type at the end."""
    y = b("Cast", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3)), to=F32)
    return b("Cast", b("Relu", y), to=F16)


N = sym("N")
CASES: dict[str, tuple[Any, Layout | None, dict[str, int]]] = {
    "plain": (lambda b: b("MatMul", b.input(F32, 5, 7), b.weight(F32, 7, 3)), None, {}),
    "one row": (lambda b: b("MatMul", b.input(F32, 1, 7), b.weight(F32, 7, 3)), None, {}),
    "one column": (lambda b: b("MatMul", b.input(F32, 4, 7), b.weight(F32, 7, 1)), None, {}),
    "bias and relu": (weights_and_bias, None, {}),
    "residual, bias, gelu": (residual_first, None, {}),
    "rows of a batch merge": (lambda b: b("MatMul", b.input(F32, 2, 3, 5, 7), b.weight(F32, 7, 3)), None, {}),
    "batches": (lambda b: b("MatMul", b.input(F32, 2, 3, 5, 7), b.input(F32, 2, 3, 7, 4)), None, {}),
    "a batch of one matrix by many": (lambda b: b("MatMul", b.input(F32, 5, 7), b.input(F32, 6, 7, 4)), None, {}),
    "first transposed": (lambda b: b("MatMul", b.input(F32, 3, 5, 7, layout=transposed(3)), b.input(F32, 3, 7, 4)), None, {}),
    "second transposed": (lambda b: b("MatMul", b.input(F32, 3, 5, 7), b.input(F32, 3, 7, 4, layout=transposed(3))), None, {}),
    "pitched rows": (
        lambda b: b("MatMul", b.input(F32, 2, 5, 7, layout=Layout((0, 1, 2), pitch=9)), b.weight(F32, 7, 3)),
        Layout((0, 1, 2), pitch=4), {},
    ),
    "unknown rows": (lambda b: b("Add", b("MatMul", b.input(F32, N, 5, 7), b.weight(F32, 7, 3)), b.weight(F32, 3)), None, {"N": 4}),
    "unknown batch": (lambda b: b("MatMul", b.input(F32, N, 5, 7), b.input(F32, N, 7, 3)), None, {"N": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_description_means_what_the_group_means(name: str) -> None:
    build, layout, sizes = CASES[name]
    group = matmul(build, layout)
    found = problem(group, SM90)
    assert isinstance(found, Problem), found
    arrays = [RNG.standard_normal([evaluate(d, sizes) for d in v.tensor.shape]).astype(np.float32) for v in group.inputs]
    got = run_as_the_library_would(found, group, arrays, sizes)
    np.testing.assert_allclose(got, expected(group, arrays, sizes)[0], rtol=2e-5, atol=2e-5)


def test_rows_of_a_batch_are_one_product() -> None:
    found = problem(matmul(CASES["rows of a batch merge"][0]), SM90)
    assert isinstance(found, Problem)
    assert (found.dims["m"], found.dims["batch"]) == (30, 1)
    unknown = problem(matmul(CASES["unknown rows"][0]), SM90)
    assert isinstance(unknown, Problem) and unknown.dims["m"] == N * 5


REFUSED: dict[str, tuple[Any, str]] = {
    "bias of another type": (
        lambda b: b("Add", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3)), b("Cast", b.weight(F32, 3), to=F16)), "inside the group"),
    "exact gelu": (lambda b: b("Gelu", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3))), "the epilogue has Gelu"),
    "scale": (lambda b: b("Mul", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3)), b.weight(F16, 3)), "the epilogue has Mul"),
    "add behind relu": (
        lambda b: b("Add", b("Relu", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3))), b.weight(F16, 3)), "the epilogue has Add"),
    "bias along rows": (
        lambda b: b("Add", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3)), b.weight(F16, 5, 1)), "neither the library's bias"),
    "two biases": (
        lambda b: b("Add", b("Add", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3)), b.weight(F16, 3)), b.weight(F16, 3)),
        "neither the library's bias"),
    "vector": (lambda b: b("MatMul", b.input(F16, 7), b.weight(F16, 7, 3)), "an operand is a vector"),
    "unknown depth": (lambda b: b("MatMul", b.input(F16, 5, N), b.input(F16, N, 3)), "the depth N is not known"),
    "two results": (lambda b: ((y := b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3))), b("Relu", y)), "2 results"),
    "heads between rows": (
        lambda b: b("MatMul", b.input(F16, 2, 3, 5, 7, layout=Layout((0, 2, 1, 3))), b.input(F16, 2, 3, 7, 5)), "one stride apart"),
    "squared": (lambda b: b("Mul", (y := b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3))), y), "Mul"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_epilogue_of_the_library_is_refused(name: str) -> None:
    build, reason = REFUSED[name]
    found = problem(matmul(build), SM90)
    assert isinstance(found, str) and reason in found


def test_casts_that_round_nothing_are_passed() -> None:
    found = problem(matmul(widened), SM90)
    assert isinstance(found, Problem) and (found.call.out, found.call.epilogue) == ("f16", "relu")
    wide = problem(matmul(lambda b: b("Cast", b("MatMul", b.input(F16, 5, 7), b.weight(F16, 7, 3)), to=F32)), SM90)
    assert isinstance(wide, Problem) and (wide.call.type, wide.call.out) == ("f16", "f32")
    rounded = problem(
        matmul(lambda b: b("Relu", b("Cast", b("MatMul", b.input(F32, 5, 7), b.weight(F32, 7, 3)), to=F16))), SM90
    )
    assert isinstance(rounded, str) and "converts f32 to f16" in rounded


@pytest.mark.parametrize("kind", [F16, BF16, F32])
def test_types(kind: Any) -> None:
    found = problem(matmul(lambda b: b("MatMul", b.input(kind, 5, 7), b.weight(kind, 7, 3))), SM90)
    assert isinstance(found, Problem) and found.call.type == found.call.out == kind.name and not found.call.tf32


def test_a_missing_library_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = matmul(weights_and_bias)
    nowhere = tmp_path / "libnone.so"
    with override(cublaslt=str(nowhere)):
        reason = CublasLt().supports(group, SM90)
        assert reason is not None and "is not installed here" in reason and "nvidia-cublas" in reason
        with pytest.raises(DeviceError, match=r"without library tactics"):
            shared_library.load("cublaslt")
    monkeypatch.setattr(shared_library, "missing", lambda name: None)
    assert CublasLt().supports(group, SM90) is None


def test_libraries_are_found_in_the_folders_of_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_library, "wheel_folders", lambda: (tmp_path,))
    with override(cublaslt="", cudnn=""):
        assert shared_library.find("cublaslt") is None
        old = tmp_path / "cublas" / "lib" / "libcublasLt.so.12"
        old.parent.mkdir(parents=True)
        old.touch()
        assert shared_library.find("cublaslt") == old
        new = tmp_path / "cu13" / "lib" / "libcublasLt.so.13"
        new.parent.mkdir(parents=True)
        new.touch()
        assert shared_library.find("cublaslt") == new
        assert shared_library.find("cudnn") is None
    with override(cublaslt="/somewhere/lib.so"):
        assert shared_library.find("cublaslt") == Path("/somewhere/lib.so")


def test_the_call_survives_the_plan() -> None:
    call = Description("f16", "f16", epilogue="relu_bias", residual=True, heuristic=3, algorithm="ab" * 64, version=130100)
    assert Description.parse(call.json()) == call
    assert call.arguments == ("a", "b", "c", "bias", "d")
    plain = Description("bf16", "f32", transa=True)
    assert Description.parse(plain.json()) == plain and "algorithm" not in plain.json()


@pytest.mark.parametrize(
    "change",
    [{"op": "conv"}, {"type": "i8"}, {"epilogue": "tan"}, {"alignment": [16]}, {"heuristic": -1}, {"algorithm": "xy"}, {"more": 1}],
)
def test_a_damaged_call_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match=r"cublaslt: got the call .*, expected a matmul"):
        Description.parse(Description("f16", "f16").json() | change)


def test_structures_have_the_sizes_of_the_header() -> None:
    assert ctypes.sizeof(cublaslt.Algorithm) == 64
    assert ctypes.sizeof(HeuristicResult) == 96
    assert (HeuristicResult.workspace.offset, HeuristicResult.state.offset, HeuristicResult.waves.offset) == (64, 72, 76)


def test_emission_names_operands_in_the_order_of_the_call() -> None:
    group = matmul(residual_first)
    tactic = CublasLt()
    configs = tactic.configs(group, SM90)
    assert len(configs) == cublaslt_tactic.PROPOSALS
    entries = set()
    for config in configs:
        (step,) = tactic.emit(group, config, SM90).steps
        assert step.kernel.library == "cublaslt" and step.kernel.launch is None
        assert [o.role for o in step.args] == ["in"] * 4 + ["out"]
        assert len(step.kernel.dims) == len(cublaslt.DIMS)
        entries.add(step.kernel.entry)
    assert len(entries) == len(configs)
    # The residual may be overwritten: it is read element for element where the result goes.
    assert [inner for _, inner in tactic.emit(group, configs[0], SM90).in_place] == [step.args[2].index]
