"""LSTM, GRU and RNN over time-major input.

Without `w`, which only the compiler writes, x holds the products with it already: [T, B, D * gates * H].
"""

from __future__ import annotations

from dovetail.core.dims import Dim
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.contraction import same_dim, same_dtype
from dovetail.ops.registry import RECURRENT, op

DIRECTIONS = ("forward", "reverse", "bidirectional")


def _states(
    where: str,
    gates: int,
    x: TensorType,
    w: TensorType | None,
    r: TensorType | None,
    b: TensorType | None,
    hidden: int,
    direction: str,
    activations: tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]],
    functions: int,
) -> tuple[TensorType, TensorType]:
    """(Y, Y_h) after checking what the three ops share."""
    if r is None:
        raise TypeInferenceError(f"{where}: input 2 (r) is missing, got none, expected the weights of the state; connect it")
    same_dtype(where, x, w, r, b)
    if direction not in DIRECTIONS:
        raise TypeInferenceError(f"{where}: direction, got {direction!r}, expected one of {DIRECTIONS}; fix it")
    directions = 2 if direction == "bidirectional" else 1
    if any(len(a) != functions * directions for a in activations):
        raise TypeInferenceError(
            f"{where}: activations, got {activations}, expected {functions * directions} of each; give all of them"
        )
    if any(t is not None and t.rank != 3 for t in (x, w, r)):
        raise TypeInferenceError(f"{where}: got x {x}, w {w}, r {r}, expected rank 3 each; reshape them")
    projected: tuple[tuple[str, Dim, Dim], ...]
    if w is None:
        projected = (("products of x, and directions * gates * hidden_size", x.shape[2], directions * gates * hidden),)
    else:
        projected = (
            ("directions of w", w.shape[0], directions),
            ("rows of w and gates * hidden_size", w.shape[1], gates * hidden),
            ("input sizes of x and w", w.shape[2], x.shape[2]),
        )
    wanted: tuple[tuple[str, Dim, Dim], ...] = (
        *projected,
        ("directions of r", r.shape[0], directions),
        ("rows of r and gates * hidden_size", r.shape[1], gates * hidden),
        ("columns of r and hidden_size", r.shape[2], hidden),
    )
    for what, got, expected in wanted:
        same_dim(where, what, got, expected)
    steps, batch = x.shape[:2]
    return x.with_shape((steps, directions, batch, hidden)), x.with_shape((directions, batch, hidden))


@op("LSTM", RECURRENT)
def lstm(
    x: TensorType,
    w: TensorType | None = None,
    r: TensorType | None = None,
    b: TensorType | None = None,
    lengths: TensorType | None = None,
    initial_h: TensorType | None = None,
    initial_c: TensorType | None = None,
    p: TensorType | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: tuple[str, ...],
    activation_alpha: tuple[float, ...],
    activation_beta: tuple[float, ...],
    clip: float = 0.0,
    input_forget: bool = False,
) -> tuple[TensorType, TensorType, TensorType]:
    """(Y [T, D, B, H], Y_h [D, B, H], Y_c [D, B, H]) from x [T, B, I], w [D, 4H, I], r [D, 4H, H], b [D, 8H]. ONNX LSTM-22.

    Gates in the order i, o, f, c; `lengths` int32 [B]; peepholes `p` [D, 3H] in the order i, o, f; `activations` with
    alpha and beta name f, g, h of every direction; clip 0 means none.
    """
    named = (activations, activation_alpha, activation_beta)
    y, state = _states("LSTM", 4, x, w, r, b, hidden_size, direction, named, 3)
    return y, state, state


@op("GRU", RECURRENT)
def gru(
    x: TensorType,
    w: TensorType | None = None,
    r: TensorType | None = None,
    b: TensorType | None = None,
    lengths: TensorType | None = None,
    initial_h: TensorType | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: tuple[str, ...],
    activation_alpha: tuple[float, ...],
    activation_beta: tuple[float, ...],
    clip: float = 0.0,
    linear_before_reset: bool = False,
) -> tuple[TensorType, TensorType]:
    """(Y [T, D, B, H], Y_h [D, B, H]) from x [T, B, I], w [D, 3H, I], r [D, 3H, H], b [D, 6H]; gates z, r, h. ONNX GRU-22."""
    named = (activations, activation_alpha, activation_beta)
    return _states("GRU", 3, x, w, r, b, hidden_size, direction, named, 2)


@op("RNN", RECURRENT)
def rnn(
    x: TensorType,
    w: TensorType | None = None,
    r: TensorType | None = None,
    b: TensorType | None = None,
    lengths: TensorType | None = None,
    initial_h: TensorType | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: tuple[str, ...],
    activation_alpha: tuple[float, ...],
    activation_beta: tuple[float, ...],
    clip: float = 0.0,
) -> tuple[TensorType, TensorType]:
    """(Y [T, D, B, H], Y_h [D, B, H]) from x [T, B, I], w [D, H, I], r [D, H, H], b [D, 2H]. ONNX RNN-22."""
    named = (activations, activation_alpha, activation_beta)
    return _states("RNN", 1, x, w, r, b, hidden_size, direction, named, 1)
