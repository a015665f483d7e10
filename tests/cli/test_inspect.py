"""`dovetail inspect`: layers, work, weights, tensors, arrays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

CONV = 2 * 16 * 16 * 16 * 27
FC = 2 * 16 * 5


@pytest.fixture
def sick(model: Path, tmp_path: Path) -> Path:
    """The small model with odd weights, one of them in another file."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "conv.weight":
            array[0, 0, 0, :2] = np.nan
            array[5] = 0
        elif tensor.name == "fc.weight":
            array[0, 0], array[1, 1] = 1e5, 1e-40
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = tmp_path / "sick.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="sick.bin", size_threshold=1024)
    return path


def test_work_is_in_terms_of_the_batch(model: Path, call: Callable) -> None:
    data = call("inspect", model, "--json").json
    assert data["flops"] == f"{CONV + FC}*N" and data["flops_unknown"] == ""
    conv = next(x for x in data["layers"] if x["op"] == "Conv")
    assert conv == {
        "name": "/conv", "op": "Conv", "dtype": "f32", "shape": ["N", 16, 16, 16], "parameters": 432, "flops": f"{CONV}*N", "depth": 0,
    }  # fmt: skip
    assert next(iter(data["work"])) == "Conv" and data["work"]["Gemm"] == {"layers": 1, "flops": f"{FC}*N", "parameters": 85}
    assert data["parameters"] == 432 + 4 * 16 + 85
    text = call("inspect", model).out
    assert "221 k*N FLOP in contractions" in text and "nothing suspicious" in text and "99.9 %" in text


def test_shapes_make_the_work_a_number(model: Path, call: Callable) -> None:
    data = call("inspect", model, "--shapes", "x:[4,3,16,16]", "--json").json
    assert data["flops"] == 4 * (CONV + FC)
    assert "885 k FLOP" in call("inspect", model, "--shapes", "x:[4,3,16,16]").out
    assert call("inspect", model, "--json").json["flops_at"] == {"N": 1}
    outcome = call("inspect", model, "--shapes", "z:[4]")
    assert outcome.code == 1 and "'z'" in outcome.err


def test_every_layer_and_every_weight_when_asked(model: Path, call: Callable) -> None:
    short, long = call("inspect", model).out, call("inspect", model, "--layers", "--weights").out
    assert "/relu" not in short and "/relu" in long
    assert "6 layers" in long and "bn.shift" in long


def test_suspicious_weights_are_named_at_the_top(sick: Path, call: Callable) -> None:
    out = call("inspect", sick).out
    assert out.index("suspicious weights") < out.index("| operator")
    data = call("inspect", sick, "--json").json
    found = {s["kind"]: s for s in data["suspicious"]}
    assert found["nan"]["weights"] == [{"name": "conv.weight", "count": 2}] and found["nan"]["serious"]
    assert found["zero_channels"]["weights"] == [{"name": "conv.weight", "count": 1}]
    assert found["beyond_fp16"]["count"] == 1 and found["denormal"]["count"] == 1
    weight = next(w for w in data["weights"] if w["name"] == "conv.weight")
    assert weight["external"] and sum(weight["histogram"]) == 432 - 2 and weight["nan"] == 2


def test_stripped_weights_are_listed_without_statistics(model: Path, tmp_path: Path, call: Callable) -> None:
    bare = tmp_path / "bare.onnx"
    assert call("edit", "strip", model, "-o", bare, "-q").code == 0
    out = call("inspect", bare).out
    assert "nothing suspicious (1 without values)" in out and "stripped" in out
    assert "values were stripped" in call("inspect", bare, "--tensor", "conv.weight").out


def test_a_model_that_is_not_supported_is_still_described(tmp_path: Path, call: Callable) -> None:
    node = helper.make_node("Frob", ["x"], ["y"], domain="my.ops", name="f")
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", info[:1], info[1:]), opset_imports=opsets, ir_version=8), path)
    outcome = call("inspect", path)
    assert outcome.code == 0 and "my.ops:Frob" in outcome.out and "arithmetic not known" in outcome.out
    data = call("inspect", path, "--json").json
    assert data["flops"] is None and "f (my.ops::Frob)" in data["flops_unknown"] and data["layers"][0]["flops"] is None


