"""Every kind of model of TensorFlow: exported, built, and run against TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import dovetail
from dovetail import export
from dovetail.core.errors import ExportError, ModelError, UsageError
from dovetail.export.tensorflow_runtime import quiet


@pytest.mark.parametrize("kind", ["keras", "h5", "saved", "pb", "tflite"])
def test_files_export_build_and_run(kind, files, cnn, picture, same):
    model = export.tensorflow(files[kind])
    (name,) = model.report.outputs
    assert list(model.report.inputs) == ["image"]
    assert model.report.worst < 1e-5
    same(model, {"image": picture}, {name: cnn(picture, training=False)})


def test_names_and_sizes_are_the_users(files, cnn):
    assert export.tensorflow(cnn).report.outputs == {"probs": "f32[batch, 5]"}
    saved = export.tensorflow(files["saved"])
    assert saved.report.inputs == {"image": "f32[batch, 15, 17, 3]"} and list(saved.report.outputs) == ["output_0"]
    frozen = export.tensorflow(files["pb"], inputs=["image:0"], dynamic={"image": {0: "n"}})
    assert frozen.report.inputs == {"image": "f32[n, 15, 17, 3]"}
    assert not any(":" in name for name in (*frozen.report.inputs, *frozen.report.outputs))
    fixed = export.tensorflow(files["keras"], shapes={"image": (2, 15, 17, 3)})
    assert fixed.report.inputs == {"image": "f32[2, 15, 17, 3]"} and fixed.report.outputs == {"probs": "f32[2, 5]"}


def test_channels_in_front_only_where_asked(cnn, picture, same):
    model = export.tensorflow(cnn, inputs_as_nchw=["image"])
    assert model.report.inputs == {"image": "f32[batch, 3, 15, 17]"}
    assert model.report.worst < 1e-5
    same(model, {"image": np.ascontiguousarray(np.moveaxis(picture, -1, 1))}, {"probs": cnn(picture, training=False)})


def test_outputs_get_channels_in_front_too(same):
    kernel = tf.constant(np.random.default_rng(0).standard_normal((3, 3, 2, 4)), tf.float32)
    spec = tf.TensorSpec([None, 8, 9, 2], tf.float32, "x")

    @tf.function(input_signature=[spec])
    def function(x):
        return {"y": tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME"))}

    model = export.tensorflow(function, inputs_as_nchw=["x"], outputs_as_nchw=["y"])
    assert model.report.outputs["y"].endswith("4, 8, 9]")
    x = np.random.default_rng(1).standard_normal((2, 8, 9, 2)).astype(np.float32)
    same(model, {"x": np.ascontiguousarray(np.moveaxis(x, -1, 1))}, {"y": np.moveaxis(function(x)["y"].numpy(), -1, 1)})


CELLS = {
    "LSTM": ("LSTM", lambda layers: layers.LSTM(6, return_sequences=True)),
    "both directions": ("LSTM", lambda layers: layers.Bidirectional(layers.LSTM(5))),
    "GRU": ("GRU", lambda layers: layers.GRU(6, return_sequences=True)),
    "GRU, last": ("GRU", lambda layers: layers.GRU(6, activation="relu")),
    "GRU, both directions": ("GRU", lambda layers: layers.Bidirectional(layers.GRU(5, return_sequences=True))),
    "GRU of another kind": ("Loop", lambda layers: layers.GRU(6, reset_after=False)),
    "GRU with masks": ("Loop", lambda layers: layers.GRU(4)),
}


@pytest.mark.parametrize("name", CELLS)
def test_recurrent_models(keras, name, same):
    layers, (op, cell) = keras.layers, CELLS[name]
    masks = [layers.Masking()] if "masks" in name else []
    given = keras.Input((None if name == "GRU" else 7, 5), name="sequence")
    model = keras.Sequential([given, *masks, cell(layers), layers.Dense(3, name="out")])
    rng = np.random.default_rng(4)
    model.set_weights([rng.standard_normal(w.shape).astype(np.float32) * 0.4 for w in model.get_weights()])
    made = export.tensorflow(model)
    assert op in made.report.operators and (op == "Loop") == ("Loop" in made.report.operators)
    x = rng.standard_normal((4, 7, 5)).astype(np.float32)
    if name in ("LSTM", "GRU", "GRU, last"):
        same(made, {"sequence": x}, {"out": model(x, training=False)})
    else:
        assert made.report.worst < 1e-5


def test_a_gru_gives_its_state(keras, same):
    x = keras.Input((7, 5), name="sequence")
    model = keras.Model(x, keras.layers.GRU(4, return_sequences=True, return_state=True, name="gru")(x))
    made = export.tensorflow(model)
    assert "GRU" in made.report.operators and list(made.report.outputs) == ["gru", "gru_1"] and made.report.worst < 1e-5


def test_several_inputs_and_outputs_of_a_dict_keep_their_keys(keras, same):
    layers = keras.layers
    a, b = keras.Input((4,), name="b_first"), keras.Input((6,), name="a_second")
    left = layers.Dense(3)(a)
    model = keras.Model({"b_first": a, "a_second": b}, {"z": left, "m": layers.Concatenate()([layers.Dense(2)(b), left])})
    made = export.tensorflow(model)
    rng = np.random.default_rng(0)
    feeds = {"b_first": rng.standard_normal((2, 4)).astype(np.float32), "a_second": rng.standard_normal((2, 6)).astype(np.float32)}
    assert set(made.report.inputs) == set(feeds)
    same(made, feeds, model(feeds, training=False))
    alone = export.tensorflow(model, outputs=["z"])
    assert list(alone.report.outputs) == ["z"] and alone.report.unused_inputs == ["a_second"]


def test_a_subclassed_model_needs_its_inputs(keras, same):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x, training=False):
            return self.dense(x) * (2.0 if training else 1.0)

    net = Net()
    with pytest.raises(UsageError, match=r"whose inputs nobody has said; give signature="):
        export.tensorflow(net)
    x = np.ones((2, 5), np.float32)
    net(x)
    built = export.tensorflow(net)
    assert any("those it was built with" in note for note in built.report.notes)
    named = export.tensorflow(net, signature=[tf.TensorSpec([None, 5], tf.float32, "x")])
    same(named, {"x": x}, {"output_0": net(x, training=False)})


class TwoSignatures(tf.Module):
    """A model with variables, a lookup table and two functions."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.reshape(tf.range(12, dtype=tf.float32), (4, 3)) / 10)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def score(self, x):
        return {"scores": tf.matmul(x, self.weight)}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([None], tf.float32, "bias")])
    def best(self, x, bias):
        y = tf.matmul(x, self.weight) + bias[:, None]
        return {"index": tf.argmax(y, 1), "value": tf.reduce_max(y, 1)}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("two") / "saved", TwoSignatures()
    with quiet():
        tf.saved_model.save(module, str(folder), signatures={"score": module.score, "best": module.best})
    return folder, module


