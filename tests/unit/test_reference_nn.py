"""References of the neural-network families against ONNX Runtime on random data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from dovetail.reference import lookup

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ort_run(op: str, inputs: list[Any], outputs: int, **attrs: Any) -> list[np.ndarray]:
    given = {f"i{k}": a for k, a in enumerate(inputs) if a is not None}
    node = helper.make_node(
        op,
        [f"i{k}" if a is not None else "" for k, a in enumerate(inputs)],
        [f"o{k}" for k in range(outputs)],
        **attrs,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for k, a in given.items()
        ],
        [helper.make_empty_tensor_value_info(f"o{k}") for k in range(outputs)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)


def same(ours: Any, theirs: list[np.ndarray]) -> None:
    results = ours if isinstance(ours, tuple) else (ours,)
    assert len(results) == len(theirs)
    for a, b in zip(results, theirs, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_conv_with_groups_dilations_and_uneven_pads() -> None:
    x, w, b = floats(2, 6, 11, 13), floats(8, 3, 3, 5), floats(8)
    shared = {"strides": (2, 1), "pads": (1, 2, 0, 3), "dilations": (1, 2), "group": 2}
    same(lookup("Conv")(x, w, b, **shared), ort_run("Conv", [x, w, b], 1, **shared))


def test_conv_transpose_with_output_padding() -> None:
    x, w, b = floats(2, 6, 5, 7), floats(6, 4, 3, 5), floats(8)
    shared = {
        "strides": (2, 3),
        "pads": (1, 2, 0, 3),
        "dilations": (1, 2),
        "group": 2,
        "output_padding": (1, 0),
    }
    theirs = ort_run("ConvTranspose", [x, w, b], 1, **shared)
    same(lookup("ConvTranspose")(x, w, b, **shared), theirs)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 4, 0, 6), (0, 4, 0, 6)])
def test_convolutions_of_nothing(shape: tuple[int, ...]) -> None:
    attrs = {"strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 2}
    y = lookup("ConvTranspose")(floats(*shape), floats(4, 3, 3, 3), floats(6), output_padding=(1, 1), **attrs)
    assert y.shape[:2] == (shape[0], 6) and y.shape[3] == 12
    y = lookup("Conv")(floats(*shape), floats(6, 2, 3, 3), floats(6), **attrs)
    assert y.shape[:2] == (shape[0], 6) and y.shape[3] == 3


@pytest.mark.filterwarnings("error")
def test_means_of_nothing_are_nan_without_a_warning() -> None:
    y, mean, inverse = lookup("LayerNormalization")(floats(4, 0), floats(0), axis=1, outputs=3)
    assert y.shape == (4, 0) and np.isnan(mean).all() and np.isnan(inverse).all()
    assert lookup("RMSNormalization")(floats(4, 0), floats(0), axis=1).shape == (4, 0)
    assert lookup("InstanceNormalization")(floats(2, 4, 0), floats(4), floats(4)).shape == (2, 4, 0)


WINDOW = {"strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 2)}


@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_indices(order: int) -> None:
    x = floats(2, 3, 9, 8)
    theirs = ort_run("MaxPool", [x], 2, kernel_shape=(3, 2), storage_order=order, **WINDOW)
    same(lookup("MaxPool")(x, kernel=(3, 2), outputs=2, storage_order=order, **WINDOW), theirs)


def test_max_pool_index_of_a_window_of_minima_is_not_a_pad() -> None:
    x = np.full((1, 1, 2, 2), -128, np.int8)
    y, indices = lookup("MaxPool")(
        x, kernel=(2, 2), strides=(1, 1), pads=(1, 1, 0, 0), dilations=(1, 1), outputs=2
    )
    assert y.tolist() == [[[[-128, -128], [-128, -128]]]]
    assert indices.min() == 0


@pytest.mark.parametrize("count", [0, 1])
def test_average_pool_counts(count: int) -> None:
    x = floats(2, 3, 9, 8)
    theirs = ort_run("AveragePool", [x], 1, kernel_shape=(3, 2), count_include_pad=count, **WINDOW)
    same(lookup("AveragePool")(x, kernel=(3, 2), count_include_pad=bool(count), **WINDOW), theirs)


def test_average_pool_never_counts_what_ceil_mode_added() -> None:
    x = np.ones((1, 1, 4), np.float32)
    y = lookup("AveragePool")(
        x, kernel=(3,), strides=(2,), pads=(0, 1), dilations=(1,), count_include_pad=True, ceil_extra=(1,)
    )
    np.testing.assert_array_equal(y, [[[1.0, 1.0]]])


def test_normalisations() -> None:
    x, s, b = floats(2, 6, 5, 7), floats(6), floats(6)
    row, shift = floats(7), floats(7)
    same(
        lookup("LayerNormalization")(x, row, shift, axis=3, outputs=3),
        ort_run("LayerNormalization", [x, row, shift], 3, axis=3),
    )
    same(lookup("InstanceNormalization")(x, s, b), ort_run("InstanceNormalization", [x, s, b], 1))
    same(
        lookup("GroupNormalization")(x, s, b, num_groups=3),
        ort_run("GroupNormalization", [x, s, b], 1, num_groups=3),
    )
    same(lookup("LRN")(x, size=3), ort_run("LRN", [x], 1, size=3))
    rms = x / np.sqrt(np.square(x.astype(np.float64)).mean(-1, keepdims=True) + 1e-5) * row
    np.testing.assert_allclose(lookup("RMSNormalization")(x, row, axis=3), rms, rtol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, (2, 5, 3)])
@pytest.mark.parametrize(
    ("op", "gates", "activations"),
    [("LSTM", 4, ["Sigmoid", "Tanh", "Tanh"]), ("GRU", 3, ["Sigmoid", "Tanh"]), ("RNN", 1, ["Tanh"])],
)
def test_recurrent(
    op: str, gates: int, activations: list[str], lengths: tuple[int, ...] | None, direction: str
) -> None:
    d, h = 2 if direction == "bidirectional" else 1, 6
    inputs: list[Any] = [floats(5, 3, 4), floats(d, gates * h, 4), floats(d, gates * h, h)]
    inputs += [floats(d, 2 * gates * h), None if lengths is None else np.array(lengths, np.int32)]
    inputs += [floats(d, 3, h)]
    if op == "LSTM":
        inputs += [floats(d, 3, h), floats(d, 3 * h)]
    shared = {"hidden_size": h, "direction": direction, "clip": 2.0}
    unused = [0.0] * len(activations) * d
    ours = lookup(op)(
        *inputs,
        **shared,
        activations=activations * d,
        activation_alpha=unused,
        activation_beta=unused,
    )
    same(ours, ort_run(op, inputs, len(ours), **shared))


def test_narrow_floats_round_once() -> None:
    x = (RNG.standard_normal((1, 64, 8, 8)) * 4).astype(np.float16)
    w = RNG.standard_normal((8, 64, 3, 3)).astype(np.float16)
    shared = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    y = lookup("Conv")(x, w, **shared)
    exact = lookup("Conv")(x.astype(np.float64), w.astype(np.float64), **shared)
    magnitude = lookup("Conv")(abs(x.astype(np.float64)), abs(w.astype(np.float64)), **shared)
    # Half a unit of the result, plus what sums in fp32 may add: their error grows with the root
    # of the number of terms. Rounding any partial sum to fp16 would be off by hundreds of times that.
    half_unit = np.spacing(abs(exact).astype(np.float16)).astype(np.float64) / 2
    summed = 4 * np.sqrt(64 * 9) * np.finfo(np.float32).eps * magnitude
    assert y.dtype == np.float16
    assert np.all(abs(y.astype(np.float64) - exact) <= half_unit + summed)


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray) -> np.ndarray:
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, 1), np.repeat(v, repeat, 1)
    scores = np.einsum("bhsd,bhtd->bhst", q, k) / np.sqrt(q.shape[-1]) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhst,bhtd->bhsd", weights / weights.sum(-1, keepdims=True), v)


def test_grouped_query_attention_with_causal_offset_and_packed_form() -> None:
    q, k, v = floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 6)
    seen = np.arange(5) <= np.arange(3)[:, None] + 2
    expected = naive_attention(q, k, v, np.where(seen, 0, -np.inf))
    options = {"scale": 8**-0.5, "is_causal": True, "past": 2}
    np.testing.assert_allclose(lookup("Attention")(q, k, v, **options), expected, rtol=1e-4, atol=1e-6)

    def pack(a: np.ndarray) -> np.ndarray:
        return a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1)

    y = lookup("Attention")(pack(q), pack(k), pack(v), q_heads=4, kv_heads=2, **options)
    np.testing.assert_allclose(y, pack(expected), rtol=1e-4, atol=1e-6)


def test_attention_row_without_any_key_is_zero() -> None:
    q, k, v = floats(1, 1, 2, 4), floats(1, 1, 3, 4), floats(1, 1, 3, 4)
    mask = np.array([[True, False, True], [False, False, False]])
    y, probabilities = lookup("Attention")(q, k, v, mask, scale=0.5, scores=3)
    assert np.all(y[0, 0, 1] == 0)
    np.testing.assert_allclose(probabilities.sum(-1), [[[1.0, 0.0]]], rtol=1e-6)


def test_loop_that_never_runs_has_typed_empty_scans() -> None:
    from dovetail.core.dtypes import I64

    state, scanned = lookup("Loop")(
        np.int64(0), None, floats(2), regions=[None], carried=1, elements=((I64, (3,)),)
    )
    assert state.shape == (2,)
    assert (scanned.shape, scanned.dtype) == ((0, 3), np.int64)


def test_loop_and_scan_run_their_region() -> None:
    def double(i: np.ndarray, going: np.ndarray, x: np.ndarray, step: np.ndarray) -> tuple[Any, ...]:
        return np.asarray(x.sum() < 20), x + step, x

    last, seen = lookup("Loop")(
        None, np.asarray(True), np.ones(2), np.full(2, 3.0), regions=[double], carried=1, elements=((None, ()),)
    )
    assert last.tolist() == [13.0, 13.0]
    assert seen.tolist() == [[1.0] * 2, [4.0] * 2, [7.0] * 2, [10.0] * 2]

    def running(total: np.ndarray, x: np.ndarray) -> tuple[Any, ...]:
        return total + x, total + x

    total, sums = lookup("Scan")(
        np.zeros(2), np.arange(6.0).reshape(2, 3), regions=[running], states=1, scans=1,
        input_axes=(1,), input_reverse=(True,), output_axes=(1,), output_reverse=(False,),
        elements=((None, ()),),
    )  # fmt: skip
    assert total.tolist() == [3.0, 12.0]
    assert sums.tolist() == [[2.0, 3.0, 3.0], [5.0, 9.0, 12.0]]
