"""Attention, rotary embedding, caches, mixtures of experts and the recurrent layers of 8."""

import ml_dtypes
import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network

N, C, FORM = trt.AttentionNormalizationOp, trt.CausalMaskKind, trt.AttentionIOForm


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, allowed=True, added=0.0, norm=softmax):
    k, v = (np.repeat(t, q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.swapaxes(-1, -2) + added
    if norm is softmax:
        return softmax(np.where(allowed, scores, -np.inf)) @ v
    return np.where(allowed, norm(scores), 0) @ v


@exercises(
    "INetworkDefinition.add_attention", "INetworkDefinition.add_attention_v2", "IAttention.norm_op", "IAttention.causal",
    "IAttention.causal_kind", "IAttention.mask", "IAttention.decomposable", "IAttention.get_input", "IAttention.get_output",
    "IAttention.set_input", "IAttention.name", "IAttention.metadata", "IAttention.num_inputs", "IAttention.num_outputs",
    "IAttention.normalization_quantize_scale", "IAttention.normalization_quantize_to_type", "IAttentionBoundaryLayer.attention",
    "AttentionNormalizationOp.NONE", "AttentionNormalizationOp.SOFTMAX", "CausalMaskKind.NONE", "CausalMaskKind.UPPER_LEFT",
    "CausalMaskKind.LOWER_RIGHT",
)  # fmt: skip
def test_attention():
    suite = Suite()
    q, k, v = suite.random(2, 4, 3, 8), suite.random(2, 2, 5, 8), suite.random(2, 2, 5, 8)
    tensors = [suite.input(t) for t in (q, k, v)]
    net = suite.net
    plain = net.add_attention(*tensors, N.SOFTMAX, False)
    plain.name, plain.metadata, plain.decomposable = "attend", "text", True
    assert (plain.name, plain.metadata, plain.decomposable, plain.num_inputs, plain.num_outputs) == ("attend", "text", True, 3, 1)
    assert plain.get_input(1) is tensors[1] and plain.get_input(3) is None and plain.get_output(1) is None and not plain.causal
    border = net[0]
    border.__class__ = trt.IAttentionInputLayer
    assert border.attention is plain and [layer.type.name for layer in net] == ["ATTENTION_INPUT", "ATTENTION_OUTPUT"]
    suite.expect(plain.get_output(0), attend(q, k, v))
    rows, columns = np.arange(3)[:, None], np.arange(5)
    masks = {C.NONE: True, C.UPPER_LEFT: columns <= rows, C.LOWER_RIGHT: columns <= rows + 2}
    for kind, allowed in masks.items():
        one = net.add_attention_v2(*tensors, N.SOFTMAX, C.NONE)
        one.causal_kind = kind
        assert one.causal_kind is kind
        suite.expect(one.get_output(0), attend(q, k, v, allowed))
        raw = net.add_attention_v2(*tensors, N.SOFTMAX, kind)
        raw.norm_op = N.NONE
        assert raw.norm_op is N.NONE
        suite.expect(raw.get_output(0), attend(q, k, v, allowed, norm=lambda s: s), 1e-4)
    flag = net.add_attention(*tensors, N.SOFTMAX, True)
    assert flag.causal and flag.causal_kind is C.UPPER_LEFT
    assert flag.set_input(0, suite.input(2 * q)) and not flag.set_input(3, tensors[0]) and suite.log.errors.pop()
    suite.expect(flag.get_output(0), attend(2 * q, k, v, columns <= rows))
    flag.causal = False
    flag.causal = True
    added, chosen = suite.random(1, 1, 3, 5), suite.rng.random((2, 1, 3, 5)) < 0.7
    chosen[..., 0] = True
    for mask, allowed, more in ((added, True, added), (chosen, chosen, 0.0)):
        one = net.add_attention(*tensors, N.SOFTMAX, False)
        one.mask = suite.input(mask)
        assert one.mask.shape == mask.shape
        suite.expect(one.get_output(0), attend(q, k, v, allowed, more))
    narrow = net.add_attention(*tensors, N.SOFTMAX, False)
    narrow.normalization_quantize_scale = suite.const(np.float32(1 / 448))
    narrow.normalization_quantize_to_type = trt.fp8
    assert narrow.normalization_quantize_to_type is trt.fp8 and narrow.normalization_quantize_scale.shape == ()
    rounded = attend(q, k, v, norm=lambda s: (softmax(s) * 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) / 448)
    suite.expect(narrow.get_output(0), rounded, 2e-3)
    suite.run()


@exercises(
    "IAttention.query_form", "IAttention.key_value_form", "IAttention.query_lengths", "IAttention.key_value_lengths",
    "AttentionIOForm.PADDED_BHND", "AttentionIOForm.PACKED_NHD",
)  # fmt: skip
def test_attention_of_different_lengths():
    suite = Suite(1)
    q, k, v = suite.random(2, 4, 4, 8), suite.random(2, 2, 6, 8), suite.random(2, 2, 6, 8)
    q_lengths, k_lengths = np.array([4, 2], np.int32), np.array([5, 3], np.int32)
    rows, columns = np.arange(4)[:, None], np.arange(6)
    for kind in (C.NONE, C.UPPER_LEFT, C.LOWER_RIGHT):
        given = [suite.input(_pack(t, n)) for t, n in ((q, q_lengths), (k, k_lengths), (v, k_lengths))]
        packed = suite.net.add_attention_v2(*given, N.SOFTMAX, kind)
        assert packed.query_form is packed.key_value_form is FORM.PADDED_BHND
        packed.query_form = packed.key_value_form = FORM.PACKED_NHD
        packed.query_lengths, packed.key_value_lengths = suite.input(q_lengths), suite.input(k_lengths)
        assert packed.query_form is FORM.PACKED_NHD and packed.query_lengths.shape == packed.key_value_lengths.shape == (2,)
        expected = []
        for b in range(2):
            shift = k_lengths[b] - q_lengths[b]
            allowed = {C.NONE: True, C.UPPER_LEFT: columns <= rows, C.LOWER_RIGHT: columns <= rows + shift}[kind]
            expected.append(attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], (columns < k_lengths[b]) & allowed)[0])
        whole = np.stack(expected)
        suite.expect(packed.get_output(0), _pack(whole, q_lengths))
    padded = suite.net.add_attention_v2(*map(suite.input, (q, k, v)), N.SOFTMAX, C.NONE)
    padded.key_value_lengths = suite.input(k_lengths)
    suite.expect(padded.get_output(0), attend(q, k, v, columns < k_lengths[:, None, None, None]))
    suite.run()


