"""Verification: wrong kernels are caught and named, and what cannot be checked is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail import builder
from dovetail.builder.crop import crops
from dovetail.builder.options import BuildOptions
from dovetail.builder.oracle import attributes, relative_l2, run_body
from dovetail.builder.select import Choice, Decision
from dovetail.builder.verify_engine import expect, verify_engine
from dovetail.builder.verify_groups import verify_groups
from dovetail.builder.verify_launch import HostLauncher
from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single
from dovetail.codegen.target import Target
from dovetail.core.env import override
from dovetail.core.errors import VerificationError
from dovetail.core.records import RecordFile
from dovetail.device.cpu import KernelLibrary
from dovetail.frontend.importer import import_onnx
from dovetail.ops.samples import integer_limit, sizes_to_try
from dovetail.tuner.launch import host_pool
from tests.unit.small_models import classifier, model, relu

_BODY = """
void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {
    const float *x = p[0];
    float *y = p[1];
    for (int64_t i = tid; i < d[0]; i += nt) y[i] = x[i] > 0.0f ? x[i] * SCALE : 0.0f;
    EXTRA
}
"""


class HandWritten(Tactic):
    """ReLU of a dense tensor, perhaps with a fault."""

    name = "hand_written"
    kinds = ("loop",)

    def __init__(self, scale: str = "1.0f", extra: str = "") -> None:
        self.scale, self.extra = scale, extra

    def supports(self, group: Group, target: Target) -> str | None:
        return None

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        text = _BODY.replace("SCALE", self.scale).replace("EXTRA", self.extra)
        kernel = make_kernel(
            text, params=(Param("in", 0), Param("out", 0)), dims=(group.outputs[0].tensor.size,), tactic=self.name
        )
        return single(kernel)


def built_with(tactic: Tactic) -> builder.Built:
    def choose(groups: Any, target: Target, sizes: Any) -> list[Decision]:
        return [(tactic, (), ()) for _ in groups]

    return builder.build(relu(), BuildOptions(verify="off"), choose=choose)


def check(built: builder.Built, cache: RecordFile, **options: Any) -> list[Any]:
    return verify_groups(
        built.choices, built.target, HostLauncher(KernelLibrary(built.binary), host_pool(built.target), 2), weights={},
        bounds={}, budget_s=None, cache=cache, **options,
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Any) -> RecordFile:
    return RecordFile(tmp_path / "verified.jsonl")


def test_a_right_kernel_passes_and_is_not_checked_twice(cache: RecordFile, monkeypatch: pytest.MonkeyPatch) -> None:
    built = built_with(HandWritten())
    (result,) = check(built, cache)
    assert (result.name, result.tactic, result.error) == ("y", "hand_written", 0.0)
    monkeypatch.setattr("dovetail.builder.verify_groups._Job.check", lambda *a: pytest.fail("checked again"))
    assert check(built, cache) == [result]
    with pytest.raises(pytest.fail.Exception):
        check(built, cache, fresh=True)


@pytest.mark.parametrize(
    ("scale", "extra", "message"),
    [
        ("1.001f", "", r"y: tactic hand_written differs .* 1\.00e-03, expected at most 1e-05"),
        ("1.0f", "if (tid == 0) y[d[0]] = 1.0f;", "hand_written writes outside"),
        ("1.0f", "if (tid == 0) y[-1] = 1.0f;", "hand_written writes outside"),
        ("(nt > 1 ? 1.0000001f : 1.0f)", "", "hand_written depends on the number of threads"),
        ("1.0f", "if (tid == 0) y[0] = x[d[0]];", "hand_written differs"),
    ],
)
def test_a_wrong_kernel_is_caught_and_named(scale: str, extra: str, message: str, cache: RecordFile) -> None:
    with pytest.raises(VerificationError, match=message):
        check(built_with(HandWritten(scale, extra)), cache)
    assert len(cache) == 0


def test_a_build_with_a_wrong_tactic_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from dovetail.kernels.cpu.loop_tactic import Loop

    wrong = HandWritten("0.5f")
    monkeypatch.setattr(Loop, "emit", lambda self, *a: wrong.emit(*a))
    with pytest.raises(dovetail.VerificationError, match="y: tactic loop differs"):
        dovetail.build(relu(), tune=False)


def perturbed(factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    engine = dovetail.build(classifier(), verify="off", tune=False)
    return lambda feed: {k: v * np.float32(factor) for k, v in engine.run(feed).items()}


def test_the_engine_is_checked_end_to_end() -> None:
    expected = expect(import_onnx(classifier()), "full")
    data = verify_engine(perturbed(1.0), expected, 1e-5, lambda: import_onnx(classifier()))
    assert data["checked"] and data["seeds"] == 2 and data["outputs"][0]["relative_l2"] < 1e-6
    assert 0 < data["outputs"][0]["relative_to_variation"] < 1e-4
    with pytest.raises(VerificationError, match=r"output 'y'.*1\.\d+e-04"):
        verify_engine(perturbed(1.0001), expected, 1e-5, lambda: import_onnx(classifier()))


def test_an_ill_conditioned_output_may_be_off_by_what_rounding_does() -> None:
    """y = (x + big) - large: the two cancel, so rounding either moves y far more than 1e-5."""
    from onnx import helper

    nodes = [helper.make_node("Add", ["x", "big"], ["t"]), helper.make_node("Sub", ["t", "large"], ["y"])]
    weights = {k: np.array([1e4], np.float32) for k in ("big", "large")}
    made = model(nodes, {"x": [64]}, {"y": [64]}, weights)
    expected = expect(import_onnx(made), "full")

    def run(feed: dict[str, Any]) -> dict[str, Any]:
        from dovetail.ops.evaluate import evaluate

        return {"y": evaluate(import_onnx(made), feed)["y"] + np.float32(1e-4)}

    (row,) = verify_engine(run, expected, 1e-5, lambda: import_onnx(made))["outputs"]
    assert row["relative_l2"] > 1e-5 and row["rounding_moves_it_by"] > 1e-5


def test_random_models_are_left_out_with_a_reason() -> None:
    from onnx import helper

    nodes = [helper.make_node("RandomNormalLike", ["x"], ["y"], name="noise")]
    expected = expect(import_onnx(model(nodes, {"x": [4]}, {"y": [4]}, {})), "full")
    assert expected.inputs == () and "random" in expected.reason


def test_a_large_model_is_left_out_of_a_sample_and_the_certificate_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.builder.verify_engine._ORACLE_FLOPS", 1e3)
    monkeypatch.setattr("dovetail.builder.verify._SAMPLE_KERNELS_S", 0.0)
    engine = dovetail.build(classifier(seed=7), tune=False)
    data = engine.certificate
    assert data["engine"]["checked"] is False and "verify='full'" in data["engine"]["reason"]
    assert data["kernels"]["checked"] == 0 and len(data["kernels"]["not_checked"]) == data["kernels"]["distinct"]
    assert "engine not checked" in str(engine.report())


def conv_choice() -> Choice:
    from onnx import helper

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 2, 3, 0], strides=[2, 1], name="conv"),
        helper.make_node("Add", ["c", "r"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    weights = {"w": rng.standard_normal((32, 16, 3, 3), np.float32), "b": rng.standard_normal(32, np.float32)}
    made = model(nodes, {"x": ["N", 16, 62, 40], "r": ["N", 32, 32, 40]}, {"y": ["N", 32, 32, 40]}, weights)
    built = builder.build(made, BuildOptions(verify="off"))
    return next(c for c in built.choices.values() if c.group.anchor is not None and c.group.anchor.op == "Conv")


def test_crops_of_a_convolution_equal_the_rows_of_the_whole() -> None:
    group = conv_choice().group
    assert [n.op for n in group.body.nodes] == ["Conv", "Add", "Relu"]
    rng, sizes = np.random.default_rng(0), {"N": 2}
    from dovetail.ops.samples import shape_of

    arrays = [rng.standard_normal(shape_of(v.tensor.shape, sizes), np.float32) for v in group.body.inputs]
    (whole,) = run_body(group.body, arrays, sizes, np.dtype(np.float32))
    assert group.anchor is not None
    parts = crops(group, arrays, attributes(group.anchor, sizes), whole.shape, 10**9)
    assert [(p.start, p.stop) for p in parts] == [(0, 3), (14, 17), (29, 32)]
    for part in parts:
        (rows,) = run_body(group.body, part.arrays, sizes, np.dtype(np.float32), part.override)
        np.testing.assert_allclose(rows, part.of(whole), rtol=1e-4, atol=1e-4)


def test_relative_l2_treats_equal_nans_as_equal_and_shapes_as_different() -> None:
    a = np.array([1.0, np.nan, np.inf], np.float32)
    assert relative_l2(a, a.copy()) == 0.0
    assert relative_l2(np.array([1.1, np.nan, np.inf], np.float32), a) == pytest.approx(0.1, rel=1e-4)
    assert relative_l2(np.array([1.0, 0.0, np.inf], np.float32), a) == float("inf")
    assert relative_l2(np.zeros(2), np.zeros(3)) == float("inf")
    assert relative_l2(np.full(4, 1e-3), np.zeros(4)) == pytest.approx(1e-3)


def test_sizes_respect_bounds_and_start_with_the_optimum() -> None:
    first = next(iter(sizes_to_try(["N", "S"], {"N": [1, 8, 4]})))
    assert first["N"] == 4 and first["S"] != 4
    assert all(1 <= s["N"] <= 8 for s in sizes_to_try(["N", "S"], {"N": [1, 8, 4]}))
    assert list(sizes_to_try([], {})) == [{}]


def test_integers_stay_inside_the_table_they_index() -> None:
    from onnx import TensorProto, helper, numpy_helper

    table = numpy_helper.from_array(np.zeros((7, 3), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])], "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])], [table],
    )  # fmt: skip
    made = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert integer_limit(made.main.inputs[0], {"N": 3}) == 7


def test_integers_may_go_into_a_loop_without_a_trip_count() -> None:
    from onnx import parser

    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        counted (int64 n) => (int64 last) {
            go = Constant <value = bool {1}> ()
            last = Loop ("", go, n) <body = step (int64 i, bool on, int64 v) => (bool more, int64 w) {
                one = Constant <value = int64 {1}> ()
                zero = Constant <value = int64 {0}> ()
                w = Sub (v, one)
                more = Greater (w, zero)
            }>
        }""")
    made = import_onnx(model)
    assert integer_limit(made.main.inputs[0], {}) == 2


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Any) -> Iterator[None]:
    """Compiled objects stay shared; results of checks do not."""
    from dovetail.core.env import env

    shared = env().cache / "objects"
    shared.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "objects").symlink_to(shared.absolute())
    with override(cache=folder):
        yield



