"""TopK and scatters for a GPU: exact results under the interpreter, ties and repeats included, and their machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dovetail.kernels.cpu
import dovetail.kernels.cuda
from dovetail.codegen.lower import reason_not_lowerable
from dovetail.codegen.tactic import Group
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, evaluate, sym
from dovetail.core.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, U32, U64, DType
from dovetail.ir.layout import Layout, strided
from dovetail.ir.verifier import verify
from dovetail.kernels.cuda.selection_tactic import ScatterByOwner, Tables, TopKByKeys
from dovetail.kernels.cuda.topk import RADIX, RANK
from dovetail.ops.evaluate import evaluate as evaluate_module
from dovetail.passes.fuse import fuse
from dovetail.passes.legalise import legalise
from tests.unit.cuda_harness import (
    SM90,
    Body,
    aot,
    close,
    expected,
    fused,
    kernels_of,
    run_group,
)
from tests.unit.ir_builder import Builder, built, feeds

TOPK, SCATTER, TABLES = TopKByKeys(), ScatterByOwner(), Tables()
FORMS = {form: (("form", form),) for form in (RANK, RADIX)}


def top(kind: DType, shape: tuple[Dim, ...], layout: Layout | None = None, **attrs: Any) -> Group:
    def build(b: Body) -> Any:
        values = b("TopK", b.input(kind, *shape, layout=layout), **{"axis": len(shape) - 1, **attrs})
        assert values.producer is not None
        return values.producer.outputs

    return fused(build, "select", "TopK")


def values_of(kind: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers with many ties, both zeros, infinities and NaN, and the ends of integer types."""
    rng = np.random.default_rng(11)
    if not kind.is_float:
        info = np.iinfo(kind.numpy)
        return rng.choice(np.array([info.min, info.max, 0, 1, 2, 3, info.max - 1, info.min + 1], kind.numpy), shape)
    x = np.round(rng.standard_normal(shape) * 4) / 4
    special = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan], shape)
    return np.where(rng.random(shape) < 0.3, special, x).astype(kind.numpy)


def check_top(g: Group, sizes: dict[str, int] | None = None, form: str = "") -> None:
    sizes = sizes or {}
    x = values_of(g.inputs[0].tensor.dtype, tuple(evaluate(d, sizes) for d in g.inputs[0].tensor.shape))
    assert TOPK.supports(g, SM90) is None
    config = FORMS[form] if form else TOPK.configs(g, SM90)[0]
    got, want = run_group(g, TOPK, config, [x], SM90, sizes), expected(g, [x], sizes)
    np.testing.assert_array_equal(got[1], want[1])
    width = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize]
    np.testing.assert_array_equal(got[0].view(width), want[0].view(width))  # -0 and 0 told apart


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("kind", [F16, BF16, F32, F64, I8, I32, I64, U8, U32, U64])
def test_topk_of_every_type(kind, largest, form):
    check_top(top(kind, (2, 130), k=41, largest=largest), form=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "axis", "k"), [((1,), 0, 1), ((7,), 0, 7), ((5, 3, 4), 0, 2), ((2, 67, 3), 1, 64), ((2, 300), 1, 70), ((4, 3), 1, 0)]
)
def test_topk_along_any_axis(shape, axis, k, form):
    check_top(top(F32, shape, axis=axis, k=k), form=form)


@pytest.mark.parametrize("kind", [F16, F32, I64])
@pytest.mark.parametrize(
    ("shape", "axis", "k"), [((130, 8), 1, 2), ((3, 5, 7), 1, 5), ((9, 1), 1, 1), ((6, 32), 1, 32), ((0, 4), 1, 2), ((6,), 0, 3)]
)
def test_topk_of_short_rows(shape, axis, k, kind):
    check_top(top(kind, shape, axis=axis, k=k))
    check_top(top(kind, shape, axis=axis, k=k, largest=False))
    assert TOPK.configs(top(kind, shape, axis=axis, k=k), SM90)[0] == FORMS[RANK]


def test_topk_by_radix_of_several_chunks():
    check_top(top(F32, (1, 4200), k=70), form=RADIX)


