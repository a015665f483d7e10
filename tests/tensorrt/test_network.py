"""What networks keep and know: tensors, layers, outputs, weights' names; layers of ONNX nodes; networks of implicit batch."""

import gc
import weakref

import numpy as np
import onnx
import pytest
from onnx import helper

import dovetail
import dovetail.tensorrt as trt
from dovetail.core.env import override
from dovetail.core.errors import Error
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network

E, A = trt.ElementWiseOperation, trt.ActivationType


@exercises(
    "INetworkDefinition.add_input", "INetworkDefinition.get_input", "INetworkDefinition.get_output", "INetworkDefinition.get_layer",
    "INetworkDefinition.num_inputs", "INetworkDefinition.num_outputs", "INetworkDefinition.num_layers", "INetworkDefinition.__len__",
    "INetworkDefinition.__getitem__", "INetworkDefinition.mark_output", "INetworkDefinition.unmark_output", "INetworkDefinition.name",
    "ITensor.name", "ITensor.shape", "ITensor.dtype", "ITensor.is_network_input", "ITensor.is_network_output", "ILayer.name",
    "ILayer.type", "ILayer.num_inputs", "ILayer.num_outputs", "ILayer.get_input", "ILayer.get_output", "ILayer.metadata",
)  # fmt: skip
def test_layers_and_tensors():
    net, log = network()
    assert net.name == "Unnamed Network 0" and bool(net) and len(net) == 0
    net.name = "small"
    x = net.add_input("x", trt.float16, (-1, 3))
    assert net.name == "small" and (x.name, x.shape, x.dtype) == ("x", (-1, 3), trt.float16)
    assert net.add_input("x", trt.float32, (1,)) is None and "no other input" in log.errors.pop()
    assert net.add_input("y", trt.float32, (-2,)) is None and log.errors.pop()
    relu = net.add_activation(x, A.RELU)
    top = net.add_topk(relu.get_output(0), trt.TopKOperation.MAX, 2, 2)
    assert relu.name == "(Unnamed Layer* 0) [Activation]" and relu.get_output(0).name == "(Unnamed Layer* 0) [Activation]_output"
    assert top.get_output(1).name == "(Unnamed Layer* 1) [TopK]_output_2"
    assert relu.get_output(0) is relu.get_output(0) and relu.get_output(1) is None and top.get_output(-1) is None
    assert relu.get_input(0) is x and relu.get_input(1) is None and (top.num_inputs, top.num_outputs) == (1, 2)
    relu.name, relu.metadata = "relu", "[ONNX Layer: relu]"
    # Plain layers say what they are, and take any class.
    plain = net.get_layer(0)
    assert type(plain) is trt.ILayer and plain.type is trt.LayerType.ACTIVATION and plain == relu and hash(plain) == hash(relu)
    assert (plain.name, plain.metadata) == ("relu", "[ONNX Layer: relu]") and plain != net[1] and plain != "relu"
    plain.__class__ = trt.IActivationLayer
    plain.type = A.SIGMOID
    assert relu.type is A.SIGMOID and net[0].type is trt.LayerType.ACTIVATION
    public = {name for name in dir(plain) if not name.startswith("__") and not hasattr(trt.ILayer, name)}
    assert public == {"alpha", "beta"}
    assert [layer.type.name for layer in net] == ["ACTIVATION", "TOPK"] and net[-1] == top and len(net) == net.num_layers == 2
    assert net.get_layer(2) is None and net.get_layer(-1) is None
    with pytest.raises(IndexError):
        net[2]
    with pytest.raises(TypeError, match="No constructor"):
        trt.IActivationLayer()
    out = top.get_output(0)
    net.mark_output(out)
    net.mark_output(out)
    assert net.num_outputs == 1 and net.get_output(0) is out and out.is_network_output and not x.is_network_output
    assert net.num_inputs == 1 and net.get_input(0) is x and x.is_network_input and not out.is_network_input and net.get_input(1) is None
    net.unmark_output(out)
    assert net.num_outputs == 0 and net.get_output(0) is None
    with pytest.raises(Error, match="no outputs"):
        dovetail.build(net._model())


