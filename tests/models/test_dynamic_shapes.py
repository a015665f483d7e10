"""The six models with symbolic sizes: one engine each, against ONNX Runtime at fifty random shapes, small, odd and large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import dovetail
from models import zoo
from tests.models.agreement import expected, limit, relative_error, session

COUNT = 50
# Per symbol: sizes that are always there, and what random ones are drawn from. Images are halved five times.
IMAGE = (32 * np.array([1, 2, 3, 5, 7])).tolist()
SHAPES: dict[str, dict[str, tuple[list[int], list[int]]]] = {
    "dynamic_bert4": {"batch": ([1, 1, 2, 1, 3], [1, 2, 3, 5]), "seq": ([1, 2, 131, 384, 17], [*range(1, 67), 97, 128, 131])},
    "dynamic_decoder_kv_cache": {
        "batch": ([1, 1, 3, 1, 2], [1, 2, 3, 5, 8]),
        "seq": ([1, 1, 7, 127, 64], [1, 1, 1, *range(1, 40)]),
        "past": ([1, 0, 13, 509, 64], [0, 1, *range(1, 130), 257]),
    },
    "dynamic_loop_if": {"batch": ([1, 2, 31, 257, 64], [*range(1, 100)]), "steps": ([0, 1, 2, 5, 17], [*range(24)])},
    "dynamic_lstm_gru": {"batch": ([1, 13, 1, 2, 5], [*range(1, 9)]), "seq": ([1, 1, 257, 64, 31], [*range(1, 60), 127])},
    "dynamic_unet": {"batch": ([1, 3, 1], [1, 1, 2, 3]), "height": ([32, 64, 416], IMAGE), "width": ([32, 32, 352], IMAGE)},
    "dynamic_yolo": {"batch": ([1, 3, 1], [1, 1, 2, 3]), "height": ([32, 64, 416], IMAGE), "width": ([32, 32, 640], IMAGE)},
}  # fmt: skip


def sizes(name: str) -> Iterator[dict[str, int]]:
    """`COUNT` assignments of sizes to a model's symbols."""
    rng = np.random.default_rng(7)
    spaces = SHAPES[name]
    corners = len(next(iter(spaces.values()))[0])
    for index in range(COUNT):
        yield {s: first[index] if index < corners else int(rng.choice(rest)) for s, (first, rest) in spaces.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_one_engine_for_fifty_shapes(name: str) -> None:
    model = zoo.load(name)
    peer = session(model)
    engine = dovetail.build(model, verify="off", tune=False)
    allowed = limit(name, engine)
    worst: dict[str, Any] = {}
    for seed, step in enumerate(sizes(name)):
        feed = zoo.inputs(model, seed=seed, **step)
        if "steps" in step:
            feed["steps"] = np.array(step["steps"], np.int64)
        got = engine.run(feed)
        for output, want in expected(peer, feed).items():
            error = relative_error(np.asarray(got[output]), want)
            if error > allowed:
                worst[f"{output} at {step}"] = error
    assert not worst, f"{len(worst)} of {COUNT} shapes are off: {worst}"
