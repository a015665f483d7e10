"""All shared models on a GPU, in fp32 and fp16, against the same models in fp32 on the CPU."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import dovetail
from models import zoo
from tests.gpu.reference import (
    DETECTION,
    FP16_SCORES,
    LIMITS,
    TORCH_FP32,
    Reference,
    lonely_boxes,
    relative_l2,
)

# What torch's own eager fp16 is off by for these seeded weights, where that is more than the limit allows for (times 1.5).
# Measured on an H100 by `python -m bench.gpu.eager_error`; a model that is not here has the plain limit.
TORCH_FP16: dict[str, float] = {
    "dynamic_decoder_kv_cache": 0.0029,
    "dynamic_unet": 0.004,
    "timm_cspdarknet53": 0.026,
    "timm_mobilenetv4_conv_small": 0.019,
    "timm_repvgg_a0": 0.0033,
    "timm_res2net50_26w_4s": 0.023,
    "timm_tf_efficientnet_lite0": 0.018,
    "torchvision_deeplabv3_mobilenet_v3_large": 0.018,
    "torchvision_densenet121": 0.0024,
    "torchvision_efficientnet_b0": 0.0056,
    "torchvision_efficientnet_v2_s": 0.0074,
    "torchvision_inception_v3": 0.048,
    "torchvision_mnasnet1_0": 0.02,
    "torchvision_mobilenet_v3_small": 0.0052,
    "torchvision_regnet_x_1_6gf": 0.019,
    "torchvision_resnet50": 0.02,
    "torchvision_resnext50_32x4d": 0.02,
    "torchvision_vit_b_16": 0.0015,
    "transformers_bert_base_opset17": 0.0018,
    "transformers_bert_base_opset23": 0.0017,
    "transformers_gpt2_small_opset20": 0.0016,
    "transformers_llama_tiny_opset20": 0.0015,
    "transformers_t5_opset20": 0.005,
}

TORCH_OTHER: dict[str, float] = {
    "torchvision_resnet50 tf32": 0.014,
    "torchvision_resnet50 bf16": 0.094,
    "transformers_bert_base_opset17 bf16": 0.016,
}

_references: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}


def reference(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, outputs) of a model; computed once for all precisions."""
    if name not in _references:
        _references.clear()  # one model at a time, as the tests come by model
        model = zoo.load(name)
        feeds = zoo.inputs(model, batch=2 if _has_symbol(model) else 1)
        _references[name] = feeds, Reference(model).run(feeds)
    return _references[name]


def _has_symbol(model: Any) -> bool:
    return any(d.dim_param == "batch" for v in model.graph.input for d in v.type.tensor_type.shape.dim)


def allowed(name: str, precision: str) -> float:
    """The relative L2 distance that a model's outputs may have: what is asked, or 1.5 times torch's own."""
    peers = TORCH_FP32 if precision == "fp32" else TORCH_FP16 if precision == "fp16" else TORCH_OTHER
    return max(LIMITS[precision], 1.5 * peers.get(name if precision in ("fp32", "fp16") else f"{name} {precision}", 0.0))


@pytest.mark.parametrize(("name", "precision"), [(n, p) for n in zoo.names() for p in ("fp32", "fp16")])
def test_model_agrees_with_fp32_on_the_cpu(name: str, precision: str) -> None:
    feeds, wanted = reference(name)
    model = zoo.load(name)
    engine = dovetail.build(model, device="cuda", precision=precision, verify="off", tune=False, allow_fallback=True)
    del model
    gc.collect()
    results = [engine.run(feeds) for _ in range(3)]  # step by step, captured, replayed
    for later in results[1:]:
        for output, value in results[0].items():
            assert np.asarray(value).tobytes() == np.asarray(later[output]).tobytes(), f"{output}: runs differ"
    if name in DETECTION:
        lonely = lonely_boxes(results[0], wanted, 1e-3 if precision == "fp32" else FP16_SCORES)
        count = len(next(v for v in wanted.values() if v.ndim == 2))
        most = max(2, count // 10)
        if precision == "fp16" and most < lonely <= DETECTION[name]:
            pytest.xfail(f"{lonely} of {count} boxes have no counterpart, expected at most {most}; rounding alone moves {DETECTION[name]}")
        assert lonely <= most, f"{lonely} of {count} boxes have no counterpart, expected at most {most}"
        return
    for output, want in wanted.items():
        error = relative_l2(results[0][output], want)
        limit = allowed(name, precision)
        assert error <= limit, f"{output}: relative L2 {error:.1e}, expected at most {limit:.0e}"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["torchvision_resnet50", "transformers_bert_base_opset17"])
def test_other_precisions(name: str, precision: str) -> None:
    feeds, wanted = reference(name)
    engine = dovetail.build(zoo.load(name), device="cuda", precision=precision, verify="off", tune=False)
    for output, want in wanted.items():
        error = relative_l2(engine.run(feeds)[output], want)
        assert error <= allowed(name, precision), f"{output}: relative L2 {error:.1e}"


def test_a_tuned_engine_agrees_and_survives_saving(tmp_path: Any) -> None:
    name = "torchvision_mobilenet_v3_small"
    feeds, wanted = reference(name)
    engine = dovetail.build(zoo.load(name), device="cuda", precision="fp16", verify="off", time_budget=20)
    engine.save(tmp_path / "model.plan")
    loaded = dovetail.load(tmp_path / "model.plan")
    for output, want in wanted.items():
        got = engine.run(feeds)[output]
        assert relative_l2(got, want) <= allowed(name, "fp16")
        assert np.asarray(loaded.run(feeds)[output]).tobytes() == np.asarray(got).tobytes()
