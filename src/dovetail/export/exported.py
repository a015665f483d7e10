"""The ONNX model that an export gives, with its report."""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from dovetail.export.report import ExportReport
from dovetail.model.model import Model


class ExportedModel(Model):
    """A `Model` that came from another library.

    Attributes:
        report: what the export did.
    """

    def __init__(
        self, proto: onnx.ModelProto, report: ExportReport, folder: str | os.PathLike[str] | None = None,
        scratch: TemporaryDirectory[Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(proto, folder)
        self.report = report
        self._scratch = scratch  # large weights stay in its files as long as the model lives

    def __repr__(self) -> str:
        return f"ExportedModel({self.report.source}, opset {self.report.opset}, {self.report.nodes} nodes)"
