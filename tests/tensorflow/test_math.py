"""Translations that tf2onnx lacks: exact where TensorFlow's are, zero where zero is meant, at old and new opsets."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dovetail import export
from dovetail.core.errors import ExportError
from dovetail.export.tensorflow_math import TRANSLATIONS

SMALL = np.array([-0.999, -0.5, -1e-3, -1e-7, -1e-12, 0.0, 1e-30, 1e-9, 3e-8, 1e-4, 0.3, 0.5, 1.0, 7.5, 80.0], np.float32)
ZEROS = np.array([0, 1, -2, 0, 3], np.float32)
VALUES = np.array([0.5, 2, 3, 1e-30, 0.25], np.float32)
RAW = tf.raw_ops
CASES = {
    "Log1p": (lambda x: RAW.Log1p(x=x), [SMALL]),
    "Expm1": (lambda x: RAW.Expm1(x=x), [SMALL]),
    "Xlogy": (lambda x, y: RAW.Xlogy(x=x, y=y), [ZEROS, VALUES]),
    "Xlog1py": (lambda x, y: RAW.Xlog1py(x=x, y=y), [ZEROS, VALUES]),
    "Xdivy": (lambda x, y: RAW.Xdivy(x=x, y=y), [ZEROS, VALUES * ZEROS]),
    "MulNoNan": (lambda x, y: RAW.MulNoNan(x=x, y=y), [np.array([np.inf, 1, 2, np.nan, 3], np.float32), ZEROS]),
    "L2Loss": (lambda x: RAW.L2Loss(t=x), [SMALL.reshape(3, 5)]),
    "EuclideanNorm": (lambda x: RAW.EuclideanNorm(input=x, axis=[1], keep_dims=True), [SMALL.reshape(3, 5)]),
    "TruncateMod": (lambda x, y: RAW.TruncateMod(x=x, y=y), [np.array([7, -7, 7, -7], np.int32), np.array([3, 3, -3, -3], np.int32)]),
    "Inv": (lambda x: RAW.Inv(x=x), [VALUES]),
}


def test_every_translation_is_tested():
    assert set(CASES) == set(TRANSLATIONS)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("op", CASES)
def test_results_are_tensorflows(op, opset):
    function, arrays = CASES[op]
    names = ["a", "b"][: len(arrays)]
    specs = [tf.TensorSpec(a.shape, a.dtype, n) for a, n in zip(arrays, names, strict=True)]
    traced = tf.function(function, input_signature=specs)
    made = export.tensorflow(traced, opset=opset, samples=dict(zip(names, arrays, strict=True)), tolerance=1e-6)
    assert op not in made.report.operators
    from dovetail.frontend.importer import import_onnx
    from dovetail.ops.evaluate import evaluate

    (got,) = evaluate(import_onnx(made), dict(zip(names, arrays, strict=True))).values()
    want = function(*map(tf.constant, arrays)).numpy()
    assert got.dtype == want.dtype and np.allclose(got, want, rtol=2e-6, atol=0)  # each value, not only the norm


def test_an_opset_without_them_says_which_has_them():
    function = tf.function(lambda x: RAW.Log1p(x=x), input_signature=[tf.TensorSpec([3], tf.float32, "x")])
    with pytest.raises(ExportError, match=r"Log1p[\s\S]*--opset 11"):
        export.tensorflow(function, opset=10)


def test_a_users_translation_takes_the_place_of_these():
    function = tf.function(lambda x: RAW.Log1p(x=x), input_signature=[tf.TensorSpec([3], tf.float32, "x")])
    with export.symbolic("tf::Log1p").use(lambda op, x: op.Log(op.Add(x, 1.0))):
        assert set(export.tensorflow(function, tolerance=1e-3).report.operators) <= {"Add", "Log", "Identity"}
