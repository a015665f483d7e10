"""Optimization profiles: what is set is read back, bad shapes are refused, and an engine takes what a profile allows."""

import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.programs import Messages, expected, quick, run, sample, small


@exercises("IOptimizationProfile", "IOptimizationProfile.set_shape", "IOptimizationProfile.get_shape", "IOptimizationProfile.__bool__")
def test_shapes_are_read_back():
    profile = trt.Builder(Messages()).create_optimization_profile()
    assert profile and profile.get_shape("x") == []
    profile.set_shape("x", min=(1, 3), opt=trt.Dims((2, 3)), max=np.array([4, 3]))
    assert profile.get_shape("x") == [(1, 3), (2, 3), (4, 3)]
    profile.get_shape("x")[0][0] = 9
    profile.set_shape("s", (), (), ())
    assert profile.get_shape("s") == [(), (), ()]


@exercises("IOptimizationProfile.set_shape_input", "IOptimizationProfile.get_shape_input", "IOptimizationProfile.extra_memory_target")
def test_values_of_shape_tensors_are_read_back():
    profile = trt.Builder(Messages()).create_optimization_profile()
    assert profile.get_shape_input("s") == []
    profile.set_shape_input("s", [1, -1], (2, 5), np.array([3, 9]))
    assert profile.get_shape_input("s") == [[1, -1], [2, 5], [3, 9]]
    profile.set_shape_input("long", range(12), range(12), range(12))
    assert len(profile.get_shape_input("long")[2]) == 12
    assert profile.extra_memory_target == 1.0
    profile.extra_memory_target = 0.25
    assert profile.extra_memory_target == 0.25
    with pytest.raises(ValueError, match="expected 0 to 1"):
        profile.extra_memory_target = 1.5


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        (((1, 3), (2,), (4, 3)), "the same number"), (((2, 3), (1, 3), (4, 3)), "min <= opt <= max"),
        (((1, 3), (5, 3), (4, 3)), "min <= opt <= max"), (((-1, 3), (1, 3), (4, 3)), "min is inconsistent"),
    ],
)  # fmt: skip
def test_bad_shapes_are_refused_and_change_nothing(shapes, why):
    profile = trt.Builder(Messages()).create_optimization_profile()
    profile.set_shape("x", (1, 3), (2, 3), (4, 3))
    with pytest.raises(ValueError, match=why):
        profile.set_shape("x", *shapes)
    assert profile.get_shape("x") == [(1, 3), (2, 3), (4, 3)]
    with pytest.raises(TypeError):
        profile.set_shape(3, *shapes)
    with pytest.raises(TypeError):
        profile.set_shape_input("x", "a", "b", "c")


@exercises("IBuilderConfig.add_optimization_profile", "IBuilderConfig.num_optimization_profiles", "Builder.create_optimization_profile")
def test_an_engine_takes_what_its_profiles_allow():
    logger = Messages()
    builder = trt.Builder(logger)
    network, weights = small(builder, batch=-1)
    config = quick(builder)
    for index, batches in enumerate([(1, 2, 4), (6, 8, 9)]):
        profile = builder.create_optimization_profile()
        profile.set_shape("x", *[(n, 8) for n in batches])
        assert config.add_optimization_profile(profile) == index
    assert config.num_optimization_profiles == 2
    engine = builder.build_engine(network, config)
    assert engine.num_optimization_profiles == 2
    assert engine.get_tensor_shape("x") == (-1, 8) and engine.get_tensor_profile_shape("x", 1) == [(6, 8), (8, 8), (9, 8)]
    for batch in (1, 3, 4):
        x = sample(batch, 8)
        np.testing.assert_allclose(run(engine, x=x)["y"], expected(x, weights), rtol=1e-5, atol=1e-5)
    context = engine.create_execution_context()
    assert not context.set_input_shape("x", (9, 8))
    assert context.set_optimization_profile_async(1, 0) and context.set_input_shape("x", (9, 8))


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({}, "dynamic input is missing dimensions in profile 0"),
        ({"x": [(1, 7), (2, 7), (4, 7)]}, "does not match the network definition"),
        ({"x": [(1,), (2,), (4,)]}, "has shapes of 1 extents"),
        ({"x": [(1, 8), (2, 8), (4, 8)], "z": [(1,), (1,), (1,)]}, "expected names of inputs: x"),
        (None, "no optimization profile has been defined"),
    ],
)  # fmt: skip
def test_profiles_that_do_not_fit_the_network_fail_the_build(shapes, why):
    logger = Messages()
    builder = trt.Builder(logger)
    network, _ = small(builder, batch=-1)
    config = quick(builder)
    if shapes is not None:
        profile = builder.create_optimization_profile()
        for name, rows in shapes.items():
            profile.set_shape(name, *rows)
        config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is None
    assert why in logger.errors()
