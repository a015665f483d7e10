"""What GPU results are compared with, and how far they may be off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, Any]

FP16_SCORES = 3e-2
"""How far scores of the same detection may be apart in fp16."""

LIMITS = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1e-2}
"""Relative L2 distance from fp32 that the outputs of a model may have."""

# Seeded weights amplify rounding in these: so far is torch's own fp32 on an H100 from ONNX Runtime's (`python -m bench.gpu.eager_error`).
TORCH_FP32 = {
    "timm_cspdarknet53": 1.7e-5, "timm_mobilenetv4_conv_small": 1.0e-5, "timm_res2net50_26w_4s": 1.6e-5, "torchvision_inception_v3": 3.9e-5,
    "torchvision_resnet50": 1.2e-5, "torchvision_resnext50_32x4d": 1.2e-5,
}  # fmt: skip

DETECTION = {"torchvision_ssdlite320": 74}
"""How many detections have no counterpart where each value of the fp32 model is rounded to fp16, as eager frameworks do: scores that are
close change places (`python -m tests.gpu.reference`)."""


class Reference:
    """A model in fp32 on the CPU: ONNX Runtime where it is installed, else the NumPy references."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._session: Any = None
        try:
            import onnxruntime
        except ImportError:
            return
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """All outputs by name."""
        if self._session is not None:
            return dict(zip([o.name for o in self._session.get_outputs()], self._session.run(None, dict(feeds)), strict=True))
        from dovetail.frontend.importer import import_onnx
        from dovetail.ops.evaluate import evaluate

        module = import_onnx(self._model, {k: list(v.shape) for k, v in feeds.items()})
        return dict(evaluate(module, dict(feeds)))


def relative_l2(got: Any, want: Any) -> float:
    """Relative L2 distance; infinite for another shape, NaN or Inf where there should be none. Integers count their differences."""
    a, b = np.asarray(got), np.asarray(want)
    if a.shape != b.shape:
        return float("inf")
    if b.size == 0:
        return 0.0
    if b.dtype.kind in "iub":
        return float(np.mean(a != b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a) == np.isfinite(b)).all():
        return float("inf")
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


def lonely_boxes(got: Mapping[str, Any], want: Mapping[str, Any], tolerance: float) -> int:
    """How many detections have none of their label, score and place on the other side; of the side with more."""
    names = {("boxes" if v.ndim == 2 else "labels" if v.dtype.kind == "i" else "scores"): k for k, v in want.items()}
    ours = [np.asarray(got[names[k]]) for k in ("boxes", "scores", "labels")]
    theirs = [np.asarray(want[names[k]]) for k in ("boxes", "scores", "labels")]
    worst = 0
    for (boxes, scores, labels), (others, other_scores, other_labels) in ((ours, theirs), (theirs, ours)):
        missing = 0
        for box, score, label in zip(boxes, scores, labels, strict=True):
            near = (np.abs(other_scores - score) < tolerance) & (other_labels == label)
            missing += not (near & (np.abs(others - box).max(1) < 0.02 * 320)).any()
        worst = max(worst, missing)
    return worst


def rounded_boxes(name: str) -> int:
    """What `DETECTION` says of a model."""
    from dovetail.frontend.importer import import_onnx
    from dovetail.ops.evaluate import evaluate
    from models import zoo

    def rounded(_: Any, array: Any) -> Any:
        if isinstance(array, np.ndarray) and array.dtype == np.float32 and array.size > 16:  # not what shapes are made of
            with np.errstate(over="ignore"):
                return array.astype(np.float16).astype(np.float32)
        return None

    model = zoo.load(name)
    feeds = zoo.inputs(model)
    module = import_onnx(model, {k: list(v.shape) for k, v in feeds.items()})
    return lonely_boxes(evaluate(module, dict(feeds), observe=rounded), Reference(model).run(feeds), FP16_SCORES)


if __name__ == "__main__":
    for each in DETECTION:
        print(f"{each}: {rounded_boxes(each)} detections without a counterpart")
