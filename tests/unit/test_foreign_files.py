"""Files that are given as ONNX models and are none: the error says what they are and the way to a model."""

import io
import zipfile

import pytest

from dovetail.core.errors import ModelError
from dovetail.frontend.reader import read_model


def zipped(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.onnx", b"", r"empty\.onnx: got no data \(0 bytes\), expected an ONNX model"),
        ("text.onnx", b"hello world\n", r"text\.onnx: got data that is not an ONNX model .*cut off or of another kind"),
        ("engine.plan", zipped("manifest.json", "graph.ir"), "got an engine, expected an ONNX model; give the model"),
        ("net.pt", zipped("net/data.pkl"), r"a file of PyTorch.*dovetail export package.module:callable --weights \S+net\.pt"),
        ("net.pt2", zipped("net/archive_format"), r"a program of PyTorch.*dovetail export \S+net\.pt2 -o net\.onnx"),
        ("net.keras", zipped("config.json"), r"a Keras model.*dovetail export \S+net\.keras -o net\.onnx"),
        ("net.tflite", b"\x1c\x00\x00\x00TFL3", r"a TFLite model.*dovetail export \S+net\.tflite"),
        ("w.npz", zipped("w.npy"), "got weights alone.*dovetail refit"),
    ],
    ids=["empty", "text", "engine", "torch", "program", "keras", "tflite", "weights"],  # zips hold the time, and workers would differ
)
def test_what_a_file_is_and_what_to_do(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_folders(tmp_path):
    with pytest.raises(ModelError, match="got a folder, expected an ONNX file"):
        read_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"a SavedModel of TensorFlow.*dovetail export"):
        read_model(tmp_path)


def test_bytes_of_a_caller():
    with pytest.raises(ModelError, match=r"model: got no data \(0 bytes\)"):
        read_model(b"")
