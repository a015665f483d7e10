"""Refitters: weights by layer and role or by name, all or none."""

import numpy as np
import pytest

import dovetail
import dovetail.tensorrt as trt
from dovetail.tensorrt.record import Record
from tests.tensorrt import engines
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Errors, Log, at, normal, opened

KERNEL, BIAS = trt.WeightsRole.KERNEL, trt.WeightsRole.BIAS


def raw(engine, x):
    """The `raw` output of the image engine."""
    context = engine.create_execution_context()
    y, out = np.zeros((x.shape[0], 4, 6, 5), np.float32), np.zeros((x.shape[0], 4, 6, 5), np.float32)
    assert context.set_input_shape("x", x.shape) and context.execute_v2([at(x), at(y), at(out)])
    return out


def expected(x, **weights):
    """The same of Dovetail's own engine with other weights."""
    engine = dovetail.load(engines.image())
    engine.refit({name.replace("_", "."): value for name, value in weights.items()})
    return engine.run({"x": x})["raw"]


@exercises("Refitter", "Refitter.get_all", "Refitter.get_all_weights", "Refitter.get_missing", "Refitter.get_missing_weights")
@exercises("Refitter.set_weights", "Refitter.refit_cuda_engine", "Refitter.logger", "WeightsRole.KERNEL", "WeightsRole.BIAS")
def test_weights_by_layer_and_role():
    log = Log()
    engine = opened(engines.image(), log)
    refitter = trt.Refitter(engine, log)
    assert refitter.logger is log
    assert refitter.get_all() == (["conv", "conv"], [trt.WeightsRole.KERNEL, trt.WeightsRole.BIAS])
    assert refitter.get_missing() == ([], [])
    assert set(refitter.get_all_weights()) == {"conv.w", "conv.b"} and refitter.get_missing_weights() == []
    x, kernel, bias = normal(2, 3, 6, 5), normal(4, 3, 3, 3, seed=7), normal(4, seed=8)
    before = raw(engine, x)
    assert refitter.set_weights("conv", KERNEL, kernel) and refitter.set_weights("conv", BIAS, trt.Weights(bias))
    np.testing.assert_array_equal(raw(engine, x), before)
    assert refitter.refit_cuda_engine() is True
    np.testing.assert_array_equal(raw(engine, x), expected(x, conv_w=kernel, conv_b=bias))
    log.messages.clear()
    for layer, role in (("relu", KERNEL), ("conv", trt.WeightsRole.SCALE), ("nothing", BIAS)):
        assert not refitter.set_weights(layer, role, bias) and log.errors()
    for arguments in (("conv", "BIAS", bias), (0, BIAS, bias), ("conv", BIAS, "weights"), ("conv", BIAS, [1.0])):
        with pytest.raises(TypeError):
            refitter.set_weights(*arguments)
    for arguments in ((engine, None), (None, log), ("engine", log)):
        with pytest.raises(TypeError):
            trt.Refitter(*arguments)


@exercises("Refitter.set_named_weights", "Refitter.get_named_weights", "Refitter.get_weights_location", "Refitter.unset_named_weights")
@exercises("Refitter.get_weights_prototype", "TensorLocation.HOST", "TensorLocation.DEVICE")
def test_weights_by_name():
    log = Log()
    engine = opened(engines.image(), log)
    refitter = trt.Refitter(engine, log)
    prototype = refitter.get_weights_prototype("conv.w")
    assert (prototype.dtype, prototype.size) == (trt.float32, 4 * 3 * 3 * 3)
    assert refitter.get_weights_prototype("nothing").size == -1
    x, bias = normal(1, 3, 6, 5), normal(4, seed=5)
    assert refitter.get_named_weights("conv.b").size == 0
    assert refitter.set_named_weights("conv.b", bias) and refitter.get_named_weights("conv.b").numpy().tolist() == bias.tolist()
    assert refitter.get_weights_location("conv.b") is trt.TensorLocation.HOST
    before = raw(engine, x)
    assert refitter.unset_named_weights("conv.b") and refitter.get_named_weights("conv.b").size == 0
    log.messages.clear()
    assert not refitter.unset_named_weights("conv.b") and log.errors()
    assert refitter.refit_cuda_engine()
    np.testing.assert_array_equal(raw(engine, x), before)
    # At an address, which is read by the refit; of a CPU the device's memory is the host's.
    held = np.zeros(4, np.float32)
    for location in (trt.TensorLocation.DEVICE, trt.TensorLocation.HOST):
        held[:] = 0
        assert refitter.set_named_weights("conv.b", trt.Weights(trt.float32, at(held), 4), location)
        assert refitter.get_weights_location("conv.b") is location
        held[:] = bias
        assert refitter.refit_cuda_engine()
        np.testing.assert_array_equal(raw(engine, x), expected(x, conv_b=bias))
    log.messages.clear()
    for name, wrong in (("nothing", bias), ("conv.b", normal(5)), ("conv.b", bias.astype(np.float16)), ("conv.w", bias)):
        assert not refitter.set_named_weights(name, wrong) and log.errors()
    for arguments in ((0, bias), ("conv.b", object()), ("conv.b", bias, 0)):
        with pytest.raises(TypeError):
            refitter.set_named_weights(*arguments)
    for method in ("get_named_weights", "get_weights_location", "unset_named_weights", "get_weights_prototype"):
        with pytest.raises(TypeError):
            getattr(refitter, method)(0)


