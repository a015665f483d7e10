"""The weights program: what is compiled, what stays a host step, how sources and results are shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import dovetail
from dovetail import builder, runtime
from dovetail.builder.emit import emit_plan
from dovetail.builder.machine_code import compile_cpu_kernels
from dovetail.builder.select import choose_weights
from dovetail.codegen.lower import reason_not_lowerable
from dovetail.codegen.target import Target
from dovetail.core.dtypes import I64
from dovetail.core.env import override
from dovetail.core.errors import RefitError
from dovetail.engine.plan import HostSegment, NativeSegment, Plan
from dovetail.ir.graph import Value
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate
from dovetail.passes.layout import Placement
from dovetail.passes.weight_time import group_weights
from dovetail.runtime import weights as weight_sets
from tests.unit.ir_builder import Builder
from tests.unit.small_models import classifier, model

Array = np.ndarray[Any, Any]
TARGET = Target.host()


@pytest.fixture(autouse=True)
def caches(tmp_path: Path) -> Iterator[None]:
    with override(home=tmp_path / "home"):
        yield


def steps(plan: Plan) -> list[Any]:
    """The kernel steps of the weights program."""
    return [s for g in plan.weights_program.segments if isinstance(g, NativeSegment) for s in g.steps]


def host_ops(plan: Plan) -> list[str]:
    """The host steps of the weights program."""
    return [g.op for g in plan.weights_program.segments if isinstance(g, HostSegment)]


def compiled(b: Builder, *outputs: Value) -> tuple[Plan, list[Array], list[Array]]:
    """(plan, results of the compiled weights program with 1 thread and with 3, results of the references)."""
    module = b.module
    module.main.set_outputs(outputs)
    module.meta["output_names"] = [f"y{i}" for i in range(len(outputs))]
    want = list(evaluate(module, {}).values())
    placement = Placement()
    group_weights(module, TARGET, reason_not_lowerable, placement)
    verify(module)
    emission = emit_plan(module, choose_weights(module, TARGET), placement, TARGET)
    binary, host = compile_cpu_kernels(emission.kernels.values(), TARGET)
    results = []
    for threads in (1, 3):
        engine = runtime.RuntimeEngine(
            emission.plan, kernels=[binary], host=host, weights=module.weights, threads=threads
        )
        results.append([engine.run({})[f"y{i}"] for i in range(len(outputs))])
    for one, three in zip(*results, strict=True):
        assert one.tobytes() == three.tobytes()
    return emission.plan, results[0], want


def same_bits(b: Builder, *outputs: Value) -> Plan:
    """The plan, after checking that its results are the references' to the bit and that nothing ran on the host."""
    plan, got, want = compiled(b, *outputs)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        assert g.tobytes() == np.ascontiguousarray(w).tobytes()
    assert host_ops(plan) == []
    return plan


GEMMS = [(1, 1), (3, 5), (64, 48), (65, 96), (7, 100), (130, 17), (1, 49), (100, 1)]


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_packed_as_the_reference_packs_them(transposed: bool) -> None:
    b = Builder()
    outputs = []
    for k, n in GEMMS:
        w = b.random(n, k) if transposed else b.random(k, n)
        outputs.append(b("PackGemmB", w, width=48, lanes=16, transposed=transposed))
        outputs.append(b("PackGemmB", w, width=6, lanes=2, transposed=transposed))
    plan = same_bits(b, *outputs)
    assert len(steps(plan)) == len(outputs)
    assert len({s.kernel for s in steps(plan)}) == 1  # one source for all sizes


def test_views_in_front_of_a_packing_cost_no_step() -> None:
    b = Builder()
    flipped = b("Slice", b.random(9, 20), starts=(8,), ends=(-1,), axes=(0,), steps=(-1,))
    part = b("Slice", b.random(40, 33), starts=(3,), ends=(36,), axes=(0,), steps=(2,))
    turned = b("Transpose", b("Reshape", b.random(4, 5, 11), shape=(20, 11)), perm=(1, 0))
    plan = same_bits(b, *(b("PackGemmB", v, width=16, lanes=16) for v in (flipped, part, turned)))
    assert len(steps(plan)) == 3


def test_batches_of_matrices() -> None:
    b = Builder()
    whole = b("PackGemmB", b.random(2, 3, 5, 18), width=16, lanes=4)
    swapped = b("PackGemmB", b("Transpose", b.random(3, 18, 5), perm=(0, 2, 1)), width=16, lanes=4)
    same_bits(b, whole, swapped)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (7, 7), (2,), (1, 2, 3)])
def test_filters_with_their_folded_scale(kernel: tuple[int, ...]) -> None:
    b = Builder()
    outputs = []
    for m, c, group in ((1, 1, 1), (33, 5, 1), (64, 70, 1), (12, 3, 4)):
        w = b.random(m, c, *kernel)
        scale = b("Reshape", b.random(m), shape=(m, 1, *[1] * len(kernel)))
        outputs.append(b("PackConv", w, group=group, width=16, lanes=16))
        outputs.append(b("PackConv", b("Mul", w, scale), group=group, width=16, lanes=16))
    outputs.append(b("PackDepthwise", b.random(21, 1, *kernel), lanes=16))
    plan = same_bits(b, *outputs)
    assert len(steps(plan)) == len(outputs)  # the factor is applied while packing
    assert len({s.kernel for s in steps(plan)}) == 2


