"""Reshapes and Transposes move past ops that treat rows alike: what fuses then, what must stay, and that no result changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dovetail.core.dims import Dim, product, sym
from dovetail.core.dims import evaluate as number
from dovetail.core.dtypes import I8
from dovetail.ir.graph import Module, Node, Time, Value
from dovetail.ir.rewriter import RewriteLog, apply_rules
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate
from dovetail.ops.infer import infer
from dovetail.passes.movement_rules import MOVEMENT_RULES
from dovetail.passes.row_rules import ROW_MOVEMENT_RULES
from dovetail.passes.simplify import simplify
from dovetail.passes.split_rules import SPLIT_RULES
from tests.unit.ir_builder import Build, Builder, built, ops

N, S = sym("n"), sym("s")
MOVEMENTS = ("Reshape", "Transpose")


def moved(module: Module) -> RewriteLog:
    """The rules that only move data, alone: no other rule then explains a change."""
    return apply_rules(module, (*MOVEMENT_RULES, *SPLIT_RULES, *ROW_MOVEMENT_RULES), infer)


def integers(module: Module, symbols: dict[str, int]) -> dict[str, np.ndarray]:
    """Inputs that are small integers, and weights made so, too: sums and products of few of them are exact in any order."""
    rng = np.random.default_rng(5)
    for name, array in module.weights.items():
        module.weights[name] = np.random.default_rng(len(name) + int(name[1:])).integers(-2, 3, array.shape).astype(array.dtype)
    shapes = {v.name: tuple(number(d, symbols) for d in v.tensor.shape) for v in module.main.inputs}
    return {name: rng.integers(-2, 3, shape).astype(np.float32) for name, shape in shapes.items()}


def same(build: Build, symbols: dict[str, int], rounding: float = 0.0, apply: object = moved) -> tuple[Module, RewriteLog]:
    """Rewrite, and compare with the NumPy reference before: bit for bit unless norms are in the graph."""
    before, after = built(build), built(build)
    log = apply(after)  # type: ignore[operator]
    verify(after)
    inputs = integers(before, symbols)
    integers(after, symbols)
    expected, found = evaluate(before, inputs), evaluate(after, inputs)
    for old, new in zip(before.main.outputs, after.main.outputs, strict=True):
        a, b = expected[old.name], found[new.name]
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=rounding, atol=rounding)
    return after, log


def follows_product(add: Node) -> bool:
    """Whether a residual is added to a product, or a product and its bias, with nothing in between."""
    for value in add.operands:
        node = value.producer
        while node is not None and node.op == "Add":
            node = next((v.producer for v in node.operands if v.producer is not None and v.producer.op in ("MatMul", "Add")), None)
        if node is not None and node.op == "MatMul":
            return True
    return False


def attention_output(batch: Dim, rows: Dim, heads: int, width: int, sequence_first: bool, flat: bool) -> Build:
    """What follows attention, as exporters write it: heads merged, a product over all rows, and the residual."""
    depth = heads * width

    def build(b: Builder) -> Value:
        attended, residual = b.input(batch, heads, rows, width), b.input(batch, rows, depth)
        perm, lead = ((2, 0, 1, 3), (rows, batch)) if sequence_first else ((0, 2, 1, 3), (batch, rows))
        y = b("Transpose", attended, perm=perm)
        y = b("Reshape", y, shape=(batch * rows, depth) if flat else (*lead, depth))
        y = b("Add", b("MatMul", y, b.random(depth, depth)), b.random(depth))
        if flat:
            y = b("Reshape", y, shape=(*lead, depth))
        if sequence_first:
            y = b("Transpose", y, perm=(1, 0, 2))
        return b("Relu", b("Add", y, residual))

    return build


SIZES = [(2, 7, 3, 5), (1, 5, 2, 3), (3, 1, 2, 3), (1, 1, 1, 1), (13, 11, 1, 2), (0, 3, 2, 2), (2, 0, 2, 2)]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_residuals_follow_the_product(sizes: tuple[int, int, int, int], sequence_first: bool, flat: bool) -> None:
    batch, rows, heads, width = sizes
    module, _ = same(attention_output(*sizes, sequence_first, flat), {})
    last = next(n for n in module.main.nodes if n.op == "Relu")
    assert last.input(0).producer is not None and follows_product(last.input(0).producer)
    symbolic, _ = same(attention_output(N, S, heads, width, sequence_first, flat), {"n": batch, "s": rows})
    (last,) = [n for n in symbolic.main.nodes if n.op == "Relu"]
    assert last.input(0).producer is not None and follows_product(last.input(0).producer)
    assert ops(symbolic)["Transpose"] == (heads > 1) and ops(symbolic)["Reshape"] <= 2


def projections(batch: Dim, rows: Dim) -> Build:
    """A norm, its axes swapped, a product with all three projections, and the heads of each: sequence-first attention."""

    def build(b: Builder) -> tuple[Value, ...]:
        x = b("LayerNormalization", b.input(batch, rows, 6), b.random(6), axis=2)
        y = b("Transpose", x, perm=(1, 0, 2))
        y = b("Add", b("MatMul", y, b.random(6, 18)), b.random(18))
        y = b("Transpose", b("Reshape", y, shape=(rows, batch, 3, 6)), perm=(2, 0, 1, 3))
        parts = [b("Slice", y, starts=(i,), ends=(i + 1,), axes=(0,), steps=(1,)) for i in range(3)]
        heads = [b("Reshape", part, shape=(rows, batch, 2, 3)) for part in parts]
        return tuple(b("Transpose", h, perm=(1, 2, 0, 3)) for h in heads)

    return build


def test_rows_reach_the_projections_in_their_order() -> None:
    module, log = same(projections(N, 5), {"n": 3}, 1e-6)
    norm = next(n for n in module.main.nodes if n.op == "LayerNormalization")
    assert [n.op for n in norm.output.consumers] == ["MatMul"]
    assert "sink_transpose" in {name for name, _ in log.applied}
    same(projections(1, 5), {}, 1e-6)


def test_a_transpose_that_others_read_stays_for_them_alone() -> None:
    def build(b: Builder) -> tuple[Value, ...]:
        x = b("Transpose", b.input(3, 2, 4), perm=(1, 0, 2))
        y = b("MatMul", x, b.random(4, 4))
        return b("Transpose", y, perm=(1, 0, 2)), b("Softmax", x, axis=1)

    module, _ = same(build, {}, 1e-6)
    assert ops(module)["Transpose"] == 1
    assert [n.op for n in module.main.inputs[0].consumers] == ["Transpose", "MatMul"]


def block_of_images(channels: int, image: bool) -> Build:
    """A convolution's block: rows of channels normalised, multiplied, put back into the order of images, and added."""

    def build(b: Builder) -> Value:
        x = b.input(N, channels, 3, 5)
        x = b.conv(x, b.random(channels, channels, 1, 1)) if image else b("Relu", x)
        y = b("Transpose", b.conv(x, b.random(channels, channels, 1, 1)), perm=(0, 2, 3, 1))
        y = b("Add", b("MatMul", y, b.random(channels, channels)), b.random(channels))
        y = b("Add", b("Transpose", y, perm=(0, 3, 1, 2)), x)
        z = b("Transpose", b("MatMul", b("Transpose", b.conv(y, b.random(channels, channels, 1, 1)), perm=(0, 2, 3, 1)),
                             b.random(channels, channels)), perm=(0, 3, 1, 2))
        return b("Add", y, z)

    return build


