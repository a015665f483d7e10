"""`dovetail.Model`: read from all that holds a model, written whole or not at all, weights from file to file."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.core.errors import ModelError, UsageError
from dovetail.model import writing

RNG = np.random.default_rng(7)
W = RNG.standard_normal((64, 32)).astype(np.float32)


def proto(rows: int | str = "N", weight: np.ndarray = W) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Relu", ["h"], ["y"], name="relu")]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="someone")


@pytest.fixture()
def stored(tmp_path: Path) -> Path:
    folder = tmp_path / "stored"
    folder.mkdir()
    dovetail.Model.load(proto()).save(folder / "m.onnx", external=True)
    return folder / "m.onnx"


def test_inputs_and_outputs_read_as_those_of_an_engine() -> None:
    model = dovetail.Model.load(proto())
    assert [str(b) for b in (*model.inputs, *model.outputs)] == ["x: f32[N, 64]", "y: f32[N, 32]"]
    assert isinstance(model.inputs[0], dovetail.Binding)
    assert repr(model) == "Model(x: f32[N, 64] -> y: f32[N, 32]; opset 17, 2 nodes, 1 weights)"
    unknown = proto()
    unknown.graph.output[0].type.tensor_type.ClearField("shape")
    assert dovetail.Model.load(unknown).outputs[0].shape is None


def test_external_weights_are_mapped_and_come_back(stored: Path) -> None:
    model = dovetail.Model.load(stored)
    assert isinstance(model.weights["w"].base, np.memmap) or isinstance(model.weights["w"], np.memmap)
    np.testing.assert_array_equal(model.weights["w"], W)
    loaded = onnx.load(stored)
    loaded.graph.initializer[0].ClearField("data_location")
    assert loaded == proto()
    with pytest.raises(ValueError, match="read-only"):
        model.weights["w"][0, 0] = 1
    model.check()


def test_weights_are_replaced_in_memory(stored: Path, tmp_path: Path) -> None:
    model = dovetail.Model.load(stored)
    copy = model.copy()
    copy.weights["w"] = W * 2
    copy.save(tmp_path / "twice.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(tmp_path / "twice.onnx").graph.initializer[0]), W * 2)
    np.testing.assert_array_equal(model.weights["w"], W)
    copy.weights["v"] = W[:1]
    assert dict(copy.weights).keys() == {"w", "v"} and copy.weights.nbytes("v") == 128
    del copy.proto.graph.initializer[0]
    assert list(copy.weights) == ["v"] and "w" not in copy.weights
    np.testing.assert_array_equal(copy.weights["v"], W[:1])


@pytest.mark.parametrize("external", [None, True, False])
def test_saving_over_itself(stored: Path, external: bool | None) -> None:
    model = dovetail.Model.load(stored)
    model.save(stored, external=external)
    np.testing.assert_array_equal(model.weights["w"], W)
    np.testing.assert_array_equal(dovetail.Model.load(stored).weights["w"], W)


def test_what_fails_leaves_the_files_as_they_were(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in stored.parent.iterdir()}
    model = dovetail.Model.load(stored)
    monkeypatch.setattr(writing, "_CHUNK", 100)
    monkeypatch.setattr(writing, "_reference", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(stored)
    assert {p.name: p.read_bytes() for p in stored.parent.iterdir()} == before


def test_what_cannot_be_read_or_written(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got a dict, expected a path"):
        dovetail.Model.load({})
    with pytest.raises(ModelError, match="cannot be read"):
        dovetail.Model.load(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="folder that does not exist"):
        dovetail.Model.load(proto()).save(tmp_path / "none" / "m.onnx")
    (stored.parent / "m.onnx.data").unlink()
    with pytest.raises(ModelError, match="put it beside the model"):
        dovetail.Model.load(stored).check()
    broken = proto()
    broken.graph.node[1].input[0] = "nothing"
    with pytest.raises(ModelError, match="ONNX's checker refuses it"):
        dovetail.Model.load(broken).check()


X = RNG.standard_normal((3, 64)).astype(np.float32)


@pytest.mark.parametrize("library", ["onnx_ir", "graphsurgeon"])
@pytest.mark.parametrize("kind", ["inline", "external"])
def test_models_of_other_libraries_there_and_back(library: str, kind: str, stored: Path, tmp_path: Path) -> None:
    model = dovetail.Model.load(proto() if kind == "inline" else stored)
    other = model.to_onnx_ir() if library == "onnx_ir" else model.to_graphsurgeon()
    assert isinstance(other, onnx_ir.Model if library == "onnx_ir" else gs.Graph)
    back = dovetail.Model.load(other)
    np.testing.assert_array_equal(back.weights["w"], W)
    assert [str(b) for b in back.inputs] == [str(b) for b in model.inputs]
    back.save(tmp_path / "back.onnx")
    dovetail.Model.load(tmp_path / "back.onnx").check()
    if library == "graphsurgeon":
        np.testing.assert_array_equal(other.tensors()["w"].values, W)
        other.nodes[1].op = "Neg"
    else:
        np.testing.assert_array_equal(other.graph.initializers["w"].const_value.numpy(), W)
        next(n for n in other.graph if n.op_type == "Relu").op_type = "Neg"
    assert not dovetail.compare(model, other, {"x": X}).ok
    assert [n.op for n in dovetail.survey(other)] == ["MatMul", "Neg"]
    assert [n.op_type for n in model.proto.graph.node] == ["MatMul", "Relu"]


def test_engines_are_built_of_models_of_other_libraries() -> None:
    model = dovetail.Model.load(proto(3))
    want = np.maximum(X @ W, 0)
    for source in (model, model.to_onnx_ir(), model.to_graphsurgeon()):
        engine = dovetail.build(source, tune=False, verify="off")
        np.testing.assert_allclose(engine.run({"x": X})["y"], want, rtol=1e-4, atol=1e-4)


def test_a_graph_without_types_is_refused() -> None:
    x, y = gs.Variable("x", np.float32, (1,)), gs.Variable("y")
    graph = gs.Graph([gs.Node("Relu", inputs=[x], outputs=[y])], [x], [y], opset=17)
    with pytest.raises(ModelError, match=r"onnx_graphsurgeon\.Graph: cannot be written as ONNX"):
        dovetail.Model.load(graph)


def test_no_other_library_is_imported_to_look_at_a_model(stored: Path) -> None:
    code = """
        import sys, dovetail
        model = dovetail.Model.load(sys.argv[1])
        model.save(sys.argv[1])
        assert not {"onnx_ir", "onnx_graphsurgeon", "torch", "onnxscript"} & set(sys.modules)
    """
    root = str(Path(dovetail.__file__).parents[1])
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(stored)], check=True, env={"PYTHONPATH": root})


def test_a_model_that_lacks_types_can_be_looked_at() -> None:
    untyped = proto()
    untyped.graph.output[0].ClearField("type")
    assert "-> y: ?;" in repr(dovetail.Model(untyped))
    with pytest.raises(ModelError, match="got a missing type"):
        _ = dovetail.Model(untyped).outputs