def test_a_factor_that_is_not_per_column_is_a_step_of_its_own() -> None:
    b = Builder()
    w = b("Mul", b.random(20, 6, 3, 3), b.random(6, 1, 1))
    plan = same_bits(b, b("PackConv", w, group=1, width=16, lanes=16))
    assert len(steps(plan)) == 2


@pytest.mark.parametrize("scaled", [False, True])
def test_winograd_filters(scaled: bool) -> None:
    b = Builder()
    outputs = []
    for m, c, width in ((1, 1, 16), (50, 3, 32), (64, 17, 48)):
        w = b.random(m, c, 3, 3)
        if scaled:
            w = b("Mul", w, b("Reshape", b.random(m), shape=(m, 1, 1, 1)))
        outputs.append(b("PackWinograd", w, width=width, lanes=16))
        outputs.append(b("PackWinograd", w, width=width, lanes=16, tile=2))
        outputs.append(b("PackWinograd", w, width=width, lanes=4) if not scaled else outputs[-1])
    plan, got, want = compiled(b, *dict.fromkeys(outputs))
    assert host_ops(plan) == []
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-7, atol=1e-9)


def test_matrices_side_by_side_are_packed_without_being_joined() -> None:
    b = Builder()
    parts = [b("Transpose", b.random(n, 10), perm=(1, 0)) for n in (7, 30, 16, 1)]
    plan = same_bits(b, b("PackGemmB", b("Concat", *parts, axis=1), width=16, lanes=16))
    assert len(steps(plan)) == 4 and all(buffer.kind in ("weight", "output") for buffer in plan.weights_program.buffers)


def test_a_concat_that_others_read_is_written_in_parts() -> None:
    b = Builder()
    joined = b("Concat", b.random(2, 3), b("Transpose", b.random(3, 5), perm=(1, 0)), b.random(1, 3), axis=0)
    same_bits(b, joined, b("PackGemmB", joined, width=16, lanes=16), b("Neg", joined))


def test_what_later_times_read_is_dense() -> None:
    b = Builder()
    w = b.random(6, 7, 8)
    turned = b("Transpose", w, perm=(2, 0, 1))
    same_bits(b, turned, b("Slice", turned, starts=(1,), ends=(8,), axes=(0,), steps=(3,)), b("Expand", b.random(3, 1), shape=(3, 4)))


@pytest.mark.parametrize("perm", [(1, 0, 2, 3), (3, 2, 1, 0), (0, 3, 1, 2), (2, 3, 0, 1)])
def test_transpositions(perm: tuple[int, ...]) -> None:
    b = Builder()
    outputs = [b("Transpose", b.random(*shape), perm=perm) for shape in ((2, 3, 5, 7), (1, 70, 1, 33), (17, 1, 4, 1))]
    same_bits(b, *outputs)


def test_chains_of_pointwise_nodes_share_one_source() -> None:
    b = Builder()
    outputs = []
    for size in (2, 3, 64, 101):
        gamma, mean, beta = b.random(size), b.random(size), b.random(size)
        variance = b.weight(np.abs(b.rng.standard_normal(size)).astype(np.float32))
        scale = b("Div", gamma, b("Sqrt", b("Add", variance, b.weight(1e-5))))
        outputs += [scale, b("Sub", beta, b("Mul", mean, scale))]
    plan = same_bits(b, *outputs)
    assert len(steps(plan)) == len(outputs)
    assert len({s.kernel for s in steps(plan)}) == 2


def test_broadcasts_and_other_dtypes() -> None:
    b = Builder()
    ints = b.weight(np.arange(-6, 6, dtype=np.int64).reshape(3, 4))
    flags = b("Less", ints, b.weight(np.array(2, np.int64)))
    rows = b("Add", b.random(5, 1, 4), b.random(3, 1))
    assert ints.tensor.dtype == I64
    same_bits(b, b("Where", flags, rows, b.random(4)), b("Cast", b.random(7), to=I64), flags)


def test_empty_and_unsupported_ones_stay_host_steps() -> None:
    b = Builder()
    empty = b("Neg", b("Transpose", b.weight(np.zeros((0, 3), np.float32)), perm=(1, 0)))
    half = b("PackGemmB", b.weight(b.rng.standard_normal((4, 5)).astype(np.float16)), width=16, lanes=16)
    sums = b("ReduceSum", b.random(4, 5), axes=(1,), keepdims=False)
    plan, got, want = compiled(b, empty, half, sums, b("Neg", b("Reshape", sums, shape=(2, 2))))
    for g, w in zip(got, want, strict=True):
        assert np.array_equal(g, w) and g.shape == w.shape
    assert sorted(host_ops(plan)) == ["Neg", "PackGemmB", "ReduceSum", "Transpose"]
    assert len(steps(plan)) == 1


# --- models ---------------------------------------------------------------------------------------


