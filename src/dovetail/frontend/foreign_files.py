"""What a file is that was given as an ONNX model and is none: said by its contents and its name, with the way to a model."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

_TENSORFLOW = {".keras": "a Keras model", ".h5": "a Keras model", ".pb": "a graph of TensorFlow", ".tflite": "a TFLite model"}
_TORCH = {".pt", ".pth", ".bin", ".ckpt"}


def describe_folder(path: Path) -> str:
    """What a folder is, what was expected and what to do, as the end of a message."""
    if (path / "saved_model.pb").exists() or (path / "saved_model.pbtxt").exists():
        return f"got a SavedModel of TensorFlow, {_export(path)}"
    return "got a folder, expected an ONNX file; give the file in it"


def describe_file(path: Path | None, data: bytes, reason: str) -> str:
    """What data are that are no ONNX model, what was expected and what to do, as the end of a message.

    Args:
        path: where they were read; None for bytes of a caller.
        data: all of them.
        reason: what their parser says.
    """
    if not data:
        return "got no data (0 bytes), expected an ONNX model; write or copy the file again"
    suffix = path.suffix.lower() if path is not None else ""
    members = _members(data)
    if {"manifest.json", "graph.ir"} <= members:
        return "got an engine, expected an ONNX model; give the model that it was built from"
    if path is not None and (suffix == ".pt2" or any(m.endswith("archive_format") for m in members)):
        return f"got a program of PyTorch (torch.export), {_export(path)}"
    if suffix in _TORCH or any(m.endswith("data.pkl") for m in members):
        return (
            "got a file of PyTorch, expected an ONNX model; export the module that it belongs to: dovetail export "
            f"package.module:callable --weights {path or 'FILE'} -o model.onnx"
        )
    if path is not None and suffix in _TENSORFLOW:
        return f"got {_TENSORFLOW[suffix]}, {_export(path)}"
    if suffix in (".safetensors", ".npz"):
        return "got weights alone, expected an ONNX model; give the model, and these to dovetail refit"
    return f"got data that is not an ONNX model ({reason}); the file may be cut off or of another kind, export or copy the model again"


def _export(path: Path) -> str:
    return f"expected an ONNX model; export it first: dovetail export {path} -o {path.stem or 'model'}.onnx"


def _members(data: bytes) -> set[str]:
    """Names in a zip container; none in other data and in broken ones."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return set()
