"""All 37 shipped models: one engine each, against ONNX Runtime, at several batches."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx
import pytest

import dovetail
from models import zoo
from tests.models.agreement import DETECTION, expected, limit, relative_error, session


def _has_symbol(model: onnx.ModelProto, symbol: str) -> bool:
    return any(d.dim_param == symbol for v in model.graph.input for d in v.type.tensor_type.shape.dim)


def _same_boxes(got: dict[str, Any], want: dict[str, Any]) -> None:
    """Detections as sets: every box of one side has one of the same label, score and place on the other."""
    names = {("boxes" if v.ndim == 2 else "labels" if v.dtype.kind == "i" else "scores"): k for k, v in want.items()}
    ours = [np.asarray(got[names[k]]) for k in ("boxes", "scores", "labels")]
    theirs = [want[names[k]] for k in ("boxes", "scores", "labels")]
    assert len(theirs[0]) > 10
    assert abs(len(ours[0]) - len(theirs[0])) <= 2
    for (boxes, scores, labels), (others, other_scores, other_labels) in ((ours, theirs), (theirs, ours)):
        missing = 0
        for box, score, label in zip(boxes, scores, labels, strict=True):
            near = (np.abs(other_scores - score) < 1e-4) & (other_labels == label)
            missing += not (near & (np.abs(others - box).max(1) < 1e-2 * 320)).any()
        assert missing <= 2, f"{missing} of {len(boxes)} boxes have no counterpart"


@pytest.mark.parametrize("name", zoo.names())
def test_model_agrees_with_onnxruntime(name: str) -> None:
    model = zoo.load(name)
    peer = session(model)
    engine = dovetail.build(model, verify="off", tune=False)
    feeds = [zoo.inputs(model, batch=b) for b in ((1, 3) if _has_symbol(model, "batch") else (1,))]
    del model.graph.initializer[:]
    gc.collect()
    allowed = limit(name, engine)
    for feed in feeds:
        want = expected(peer, feed)
        got = engine.run(feed)
        if name in DETECTION:
            _same_boxes(got, want)
            continue
        for output, array in want.items():
            error = relative_error(np.asarray(got[output]), array)
            assert error <= allowed, f"{output}: relative L2 {error:.1e}, expected at most {allowed:.0e}"


def test_relabelled_resnet_takes_any_image_size() -> None:
    model = zoo.load("torchvision_resnet50")
    for axis, symbol in ((0, "N"), (2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = symbol
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    peer = session(model)
    engine = dovetail.build(model, verify="off", tune=False)
    allowed = limit("torchvision_resnet50", engine)
    name = model.graph.input[0].name
    rng = np.random.default_rng(0)
    for shape in ((1, 3, 224, 224), (2, 3, 97, 130), (1, 3, 64, 33)):
        x = rng.standard_normal(shape).astype(np.float32)
        (want,) = expected(peer, {name: x}).values()
        error = relative_error(np.asarray(engine(x)), want)
        assert error <= allowed, f"{shape}: relative L2 {error:.1e}"


@pytest.mark.parametrize("name", ["torchvision_mobilenet_v3_small", "dynamic_bert4"])
def test_thread_count_does_not_change_a_bit(name: str) -> None:
    model = zoo.load(name)
    feed = zoo.inputs(model, batch=2)
    results = []
    for threads in (1, 2, 3):
        engine = dovetail.build(model, verify="off", tune=False, threads=threads)
        results.append(engine.run(feed))
    for other in results[1:]:
        for key, value in results[0].items():
            assert np.asarray(value).tobytes() == np.asarray(other[key]).tobytes()
