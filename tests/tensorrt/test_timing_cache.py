"""Timing caches: builds go by them and add to them, they are carried as bytes, joined, looked into and changed."""

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt.timing_cache import tactic_hash
from tests.tensorrt.coverage import exercises
from tests.tensorrt.programs import Messages, run, sample

SIZE = 160  # products of this size are worth measuring


def product(builder, size=SIZE):
    """x @ w as a network."""
    network = builder.create_network(1)
    x = network.add_input("x", trt.float32, (size, size))
    w = network.add_constant((size, size), np.eye(size, dtype=np.float32)).get_output(0)
    layer = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, w, trt.MatrixOperation.NONE)
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))
    return network


@pytest.fixture(scope="module")
def measured():
    """A cache that a build has filled, as bytes."""
    builder = trt.Builder(Messages())
    config = builder.create_builder_config()
    config.builder_optimization_level = 1
    assert config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    engine = builder.build_engine(product(builder), config)
    x = sample(SIZE, SIZE)
    np.testing.assert_allclose(run(engine, x=x)["y"], x, rtol=1e-5, atol=1e-6)
    return config.get_timing_cache().serialize()


def configured(engine):
    """The tactic of the engine's product and its configuration, as timing caches name them."""
    (group,) = engine._engine.report().json()["groups"]
    return " ".join([group["tactic"], *(f"{name}={value}" for name, value in group["config"])])


def fresh(data=b""):
    logger = Messages()
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    config.builder_optimization_level = 1
    cache = config.create_timing_cache(data)
    return logger, builder, config, cache


@exercises(
    "ITimingCache", "ITimingCache.serialize", "IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache",
    "IBuilderConfig.get_timing_cache", "ITimingCache.queryKeys", "ITimingCache.reset",
)  # fmt: skip
def test_a_build_fills_its_cache_and_the_bytes_give_it_again(measured):
    _, _, config, cache = fresh(measured)
    assert cache.queryKeys() and bytes(cache.serialize()) == bytes(measured)
    assert config.get_timing_cache() is None
    assert config.set_timing_cache(cache, False) and config.get_timing_cache() is cache
    assert cache.reset() and cache.queryKeys() == []


@exercises("BuilderFlag.ERROR_ON_TIMING_CACHE_MISS")
def test_a_build_needs_nothing_measured_that_its_cache_has(measured):
    logger, builder, config, cache = fresh(measured)
    config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    config.set_timing_cache(cache, False)
    assert builder.build_serialized_network(product(builder), config) is not None
    cache.reset()
    assert builder.build_serialized_network(product(builder), config) is None
    assert "ERROR_ON_TIMING_CACHE_MISS" in logger.errors()


@exercises("BuilderFlag.DISABLE_TIMING_CACHE")
def test_a_build_without_a_cache_leaves_that_of_the_config_alone(measured):
    _, builder, config, cache = fresh()
    config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)
    config.set_timing_cache(cache, False)
    assert builder.build_serialized_network(product(builder), config) is not None
    assert cache.queryKeys() == []


@exercises("IBuilderConfig.builder_optimization_level", "IBuilderConfig.max_num_tactics")
@pytest.mark.parametrize(("level", "tactics"), [(0, -1), (1, 1)])
def test_builds_that_choose_by_rule_measure_nothing(level, tactics):
    _, builder, config, cache = fresh()
    config.set_timing_cache(cache, False)
    config.builder_optimization_level, config.max_num_tactics = level, tactics
    assert builder.build_serialized_network(product(builder), config) is not None
    assert cache.queryKeys() == []


@exercises("ITimingCache.combine")
def test_caches_are_joined(measured):
    logger, _, _, cache = fresh()
    other = fresh(measured)[3]
    assert cache.combine(other, ignore_mismatch=False)
    assert cache.queryKeys() == other.queryKeys()
    other._device = "cpu: another one"
    assert not cache.combine(other, False) and "another one" in logger.errors()
    assert cache.combine(other, True)


def test_a_cache_of_another_machine_is_refused_unless_that_is_wanted(measured):
    logger, _, config, cache = fresh(measured)
    cache._device = "cpu: another one"
    cache = config.create_timing_cache(cache.serialize())
    assert not config.set_timing_cache(cache, ignore_mismatch=False) and config.get_timing_cache() is None
    assert "another one" in logger.errors()
    assert config.set_timing_cache(cache, ignore_mismatch=True) and config.get_timing_cache() is cache


@exercises(
    "ITimingCache.query", "ITimingCache.update", "TimingCacheKey", "TimingCacheKey.parse", "TimingCacheKey.__str__", "TimingCacheValue",
    "TimingCacheValue.tacticHash", "TimingCacheValue.timingMSec", "BuilderFlag.EDITABLE_TIMING_CACHE",
)  # fmt: skip
def test_what_a_cache_says_decides_the_build(measured):
    logger, builder, config, cache = fresh(measured)
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    config.set_timing_cache(cache, False)
    key = cache.queryKeys()[0]
    assert trt.TimingCacheKey.parse(str(key)) == key
    times = cache._records[str(key)[2:]]["us"]
    slowest = max(times, key=times.get)
    assert configured(builder.build_engine(product(builder), config)) != slowest
    value = cache.query(key)
    assert value.tacticHash != tactic_hash(slowest) and value.timingMSec > 0
    value.tacticHash, value.timingMSec = tactic_hash(slowest), 0.001
    assert cache.update(key, value) and cache.query(key) == value
    assert configured(builder.build_engine(product(builder), config)) == slowest
    assert not cache.update(trt.TimingCacheKey.parse("0xabc"), value) and "no entry" in logger.errors()
    value.tacticHash = 5
    assert not cache.update(key, value)
    assert cache.update(key, trt.TimingCacheValue()) and cache.query(key).tacticHash == 0
    with pytest.raises(ValueError, match="hexadecimal"):
        trt.TimingCacheKey.parse("xyz")


@pytest.mark.parametrize("data", [b"no cache", b"dovetail timing cache 1 abcd{}"])
def test_bytes_that_are_no_cache_give_none(data):
    logger, _, _, cache = fresh(data)
    assert cache is None and "no timing cache" in logger.errors()