def residual(blocks: int = 3, seed: int = 0) -> onnx.ModelProto:
    """Convolutions with batch normalisation (1x1, 3x3, depthwise, grouped), residuals and a linear head."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    nodes = []

    def conv(x: str, name: str, m: int, c: int, k: int, group: int = 1) -> str:
        weights[f"{name}.w"] = rng.standard_normal((m, c // group, k, k), np.float32) / np.float32(k * c**0.5)
        for part in ("gamma", "beta", "mean"):
            weights[f"{name}.{part}"] = rng.standard_normal(m, np.float32)
        weights[f"{name}.var"] = rng.random(m, np.float32) + np.float32(0.5)
        nodes.append(helper.make_node("Conv", [x, f"{name}.w"], [f"{name}.c"], name=name, pads=[k // 2] * 4, group=group))
        inputs = [f"{name}.c", *(f"{name}.{part}" for part in ("gamma", "beta", "mean", "var"))]
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"{name}.y"], name=f"{name}.bn"))
        return f"{name}.y"

    x = conv("x", "stem", 16, 3, 3)
    for i in range(blocks):
        size = 16 * (i + 1)
        y = conv(x, f"a{i}", size, 16 * max(i, 1), 1)
        z = conv(conv(y, f"b{i}", size, size, 3), f"c{i}", size, size, 3, group=(1, 4, size)[i % 3])
        nodes += [
            helper.make_node("Add", [y, z], [f"s{i}"], name=f"add{i}"),
            helper.make_node("Relu", [f"s{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        x = f"r{i}"
    weights["head"] = rng.standard_normal((5, 16 * blocks), np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["g"], name="gap"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "head"], ["y"], name="head", transB=1),
    ]
    return model(nodes, {"x": ["N", 3, 12, 12]}, {"y": ["N", 5]}, weights)


def images(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((2, 3, 12, 12), np.float32)


def refuse(*args: object, **kwargs: object) -> Any:
    raise AssertionError("not expected to run")


def test_a_residual_network_loads_without_a_host_step() -> None:
    engine = dovetail.build(residual(), tune=False)
    report = engine.report().json()["weights"]
    assert report["host_calls"] == 0 and report["host_steps"] == []
    plan = engine._plan
    assert report["native_steps"] == len(steps(plan)) >= 20
    assert len({s.kernel for s in steps(plan)}) <= 8
    assert engine.report().json()["certificate"]["ok"]


def test_sources_are_those_of_another_model() -> None:
    small, large = (builder.build(residual(n), builder.BuildOptions(tune=False)) for n in (2, 3))
    shared = {s.kernel for s in steps(small.plan)}
    assert shared <= {s.kernel for s in steps(large.plan)}


def test_a_build_leaves_the_packed_weights_for_the_first_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with override(cache=tmp_path / "cache"):
        engine = dovetail.build(residual(1), tune=False)
        want = engine.run({"x": images()})["y"]
        engine.save(tmp_path / "m.plan")
        engine.save(tmp_path / "unsigned.plan", sign=False)
        monkeypatch.setattr(weight_sets, "_pack", refuse)
        loaded = dovetail.load(tmp_path / "m.plan")
        assert np.array_equal(loaded.run({"x": images()})["y"], want)
        # A stranger's file finds them too, under hashes that were computed here.
        loaded = dovetail.load(tmp_path / "unsigned.plan")
        assert np.array_equal(loaded.run({"x": images()})["y"], want)
        # And the second time nothing is compiled anew, not even looked at.
        monkeypatch.setattr(builder, "compile_module", refuse)
        loaded = dovetail.load(tmp_path / "unsigned.plan")
        assert np.array_equal(loaded.run({"x": images()})["y"], want)


def test_a_damaged_cached_plan_is_made_again(tmp_path: Path) -> None:
    x = {"x": images()}
    with override(cache=tmp_path / "cache"):
        engine = dovetail.build(classifier(), tune=False, verify="off")
        want = engine.run(x)["y"]
        engine.save(tmp_path / "m.plan", sign=False)
        dovetail.load(tmp_path / "m.plan")
        (cached,) = (tmp_path / "cache" / "plans").iterdir()
        whole = cached.read_text()
        for damaged in ("", whole[:-9], whole.replace('"key"', '"kex"'), "[]"):
            cached.write_text(damaged)
            assert np.array_equal(dovetail.load(tmp_path / "m.plan").run(x)["y"], want)
            assert cached.read_text() == whole


def test_refit_runs_the_compiled_program_and_is_all_or_nothing() -> None:
    engine = dovetail.build(residual(2), tune=False, verify="off")
    other = {t.name: onnx.numpy_helper.to_array(t) for t in residual(2, seed=1).graph.initializer}
    before = engine.run({"x": images()})["y"]
    with pytest.raises(RefitError):
        engine.refit({**other, "stem.w": np.zeros((1, 2), np.float32)})
    assert np.array_equal(engine.run({"x": images()})["y"], before)
    engine.refit(other)
    fresh = dovetail.build(residual(2, seed=1), tune=False, verify="off")
    assert np.array_equal(engine.run({"x": images()})["y"], fresh.run({"x": images()})["y"])
