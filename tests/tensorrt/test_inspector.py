"""Engine inspectors: layers in one line and as JSON."""

import json

import pytest

import dovetail
import dovetail.tensorrt as trt
from tests.tensorrt import engines
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Errors, Log, opened

JSON, ONELINE = trt.LayerInformationFormat.JSON, trt.LayerInformationFormat.ONELINE


@exercises("EngineInspector", "ICudaEngine.create_engine_inspector", "EngineInspector.get_layer_information")
@exercises("EngineInspector.get_engine_information", "LayerInformationFormat", "LayerInformationFormat.JSON")
@exercises("LayerInformationFormat.ONELINE")
def test_layers_of_a_detailed_engine():
    engine = opened(engines.image())
    inspector = engine.create_engine_inspector()
    assert isinstance(inspector, trt.EngineInspector)
    layers = [json.loads(inspector.get_layer_information(i, JSON)) for i in range(engine.num_layers)]
    names = [layer["Name"] for layer in layers]
    assert len(set(names)) == len(names)
    half = len(layers) // 2
    assert [f"{name} [profile 1]" for name in names[:half]] == names[half:]
    conv = next(layer for layer in layers if "conv" in layer["Name"])
    assert conv["LayerType"] == "Convolution" and conv["Metadata"] == "[ONNX Layer: conv]"
    assert conv["Inputs"][0] == {
        "Name": "x", "Location": "Device", "Dimensions": [-1, 3, 6, 5], "Format/Datatype": "Row major linear FP32 format (kLINEAR)",
    }  # fmt: skip
    soft = next(layer for layer in layers if layer["Name"].startswith("soft"))
    assert [t["Name"] for t in soft["Outputs"]] == ["y"] and soft["LayerType"] == "Softmax"
    for layer in layers:
        assert {"Name", "LayerType", "Inputs", "Outputs", "Origin", "TacticName", "TacticValue", "StreamId", "Metadata"} <= set(layer)
    whole = json.loads(inspector.get_engine_information(JSON))
    assert whole == {"Layers": layers, "Bindings": list(engine)}
    lines = inspector.get_engine_information(ONELINE).splitlines()
    assert lines[0] == "Layers:" and lines[1 : 1 + len(layers)] == [inspector.get_layer_information(i, ONELINE) for i in range(len(layers))]
    assert lines[-6:] == list(engine) and "Bindings:" in lines
    assert any(line.startswith("Layer(Convolution): ") for line in lines)


@exercises("EngineInspector.execution_context", "EngineInspector.error_recorder")
def test_with_a_context_shapes_are_its():
    log = Log()
    engine = opened(engines.image(), log)
    inspector = engine.create_engine_inspector()
    assert inspector.execution_context is None
    context = engine.create_execution_context()
    context.set_input_shape("x", (3, 3, 6, 5))
    inspector.execution_context = context
    assert inspector.execution_context is context
    layers = json.loads(inspector.get_engine_information(JSON))["Layers"]
    assert [3, 3, 6, 5] in [t["Dimensions"] for layer in layers for t in layer["Inputs"]]
    assert "[3,4,6,5]" in inspector.get_engine_information(ONELINE)
    recorder = Errors()
    inspector.error_recorder = recorder
    assert inspector.error_recorder is recorder
    log.messages.clear()
    inspector.execution_context = opened(engines.bare()).create_execution_context()
    assert inspector.execution_context is context and log.errors() and recorder.kept
    for index in (-1, engine.num_layers):
        assert inspector.get_layer_information(index, JSON) == "" and log.errors()
    for wrong in (0, "JSON"):
        with pytest.raises(TypeError):
            inspector.get_engine_information(wrong)
    for name in ("execution_context", "error_recorder"):
        with pytest.raises(TypeError):
            setattr(inspector, name, 3)
        setattr(inspector, name, None)
    with pytest.raises(TypeError):
        inspector.get_layer_information("0", JSON)


def test_verbosity_decides_how_much_is_said():
    names = opened(engines.batched())
    inspector = names.create_engine_inspector()
    assert isinstance(json.loads(inspector.get_layer_information(0, JSON)), str)
    whole = json.loads(inspector.get_engine_information(JSON))
    assert all(isinstance(layer, str) and layer for layer in whole["Layers"]) and whole["Bindings"] == ["x", "y"]
    assert inspector.get_layer_information(0, ONELINE) == whole["Layers"][0]
    engine = dovetail.load(engines.batched())
    engine.annotate("tensorrt", {**engine.info["tensorrt"], "verbosity": "NONE"})
    silent = opened(engine.to_bytes()).create_engine_inspector()
    assert json.loads(silent.get_layer_information(0, JSON)) == "" == silent.get_layer_information(0, ONELINE)


def test_layers_on_the_host_and_with_sizes_of_the_data():
    engine = opened(engines.positions())
    layers = json.loads(engine.create_engine_inspector().get_engine_information(JSON))["Layers"]
    host = next(layer for layer in layers if "NonZero" in layer["Ops"])
    assert host["LayerType"] == "NonZero" and host["Outputs"][0]["Dimensions"] == [2, -1]
    assert "INT64" in host["Outputs"][0]["Format/Datatype"] and "BOOL" in host["Inputs"][0]["Format/Datatype"]
