"""`dovetail edit`: every verb on the command line, its exit codes, and the commands of docs/edit.md."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dovetail
from dovetail.cli.edit_verbs import EDITS
from dovetail.model.rules import unregister
from dovetail.plugins import unregister as forget
from tests.example_files import write_example

RULES = """
import dovetail


@dovetail.rewrite(lambda op, x: op.Relu(x))
def relu_as_max(op, x):
    return op.Max(x, 0.0)
"""
TWICE = """
import dovetail


@dovetail.plugin("EditTestTwice")
def twice(x):
    return x + x


@twice.shape
def shape(x):
    return x.shape
"""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "edit.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page describes."""
    write_example(tmp_path)
    (tmp_path / "rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.strip()]


def test_the_page_shows_every_verb() -> None:
    assert {command[1] for command in commands()} == set(EDITS)


def test_the_commands_of_the_page_work(folder: Path, call: Callable) -> None:
    try:
        for command in commands():
            outcome = call(*command)
            assert outcome.code == 0, (command, outcome.err)
            written = command[command.index("-o") + 1]
            assert f"{written}: checked by onnx; " in outcome.out
            if command[1] == "rewrite":
                assert "rewrite rules: relu_as_max x1" in outcome.out
    finally:
        unregister("relu_as_max")
    made = [n.op_type for n in onnx.load("rewritten.onnx").graph.node]
    assert "Max" in made and "Relu" not in made
    onnx.checker.check_model("whole.onnx", full_check=True)
    assert (folder / "bare.onnx").stat().st_size < 2048 < (folder / "model.onnx").stat().st_size
    assert (folder / "apart.onnx.data").is_file()
    assert onnx.load("together.onnx").graph == onnx.load("model.onnx").graph
    assert not [p for p in folder.iterdir() if ".tmp" in p.name]


def test_what_changed_is_printed_and_given_as_json(model: Path, tmp_path: Path, call: Callable) -> None:
    arguments = ("edit", "io-layout", model, "-o", tmp_path / "new.onnx", "x=NHWC")
    text = call(*arguments).out
    assert re.search(r"\| nodes +\| 6 +\| 7 +\|", text)
    assert re.search(r"\| +Transpose +\| 0 +\| 1 +\|", text)
    assert re.search(r"\| input x +\| float\[N,3,16,16\] +\| float\[N,16,16,3\] +\|", text)
    assert "checked by onnx; compared with the original: largest relative difference" in text
    data = call(*arguments, "--json").json
    assert data["nodes"] == [6, 7] and data["operators"] == {"Transpose": [0, 1]} and data["max_relative_error"] < 1e-6
    assert data["inputs"] == [{"x": "float[N,3,16,16]"}, {"x": "float[N,16,16,3]"}]
    unchecked = call(*arguments, "--json", "--no-check").json
    assert unchecked["max_relative_error"] is None


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["extract", "MODEL", "--outputs", "q"], 2, "got 'q'"),
        (["extract", "MODEL", "--inputs", "conv.weight", "--outputs", "y"], 2, "still needed is 'x' by way of 'c'"),
        (["extract", "nowhere.onnx", "--outputs", "y"], 1, "nowhere.onnx: cannot be read"),
        (["replace", "MODEL", "--inputs", "c", "--outputs", "r"], 2, "expected --inputs and --outputs with --op or --with"),
        (["replace", "MODEL", "--op-type", "Relu"], 2, "--op-type takes --op"),
        (["replace", "MODEL", "--inputs", "c", "--outputs", "r", "--op", "Reluu"], 2, "did you mean"),
        (["insert", "MODEL", "--on", "r"], 2, "expected --op or --qdq"),
        (["insert", "MODEL", "--on", "r", "--op", "Cast", "--attr", "to=float17"], 2, "got the element type 'float17'"),
        (["insert", "MODEL", "--on", "r", "--op", "Mul", "--extra", "=half"], 2, "expected a name, or a number"),
        (["delete", "MODEL", "--nodes", "/fc"], 2, "leaves 'y' open"),
        (["rename", "MODEL", "--tensors", "x"], 2, "expected OLD=NEW"),
        (["set-dtype", "MODEL", "--io", "float16", "int8"], 2, "expected one type for all"),
        (["convert-opset", "MODEL", "--opset", "5"], 2, "got opset 5, expected 7 to"),
        (["freeze", "MODEL", "--values", "nowhere.npz"], 1, "nowhere.npz"),
        (["restore", "MODEL", "--weights", "MODEL"], 2, "there is nothing to restore"),
        (["mend", "MODEL"], 2, "invalid choice"),
        ([], 2, "required: VERB"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    arguments: list[str], code: int, message: str, model: Path, tmp_path: Path, call: Callable
) -> None:
    target = tmp_path / "new.onnx"
    filled = [str(model) if a == "MODEL" else a for a in arguments]
    outcome = call("edit", *filled, *(["-o", target] if filled else []))
    assert outcome.code == code and message in outcome.err and "Traceback" not in outcome.err
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]