@exercises("Refitter.refit_cuda_engine_async", "Refitter.max_threads", "Refitter.error_recorder", "Refitter.weights_validation")
def test_settings_and_refits_in_a_stream():
    log, recorder = Log(), Errors()
    engine = opened(engines.image(), log)
    refitter = trt.Refitter(engine, log)
    assert refitter.max_threads >= 1 and refitter.weights_validation and refitter.error_recorder is None
    refitter.max_threads = 2
    assert refitter.max_threads == 2
    refitter.error_recorder = recorder
    assert refitter.error_recorder is recorder
    refitter.max_threads = 0
    assert refitter.max_threads == 2 and recorder.kept
    bad = np.array([1, np.nan, 2, 3], np.float32)
    for validation in (True, False):
        refitter.weights_validation = validation
        log.messages.clear()
        assert refitter.set_named_weights("conv.b", bad) and refitter.refit_cuda_engine_async(5)
        warned = [text for severity, text in log.messages if severity is trt.Logger.WARNING]
        assert any("not finite" in text for text in warned) is validation
    x, bias = normal(2, 3, 6, 5), normal(4)
    assert refitter.set_named_weights("conv.b", bias) and refitter.refit_cuda_engine_async(stream_handle=0)
    np.testing.assert_array_equal(raw(engine, x), expected(x, conv_b=bias))
    for name, wrong in (("max_threads", "2"), ("weights_validation", 1), ("error_recorder", log)):
        with pytest.raises(TypeError):
            setattr(refitter, name, wrong)
    with pytest.raises(TypeError):
        refitter.refit_cuda_engine_async("stream")


@exercises("Refitter.set_dynamic_range", "Refitter.get_dynamic_range", "Refitter.get_tensors_with_dynamic_range")
def test_dynamic_ranges():
    log = Log()
    refitter = trt.Refitter(opened(engines.image()), log)
    assert refitter.get_tensors_with_dynamic_range() == ["y"] and refitter.get_dynamic_range("y") == (-1, 1)
    assert refitter.set_dynamic_range("y", (-2, 3)) and refitter.get_dynamic_range("y") == (-2, 3)
    engine = refitter._engine
    assert trt.Refitter(engine, log).get_dynamic_range("y") == (-1, 1)
    assert refitter.refit_cuda_engine() and trt.Refitter(opened(engine.serialize()), log).get_dynamic_range("y") == (-2, 3)
    assert not refitter.set_dynamic_range("x", [-1, 1]) and refitter.get_dynamic_range("x") == (0, 0) and len(log.errors()) == 2
    with pytest.raises(TypeError):
        refitter.set_dynamic_range("y", 3)
    with pytest.raises(TypeError):
        refitter.get_dynamic_range(None)


def test_engines_without_weights_run_once_they_have_them_all():
    whole = opened(engines.image())
    config = whole.create_serialization_config()
    config.set_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    log = Log()
    engine = opened(whole.serialize_with_config(config), log)
    refitter = trt.Refitter(engine, log)
    assert set(refitter.get_missing_weights()) == {"conv.w", "conv.b"} and refitter.get_missing() == (["conv", "conv"], [KERNEL, BIAS])
    assert refitter.set_named_weights("conv.w", normal(4, 3, 3, 3)) and refitter.get_missing_weights() == ["conv.b"]
    log.messages.clear()
    assert not refitter.refit_cuda_engine() and "'conv.b'" in log.errors()[0]
    assert refitter.set_named_weights("conv.b", normal(4)) and refitter.refit_cuda_engine()
    x = normal(3, 3, 6, 5)
    np.testing.assert_array_equal(raw(engine, x), raw(whole, x))
    assert refitter.get_missing_weights() == [] and engine.get_engine_stat(trt.EngineStat.STRIPPED_WEIGHTS_SIZE) == 0
    np.testing.assert_array_equal(raw(opened(engine.serialize()), x), raw(whole, x))


def test_engines_that_were_not_built_to_be_refitted():
    log = Log()
    with pytest.raises(TypeError, match="refitted"):
        trt.Refitter(opened(engines.batched()), log)
    assert "REFIT" in log.errors()[0]


@pytest.mark.parametrize("role", [pytest.param(r, marks=exercises(f"WeightsRole.{r}")) for r in ("SHIFT", "SCALE", "CONSTANT", "ANY")])
def test_every_role_finds_its_weights(role):
    plain = dovetail.load(engines.bare())
    kept = "CONSTANT" if role == "ANY" else role
    Record(inputs=("x",), outputs=("y",), refittable=True, roles=(("layer", kept, "w"),), profiles=Record.of(plain).profiles).attach(plain)
    log = Log()
    engine = opened(plain.to_bytes(), log)
    refitter = trt.Refitter(engine, log)
    w, x, y = normal(5, 3, seed=3), normal(2, 5), np.zeros((2, 3), np.float32)
    assert refitter.set_weights("layer", getattr(trt.WeightsRole, role), w) and refitter.refit_cuda_engine()
    assert not refitter.set_weights("layer", KERNEL, w)
    context = engine.create_execution_context()
    context.set_input_shape("x", x.shape)
    assert context.execute_v2([at(x), at(y)])
    np.testing.assert_allclose(y, np.maximum(x @ w, 0), rtol=1e-5, atol=1e-6)


def test_engines_that_know_nothing_of_tensorrt():
    log = Log()
    engine = opened(engines.bare(), log)
    refitter = trt.Refitter(engine, log)
    assert refitter.get_all_weights() == ["w"]
    layers, roles = refitter.get_all()
    w, x, y = normal(5, 3, seed=2), normal(2, 5), np.zeros((2, 3), np.float32)
    assert refitter.set_weights(layers[0], roles[0], w) and refitter.refit_cuda_engine()
    context = engine.create_execution_context()
    context.set_input_shape("x", x.shape)
    assert context.execute_v2([at(x), at(y)])
    np.testing.assert_allclose(y, np.maximum(x @ w, 0), rtol=1e-5, atol=1e-6)
