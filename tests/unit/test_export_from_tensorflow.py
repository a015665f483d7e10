"""What the export from TensorFlow does without TensorFlow: it knows its models by their names, and says what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dovetail.cli import USAGE, main
from dovetail.export.tensorflow_sources import is_tensorflow


def test_models_of_tensorflow_are_known_by_name(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    for source in ("m.keras", "m.H5", "m.pb", "m.tflite", "tensorflow:anything", tmp_path / "saved", str(tmp_path / "saved")):
        assert is_tensorflow(source), source
    for source in ("torchvision:resnet50", "package.module:make", "m.onnx", "net.py:Net", "m.pt2", tmp_path, 3, object()):
        assert not is_tensorflow(source), source


def test_objects_are_known_by_the_modules_of_their_classes() -> None:
    made = type("Model", (), {"__module__": "keras.src.models.model"})
    assert is_tensorflow(type("Mine", (made,), {})()) and not is_tensorflow(type("Model", (), {"__module__": "mine"})())


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_without_tensorflow_the_error_names_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "m.keras"), "-o", str(tmp_path / "m.onnx")]) == USAGE
    assert "pip install 'dovetail[tensorflow]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_options_of_one_framework_are_refused_for_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "m.onnx")
    assert main(["export", "m.keras", "-o", out, "--weights", "w.pt"]) == USAGE
    assert "--weights: got a model of TensorFlow (m.keras), expected a model of PyTorch" in capsys.readouterr().err
    assert main(["export", "torchvision:resnet50", "-o", out, "--signature", "s", "--continue-on-error"]) == USAGE
    assert "--signature, --continue-on-error: got a model of PyTorch" in capsys.readouterr().err
