"""Calibrators: batches come by address, ranges of all tensors go into a cache as text, and a cache spares the batches."""

import struct

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt.calibration import format_cache, parse_cache
from tests.tensorrt.coverage import cases, exercises
from tests.tensorrt.programs import Messages, expected, quick, run, sample, small


class Feeder:
    """Gives batches by the addresses of arrays that it keeps."""

    def __init__(self, batches=(), cache=None):
        super().__init__()
        self.batches, self.cache, self.written, self.names = list(batches), cache, None, []

    def get_batch_size(self):
        return 2

    def get_batch(self, names):
        self.names.append(list(names))
        if not self.batches:
            return None
        self.current = np.ascontiguousarray(self.batches.pop(0))
        return [self.current.ctypes.data]

    def read_calibration_cache(self):
        return self.cache

    def write_calibration_cache(self, cache):
        self.written = bytes(cache)


class Entropy2(Feeder, trt.IInt8EntropyCalibrator2):
    pass


class Entropy(Feeder, trt.IInt8EntropyCalibrator):
    pass


class MinMax(Feeder, trt.IInt8MinMaxCalibrator):
    pass


class Legacy(Feeder, trt.IInt8LegacyCalibrator):
    quantile = 1.0

    def get_quantile(self):
        return self.quantile


class Plain(Feeder, trt.IInt8Calibrator):
    def get_algorithm(self):
        return trt.CalibrationAlgoType.MINMAX_CALIBRATION


BATCHES = [sample(2, 8, seed=s) for s in range(4)]


def calibrated(calibrator, batch=2):
    """(engine, weights, logger) of an INT8 build with a calibrator."""
    logger = Messages()
    builder = trt.Builder(logger)
    network, weights = small(builder, batch=batch)
    config = quick(builder)
    config.set_flag(trt.BuilderFlag.INT8)
    config.int8_calibrator = calibrator
    assert config.int8_calibrator is calibrator
    if batch == -1:
        for likely, setter in ((4, config.add_optimization_profile), (2, config.set_calibration_profile)):
            profile = builder.create_optimization_profile()
            profile.set_shape("x", (1, 8), (likely, 8), (8, 8))
            setter(profile)
        assert config.get_calibration_profile() is profile
    return builder.build_engine(network, config), weights, logger


KINDS = {"ENTROPY_CALIBRATION": Entropy, "ENTROPY_CALIBRATION_2": Entropy2, "LEGACY_CALIBRATION": Legacy, "MINMAX_CALIBRATION": MinMax}


@exercises("IBuilderConfig.int8_calibrator", "BuilderFlag.INT8")
@pytest.mark.parametrize(("algorithm", "kind"), cases("CalibrationAlgoType", **KINDS))
def test_every_kind_of_calibrator_writes_the_ranges_of_all_tensors(algorithm, kind):
    calibrator = kind(BATCHES)
    engine, weights, logger = calibrated(calibrator)
    assert calibrator.get_algorithm() is algorithm is getattr(trt.CalibrationAlgoType, algorithm.name)
    x = sample(2, 8)
    np.testing.assert_allclose(run(engine, x=x)["y"], expected(x, weights), rtol=1e-5, atol=1e-5)
    assert calibrator.names == [["x"]] * 5 and engine._record.actual["precision"] == "fp32"
    assert "INT8 was requested, actual is fp32" in logger.text()
    first, *lines = calibrator.written.decode().splitlines()
    words = algorithm.name.replace("MINMAX", "MIN_MAX").replace("_2", "2").title().replace("_", "")
    assert first == f"TRT-101601-{words}"
    scales = parse_cache(calibrator.written)
    assert len(lines) == len(scales) and {"x", "y"} <= set(scales)
    largest = np.abs(np.stack(BATCHES)).max()
    outputs = np.stack([expected(b, weights) for b in BATCHES]).max()
    for name, most in (("x", largest), ("y", outputs)):
        if algorithm in (trt.CalibrationAlgoType.MINMAX_CALIBRATION, trt.CalibrationAlgoType.LEGACY_CALIBRATION):
            assert scales[name] == pytest.approx(most / 127, rel=1e-3)
        else:
            assert 0.2 * most / 127 < scales[name] <= most / 127 * 1.001