def test_output_in_no_folder(model: Path, tmp_path: Path, call: Callable) -> None:
    outcome = call("edit", "rename", model, "-o", tmp_path / "no" / "new.onnx", "--tensors", "x=a")
    assert outcome.code == 2 and "expected a file in a folder that exists" in outcome.err


def test_an_edit_that_changes_the_meaning_is_refused(tmp_path: Path, call: Callable) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "mixed.onnx")
    arguments = ("edit", "batch", tmp_path / "mixed.onnx", "-o", tmp_path / "new.onnx", "--size", "N")
    outcome = call(*arguments)
    assert outcome.code == 1 and "the model mixes its samples" in outcome.err and not (tmp_path / "new.onnx").exists()
    assert call(*arguments, "--no-check").code == 0


def test_a_model_may_be_edited_in_place_with_weights_in_a_file(model: Path, tmp_path: Path, call: Callable) -> None:
    assert call("edit", "externalise", model, "-o", tmp_path / "m.onnx").code == 0
    assert call("edit", "rename", tmp_path / "m.onnx", "-o", tmp_path / "m.onnx", "--tensors", "conv.weight=stem").code == 0
    edited = dovetail.Model.load(tmp_path / "m.onnx")
    original = dovetail.Model.load(model)
    assert np.array_equal(edited.weights["stem"], original.weights["conv.weight"])
    assert {p.name for p in tmp_path.iterdir()} == {"small.onnx", "m.onnx", "m.onnx.data"}


def test_stripped_models_say_what_to_do(model: Path, tmp_path: Path, call: Callable) -> None:
    bare = tmp_path / "bare.onnx"
    assert call("edit", "strip", model, "-o", bare).code == 0
    outcome = call("build", bare, "-o", tmp_path / "bare.plan", "-q")
    assert outcome.code == 1 and "its values were stripped; put them back: dovetail edit restore" in outcome.err
    original = dovetail.Model.load(model)
    np.savez(tmp_path / "w.npz", **{name: original.weights[name] for name in original.weights})
    assert call("edit", "restore", bare, "-o", tmp_path / "whole.onnx", "--weights", tmp_path / "w.npz").code == 0
    assert onnx.load(tmp_path / "whole.onnx").graph == onnx.load(model).graph
    np.savez(tmp_path / "other.npz", **{"conv.weight": original.weights["conv.weight"] + 1})
    arguments = ("edit", "restore", bare, "-o", tmp_path / "other.onnx", "--weights", tmp_path / "other.npz")
    outcome = call(*arguments, "--json")
    assert outcome.code == 2 and "has other values than were stripped" in json.loads(outcome.out)["error"]["message"]
    assert call(*arguments, "--no-hash").code == 0


def test_weights_of_strings_move_too(tmp_path: Path, call: Callable) -> None:
    nodes = [helper.make_node("Gather", ["words", "i"], ["y"])]
    words = helper.make_tensor("words", TensorProto.STRING, [2], [b"yes", b"no"])
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("i", TensorProto.INT64, [1])],
                              [helper.make_tensor_value_info("y", TensorProto.STRING, [1])], [words])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "words.onnx")
    outcome = call("edit", "inline", tmp_path / "words.onnx", "-o", tmp_path / "new.onnx")
    assert outcome.code == 0 and "all 1 weights are the original's" in outcome.out
    assert call("edit", "rename", tmp_path / "words.onnx", "-o", tmp_path / "new.onnx", "--tensors", "i=which").code == 0


@pytest.mark.parametrize("place", ["before", "after"])
def test_plugins_are_known_before_and_after_the_inner_verb(place: str, model: Path, tmp_path: Path, call: Callable) -> None:
    (tmp_path / "mine.py").write_text(TWICE)
    extra = ["--plugins", tmp_path / "mine.py"]
    custom = tmp_path / "custom.onnx"
    arguments = ["--inputs", "b", "--outputs", "r", "--op", "EditTestTwice", "--domain", "my"]
    try:
        assert call("edit", "replace", model, "-o", custom, *arguments).code == 0
        rename = ["rename", custom, "-o", tmp_path / "new.onnx", "--tensors", "x=image"]
        outcome = call("edit", *extra, *rename) if place == "before" else call("edit", *rename, *extra)
        assert outcome.code == 0 and "compared with the original" in outcome.out, outcome.err
    finally:
        forget("EditTestTwice")
