"""Samples of the neural-network families: contractions, windows, norms, attention, recurrent and control ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.samples.sample import Array, Sample

Shape = tuple[int, ...]
Make = Callable[[np.random.Generator], list[Array | None]]


def normal(*shapes: Shape | None, dtype: Any = np.float32) -> Make:
    """Inputs of normal numbers; None stands for an absent input."""
    return lambda rng: [None if s is None else np.asarray(rng.normal(0, 1, s)).astype(dtype) for s in shapes]


def whole(*shapes: Shape, dtype: Any = np.int32) -> Make:
    """Inputs of small whole numbers."""
    return lambda rng: [np.asarray(rng.integers(-9, 9, s)).astype(dtype) for s in shapes]


def window(rank: int, **changes: Any) -> dict[str, Any]:
    """Strides, pads and dilations that do nothing, with changes."""
    return {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank} | changes


MATMUL = [
    Sample("MatMul", normal((3, 4), (4, 5))),
    Sample("MatMul", normal((1, 17), (17, 1))),
    Sample("MatMul", normal((7, 33), (33, 65))),
    Sample("MatMul", normal((2, 1, 3, 4), (5, 4, 6))),
    Sample("MatMul", normal((4,), (4, 5))),
    Sample("MatMul", normal((2, 3, 4), (4,))),
    Sample("MatMul", normal((0, 4), (4, 5))),
    Sample("MatMul", normal((3, 0), (0, 5))),
    Sample("MatMul", whole((3, 4), (4, 5)), exact=True),
    Sample("MatMul", normal((9, 40), (40, 8), dtype=np.float16)),
]

CONV = [
    Sample("Conv", normal((1, 3, 9, 8), (5, 3, 3, 3), (5,)), window(2, group=1, pads=(1, 1, 1, 1))),
    Sample("Conv", normal((2, 4, 7, 7), (6, 2, 3, 2)), window(2, group=2, strides=(2, 1), pads=(0, 1, 2, 0))),
    Sample("Conv", normal((2, 6, 9, 9), (6, 1, 3, 3), (6,)), window(2, group=6, pads=(1, 1, 1, 1))),
    Sample("Conv", normal((1, 6, 9, 9), (12, 1, 5, 5)), window(2, group=6, strides=(2, 2), pads=(2, 2, 2, 2))),
    Sample("Conv", normal((1, 17, 6, 5), (33, 17, 1, 1), (33,)), window(2, group=1)),
    Sample("Conv", normal((1, 8, 12, 12), (8, 8, 3, 3)), window(2, group=1, dilations=(2, 3), pads=(2, 3, 2, 3))),
    Sample("Conv", normal((1, 3, 23, 22), (16, 3, 7, 7), (16,)), window(2, group=1, strides=(2, 2), pads=(3, 3, 3, 3))),
    Sample("Conv", normal((2, 4, 11), (3, 4, 3), (3,)), window(1, group=1, pads=(2, 0))),
    Sample("Conv", normal((1, 2, 4, 5, 6), (3, 2, 2, 3, 2)), window(3, group=1, pads=(0, 1, 0, 1, 1, 0))),
    Sample("Conv", normal((1, 2, 3, 3), (3, 2, 5, 5)), window(2, group=1, pads=(1, 1, 1, 1))),
    Sample("Conv", normal((0, 3, 5, 5), (2, 3, 3, 3)), window(2, group=1)),
    Sample("Conv", normal((1, 5, 8, 8), (4, 5, 3, 3), dtype=np.float16), window(2, group=1)),
    Sample(
        "ConvTranspose",
        normal((1, 3, 4, 5), (3, 2, 3, 3), (2,)),
        window(2, group=1, strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    ),
    Sample(
        "ConvTranspose",
        normal((2, 4, 3, 3), (4, 3, 2, 2), (6,)),
        window(2, group=2, strides=(2, 1), pads=(0, 1, 0, 0), dilations=(1, 2), output_padding=(0, 0)),
    ),
    Sample("ConvTranspose", normal((1, 2, 5), (2, 3, 4)), window(1, group=1, strides=(3,), output_padding=(0,))),
]
POOL = [
    Sample("MaxPool", normal((1, 3, 9, 9)), window(2, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))),
    Sample("MaxPool", normal((2, 2, 7)), window(1, kernel=(2,), dilations=(2,))),
    Sample("MaxPool", normal((1, 2, 4, 4, 4)), window(3, kernel=(2, 2, 2), strides=(2, 2, 2))),
    Sample("MaxPool", normal((2, 3, 6, 5)), window(2, kernel=(2, 3), pads=(0, 1, 1, 1), outputs=2)),
    Sample("MaxPool", normal((1, 1, 5, 5)), window(2, kernel=(3, 2), outputs=2, storage_order=1)),
    Sample("MaxPool", whole((1, 2, 6, 6), dtype=np.int8), window(2, kernel=(3, 3), pads=(1, 1, 1, 1)), exact=True),
    Sample("AveragePool", normal((1, 3, 8, 8)), window(2, kernel=(2, 2), strides=(2, 2))),
    Sample("AveragePool", normal((1, 3, 9, 7)), window(2, kernel=(3, 3), pads=(1, 1, 1, 1))),
    Sample("AveragePool", normal((1, 3, 9, 7)), window(2, kernel=(3, 3), pads=(1, 1, 1, 1), count_include_pad=True)),
    Sample(
        "AveragePool",
        normal((1, 2, 7)),
        window(1, kernel=(3,), strides=(2,), pads=(1, 2), count_include_pad=True, ceil_extra=(1,)),
    ),
    Sample("LpPool", normal((1, 2, 7, 7)), window(2, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), p=2)),
    Sample("LpPool", normal((1, 2, 9)), window(1, kernel=(3,), p=3)),
    Sample("LRN", normal((1, 7, 3, 3)), {"size": 3, "alpha": 0.01, "beta": 0.75, "bias": 1.0}),
    Sample("LRN", normal((2, 5, 4)), {"size": 4}),
]

NORM = [
    Sample("LayerNormalization", normal((2, 5, 33), (33,), (33,)), {"axis": 2}),
    Sample("LayerNormalization", normal((2, 3, 4, 5), (4, 5)), {"axis": 2, "epsilon": 1e-3, "outputs": 3}),
    Sample("LayerNormalization", normal((4, 8)), {"axis": 1}),
    Sample("LayerNormalization", normal((4, 64), (64,), (64,), dtype=np.float16), {"axis": 1}),
    Sample("RMSNormalization", normal((2, 5, 17), (17,)), {"axis": 2}),
    Sample("RMSNormalization", normal((2, 3, 4)), {"axis": 1, "epsilon": 1e-6}),
    Sample("InstanceNormalization", normal((2, 3, 5, 7), (3,), (3,)), {"epsilon": 1e-4}),
    Sample("InstanceNormalization", normal((1, 2, 9), (2,), (2,))),
    Sample("GroupNormalization", normal((2, 6, 5, 3), (6,), (6,)), {"num_groups": 3}),
    Sample("GroupNormalization", normal((1, 4, 7), (4,), (4,)), {"num_groups": 1, "epsilon": 1e-3}),
]


def _attended(mask: str, q: Shape, k: Shape, v: Shape, mask_shape: Shape = ()) -> Make:
    def make(rng: np.random.Generator) -> list[Array | None]:
        arrays: list[Array | None] = [rng.normal(0, 1, s).astype(np.float32) for s in (q, k, v)]
        if mask == "bool":
            arrays.append(rng.random(mask_shape) < 0.6)
        elif mask == "float":
            arrays.append(rng.normal(0, 2, mask_shape).astype(np.float32))
        elif mask == "lengths":
            arrays += [None, np.asarray(rng.integers(1, k[2] + 1, k[0]), np.int64)]
        return arrays

    return make


ATTENTION = [
    Sample("Attention", _attended("", (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), {"scale": 0.35}),
    Sample("Attention", _attended("", (1, 2, 6, 8), (1, 2, 6, 8), (1, 2, 6, 8)), {"scale": 0.35, "is_causal": True}),
    Sample("Attention", _attended("", (1, 4, 3, 8), (1, 2, 9, 8), (1, 2, 9, 8)), {"scale": 0.3, "is_causal": True, "past": 6}),
    Sample("Attention", _attended("bool", (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8), (5, 7)), {"scale": 0.35}),
    Sample("Attention", _attended("float", (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8), (2, 1, 5, 7)), {"scale": 0.35, "softcap": 2.0}),
    Sample("Attention", _attended("float", (6, 2, 5, 8), (6, 2, 7, 8), (6, 2, 7, 8), (3, 2, 5, 7)), {"scale": 0.35}),
    Sample("Attention", _attended("lengths", (2, 3, 2, 8), (2, 3, 7, 8), (2, 3, 7, 8)), {"scale": 0.35, "is_causal": True}),
    Sample("Attention", _attended("", (2, 5, 24), (2, 7, 12), (2, 7, 12)), {"scale": 0.35, "q_heads": 4, "kv_heads": 2}),
    Sample("Attention", _attended("", (1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)), {"scale": 0.35, "left_window": 1, "right_window": 2}),
    *(
        Sample(
            "Attention",
            _attended("float", (1, 2, 3, 8), (1, 2, 4, 8), (1, 2, 4, 8), (3, 4)),
            {"scale": 0.35, "softcap": 3.0, "scores": s},
        )
        for s in range(4)
    ),
]


def _cells(gates: int, d: int, *, lengths: bool = False, extras: int = 0) -> Make:
    steps, batch, inputs, hidden = 5, 3, 4, 6

    def make(rng: np.random.Generator) -> list[Array | None]:
        shapes: list[Shape] = [(steps, batch, inputs), (d, gates * hidden, inputs), (d, gates * hidden, hidden), (d, 2 * gates * hidden)]
        arrays: list[Array | None] = [rng.normal(0, 0.7, s).astype(np.float32) for s in shapes]
        arrays.append(np.array([2, 5, 3], np.int32) if lengths else None)
        states = [(d, batch, hidden), (d, batch, hidden), (d, 3 * hidden)][:extras]
        arrays += [rng.normal(0, 0.7, s).astype(np.float32) for s in states]
        return arrays

    return make


def _cell(names: tuple[str, ...], directions: int, direction: str, **more: Any) -> dict[str, Any]:
    count = len(names) * directions
    return {
        "hidden_size": 6,
        "direction": direction,
        "activations": names * directions,
        "activation_alpha": (0.0,) * count,
        "activation_beta": (0.0,) * count,
    } | more


RECURRENT = [
    Sample("LSTM", _cells(4, 1), _cell(("Sigmoid", "Tanh", "Tanh"), 1, "forward")),
    Sample("LSTM", _cells(4, 2, lengths=True, extras=3), _cell(("Sigmoid", "Tanh", "Tanh"), 2, "bidirectional", clip=1.5)),
    Sample("LSTM", _cells(4, 1, extras=2), _cell(("Sigmoid", "Tanh", "Tanh"), 1, "reverse", input_forget=True)),
    Sample("GRU", _cells(3, 1), _cell(("Sigmoid", "Tanh"), 1, "forward")),
    Sample("GRU", _cells(3, 2, lengths=True, extras=1), _cell(("Sigmoid", "Tanh"), 2, "bidirectional", linear_before_reset=True)),
    Sample("RNN", _cells(1, 1), _cell(("Tanh",), 1, "reverse")),
    Sample("RNN", _cells(1, 2, extras=1), _cell(("Relu",), 2, "bidirectional")),
]

SAMPLES = [*MATMUL, *CONV, *POOL, *NORM, *ATTENTION, *RECURRENT]