def test_work_inside_of_loops_is_named_by_its_node(tmp_path: Path, call: Callable) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["h_out"], name="inner"), helper.make_node("Identity", ["c"], ["c_out"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("c_out", TensorProto.BOOL, []), helper.make_tensor_value_info("h_out", TensorProto.FLOAT, [2, 4])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], name="loop", body=body)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(np.array(3), "n"), numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
    )  # fmt: skip
    path = tmp_path / "loop.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    layers = {x["name"]: x for x in call("inspect", path, "--json").json["layers"]}
    assert layers["inner"]["flops"] == 2 * 2 * 4 * 4 and layers["inner"]["depth"] == 1 and layers["inner"]["parameters"] == 16
    assert layers["loop"]["flops"] == 0


def test_one_tensor_of_a_model(model: Path, call: Callable) -> None:
    out = call("inspect", model, "--tensor", "fc.weight").out
    assert "fc.weight: float[16,5], a weight" in out and "read by   /fc (Gemm)" in out and "std" in out and "█" in out
    data = call("inspect", model, "--tensor", "r", "--json").json
    assert data["producer"] == {"name": "/relu", "op": "Relu"} and data["consumers"] == [{"name": "/pool", "op": "GlobalAveragePool"}]
    assert data["dtype"] == "f32" and data["shape"] == ["N", 16, 16, 16] and "statistics" not in data
    assert call("inspect", model, "--tensor", "y", "--json").json["role"] == "computed by a node and an output of the model"
    outcome = call("inspect", model, "--tensor", "fc.wieght")
    assert outcome.code == 2 and "fc.weight" in outcome.err


def test_dead_channels_are_seen_through_transpositions(tmp_path: Path, call: Callable) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    weight[2] = 0
    nodes = [
        helper.make_node("Identity", ["w"], ["i"]), helper.make_node("Transpose", ["i"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]  # fmt: skip
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])]
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(weight, "w")])), path)
    data = call("inspect", path, "--json").json
    assert data["suspicious"][0]["kind"] == "zero_channels" and data["suspicious"][0]["weights"] == [{"name": "w", "count": 1}]
    assert data["weights"][0]["channels"] == 6
    assert [x["parameters"] for x in data["layers"]] == [0, 0, 24]


def test_values_that_are_not_finite_are_text_in_json(sick: Path, call: Callable) -> None:
    assert call("inspect", sick, "--tensor", "conv.weight", "--json").json["values"][:2] == ["nan", "nan"]


def test_one_tensor_of_an_engine(plan: Path, call: Callable) -> None:
    data = call("inspect", plan, "--tensor", "conv.weight", "--json").json
    assert data["shape"] == [16, 3, 3, 3] and data["statistics"]["std"] > 0 and data["consumers"][0]["name"] == "/bn"
    assert call("inspect", plan, "--tensor", "r", "--json").json["producer"] == {"name": "/relu", "op": "Relu"}
    assert call("inspect", plan, "--tensor", "nothing").code == 2


def test_weights_of_an_engine(plan: Path, call: Callable) -> None:
    data = call("inspect", plan, "--json").json
    assert {"conv.weight", "fc.bias"} <= {w["name"] for w in data["weight_statistics"]} and data["suspicious"] == []
    assert not any(w["name"].startswith("~") for w in data["weight_statistics"])
    assert "nothing suspicious" in call("inspect", plan).out
    assert "fc.weight" in call("inspect", plan, "--weights").out


def test_arrays_of_a_file(tmp_path: Path, call: Callable) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array([np.inf, 1], np.float64))
    outcome = call("inspect", path)
    assert outcome.code == 0 and "2 arrays" in outcome.out and "infinities" in outcome.out
    assert call("inspect", path, "--tensor", "a", "--json").json["values"] == [0, 1, 2, 3, 4, 5]
    assert call("inspect", path, "--tensor", "c").code == 2
    path.write_bytes(b"damaged")
    assert call("inspect", path).code == 1


@pytest.mark.parametrize("option", [("--layers",), ("--after", "fuse")])
def test_options_of_models_are_refused_for_engines(option: tuple[str, ...], plan: Path, call: Callable) -> None:
    assert call("inspect", plan, *option).code == 2


@pytest.mark.parametrize("option", [("--steps",), ("--kernel", "k")])
def test_options_of_engines_are_refused_for_models(option: tuple[str, ...], model: Path, call: Callable) -> None:
    assert call("inspect", model, *option).code == 2