def test_shapes_follow_changes():
    net, log = network()
    x = net.add_input("x", trt.float32, (1, 3, 9, 9))
    conv = net.add_convolution_nd(x, 4, (3, 3), np.zeros(108, np.float32))
    pool = net.add_pooling_nd(conv.get_output(0), trt.PoolingType.MAX, (2, 2))
    assert pool.get_output(0).shape == (1, 4, 6, 6)
    conv.stride_nd = (2, 2)
    assert pool.get_output(0).shape == (1, 4, 3, 3)
    x.shape = (-1, 3, 17, 9)
    assert pool.get_output(0).shape == (-1, 4, 7, 3)
    x.dtype = trt.float16
    # Inside, a network that is not strongly typed leaves the type to the builder.
    assert x.dtype is trt.float16 and pool.get_output(0).dtype is trt.float32
    pool.set_input(0, x)
    assert pool.get_output(0).shape == (-1, 3, 16, 8)
    pool.set_input(1, x)
    assert "set_input: got the index 1" in log.errors.pop()
    conv.get_output(0).shape = (1,)
    assert "expected a network input" in log.errors.pop()
    other, _ = network()
    pool.set_input(0, other.add_input("y", trt.float32, (1, 1, 4, 4)))
    assert "another network" in log.errors.pop()
    other.mark_output(x)
    assert other.num_outputs == 0
    # A circle is said once, and is no endless walk.
    one = net.add_unary(x, trt.UnaryOperation.EXP)
    two = net.add_unary(one.get_output(0), trt.UnaryOperation.EXP)
    one.set_input(0, two.get_output(0))
    assert not two.get_output(0).shape._valid and "depends on its own output" in log.errors.pop()
    deep = x
    for _ in range(3000):
        deep = net.add_identity(deep).get_output(0)
    assert deep.shape == (-1, 3, 17, 9) and not log.errors


@exercises("ITensor.set_dimension_name", "ITensor.get_dimension_name", "ITensor.dtype")
def test_named_dimensions_and_types_of_outputs():
    suite = Suite()
    a, b = suite.random(2, 3), suite.random(2, 3)
    x, y = suite.input(a, dynamic=True), suite.input(b, dynamic=True)
    for tensor in (x, y):
        tensor.set_dimension_name(0, "the batch")
        tensor.set_dimension_name(1, "3rd")
    assert x.get_dimension_name(0) == "the batch" and suite.net.add_identity(x).get_output(0).get_dimension_name(0) is None
    layer = suite.net.add_elementwise(x, y, E.SUM)
    suite.expect(layer, (a + b).astype(np.float16), 1e-3)
    layer.get_output(0).dtype = trt.float16
    assert layer.get_output(0).dtype is trt.float16
    model = suite.net._model()
    assert [str(d) for d in model.inputs["x0"].shape] == ["the_batch", "d3rd"] == [str(d) for d in model.inputs["x1"].shape]
    suite.run()


