"""The report of an export from TensorFlow: its operators before and after, inputs that were dropped, differences."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata

from dovetail.core.text import size_text
from dovetail.export.report import ExportReport
from dovetail.export.tensorflow_graphs import Frozen, operators
from dovetail.export.tensorflow_runtime import require_module
from dovetail.model.model import Model
from dovetail.model.proto_graph import all_nodes


@dataclass
class TensorflowReport(ExportReport):
    """What an export from TensorFlow did; `str` is for people, `json()` is plain data with stable keys.

    Attributes:
        kind: what the source was: "SavedModel", "Keras model", "frozen graph", "function", "TFLite model".
        source_operators: nodes of TensorFlow by operator, constants and placeholders left out, most frequent first.
        unused_inputs: inputs that nothing reads.
        unused_kept: whether the model still has them.
        untranslated: operators that stayed TensorFlow's, with the names of their nodes.
    """

    kind: str = ""
    source_operators: dict[str, int] = field(default_factory=dict)
    unused_inputs: list[str] = field(default_factory=list)
    unused_kept: bool = False
    untranslated: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        used = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [
            f"{self.source}: {self.kind} to opset {self.opset} ({used})",
            *(f"  input    {name}: {kind}" for name, kind in self.inputs.items()),
            *(f"  output   {name}: {kind}" for name, kind in self.outputs.items()),
            f"  weights  {self.weights} of {size_text(self.weights_bytes)}",
        ]
        for name in self.unused_inputs:
            lines.append(f"  unused   input {name}: nothing reads it; " + ("kept, as asked" if self.unused_kept else "dropped"))
        lines += ["", *_table(self.source_operators, self.operators), ""]
        width = max((len(d.output) for d in self.differences), default=0)
        lines += [
            f"  {'same' if d.relative_l2 <= self.tolerance else 'near'}     {d.output:<{width}}  relative L2 {d.relative_l2:.1e}, "
            f"max abs {d.max_abs:.1e}  (TensorFlow against {self.evaluator}; {d.case})"
            for d in self.differences
        ]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)


def _table(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Both counts beside each other, most frequent first."""
    rows = [("TensorFlow", "nodes", "ONNX", "nodes"), ("all", str(sum(before.values())), "all", str(sum(after.values())))]
    left, right = list(before.items()), list(after.items())
    for i in range(max(len(left), len(right))):
        a, b = (side[i] if i < len(side) else ("", "") for side in (left, right))
        rows.append((a[0], str(a[1]), b[0], str(b[1])))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [f"  {r[0]:<{widths[0]}} {r[1]:>{widths[1]}}   {r[2]:<{widths[2]}} {r[3]:>{widths[3]}}".rstrip() for r in rows]


def versions() -> dict[str, str]:
    """Of the packages that take part."""
    tensorflow = require_module("tensorflow").__version__
    return {"tensorflow": str(tensorflow), **{name: metadata.version(name) for name in ("tf2onnx", "onnx")}}


def source_operators(frozen: Frozen) -> dict[str, int]:
    """Operators of the graph that is converted, most frequent first."""
    counts = _lite_operators(frozen) if frozen.tflite is not None else operators(frozen.graph)
    return _ordered(counts)


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _lite_operators(frozen: Frozen) -> Counter[str]:
    assert frozen.tflite is not None
    schema = require_module("tf2onnx.tflite.Model").Model
    builtin = require_module("tf2onnx.tflite.BuiltinOperator").BuiltinOperator
    names = {value: name for name, value in vars(builtin).items() if isinstance(value, int)}
    model = schema.GetRootAsModel(frozen.tflite.read_bytes(), 0)
    counts: Counter[str] = Counter()
    for i in range(model.SubgraphsLength()):
        graph = model.Subgraphs(i)
        for j in range(graph.OperatorsLength()):
            code = model.OperatorCodes(graph.Operators(j).OpcodeIndex())
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            custom = code.CustomCode()
            counts[custom.decode() if custom else names.get(number, f"builtin {number}")] += 1
    return counts


def describe(report: ExportReport, model: Model) -> None:
    """Put inputs, outputs, operators and weights of a model into its report."""
    report.inputs = {b.name: _type_text(b) for b in model.inputs}
    report.outputs = {b.name: _type_text(b) for b in model.outputs}
    report.operators = _ordered(Counter(n.op_type for n in all_nodes(model.proto.graph)))
    report.weights = len(model.proto.graph.initializer)
    report.weights_bytes = sum(len(t.raw_data) or t.ByteSize() for t in model.proto.graph.initializer)


def _type_text(binding: object) -> str:
    text = str(binding)
    return text.split(":", 1)[1].strip() if ":" in text else text
