"""A fixed set of random models; `python -m tests.fuzz --seeds 0:5000` runs as many as wanted."""

from __future__ import annotations

import pytest

from tests.fuzz.checks import CHECKS
from tests.fuzz.generate import generate
from tests.fuzz.reduce import reduced

# Few seeds where C is compiled or kernels are interpreted, many where graphs are only rewritten and plans only made.
SEEDS = {
    "simplify": range(110, 140),
    "passes-cpu": range(30), "passes-cuda": range(30, 50), "plan-fp16": range(50, 70), "plan-fp32": range(70, 80),
    "cpu": range(80, 94), "cuda": range(100, 106),
}  # fmt: skip


@pytest.mark.parametrize("check, seed", [(check, seed) for check, seeds in SEEDS.items() for seed in seeds])
def test_random_models(check: str, seed: int) -> None:
    if check == "cuda":
        pytest.importorskip("triton")
    CHECKS[check](generate(seed))


def test_a_seed_is_one_model() -> None:
    for seed in (3, 17):
        assert generate(seed).model().SerializeToString() == generate(seed).model().SerializeToString()
    assert len({generate(seed).model().SerializeToString() for seed in range(8)}) == 8


def test_failures_are_cut_down_to_their_cause() -> None:
    """A model "fails" while it has a Softmax: what is left is that node alone."""

    def has(case: object) -> bool:
        return any(n.op_type == "Softmax" for n in case.nodes)  # type: ignore[attr-defined]

    case = next(c for c in map(generate, range(100)) if has(c.pruned()) and len(c.pruned().nodes) > 6)
    small = reduced(case, has)
    assert [n.op_type for n in small.nodes] == ["Softmax"]
    assert len(small.outputs) == 1
