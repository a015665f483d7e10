"""Imports LSTM, GRU and RNN as time-major ops with every activation and parameter spelled out."""

from __future__ import annotations

from typing import Any

from dovetail.frontend.onnx.contraction import require
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value
from dovetail.reference.recurrent import RECURRENT_ACTIVATIONS, activation_parameters

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _activations(ctx: Context, node: OnnxNode, directions: int) -> dict[str, Any]:
    """The activation attributes of all directions; given parameters go to the functions that take them, in order."""
    default = _DEFAULTS[node.op_type] * directions
    given = tuple(node.attr("activations") or default)
    if len(given) != len(default):
        ctx.unsupported(f"{len(given)} activations", f"give {len(default)} for this direction")
    unknown = [n for n in given if n.lower() not in RECURRENT_ACTIVATIONS]
    if unknown:
        ctx.unsupported(f"activation {unknown[0]!r}", f"use one of {', '.join(RECURRENT_ACTIVATIONS.values())}")
    names = [RECURRENT_ACTIVATIONS[n.lower()] for n in given]
    alphas, betas = list(node.attr("activation_alpha") or ()), list(node.attr("activation_beta") or ())
    alpha: list[float] = []
    beta: list[float] = []
    for name in names:
        takes = activation_parameters(name)
        alpha.append(float(alphas.pop(0) if alphas else takes[0]) if takes else 0.0)
        beta.append(float(betas.pop(0) if betas else takes[1]) if len(takes) > 1 else 0.0)
    return {"activations": names, "activation_alpha": alpha, "activation_beta": beta}


@onnx_op("LSTM", "GRU", "RNN")
def recurrent(ctx: Context, node: OnnxNode) -> Any:
    """LSTM, GRU and RNN of opsets 1 to 22; batch-major layout becomes Transposes around the op."""
    x, w, r = (require(ctx, node, i, name) for i, name in enumerate("XWR"))
    batch_major = bool(node.attr("layout", 0))
    direction = node.attr("direction", "forward")
    states: list[Value | None] = [node.input(5), node.input(6) if node.op_type == "LSTM" else None]
    if batch_major:
        x = ctx.emit("Transpose", x, perm=(1, 0, 2))
        states = [None if s is None else ctx.emit("Transpose", s, perm=(1, 0, 2)) for s in states]
    hidden = node.attr("hidden_size", r.tensor.shape[-1])
    if not isinstance(hidden, int):
        ctx.unsupported("hidden_size is neither given nor fixed by R", "give the hidden_size attribute")
    attrs: dict[str, Any] = {"hidden_size": hidden, "direction": direction, "clip": float(node.attr("clip", 0.0) or 0.0)}
    attrs |= _activations(ctx, node, 2 if direction == "bidirectional" else 1)
    inputs: list[Value | None] = [x, w, r, node.input(3), node.input(4), states[0]]
    if node.op_type == "LSTM":
        inputs += [states[1], node.input(7)]
        attrs["input_forget"] = bool(node.attr("input_forget", 0))
    if node.op_type == "GRU":
        attrs["linear_before_reset"] = bool(node.attr("linear_before_reset", 0))
    while inputs[-1] is None:
        inputs.pop()
    y, *finals = ctx.emit(node.op_type, *inputs, **attrs)
    if batch_major:
        y = ctx.emit("Transpose", y, perm=(2, 0, 1, 3))
        finals = [ctx.emit("Transpose", s, perm=(1, 0, 2)) for s in finals]
    return (y, *finals)
