"""Operators that tf2onnx does not translate: all named at once, and the ways out."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import tensorflow as tf

import dovetail
from dovetail import export
from dovetail.core.errors import ExportError
from dovetail.export.tensorflow_conversion import CUSTOM_DOMAIN


@tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
def special(x):
    """Two operators without translation, one of them twice."""
    positive = tf.abs(x) + 1.0
    twice = tf.raw_ops.Lgamma(x=positive) + tf.raw_ops.Lgamma(x=positive * 2.0)
    return {"gamma": twice, "bessel": tf.math.bessel_i1e(x)}


def stirling(op, x):
    """lgamma(x) for x >= 1, by Stirling's series at x + 8."""
    product = x
    for i in range(1, 8):
        product = op.Mul(product, op.Add(x, float(i)))
    z = op.Add(x, 8.0)
    inverse = op.Div(1.0, z)
    square = op.Mul(inverse, inverse)
    series = op.Mul(inverse, op.Add(1 / 12, op.Mul(square, op.Add(-1 / 360, op.Mul(square, 1 / 1260)))))
    log = op.Sub(op.Mul(op.Sub(z, 0.5), op.Log(z)), z)
    return op.Sub(op.Add(op.Add(log, series), 0.5 * math.log(2 * math.pi)), op.Log(product))


def bessel(x):
    """The op itself."""
    return tf.math.bessel_i1e(x).numpy()


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def test_all_operators_are_named_with_nodes_places_and_four_ways_out(tmp_path):
    with pytest.raises(ExportError) as caught:
        export.tensorflow(special)
    text = str(caught.value)
    assert "2 operators of TensorFlow without a translation to opset 18 (3 nodes)" in text
    assert "Lgamma: 2 nodes, Lgamma, Lgamma_1" in text and "BesselI1e: 1 node" in text
    assert f"{__file__}:" in text and "in special" in text
    for op in ("Lgamma", "BesselI1e"):
        part = text[text.index(f"\n{op}:") :]
        for way in ("1. a newer opset", "2. a rewrite", "3. a translation", "4. a plugin"):
            assert way in part
        assert f'@dovetail.export.symbolic("tf::{op}", opset=' in part and f'@dovetail.plugin("{op}")' in part
    assert [f.op for f in caught.value.failures] == ["BesselI1e", "Lgamma"] and caught.value.failures[1].calls == 2
    assert "failures" in caught.value.json()


def test_an_operator_of_a_newer_opset_says_which():
    @tf.function(input_signature=[tf.TensorSpec([3, 4], tf.float32, "x"), tf.TensorSpec([2, 2], tf.int32, "at")])
    def function(x, at):
        return tf.tensor_scatter_nd_update(x, at, tf.constant([1.0, 2.0]))

    with pytest.raises(ExportError, match=r"TensorScatterUpdate[\s\S]*translates it from opset 11 on: --opset 11"):
        export.tensorflow(function, opset=9)
    assert export.tensorflow(function, opset=11).report.worst == 0


def test_a_registered_translation_is_used(x, same):
    with export.symbolic("tf::Lgamma", opset=9).use(stirling):
        model = export.tensorflow(special, outputs=["gamma"])
    assert "Lgamma" not in model.report.operators and model.report.worst < 1e-5
    same(model, {"x": x}, {"gamma": special(x)["gamma"]}, 1e-5)
    with pytest.raises(ExportError, match="Lgamma"):
        export.tensorflow(special, outputs=["gamma"])  # its registration has ended


def test_a_translation_gets_attributes_and_their_types_stay_out():
    seen = {}

    def matmul(op, a, b, transpose_a=False, transpose_b=False):
        seen.update(a=a.shape, kind=a.dtype.name, transpose_b=transpose_b)
        return op.MatMul(a, op.Transpose(b, perm=[1, 0]) if transpose_b else b)

    weight = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([2, 4], tf.float32, "x")])
    def function(x):
        return tf.matmul(x, tf.constant(weight), transpose_b=True)

    with export.symbolic("tf::MatMul").use(matmul):
        assert export.tensorflow(function).report.worst < 1e-6
    assert seen["a"] == (2, 4) and seen["kind"] == "f32" and bool(seen["transpose_b"])


def test_a_translation_that_fails_is_named_with_its_line():
    def broken(op, x):
        return op.Mul(x, undefined)  # noqa: F821 - the point

    told = r"why: translation of tf::Lgamma .*NameError.*undefined"
    with export.symbolic("tf::Lgamma").use(broken), pytest.raises(ExportError, match=told):
        export.tensorflow(special, outputs=["gamma"])


def test_continue_on_error_leaves_nodes_that_plugins_run(x, same):
    left = export.tensorflow(special, continue_on_error=True)
    assert left.report.untranslated == {"BesselI1e": ["bessel_i1e/BesselI1e"], "Lgamma": ["Lgamma", "Lgamma_1"]}
    assert not left.report.differences and "not compared with TensorFlow: nothing runs BesselI1e, Lgamma" in str(left.report)
    nodes = [n for n in left.proto.graph.node if n.domain == CUSTOM_DOMAIN]
    assert sorted(n.op_type for n in nodes) == ["BesselI1e", "Lgamma", "Lgamma"]
    assert not any(n.attribute for n in nodes)  # types of inputs are no attributes
    onnx.checker.check_model(left.proto)

    @dovetail.plugin("BesselI1e")
    def bessel_plugin(x: np.ndarray) -> np.ndarray:
        return bessel(x)

    with export.symbolic("tf::Lgamma", opset=9).use(stirling):
        model = export.tensorflow(special, continue_on_error=True)
    assert [d.output for d in model.report.differences] == ["bessel", "gamma"] and model.report.worst < 1e-5
    same(model, {"x": x}, special(x), 1e-5)


def test_operators_inside_loops_are_found_and_translated():
    @tf.function(input_signature=[tf.TensorSpec([4], tf.float32, "x"), tf.TensorSpec([], tf.int32, "n")])
    def function(x, n):
        for _ in tf.range(n):
            x = tf.raw_ops.Lgamma(x=tf.abs(x) + 1.0)
        return {"y": x}

    with pytest.raises(ExportError, match="Lgamma: 1 node"):
        export.tensorflow(function)
    with export.symbolic("tf::Lgamma").use(stirling):
        assert export.tensorflow(function).report.worst < 1e-5


def test_flat_text_of_ways_fits_the_opset_that_was_asked_for():
    with pytest.raises(ExportError, match=r'symbolic\("tf::Lgamma", opset=13\)'):
        export.tensorflow(special, opset=13)
