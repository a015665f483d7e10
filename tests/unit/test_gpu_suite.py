"""The GPU suite without a GPU: models of any batch, weights by name, floors, ratios, tables."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from bench.gpu import __main__ as main
from bench.gpu import roofline, suite
from bench.gpu.timing import Times, ratio
from dovetail.benchmark import machine
from dovetail.codegen.target import Target
from dovetail.frontend.importer import import_onnx
from dovetail.ops.evaluate import evaluate
from models import zoo

SM90 = Target.parse("cuda:sm_90")


def floors(name: str, batch: int) -> dict[str, Any]:
    model = suite.MODELS[name]
    proto = model.onnx(batch)
    found = roofline.layers(roofline.fused_module(proto, model.shapes(proto, batch), SM90), 2, {})
    return roofline.floors(found, 56, "NVIDIA H100 80GB HBM3", "fp16")


def test_floors_are_those_of_the_shapes_and_the_data_sheet() -> None:
    """ResNet-50: 8.2 GFLOP, 25.5 M parameters, 28.4 M elements of activations; derived independently elsewhere."""
    one, many = floors("resnet50", 1), floors("resnet50", 32)
    assert one["gflop"] == pytest.approx(8.19, abs=0.02)
    assert one["mbytes"] == pytest.approx(2 * (25.5 + 28.4), rel=0.02)
    assert one["layer_ms"] == pytest.approx(0.032, abs=0.001) and many["layer_ms"] == pytest.approx(0.612, abs=0.01)
    assert one["practical_ms"] == pytest.approx(0.111, abs=0.003) and many["practical_ms"] == pytest.approx(0.84, abs=0.02)
    assert machine.peaks("NVIDIA GeForce RTX 4090") is None and machine.peaks("NVIDIA H200") is machine.PEAKS["H200"]
    for name, bandwidth in {
        "NVIDIA H100 80GB HBM3": 3.35, "NVIDIA H100 PCIe": 2.0, "NVIDIA A100-SXM4-40GB": 1.555, "NVIDIA A100-PCIE-40GB": 1.555,
        "NVIDIA A100-SXM4-80GB": 2.039, "NVIDIA A100 80GB PCIe": 1.935, "NVIDIA L4": 0.3,
    }.items():  # fmt: skip
        found = machine.peaks(name)
        assert found is not None and found.bandwidth == bandwidth, name


@pytest.fixture(scope="module")
def bert() -> Any:
    return suite.MODELS["bert_base"].onnx(1)


def test_a_bert_of_another_batch_is_the_same_model(bert: Any) -> None:
    # One layer tells as much as twelve.
    single = _first_layers(copy.deepcopy(bert))
    double = suite.rebatched(copy.deepcopy(single), 2)
    feeds = zoo.inputs(double, batch=2)
    (name,) = feeds
    (both,) = evaluate(import_onnx(double, {name: [2, 128]}), feeds).values()
    for i in range(2):
        (alone,) = evaluate(import_onnx(single, {name: [1, 128]}), {name: feeds[name][i : i + 1]}).values()
        np.testing.assert_allclose(np.asarray(both)[i], np.asarray(alone)[0], rtol=1e-5, atol=1e-5)


def _first_layers(model: Any) -> Any:
    """A BERT that ends behind its second LayerNormalization."""
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    end = [n.name or n.output[0] for n in model.graph.node].index(norms[2].name or norms[2].output[0]) + 1
    del model.graph.node[end:]
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    del model.graph.value_info[:]
    model.graph.output[0].name = norms[2].output[0]
    return model


def test_berts_parameters_are_found_by_their_place_in_the_graph(bert: Any) -> None:
    state = suite._bert_state(bert)
    for layer in (0, 11):
        for part, shape in (("attention.self.key", (768, 768)), ("intermediate.dense", (3072, 768)), ("output.dense", (768, 3072))):
            prefix = f"m.encoder.layer.{layer}.{part}"
            assert state[f"{prefix}.weight"].shape == shape and state[f"{prefix}.bias"].shape == shape[:1]
        assert state[f"m.encoder.layer.{layer}.output.LayerNorm.weight"].shape == (768,)


def test_names_of_models() -> None:
    assert suite.parse("vit,bert") == ["vit_b_16", "bert_base"] and len(suite.parse("all")) == 8
    with pytest.raises(ValueError, match=r"models: got alexnet, expected some of"):
        suite.parse("alexnet")


def test_the_faster_peer_of_each_round_counts() -> None:
    times = {"us": Times([1.0, 1.0, 2.0]), "a": Times([2.0, 3.0, 4.0]), "b": Times([3.0, 2.0, 6.0]), "none": Times()}
    best, median, low, high = ratio(times, "us", ["a", "b", "none"])
    assert (best, median, low, high) == ("a", 2.0, 2.0, 2.0)
    assert math.isnan(ratio(times, "us", [])[1]) and math.isnan(times["none"].median)


def test_a_table_has_a_row_whatever_failed() -> None:
    row = {
        "model": "resnet50", "label": "ResNet-50", "batch": 1, "times": {}, "failures": {"dovetail": "no tactic", "eager": "out of memory"},
        "peers": {}, "ratio": math.nan, "ratio_q25": math.nan, "ratio_q75": math.nan,
    }  # fmt: skip
    where = {"gpu": {"name": "a GPU"}, "smi": {}, "versions": {}, "date": "today", "python": "3"}
    text = main.markdown([row, {"model": "vgg11", "batch": 8, "error": "gone"}], where, ["eager", "compile"])
    assert "| ResNet-50 | 1 | failed |" in text and "no tactic" in text and "vgg11, batch 8: gone" in text
    assert main._is_lost({"failures": {"x": "cuGraphLaunch failed with CUDA_ERROR_ILLEGAL_ADDRESS"}}) and not main._is_lost(row)
