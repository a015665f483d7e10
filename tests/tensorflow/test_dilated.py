"""The samples of dilated convolutions are what tf2onnx writes, and Dovetail computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import dovetail
from tests.tensorflow.make_dilated import cases, check, export, rewrite_off

SAMPLES = Path(__file__).resolve().parents[1] / "samples" / "tensorflow"
CASES = {name: (shape, function) for name, shape, function in cases()}
ALONE = ("bias", "crops", "dynamic")


# tf2onnx's optimiser goes through sets of names: whether it turns an image by a Transpose or, of one channel or image, by a Reshape, and
# whether two of them meet, is another thing in each process.
TURNS = ("Transpose", "Reshape")


def operators(model, without=()):
    return [node.op_type for node in model.graph.node if node.op_type not in without]


@pytest.mark.parametrize("name", CASES)
def test_samples_compute_what_tensorflow_does(name):
    shape, function = CASES[name]
    for form in ("",) if name in ALONE else ("_folded", "_chain", "_raw"):
        assert check(onnx.load(SAMPLES / f"dilated_{name}{form}.onnx"), function, shape) < 1e-5, form


@pytest.mark.parametrize("opset", [9, 18])
def test_samples_of_other_opsets(opset):
    shape, function = CASES["same_2_odd"]
    model = onnx.load(SAMPLES / f"dilated_same_2_odd_chain_opset_{opset}.onnx")
    assert check(model, function, shape) < 1e-5 and operators(model).count("SpaceToDepth") == 1


@pytest.mark.parametrize("name", ["same_2_odd", "depthwise_valid_3_odd", "network_batch"])
def test_samples_are_what_tf2onnx_writes_today(name):
    shape, function = CASES[name]
    assert operators(export(function, shape)) == operators(onnx.load(SAMPLES / f"dilated_{name}_folded.onnx"))
    with rewrite_off():
        chain = export(function, shape)
        assert operators(chain, TURNS) == operators(onnx.load(SAMPLES / f"dilated_{name}_chain.onnx"), TURNS)
        simpler = dovetail.Model.load(chain).simplify().proto
        convolutions = [node for node in simpler.graph.node if node.op_type == "Conv"]
        dilated = [n for n in convolutions if any(a.name == "dilations" and max(a.ints) > 1 for a in n.attribute)]
        assert dilated and not {"SpaceToDepth", "DepthToSpace"} & set(operators(simpler)), "the rule knows them all"
        assert operators(export(function, shape, optimized=False)) == operators(onnx.load(SAMPLES / f"dilated_{name}_raw.onnx"))


def test_the_chain_runs_in_an_engine():
    shape, function = CASES["network"]
    engine = dovetail.build(SAMPLES / "dilated_network_chain.onnx", tune=False)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert np.abs(engine.run({"x": x})["y"] - function(x).numpy()).max() < 1e-5