@exercises(
    "INetworkDefinition.set_weights_name", "INetworkDefinition.mark_weights_refittable", "INetworkDefinition.unmark_weights_refittable",
    "INetworkDefinition.are_weights_marked_refittable", "WeightsRole.KERNEL", "WeightsRole.BIAS", "WeightsRole.CONSTANT",
)  # fmt: skip
def test_names_of_weights():
    net, log = network()
    x = net.add_input("x", trt.float32, (1, 2, 4, 4))
    kernel, bias = np.ones((3, 2, 1, 1), np.float32), np.zeros(3, np.float32)
    conv = net.add_convolution_nd(x, 3, (1, 1), kernel, bias)
    constant = net.add_constant((1, 3, 1, 1), 2 * np.ones(3, np.float32))
    conv.name = "conv"
    product = net.add_elementwise(conv.get_output(0), constant.get_output(0), E.PROD)
    net.mark_output(product.get_output(0))
    product.get_output(0).name = "y"
    assert net.set_weights_name(trt.Weights(kernel), "model.weight") and net.set_weights_name(conv.kernel, "model.weight")
    assert not net.set_weights_name(trt.Weights(bias), "model.weight") and not net.set_weights_name(trt.Weights(), "w")
    assert len(log.errors) == 2
    names = {
        ("conv", trt.WeightsRole.KERNEL): "model.weight",
        ("conv", trt.WeightsRole.BIAS): "conv BIAS",
        ("(Unnamed Layer* 1) [Constant]", trt.WeightsRole.CONSTANT): "(Unnamed Layer* 1) [Constant] CONSTANT",
    }
    assert net._weights() == names
    engine = dovetail.build(net._model(), optimization_level=0, tune=False, verify="off")
    data = {"x": np.ones((1, 2, 4, 4), np.float32)}
    np.testing.assert_allclose(engine.run(data)["y"], np.full((1, 3, 4, 4), 4))
    engine.refit({"model.weight": 3 * kernel, "conv BIAS": bias + 1})
    np.testing.assert_allclose(engine.run(data)["y"], np.full((1, 3, 4, 4), 14))
    assert net.mark_weights_refittable("model.weight") and net.are_weights_marked_refittable("model.weight")
    assert net.unmark_weights_refittable("model.weight") and not net.are_weights_marked_refittable("model.weight")
    # Arrays that a client drops stay.
    gone = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert gone() is not None


@exercises(
    "ILayer.precision", "ILayer.precision_is_set", "ILayer.reset_precision", "ITensor.dynamic_range", "ITensor.set_dynamic_range",
    "ITensor.reset_dynamic_range", "ITensor.allowed_formats", "ITensor.location", "ITensor.broadcast_across_batch",
)  # fmt: skip
def test_what_builders_are_asked():
    net, log = network()
    x = net.add_input("x", trt.float32, (2, 3))
    layer = net.add_identity(x)
    assert not layer.precision_is_set and layer.precision is trt.float32 and net._precision() == {}
    layer.precision = trt.float16
    layer.set_output_type(0, trt.int32)
    assert layer.precision_is_set and net._precision() == {layer.name: (trt.float16, {0: trt.int32})}
    layer.reset_precision()
    assert not layer.precision_is_set
    assert x.dynamic_range is None and x.set_dynamic_range(-1, 2) and x.dynamic_range == (-1, 2)
    assert not x.set_dynamic_range(2, 1) and not x.set_dynamic_range(float("nan"), 1) and len(log.errors) == 2
    x.dynamic_range = (-3, 3)
    assert net._ranges() == {"x": (-3, 3)}
    x.reset_dynamic_range()
    assert net._ranges() == {}
    every = sum(1 << int(f) for f in trt.TensorFormat.__members__.values())
    assert x.allowed_formats == every
    x.allowed_formats = 1 << int(trt.TensorFormat.LINEAR)
    assert x.allowed_formats == 1 and x.location is trt.TensorLocation.DEVICE and not x.broadcast_across_batch
    x.location, x.broadcast_across_batch = trt.TensorLocation.HOST, True
    assert x.location is trt.TensorLocation.HOST and x.broadcast_across_batch


@exercises(
    "ITensor.is_shape_tensor", "ITensor.is_execution_tensor", "INetworkDefinition.mark_output_for_shapes",
    "INetworkDefinition.unmark_output_for_shapes", "INetworkDefinition.remove_tensor",
)  # fmt: skip
def test_shape_tensors():
    net, _ = network()
    x, wanted = net.add_input("x", trt.float32, (4, -1)), net.add_input("s", trt.int32, (2,))
    layer = net.add_shuffle(x)
    net.mark_output(layer.get_output(0))
    assert not wanted.is_shape_tensor and wanted.is_execution_tensor
    twice = net.add_elementwise(wanted, net.add_constant((2,), np.array([2, 2], np.int32)).get_output(0), E.PROD)
    layer.set_input(1, twice.get_output(0))
    assert wanted.is_shape_tensor and twice.get_output(0).is_shape_tensor and not wanted.is_execution_tensor
    assert not x.is_shape_tensor and x.is_execution_tensor
    assert layer.get_output(0).shape == (-1, -1)
    shape = net.add_shape(x).get_output(0)
    assert net.mark_output_for_shapes(shape) and not net.mark_output_for_shapes(shape) and shape.is_shape_tensor
    assert net.num_outputs == 2 and shape.is_network_output and not x.is_shape_tensor
    assert net.unmark_output_for_shapes(shape) and not net.unmark_output_for_shapes(shape)
    net.remove_tensor(wanted)
    assert net.num_inputs == 1 and not wanted.is_network_input


