"""What an export did: exporter, opset, inputs, names, and how far the model is from the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dovetail.core.text import size_text
from dovetail.model.equivalence import difference


@dataclass(frozen=True)
class Difference:
    """How far an output of the ONNX model is from the same output of the original.

    Attributes:
        output: name in the ONNX model.
        case: "example inputs", or the other sizes that dynamic axes had.
        relative_l2: ||onnx - original|| / ||original||; inf where shapes, types or the places of NaN differ.
        max_abs: the largest absolute difference.
    """

    output: str
    case: str
    relative_l2: float
    max_abs: float

    @classmethod
    def between(cls, output: str, case: str, want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> Difference:
        """How far `got` is from `want`."""
        relative = difference(want, got)
        if want.shape != got.shape or want.dtype != got.dtype:
            return cls(output, case, relative, float("inf"))
        if want.dtype.kind not in "fiuV":
            return cls(output, case, relative, 0.0 if relative == 0 else float("inf"))
        a, b = want.astype(np.float64), got.astype(np.float64)
        known = np.isfinite(a) & np.isfinite(b)
        return cls(output, case, relative, float(np.abs(a[known] - b[known]).max(initial=0.0)))


@dataclass
class ExportReport:
    """The report of an export; `str` is for people, `json()` is plain data with stable keys.

    Attributes:
        source: what was exported.
        exporter: "dynamo" or "torchscript" for PyTorch; what wrote the model.
        versions: of the libraries that took part.
        opset: of ONNX's operators in the model.
        inputs, outputs: name and type, such as "f32[batch,3,224,224]".
        operators: nodes by operator, most frequent first.
        weights: number of initializers that are the original's parameters and buffers, under its names.
        weights_bytes: size of all initializers.
        renamed: parameters and buffers of the original that the model has under no name, or under another.
        evaluator: what ran the ONNX model in the comparison; "" where nothing was compared.
        tolerance: relative L2 difference up to which an output counts as equal.
        differences: one for each output and case.
        notes: what the user should know: modes switched, fallbacks, warnings.
        seconds: time of each stage.
    """

    source: str
    exporter: str
    versions: dict[str, str]
    opset: int
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    weights_bytes: int = 0
    renamed: list[str] = field(default_factory=list)
    evaluator: str = ""
    tolerance: float = 0.0
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.operators.values())

    @property
    def worst(self) -> float:
        """The largest relative L2 difference; NaN where nothing was compared."""
        return max((d.relative_l2 for d in self.differences), default=float("nan"))

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys; a difference that is not finite is text."""
        data = asdict(self)
        for row in data["differences"]:
            row.update({k: str(v) for k, v in row.items() if isinstance(v, float) and not np.isfinite(v)})
        return data | {"nodes": self.nodes}

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [
            f"{self.source}: opset {self.opset}, {self.nodes} nodes, by the {self.exporter} exporter ({versions})",
            *(f"  input    {name}: {kind}" for name, kind in self.inputs.items()),
            *(f"  output   {name}: {kind}" for name, kind in self.outputs.items()),
            f"  weights  {self.weights} under the original's names, {size_text(self.weights_bytes)}" + self._renamed(),
            "  nodes    " + ", ".join(f"{op} {count}" for op, count in self.operators.items()),
        ]
        width = max((len(d.output) for d in self.differences), default=0)
        lines += [
            f"  {'same' if d.relative_l2 <= self.tolerance else 'near'}     {d.output:<{width}}  relative L2 {d.relative_l2:.1e}, "
            f"max abs {d.max_abs:.1e}  ({d.case}, against {self.evaluator})"
            for d in self.differences
        ]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)

    def _renamed(self) -> str:
        if not self.renamed:
            return ""
        more = f" and {len(self.renamed) - 3} more" if len(self.renamed) > 3 else ""
        return f"; not under their names: {', '.join(self.renamed[:3])}{more}"