def test_offsets_may_depend_on_symbols_that_shapes_lack() -> None:
    """Parts of a concat of data-dependent sizes: the second starts where the first ends."""
    from onnx import helper

    nodes = []
    for name in "ab":
        nodes.append(helper.make_node("NonZero", [name], [f"n{name}"]))
        nodes.append(helper.make_node("Cast", [f"n{name}"], [f"f{name}"], to=1))
        nodes.append(helper.make_node("Relu", [f"f{name}"], [f"r{name}"]))
    nodes += [
        helper.make_node("Concat", ["ra", "rb"], ["c"], axis=1),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    made = model(nodes, {"a": [10], "b": [12]}, {"y": [1, "M"]}, {})
    data = dovetail.build(made, verify="full", tune=False).certificate
    assert data["engine"]["checked"] and data["kernels"]["checked"] == data["kernels"]["distinct"] > 0


def test_recurrences_are_checked_on_weights_that_do_not_amplify_rounding():
    """Long recurrences over large random weights are chaotic: right kernels would differ from the reference, too."""
    rng = np.random.default_rng(0)
    hidden, steps = 64, 24
    w, r = (rng.standard_normal((1, 3 * hidden, n)).astype(np.float32) / 8 for n in (48, hidden))
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=hidden)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, 1, 48])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(w, "w"), numpy_helper.from_array(r, "r")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    engine = dovetail.build(proto, tune=False, verify="full")
    assert engine.certificate["kernels"]["checked"] >= 1
