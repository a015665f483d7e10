"""Models in older opsets against themselves, by ONNX Runtime: four that are quick here, all of them with `--exhaustive`."""

from __future__ import annotations

import pytest

import dovetail
from models import zoo
from tests.models.agreement import expected, relative_error, session

QUICK = {"dynamic_yolo", "timm_mixer_s32_224", "torchvision_mobilenet_v3_small", "transformers_whisper_opset20"}
BOUND = 3e-6  # functions that took an operator's place add up in another order


@pytest.mark.parametrize("name", zoo.names())
def test_older_opsets_compute_the_same(name: str, exhaustive: bool) -> None:
    if name not in QUICK and not exhaustive:
        pytest.skip("only with --exhaustive")
    model = dovetail.Model.load(zoo.load(name))
    inputs = zoo.inputs(model.proto)
    wanted = expected(session(model.proto, optimised=False), inputs)
    for opset in (16, 13, 11):
        found = expected(session(model.convert_opset(opset).proto, optimised=False), inputs)
        assert found.keys() == wanted.keys()
        assert max(relative_error(found[output], wanted[output]) for output in wanted) < BOUND
