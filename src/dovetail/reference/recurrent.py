"""NumPy meaning of LSTM, GRU and RNN: one step per time, whole matrices per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from dovetail.reference.registry import reference
from dovetail.reference.widen import Array, narrow, widen

Activation = Callable[[Array], Array]
Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]


def _sigmoid(x: Array) -> Array:
    # tanh neither overflows nor loses accuracy for large |x|, unlike 1 / (1 + exp(-x)).
    half = x.dtype.type(0.5)
    return np.asarray(half * (np.tanh(x * half) + x.dtype.type(1)))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))).astype(x.dtype)


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(x, x.dtype.type(0)))


# name -> (function of x and its parameters, default parameters); source: ONNX LSTM-22, "activations".
_ACTIVATIONS: dict[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "Relu": (lambda x: np.maximum(x, 0), ()),
    "Tanh": (np.tanh, ()),
    "Sigmoid": (_sigmoid, ()),
    "Affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "LeakyRelu": (lambda x, alpha: np.where(x >= 0, x, alpha * x), (0.01,)),
    "ThresholdedRelu": (lambda x, alpha: np.where(x > alpha, x, 0), (1.0,)),
    "ScaledTanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), (1.0, 1.0)),
    "HardSigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "Elu": (_elu, (1.0,)),
    "Softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "Softplus": (_softplus, ()),
}
RECURRENT_ACTIVATIONS = {name.lower(): name for name in _ACTIVATIONS}
"""Lower-case spelling to the canonical name; ONNX compares these names without case."""


def activation_parameters(name: str) -> tuple[float, ...]:
    """Default (alpha, beta) of a recurrent activation, as many as it takes."""
    return _ACTIVATIONS[name][1]


def _bind(name: str, alpha: float, beta: float, clip: float) -> Activation:
    function, defaults = _ACTIVATIONS[name]
    apply = partial(function, **dict(zip(("alpha", "beta"), (alpha, beta)[: len(defaults)], strict=False)))
    if clip <= 0:
        return apply
    return lambda x: apply(np.clip(x, -clip, clip))


def _scan_time(
    x: Array, state: tuple[Array, ...], step: Step, lengths: Array | None, reverse: bool
) -> tuple[Array, tuple[Array, ...]]:
    """Run `step` over the projected inputs [T, B, G]; state[0] is the hidden state that is also the output.

    With `lengths`, a sample's state stops changing and its output is zero after its last step;
    reversed, each sample starts at its own last step.
    """
    steps = x.shape[0]
    y = np.zeros((steps, *state[0].shape), state[0].dtype)
    for t in range(steps - 1, -1, -1) if reverse else range(steps):
        new = step(x[t], state)
        if lengths is None:
            state, y[t] = new, new[0]
        else:
            live = (t < lengths)[:, None]
            state = tuple(np.where(live, n, s) for n, s in zip(new, state, strict=True))
            y[t] = np.where(live, new[0], 0)
    return y, state


def _run(
    x: Array,
    directions: int,
    reverse_first: bool,
    projected: Callable[[int], Array],
    step: Callable[[int], Step],
    initial: Sequence[Array],
    lengths: Array | None,
) -> tuple[Array, ...]:
    """All directions: Y [T, D, B, H], then each final state [D, B, H], in the dtype of `x`."""
    ys, states = [], []
    for d in range(directions):
        y, state = _scan_time(
            projected(d), tuple(s[d] for s in initial), step(d), lengths, reverse_first or d == 1
        )
        ys.append(y)
        states.append(state)
    finals = [np.stack(parts) for parts in zip(*states, strict=True)]
    return tuple(narrow(a, x) for a in (np.stack(ys, axis=1), *finals))


def _states(
    x: Array, directions: int, hidden: int, given: Sequence[Array | None]
) -> list[Array]:
    shape = (directions, x.shape[1], hidden)
    return [np.zeros(shape, widen(x).dtype) if g is None else widen(g) for g in given]


def _project(x: Array, w: Array | None, directions: int) -> list[Array]:
    """The products with the input weights of each direction, [T, B, gates * H]; without `w` they are what `x` holds."""
    wide = widen(x)
    if w is None:
        return np.split(wide, directions, axis=-1)
    return [wide @ each.T for each in widen(w)]


def _functions(
    activations: Sequence[str], alpha: Sequence[float], beta: Sequence[float], clip: float
) -> list[Activation]:
    return [_bind(n, a, b, clip) for n, a, b in zip(activations, alpha, beta, strict=True)]


@reference("LSTM")
def lstm(
    x: Array,
    w: Array | None,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Sequence[str],
    activation_alpha: Sequence[float],
    activation_beta: Sequence[float],
    clip: float = 0.0,
    input_forget: bool = False,
) -> tuple[Array, Array, Array]:
    """(Y [T, D, B, H], Y_h [D, B, H], Y_c [D, B, H]) of a time-major LSTM, gates in the order i, o, f, c.

    x [T, B, I], w [D, 4H, I], r [D, 4H, H], b [D, 8H], lengths int32 [B], p (peepholes i, o, f) [D, 3H].
    `activations` names f, g, h per direction. `clip` bounds the gates before f and g; like other runtimes we leave
    the cell state before h alone. Source: ONNX LSTM-22.
    """
    functions = _functions(activations, activation_alpha, activation_beta, clip)
    unclipped = _functions(activations, activation_alpha, activation_beta, 0.0)
    products, rs = _project(x, w, r.shape[0]), widen(r)

    def projected(d: int) -> Array:
        gates = products[d]
        return np.asarray(gates if b is None else gates + widen(b)[d].reshape(2, -1).sum(0))

    def step(d: int) -> Step:
        f, g, h = functions[3 * d], functions[3 * d + 1], unclipped[3 * d + 2]
        weights = rs[d].T
        pi, po, pf = np.split(widen(p)[d], 3) if p is not None else (0.0, 0.0, 0.0)

        def one(gates: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            hidden, cell = state
            i, o, keep, c = np.split(gates + hidden @ weights, 4, axis=-1)
            i = f(i + pi * cell)
            keep = 1 - i if input_forget else f(keep + pf * cell)
            cell = keep * cell + i * g(c)
            return f(o + po * cell) * h(cell), cell

        return one

    initial = _states(x, rs.shape[0], hidden_size, (initial_h, initial_c))
    y, y_h, y_c = _run(x, rs.shape[0], direction == "reverse", projected, step, initial, lengths)
    return y, y_h, y_c


@reference("GRU")
def gru(
    x: Array,
    w: Array | None,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    initial_h: Array | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Sequence[str],
    activation_alpha: Sequence[float],
    activation_beta: Sequence[float],
    clip: float = 0.0,
    linear_before_reset: bool = False,
) -> tuple[Array, Array]:
    """(Y [T, D, B, H], Y_h [D, B, H]) of a time-major GRU, gates in the order z, r, h.

    x [T, B, I], w [D, 3H, I], r [D, 3H, H], b [D, 6H]. `activations` names f, g per direction.
    Source: ONNX GRU-22.
    """
    functions = _functions(activations, activation_alpha, activation_beta, clip)
    products, rs, n = _project(x, w, r.shape[0]), widen(r), hidden_size
    biases = np.zeros((rs.shape[0], 6 * n), rs.dtype) if b is None else widen(b)

    def projected(d: int) -> Array:
        return np.asarray(products[d] + biases[d, : 3 * n])

    def step(d: int) -> Step:
        f, g = functions[2 * d : 2 * d + 2]
        gate_weights, hidden_weights = rs[d, : 2 * n].T, rs[d, 2 * n :].T
        gate_bias, hidden_bias = biases[d, 3 * n : 5 * n], biases[d, 5 * n :]

        def one(gates: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            (hidden,) = state
            z, reset = np.split(gates[:, : 2 * n] + hidden @ gate_weights + gate_bias, 2, axis=-1)
            z, reset = f(z), f(reset)
            if linear_before_reset:
                new = reset * (hidden @ hidden_weights + hidden_bias)
            else:
                new = (reset * hidden) @ hidden_weights + hidden_bias
            new = g(gates[:, 2 * n :] + new)
            return ((1 - z) * new + z * hidden,)

        return one

    initial = _states(x, rs.shape[0], n, (initial_h,))
    y, y_h = _run(x, rs.shape[0], direction == "reverse", projected, step, initial, lengths)
    return y, y_h


@reference("RNN")
def rnn(
    x: Array,
    w: Array | None,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    initial_h: Array | None = None,
    *,
    hidden_size: int,
    direction: str = "forward",
    activations: Sequence[str],
    activation_alpha: Sequence[float],
    activation_beta: Sequence[float],
    clip: float = 0.0,
) -> tuple[Array, Array]:
    """(Y [T, D, B, H], Y_h [D, B, H]) of a time-major simple recurrent network.

    x [T, B, I], w [D, H, I], r [D, H, H], b [D, 2H]. Source: ONNX RNN-22.
    """
    functions = _functions(activations, activation_alpha, activation_beta, clip)
    products, rs = _project(x, w, r.shape[0]), widen(r)

    def projected(d: int) -> Array:
        gates = products[d]
        return np.asarray(gates if b is None else gates + widen(b)[d].reshape(2, -1).sum(0))

    def step(d: int) -> Step:
        def one(gates: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            return (functions[d](gates + state[0] @ rs[d].T),)

        return one

    initial = _states(x, rs.shape[0], hidden_size, (initial_h,))
    y, y_h = _run(x, rs.shape[0], direction == "reverse", projected, step, initial, lengths)
    return y, y_h
