"""Engines on the caller's memory: outputs from functions, arrays at addresses, memory between steps, shapes before a run, bytes."""

import gc
import weakref

import numpy as np
import pytest

import dovetail
from dovetail.core.errors import (
    BindingError,
    ExecutionError,
    PlanFormatError,
    ShapeError,
    UsageError,
)
from dovetail.device.cpu.memory import address
from dovetail.runtime.arrays import at_address


@pytest.fixture(scope="module")
def engine():
    """y = softmax(relu(x w)), t where y passes a half, and x as it came: a known shape, a shape of the data, a copy."""
    rng = np.random.default_rng(3)
    net = dovetail.Network()
    x = net.input("x", "f32", ("1..6", 5))
    w = net.weight("w", rng.standard_normal((5, 7)).astype(np.float32))
    y = net.op("Softmax", net.op("Relu", net.op("MatMul", x, w), name="relu"), axis=-1, name="softmax")
    net.output(y, "y")
    net.output(net.op("NonZero", net.op("Greater", y, np.float32(0.2))), "t")
    net.output(net.op("Transpose", x, perm=(1, 0)), "xt")
    return dovetail.build(net, verify="off", tune=False)


def feeds(n=4):
    return {"x": np.random.default_rng(n).standard_normal((n, 5)).astype(np.float32)}


def test_functions_make_outputs_once_their_shape_is_known(engine):
    want, made = engine.run(feeds()), {}

    def maker(name):
        def make(shape, dtype):
            assert name not in made
            made[name] = np.full(shape, 7, dtype)
            return made[name]

        return make

    got = engine.run(feeds(), {name: maker(name) for name in ("y", "t", "xt")})
    for name, value in want.items():
        assert got[name] is made[name] or np.shares_memory(got[name], made[name])
        np.testing.assert_array_equal(made[name], value)


@pytest.mark.parametrize("wrong", [lambda s, d: np.empty((9, 9), d), lambda s, d: np.empty(s, np.float64), lambda s, d: None])
@pytest.mark.parametrize("name", ["y", "t"])
def test_what_a_function_makes_must_fit(engine, wrong, name):
    with pytest.raises(BindingError, match=f"output '{name}'"):
        engine.run(feeds(), {name: wrong})


def test_arrays_at_addresses(engine):
    inputs, out = feeds()["x"], np.zeros(28, np.float32)
    at = address(out)
    y = at_address(at, (4, 7), out.dtype, out)
    want = engine.run(feeds())["y"]
    engine.run({"x": at_address(address(inputs), (4, 5), inputs.dtype)}, {"y": y})
    np.testing.assert_array_equal(out.reshape(4, 7), want)
    owner = weakref.ref(out)
    del out
    gc.collect()
    assert owner() is not None
    del y
    gc.collect()
    assert owner() is None
    assert at_address(0, (0, 3), np.dtype(np.int64)).shape == (0, 3)


def test_memory_between_steps_is_the_callers(engine):
    context = engine.context()
    size = engine.runtime.memory_bytes({"x": (4, 5)})
    assert size >= 4 * 7 * 4
    memory = np.zeros(size + 1, np.uint8)
    context.use_memory(address(memory) + 1, size, memory)
    want = engine.run(feeds())
    for name, value in context.run(feeds()).items():
        np.testing.assert_array_equal(value, want[name])
    assert memory.any()
    memory[:] = 0
    context.use_memory(0, 0)
    context.run(feeds())
    assert not memory.any()
    with pytest.raises(ShapeError):
        engine.runtime.memory_bytes({"x": (7, 5)})
    context._busy.acquire()
    with pytest.raises(ExecutionError, match="one thread per"):
        context.use_memory(0, 0)


def test_shapes_of_outputs_before_a_run(engine):
    assert engine.infer_shapes({"x": (3, 5)}) == {"y": (3, 7), "t": (2, None), "xt": (5, 3)}
    assert engine.infer_shapes({}) == {"y": (None, 7), "t": (2, None), "xt": (5, None)}
    assert engine.shape_inference.inputs == ()
    with pytest.raises(ShapeError, match="expected 1 to 6"):
        engine.infer_shapes({"x": (7, 5)})


def test_largest_shapes_that_data_may_choose(engine):
    assert engine.shape_inference.largest({"x": (3, 5)}) == {"y": (3, 7), "t": (2, 21), "xt": (5, 3)}
    assert engine.shape_inference.largest({})["t"] == (2, None)
    net = dovetail.Network()
    x = net.input("x", "f32", ("N", 4))
    found = net.op("NonZero", x)
    net.output(net.op("Concat", found, found, axis=1), "twice")
    net.output(net.op("Slice", found, np.array([1]), np.array([2**62]), np.array([1])), "rest")
    net.output(net.op("Compress", x, net.op("Greater", net.op("ReduceMax", x, np.array([1]), keepdims=0), np.float32(0)), axis=0), "rows")
    largest = dovetail.build(net, verify="off", tune=False).shape_inference.largest({"x": (3, 4)})
    assert largest["twice"] == (2, 24) and largest["rows"] == (3, 4)
    assert largest["rest"] in ((2, None), (2, 11), (2, 12))


def test_shapes_that_are_computed_of_values():
    net = dovetail.Network()
    shape, count = net.input("shape", "i32", (2,)), net.input("count", "i64", ())
    x = net.input("x", "f32", (1, "N"))
    wide = net.op("Add", net.op("Cast", shape, to=np.int64), np.array([1, 0]))
    net.output(net.op("Expand", x, wide), "y")
    first = net.op("Slice", x, np.array([0]), np.array([1]), np.array([1]))
    net.output(net.op("Expand", first, net.op("Reshape", count, np.array([1]))), "z")
    engine = dovetail.build(net, verify="off", tune=False)
    assert set(engine.shape_inference.inputs) == {"shape", "count"}
    shapes = {"shape": (2,), "count": (), "x": (1, 1)}
    got = engine.infer_shapes(shapes, {"shape": [2, 4], "count": 3})
    results = engine.run({"shape": np.array([2, 4], np.int32), "count": np.array(3), "x": np.ones((1, 1), np.float32)})
    assert got == {name: array.shape for name, array in results.items()} and got["y"] == (3, 4)
    assert None in engine.infer_shapes(shapes)["y"] and None in engine.infer_shapes(shapes, {"count": 3})["y"]
    with pytest.raises(ShapeError, match="non-negative"):
        engine.infer_shapes(shapes, {"shape": [3, -4], "count": 1})


def test_engines_as_bytes(engine, tmp_path):
    data = engine.to_bytes()
    engine.save(tmp_path / "e.plan")
    assert isinstance(data, bytes) and len(data) == (tmp_path / "e.plan").stat().st_size
    want = engine.run(feeds())["y"]
    for form in (data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(dovetail.load(form).run(feeds())["y"], want)
    stripped = engine.to_bytes(strip_weights=True)
    np.testing.assert_array_equal(dovetail.load(stripped, weights=engine.weights()).run(feeds())["y"], want)
    with pytest.raises(PlanFormatError, match="engine in memory"):
        dovetail.load(b"no engine")


def test_notes_stay_with_an_engine(engine):
    engine.annotate("mine", {"a": (1, 2)})
    assert engine.info["mine"] == {"a": [1, 2]} == dovetail.load(engine.to_bytes()).info["mine"]
    engine.annotate("mine", None)
    assert engine.info["mine"] is None
    for name, data in (("actual", {}), ("mine", object()), ("mine", float("nan"))):
        with pytest.raises(UsageError, match="annotate"):
            engine.annotate(name, data)
