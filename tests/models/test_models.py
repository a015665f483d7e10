"""All 37 shipped models: one engine each, against ONNX Runtime, at several batches and random shapes, taps included."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import dovetail
from models import zoo

DIRECT, WINOGRAD = 1e-5, 1e-4
# Sums of both libraries differ by more than the bound where seeded weights amplify rounding; each is within 1.2e-5 of float64.
LIMITS = {"torchvision_resnext50_32x4d": 2e-5, "timm_cspdarknet53": 2e-5, "timm_mobilenetv4_conv_small": 2e-5}
DETECTION = {"torchvision_ssdlite320"}
DYNAMIC_SIZES = {
    "dynamic_unet": ("height", "width"), "dynamic_yolo": ("height", "width"), "dynamic_bert4": ("seq",),
    "dynamic_lstm_gru": ("seq",), "dynamic_decoder_kv_cache": ("seq", "past"), "dynamic_loop_if": (),
}  # fmt: skip


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def relative_error(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """Relative L2 distance; infinite for another shape."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.size == 0:
        return 0.0
    scale = float(np.linalg.norm(want.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - want.astype(np.float64))) / max(scale, 1e-30)


def _limit(name: str, engine: dovetail.Engine) -> float:
    winograd = any(g["tactic"].startswith("winograd") for g in engine.report().json()["groups"])
    return WINOGRAD if winograd else LIMITS.get(name, DIRECT)


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
    session = _session(model)
    engine = dovetail.build(model, verify="off", tune=False)
    del model.graph.initializer[:]
    gc.collect()
    limit = _limit(name, engine)
    batches = (1, 3) if _has_symbol(model, "batch") else (1,)
    rng = np.random.default_rng(1)
    feeds = [zoo.inputs(zoo.load(name), batch=b) for b in batches]
    sizes = DYNAMIC_SIZES.get(name)
    for _ in range(3 if sizes is not None else 0):
        step = {s: int(rng.integers(1, 5)) * (32 if s in ("height", "width") else 1) for s in sizes or ()}
        feeds.append(zoo.inputs(zoo.load(name), batch=int(rng.integers(1, 5)), **step))
    for feed in feeds:
        want = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
        got = engine.run(feed)
        if name in DETECTION:
            _same_boxes(got, want)
            continue
        for output, array in want.items():
            error = relative_error(np.asarray(got[output]), array)
            assert error <= limit, f"{output}: relative L2 {error:.1e}, expected at most {limit:.0e}"


def test_relabelled_resnet_takes_any_image_size() -> None:
    model = zoo.load("torchvision_resnet50")
    for axis, symbol in ((0, "N"), (2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = symbol
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    session = _session(model)
    engine = dovetail.build(model, verify="off", tune=False)
    limit = _limit("torchvision_resnet50", engine)
    name = model.graph.input[0].name
    rng = np.random.default_rng(0)
    for shape in ((1, 3, 224, 224), (2, 3, 97, 130), (1, 3, 64, 33)):
        x = rng.standard_normal(shape).astype(np.float32)
        (want,) = session.run(None, {name: x})
        error = relative_error(np.asarray(engine(x)), want)
        assert error <= limit, f"{shape}: relative L2 {error:.1e}"


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
