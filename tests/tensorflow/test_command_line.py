"""`dovetail export` on models of TensorFlow: options, exit codes, files whole or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dovetail.cli import FAILED, OK, USAGE, main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test writes to a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["keras", "h5", "saved", "pb", "tflite"])
def test_every_kind_exports_and_builds(kind, files, capsys):
    assert main(["export", str(files[kind]), "-o", "m.onnx", "-q"]) == OK
    text = capsys.readouterr().out
    assert "same " in text and "TensorFlow" in text and text.strip().splitlines()[-1].startswith("m.onnx: ")
    assert main(["build", "m.onnx", "-o", "m.plan", "--no-tune", "-q"]) == OK


def test_options_of_a_frozen_graph_and_json(files, capsys, picture):
    np.savez("x.npz", image=picture[:1])
    command = ["export", f"tensorflow:{files['pb']}", "-o", "m.onnx", "--json", "--opset", "15"]
    assert main([*command, "--inputs", "image:0", "--outputs", "Identity_1:0", "--shapes", "image:[1,15,17,3]"]) == OK
    data = json.loads(capsys.readouterr().out)
    assert data["inputs"] == {"image": "f32[1, 15, 17, 3]"} and data["outputs"] == {"Identity_1": "f32[1, 5]"}
    assert data["opset"] == 15 and data["file"] == "m.onnx" and data["bytes"] > 0
    assert main([*command, "--inputs", "x.npz", "--dynamic", "image:0=pictures"]) == OK
    data = json.loads(capsys.readouterr().out)
    assert data["differences"][0]["case"] == "the given inputs" and data["inputs"] == {"image": "f32[pictures, 15, 17, 3]"}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--opset", "40"], USAGE, "--opset: got 40"),
        (["--signature", "other"], USAGE, "did you mean|expected the name of one of those"),
        (["--tag", "gpu"], USAGE, "--tag: got gpu"),
        (["--exporter", "torchscript"], USAGE, "--exporter: got a model of TensorFlow .* expected a model of PyTorch"),
        (["--dynamic", "image=batch"], USAGE, "expected INPUT:AXIS=NAME"),
        (["--inputs-as-nchw", "x"], USAGE, "--inputs-as-nchw: got 'x'"),
        (["--inputs", ","], USAGE, "expected names with commas between"),
        (["--tolerance", "1e-20"], FAILED, "does not compute what TensorFlow does"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(arguments, code, text, files, folder, capsys):
    import re

    assert main(["export", str(files["saved"]), "-o", "m.onnx", *arguments]) == code
    assert re.search(text, capsys.readouterr().err)
    assert not list(folder.iterdir())


def test_operators_of_ones_own_come_from_a_file(folder, capsys, files):
    import tensorflow as tf

    from dovetail import plugins

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        tf.raw_ops.Digamma(x=tf.abs(x) + 1.0, name="y")
    (folder / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    assert main(["export", "g.pb", "-o", "m.onnx"]) == FAILED
    assert "Digamma: 1 node, y" in capsys.readouterr().err and not (folder / "m.onnx").exists()
    (folder / "mine.py").write_text(
        "import dovetail, numpy as np, tensorflow as tf\n"
        "@dovetail.plugin('Digamma')\n"
        "def digamma(x: np.ndarray) -> np.ndarray:\n"
        "    return tf.math.digamma(x).numpy()\n"
    )
    assert main(["export", "g.pb", "-o", "m.onnx", "--continue-on-error", "--plugins", "mine.py"]) == OK
    assert "same     y" in capsys.readouterr().out
    np.savez("x.npz", x=np.full((2, 4), 3, np.float32))
    assert main(["run", "m.onnx", "--inputs", "x.npz", "--outputs", "y.npz", "--plugins", "mine.py", "-q"]) == OK
    assert np.allclose(np.load("y.npz")["y"], tf.math.digamma(4.0).numpy())
    assert "Digamma" in {p.key.name for p in plugins.registered()}
