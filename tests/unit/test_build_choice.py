"""What callers of `dovetail.build` may say about the choice of tactics: none of some names, their own times, a function around it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dovetail

SIZE = 160


def network() -> dovetail.Network:
    """A product that is worth measuring, and an image that two tactics compute."""
    net = dovetail.Network()
    x = net.input("x", "f32", (SIZE, SIZE))
    net.output(net.op("MatMul", x, net.weight("w", np.eye(SIZE, dtype=np.float32))), "y")
    image = net.input("image", "f32", (1, 64, 32, 32))
    kernel = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    net.output(net.op("Conv", image, net.weight("k", kernel), pads=(1, 1, 1, 1)), "z")
    return net


def tactics(engine: dovetail.Engine) -> dict[str, str]:
    """The tactic of each group by the kind of the group."""
    return {g["kind"]: g["tactic"] for g in engine.report().json()["groups"]}


def test_tactics_are_left_out_by_name_where_there_are_others() -> None:
    plain = tactics(dovetail.build(network(), tune=False, verify="off"))
    other = tactics(dovetail.build(network(), tune=False, verify="off", without=[plain["conv"], plain["matmul"]]))
    assert other["conv"] != plain["conv"] and other["matmul"] == plain["matmul"]


def test_times_are_kept_where_the_caller_says(tmp_path: Path) -> None:
    path = tmp_path / "times.jsonl"
    dovetail.build(network(), time_budget=60.0, verify="off", timing_cache=path)
    assert "gemm" in path.read_text()


def test_a_function_around_the_choice_sees_all_groups_and_may_decide() -> None:
    seen: list[str] = []

    def last(choose: Callable[..., Any]) -> Callable[..., Any]:
        def decide(groups: Sequence[tuple[Any, list[Any]]], target: Any, sizes: Mapping[str, int]) -> Any:
            seen.extend(group.kind for group, _ in groups)
            return choose([(group, able[-1:]) for group, able in groups], target, sizes)

        return decide

    plain = tactics(dovetail.build(network(), tune=False, verify="off"))
    other = tactics(dovetail.build(network(), tune=False, verify="off", selector=last))
    assert {"conv", "matmul"} <= set(seen) and other["conv"] != plain["conv"]
