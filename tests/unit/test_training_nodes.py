"""Models that were exported in training mode are told apart, and sizes that no memory holds are refused."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import dovetail
from dovetail.api import tune
from dovetail.cli import main
from dovetail.core.errors import ModelError, UsageError
from dovetail.frontend.importer import import_onnx
from dovetail.model.model import Model
from dovetail.model.sample_inputs import generate
from dovetail.model.training import training_nodes

TRAINED = """
<ir_version: 9, opset_import: ["": 14]>
g (float[2,4,5] x, float[4] s, float[4] m) => (float[2,4,5] y) {
  n, a, b = BatchNormalization <training_mode = 1> (x, s, s, m, m)
  e = BatchNormalization (n, s, s, m, m)
  t = Constant <value = bool {1}> ()
  d, k = Dropout (e, , t)
  y = Dropout (d, , off)
}
"""


def trained():
    model = onnx.parser.parse_model(TRAINED)
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "off"))
    return model


def test_training_mode_is_said_with_the_node_and_what_it_does(tmp_path, capsys) -> None:
    found = training_nodes(trained())
    assert [text.partition(":")[0] for text in found] == ["n (BatchNormalization)", "d (Dropout)"]
    onnx.save(trained(), tmp_path / "m.onnx")
    for verb in ("inspect", "check"):
        assert main([verb, str(tmp_path / "m.onnx")]) == 0
        text = capsys.readouterr().out
        assert "n (BatchNormalization): statistics of the batch" in text and "export the model in evaluation mode" in text


def test_a_build_says_what_computes_as_in_training(tmp_path) -> None:
    engine = dovetail.build(trained(), verify="off", tune=False)
    engine.save(tmp_path / "m.plan")
    for each in (engine, dovetail.load(tmp_path / "m.plan"), tune(engine, time_budget=0, verify="off")):
        report = each.report()
        assert [t["node"] for t in report.json()["training"]] == ["n (BatchNormalization)", "d (Dropout)"]
        assert "as in training; export the model in evaluation mode:\n  n (BatchNormalization): statistics of the batch" in str(report)


def test_sizes_that_no_memory_holds() -> None:
    graph = "g (float[1099511627776,1073741824] x) => (float[N,M] y) { y = Relu (x) }"
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 18]> ' + graph)
    with pytest.raises(ModelError, match=r"input 'x': got 1180591620717411303424 elements, expected at most .*--shapes"):
        import_onnx(model)
    with pytest.raises(UsageError, match="input 'x': got 1180591620717411303424 elements"):
        generate(Model(model).inputs, {})
    assert import_onnx(model, {"x": [2, 3]}).main.inputs


def test_inputs_without_type_or_rank_say_how_to_give_one() -> None:
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Relu (x) }')
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=r"--shapes 'x:\[…\]'"):
        import_onnx(model)
    model.graph.input[0].ClearField("type")
    with pytest.raises(ModelError, match=r"dovetail edit extract MODEL -o typed.onnx --inputs 'x' --outputs … --types 'x:float"):
        import_onnx(model)