def _pack(tensor, lengths):
    return np.concatenate([t[:, :n].swapaxes(0, 1) for t, n in zip(tensor, lengths, strict=True)])


def rotate(x, cos, sin, interleaved, size):
    part, rest = x[..., :size], x[..., size:]
    a, b = (part[..., ::2], part[..., 1::2]) if interleaved else (part[..., : size // 2], part[..., size // 2 :])
    real, other = a * cos - b * sin, a * sin + b * cos
    turned = np.stack([real, other], -1).reshape(part.shape) if interleaved else np.concatenate([real, other], -1)
    return np.concatenate([turned, rest], -1)


@exercises(
    "INetworkDefinition.add_rotary_embedding", "IRotaryEmbeddingLayer.interleaved", "IRotaryEmbeddingLayer.rotary_embedding_dim",
    "IRotaryEmbeddingLayer.set_input", "INetworkDefinition.add_kv_cache_update", "IKVCacheUpdateLayer.cache_mode",
    "IKVCacheUpdateLayer.set_input", "IKVCacheUpdateLayer.update_form", "IKVCacheUpdateLayer.update_lengths", "KVCacheMode.LINEAR",
)  # fmt: skip
def test_rotary_embedding_and_caches():
    suite = Suite(2)
    x, angle = suite.random(2, 3, 4, 8), suite.random(2, 4, 4)
    cos, sin = np.cos(angle), np.sin(angle)
    for interleaved in (False, True):
        layer = suite.net.add_rotary_embedding(suite.input(x), suite.input(cos), suite.input(sin), False, 0)
        layer.interleaved = interleaved
        assert layer.interleaved is interleaved
        suite.expect(layer, rotate(x, cos[:, None], sin[:, None], interleaved, 8))
    table = suite.random(9, 2)
    ids = np.array([[8, 0, 3, 1], [2, 2, 5, 7]], np.int64)
    layer = suite.net.add_rotary_embedding(suite.input(x), suite.input(np.cos(table)), suite.input(np.sin(table)), False, 0)
    layer.rotary_embedding_dim = 4
    layer.set_input(3, suite.input(ids))
    assert layer.rotary_embedding_dim == 4
    suite.expect(layer, rotate(x, np.cos(table)[ids][:, None], np.sin(table)[ids][:, None], False, 4))
    cache, update = suite.random(2, 3, 7, 4), suite.random(2, 3, 2, 4)
    start = np.array([1, 5], np.int32)
    layer = suite.net.add_kv_cache_update(suite.input(0 * cache), suite.input(update), suite.input(start), trt.KVCacheMode.LINEAR)
    layer.set_input(0, suite.input(cache))
    layer.cache_mode = trt.KVCacheMode.LINEAR
    assert layer.cache_mode is trt.KVCacheMode.LINEAR and layer.update_lengths is None
    expected = cache.copy()
    for b, s in enumerate(start):
        expected[b, :, s : s + 2] = update[b]
    suite.expect(layer, expected)
    counts = np.array([1, 2], np.int32)
    expected = cache.copy()
    for b, (s, n) in enumerate(zip(start, counts, strict=True)):
        expected[b, :, s : s + n] = update[b, :, :n]
    for form in (FORM.PADDED_BHND, FORM.PACKED_NHD):
        given = update if form is FORM.PADDED_BHND else _pack(update, counts)
        layer = suite.net.add_kv_cache_update(suite.input(cache), suite.input(given), suite.input(start), trt.KVCacheMode.LINEAR)
        layer.update_form, layer.update_lengths = form, suite.input(counts)
        assert layer.update_form is form and layer.update_lengths.shape == (2,)
        suite.expect(layer, expected)
    suite.run()


@exercises(
    "INetworkDefinition.add_moe", "IMoELayer.activation_type", "IMoELayer.set_gated_weights", "IMoELayer.set_gated_biases",
    "IMoELayer.set_quantization_static", "IMoELayer.set_quantization_dynamic_dbl_q", "IMoELayer.set_swiglu_params", "IMoELayer.set_input",
    "IMoELayer.quantization_to_type", "IMoELayer.quantization_block_shape", "IMoELayer.dyn_q_output_scale_type",
    "IMoELayer.swiglu_param_limit", "IMoELayer.swiglu_param_alpha", "IMoELayer.swiglu_param_beta", "MoEActType.NONE", "MoEActType.SILU",
)  # fmt: skip
def test_mixture_of_experts():
    suite = Suite(3)
    x, selected, scores = suite.random(2, 3, 8), suite.rng.integers(0, 4, (2, 3, 2)).astype(np.int32), np.abs(suite.random(2, 3, 2))
    gate, up, down = suite.random(4, 8, 6), suite.random(4, 8, 6), suite.random(4, 6, 8)
    biases = [suite.random(4, 6), suite.random(4, 6), suite.random(4, 8)]
    inputs = [suite.input(t) for t in (x, selected, scores)]
    weights = [suite.const(t) for t in (gate, up, down)]

    def expected(act, limit=np.inf, alpha=1.0, beta=0.0, bias=(0, 0, 0), narrow=lambda h: h):
        g = np.minimum(np.einsum("bsh,ehi->ebsi", x, gate) + bias[0], limit)
        u = np.clip(np.einsum("bsh,ehi->ebsi", x, up) + bias[1], -limit, limit)
        g = g / (1 + np.exp(-alpha * g)) if act else g
        y = np.einsum("ebsi,eih->ebsh", narrow(g * (u + beta)), down) + bias[2]
        share = sum((selected[..., i] == np.arange(4)[:, None, None]) * scores[..., i] for i in range(2))
        return np.einsum("ebsh,ebs->bsh", y, share).astype(np.float32)

    layer = suite.net.add_moe(inputs[0], inputs[1], inputs[0])
    layer.set_input(2, inputs[2])
    layer.set_gated_weights(*weights, trt.MoEActType.SILU)
    assert layer.activation_type is trt.MoEActType.SILU
    suite.expect(layer, expected(True), 1e-4)
    layer = suite.net.add_moe(*inputs)
    layer.set_gated_weights(*weights, trt.MoEActType.SILU)
    layer.activation_type = trt.MoEActType.NONE
    suite.expect(layer, expected(False), 1e-4)
    layer = suite.net.add_moe(*inputs)
    layer.set_gated_weights(*weights, trt.MoEActType.SILU)
    layer.set_gated_biases(*map(suite.const, biases))
    layer.set_swiglu_params(1.0, 1.702, 1.0)
    layer.swiglu_param_limit = 0.75
    assert (layer.swiglu_param_limit, layer.swiglu_param_alpha, layer.swiglu_param_beta) == (0.75, 1.702, 1.0)
    suite.expect(layer, expected(True, 0.75, 1.702, 1.0, [b[:, None, None] for b in biases]), 1e-4)
    layer = suite.net.add_moe(*inputs)
    layer.set_gated_weights(*weights, trt.MoEActType.SILU)
    layer.set_quantization_static(suite.const(np.float32(0.125)), trt.int8)
    assert layer.quantization_to_type is trt.int8
    suite.expect(layer, expected(True, narrow=lambda h: np.round(h * 8).clip(-128, 127) / 8), 1e-3)
    layer = suite.net.add_moe(*inputs)
    layer.set_gated_weights(*weights, trt.MoEActType.SILU)
    layer.set_quantization_dynamic_dbl_q(suite.const(np.float32(1)), trt.fp8, (3,), trt.e8m0)
    assert layer.quantization_block_shape == (3,) and layer.dyn_q_output_scale_type is trt.e8m0

    def narrow(h):
        cut = h.reshape(*h.shape[:-1], 2, 3)
        power = 2.0 ** np.ceil(np.log2(np.abs(cut).max(-1, keepdims=True) / 448))
        return ((cut / power).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * power).reshape(h.shape)

    # A last bit may round to another of 8-bit floats.
    suite.expect(layer, expected(True, narrow=narrow), 2e-2)
    suite.run()
    net, log = network()
    x = net.add_input("x", trt.float32, (1, 2, 4))
    empty = net.add_moe(x, net.add_input("i", trt.int32, (1, 2, 1)), x)
    assert not empty.get_output(0).shape._valid and "got no weights" in log.errors.pop()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell(op, x, h, c, w, r, b, d):
    """One step; weights by gate."""
    z = {g: x @ w[g].T + b[g] for g in w}
    s = {g: h @ r[g].T + d[g] for g in w}
    if op in ("RELU", "TANH"):
        total = z["INPUT"] + s["INPUT"]
        return (np.maximum(total, 0) if op == "RELU" else np.tanh(total)), c
    if op == "LSTM":
        i, o, f = (sigmoid(z[g] + s[g]) for g in ("INPUT", "OUTPUT", "FORGET"))
        c = f * c + i * np.tanh(z["CELL"] + s["CELL"])
        return o * np.tanh(c), c
    u, t = (sigmoid(z[g] + s[g]) for g in ("UPDATE", "RESET"))
    return (1 - u) * np.tanh(z["HIDDEN"] + t * s["HIDDEN"]) + u * h, c


GATES = {"RELU": ["INPUT"], "TANH": ["INPUT"], "LSTM": ["INPUT", "OUTPUT", "FORGET", "CELL"], "GRU": ["UPDATE", "RESET", "HIDDEN"]}


@pytest.mark.parametrize("op", ["RELU", "TANH", "GRU", pytest.param("LSTM", marks=exercises("IRNNv2Layer.cell_state"))])
@exercises(
    "INetworkDefinition.add_rnn_v2", "IRNNv2Layer.num_layers", "IRNNv2Layer.hidden_size", "IRNNv2Layer.max_seq_length",
    "IRNNv2Layer.data_length", "IRNNv2Layer.seq_lengths", "IRNNv2Layer.op", "IRNNv2Layer.input_mode", "IRNNv2Layer.direction",
    "IRNNv2Layer.hidden_state", "IRNNv2Layer.set_weights_for_gate", "IRNNv2Layer.get_weights_for_gate",
    "IRNNv2Layer.set_bias_for_gate", "IRNNv2Layer.get_bias_for_gate", "RNNInputMode.LINEAR", "RNNInputMode.SKIP",
    "RNNDirection.UNIDIRECTION", "RNNDirection.BIDIRECTION",
)  # fmt: skip
def test_recurrent_layers(op):
    suite = Suite(4)
    for skip, both in ((False, True), (True, False)):
        directions, width = 1 + both, 3
        x, lengths = suite.random(2, 5, 3 if skip else 4), np.array([5, 3], np.int32)
        first, cells = suite.random(2, 2 * directions, width), suite.random(2, 2 * directions, width)
        layer = suite.net.add_rnn_v2(suite.input(x), 2, width, 5, getattr(trt.RNNOperation, op))
        layer.direction = trt.RNNDirection.BIDIRECTION if both else trt.RNNDirection.UNIDIRECTION
        layer.input_mode = trt.RNNInputMode.SKIP if skip else trt.RNNInputMode.LINEAR
        layer.seq_lengths, layer.hidden_state = suite.input(lengths), suite.input(first)
        if op == "LSTM":
            layer.cell_state = suite.input(cells)
            assert layer.cell_state.shape == cells.shape
        assert (layer.num_layers, layer.hidden_size, layer.max_seq_length, layer.data_length) == (2, 3, 5, x.shape[-1])
        assert layer.op is getattr(trt.RNNOperation, op) and layer.seq_lengths.shape == (2,) and layer.hidden_state.shape == first.shape
        sequence, last_h, last_c = x, [], []
        for index in range(2):
            results = []
            for direction in range(directions):
                place = index * directions + direction
                size = sequence.shape[-1]
                w, r, b, d = {}, {}, {}, {}
                for gate in GATES[op]:
                    kind = getattr(trt.RNNGateType, gate)
                    w[gate], r[gate], b[gate], d[gate] = suite.random(3, size), suite.random(3, 3), suite.random(3), suite.random(3)
                    if skip and index == 0:
                        w[gate] = np.eye(3, dtype=np.float32)
                    else:
                        layer.set_weights_for_gate(place, kind, True, w[gate])
                        assert np.array_equal(layer.get_weights_for_gate(place, kind, True), w[gate].reshape(-1))
                    layer.set_weights_for_gate(place, kind, False, r[gate])
                    layer.set_bias_for_gate(place, kind, True, b[gate])
                    layer.set_bias_for_gate(place, kind, False, d[gate])
                    assert np.array_equal(layer.get_bias_for_gate(place, kind, False), d[gate])
                out = np.zeros((2, 5, 3), np.float32)
                hs, cs = first[:, place].copy(), (cells if op == "LSTM" else 0 * cells)[:, place].copy()
                for n in range(2):
                    steps = range(lengths[n])
                    for t in reversed(steps) if direction else steps:
                        hs[n], cs[n] = cell(op, sequence[n, t], hs[n], cs[n], w, r, b, d)
                        out[n, t] = hs[n]
                results.append(out)
                last_h.append(hs)
                last_c.append(cs)
            sequence = np.concatenate(results, -1)
        suite.expect(layer, sequence)
        suite.expect(layer.get_output(1), np.stack(last_h, 1))
        if op == "LSTM":
            suite.expect(layer.get_output(2), np.stack(last_c, 1))
        else:
            assert layer.num_outputs == 2
    suite.run()


@exercises(*(f"RNNOperation.{op}" for op in GATES), *(f"RNNGateType.{g}" for g in {g for gates in GATES.values() for g in gates}))
def test_gates_that_are_missing():
    for op, gates in GATES.items():
        net, log = network()
        layer = net.add_rnn_v2(net.add_input("x", trt.float32, (2, 5, 4)), 1, 3, 5, getattr(trt.RNNOperation, op))
        for gate in gates:
            assert not layer.get_output(0).shape._valid and f"no weights for gate {gate}" in log.errors.pop()
            for is_w in (True, False):
                layer.set_weights_for_gate(0, getattr(trt.RNNGateType, gate), is_w, np.zeros((3, 4 if is_w else 3), np.float32))
        assert layer.get_output(0).shape == (2, 5, 3)
