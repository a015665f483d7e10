"""Models of TensorFlow for the tests, made once. Without TensorFlow nothing here is collected: `make test-tensorflow` installs it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

# These tests run without those of the folder above, whose settings they share.
_BUILD = Path(__file__).resolve().parents[2] / "build"
os.environ.setdefault("DOVETAIL_CACHE", str(_BUILD / "test-cache"))
os.environ.setdefault("DOVETAIL_HOME", str(_BUILD / "test-home"))
os.environ.setdefault("DOVETAIL_VERIFY", "1")

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("tensorflow") is None else []


@pytest.fixture(scope="session")
def keras():
    """Keras with seeded weights."""
    from dovetail.export.tensorflow_runtime import keras_module

    keras = keras_module()
    keras.utils.set_random_seed(7)
    return keras


def convolutional(keras):
    """Convolutions of all kinds with batch normalisation, whose statistics are not the initial ones."""
    layers = keras.layers
    x = keras.Input((15, 17, 3), name="image")
    y = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(name="norm")(y))
    y = layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(y)
    y = layers.SeparableConv2D(12, 3, padding="valid", activation="swish")(y)
    y = layers.Add()([layers.Conv2D(12, 1)(y), y])
    y = layers.Dropout(0.4)(layers.MaxPooling2D(2, padding="same")(y))
    y = layers.Conv2DTranspose(4, 2, strides=2, padding="same")(y)
    y = layers.UpSampling2D(2, interpolation="bilinear")(y)
    y = layers.Dense(5, activation="softmax", name="probs")(layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, y, name="convolutional")
    rng = np.random.default_rng(3)
    norm = model.get_layer("norm")
    norm.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in norm.get_weights()])
    return model


@pytest.fixture(scope="session")
def cnn(keras):
    """A functional Keras model."""
    return convolutional(keras)


@pytest.fixture(scope="session")
def picture():
    """An input of `cnn`."""
    return np.random.default_rng(5).standard_normal((3, 15, 17, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def files(cnn, tmp_path_factory) -> dict[str, Path]:
    """`cnn` as a file of every kind."""
    import tensorflow as tf

    from dovetail.export.tensorflow_runtime import quiet
    from dovetail.export.tensorflow_sources import Wanted, open_source

    folder = tmp_path_factory.mktemp("models")
    with quiet():
        cnn.save(folder / "m.keras")
        cnn.save(folder / "m.h5")
        cnn.export(folder / "saved", verbose=False)
        (folder / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved")).convert())
    frozen = open_source(cnn, Wanted())
    (folder / "m.pb").write_bytes(frozen.graph.SerializeToString())
    names = {"keras": "m.keras", "h5": "m.h5", "saved": "saved", "tflite": "m.tflite", "pb": "m.pb"}
    return {kind: folder / name for kind, name in names.items()}


@pytest.fixture
def same():
    """Whether Dovetail's engine of a model computes what TensorFlow did: the largest difference, relative to the largest value."""

    def check(model, feeds, wanted, tolerance=1e-5):
        import dovetail

        engine = dovetail.build(model, tune=False)
        got = engine.run(feeds)
        for name, value in wanted.items():
            want = np.asarray(value)
            assert got[name].shape == want.shape and got[name].dtype == want.dtype, (name, got[name].shape, want.shape)
            apart = np.abs(got[name].astype(np.float64) - want.astype(np.float64)).max(initial=0)
            assert apart <= tolerance * max(1.0, np.abs(want.astype(np.float64)).max(initial=0)), (name, apart)
        return got

    return check
