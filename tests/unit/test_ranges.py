"""Values too large for fp16: what is measured, what is kept in fp32 for it, and that nothing else is."""

import numpy as np
import pytest

from dovetail.builder import _lower
from dovetail.builder.flops import contractions
from dovetail.builder.options import BuildOptions
from dovetail.builder.oracle import attributes, relative_l2, run_body
from dovetail.builder.ranges import LIMIT, RangeDecision, decide, measure
from dovetail.core.dims import sym
from dovetail.core.dtypes import BOOL
from dovetail.core.errors import BindingError, ModelError, PlanFormatError
from dovetail.ir.graph import Module, Node
from dovetail.ir.printer import print_module
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate
from dovetail.passes.precision import Kept
from dovetail.reference.registry import call
from tests.unit.ir_builder import Build, built, feeds

OPTIONS = BuildOptions(target="sm_90", precision="fp16")
TARGET = OPTIONS.check()


def lowered(build: Build, decision: RangeDecision | None = None) -> tuple[Module, RangeDecision]:
    """The fused fp16 network, and what was kept in fp32 for its range."""
    module = built(build)
    text = print_module(module)
    if decision is None:
        decision = decide(text, module, measure(module, samples=[feeds(module)], level="full"), _trial)
    _lower(module, OPTIONS, TARGET, decision.kept)
    verify(module)
    return module, decision


def _trial(module: Module, kept: Kept) -> None:
    _lower(module, OPTIONS, TARGET, kept)


def run(module: Module, given: dict[str, np.ndarray]) -> np.ndarray:
    """The output as fused kernels compute it: fp32 inside, rounded where it is stored and where tensor cores take it."""
    values = {v: given[v.name] for v in module.main.inputs}
    with np.errstate(all="ignore"):
        for node in module.main.nodes:
            if node.op == "Constant":
                results = (module.weights[node.attrs["name"]],)
            else:
                results = _results(node, [values[v] for v in node.operands])
            values |= dict(zip(node.outputs, results, strict=True))
    return values[module.main.outputs[0]]


