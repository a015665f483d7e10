"""What an export says: operators before and after, inputs that nothing reads, differences, refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
import tensorflow as tf

import dovetail
from dovetail import export
from dovetail.core.errors import ExportError, ModelError, UsageError
from dovetail.export import tensorflow_runtime


@tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, n) for n in ("used", "unused")])
def half_used(used, unused):
    """One of two inputs matters."""
    return {"y": tf.nn.relu(used) * 2.0}


def test_operators_before_and_after_are_a_table(cnn):
    report = export.tensorflow(cnn).report
    assert report.kind == "Keras model" and report.exporter == "tf2onnx"
    assert report.source_operators["DepthwiseConv2dNative"] == 2 and report.operators["Conv"] == 5
    lines = str(report).splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == ["TensorFlow", "nodes", "ONNX", "nodes"])
    assert lines[head + 1].split() == ["all", str(sum(report.source_operators.values())), "all", str(report.nodes)]
    assert any(line.split()[-2:] == ["Conv", "5"] for line in lines[head:])
    data = json.loads(json.dumps(report.json()))
    assert data["source_operators"] == report.source_operators and data["nodes"] == report.nodes
    assert data["differences"][0]["output"] == "probs" and set(data["seconds"]) == {"read", "convert", "compare"}


def test_unused_inputs_are_dropped_or_kept_and_said():
    dropped = export.tensorflow(half_used)
    assert [v.name for v in dropped.proto.graph.input] == ["used"]
    assert "unused   input unused: nothing reads it; dropped" in str(dropped.report)
    kept = export.tensorflow(half_used, keep_unused_inputs=True)
    assert [v.name for v in kept.proto.graph.input] == ["used", "unused"]
    assert "nothing reads it; kept, as asked" in str(kept.report) and kept.report.worst == 0
    dovetail.build(kept, tune=False)


def test_the_comparison_runs_on_seeded_or_given_inputs():
    assert "seed 3, batch=2" in export.tensorflow(half_used, seed=3).report.differences[0].case
    samples = {"used": np.ones((5, 4), np.float32), "unused": np.zeros((5, 4), np.float32)}
    assert export.tensorflow(half_used, samples=samples).report.differences[0].case == "the given inputs"
    with pytest.raises(UsageError, match=r"samples: got \['used'\], expected \['unused', 'used'\]"):
        export.tensorflow(half_used, samples={"used": samples["used"]})
    unchecked = export.tensorflow(half_used, check=False)
    assert not unchecked.report.differences and "not compared with TensorFlow: as asked" in str(unchecked.report)


def test_a_model_that_computes_something_else_is_refused():
    def wrong(op, x):
        return op.LeakyRelu(x, alpha=0.01)

    with export.symbolic("tf::Relu").use(wrong):
        told = r"does not compute what TensorFlow does: relative L2 difference of y 0\.0\d+ .*nothing was written"
        with pytest.raises(ExportError, match=told):
            export.tensorflow(half_used)
        assert 0 < export.tensorflow(half_used, tolerance=0.1).report.worst < 0.1


def test_half_precision_has_a_tolerance_of_its_own():
    @tf.function(input_signature=[tf.TensorSpec([8, 64], tf.float16, "x")])
    def function(x):
        return {"y": tf.nn.softmax(tf.matmul(x, tf.ones((64, 32), tf.float16)))}

    report = export.tensorflow(function).report
    assert report.tolerance == 1e-2 and report.worst <= 1e-2 and report.outputs == {"y": "f16[8, 32]"}


def test_strings_are_not_compared_and_that_is_said():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text"), tf.TensorSpec([None], tf.float32, "x")])
    def function(text, x):
        return {"same": tf.equal(text, "yes"), "y": x}

    report = export.tensorflow(function).report
    assert not report.differences and "input 'text' holds strings" in str(report)


def test_wrong_names_and_options_are_told(files, cnn, tmp_path):
    cases = [
        ({"source": files["pb"], "inputs": ["imag:0"]}, UsageError, "did you mean 'image:0'"),
        ({"source": files["pb"], "outputs": ["nothing"]}, UsageError, "--outputs: got 'nothing', expected the name of a tensor"),
        ({"source": cnn, "outputs": ["prob"]}, UsageError, "did you mean 'probs'"),
        ({"source": cnn, "shapes": {"picture": (1, 2, 3, 4)}}, UsageError, r"shapes: got 'picture', expected names of inputs: \['image'\]"),
        ({"source": cnn, "shapes": {"image": (1, 2, 3, 4)}}, UsageError, r"expected what fits \[\?,15,17,3\]"),
        ({"source": cnn, "dynamic": {"image": {1: "h"}}}, UsageError, "whose size TensorFlow fixed to 15"),
        ({"source": cnn, "dynamic": {"image": {7: "h"}}}, UsageError, "expected 0 to 3"),
        ({"source": cnn, "inputs_as_nchw": ["picture"]}, UsageError, "--inputs-as-nchw: got 'picture'"),
        ({"source": cnn, "opset": 7}, UsageError, "--opset: got 7, expected 9 to 18"),
        ({"source": cnn, "opset": 99}, UsageError, "`dovetail edit` converts"),
        ({"source": cnn, "signature": "serving_default"}, UsageError, "only a SavedModel has such names"),
        ({"source": cnn, "dequantize": True}, UsageError, "expected a TFLite model"),
        ({"source": files["keras"], "signature": "serve"}, UsageError, "only a SavedModel has those"),
        ({"source": files["tflite"], "shapes": {"image": (1, 15, 17, 3)}}, UsageError, "whose shapes are fixed"),
        ({"source": 3}, UsageError, "got a int, expected a Keras model"),
        ({"source": tmp_path}, ModelError, "without saved_model.pb"),
        ({"source": "tensorflow:nowhere"}, ModelError, "does not exist"),
    ]  # fmt: skip
    for arguments, kind, text in cases:
        with pytest.raises(kind, match=text):
            export.tensorflow(**arguments)


@pytest.mark.parametrize("suffix", [".pb", ".tflite", ".keras", ".h5", ".pbtxt"])
def test_files_that_are_no_models(tmp_path, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(b"\xff\x01 no model")
    with pytest.raises(ModelError, match=f"junk{suffix}"):
        export.tensorflow(path)


def test_a_damaged_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(ModelError, match=r"no SavedModel|does not load it"):
        export.tensorflow(tmp_path)


def test_a_missing_package_names_the_extra(monkeypatch, cnn):
    monkeypatch.setitem(sys.modules, "tf2onnx.constants", None)
    with pytest.raises(UsageError, match=r"pip install .*'dovetail\[tensorflow\]'"):
        export.tensorflow(cnn)


def test_nothing_is_written_to_stderr(cnn, capfd):
    with pytest.raises(ExportError):
        export.tensorflow(tf.function(lambda x: tf.raw_ops.Lgamma(x=x)), signature=[tf.TensorSpec([3], tf.float32)])
    export.tensorflow(cnn)
    assert capfd.readouterr().err == ""
    with tensorflow_runtime.quiet():
        print("dropped", file=sys.stderr)
    with tensorflow_runtime.quiet(verbose=True):
        print("seen", file=sys.stderr)
    assert capfd.readouterr().err == "seen\n"


def test_every_opset_that_is_offered_works(cnn):
    told = r"why: Opset 11 is required for half_pixel_centers[\s\S]*translates it from opset 11 on: --opset 11"
    with pytest.raises(ExportError, match=told):
        export.tensorflow(cnn, opset=9)
    for opset in (11, 13, 15, 17, 18):
        model = export.tensorflow(cnn, opset=opset)
        assert model.opset == opset and model.report.worst < 1e-5
        onnx.checker.check_model(model.proto, full_check=True)


def test_simplified_on_request(cnn):
    plain, small = export.tensorflow(cnn), export.tensorflow(cnn, simplify=True)
    assert small.report.nodes <= plain.report.nodes and small.report.worst < 1e-5
