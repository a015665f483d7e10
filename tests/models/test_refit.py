"""Refits of the shipped models: bit for bit what a fresh build gives, and back again."""

from __future__ import annotations

import threading

import pytest

import dovetail
from models import zoo
from tests.models.refitting import changed, check, outputs

# All weights of small models of every kind, against fresh builds; a sample of the weights of larger ones.
# `python -m tests.models.refitting` does all weights of all models.
WHOLE = (
    "dynamic_decoder_kv_cache", "dynamic_loop_if", "dynamic_lstm_gru", "dynamic_unet", "torchvision_mobilenet_v3_small",
    "torchvision_squeezenet1_1", "transformers_llama_tiny_opset20", "transformers_t5_opset20", "transformers_vit_opset23",
)  # fmt: skip
SAMPLED = ("dynamic_yolo", "timm_repvgg_a0", "torchvision_resnet50", "torchvision_swin_t")


@pytest.mark.parametrize("name", WHOLE)
def test_refit_gives_what_a_build_gives(name: str) -> None:
    check(name, whole=True)


@pytest.mark.parametrize("name", SAMPLED)
def test_refit_of_some_weights_leaves_the_others(name: str) -> None:
    check(name, whole=False)


def test_under_load_every_run_sees_one_set_of_weights() -> None:
    model = zoo.load("torchvision_mobilenet_v3_small")
    engine, other = (dovetail.build(model, verify="off", tune=False, threads=1) for _ in range(2))
    new = changed(engine, 1)
    old = {n: engine.weight(n) for n in new}
    feeds = zoo.inputs(model, batch=1)
    before = outputs(engine, feeds)
    other.refit(new)
    after = outputs(other, feeds)
    assert before != after
    seen: list[str] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            found = outputs(engine, feeds)
            seen.append("old" if found == before else "new" if found == after else "mixed")

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(500):
        engine.refit(new)
        with engine.refit(old):
            pass
        engine.refit(old)
        if i >= 12 and set(seen) >= {"old", "new"}:
            break
    stop.set()
    for thread in threads:
        thread.join(60)
    assert set(seen) == {"old", "new"}
