"""The steps of a run in the model's terms: names, and the element types that the engine keeps values in."""

import numpy as np
from onnx import helper

import dovetail
from dovetail.view.steps import steps
from tests.unit.plugin_models import F32, onnx_model


def test_values_have_the_types_that_they_are_stored_in() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="/m"), helper.make_node("Relu", ["m"], ["r"], name="/r"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="/v"),
    ]  # fmt: skip
    weights = {"w": rng.standard_normal((64, 128)).astype(np.float32), "v": rng.standard_normal((128, 32)).astype(np.float32)}
    model = onnx_model(nodes, {"x": (F32, ["N", 64])}, ["y"], weights)
    for options, stored in (({}, "f32"), ({"target": "cuda:sm_90", "precision": "fp16"}, "f16")):
        engine = dovetail.build(model, tune=False, verify="off", **options)
        first, last = (s for s in steps(engine.plan, engine.graph) if s.origin)
        assert first.origin == ("/m", "/r") and last.origin == ("/v",)
        (between,) = first.outputs
        assert (between.name, str(between.dtype)) == ("r", stored) and between == last.inputs[0]
        assert str(last.outputs[0].dtype) == "f32", "what callers get is as in the model"
