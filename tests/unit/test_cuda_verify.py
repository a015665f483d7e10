"""Verification of builds for a GPU: kernels run under the interpreter in the place of the device, with the tolerances of the precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import dovetail
from dovetail import builder
from dovetail.builder.options import BuildOptions
from dovetail.builder.select import by_rule
from dovetail.builder.verify import tolerance
from dovetail.builder.verify_engine import expect, verify_engine
from dovetail.builder.verify_groups import GroupResult, kernel_tolerance, verify_groups
from dovetail.codegen.tactic import Emitted
from dovetail.core.errors import VerificationError
from dovetail.core.records import RecordFile
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.frontend.importer import import_onnx
from dovetail.ops.evaluate import evaluate
from dovetail.tuner.launch import Placed, Sizes
from tests.unit.cuda_device import plug_in
from tests.unit.cuda_harness import launch
from tests.unit.small_models import classifier

DTYPES = {"fp16": "f16", "bf16": "bf16", "tf32": "tf32", "fp32": "f32"}


class Interpreter:
    """Runs kernels on host memory, twice; `fault` changes the first result before it is looked at."""

    variants = (1, 2)
    difference = "the run"

    def __init__(self, fault: Callable[[int, np.ndarray[Any, Any]], None] = lambda variant, array: None) -> None:
        self.fault = fault

    def bind(
        self, emitted: Emitted, inputs: Sequence[Placed], outputs: Sequence[Placed], sizes: Sizes
    ) -> Callable[[int], None]:
        def run(variant: int) -> None:
            launch(emitted, inputs, outputs, sizes)
            self.fault(variant, outputs[0].array)

        return run


@pytest.fixture(scope="module")
def built() -> dict[str, builder.Built]:
    """One small network per precision, without its machine code."""
    found = {}
    for precision in DTYPES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dovetail.builder.compile_plan", _no_code)
            options = BuildOptions(target="sm_90", precision=precision, verify="off", shapes={"x": (2, 3, 12, 12)})
            found[precision] = builder.build(classifier(), options, choose=by_rule)
    return found


def _no_code(plan: Any, kernels: Any, target: Any, progress: Any = None) -> Any:
    from dovetail.builder.machine_code import MachineCode

    return MachineCode(plan, "", None, None)  # type: ignore[arg-type]


def check(built: builder.Built, folder: Any, launcher: Interpreter) -> list[GroupResult]:
    return verify_groups(
        built.choices, built.target, launcher, weights=built.module.weights, bounds={}, budget_s=None,
        cache=RecordFile(folder / "verified.jsonl"),
    )  # fmt: skip


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 2e-3), ("bf16", 1e-2), ("tf32", 2e-3), ("fp32", 1e-5)])
def test_kernels_are_checked_with_the_tolerance_of_their_precision(built, precision, limit, tmp_path):
    results = check(built[precision], tmp_path, Interpreter())
    assert results and all(r.error is not None and r.error <= r.tolerance <= limit for r in results)
    contraction = next(c for c in built[precision].choices.values() if c.group.kind == "conv")
    assert kernel_tolerance(contraction, built[precision].target) == limit


def test_wrong_kernels_are_caught(built, tmp_path):
    def scaled(variant: int, array: np.ndarray[Any, Any]) -> None:
        array *= array.dtype.type(1.01)

    def second(variant: int, array: np.ndarray[Any, Any]) -> None:
        array.flat[0] += array.dtype.type(variant == 2)

    with pytest.raises(VerificationError, match="differs from the reference"):
        check(built["fp16"], tmp_path, Interpreter(scaled))
    with pytest.raises(VerificationError, match="depends on the run, got other bits with 2 than with 1"):
        check(built["fp16"], tmp_path, Interpreter(second))


def test_engines_are_measured_against_fp32(built):
    options = {"x": (2, 3, 12, 12)}
    expected = expect(import_onnx(classifier(), options), "full")

    def run(factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
        module = import_onnx(classifier(), options)
        return lambda feed: {k: (v * np.float32(factor)).astype(np.float32) for k, v in evaluate(module, feed).items()}

    for precision in ("fp16", "bf16"):
        limit = tolerance(built[precision])
        assert limit == {"fp16": 2e-3, "bf16": 1e-2}[precision]
        data = verify_engine(run(1 + limit / 2), expected, limit, lambda: import_onnx(classifier(), options), precision)
        assert data["outputs"][0]["relative_l2"] == pytest.approx(limit / 2, rel=0.1)
        with pytest.raises(VerificationError, match=rf"rounding to {precision} moves it by"):
            verify_engine(run(1.2), expected, limit, lambda: import_onnx(classifier(), options), precision)


@pytest.mark.parametrize("precision", DTYPES)
def test_arithmetic_is_reported_by_element_type(built, precision):
    report = built[precision].plan.meta["report"]
    assert set(report["flops"]) == {DTYPES[precision]}
    assert report["requested"]["precision"] == report["actual"]["precision"] == precision
    total = sum(program[0] for program in report["flops"][DTYPES[precision]])
    assert total == 2 * 2 * 16 * 12 * 12 * 27 + 2 * 2 * 16 * 5


# ---------------------------------------------------------------------- whole builds
FP16: dict[str, Any] = {"device": "cuda", "precision": "fp16", "tune": False, "io_formats": {"x": "f16:channels_last"}}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    """cuda:0 as a driver that interprets the kernels of whatever is built."""
    return plug_in(monkeypatch)


def test_a_build_is_checked_on_its_device(device: HostDriver) -> None:
    engine = dovetail.build(classifier(), **FP16)
    certificate = engine.plan.certificate
    assert certificate["precision"] == "fp16" and certificate["kernels"]["checked"] == certificate["kernels"]["distinct"] >= 4
    (row,) = certificate["engine"]["outputs"]
    assert certificate["engine"]["tolerance"] == 2e-3
    # The softmax of large logits: rounding alone is beyond the tolerance, and the certificate says by how much.
    assert 1e-5 < row["relative_l2"] <= max(2e-3, 2 * row.get("rounding_moves_it_by", 0.0)) <= 1e-2
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    want = evaluate(import_onnx(classifier()), {"x": x})["y"]
    got = engine.run({"x": x.astype(np.float16)})["y"]
    assert got.dtype == np.float32 and np.linalg.norm(got - want) <= 1e-2 * np.linalg.norm(want)
    assert dovetail.compare(classifier(), engine, tolerance=1e-2).ok
    assert set(engine.report().json()["flops_by_dtype"]) == {"f16"}


def test_verify_checks_again_on_the_device(device: HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = dovetail.build(classifier(), **FP16)
    assert engine.verify("sample")["kernels"]["checked"] >= 4
    right = device._run

    def wrong(code: bytes, entry: str, grid: tuple[int, int, int], values: Sequence[Any]) -> None:
        right(code, entry, (1, 1, 1), values)  # the first program of every grid alone

    monkeypatch.setattr(device, "_run", wrong)
    with pytest.raises(VerificationError, match="differs from the reference"):
        engine.verify("sample")