def test_a_saved_model_with_two_signatures(two, same):
    folder, module = two
    x, bias = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), np.zeros(3, np.float32)
    with pytest.raises(UsageError, match="choose with --signature: best, score"):
        export.tensorflow(folder)
    with pytest.raises(UsageError, match="did you mean 'score'"):
        export.tensorflow(folder, signature="scores")
    same(export.tensorflow(folder, signature="score"), {"x": x}, module.score(x))
    made = export.tensorflow(f"tensorflow:{folder}", signature="best", tag="serve")
    same(made, {"x": x, "bias": bias}, module.best(x, bias))
    with pytest.raises(UsageError, match=r"--tag: got train, expected one of the tag sets .*'serve'"):
        export.tensorflow(folder, signature="score", tag="train")


def test_functions_modules_and_concrete_functions(same):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    weight = tf.Variable(tf.ones((4, 2)))

    def plain(x):
        return tf.nn.relu(x @ weight), x * 2

    spec = tf.TensorSpec([None, 4], tf.float32, "x")
    function = tf.function(plain)
    for source, signature in ((plain, [spec]), (function, [x]), (function.get_concrete_function(spec), None)):
        made = export.tensorflow(source, signature=signature)
        assert list(made.report.outputs) == ["output_0", "output_1"]
        same(made, {"x": x}, {"output_0": plain(x)[0], "output_1": plain(x)[1]})
    with pytest.raises(UsageError, match=r"whose inputs nobody has said; give signature=\[tf.TensorSpec"):
        export.tensorflow(function)


def test_control_flow_and_data_dependent_loops(same):
    @tf.function(input_signature=[tf.TensorSpec([3], tf.float32, "x"), tf.TensorSpec([], tf.int32, "n")])
    def function(x, n):
        y = x
        for i in tf.range(n):
            y = y + tf.cast(i, tf.float32) * x
        if tf.reduce_sum(y) > 0.0:
            y = y * 2.0
        else:
            y = y - 1.0
        return {"y": y}

    made = export.tensorflow(function)
    assert {"Loop", "If"} <= set(made.report.operators)
    for n, sign in ((4, 1), (3, -1)):
        x = np.arange(1, 4, dtype=np.float32) * sign
        same(made, {"x": x, "n": np.array(n, np.int32)}, function(x, n))


