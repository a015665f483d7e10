"""One dynamic engine on a GPU at two hundred random shapes, against the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import dovetail
from models import zoo
from tests.gpu.reference import LIMITS, Reference, relative_l2

COUNT = 200
IMAGE = (32 * np.array([1, 2, 3, 5, 7])).tolist()
# Per symbol: what sizes are drawn from; small and odd ones often, large ones now and then.
SPACES: dict[str, dict[str, list[int]]] = {
    "dynamic_bert4": {"batch": [1, 1, 2, 3, 5, 8], "seq": [*range(1, 67), 97, 128, 131, 384]},
    "dynamic_yolo": {"batch": [1, 1, 2, 3], "height": IMAGE, "width": IMAGE},
}


def sizes(name: str, count: int) -> Iterator[dict[str, int]]:
    """Assignments of sizes to a model's symbols."""
    rng = np.random.default_rng(7)
    for _ in range(count):
        yield {symbol: int(rng.choice(space)) for symbol, space in SPACES[name].items()}


@pytest.mark.parametrize(("name", "precision", "count"), [
    ("dynamic_bert4", "fp32", COUNT), ("dynamic_bert4", "fp16", 50), ("dynamic_yolo", "fp32", 50),
])  # fmt: skip
def test_one_engine_for_all_shapes(name: str, precision: str, count: int) -> None:
    model = zoo.load(name)
    reference = Reference(model)
    engine = dovetail.build(model, device="cuda", precision=precision, verify="off", tune=False)
    worst: dict[str, float] = {}
    for seed, step in enumerate(sizes(name, count)):
        feeds = zoo.inputs(model, seed=seed, **step)
        got = engine.run(feeds)
        for output, want in reference.run(feeds).items():
            error = relative_l2(got[output], want)
            if not error <= 2 * LIMITS[precision]:
                worst[f"{output} at {step}"] = error
    assert not worst, f"{len(worst)} of {count} shapes are off: {dict(list(worst.items())[:5])}"


def test_shapes_come_again_and_again() -> None:
    """More shapes than are kept, visited in turns: what is dropped is made again, with the same bits."""
    model = zoo.load("dynamic_bert4")
    engine = dovetail.build(model, device="cuda", verify="off", tune=False)
    context = engine.context()
    first: dict[int, bytes] = {}
    for _ in range(3):
        for seq in range(1, 40):
            feeds = zoo.inputs(model, batch=1, seq=seq)
            (value, *_) = context.run(feeds).values()
            data = np.asarray(value).tobytes()
            assert first.setdefault(seq, data) == data, f"seq {seq}"
