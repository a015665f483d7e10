"""The layers of an engine: its steps, named after the network's layers that each computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dovetail.api.engine import Engine
from dovetail.tensorrt.record import Record
from dovetail.view.steps import StepInfo, steps

# Of several layers in one step, the one that it is called after, by what costs most.
_HEAVY = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED", "EINSUM", "NORMALIZATION", "SOFTMAX", "REDUCE", "POOLING")
_OPS = {
    "Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY",
    "Softmax": "SOFTMAX", "MaxPool": "POOLING", "AveragePool": "POOLING", "Concat": "CONCATENATION", "TopK": "TOPK",
    "Reshape": "SHUFFLE", "Transpose": "SHUFFLE", "Slice": "SLICE", "Gather": "GATHER", "Resize": "RESIZE", "NonZero": "NON_ZERO",
    "Cast": "CAST", "Pad": "PADDING", "Where": "SELECT", "Attention": "ATTENTION_INPUT", "Copy": "REFORMAT", "Plugin": "PLUGIN_V3",
}  # fmt: skip


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine: its unique name, its type as a word, the metadata of the network's layers, the step itself."""

    name: str
    type: str
    metadata: str
    step: StepInfo

    @property
    def key(self) -> tuple[tuple[str, ...], str, str]:
        """What records of times call it."""
        return self.step.origin, self.step.tactic, self.step.kernel


def layers_of(engine: Engine, record: Record) -> list[EngineLayer]:
    """The layers of an engine, in the order of a run."""
    known = {layer.name: layer for layer in record.layers}
    seen: Counter[str] = Counter()
    found = []
    for step in steps(engine.plan, engine.graph):
        name = " + ".join(step.origin) or f"Reformat {step.kernel}"
        seen[name] += 1
        mine = [known[n] for n in step.origin if n in known]
        types = [layer.type for layer in mine] or [_OPS.get(op, op) for op in step.ops] or ["REFORMAT"]
        unique = name if seen[name] == 1 else f"{name} #{seen[name]}"
        metadata = "\x1e".join(layer.metadata for layer in mine if layer.metadata)
        found.append(EngineLayer(unique, _word(_heaviest(types)), metadata, step))
    return found


def _heaviest(types: list[str]) -> str:
    return next((heavy for heavy in _HEAVY if heavy in types), types[-1])


def _word(name: str) -> str:
    """`MATRIX_MULTIPLY` as `MatrixMultiply`; ops keep their names."""
    return "".join(part.capitalize() for part in name.split("_")) if name.isupper() else name