def test_topk_of_sizes_of_the_run():
    n = sym("N")
    for form in FORMS:
        for size in (0, 1, 70):
            check_top(top(F32, (sym("B"), n), k=n), {"N": size, "B": 2}, form)
            check_top(top(F32, (2, n + 20, 3), k=20, axis=1, largest=False), {"N": size}, form)


def test_topk_of_strided_rows():
    check_top(top(F16, (4, 90), Layout((1, 0)), k=9))
    check_top(top(F32, (4, 90), strided((180, 2), 1), k=9), form=RADIX)


def test_topk_forms_by_size():
    names = lambda g: [dict(c)["form"] for c in TOPK.configs(g, SM90)]  # noqa: E731
    assert names(top(F32, (1, 100), k=5))[0] == RANK
    assert names(top(F32, (1, 500_000), k=1000)) == [RADIX]
    assert "bool" in (TOPK.supports(top(BOOL, (3, 4), k=2), SM90) or "")


def scattered(
    x: tuple[Dim, ...], indices: tuple[Dim, ...], updates: tuple[Dim, ...] | None, kind: DType = F32, index: DType = I64, **attrs: Any
) -> Group:  # fmt: skip
    """A ScatterElements with an axis, else a ScatterND."""
    op = "ScatterElements" if "axis" in attrs else "ScatterND"

    def build(b: Body) -> Any:
        return b(op, b.input(kind, *x), b.input(index, *indices), b.input(kind, *(updates or indices)), **attrs)

    return fused(build, "select", op)


def check_scatter(g: Group, sizes: dict[str, int] | None = None) -> list[int]:
    """Indices repeat often and are negative at times; returns the number of kernels."""
    sizes = sizes or {}
    rng = np.random.default_rng(5)
    assert SCATTER.supports(g, SM90) is None, SCATTER.supports(g, SM90)
    arrays = []
    for position, value in enumerate(g.inputs):
        shape, kind = tuple(evaluate(d, sizes) for d in value.tensor.shape), value.tensor.dtype
        if position != 1:
            arrays.append((rng.standard_normal(shape) * 8).astype(kind.numpy))
            continue
        x_shape = arrays[0].shape
        anchor = g.anchor
        assert anchor is not None
        if anchor.op == "ScatterElements":
            extents: Any = x_shape[anchor.attrs["axis"]]
        else:
            extents = np.array(x_shape[: shape[-1]])
        low = 0 if kind.kind == "uint" else -extents
        arrays.append(rng.integers(low, extents, shape).astype(kind.numpy))
    close(run_group(g, SCATTER, (), arrays, SM90, sizes), expected(g, arrays, sizes))
    return [len(SCATTER.emit(g, (), SM90).steps)]


@pytest.mark.parametrize(("x", "indices", "updates"), [
    ((7,), (3, 1), (3,)), ((7,), (40, 1), (40,)), ((5, 4, 3), (6, 1), (6, 4, 3)), ((5, 4, 3), (2, 3, 2), (2, 3, 3)),
    ((5, 4, 3), (50, 3), (50,)), ((9, 33), (70, 1), (70, 33)), ((2, 3), (1, 2), (1,)), ((4, 2), (0, 1), (0, 2)), ((4, 0), (3, 1), (3, 0)),
])  # fmt: skip
@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_nd(x, indices, updates, reduction):
    check_scatter(scattered(x, indices, updates, reduction=reduction))


@pytest.mark.parametrize(("x", "indices", "axis"), [
    ((7,), (3,), 0), ((7,), (50,), 0), ((5, 4, 3), (6, 4, 3), 0), ((5, 4, 3), (2, 3, 2), 1), ((3, 40), (3, 100), 1),
    ((3, 40, 2), (2, 90, 1), 1), ((1, 1), (1, 1), 1), ((4, 3), (4, 0), 1),
])  # fmt: skip
@pytest.mark.parametrize("reduction", ["none", "mul", "min"])
def test_scatter_elements(x, indices, axis, reduction):
    check_scatter(scattered(x, indices, None, axis=axis, reduction=reduction))


