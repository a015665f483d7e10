"""Matrix products on a GPU: what they compute under the interpreter, and what machine code they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Group
from dovetail.codegen.target import CudaTarget
from dovetail.codegen.triton_compiler import Compiled
from dovetail.core.dims import Dim, evaluate, sym
from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.ir.layout import Layout, strided
from dovetail.kernels.cuda import matmul_tma
from dovetail.kernels.cuda.gemv import Strip
from dovetail.kernels.cuda.matmul import Tile
from dovetail.kernels.cuda.matmul_configs import estimate, shared_bytes, sizes
from dovetail.kernels.cuda.matmul_problem import problem
from dovetail.kernels.cuda.matmul_tactic import Gemm, Gemv, TmaGemm
from tests.unit.cuda_harness import (
    SM80,
    SM90,
    Body,
    aot,
    close,
    expected,
    fused,
    kernels_of,
    run_group,
    sass,
)

Array = np.ndarray[Any, Any]
GEMM, GEMV, TMA = Gemm(), Gemv(), TmaGemm()
SMALL = Tile(16, 16, 16, 4, 2).config


def product(
    a: Sequence[Dim], b: Sequence[Dim], kind: DType = F32, la: Layout | None = None, lb: Layout | None = None,
    constant: bool = False, extra: Any = None, layout: Layout | None = None,
) -> Group:  # fmt: skip
    """A group around MatMul; `extra(body, result)` adds an epilogue."""

    def build(body: Body) -> Any:
        x = body.input(kind, *a, layout=la)
        y = body.weight(kind, *b) if constant else body.input(kind, *b, layout=lb)
        result = body("MatMul", x, y)
        return extra(body, result) if extra else result

    return fused(build, "matmul", "MatMul", layout)


def operands(group: Group, sizes: dict[str, int] | None = None) -> list[Array]:
    """Seeded arrays of the group's inputs."""
    rng = np.random.default_rng(11)
    shapes = [[evaluate(d, sizes or {}) for d in v.tensor.shape] for v in group.inputs]
    arrays = [(rng.standard_normal(shape) / 2).astype(v.tensor.dtype.numpy) for v, shape in zip(group.inputs, shapes, strict=True)]
    for value, array in zip(group.inputs, arrays, strict=True):
        if value.tensor.layout is not None and (value.tensor.layout.explicit or (1,))[0] == 0:
            array[:] = array[:1]  # an expanded value is the same along that axis
    return arrays


def check(group: Group, config: Config, sizes: dict[str, int] | None = None, tactic: Any = GEMM, tolerance: float = 3e-6) -> list[Array]:
    """The kernel's results agree with the reference."""
    arrays = operands(group, sizes)
    assert tactic.supports(group, SM90) is None
    got = run_group(group, tactic, config, arrays, SM90, sizes)
    close(got, expected(group, arrays, sizes), tolerance)
    return got


SHAPES = [
    ((1, 1), (1, 1)), ((3, 5), (5, 7)), ((16, 32), (32, 16)), ((17, 48), (48, 33)), ((33, 40), (40, 20)), ((2, 100), (100, 3)),
    ((5,), (5, 9)), ((20, 6), (6,)), ((6,), (6,)), ((3, 20, 6), (6,)), ((6,), (3, 6, 20)), ((20, 9), (9, 1)),
    ((2, 3, 18, 8), (8, 21)), ((2, 3, 18, 8), (2, 3, 8, 21)), ((2, 3, 18, 8), (3, 8, 21)), ((2, 1, 18, 8), (1, 3, 8, 21)),
    ((18, 8), (5, 8, 21)), ((1, 18, 8), (5, 8, 21)), ((5, 1, 8), (5, 8, 21)),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SHAPES, ids=str)