def _results(node: Node, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    if node.op == "Fusion":
        return run_body(node.regions[0], arrays, {}, np.dtype(np.float32))
    return tuple(call(node.op, arrays, attributes(node, {})))


def error(build: Build, module: Module) -> float:
    """Relative L2 distance of a fused network to the model in fp32."""
    before = built(build)
    inputs = feeds(before)
    return relative_l2(run(module, inputs), next(iter(evaluate(before, inputs).values())))


def stored(module: Module) -> dict[str, str]:
    """Element types of the results of the fusions, by what ends their bodies without Casts."""
    found = {}
    for node in module.main.nodes:
        if node.op == "Fusion":
            last = node.regions[0].outputs[0]
            while last.producer is not None and last.producer.op == "Cast" and last.producer.prev is not None:
                last = last.producer.input(0)
            found[last.producer.op if last.producer else "input"] = node.output.tensor.dtype.name
    return found


def arithmetic(module: Module) -> list[str]:
    return [w.dtype for w in contractions(module.main, TARGET)]


# ---------------------------------------------------------------------- networks
def product_and_norm(b):
    x = b.input(1, 17, 40)
    y = b("MatMul", x, b.weight(1e4 * b.rng.standard_normal((40, 72)).astype(np.float32)))
    scale, bias = (b.weight(np.full(72, v, np.float32)) for v in (1, 0))
    y = b("LayerNormalization", y, scale, bias, axis=2, epsilon=1e-5)
    return b("MatMul", y, b.random(72, 24))


def one_fusion(b):
    """A convolution whose results are large until its own epilogue bounds them."""
    y = b.conv(b.input(1, 16, 11, 9), b.weight(1e4 * b.rng.standard_normal((24, 16, 1, 1)).astype(np.float32)))
    y = b("Tanh", b("Mul", y, b.weight(1e-5)))
    return b.conv(y, b.random(8, 24, 1, 1))


def large_operand(b):
    """A large result of an activation is what another convolution multiplies."""
    y = b("Relu", b.conv(b.input(1, 16, 11, 9), b.weight(1e4 * b.rng.standard_normal((24, 16, 1, 1)).astype(np.float32))))
    y = b("Tanh", b("Mul", b.conv(y, b.random(8, 24, 1, 1)), b.weight(1e-5)))
    return b.conv(y, b.random(8, 8, 1, 1))


# ---------------------------------------------------------------------- what is kept
def test_a_large_product_is_stored_in_fp32_and_multiplied_in_fp16():
    module, decision = lowered(product_and_norm)
    assert list(decision.kept.largest) == ["matmul"] and decision.nodes == {"matmul": "n1 (MatMul)"}
    assert 1e5 < decision.kept.largest["matmul"] < 1e6 and not decision.kept.strict
    assert stored(module)["MatMul"] == "f32" and stored(module)["LayerNormalization"] == "f16"
    assert arithmetic(module) == ["f16", "f16"]
    assert error(product_and_norm, module) < 2e-3
    garbage, _ = lowered(product_and_norm, RangeDecision())
    assert not error(product_and_norm, garbage) < 0.1


def test_what_a_fusion_never_stores_keeps_nothing():
    module, decision = lowered(one_fusion)
    assert decision.peak[1] > 1e5 and decision.kept == Kept()
    assert set(arithmetic(module)) == {"f16"} and error(one_fusion, module) < 2e-3


def test_a_contraction_of_large_values_multiplies_in_fp32():
    module, decision = lowered(large_operand)
    assert "relu" in decision.kept.largest and arithmetic(module) == ["f16", "f32", "f16"]
    assert stored(module)["Relu"] == "f32" and stored(module)["Tanh"] == "f16"
    assert error(large_operand, module) < 2e-3
    assert not error(large_operand, lowered(large_operand, RangeDecision())[0]) < 0.1


def test_several_readers_share_one_copy_in_fp32():
    def build(b):
        y = b.conv(b.input(1, 16, 7, 5), b.weight(1e4 * b.rng.standard_normal((24, 16, 1, 1)).astype(np.float32)))
        a = b("ReduceMax", y, axes=(2, 3), keepdims=True)
        z = b("Div", b("Transpose", y, perm=(0, 1, 3, 2)), a)
        return b("MatMul", b("Tanh", z), b.random(7, 3))

    module, decision = lowered(build)
    assert "conv" in decision.kept.largest
    assert [n.output.tensor.dtype.name for n in module.main.nodes if n.attrs.get("kind") == "conv"] == ["f32"]
    assert arithmetic(module) == ["f16", "f16"] and error(build, module) < 2e-3


def test_merged_siblings_of_which_one_is_too_large():
    def build(b):
        x = b.input(1, 9, 32)
        small, large = (b("MatMul", x, b.weight(s * b.rng.standard_normal((32, 16)).astype(np.float32))) for s in (1, 1e4))
        large = b("Mul", b("ReduceMean", large, axes=(2,), keepdims=True), large)
        return b("Add", b("Softmax", small, axis=2), b("Softmax", large, axis=2))

    module, decision = lowered(build)
    assert decision.kept.largest and error(build, module) < 2e-3


def test_masks_are_clamped_as_ever():
    def build(b):
        scores = b("MatMul", b.input(1, 8, 16), b.random(16, 12))
        mask = b("Where", b.input(1, 8, 12, dtype=BOOL), b.weight(-1e9), b.weight(0.0))
        p = b("Softmax", b("Add", scores, mask), axis=2)
        return b("MatMul", p, b.random(12, 4))

    module, decision = lowered(build)
    assert decision.kept == Kept() and set(arithmetic(module)) == {"f16"} and error(build, module) < 2e-3

    def positive(b):
        scores = b("Mul", b("MatMul", b.input(1, 8, 16), b.random(16, 12)), b.weight(1e5))
        return b("MatMul", b("Softmax", b("Transpose", scores, perm=(0, 2, 1)), axis=2), b.random(8, 4))

    assert lowered(positive)[1].kept.largest


def test_weights_beyond_the_range_are_multiplied_as_they_are():
    def build(b):
        y = b("MatMul", b.input(1, 6, 8), b.weight(1e5 * b.rng.standard_normal((8, 12)).astype(np.float32)))
        return b("MatMul", b("Tanh", b("Mul", y, b.weight(1e-6))), b.random(12, 4))

    module, decision = lowered(build)
    assert decision.nodes["w0"] == "w0 (Constant)" and decision.kept.largest["w0"] > 65504
    assert sorted(arithmetic(module)) == ["f16", "f32"] and error(build, module) < 2e-3


def test_bf16_has_the_range():
    module = built(product_and_norm)
    _lower(module, BuildOptions(target="sm_90", precision="bf16"), TARGET, Kept())
    assert error(product_and_norm, module) < 1e-2


# ---------------------------------------------------------------------- what is measured
def test_the_largest_of_all_samples_counts():
    module = built(lambda b: b("Mul", b.input(3), b.weight(2.0)))
    x = np.array([1, -5, np.inf], np.float32)
    ranges = measure(module, samples=[{"x0": x}, {"x0": -10 * x}], level="sample")
    assert ranges.largest == {"x0": 50.0, "w0": 0.0, "mul": 100.0}
    assert ranges.measured and ranges.inputs == "2 of the caller's samples" and not ranges.beyond
    with pytest.raises(BindingError, match=r"got inputs \['y'\]"):
        measure(module, samples=[{"y": x}], level="sample")


def test_a_batch_that_takes_too_long_is_measured_by_one_sample():
    def network(batch):
        return lambda b: b.conv(b.input(batch, 256, 40, 40), b.random(512, 256, 3, 3), pads=(1, 1, 1, 1))

    large, calls = built(network(64)), []

    def single() -> Module:
        calls.append(1)
        return built(network(1))

    found = measure(large, samples=(), level="sample", single=single)
    assert calls and found.measured and found.inputs == "seeded normal numbers: x0 [1, 256, 40, 40]"

    def fixed() -> Module:
        raise ModelError("Reshape: the batch is fixed")

    found = measure(large, samples=(), level="sample", single=fixed)
    assert not found.measured and "would take about" in found.reason and "the batch is fixed" in found.reason


def test_symbolic_sizes_are_chosen():
    module = built(lambda b: b("MatMul", b.input(sym("N"), 8), b.random(8, 3)))
    found = measure(module, samples=(), level="sample")
    assert found.measured and found.largest["matmul"] > 0


# ---------------------------------------------------------------------- the record
def test_a_decision_is_the_same_every_time_and_survives_the_report():
    first, second = (lowered(large_operand)[1] for _ in range(2))
    assert first == second and first.data()["limit"] == LIMIT
    again = RangeDecision.parse(first.data())
    assert again == first and print_module(lowered(large_operand, again)[0]) == print_module(lowered(large_operand)[0])
    assert RangeDecision.parse(None) == RangeDecision()
    with pytest.raises(PlanFormatError, match="damaged ranges"):
        RangeDecision.parse({"kept": [{"value": "x"}]})
