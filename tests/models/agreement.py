"""What the tests over whole models share: ONNX Runtime as it is compared with, errors and their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import dovetail

DIRECT, WINOGRAD = 1e-5, 1e-4
# Sums of both libraries differ by more than the bound where seeded weights amplify rounding; each is within 1.2e-5 of float64.
LIMITS = {"torchvision_resnext50_32x4d": 2e-5, "timm_cspdarknet53": 2e-5, "timm_mobilenetv4_conv_small": 2e-5}
DETECTION = {"torchvision_ssdlite320"}


def session(model: onnx.ModelProto, *, optimised: bool = True) -> ort.InferenceSession:
    """ONNX Runtime on one thread, without warnings."""
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def expected(peer: ort.InferenceSession, feed: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The peer's outputs by name."""
    return dict(zip([o.name for o in peer.get_outputs()], peer.run(None, dict(feed)), strict=True))


def relative_error(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """Relative L2 distance; infinite for another shape or dtype."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if want.size == 0:
        return 0.0
    scale = float(np.linalg.norm(want.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - want.astype(np.float64))) / max(scale, 1e-30)


def limit(name: str, engine: dovetail.Engine) -> float:
    """The relative error that a model's outputs may have."""
    winograd = any(g["tactic"].startswith("winograd") for g in engine.report().json()["groups"])
    return WINOGRAD if winograd else LIMITS.get(name, DIRECT)
