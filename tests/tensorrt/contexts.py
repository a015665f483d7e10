"""Contexts of the image engine, and what its outputs are compared with."""

import numpy as np

import dovetail
from tests.tensorrt import engines
from tests.tensorrt.engines import at, normal, opened


def reference(data, **feeds):
    """What Dovetail's own engine gives."""
    return dovetail.load(data).run(feeds)


def image(n=2, log=None, **settings):
    """A context of the image engine with addresses set, its input and its outputs."""
    engine = opened(engines.image(), log, **settings)
    context = engine.create_execution_context()
    x = normal(n, 3, 6, 5, seed=n)
    outputs = {"y": np.zeros((n, 4, 6, 5), np.float32), "raw": np.zeros((n, 4, 6, 5), np.float32)}
    assert context.set_input_shape("x", x.shape)
    for name, array in {"x": x, **outputs}.items():
        assert context.set_tensor_address(name, at(array))
    return context, x, outputs


def same(got, want):
    """All outputs are those of Dovetail's own engine."""
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])