@exercises(
    "IInt8Calibrator", "IInt8Calibrator.get_batch", "IInt8Calibrator.write_calibration_cache",
    "IInt8Calibrator.read_calibration_cache",
)  # fmt: skip
def test_a_cache_spares_the_batches():
    _interface = (trt.IInt8Calibrator.get_batch, trt.IInt8Calibrator.write_calibration_cache, trt.IInt8Calibrator.read_calibration_cache)
    first = Plain(BATCHES)
    calibrated(first)
    second = Plain((), cache=first.written)
    engine, _, logger = calibrated(second)
    assert engine is not None and second.names == [] and second.written is None and "read from the cache" in logger.text()
    third = Plain(BATCHES, cache=b"something else")
    assert calibrated(third)[0] is not None and third.written == first.written


CALIBRATORS = {
    "IInt8Calibrator": Plain, "IInt8LegacyCalibrator": Legacy, "IInt8EntropyCalibrator": Entropy, "IInt8EntropyCalibrator2": Entropy2,
    "IInt8MinMaxCalibrator": MinMax,
}  # fmt: skip
METHODS = ("get_batch_size", "get_batch", "read_calibration_cache", "write_calibration_cache", "get_algorithm")


@pytest.mark.parametrize(
    "name", [pytest.param(n, id=n, marks=exercises(n, *(f"{n}.{m}" for m in METHODS))) for n in CALIBRATORS]
)
def test_a_build_calls_the_methods_of_every_kind(name):
    kind = getattr(trt, name)
    assert all(hasattr(kind, method) for method in METHODS)
    called = []

    class Watched(CALIBRATORS[name]):
        def __getattribute__(self, attribute):
            if attribute in METHODS:
                called.append(attribute)
            return super().__getattribute__(attribute)

    calibrator = Watched(BATCHES)
    assert isinstance(calibrator, kind) and calibrated(calibrator)[0] is not None
    assert set(called) == set(METHODS) and called.count("get_batch") == 5 and calibrator.written.startswith(b"TRT-")


@exercises("IBuilderConfig.set_calibration_profile", "IBuilderConfig.get_calibration_profile")
def test_dynamic_inputs_have_the_likely_shape_of_the_calibration_profile():
    calibrator = Entropy2(BATCHES)
    engine, _, _ = calibrated(calibrator, batch=-1)
    assert engine is not None and set(parse_cache(calibrator.written)) >= {"x", "y"}


@pytest.mark.parametrize(
    ("calibrator", "why"),
    [(Entropy2(), "got no batches and no cache"), (Plain([np.zeros(0, np.float32)]), "got the address 0")],
    ids=["none", "null"],
)
def test_calibrators_that_give_nothing_fail_the_build(calibrator, why):
    if why.endswith("0"):
        calibrator.get_batch = lambda names: [0]
    engine, _, logger = calibrated(calibrator)
    assert engine is None and why in logger.errors()


def test_what_a_calibrator_raises_is_in_the_log():
    calibrator = Entropy2(BATCHES)
    calibrator.get_batch = lambda names: 1 / 0
    engine, _, logger = calibrated(calibrator)
    assert engine is None and "ZeroDivisionError" in logger.errors()


def test_a_cache_is_text_with_the_bits_of_scales():
    text = format_cache({"a: b": 0.5, "c": 1e-3}, trt.CalibrationAlgoType.ENTROPY_CALIBRATION_2)
    assert text == b"TRT-101601-EntropyCalibration2\na: b: 3f000000\nc: " + struct.pack(">f", 1e-3).hex().encode() + b"\n"
    assert parse_cache(text) == {"a: b": 0.5, "c": pytest.approx(1e-3)}
    assert parse_cache(b"none") is None and parse_cache(b"TRT-1-X\nname: zz\n") is None


def test_outliers_are_left_out_by_entropy_but_not_by_the_largest_value():
    batches = [np.where(np.arange(16).reshape(2, 8) == 3, 60, sample(2, 8, seed=s)).astype(np.float32) for s in range(30)]
    most = calibrated(found := MinMax(batches)) and parse_cache(found.written)["x"]
    least = calibrated(found := Entropy2(batches)) and parse_cache(found.written)["x"]
    assert most == pytest.approx(60 / 127, rel=1e-5) and least <= most
