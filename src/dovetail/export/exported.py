"""The ONNX model that an export gives, with its report."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

import onnx

from dovetail.export.report import ExportReport
from dovetail.model.model import Model


class Scratch:
    """A folder that lasts as long as this object.

    Attributes:
        path: of the folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dovetail-export-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, True)

    def remove(self) -> None:
        """Remove it now."""
        self._finalizer()


class ExportedModel(Model):
    """A `Model` that came from another library.

    Attributes:
        report: what the export did.
    """

    def __init__(
        self, proto: onnx.ModelProto, report: ExportReport, folder: str | os.PathLike[str] | None = None, scratch: Scratch | None = None
    ) -> None:
        super().__init__(proto, folder)
        self.report = report
        self._scratch = scratch  # large weights stay in its files as long as the model lives

    def __repr__(self) -> str:
        return f"ExportedModel({self.report.source}, opset {self.report.opset}, {self.report.nodes} nodes)"
