"""Every tapped value of a model against the references, and simplified models against the originals.

Nine models that are quick and differ from each other here; all of them with `pytest tests/models --exhaustive`.
"""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest

import dovetail
from dovetail.model.equivalence import check
from dovetail.model.model import Model
from dovetail.model.simplifier import simplify
from models import zoo
from tests.models.agreement import DETECTION, WINOGRAD, expected, relative_error, session

QUICK = {
    "dynamic_decoder_kv_cache", "dynamic_lstm_gru", "dynamic_yolo", "timm_mobilenetv4_conv_small", "torchvision_mobilenet_v3_small",
    "torchvision_squeezenet1_1", "transformers_llama_tiny_opset20", "transformers_t5_opset20", "transformers_whisper_opset20",
}  # fmt: skip
# Seeded weights amplify rounding from layer to layer: direct sums alone are 2e-4 from the references inside this one.
AMPLIFYING = {"torchvision_inception_v3": 1e-3}
# Of these nothing is named as in the model: one fused loop, or a region only.
NO_TAPS = {"dynamic_loop_if"}


def _skip_unless_quick(name: str, exhaustive: bool) -> None:
    if name not in QUICK and not exhaustive:
        pytest.skip("only with --exhaustive")


@pytest.mark.parametrize("name", zoo.names())
def test_every_tap_agrees_with_the_references(name: str, exhaustive: bool) -> None:
    _skip_unless_quick(name, exhaustive)
    model = zoo.load(name)
    feed = zoo.inputs(model)
    engine = dovetail.build(model, verify="off", tune=False)
    plain = {k: np.asarray(v).copy() for k, v in engine.run(feed).items()}
    compared = dovetail.compare(model, engine, inputs=feed, layers=True, tolerance=AMPLIFYING.get(name, WINOGRAD))
    assert len(compared.layers) >= (0 if name in NO_TAPS else 3)
    if name in DETECTION:
        # What rounding moves across a threshold is another box; all before the first such choice agrees.
        first = next((i for i, d in enumerate(compared.layers) if not d.ok), len(compared.layers))
        assert first >= 30, str(compared)
    else:
        assert compared.ok, str(compared)
    engine.tap([d.name for d in compared.layers], feed)
    for output, value in engine.run(feed).items():
        assert np.asarray(value).tobytes() == plain[output].tobytes(), f"taps changed {output}"


@pytest.mark.parametrize("name", zoo.names())
def test_simplified_models_agree_and_are_valid(name: str, exhaustive: bool, tmp_path: Path) -> None:
    _skip_unless_quick(name, exhaustive)
    model = zoo.load(name)
    result = simplify(Model(model)).model.proto
    assert len(result.graph.node) <= len(model.graph.node)
    path = tmp_path / "small.onnx"
    onnx.save(result, path)
    onnx.checker.check_model(path, full_check=True)
    if name in DETECTION:
        check(model, result)  # knows what rounding does to the choice of boxes
        return
    feed = zoo.inputs(model)
    wanted = expected(session(model), feed)
    del model
    gc.collect()
    for output, value in expected(session(result), feed).items():
        error = relative_error(value, wanted[output])
        assert error <= 3e-5, f"{output}: relative L2 {error:.1e}"
