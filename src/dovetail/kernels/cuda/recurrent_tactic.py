"""LSTM, GRU and RNN on a GPU, once legalisation has taken the product with the inputs out of them."""

from __future__ import annotations

from dovetail.codegen.tactic import ROW_MAJOR, ROWS, Config, Emitted, Group, Tactic, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dtypes import BF16, F16, F32, I32, I64
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda import recurrent
from dovetail.kernels.cuda.recurrent import ACTIVATIONS, GATES, Function, Recurrence
from dovetail.kernels.fused import attributes

_NAMES = ("x", "w", "r", "b", "lengths", "h", "c", "p")


@tactic
class Steps(Tactic):
    """A program per direction and sample walks through time."""

    name = "recurrent"
    device = "cuda"
    kinds = ("recurrent",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Projected inputs, floats of at most 32 bits, activations that have code."""
        anchor = group.anchor
        if anchor is None or anchor.op not in GATES or len(list(group.body.nodes)) != 1:
            return "the group is not one LSTM, GRU or RNN"
        if anchor.inputs[1] is not None:
            return "the inputs are not projected"
        lengths = anchor.inputs[4] if len(anchor.inputs) > 4 else None
        for value in (*anchor.operands, *anchor.outputs):
            if value is lengths:
                if value.tensor.dtype not in (I32, I64):
                    return f"lengths are {value.tensor.dtype}, expected i32 or i64"
            elif value.tensor.dtype not in (F16, BF16, F32):
                return f"{value.name} is {value.tensor.dtype}, expected f16, bf16 or f32"
        unknown = [name for name in attributes(anchor)["activations"] if name not in ACTIVATIONS]
        return f"activation {unknown[0]} has no code" if unknown else None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Contiguous rows of inputs, states and results; dense weights and biases."""
        anchor = group.anchor
        assert anchor is not None
        dense = {v.index for n, v in zip(_NAMES, anchor.inputs, strict=False) if v is not None and n in ("r", "b", "p")}
        wants = tuple(ROW_MAJOR if i in dense else ROWS for i in range(len(group.inputs)))
        return wants, (ROWS,) * len(group.outputs)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        return recurrent.emit(self._shape(group), CudaTarget.of(target), self.name)

    @staticmethod
    def _shape(group: Group) -> Recurrence:
        anchor = group.anchor
        assert anchor is not None
        attrs = attributes(anchor)
        positions = {n: v.index for n, v in zip(_NAMES, anchor.inputs, strict=False) if v is not None}

        def outer(name: str) -> TensorType | None:
            return group.inputs[positions[name]].tensor if name in positions else None

        functions: list[Function] = [
            (name, float(alpha), float(beta))
            for name, alpha, beta in zip(attrs["activations"], attrs["activation_alpha"], attrs["activation_beta"], strict=True)
        ]
        per = len(functions) // (2 if attrs["direction"] == "bidirectional" else 1)
        x, r = outer("x"), outer("r")
        assert x is not None and r is not None
        return Recurrence(
            anchor.op, tuple(tuple(functions[n : n + per]) for n in range(0, len(functions), per)), x, r, outer("b"),
            outer("lengths"), outer("h"), outer("c"), outer("p"), positions, tuple(v.tensor for v in group.outputs),
            attrs["hidden_size"], attrs["direction"] == "reverse", float(attrs["clip"]), bool(attrs.get("input_forget", False)),
            bool(attrs.get("linear_before_reset", False)),
        )  # fmt: skip
