"""ONNX to smaller ONNX: what is removed, what must stay, and that the meaning stays."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dovetail.core.errors import UsageError, VerificationError
from dovetail.model import equivalence
from dovetail.model.model import Model
from dovetail.model.simplifier import REWRITES
from dovetail.model.simplifier import simplify as simplify_model
from dovetail.model.simplify.scope import FOLD_LIMIT_BYTES
from models import zoo


def model(nodes, inputs, outputs, weights=(), opset=17, ir_version=8) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def simplify(m: onnx.ModelProto, **options) -> onnx.ModelProto:
    return simplify_model(Model(m), **options).model.proto


def ops(m: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(n.op_type for n in m.graph.node))


def same(a: onnx.ModelProto, b: onnx.ModelProto, feeds: dict[str, np.ndarray], rtol: float = 0.0) -> None:
    onnx.checker.check_model(b)
    for x, y in zip(ReferenceEvaluator(a).run(None, feeds), ReferenceEvaluator(b).run(None, feeds), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_constants_fold_and_identities_vanish() -> None:
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2), "v")),
        helper.make_node("Mul", ["two", "w"], ["w2"]),
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Transpose", ["i"], ["t"], perm=[0, 1]),
        helper.make_node("Add", ["t", "w2"], ["y"]),
        helper.make_node("Exp", ["x"], ["nobody"]),
    ]
    m = model(nodes, {"x": [2, 3]}, {"y": [2, 3]}, {"w": np.ones(3, np.float32), "unused": np.ones(9, np.float32)})
    result = simplify(m)
    assert ops(result) == {"Add": 1}
    assert [t.name for t in result.graph.initializer] == ["w2"]
    same(m, result, {"x": X})


def test_identity_before_an_output_keeps_the_output_name() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Identity", ["e"], ["y"]), helper.make_node("Neg", ["e"], ["z"])]
    m = model(nodes, {"x": [2, 3]}, {"y": [2, 3], "z": [2, 3]})
    result = simplify(m)
    assert ops(result) == {"Exp": 1, "Neg": 1}
    assert [v.name for v in result.graph.output] == ["y", "z"]
    same(m, result, {"x": X})


def test_an_input_that_is_returned_keeps_its_identity() -> None:
    m = model([helper.make_node("Identity", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]})
    result = simplify(m)
    assert ops(result) == {"Identity": 1}
    same(m, result, {"x": X})


def test_shape_arithmetic_on_known_dims_folds() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Concat", ["minus", "c"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    m = model(nodes, {"x": ["N", 3]}, {"y": ["M", 3]}, {"one": np.array([1]), "minus": np.array([-1])})
    result = simplify(m)
    assert ops(result) == {"Reshape": 1}
    same(m, result, {"x": X})


def test_large_results_are_not_folded() -> None:
    count = FOLD_LIMIT_BYTES
    nodes = [helper.make_node("Expand", ["v", "shape"], ["big"]), helper.make_node("Mul", ["x", "big"], ["y"])]
    m = model(nodes, {"x": [1]}, {"y": [count]}, {"v": np.ones(1, np.float32), "shape": np.array([count])})
    result = simplify(m)
    assert ops(result) == {"Expand": 1, "Mul": 1}
    assert result.ByteSize() < 1000


def test_batch_norm_folds_into_the_convolution() -> None:
    rng = np.random.default_rng(0)
    names = {n: rng.uniform(0.5, 1.5, 4).astype(np.float32) for n in ("scale", "shift", "mean", "var", "b")}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"]),
    ]
    weights = names | {"w": rng.standard_normal((4, 2, 3, 3)).astype(np.float32)}
    m = model(nodes, {"x": [1, 2, 5, 5]}, {"y": [1, 4, 3, 3]}, weights)
    result = simplify(m)
    assert ops(result) == {"Conv": 1}
    same(m, result, {"x": rng.standard_normal((1, 2, 5, 5)).astype(np.float32)}, rtol=1e-5)
    assert ops(simplify(m, skip=frozenset({"fold_batch_norms"}))) == ops(m)


def test_a_shared_convolution_keeps_its_batch_norm() -> None:
    ones = {n: np.ones(4, np.float32) for n in ("scale", "shift", "mean", "var")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"]),
    ]
    m = model(nodes, {"x": [1, 2, 5, 5]}, {"y": [1, 4, 3, 3], "c": [1, 4, 3, 3]}, ones | {"w": np.ones((4, 2, 3, 3), np.float32)})
    assert ops(simplify(m)) == ops(m)


def test_duplicates_merge_but_random_nodes_do_not() -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Exp", ["x"], ["b"]),
        helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("RandomNormalLike", ["x"], ["s"]),
        helper.make_node("Sum", ["a", "b", "r", "s"], ["y"]),
    ]  # fmt: skip
    result = simplify(model(nodes, {"x": [2, 3]}, {"y": [2, 3]}))
    assert ops(result) == {"Exp": 1, "RandomNormalLike": 2, "Sum": 1}


def test_quantised_weights_stay_quantised() -> None:
    weights = {"q": np.ones((3, 3), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    nodes = [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert ops(simplify(model(nodes, {"x": [2, 3]}, {"y": [2, 3]}, weights))) == {"DequantizeLinear": 1, "MatMul": 1}


def test_an_initializer_that_callers_may_override_is_no_constant() -> None:
    nodes = [helper.make_node("Neg", ["w"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])]
    m = model(nodes, {"x": [3], "w": [3]}, {"y": [3]}, {"w": np.ones(3, np.float32)})
    assert ops(simplify(m)) == {"Neg": 1, "Add": 1}
    old = model(nodes, {"x": [3], "w": [3]}, {"y": [3]}, {"w": np.ones(3, np.float32)}, opset=8, ir_version=3)
    result = simplify(old)
    assert ops(result) == {"Add": 1}
    assert {t.name for t in result.graph.initializer} < {v.name for v in result.graph.input}
    same(old, result, {"x": np.ones(3, np.float32)})


def test_subgraphs_read_through_removed_identities() -> None:
    info = {op: helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, [2, 3]) for op in ("Exp", "Neg")}
    branch = [helper.make_graph([helper.make_node(op, ["i"], [v.name])], op, [], [v]) for op, v in info.items()]
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    m = model(nodes, {"x": [2, 3]}, {"y": [2, 3]})
    m.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    result = simplify(m)
    assert ops(result) == {"If": 1}
    for c in (True, False):
        same(m, result, {"x": X, "c": np.array(c)})


def test_header_and_names_are_preserved() -> None:
    m = zoo.load("dynamic_lstm_gru")
    m.producer_name, m.doc_string = "someone", "a model"
    result = simplify(m)
    assert (result.ir_version, result.producer_name, result.doc_string) == (m.ir_version, "someone", "a model")
    assert list(result.opset_import) == list(m.opset_import)
    assert [v.name for v in result.graph.input] == [v.name for v in m.graph.input]
    assert list(result.graph.output) == list(m.graph.output)
    assert len(result.graph.node) < len(m.graph.node) / 5


@pytest.mark.parametrize("name", ["dynamic_unet", "dynamic_loop_if", "timm_mobilenetv4_conv_small"])
def test_real_models_agree_with_the_original(name: str, tmp_path: Path) -> None:
    m = zoo.load(name)
    result = simplify(m)
    assert len(result.graph.node) < len(m.graph.node)
    Model(result).save(tmp_path / "small.onnx")
    stored = onnx.load(tmp_path / "small.onnx")
    feeds = zoo.inputs(m)
    for want, got in zip(equivalence.evaluate_model(m, feeds), equivalence.evaluate_model(stored, feeds), strict=True):
        assert equivalence.difference(want, got) <= 1e-5


def test_a_broken_rewrite_is_caught_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spoil(scope) -> list[str]:
        changed = [n for n in scope.graph.node if n.op_type == "Exp"]
        for node in changed:
            node.op_type = "Sin"
        return [n.name for n in changed]

    monkeypatch.setitem(REWRITES, "spoil", spoil)
    m = model([helper.make_node("Exp", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]})
    with pytest.raises(VerificationError, match="output 'y' differs from the original"):
        equivalence.check(m, simplify(m))


def test_symbolic_sizes_are_those_that_the_original_takes() -> None:
    # Fails at 1, 2 and 3 rows: the rows have to fall into fours.
    nodes = [
        helper.make_node("Constant", [], ["four"], value_ints=[-1, 4]),
        helper.make_node("Reshape", ["x", "four"], ["y"]),
    ]
    m = model(nodes, {"x": ["H"]}, {"y": ["Q", 4]})
    assert equivalence.check(m, simplify(m)) == 0.0
    with pytest.raises(UsageError, match="runs on no made-up inputs"):
        wrong = model([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": ["H"]}, {"y": [7, 100_003]},
                      {"s": np.array([7, 100_003])})  # fmt: skip
        equivalence.check(wrong, wrong)


def test_a_difference_passes_where_rounding_of_the_original_makes_as_large_a_one() -> None:
    def cancelling(offset: float) -> onnx.ModelProto:
        nodes = [helper.make_node("Mul", ["x", "one"], ["a"]), helper.make_node("Sub", ["a", "x"], ["y"])]
        return model(nodes, {"x": [64]}, {"y": [64]}, {"one": np.array(1 + offset, np.float32)})

    # The output is 1e-6 of its operands: a unit in the last place of the factor is a tenth of it.
    rounded = float(np.nextafter(np.float32(1 + 1e-6), np.float32(2))) - 1
    assert 1e-2 < equivalence.check(cancelling(1e-6), cancelling(rounded)) < 0.5
    with pytest.raises(VerificationError, match="rounding of inputs and weights moves it by"):
        equivalence.check(cancelling(1e-3), cancelling(2e-3))


@pytest.mark.parametrize(
    "want, got",
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3, np.float32), np.zeros(3)),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        (np.array([True]), np.array([False])),
    ],
)
def test_differences_that_no_tolerance_covers(want: np.ndarray, got: np.ndarray) -> None:
    assert equivalence.difference(want, got) == float("inf")