def test_shapes_have_32_bits_before_10():
    for version, kind in (("8.6.1", trt.int32), ("10.16.1.11", trt.int64)):
        with override(tensorrt_version=version):
            net, _ = network()
            assert net.add_shape(net.add_input("x", trt.float32, (2, -1))).get_output(0).dtype is kind


@exercises(
    "INetworkDefinition.mark_debug", "INetworkDefinition.unmark_debug", "INetworkDefinition.is_debug_tensor",
    "INetworkDefinition.mark_unfused_tensors_as_debug_tensors", "INetworkDefinition.unmark_unfused_tensors_as_debug_tensors",
    "INetworkDefinition.flags", "INetworkDefinition.get_flag", "INetworkDefinition.has_implicit_batch_dimension",
    "INetworkDefinition.has_explicit_precision", "INetworkDefinition.error_recorder", "INetworkDefinition.builder",
    "NetworkDefinitionCreationFlag.EXPLICIT_PRECISION",
)  # fmt: skip
def test_flags_and_debug_tensors():
    flag = trt.NetworkDefinitionCreationFlag
    net, log = network(flags=1 << int(flag.STRONGLY_TYPED), builder="builder")
    typed = net.add_identity(net.add_input("t", trt.float32, (2,)))
    typed.precision = trt.float16
    typed.set_output_type(0, trt.float16)
    assert not typed.precision_is_set and typed.get_output(0).dtype is trt.float32 and len(log.errors) == 2
    assert net.flags == 2 and net.get_flag(flag.STRONGLY_TYPED) and net.get_flag(flag.EXPLICIT_BATCH)
    assert not net.has_implicit_batch_dimension and not net.has_explicit_precision and net.builder == "builder"
    assert network(flags=1 << int(flag.EXPLICIT_PRECISION))[0].has_explicit_precision
    middle = net.add_unary(net.add_input("x", trt.float32, (2,)), trt.UnaryOperation.EXP).get_output(0)
    net.mark_output(net.add_unary(middle, trt.UnaryOperation.NEG).get_output(0))
    assert net.mark_debug(middle) and not net.mark_debug(middle) and net.is_debug_tensor(middle)
    assert list(net._model(extra=[middle]).outputs) == [net.get_output(0).name, middle.name]
    assert net.unmark_debug(middle) and not net.is_debug_tensor(middle)
    assert net.mark_unfused_tensors_as_debug_tensors() and net._debug_unfused
    assert net.unmark_unfused_tensors_as_debug_tensors() and not net._debug_unfused

    class Recorder(trt.IErrorRecorder):
        def __init__(self):
            trt.IErrorRecorder.__init__(self)
            self.seen = []

        def report_error(self, code, description):
            self.seen.append((code, description))
            return False

    assert net.error_recorder is None
    net.error_recorder = recorder = Recorder()
    assert net.error_recorder is recorder and net.add_input("x", trt.float32, ()) is None
    assert recorder.seen[0][0] is trt.ErrorCodeTRT.INVALID_ARGUMENT
    with pytest.warns(DeprecationWarning), net as same:
        assert same is net


