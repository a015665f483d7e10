"""Formats of inputs and outputs: element types and orders in memory of what the caller hands over."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.core.dtypes import F16
from dovetail.core.errors import BindingError, ShapeError, UsageError
from dovetail.engine.plan import NativeSegment, Port, Program
from dovetail.passes.io_formats import IOFormat
from dovetail.runtime.cuda.arrays import DeviceArray
from tests.unit import cuda_engines
from tests.unit.native_plans import buffer, step, tensor
from tests.unit.small_models import classifier


def image_model() -> onnx.ModelProto:
    """x[N,3,8,10] → Conv, Relu → y[N,4,8,10]; ids[N] i64 → twice[N]."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
        helper.make_node("Add", ["ids", "ids"], ["twice"], name="twice"),
    ]
    graph = helper.make_graph(
        nodes, "image",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 10]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 10]),
            helper.make_tensor_value_info("twice", TensorProto.INT64, ["N"]),
        ],
        [numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3), np.float32), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 10)).astype(np.float32), "ids": np.arange(2)}


@pytest.fixture(scope="module")
def want(feeds):
    return dovetail.build(image_model(), tune=False, verify="off").run(feeds)["y"]


@pytest.fixture(scope="module")
def engine():
    return dovetail.build(image_model(), tune=False, io_formats={"x": "f16:channels_last", "y": "f16:channels_last"})


def dense_in(array: np.ndarray, order: tuple[int, ...]) -> bool:
    return array.transpose(order).flags.c_contiguous


def test_bindings_have_the_format_and_the_models_shape(engine):
    x, y = engine.inputs[0], engine.outputs[0]
    assert x.dtype == y.dtype == F16 and x.order == y.order == (0, 2, 3, 1)
    assert [str(d) for d in x.shape] == ["N", "3", "8", "10"] and [str(d) for d in y.shape] == ["N", "4", "8", "10"]
    assert str(x) == "x: f16[N, 3, 8, 10] <0,2,3,1>" and engine.outputs[1].order == ()


def test_arrays_of_any_strides_are_taken_and_results_lie_as_asked(engine, feeds, want):
    half = feeds["x"].astype(np.float16)
    last = np.ascontiguousarray(half.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for x in (half, last, np.asfortranarray(half), half[:, :, ::-1][:, :, ::-1]):
        y = engine.run({"x": x, "ids": feeds["ids"]})["y"]
        assert y.shape == want.shape and y.dtype == np.float16 and dense_in(y, (0, 2, 3, 1))
        assert np.linalg.norm(y - want) <= 1e-3 * np.linalg.norm(want)


def test_results_are_written_into_arrays_of_that_order(engine, feeds, want):
    out = np.empty((2, 8, 10, 4), np.float16).transpose(0, 3, 1, 2)
    given = engine.run({"x": feeds["x"].astype(np.float16), "ids": feeds["ids"]}, {"y": out})["y"]
    assert np.shares_memory(given, out) and given.shape == out.shape
    assert np.linalg.norm(out - want) <= 1e-3 * np.linalg.norm(want)
    with pytest.raises(BindingError, match="expected a C-contiguous array"):
        engine.run({"x": feeds["x"].astype(np.float16), "ids": feeds["ids"]}, {"y": np.empty((2, 4, 8, 10), np.float16)})


def test_wrong_arrays_are_refused(engine, feeds):
    with pytest.raises(BindingError, match="got dtype float32, expected float16"):
        engine.run(feeds)
    with pytest.raises(ShapeError, match="got rank 3"):
        engine.run({"x": feeds["x"][0].astype(np.float16), "ids": feeds["ids"]})
    with pytest.raises(ShapeError, match=r"the caller's axes \(0, 2, 3, 1\)"):
        engine.run({"x": np.zeros((2, 3, 8, 9), np.float16), "ids": feeds["ids"]})


def test_no_kernel_only_reorders_a_channels_last_image(engine):
    report = engine.report().json()
    assert not report["copies"] and report["native_steps"] == 2 + 1  # a cast, the convolution, the sum of ids
    assert report["requested"]["io_formats"] == {"x": "f16:channels_last", "y": "f16:channels_last"}


def test_saved_engines_keep_their_formats(engine, feeds, want, tmp_path):
    engine.save(tmp_path / "m.plan")
    opened = dovetail.load(tmp_path / "m.plan")
    assert opened.inputs == engine.inputs and opened.outputs == engine.outputs
    y = opened.run({"x": feeds["x"].astype(np.float16), "ids": feeds["ids"]})["y"]
    assert np.linalg.norm(y - want) <= 1e-3 * np.linalg.norm(want)
    again = opened.verify("sample")
    assert again["ok"] and again["engine"]["checked"]


def test_comparisons_give_each_side_its_types(engine):
    outcome = dovetail.compare(image_model(), engine, tolerance=2e-3)
    assert outcome.ok and 1e-5 < outcome.outputs[0].relative_l2 < 1e-3
    assert not dovetail.compare(image_model(), engine).ok, "fp32 arithmetic promises 1e-4"


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ({"x": "f8"}, "got 'f8' for 'x'"),
        ({"x": "f16:f16"}, "got 'f16:f16'"),
        ({"x": "channels_last:f16"}, "got 'channels_last:f16'"),
        ({"q": "f16"}, "got 'q', expected one of x, ids, y, twice"),
        ({"ids": "f16"}, "got f16 for 'ids' of type i64"),
        ({"twice": "channels_last"}, "channels_last for 'twice' of rank 1"),
    ],
)
def test_formats_that_cannot_be_are_refused(formats, message):
    with pytest.raises(UsageError, match=message):
        dovetail.build(image_model(), tune=False, verify="off", io_formats=formats)


