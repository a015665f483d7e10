"""Verbs over ONNX files: check, inspect, simplify."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail.model.statistics import statistics


def test_check_accepts_a_model(model: Path, call: Callable) -> None:
    outcome = call("check", model)
    assert outcome.code == 0
    assert "every node is supported" in outcome.out
    assert "with N=1" in outcome.out
    data = call("check", model, "--json").json
    assert data["supported"] is True
    assert data["problems"] == []
    assert data["operators"]["Conv"] == 1
    assert data["gflop"] == pytest.approx(2 * (16 * 256 * 27 + 16 * 5) / 1e9)


def test_check_lists_every_unsupported_node_at_once(tmp_path: Path, call: Callable) -> None:
    nodes = [
        helper.make_node("Frob", ["x"], ["a"], name="first", domain="my.ops"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Knit", ["x"], ["c"], name="second", domain="my.ops"),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    path = tmp_path / "strange.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    outcome = call("check", path)
    assert outcome.code == 1
    assert "2 nodes not supported" in outcome.out
    assert "first (my.ops::Frob)" in outcome.out and "second (my.ops::Knit)" in outcome.out
    data = call("check", path, "--json").json
    assert data["supported"] is False and len(data["problems"]) == 2


@pytest.mark.parametrize("verb", ["check", "inspect", "build", "run"])
@pytest.mark.parametrize("content", [None, b"", b"not a model at all", b"\x08\x08\x12"])
def test_broken_files_are_user_errors(verb: str, content: bytes | None, tmp_path: Path, call: Callable) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    outcome = call(verb, path)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ") and "Traceback" not in outcome.err
    assert [p.name for p in tmp_path.iterdir()] == (["broken.onnx"] if content is not None else [])


def test_inspect_shows_inputs_operators_and_weights(model: Path, call: Callable) -> None:
    outcome = call("inspect", model)
    assert outcome.code == 0
    assert "input   x: float[N,3,16,16]" in outcome.out
    assert "BatchNormalization" in outcome.out and "conv.weight" in outcome.out
    data = call("inspect", model, "--json").json
    assert data["opsets"] == {"ai.onnx": 17}
    (weight,) = [w for w in data["weights"] if w["name"] == "fc.bias"]
    expected = numpy_helper.to_array(next(t for t in onnx.load(model).graph.initializer if t.name == "fc.bias"))
    assert weight["shape"] == [5] and weight["bytes"] == 20
    assert weight["mean"] == pytest.approx(expected.mean(), rel=1e-6)
    assert weight["std"] == pytest.approx(expected.std(), rel=1e-6)


_DTYPES = {
    "FLOAT": np.float32, "DOUBLE": np.float64, "FLOAT16": np.float16, "BFLOAT16": ml_dtypes.bfloat16,
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn, "FLOAT8E5M2": ml_dtypes.float8_e5m2, "INT4": ml_dtypes.int4, "UINT4": ml_dtypes.uint4,
    "INT8": np.int8, "UINT8": np.uint8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "UINT64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip


@pytest.mark.parametrize("name", _DTYPES)
def test_inspect_knows_every_dtype(name: str, tmp_path: Path, call: Callable) -> None:
    values = np.array([0, 1, 1, 0, 1]).astype(_DTYPES[name])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", getattr(TensorProto, name), [5])], [numpy_helper.from_array(values, "w")],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    (weight,) = call("inspect", path, "--json").json["weights"]
    assert weight["dtype"] == name.lower()
    assert (weight["min"], weight["max"], weight["zeros"]) == (0, 1, 2)
    assert weight["mean"] == pytest.approx(0.6)
    assert weight["bytes"] == (3 if "INT4" in name else 5 * values.itemsize)


def test_inspect_reads_external_data(model: Path, tmp_path: Path, call: Callable) -> None:
    before = call("inspect", model, "--json").json["weights"]
    path = tmp_path / "external.onnx"
    onnx.save_model(onnx.load(model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    after = call("inspect", path, "--json").json["weights"]
    assert all(w["external"] for w in after)
    assert [w | {"external": False} for w in after] == before
    (tmp_path / "weights.bin").write_bytes(b"short")
    outcome = call("inspect", path)
    assert outcome.code == 1 and "truncated" in outcome.err


def test_statistics_of_non_finite_values() -> None:
    stats = statistics(np.array([1.0, np.nan, np.inf, 3.0, -np.inf, 0.0]))
    assert (stats["min"], stats["max"], stats["nan"], stats["inf"], stats["zeros"]) == (0, 3, 1, 2, 1)
    assert statistics(np.array([np.nan]))["mean"] is None
    assert statistics(np.array(["a"], object))["zeros"] is None


def test_statistics_do_not_cancel() -> None:
    values = 1e8 + np.random.default_rng(0).standard_normal(3_000_000)
    assert statistics(values)["std"] == pytest.approx(values.std(), rel=1e-6)


def test_simplify_prints_the_table_and_writes_the_model(model: Path, tmp_path: Path, call: Callable) -> None:
    result = tmp_path / "out" / "small.onnx"
    outcome = call("simplify", model, result)
    assert outcome.code == 0
    assert ["BatchNormalization", "1", "0"] in [[cell.strip() for cell in line.strip("|").split("|")] for line in outcome.out.splitlines()]
    assert "checked against the original" in outcome.out
    assert [n.op_type for n in onnx.load(result).graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    data = call("simplify", model, result, "--json", "--skip", "fold_batch_norms").json
    assert data["nodes"] == [6, 6]
    assert data["max_relative_error"] <= 1e-6


def test_simplify_with_fixed_shapes(model: Path, tmp_path: Path, call: Callable) -> None:
    result = tmp_path / "s.onnx"
    assert call("simplify", model, result, "--shapes", "x:[4,3,16,16]").code == 0
    dims = onnx.load(result).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [4, 3, 16, 16]
    assert call("simplify", model, result, "--shapes", "z:[4]").code == 2
    assert call("simplify", model, result, "--shapes", "x:[1..4,3,16,16]").code == 2


def test_simplify_keeps_external_data_external(model: Path, tmp_path: Path, call: Callable) -> None:
    path, result = tmp_path / "external.onnx", tmp_path / "result.onnx"
    proto = onnx.load(model)
    # Tensors below 1 KiB move into the model.
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((5, 64), np.float32), "large"))
    proto.graph.node.append(onnx.helper.make_node("MatMul", [proto.graph.output[0].name, "large"], ["z"]))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    onnx.save_model(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert call("simplify", path, result).code == 0
    assert (tmp_path / "result.onnx.data").stat().st_size >= 1280
    assert call("check", result).code == 0