def test_implicit_batch():
    suite = Suite(implicit_batch=True)
    image = suite.random(3, 2, 4, 5)
    x = suite.input(image)
    assert suite.net.has_implicit_batch_dimension and x.shape == (2, 4, 5)
    w = suite.random(3, 2, 1, 1)
    conv = suite.net.add_convolution(x, 3, (1, 1), w)
    mixed = np.einsum("nchw,kc->nkhw", image, w[:, :, 0, 0])
    suite.expect(conv, mixed)
    soft = suite.net.add_softmax(x)
    assert soft.axes == 1
    e = np.exp(image - image.max(1, keepdims=True))
    suite.expect(soft, e / e.sum(1, keepdims=True))
    suite.expect(suite.net.add_reduce(x, trt.ReduceOperation.SUM, 0b110, False), image.sum((2, 3)))
    flat = suite.net.add_shuffle(x)
    flat.first_transpose, flat.reshape_dims = (1, 0, 2), (0, -1)
    suite.expect(flat, image.transpose(0, 2, 1, 3).reshape(3, 4, 10))
    added = suite.random(2, 1, 5)
    suite.expect(suite.net.add_elementwise(x, suite.const(added), E.SUM), image + added)
    suite.expect(suite.net.add_concatenation([x, suite.const(image[0])]), np.concatenate([image, np.repeat(image[:1], 3, 0)], 1))
    suite.expect(suite.net.add_slice(x, (0, 1, 0), (2, 3, 2), (1, 1, 2)), image[:, :, 1:4, :4:2])
    suite.expect(suite.net.add_gather(x, suite.const(np.array([3, 1], np.int32)), 1), image[:, :, [3, 1]])
    suite.expect(suite.net.add_topk(x, trt.TopKOperation.MAX, 1, 0b100), image.max(3, keepdims=True))
    scaled = suite.net.add_scale(x, trt.ScaleMode.CHANNEL, scale=np.array([2, 3], np.float32))
    suite.expect(scaled, image * np.array([2, 3], np.float32)[:, None, None])
    full = suite.net.add_fully_connected(x, 6, suite.random(6, 40))
    suite.expect(full, (image.reshape(3, 40) @ full.kernel.reshape(6, 40).T).reshape(3, 6, 1, 1))
    resized = suite.net.add_resize(x)
    resized.shape = (2, 8, 5)
    suite.expect(resized, image.repeat(2, 2))
    suite.run()


def test_layers_of_onnx_nodes():
    suite = Suite(1)
    array, w = suite.random(2, 3, 5, 5), suite.random(4, 3, 2, 2)
    x = suite.input(array, dynamic=False)
    opsets = {"": 21}
    node = helper.make_node("Conv", ["a", "w"], ["b"], name="first", strides=[3, 1])
    (made,) = suite.net._add_node(node, {"a": x, "w": w}, opsets)
    assert suite.net[0].type is trt.LayerType.CONVOLUTION and suite.net[0].name == "first" and made.name == "b"
    assert made.shape == (2, 4, 2, 4)
    inner = helper.make_graph(
        [helper.make_node("Mul", ["b", "two"], ["t"])], "then", [], [helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["n"])], "else", [], [helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, None)]
    )
    condition = suite.input(np.array(True))
    branch = helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=other)
    (chosen,) = suite.net._add_node(branch, {"b": made, "c": condition, "two": np.float32([2])}, opsets)
    values, indices = suite.net._add_node(
        helper.make_node("TopK", ["d", "k"], ["v", "i"]), {"d": chosen, "k": np.array([1])}, opsets
    )
    assert suite.net[2].type is trt.LayerType.TOPK and indices.dtype is trt.int64
    expected = np.stack([
        np.einsum("nchw,kchw->nk", array[:, :, 3 * i : 3 * i + 2, j : j + 2], w) for i in range(2) for j in range(4)
    ], -1).reshape(2, 4, 2, 4)  # fmt: skip
    suite.expect(values, 2 * expected.max(-1, keepdims=True), 1e-4)
    suite.run()
    before = suite.net.num_layers
    for bad, message in ((helper.make_node("Conv", ["a"], ["z"]), "Conv"), (helper.make_node("Nonsense", ["a"], ["z"]), "Nonsense")):
        with pytest.raises(Error, match=message):
            suite.net._add_node(bad, {"a": x}, opsets)
        assert suite.net.num_layers == before
    assert "w" in suite.net._model().module().weights