@pytest.mark.parametrize("n", [0, 1, 3])
def test_residuals_of_images_follow_the_product(n: int) -> None:
    module, _ = same(block_of_images(4, image=True), {"n": n})
    adds = [n for n in module.main.nodes if n.op == "Add" and n.input(1).time == Time.RUN]
    assert len(adds) == 2 and all(follows_product(add) for add in adds)
    plain, log = same(block_of_images(4, image=False), {"n": n})
    assert log.applied == [] and ops(plain)["Transpose"] == 4  # what lies row-major would be read across


def declined(build: Build, *symbols: str) -> set[str]:
    """The reasons of the rules of this module, which must have left the graph alone."""
    before = built(build)
    module, log = same(build, dict.fromkeys(symbols, 3))
    assert ops(module) == ops(before) and not log.applied
    names = {r.name for r in ROW_MOVEMENT_RULES}
    return {reason for name, _, reason in log.declined if name in names}


def test_what_mixes_rows_stays() -> None:
    def splits_the_sum(b: Builder) -> Value:
        return b("Reshape", b("MatMul", b("Reshape", b.input(N, 3, 8), shape=(N * 6, 4)), b.random(4, 5)), shape=(N, 6, 5))

    def moves_the_last_axis(b: Builder) -> Value:
        y = b("MatMul", b("Transpose", b.input(N, 4, 4), perm=(0, 2, 1)), b.random(4, 4))
        return b("Transpose", y, perm=(0, 2, 1))

    def norm_over_two_axes(b: Builder) -> Value:
        y = b("LayerNormalization", b("Transpose", b.input(3, N, 2, 4), perm=(1, 0, 2, 3)), b.random(2, 4), axis=2)
        return b("Transpose", y, perm=(1, 0, 2, 3))

    def bias_of_another_axis(b: Builder) -> Value:
        return b("Transpose", b("Add", b("Transpose", b.input(3, N, 4), perm=(1, 0, 2)), b.random(3, 1)), perm=(1, 0, 2))

    def product_of_batches(b: Builder) -> Value:
        y = b("MatMul", b("Transpose", b.input(3, N, 4), perm=(1, 0, 2)), b.input(N, 4, 5))
        return b("Transpose", y, perm=(1, 0, 2))

    assert "the Reshape mixes rows" in declined(splits_the_sum, "n")
    assert "it moves the last axis, or not all that read it end in a Transpose" in declined(moves_the_last_axis, "n")
    assert "it is not over the last axis alone" in declined(norm_over_two_axes, "n")
    assert "another operand is no vector along the last axis" in declined(bias_of_another_axis, "n")
    assert "it is no product of rows with a matrix" in declined(product_of_batches, "n")


