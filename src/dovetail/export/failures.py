"""What a failed export says: the reason that the exporter has deep inside, in place of its chain of errors."""

from __future__ import annotations

from typing import Any

from dovetail.core.errors import ExportError


def explain(error: BaseException, *, exporter: str, opset: int, module: Any) -> ExportError:
    """The error to raise for what an exporter of PyTorch raised.

    Args:
        error: what it raised.
        exporter: "dynamo" or "torchscript".
        opset: that was asked for.
        module: what was exported.
    """
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    lines = [line for line in str(root).strip().splitlines() if line.strip()] or [type(root).__name__]
    return ExportError(f"{type(module).__name__}: the {exporter} exporter fails at opset {opset}: {lines[0]}")
