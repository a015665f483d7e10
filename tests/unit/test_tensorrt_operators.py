"""Operators of TensorRT's own plugins in ONNX models, against loops over boxes."""

import numpy as np
import pytest
from onnx import helper

import dovetail
import dovetail.tensorrt as trt
from dovetail.core.errors import UnsupportedOpError
from dovetail.frontend.importer import import_onnx
from dovetail.ops.evaluate import evaluate
from tests.unit.plugin_models import F32, onnx_model, own_registry


def node(op, inputs, outputs, domain="TRT", **attributes):
    return helper.make_node(op, inputs, outputs, name="/nms", domain=domain, plugin_version="1", **attributes)


def boxes_and_scores(batch, number, classes, own=1, seed=0):
    rng = np.random.default_rng(seed)
    center, size = rng.random((batch, number, own, 2)), 0.05 + 0.3 * rng.random((batch, number, own, 2))
    boxes = np.concatenate([center - size / 2, center + size / 2], -1).astype(np.float32)
    return boxes, rng.permutation(batch * number * classes).reshape(batch, number, classes).astype(np.float32) / (batch * number * classes)


def iou(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def by_loops(boxes, scores, most, overlap, floor, background=-1, agnostic=False):
    """One candidate (box, class) after the other, the best score first, as the plugin does."""
    results = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        scored = ((s, c, n) for n, row in enumerate(image_scores) for c, s in enumerate(row))
        order = sorted((x for x in scored if x[0] > floor and x[1] != background), reverse=True)
        kept = []
        for s, c, n in order:
            box = image_boxes[n, c if image_boxes.shape[1] > 1 else 0]
            if all(iou(box, other) <= overlap for other, _, d in kept if agnostic or c == d):
                kept.append((box, s, c))
        results.append(kept[:most])
    return results


def check(got, expected, most):
    count, boxes, scores, classes = got
    for i, kept in enumerate(expected):
        assert count[i, 0] == len(kept)
        for k, (box, score, label) in enumerate(kept):
            assert classes[i, k] == label and abs(scores[i, k] - score) < 1e-6 and np.allclose(boxes[i, k], box, atol=1e-6)
        assert not boxes[i, len(kept) :].any() and not scores[i, len(kept) :].any() and not classes[i, len(kept) :].any()
    assert boxes.shape[1:] == (most, 4) and scores.shape[1:] == classes.shape[1:] == (most,)


@pytest.mark.parametrize("agnostic", [0, 1])
@pytest.mark.parametrize("own", [1, 5])
@pytest.mark.parametrize("most", [7, 300])
def test_efficient_nms(agnostic, own, most) -> None:
    shape = ["B", "N", 4] if own == 1 else ["B", "N", own, 4]
    attributes = {"max_output_boxes": most, "iou_threshold": 0.4, "score_threshold": 0.2, "background_class": 2, "class_agnostic": agnostic}
    made = node("EfficientNMS_TRT", ["b", "s"], ["n", "d", "p", "c"], score_activation=0, box_coding=0, **attributes)
    model = onnx_model([made], {"b": (F32, shape), "s": (F32, ["B", "N", 5])}, ["n", "d", "p", "c"])
    module = import_onnx(model)
    for batch, number in ((2, 33), (1, 1), (3, 8)):
        boxes, scores = boxes_and_scores(batch, number, 5, own, seed=number)
        found = evaluate(module, {"b": boxes if own > 1 else boxes[:, :, 0], "s": scores})
        got = [found[name] for name in "ndpc"]
        assert [x.dtype.name for x in got] == ["int32", "float32", "float32", "int32"]
        check(got, by_loops(boxes, scores, most, 0.4, 0.2, 2, bool(agnostic)), most)


def test_efficient_nms_decodes_anchors_and_activates_scores() -> None:
    made = node(
        "EfficientNMS_TRT", ["b", "s", "a"], ["n", "d", "p", "c"], domain="", max_output_boxes=10, iou_threshold=0.5,
        score_threshold=0.6, score_activation=1, box_coding=1, background_class=-1,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    anchors = np.concatenate([rng.random((1, 20, 2)), 0.1 + 0.2 * rng.random((1, 20, 2))], -1).astype(np.float32)
    model = onnx_model([made], {"b": (F32, [2, 20, 4]), "s": (F32, [2, 20, 3])}, ["n", "d", "p", "c"], {"a": anchors})
    raw, logits = rng.standard_normal((2, 20, 4)).astype(np.float32) * 0.3, rng.standard_normal((2, 20, 3)).astype(np.float32)
    engine = dovetail.build(model, tune=False)
    found = engine.run({"b": raw, "s": logits})
    center, size = raw[..., :2] * anchors[..., 2:] + anchors[..., :2], np.exp(raw[..., 2:]) * anchors[..., 2:]
    boxes = np.concatenate([center - size / 2, center + size / 2], -1)[:, :, None]
    check([found[name] for name in "ndpc"], by_loops(boxes, 1 / (1 + np.exp(-logits)), 10, 0.5, 0.6), 10)


@pytest.mark.parametrize("candidates", [4, 1000])
def test_batched_nms(candidates) -> None:
    made = node(
        "BatchedNMSDynamic_TRT", ["b", "s"], ["n", "d", "p", "c"], shareLocation=1, backgroundLabelId=-1, numClasses=3, topK=candidates,
        keepTopK=6, scoreThreshold=0.1, iouThreshold=0.45, isNormalized=1, clipBoxes=1,
    )  # fmt: skip
    model = onnx_model([made], {"b": (F32, ["B", 30, 1, 4]), "s": (F32, ["B", 30, 3])}, ["n", "d", "p", "c"])
    boxes, scores = boxes_and_scores(2, 30, 3)
    found = evaluate(import_onnx(model), {"b": boxes, "s": scores})
    assert found["c"].dtype == np.float32
    last = np.sort(scores, axis=1)[:, -min(candidates, 30)][:, None]
    kept = by_loops(boxes, np.where(scores < last, -1, scores), 6, 0.45, 0.1)
    check([found[name] for name in "ndpc"], [[(box.clip(0, 1), s, c) for box, s, c in image] for image in kept], 6)


def test_pixels_are_refused_by_name() -> None:
    made = node("BatchedNMS_TRT", ["b", "s"], ["n", "d", "p", "c"], isNormalized=0, keepTopK=6)
    model = onnx_model([made], {"b": (F32, [1, 30, 1, 4]), "s": (F32, [1, 30, 3])}, ["n"])
    with pytest.raises(UnsupportedOpError, match=r"/nms.*isNormalized 0"):
        import_onnx(model)


def test_roi_align_is_that_of_onnx() -> None:
    rng = np.random.default_rng(2)
    feeds = {
        "x": rng.standard_normal((2, 3, 9, 9)).astype(np.float32),
        "r": np.array([[0, 0, 6, 6], [1, 2, 8, 7]], np.float32), "i": np.array([0, 1], np.int64),
    }  # fmt: skip
    sizes = {"output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5}
    types = {"x": (F32, [2, 3, 9, 9]), "r": (F32, ["R", 4]), "i": (7, ["R"])}
    theirs = onnx_model([node("ROIAlign_TRT", ["x", "r", "i"], ["y"], mode=1, coordinate_transformation_mode=1, **sizes)], types, ["y"])
    ours = onnx_model([helper.make_node("RoiAlign", ["x", "r", "i"], ["y"], mode="avg", **sizes)], types, ["y"])
    assert np.array_equal(evaluate(import_onnx(theirs), feeds)["y"], evaluate(import_onnx(ours), feeds)["y"])


def test_a_plugin_of_the_users_comes_first_and_the_parser_knows_them_too() -> None:
    made = node("EfficientNMS_TRT", ["b", "s"], ["n"], max_output_boxes=4)
    model = onnx_model([made], {"b": (F32, [1, 6, 4]), "s": (F32, [1, 6, 2])}, ["n"])
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(1)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert tuple(network.get_output(0).shape) == (1, 1) and network.get_output(0).dtype == trt.int32
    with own_registry():
        dovetail.plugin("EfficientNMS_TRT")(lambda b, s, *, max_output_boxes: np.int32(max_output_boxes).reshape(1, 1))
        found = evaluate(import_onnx(model), {"b": np.zeros((1, 6, 4), np.float32), "s": np.zeros((1, 6, 2), np.float32)})
    assert found["n"].tolist() == [[4]]