def test_scales_by_axis_number_stay() -> None:
    def build(b: Builder) -> Value:
        x = b("Reshape", b.input(2, 3, 4), shape=(6, 4))
        y = b("QuantizeLinear", x, b.weight(np.ones(4, np.float32)), b.weight(np.zeros(4, np.int8)), axis=1, output_dtype=I8)
        return b("Reshape", y, shape=(2, 3, 4))

    assert "QuantizeLinear counts axes" in declined(build)


def test_a_residual_that_would_be_copied_is_not_regrouped() -> None:
    def build(b: Builder) -> Value:
        residual = b("Transpose", b.input(3, N, 4), perm=(1, 0, 2))
        return b("Add", b("Reshape", b("MatMul", b.input(N * 3, 4), b.random(4, 4)), shape=(N, 3, 4)), residual)

    assert "another operand may not lie dense, so that its Reshape would copy" in declined(build, "n")


def test_rows_without_elements_keep_their_number() -> None:
    def build(b: Builder) -> Value:
        x = b("Reshape", b.input(3, 5, 0), shape=(7, 0))
        return b("Relu", b("MatMul", x, b.random(0, 4)))

    same(build, {})


class Chain:
    """A random graph of row-wise ops, Reshapes and Transposes; the extents are awkward ones."""

    def __init__(self, seed: int, exact: bool) -> None:
        self.seed, self.exact = seed, exact

    def __call__(self, b: Builder) -> tuple[Value, ...]:
        self.rng, self.b = np.random.default_rng(self.seed), b
        pool: list[Dim] = [1, 2, 3, 5, N, S]
        lead = tuple(pool[i] for i in self.rng.integers(0, len(pool), self.rng.integers(1, 4)))
        values = [b.input(*lead, int(self.rng.choice([1, 4, 6])))]
        for _ in range(int(self.rng.integers(3, 11))):
            values.append(self.step(values))
        results = [v for v in values[1:] if not v.uses]
        return tuple(results)

    def step(self, values: list[Value]) -> Value:
        b, rng = self.b, self.rng
        x = values[-1] if rng.random() < 0.85 else values[int(rng.integers(len(values)))]
        shape, last = x.tensor.shape, x.tensor.shape[-1]
        kinds = ["Transpose", "Transpose", "merge", "split", "Relu", "scale", "residual"]
        if isinstance(last, int):
            kinds += ["MatMul", "MatMul", "bias"] + ([] if self.exact else ["norm"])
        kind = kinds[int(rng.integers(len(kinds)))]
        if kind == "Transpose":
            perm = [int(p) for p in rng.permutation(x.tensor.rank)]
            if rng.random() < 0.8:  # rows stay rows
                perm = [p for p in perm if p != x.tensor.rank - 1] + [x.tensor.rank - 1]
            return b("Transpose", x, perm=tuple(perm))
        if kind == "merge" and x.tensor.rank > 2:
            at = int(rng.integers(0, x.tensor.rank - 1))
            return b("Reshape", x, shape=(*shape[:at], product(shape[at : at + 2]), *shape[at + 2 :]))
        if kind == "split":
            known = [i for i, d in enumerate(shape) if d in (4, 6)]
            at = known[int(rng.integers(len(known)))] if known else int(rng.integers(x.tensor.rank))
            return b("Reshape", x, shape=(*shape[:at], *((2, shape[at] // 2) if known else (1, shape[at])), *shape[at + 1 :]))
        if kind == "MatMul" and sum(n.op == "MatMul" for n in b.graph.nodes) < 3 and x.tensor.rank > 1:
            return b("MatMul", x, b.random(last, int(rng.choice([last, 4, 6]))))
        if kind == "bias":
            return b("Add", b.random(last), x)
        if kind == "scale":
            return b("Mul", x, b.weight(np.float32(2)))
        if kind == "norm":
            return b("LayerNormalization", x, b.random(last), axis=x.tensor.rank - 1)
        like = [v for v in values if v.tensor.shape == shape and v is not x]
        if kind == "residual":
            return b("Add", x, like[int(rng.integers(len(like)))] if like and rng.random() < 0.7 else b.input(*shape))
        return b("Relu", x)


@pytest.mark.parametrize("seed", range(120))
def test_random_graphs_keep_their_results(seed: int) -> None:
    exact = seed % 3 != 0
    sizes = [{"n": 3, "s": 2}, {"n": 1, "s": 7}, {"n": 0, "s": 1}][seed % 3 if exact else 0]
    chain = Chain(seed, exact)
    before = built(chain)
    module, _ = same(chain, sizes, 0.0 if exact else 1e-4)
    # Only movements change, and there are not more of those that move elements; all else keeps its op, origin and count.
    kept = Counter((n.op, n.origin) for n in module.main.nodes if n.op not in MOVEMENTS)
    assert kept == Counter((n.op, n.origin) for n in before.main.nodes if n.op not in MOVEMENTS)
    assert ops(module)["Transpose"] <= ops(before)["Transpose"]
    same(chain, sizes, 1e-3, simplify)
