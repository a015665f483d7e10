"""Element types and memory orders as engines have them, and what tensors are to engines."""

import ml_dtypes
import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import cases, exercises
from tests.tensorrt.programs import Messages, quick, sample


def built(network, builder):
    """An engine without measuring; None where the build fails."""
    return builder.build_engine(network, quick(builder))


def started():
    """A logger, a builder and an empty network."""
    logger = Messages()
    builder = trt.Builder(logger)
    return logger, builder, builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))


def run(engine, outputs, **inputs):
    """A run on host addresses; whether it succeeded."""
    context = engine.create_execution_context()
    for name, array in {**inputs, **outputs}.items():
        assert context.set_tensor_address(name, array.ctypes.data)
    return context.execute_async_v3(0)


WHOLE = {
    "FLOAT": np.float32, "HALF": np.float16, "BF16": ml_dtypes.bfloat16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
    "BOOL": np.bool_, "UINT8": np.uint8, "FP8": ml_dtypes.float8_e4m3fn, "E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


@exercises("IIdentityLayer", "ITensor.dtype", "ICudaEngine.get_tensor_dtype")
@pytest.mark.parametrize(("kind", "numpy"), cases("DataType", **WHOLE))
def test_inputs_of_each_type_are_read_as_such_and_outputs_written(kind, numpy):
    logger, builder, network = started()
    x = network.add_input("x", getattr(trt.DataType, kind.name), (2, 6))
    same = network.add_identity(x).get_output(0)
    wide = network.add_cast(x, trt.float32).get_output(0)
    for tensor, name in ((same, "same"), (wide, "wide")):
        tensor.name = name
        network.mark_output(tensor)
    assert (x.dtype, same.dtype, wide.dtype) == (kind, kind, trt.float32)
    engine = built(network, builder)
    assert engine.get_tensor_dtype("x") is engine.get_tensor_dtype("same") is kind
    assert kind.itemsize == np.dtype(numpy).itemsize
    values = np.array([[1, 2, 4, 8, 16, 32], [0.5, 1, 2, 64, 0.25, 1]]).astype(numpy)
    outputs = {"same": np.zeros((2, 6), numpy), "wide": np.zeros((2, 6), np.float32)}
    assert run(engine, outputs, x=values), logger.errors()
    assert outputs["same"].tobytes() == values.tobytes()
    np.testing.assert_array_equal(outputs["wide"], values.astype(np.float32))


@exercises("IDequantizeLayer", "INetworkDefinition.add_dequantize", "Weights.dtype", "Weights.size")
@pytest.mark.parametrize(
    ("kind", "values"), cases("DataType", INT4=[-8, -3, 0, 1, 5, 7], FP4=[-6.0, -1.5, 0.0, 0.5, 3.0, 4.0])
)
def test_types_of_half_a_byte_are_for_weights(kind, values):
    assert getattr(trt.DataType, kind.name).itemsize == 0.5
    numpy = np.int8 if kind is trt.int4 else ml_dtypes.float4_e2m1fn
    bits = np.asarray(values).astype(numpy).view(np.uint8) & 15
    packed = np.ascontiguousarray(bits[0::2] | bits[1::2] << 4)      # the first one in the low half
    logger, builder, network = started()
    weights = trt.Weights(kind, packed.ctypes.data, len(values))
    assert (weights.dtype, weights.size) == (kind, 6)
    stored = network.add_constant((2, 3), weights).get_output(0)
    assert stored.dtype is kind
    scale = network.add_constant((), np.array(0.5, np.float32)).get_output(0)
    y = network.add_dequantize(stored, scale, trt.float32).get_output(0)
    y.name = "y"
    network.mark_output(y)
    outputs = {"y": np.zeros((2, 3), np.float32)}
    assert run(built(network, builder), outputs), logger.errors()
    np.testing.assert_array_equal(outputs["y"].reshape(-1), np.array(values, np.float32) / 2)


@pytest.mark.parametrize("kind", [trt.int4, trt.fp4])
def test_inputs_and_outputs_lie_in_whole_bytes(kind):
    logger, builder, network = started()
    y = network.add_identity(network.add_input("x", kind, (2, 6))).get_output(0)
    y.name = "y"
    network.mark_output(y)
    engine = built(network, builder)
    memory = np.zeros(12, np.uint8)
    assert not run(engine, {"y": memory}, x=memory) and "lies two to a byte" in logger.errors()


# ---- memory orders ----


def relu(shape, kind):
    """relu of x in one format, as an engine; and what is logged."""
    logger, builder, network = started()
    x = network.add_input("x", trt.float32, shape)
    x.allowed_formats = 1 << int(getattr(trt.TensorFormat, kind.name))
    assert x.allowed_formats == 1 << int(kind)
    y = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    y.name = "y"
    network.mark_output(y)
    return built(network, builder), logger


@exercises("ITensor.allowed_formats", "ICudaEngine.get_tensor_format", "IExecutionContext.get_tensor_strides")
@pytest.mark.parametrize(
    ("kind", "order"),
    cases(
        "TensorFormat", LINEAR=(0, 1, 2, 3), HWC=(0, 2, 3, 1), HWC8=(0, 2, 3, 1), HWC16=(0, 2, 3, 1), DHWC=(0, 2, 3, 4, 1),
        DHWC8=(0, 2, 3, 4, 1),
    ),
)  # fmt: skip
def test_inputs_are_taken_in_the_order_that_the_client_has(kind, order):
    shape = (2, 16, 3, 5, 2)[: len(order)]
    engine, logger = relu(shape, kind)
    assert engine.get_tensor_format("x") is kind and engine.get_tensor_format("y") is trt.TensorFormat.LINEAR
    x = sample(*shape)
    lying = np.ascontiguousarray(x.transpose(order))
    strides = tuple(engine.create_execution_context().get_tensor_strides("x"))
    assert strides == tuple(s // 4 for s in lying.transpose(np.argsort(order)).strides)
    outputs = {"y": np.zeros(shape, np.float32)}
    assert run(engine, outputs, x=lying), logger.errors()
    np.testing.assert_array_equal(outputs["y"], np.maximum(x, 0))


@exercises("ITensor.allowed_formats")
@pytest.mark.parametrize(("kind", "rank"), cases("TensorFormat", CHW2=4, CHW4=4, CHW16=4, CHW32=4, CDHW32=5))
def test_vector_formats_are_refused_by_name(kind, rank):
    engine, logger = relu((1, 16, 3, 5, 2)[:rank], kind)
    assert engine is None and f"x: got the formats {kind}" in logger.errors() and "channels last" in logger.errors()


def test_channels_that_no_vector_fits_are_refused():
    engine, logger = relu((1, 12, 3, 5), trt.TensorFormat.HWC8)
    assert engine is None and "expected TensorFormat.LINEAR, or channels last" in logger.errors()


# ---- what tensors are ----


@exercises("TensorIOMode.INPUT", "TensorIOMode.OUTPUT", "TensorIOMode.NONE", "ICudaEngine.get_tensor_mode", "ITensor.name")
def test_tensors_are_inputs_outputs_or_nothing():
    engine = relu((1, 4, 3, 5), trt.TensorFormat.LINEAR)[0]
    modes = [engine.get_tensor_mode(name) for name in ("x", "y", "z")]
    assert modes == [trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT, trt.TensorIOMode.NONE]


@exercises(
    "WeightsRole.SCALE", "WeightsRole.SHIFT", "WeightsRole.ANY", "WeightsRole.CONSTANT", "Refitter.set_weights", "Refitter.get_all",
    "IScaleLayer.power", "IConstantLayer.weights",
)  # fmt: skip
def test_weights_of_each_role_are_refitted():
    logger, builder, network = started()
    x = network.add_input("x", trt.float32, (2, 3, 2, 2))
    shift, scale, power = (np.full(3, v, np.float32) for v in (1, 2, 2))
    layer = network.add_scale(x, trt.ScaleMode.CHANNEL, shift, scale, power)
    layer.name = "scale"
    np.testing.assert_array_equal(layer.power, power)
    constant = network.add_constant((1, 3, 1, 1), np.zeros((1, 3, 1, 1), np.float32))
    constant.name = "constant"
    np.testing.assert_array_equal(constant.weights, np.zeros(3))
    y = network.add_elementwise(layer.get_output(0), constant.get_output(0), trt.ElementWiseOperation.SUM).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = quick(builder)
    config.set_flag(trt.BuilderFlag.REFIT)
    engine = builder.build_engine(network, config)
    role = trt.WeightsRole
    refitter = trt.Refitter(engine, logger)
    assert set(zip(*refitter.get_all(), strict=True)) == {
        ("scale", role.SHIFT), ("scale", role.SCALE), ("scale", role.ANY), ("constant", role.CONSTANT),
    }  # fmt: skip
    arrays = np.abs(sample(2, 3, 2, 2)), np.zeros((2, 3, 2, 2), np.float32)
    assert run(engine, {"y": arrays[1]}, x=arrays[0])
    np.testing.assert_allclose(arrays[1], (arrays[0] * 2 + 1) ** 2, rtol=1e-5)
    new = {role.SHIFT: 2.0, role.SCALE: 0.5, role.ANY: 3.0}
    assert all(refitter.set_weights("scale", r, np.full(3, v, np.float32)) for r, v in new.items())
    assert refitter.set_weights("constant", role.CONSTANT, np.array([1, 2, 3], np.float32)) and refitter.refit_cuda_engine()
    assert run(engine, {"y": arrays[1]}, x=arrays[0])
    expected = (arrays[0] * 0.5 + 2) ** 3 + np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(arrays[1], expected, rtol=1e-5)