def test_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Tails on every axis, vectors, batches of either operand or both."""
    check(product(a, b), SMALL)


LAYOUTS = {
    "left transposed": ((21, 24), (24, 40), strided((1, 32), 0), None),
    "right transposed": ((21, 24), (24, 40), None, strided((1, 24), 0)),
    "part of a wider row": ((21, 24), (24, 40), strided((72, 1), 24), strided((120, 1), 40)),
    "odd pitch": ((21, 24), (24, 40), strided((37, 1), 5), strided((43, 1), 3)),
    "columns apart": ((21, 24), (24, 40), strided((60, 2), 0), strided((200, 3), 0)),
    "heads in rows": ((2, 3, 10, 8), (2, 3, 8, 10), strided((720, 8, 72, 1), 0), strided((720, 8, 1, 72), 24)),
    "merged rows that are uneven": ((2, 3, 10, 8), (8, 20), strided((720, 8, 72, 1), 0), None),
    "expanded": ((4, 10, 8), (4, 8, 12), strided((0, 8, 1), 0), strided((96, 12, 1), 0)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case: str) -> None:
    """Operands of any strides, and views of wider buffers."""
    a, b, la, lb = LAYOUTS[case]
    check(product(a, b, la=la, lb=lb), SMALL)


def gelu(body: Body, x: Any) -> Any:
    return body("Gelu", body("Add", x, body.weight(x.tensor.dtype, x.tensor.shape[-1])))


def residual(body: Body, x: Any) -> Any:
    bias = body.weight(x.tensor.dtype, x.tensor.shape[-1])
    y = body("Add", body("Add", x, bias), body.input(x.tensor.dtype, *x.tensor.shape))
    return body("Relu", y), y


def scaled_cast(body: Body, x: Any) -> Any:
    per_row = body.input(x.tensor.dtype, *x.tensor.shape[:-1], 1)
    y = body("Mul", x, per_row)
    return body("Cast", y, to=F32), y


@pytest.mark.parametrize("extra", [gelu, residual, scaled_cast])
@pytest.mark.parametrize("kind", [F16, BF16, F32], ids=str)
def test_epilogues(extra: Any, kind: DType) -> None:
    """Bias, activation, residual, a factor per row, a cast, two results; fp32 in between."""
    check(product((2, 21, 24), (24, 40), kind, extra=extra, constant=True), SMALL)


TILES = [
    Tile(16, 32, 16, 4, 2, swap=1), Tile(16, 16, 32, 4, 2, split=3), Tile(16, 16, 16, 4, 2, split=4, group=2),
    Tile(32, 16, 16, 4, 2, group=1), Tile(16, 16, 16, 4, 2, group=2), Tile(16, 32, 16, 4, 2, split=2, swap=1),
    Tile(64, 64, 16, 1, 2), Tile(16, 16, 16, 4, 2, split=3, ahead=1), Tile(16, 48, 16, 4, 2), Tile(64, 96, 16, 1, 2, early=0),
]  # fmt: skip


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("shape", [(53, 41, 95), (16, 64, 96), (3, 90, 100)], ids=str)
def test_tiles(tile: Tile, shape: tuple[int, int, int]) -> None:
    """The other way round, parts of sums, orders of tiles, halves of epilogues; twice the same, bit for bit."""
    m, n, k = shape
    group = product((m, k), (k, n), constant=True, extra=gelu)
    first = check(group, tile.config)
    again = check(group, tile.config)
    assert np.array_equal(first[0], again[0])


VECTORS: list[tuple[tuple[Dim, ...], tuple[Dim, ...], Layout | None]] = [
    ((1, 70), (70, 45), None), ((70,), (70, 45), None), ((45, 70), (70,), None), ((45, 70), (70, 1), None), ((70,), (70,), None),
    ((1, 70), (70, 45), strided((1, 70), 0)), ((3, 1, 70), (3, 70, 45), None), ((3, 1, 70), (3, 70, 45), strided((3150, 1, 70), 0)),
    ((2, 3, 1, 70), (3, 70, 45), None), ((1, 1024), (1024, 20), None), ((1, 1), (1, 300), None),
]  # fmt: skip


@pytest.mark.parametrize("strip", [Strip(4, 32, 4), Strip(16, 64, 4, 2), Strip(16, 16, 2, 3), Strip(16, 2, 2, 3)], ids=str)
@pytest.mark.parametrize(("a", "b", "lb"), VECTORS, ids=str)
def test_vectors(a: tuple[Dim, ...], b: tuple[Dim, ...], lb: Layout | None, strip: Strip) -> None:
    """Single rows and columns: no tensor cores; with and without parts of sums."""
    group = product(a, b, F16, lb=lb, extra=lambda body, y: body("Relu", y))
    if GEMV.supports(group, SM90) is None:
        check(group, strip.config, tactic=GEMV)
    else:
        assert a == (2, 3, 1, 70), "rows that share a matrix are a matrix"


@pytest.mark.parametrize("given", [1, 5, 40])
def test_vectors_of_unknown_size(given: int) -> None:
    """An unknown depth or number of columns."""
    n = sym("N")
    for a, b in (((1, n), (n, 20)), ((1, 48), (48, n)), ((n, 1, 48), (n, 48, 20))):
        group = product(a, b, extra=gelu if b[-1] == 20 else None)
        check(group, GEMV.configs(group, SM90)[0], {"N": given}, tactic=GEMV)


COPIED: dict[str, tuple[tuple[Dim, ...], tuple[Dim, ...], Layout | None, Layout | None]] = {
    "plain": ((100, 72), (72, 88), None, None),
    "right transposed": ((100, 72), (72, 88), None, strided((1, 72), 0)),
    "left transposed": ((104, 72), (72, 88), strided((1, 104), 0), None),
    "rows in batches": ((2, 50, 72), (72, 88), None, None),
    "part of a wider row": ((100, 72), (72, 88), strided((216, 1), 72), strided((176, 1), 88)),
    "unknown rows": ((sym("N"), 50, 72), (72, 88), None, None),
}


@pytest.mark.parametrize("extra", [gelu, residual])
@pytest.mark.parametrize("tile", [
    matmul_tma.Tile(64, 64, 32, 4, 3, 2, 1), matmul_tma.Tile(64, 64, 32, 1, 3, 8, 0, 0, 1, 1),
    matmul_tma.Tile(32, 32, 64, 4, 3, 8, 1, 1, 1),
    matmul_tma.Tile(64, 96, 64, 1, 3, 8, 1, 0, 1), matmul_tma.Tile(32, 48, 32, 4, 3),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("case", COPIED)
def test_copied_tiles(case: str, tile: matmul_tma.Tile, extra: Any) -> None:
    """Tiles by descriptors: tails on all axes, both ways round; results by descriptors, in halves, or by pointers."""
    a, b, la, lb = COPIED[case]
    check(product(a, b, F16, la, lb, lb is None, extra), tile.config, {"N": 2}, tactic=TMA, tolerance=2e-3)


def test_operand_that_is_copied_and_read() -> None:
    """x W + x: the left operand comes by the copy engine, and once more by pointers."""

    def build(body: Body) -> Any:
        x = body.input(F16, 96, 96)
        return body("Add", body("MatMul", x, body.weight(F16, 96, 96)), x)

    tile = matmul_tma.Tile(64, 64, 32, 4, 3)
    check(fused(build, "matmul", "MatMul"), tile.config, tactic=TMA, tolerance=2e-3)


def test_what_is_copied() -> None:
    """Descriptors need aligned rows and one dense axis; batches with several right operands go elsewhere."""
    reasons = {
        "aligned matrix": product((100, 75), (75, 88), F16), "16 bits": product((100, 72), (72, 88), F32),
        "batch": product((2, 100, 72), (2, 72, 88), F16), "less than": product((8, 72), (72, 88), F16),
    }  # fmt: skip
    for reason, group in reasons.items():
        assert reason in (TMA.supports(group, SM90) or "")
    assert "9.0" in (TMA.supports(product((100, 72), (72, 88), F16), SM80) or "")
    offset = product((100, 72), (72, 88), F16, la=strided((80, 1), 4))
    assert "aligned" in (TMA.supports(offset, SM90) or "")


@pytest.mark.parametrize("rows", [1, 7, 30])
@pytest.mark.parametrize("where", ["rows", "columns", "depth", "batch", "all"])
def test_unknown_sizes(where: str, rows: int) -> None:
    """Sizes known at run time only: one kernel for all."""
    n = sym("N")
    shapes: dict[str, tuple[tuple[Dim, ...], tuple[Dim, ...]]] = {
        "rows": ((n, 16), (16, 20)), "columns": ((9, 16), (16, n)), "depth": ((9, n), (n, 20)), "batch": ((n, 9, 16), (n, 16, 20)),
        "all": ((2, n, n + 1), (2, n + 1, n * 2)),
    }  # fmt: skip
    group = product(*shapes[where], extra=lambda body, y: body("Relu", y))
    check(group, Tile(16, 16, 16, 4, 2).config, {"N": rows})
    assert GEMM.configs(group, SM90)


def test_refusals() -> None:
    """What is no product of these types, or empty, is left to others, with the reason."""
    from dovetail.core.dtypes import I32

    assert "i32" in (GEMM.supports(product((3, 4), (4, 5), I32), SM90) or "")
    assert "zero" in (GEMM.supports(product((3, 0), (0, 5)), SM90) or "")


@pytest.mark.parametrize("tactic", [GEMM, GEMV, TMA], ids=lambda t: t.name)
def test_nothing_is_read_early_while_weights_are_made(tactic: Any) -> None:
    """A product of weights runs behind the kernels that make them: all reads stand behind the wait, and so do all of run-time values."""

    def build(body: Body) -> Any:
        return body("Add", body("MatMul", body.weight(F16, rows, 96), body.weight(F16, 96, 128)), body.weight(F16, 128))

    rows = 1 if tactic is GEMV else 96
    made = fused(build, "matmul", "MatMul")
    used = product((rows, 96), (96, 128), F16, constant=True, extra=gelu)
    for group in (made, used):
        config = Tile(32, 32, 32, 4, 3, ahead=1).config if tactic is GEMM else tactic.configs(group, SM90)[0]
        text = kernels_of(group, tactic, config, SM90)[0].source
        before = text[: text.index("gdc_wait()")]
        assert "store" not in before
        if group is made:
            assert "load" not in before and "prefetch" not in before
        else:
            assert not any(word in before for word in ("load(a", "load(x", "p0.load")), "the left operand comes from the kernel ahead"


# ------------------------------------------------------------------ configurations
FP16_SHAPES = [(128, 768, 768), (128, 768, 3072), (4096, 3072, 768), (1, 1000, 2048), (32, 1000, 2048), (5, 3, 7), (197, 1000, 591)]


@pytest.mark.parametrize("target", [SM80, SM90], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), FP16_SHAPES)
@pytest.mark.parametrize("kind", [F16, F32], ids=str)
def test_configurations(m: int, n: int, k: int, kind: DType, target: CudaTarget) -> None:
    """Few, distinct, the same every time; tiles fit into shared memory, and no program has nothing to add up."""
    group = product((m, k), (k, n), kind, constant=True)
    p = problem(group)
    for tactic in (GEMM, GEMV, TMA):
        if tactic.supports(group, target) is not None:
            continue
        configs = list(tactic.configs(group, target))
        assert 1 <= len(configs) <= 20 and len(set(configs)) == len(configs)
        assert configs == list(tactic.configs(group, target))
        for config in configs if tactic is GEMM else []:
            tile = Tile.of(config)
            steps = -(-k // tile.bk)
            assert (tile.split - 1) * -(-steps // tile.split) < steps
            assert shared_bytes(tile, kind.itemsize, steps) <= target.shared_bytes
            assert estimate(p, tile, sizes(group, p), target) > 0
        if tactic is GEMM:
            (kernel,) = kernels_of(group, tactic, configs[0], target)
            x, y, z = (evaluate(d, {}) for d in kernel.launch.grid) if kernel.launch else (0, 0, 0)
            assert z == 1, "programs read the third index of the grid as zero"
            assert x * y >= min(48, -(-m // 16) * -(-n // 16)), "the first choice leaves most of the GPU idle"


def test_cost_of_measured_products() -> None:
    """The model is within a third of what an H100 was measured to take (warm cache, best of a few tiles)."""
    for (m, n, k), measured in {(128, 768, 768): 3.07, (128, 3072, 768): 4.43, (4096, 768, 768): 12.7, (4096, 4096, 4096): 206}.items():
        group = product((m, k), (k, n), F16, constant=True)
        p = problem(group)
        given = replace(sizes(group, p), constant=0, moved=0)
        best = min(estimate(p, Tile.of(config), given, SM90) for config in GEMM.configs(group, SM90))
        assert measured / 1.34 < best < measured * 1.34


# ------------------------------------------------------------------ machine code
def kernel(group: Group, tactic: Any, config: Config | None = None, target: CudaTarget = SM90) -> Kernel:
    """The kernel of a configuration, by default of the first one."""
    return kernels_of(group, tactic, config or tactic.configs(group, target)[0], target)[0]


def half(m: Dim, n: Dim, k: Dim, **given: Any) -> Group:
    """A product of fp16 operands."""
    return product((m, k), (k, n), F16, **given)


PLAIN, N, K = half(128, 768, 768, constant=True, extra=gelu), sym("N"), sym("K")
WIDE = half(1024, 1024, 768, constant=True, extra=gelu)
EXACT, LOOSE = product((128, 96), (96, 128), F32, constant=True), replace(SM90, tf32=True)
KERNELS = {
    "parts": kernel(PLAIN, GEMM, Tile(64, 64, 64, 4, 3, split=2, ahead=1).config),
    "wide": kernel(WIDE, GEMM, Tile(128, 256, 64, 8, 3).config),
    "copied": kernel(WIDE, TMA, matmul_tma.Tile(128, 256, 64, 8, 3, 8, 1, 0, 1).config),
    "two blocks": kernel(WIDE, TMA, matmul_tma.Tile(128, 192, 64, 8, 4, 8, 0, 0, 1).config),
    "unknown rows": kernel(half(N * 8, 768, 768, constant=True), GEMM, Tile(64, 64, 64, 4, 3).config),
    "unknown depth": kernel(half(256, 768, K * 16), GEMM, Tile(64, 64, 64, 4, 3).config),
    "vector": kernel(half(1, 1000, 2048, constant=True), GEMV),
    "exact": kernel(EXACT, GEMM),
    "tf32": kernel(EXACT, GEMM, None, LOOSE),
}
EXPECTED = {
    "parts": ("HGMMA.64x64x16 LDGSTS.E.BYPASS.128 PF2 ATOMG", "HMMA"),
    "wide": ("HGMMA.64x256x16 LDGSTS.E.BYPASS.128 STG.E.128", "LDL STL"),
    "copied": ("HGMMA.64x256x16 UTMALDG.2D UTMASTG.2D", "LDGSTS LDL STL"),
    "two blocks": ("HGMMA.64x128x16 HGMMA.64x64x16 UTMALDG.2D UTMASTG.2D", "LDGSTS LDL STL"),
    "unknown rows": ("HGMMA LDGSTS.E.BYPASS.128", ""),
    "unknown depth": ("HGMMA LDGSTS.E.BYPASS.128", ""),
    "vector": ("LDG.E.128 FFMA", "HMMA HGMMA"),
    "exact": ("FFMA", "HMMA HGMMA"),
    "tf32": ("TF32", ""),
}


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The instructions of `KERNELS`, compiled at one go; none spills."""
    compiled = aot(KERNELS.values(), SM90)
    folder = tmp_path_factory.mktemp("sass")
    return {name: operations(compiled[k.entry], folder) for name, k in KERNELS.items()}


def operations(compiled: Compiled, folder: Path) -> str:
    """The names of a kernel's instructions."""
    return " ".join(line.split()[line.startswith("@")] for line in sass(compiled, folder))


@pytest.mark.parametrize("name", KERNELS)
def test_machine_code(name: str, hopper: dict[str, str]) -> None:
    """Tensor cores of the generation, wide loads into shared memory or by the copy engine, fp32 exact unless asked otherwise."""
    wanted, unwanted = EXPECTED[name]
    for word in wanted.split():
        assert word in hopper[name], word
    for word in unwanted.split():
        assert f" {word}" not in hopper[name], word


def test_machine_code_of_ampere(tmp_path: Path) -> None:
    """No waiting for the kernel ahead, no copy engine; tensor cores and asynchronous copies."""
    k = kernel(PLAIN, GEMM, target=SM80)
    assert "gdc_" not in k.source
    shown = operations(aot([k], SM80)[k.entry], tmp_path)
    assert "HMMA.16816" in shown and "LDGSTS" in shown and "PF2" not in shown
