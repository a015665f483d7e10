"""`dovetail.Model`: an ONNX model to look at, change and write."""

from __future__ import annotations

import os
from pathlib import Path

import onnx

from dovetail.frontend.reader import OnnxSource, read_model


class Model(OnnxSource):
    """An ONNX model in memory; weights that are stored in other files stay there until they are needed."""

    def __init__(self, proto: onnx.ModelProto, folder: str | os.PathLike[str] | None = None) -> None:
        self._proto = proto
        self._folder = None if folder is None else Path(folder)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Model:
        """Read a model from a path, bytes or a ModelProto (which is used as it is, not copied).

        Raises:
            ModelError: missing file, or not an ONNX model.
        """
        return cls(*read_model(source))

    @property
    def proto(self) -> onnx.ModelProto:
        """The model's proto."""
        return self._proto

    @property
    def folder(self) -> Path | None:
        """Where the files of external weights are; None where there are none."""
        return self._folder