def test_an_order_alone_keeps_the_type():
    assert IOFormat.parse("x", "channels_last") == IOFormat(None, "channels_last")
    assert IOFormat.parse("x", "bf16:row_major") == IOFormat(IOFormat.parse("x", "bf16").dtype, "row_major")


def test_an_input_in_bf16():
    import ml_dtypes

    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(ml_dtypes.bfloat16)
    plain = dovetail.build(classifier(), tune=False, verify="off").run({"x": x.astype(np.float32)})["y"]
    got = dovetail.build(classifier(), tune=False, io_formats={"x": "bf16"}).run({"x": x})["y"]
    np.testing.assert_allclose(got, plain, rtol=1e-5)


# ---------------------------------------------------------------------- on a GPU
@pytest.fixture
def doubler():
    """An engine on host memory in the place of a GPU's: y = 2 x, both [N, 3, 4] to the caller and [N, 4, 3] in memory."""
    n = cuda_engines.N
    main = Program(
        (buffer(0, "input", n, 12, name="x"), buffer(1, "output", n, 12, name="y")),
        (Port("x", tensor(0, n, 4, 3), (0, 2, 1)),), (Port("y", tensor(1, n, 4, 3), (0, 2, 1)),),
        (NativeSegment((step("k_double", 0, 1, dims=(n * 12,)),)),),
    )  # fmt: skip
    driver = cuda_engines.host_driver()
    return cuda_engines.engine(cuda_engines.plan(main), driver=driver), driver


def test_device_arrays_lie_as_the_binding_says(doubler):
    engine, driver = doubler
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    memory = np.ascontiguousarray(values.transpose(0, 2, 1))
    x = DeviceArray.of(driver, memory).transpose((0, 2, 1))
    assert x.shape == (2, 3, 4) and x.strides == (12, 1, 3)
    np.testing.assert_array_equal(x.numpy(), values)
    y = engine.run({"x": x})["y"]
    assert isinstance(y, DeviceArray) and y.shape == (2, 3, 4) and y.strides == (12, 1, 3)
    np.testing.assert_array_equal(y.numpy(), 2 * values)
    out = DeviceArray.of(driver, np.zeros((2, 4, 3), np.float32)).transpose((0, 2, 1))
    assert engine.run({"x": x}, {"y": out})["y"] is out
    np.testing.assert_array_equal(out.numpy(), 2 * values)


def test_host_arrays_beside_device_arrays(doubler):
    engine, driver = doubler
    values = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    y = engine.run({"x": values})["y"]
    assert isinstance(y, np.ndarray) and y.shape == (1, 3, 4) and dense_in(y, (0, 2, 1))
    np.testing.assert_array_equal(y, 2 * values)
    out = np.empty((1, 4, 3), np.float32).transpose(0, 2, 1)
    engine.run({"x": DeviceArray.of(driver, values.transpose(0, 2, 1)).transpose((0, 2, 1))}, {"y": out})
    np.testing.assert_array_equal(out, 2 * values)


def test_device_arrays_in_another_order_are_refused(doubler):
    engine, driver = doubler
    with pytest.raises(BindingError, match="expected one whose axes lie in the order"):
        engine.run({"x": DeviceArray.of(driver, np.zeros((2, 3, 4), np.float32))})
    with pytest.raises(ShapeError, match="got rank 2"):
        engine.run({"x": DeviceArray.of(driver, np.zeros((2, 12), np.float32))})
