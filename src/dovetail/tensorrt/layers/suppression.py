"""Non-maximum suppression of boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovetail.core.dims import minimum
from dovetail.core.dtypes import F32, I32, I64
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import BoundingBoxFormat, DataType, LayerType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, integer, of
from dovetail.tensorrt.tensor import ITensor


class INMSLayer(ILayer):
    """The best boxes per class that do not overlap better ones.

    Inputs: boxes (batch, boxes, 4) or (batch, boxes, classes, 4), scores (batch, boxes, classes), the most boxes per class,
    and where given the largest overlap (0) and the score that must be exceeded (0). Outputs: (number, 3) of batch, class and box
    in order of batch and falling score, and their number.
    """

    __slots__ = ()
    _layer_type, _label, _most_inputs, _shape_inputs = LayerType.NMS, "NMS", 5, (2,)
    bounding_box_format = Setting[BoundingBoxFormat](of(BoundingBoxFormat), BoundingBoxFormat.CORNER_PAIRS, "What a box's numbers are.")
    topk_box_limit = Setting[int](integer, 5000, "The most boxes per class that are looked at, best first.")
    indices_type = Setting[DataType](of(DataType), DataType.INT32, "The element type of the indices.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        boxes, scores, most, overlap, least = (*inputs, None, None)[:5]
        assert boxes is not None and scores is not None and most is not None
        boxes, by_class = net.cast(boxes, F32), net.op("Transpose", net.cast(scores, F32), perm=(0, 2, 1))
        chosen = _limited(net, by_class, self.topk_box_limit)
        single = (
            net.reshape(net.cast(most, I64), (1,)),
            np.zeros(1, np.float32) if overlap is None else net.reshape(net.cast(overlap, F32), (1,)),
            np.zeros(1, np.float32) if least is None else net.reshape(net.cast(least, F32), (1,)),
        )
        center = int(self.bounding_box_format is BoundingBoxFormat.CENTER_SIZES)
        if len(boxes.shape) == 3:
            found = net.op("NonMaxSuppression", boxes, chosen, *single, center_point_box=center)
        else:
            found = _of_classes(self, net, boxes, chosen, single, center)
        ordered = _ordered(net, found, by_class)
        count = net.op("Squeeze", net.op("Shape", ordered, start=0, end=1), [0])
        return [net.cast(ordered, to_dtype(self.indices_type)), net.cast(count, I32)]


def _limited(net: Scope, scores: Value, limit: int) -> Value:
    """Scores (batch, classes, boxes), where all but the best of a class are too low to be chosen."""
    boxes = scores.shape[2]
    if isinstance(boxes, int) and boxes <= limit:
        return scores
    best, _ = net.op("TopK", scores, net.extents([minimum(boxes, limit)]), axis=2)
    last = net.op("Slice", best, [-1], [np.iinfo(np.int64).max], [2])
    low = np.float32(np.finfo(np.float32).min)
    made: Value = net.op("Where", net.op("Less", scores, last), low, scores)
    return made


def _of_classes(layer: ILayer, net: Scope, boxes: Value, scores: Value, single: tuple[object, ...], center: int) -> Value:
    """With boxes of their own, classes are as samples of a batch."""
    batch, count, classes, _ = boxes.shape
    if not isinstance(classes, int):
        raise ModelError(f"{layer.name}: got {classes} classes, expected a number that is known before the run")
    samples = net.op("Transpose", boxes, perm=(0, 2, 1, 3))
    flat = net.reshape(samples, (batch * classes, count, 4))
    found = net.op("NonMaxSuppression", flat, net.reshape(scores, (batch * classes, 1, count)), *single, center_point_box=center)
    place, box = (net.op("Slice", found, [a], [a + 1], [1]) for a in (0, 2))
    width = np.int64(classes)
    made: Value = net.op("Concat", net.op("Div", place, width), net.op("Mod", place, width), box, axis=1)
    return made


def _ordered(net: Scope, found: Value, scores: Value) -> Value:
    """Rows of batch, class and box in order of batch, then of falling score."""
    count = found.shape[0]
    picked = net.op("GatherND", scores, found)
    size = net.extents([count])
    _, order = net.op("TopK", picked, size, axis=0)
    rows = net.op("Gather", found, order, axis=0)
    # Stable, since equal elements keep their order: rows of one batch stay sorted by score.
    batch = net.op("Squeeze", net.op("Slice", rows, [0], [1], [1]), [1])
    _, second = net.op("TopK", batch, size, axis=0, largest=0)
    made: Value = net.op("Gather", rows, second, axis=0)
    return made


class AddSuppression(NetworkBase):
    """The `add_*` method of this family."""

    def add_nms(
        self, boxes: ITensor, scores: ITensor, max_output_boxes_per_class: ITensor, indices_type: DataType = DataType.INT32
    ) -> INMSLayer | None:
        """Choose boxes that do not overlap better ones."""
        named = {"boxes": boxes, "scores": scores, "max_output_boxes_per_class": max_output_boxes_per_class}
        inputs = [expect(ITensor, t, f"add_nms: {name}") for name, t in named.items()]
        return self._add(INMSLayer, inputs, outputs=2, indices_type=expect(DataType, indices_type, "add_nms: indices_type"))