@pytest.mark.parametrize(("kind", "index"), [(F16, I32), (BF16, I64), (F64, I64), (I64, I32), (U8, U8), (BOOL, I64)])
def test_scatter_of_other_types(kind, index):
    for count in (5, 60):
        for reduction in ("none", "add") if kind != BOOL else ("none",):
            check_scatter(scattered((6, 3), (count, 1), (count, 3), kind, index, reduction=reduction))


def test_scatter_of_sizes_of_the_run():
    n, m = sym("N"), sym("M")
    for sizes in ({"N": 3, "M": 40}, {"N": 1, "M": 1}, {"N": 5, "M": 0}):
        check_scatter(scattered((n, 4), (m, 1), (m, 4)), sizes)
        check_scatter(scattered((n, 4, 2), (n, m, 1), None, axis=1), sizes)


def test_what_scatter_leaves_to_the_host():
    assert "at most" in (SCATTER.supports(scattered((9, 4), (sym("M"), 1), (sym("M"), 4), reduction="add"), SM90) or "")
    assert "bool" in (SCATTER.supports(scattered((9,), (3, 1), (3,), BOOL, reduction="max"), SM90) or "")


def test_machine_code():
    groups = [
        (TOPK, top(F16, (8, 500), k=30), FORMS[RANK]), (TOPK, top(F32, (4096, 8), k=2), FORMS[RANK]),
        (TOPK, top(I64, (8, 5000), k=300), FORMS[RADIX]),
        (SCATTER, scattered((64, 128), (300, 1), (300, 128)), ()),
        (SCATTER, scattered((64, 128), (8, 1), (8, 128)), ()),
        (SCATTER, scattered((64, 128), (64, 16), None, axis=1, reduction="add"), ()),
        (TABLES, table("NonZeroTable", [(F32, (64, 300))]), ()),
        (TABLES, table("SuppressionTable", [(F32, (1, 8400, 4)), (F32, (1, 80, 8400)), (I64, (1,)), (F32, (1,))], limit=300), ()),
    ]  # fmt: skip
    aot([k for tactic, g, config in groups for k in kernels_of(g, tactic, config, SM90)], SM90)


# ---------------------------------------------------------------- tables
def table(op: str, shapes: list[tuple[DType, tuple[Dim, ...]] | None], **attrs: Any) -> Group:
    def build(b: Body) -> Any:
        first = b(op, *(None if s is None else b.input(s[0], *s[1]) for s in shapes), **attrs)
        assert first.producer is not None
        return first.producer.outputs

    return fused(build, "select", op)


def check_table(g: Group, arrays: list[np.ndarray], sizes: dict[str, int] | None = None) -> list[np.ndarray]:
    assert TABLES.supports(g, SM90) is None
    got, want = run_group(g, TABLES, (), arrays, SM90, sizes), expected(g, arrays, sizes)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    return got


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4, 5), (2, 1025), (3, 0), (2500,)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_non_zero(shape, share):
    rng = np.random.default_rng(4)
    x = (rng.random(shape) < share) * rng.standard_normal(shape)
    if x.size:
        x.flat[0] = np.nan
    check_table(table("NonZeroTable", [(F32, shape)]), [x.astype(np.float32)])
    check_table(table("NonZeroTable", [(BOOL, shape)]), [x != 0])


def test_non_zero_of_sizes_of_the_run():
    for n in (0, 1, 3000):
        x = np.random.default_rng(4).integers(0, 3, (n, 3))
        check_table(table("NonZeroTable", [(I64, (sym("N"), 3))]), [x], {"N": n})