def test_a_frozen_graph_is_cut_at_any_tensor(files, cnn, picture, same):
    graph = tf.compat.v1.GraphDef.FromString(files["pb"].read_bytes())
    inner = next(f"{n.name}:0" for n in graph.node if n.op == "DepthwiseConv2dNative" or n.op == "SpaceToBatchND")
    head = export.tensorflow(files["pb"], outputs=[inner])
    (name,) = head.report.outputs
    middle = dovetail.build(head, tune=False).run({"image": picture})[name]
    assert middle.ndim == 4 and head.report.worst < 1e-5
    whole = export.tensorflow(files["pb"])
    assert len(head.proto.graph.node) < len(whole.proto.graph.node)


def test_a_frozen_graph_begins_at_any_tensor(tmp_path, same):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        y = tf.nn.relu(x * 2.0, "middle")
        tf.identity(y + 1.0, "end")
    path = tmp_path / "g.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    made = export.tensorflow(path, inputs=["middle:0"], outputs=["end"])
    assert list(made.report.inputs) == ["middle"] and "Relu" not in made.report.operators
    value = np.ones((2, 4), np.float32) * -3
    same(made, {"middle": value}, {"end": value + 1})


def quantised(keras, kind):
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((12, 12, 3), batch_size=1, name="x"), layers.Conv2D(8, 3, activation="relu"), layers.DepthwiseConv2D(3),
         layers.GlobalAveragePooling2D(), layers.Dense(4, name="y")]
    )  # fmt: skip
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    rng = np.random.default_rng(0)
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif kind != "dynamic":
        converter.representative_dataset = lambda: ([rng.standard_normal((1, 12, 12, 3)).astype(np.float32)] for _ in range(8))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(kind)
    with quiet():
        return converter.convert()


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "uint8"])
def test_quantised_tflite(keras, kind, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(quantised(keras, kind))
    made = export.tensorflow(path)
    assert made.report.differences
    if kind in ("int8", "uint8"):
        assert made.report.inputs == {"x": f"{'i' if kind == 'int8' else 'u'}8[1, 12, 12, 3]"}
        assert made.report.differences[0].max_abs <= 2
    engine = dovetail.build(made, tune=False)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 12, 12, 3)).astype(np.float32)
    if kind in ("int8", "uint8"):
        x = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, x.shape, kind)
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    want = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    (got,) = engine.run({"x": x}).values()
    steps = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
    assert got.dtype == want.dtype and steps <= (2 if kind in ("int8", "uint8") else 0.05)


def test_whatever_takes_a_model_takes_one_of_tensorflow(keras):
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")])
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    assert np.allclose(dovetail.build(model, tune=False).run({"x": x})["y"], model(x).numpy(), atol=1e-6)
    function = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    assert [b.name for b in dovetail.Model.load(function).outputs] == ["output_0"]


def test_an_input_of_unknown_rank_needs_a_shape():
    function = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec(None, tf.float32, "x")])
    with pytest.raises(UsageError, match=r"rank of input 'x' is not known; give its shape: --shapes x:"):
        export.tensorflow(function)
    assert export.tensorflow(function, shapes={"x": (None, 3)}).report.outputs == {"output_0": "f32[batch, 3]"}


def test_training_mode_is_refused():
    scale = tf.ones(3)

    @tf.function(input_signature=[tf.TensorSpec([2, 4, 4, 3], tf.float32, "x")])
    def function(x):
        return tf.raw_ops.FusedBatchNormV3(x=x, scale=scale, offset=scale, mean=[], variance=[], is_training=True).y

    with pytest.raises(ExportError, match=r"training mode .*FusedBatchNormV3.*training=False"):
        export.tensorflow(function)


def test_a_graph_with_variables_is_no_frozen_one(tmp_path):
    with tf.Graph().as_default() as graph:
        tf.compat.v1.get_variable("weight", [3], use_resource=False)
    path = tmp_path / "g.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ModelError, match=r"1 variables \(such as 'weight'\).*export a SavedModel"):
        export.tensorflow(path)


def test_large_models_are_exported_without_serialised_protos(cnn, picture, same):
    same(export.tensorflow(cnn, large_model=True), {"image": picture}, {"probs": cnn(picture, training=False)})
