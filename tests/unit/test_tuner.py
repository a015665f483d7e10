"""The tuner: records, timings, decisions, and builds that repeat them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail import builder
from dovetail.builder.options import BuildOptions
from dovetail.builder.select import fusions
from dovetail.codegen.tactic import Group, require
from dovetail.codegen.target import Target
from dovetail.core.dtypes import F32
from dovetail.core.errors import UsageError
from dovetail.core.records import RecordFile
from dovetail.ir.layout import Layout, strided
from dovetail.ir.types import TensorType
from dovetail.passes.fuse import group_of
from dovetail.tuner.choose import Tuner, candidates, decide
from dovetail.tuner.launch import place
from dovetail.tuner.measure import Candidate
from dovetail.tuner.timing_cache import TimingCache, timing_key
from tests.unit.small_models import model


def test_records_survive_damage_and_merge(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    first = RecordFile(path)
    first.put("a", {"us": 1})
    first.put("b", {"us": 2})
    first.flush()
    with path.open("a") as file:
        file.write('{"key": "c", "us": 3')  # a writer that was killed
    second = RecordFile(path)
    assert sorted(second) == ["a", "b"] and second.get("a") == {"us": 1} and second.get("c") is None
    second.put("a", {"us": 9})
    second.flush()
    assert RecordFile(path).get("a") == {"us": 9} and len(RecordFile(path)) == 2
    other = RecordFile(tmp_path / "other.jsonl")
    assert other.merge(path) == 2 and other.merge(path) == 0
    other.export(tmp_path / "out.jsonl")
    assert sorted(RecordFile(tmp_path / "out.jsonl")) == ["a", "b"]
    with pytest.raises(UsageError, match="nowhere"):
        other.merge(tmp_path / "nowhere")


def _append(path: Path, name: str) -> None:
    for i in range(50):
        file = RecordFile(path)
        file.put(f"{name}{i}", {"us": i})
        file.flush()


def test_processes_share_a_record_file_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(path, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(RecordFile(path)) == 100


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    records = RecordFile(blocked / "r.jsonl")
    records.put("a", {})
    records.flush()
    assert records.get("a") == {}


def conv_model() -> bytes:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Conv", ["a", "w2"], ["y"], pads=[1, 1, 1, 1], name="second"),
    ]
    weights = {n: rng.standard_normal((32, 32, 3, 3), np.float32) for n in ("w1", "w2")}
    return model(nodes, {"x": ["N", 32, 20, 20]}, {"y": ["N", 32, 20, 20]}, weights).SerializeToString()


@pytest.fixture(scope="module")
def groups() -> list[tuple[Group, list[Candidate]]]:
    """The two (equal) convolutions with their candidates, before selection."""
    found: list[tuple[Group, list[Candidate]]] = []
    target = Target.host()

    def after(name: str, module: object) -> None:
        if name == "layout":
            for node in fusions(module.main):  # type: ignore[attr-defined]
                if node.attrs["kind"] == "conv":
                    group = group_of(node)
                    found.append((group, candidates(group, require(group, target), target)))

    builder.build(conv_model(), BuildOptions(verify="off"), after=after)
    return found


def test_equal_groups_have_equal_keys_and_several_candidates(groups: list[tuple[Group, list[Candidate]]]) -> None:
    target = Target.host()
    keys = {timing_key(g, {"N": 1}, target, 2) for g, _ in groups}
    assert len(groups) == 2 and len(keys) == 1
    assert timing_key(groups[0][0], {"N": 2}, target, 2) not in keys
    assert timing_key(groups[0][0], {"N": 1}, target, 1) not in keys
    names = [c.name for c in groups[0][1]]
    assert len(set(names)) == len(names) >= 2 and not any(n.startswith("loop") for n in names)


def test_the_fastest_wins_and_ties_keep_the_order(groups: list[tuple[Group, list[Candidate]]]) -> None:
    found = groups[0][1]
    names = [c.name for c in found]
    slow = dict.fromkeys(names, 100.0)

    def chosen(times: dict[str, float]) -> str:
        tactic, config, _ = decide(found, times)
        return Candidate(tactic, config).name

    assert chosen(slow | {names[1]: 50.0}) == names[1]
    assert chosen(slow | {names[1]: 98.0}) == names[0]  # within the noise
    assert chosen({names[1]: 1.0}) == names[0]  # incomplete times decide nothing
    assert chosen({}) == names[0]


def test_tuning_measures_once_and_repeats_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timings.jsonl"
    options = BuildOptions(verify="off")
    first = builder.build(conv_model(), options, choose=Tuner(1, 60.0, TimingCache(path)))
    convs = [c for c in first.choices.values() if c.group.kind == "conv"]
    assert len(convs) == 2 and all(len(c.measured_us) >= 2 for c in convs)
    assert all(us > 0 for c in convs for _, us in c.measured_us)
    assert len(RecordFile(path)) == 1
    monkeypatch.setattr("dovetail.tuner.choose.measure", lambda *a: pytest.fail("measured again"))
    second = builder.build(conv_model(), options, choose=Tuner(1, 60.0, TimingCache(path)))
    assert [(c.tactic.name, c.config, c.measured_us) for c in second.choices.values()] == [
        (c.tactic.name, c.config, c.measured_us) for c in first.choices.values()
    ]
    assert second.source == first.source


def test_without_a_budget_the_rule_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.tuner.choose.measure", lambda *a: pytest.fail("measured"))
    tuned = builder.build(conv_model(), BuildOptions(verify="off"), choose=Tuner(1, -1.0, TimingCache(tmp_path / "t")))
    ruled = builder.build(conv_model(), BuildOptions(verify="off"))
    assert [c.tactic.name for c in tuned.choices.values()] == [c.tactic.name for c in ruled.choices.values()]


def test_strict_fp32_leaves_no_transformed_convolution() -> None:
    def tactics(strict: bool) -> dict[str, int]:
        return dovetail.build(conv_model(), verify="off", tune=False, strict_fp32=strict).report().tactics

    assert "winograd" in tactics(False) and "winograd" not in tactics(True)
    report = dovetail.build(conv_model(), verify="off", strict_fp32=True).report().json()
    assert any("winograd: strict_fp32 forbids it" in g["rejected"] for g in report["groups"])


def test_a_tuned_engine_is_right() -> None:
    engine = dovetail.build(conv_model(), verify="full", time_budget=5.0)
    assert engine.certificate["engine"]["checked"]


@pytest.mark.parametrize(
    "layout",
    [
        Layout((0, 2, 1)),
        Layout((0, 1, 2), halo=((0, 0), (1, 2), (0, 3)), fill=7.0),
        Layout((0, 2, 1), pitch=9, offset=2),
        strided((30, -5, 1), 25),
        strided((0, 5, 1), 3),
    ],
    ids=str,
)
def test_operands_lie_as_their_layout_says(layout: Layout) -> None:
    type_ = TensorType(F32, (2, 4, 5), layout)
    data = np.arange(40, dtype=np.float32).reshape(2, 4, 5)
    if layout.explicit is not None and 0 in layout.explicit:
        data[1] = data[0]
    placed = place(type_, {}, data)
    assert np.array_equal(placed.array, data) and placed.intact()
    assert [s // 4 for s in placed.array.strides] == list(layout.strides((2, 4, 5)))
    offset = layout.base((2, 4, 5))
    assert isinstance(offset, int) and placed.address % 64 == offset * 4 % 64
    if layout.halo:
        inside = placed.memory[placed.low : placed.high].view(np.float32)
        assert (inside == 7.0).sum() == inside.size - 40 + 1  # 7 is an element too
    placed.memory[placed.high] = 0
    assert not placed.intact()