def boxes_of(rng: np.random.Generator, batch: int, n: int, center: bool) -> np.ndarray:
    corner, size = rng.random((batch, n, 2)) * 10, rng.random((batch, n, 2)) * 5
    if center:
        return np.concatenate([corner, size], -1).astype(np.float32)
    ends = np.stack([corner, corner + size])
    swapped = rng.random((batch, n, 2)) < 0.3  # corners may come in either order
    return np.concatenate([np.where(swapped, ends[1], ends[0]), np.where(swapped, ends[0], ends[1])], -1).astype(np.float32)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    ("batch", "classes", "n", "limit", "most"), [(2, 3, 40, 40, 9), (1, 1, 1, 1, 5), (1, 2, 1100, 6, 6), (2, 1, 20, 20, 0), (1, 2, 0, 0, 3)]
)
def test_suppression(batch, classes, n, limit, most, center):
    rng = np.random.default_rng(8)
    boxes, scores = boxes_of(rng, batch, n, center), np.round(rng.random((batch, classes, n)) * 20).astype(np.float32) / 20  # ties
    if scores.size > 4:
        scores.flat[3] = np.nan
    shapes: list[Any] = [(F32, boxes.shape), (F32, scores.shape), (I64, (1,)), (F32, (1,)), (F32, (1,))]
    more = [np.array([most]), np.array([0.4], np.float32), np.array([0.3], np.float32)]
    got = check_table(table("SuppressionTable", shapes, limit=limit, center_point_box=center), [boxes, scores, *more])
    assert n == 0 or most == 0 or n == 1 or got[1][0] > 0
    check_table(table("SuppressionTable", shapes[:3], limit=limit, center_point_box=center), [boxes, scores, more[0]])


def test_suppression_of_sizes_of_the_run():
    rng = np.random.default_rng(8)
    for batch, n in ((0, 5), (1, 30)):
        boxes, scores = boxes_of(rng, batch, n, False), rng.random((batch, 2, n)).astype(np.float32)
        shapes = [(F32, (sym("B"), sym("N"), 4)), (F32, (sym("B"), 2, sym("N"))), (I64, ()), None, (F32, ())]
        g = table("SuppressionTable", shapes, limit=sym("N"))
        check_table(g, [boxes, scores, np.array(100), np.array(0.2, np.float32)], {"B": batch, "N": n})


def tabulated(b: Builder) -> Any:
    boxes, scores = b.input(1, 30, 4), b.input(1, 2, 30)
    most, overlap = b.weight(np.array([4]), "most"), b.weight(np.array([0.5], np.float32), "overlap")
    rows = b("NonMaxSuppression", boxes, scores, most, overlap, symbols=("kept",))
    mask = b.input(6, 5, dtype=BOOL)
    places = b("NonZero", mask, symbols=("places",))
    lines = b("Compress", b.input(6, 3), b.input(6, dtype=BOOL), axis=0, symbols=("lines",))
    flat = b("Compress", b.input(6, 5), mask, symbols=("flat",))
    return rows, places, lines, flat


def test_sizes_that_data_define_become_tables_on_a_gpu():
    module = built(tabulated)
    given = feeds(module)
    given["x0"] = boxes_of(np.random.default_rng(1), 1, 30, False)
    before = evaluate_module(module, given)
    legalise(module, Target.parse("cpu:avx2"))
    assert "NonZero" in [n.op for n in module.main.nodes]
    legalise(module, Target.parse("cuda:sm_90"))
    verify(module)
    left = [n.op for n in module.main.nodes]
    assert not {"NonZero", "Compress", "NonMaxSuppression"} & set(left) and left.count("BindSymbols") == 4
    for a, b in zip(evaluate_module(module, given).values(), before.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [g.weight for g in module.guards] == ["most"]
    log = fuse(module, Target.parse("cuda:sm_90"), reason_not_lowerable)
    assert not log.host


def selections(b: Builder) -> Any:
    x = b.input(4, 50)
    values, indices = b("TopK", x, k=5, axis=1)
    y = b("ScatterND", x, b.input(3, 1, dtype=I64), b("Relu", b.input(3, 50)))
    return b("Relu", values), indices, b("Neg", b("Relu", b("Exp", y)))


def test_selections_are_groups_on_a_gpu_and_host_steps_on_a_cpu():
    module = built(selections)
    log = fuse(module, Target.parse("cuda:sm_90"), reason_not_lowerable)
    kinds = [n.attrs["kind"] for n in module.main.nodes if n.op == "Fusion"]
    assert sorted(kinds) == ["loop", "loop", "loop", "select", "select"]
    assert not log.host
    module = built(selections)
    log = fuse(module, Target.parse("cpu:avx2"), reason_not_lowerable)
    assert [n.op for n in module.main.nodes if n.op != "Fusion"] == ["TopK", "ScatterND"]
    assert sorted(reason for _, reason in log.host)[1] == "TopK has 2 results"


assert dovetail.kernels.cpu and dovetail.kernels.cuda  # registers the tactics
