"""The ONNX parser: models become networks that compute them, errors name node and cause, refit maps, importers and plugins of users."""

import ctypes

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
import dovetail.tensorrt as trt
from tests.tensorrt.coverage import cases, exercises
from tests.tensorrt.plugins import V3, V3Creator, registered
from tests.tensorrt.programs import FLOAT, Messages, classifier, model_of, quick, run, sample


@pytest.fixture
def logger():
    return Messages()


@pytest.fixture
def builder(logger):
    return trt.Builder(logger)


def parsed(builder, model, **flags):
    """(parser, network, whether it went well)."""
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, builder.logger)
    return parser, network, parser.parse(model if isinstance(model, bytes) else model.SerializeToString())


def built(builder, network, *flags, **shapes):
    """The engine of a network, with a profile for dynamic inputs."""
    config = quick(builder)
    for flag in flags:
        config.set_flag(flag)
    if shapes:
        profile = builder.create_optimization_profile()
        for name, rows in shapes.items():
            profile.set_shape(name, *rows)
        config.add_optimization_profile(profile)
    engine = builder.build_engine(network, config)
    assert engine is not None, builder.logger.errors()
    return engine


def reference(model, **inputs):
    """What Dovetail computes without any of this."""
    return dovetail.build(model, verify="off", tune=False).run(inputs)


BATCHES = [(1, 3, 6, 6), (2, 3, 6, 6), (4, 3, 6, 6)]


# ---- parsing ----


@exercises("OnnxParser", "OnnxParser.parse", "OnnxParser.num_errors", "OnnxParser.parse_with_weight_descriptors")
def test_a_parsed_network_computes_the_model(builder, logger):
    model, x = classifier(), sample(3, 3, 6, 6)
    parser, network, good = parsed(builder, model)
    assert good and parser.num_errors == 0
    assert [layer.name for layer in network] == ["conv", "node_of_r", "flatten", "fc", "add"]
    assert [layer.type.name for layer in network][:2] == ["CONVOLUTION", "ACTIVATION"]
    assert network.get_layer(0).metadata == "[ONNX Layer: conv]"
    assert network.get_input(0).shape == (-1, 3, 6, 6) and network.get_output(0).name == "y"
    got = run(built(builder, network, x=BATCHES), x=x)["y"]
    np.testing.assert_allclose(got, reference(model, x=x)["y"], rtol=1e-4, atol=1e-4)
    other = trt.OnnxParser(builder.create_network(1), logger)
    assert other.parse_with_weight_descriptors(model.SerializeToString()) and logger.errors() == ""


@exercises("OnnxParser.parse_from_file", "OnnxParser.__enter__", "OnnxParser.__exit__")
def test_files_with_external_data(tmp_path, builder, logger):
    path, x = tmp_path / "model.onnx", sample(1, 3, 6, 6)
    expected = reference(classifier(batch=1), x=x)["y"]
    onnx.save(classifier(batch=1), path, save_as_external_data=True, location="weights", size_threshold=0)
    network = builder.create_network(1)
    with pytest.warns(DeprecationWarning), trt.OnnxParser(network, logger) as parser:
        assert parser.parse_from_file(str(path))
    assert "Producer name" in logger.text() and "Opset version:    17" in logger.text()
    np.testing.assert_allclose(run(built(builder, network), x=x)["y"], expected, rtol=1e-4, atol=1e-4)
    network = builder.create_network(1)
    assert trt.OnnxParser(network, logger).parse(path.read_bytes(), str(path))
    np.testing.assert_allclose(run(built(builder, network), x=x)["y"], expected, rtol=1e-4, atol=1e-4)
    parser = trt.OnnxParser(builder.create_network(1), logger)
    assert not parser.parse(path.read_bytes()) and "beside the model" in logger.errors()
    assert not parser.parse_from_file(str(tmp_path / "none.onnx")) and parser.num_errors == 1


@exercises("OnnxParser.load_model_proto", "OnnxParser.load_initializer", "OnnxParser.parse_model_proto")
def test_initializers_are_given_by_address(builder, logger):
    model, x = classifier(batch=1), sample(1, 3, 6, 6)
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, logger)
    k = np.arange(10, dtype=np.float32)
    assert not parser.load_initializer("k", k.ctypes.data, k.nbytes) and not parser.parse_model_proto()
    assert parser.load_model_proto(model.SerializeToString())
    assert parser.load_initializer("k", k.ctypes.data, k.nbytes)
    b = np.ones(10, np.float32)
    assert parser.load_initializer("fc.b", memoryview(b), b.nbytes)
    assert not parser.load_initializer("k", k.ctypes.data, 4) and not parser.load_initializer("none", 0, 0)
    assert parser.parse_model_proto()
    for tensor in model.graph.initializer:
        if tensor.name in ("k", "fc.b"):
            tensor.CopyFrom(numpy_helper.from_array({"k": k, "fc.b": b}[tensor.name], tensor.name))
    np.testing.assert_allclose(run(built(builder, network), x=x)["y"], reference(model, x=x)["y"], rtol=1e-4, atol=1e-4)


def test_outputs_that_are_inputs_or_initializers_or_given_twice(builder):
    w = numpy_helper.from_array(np.arange(3, dtype=np.float32), "w")
    model = model_of([helper.make_node("Identity", ["x"], ["z"])], {"x": [3]}, {"w": [3], "z": [3]}, [w])
    _, network, good = parsed(builder, model)
    assert good
    got = run(built(builder, network), x=np.ones(3, np.float32))
    np.testing.assert_array_equal(got["w"], [0, 1, 2])
    np.testing.assert_array_equal(got["z"], [1, 1, 1])


def test_doubles_are_floats(builder, logger):
    k = numpy_helper.from_array(np.array([0.5, 2.0]), "k")
    nodes = [helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE), helper.make_node("Mul", ["d", "k"], ["e"]),
             helper.make_node("Cast", ["e"], ["y"], to=FLOAT)]  # fmt: skip
    _, network, good = parsed(builder, model_of(nodes, {"x": [2]}, {"y": [2]}, [k]))
    assert good and "DOUBLE" in logger.text()
    np.testing.assert_array_equal(run(built(builder, network), x=np.array([3, 5], np.float32))["y"], [1.5, 10])


def test_control_flow_and_functions(builder):
    then = helper.make_graph([helper.make_node("Add", ["x", "k"], ["t"])], "then", [], [helper.make_tensor_value_info("t", FLOAT, [2])])
    other = helper.make_graph([helper.make_node("Sub", ["x", "k"], ["e"])], "else", [], [helper.make_tensor_value_info("e", FLOAT, [2])])
    twice = helper.make_function(
        "my", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0), helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["i"], then_branch=then, else_branch=other), helper.make_node("Twice", ["i"], ["y"], domain="my"),
    ]  # fmt: skip
    weights = [numpy_helper.from_array(np.float32(v), n) for n, v in (("zero", 0), ("k", 10))]
    _, network, good = parsed(builder, model_of(nodes, {"x": [2]}, {"y": [2]}, weights, functions=[twice]))
    assert good
    engine = built(builder, network)
    np.testing.assert_array_equal(run(engine, x=np.array([1, 2], np.float32))["y"], [22, 24])
    np.testing.assert_array_equal(run(engine, x=np.array([-1, -2], np.float32))["y"], [-22, -24])


@exercises("OnnxParser.get_layer_output_tensor", "OnnxParser.set_builder_config", "OnnxParser.get_used_vc_plugin_libraries")
def test_tensors_of_layers_by_name(builder):
    parser, network, good = parsed(builder, classifier(batch=1))
    assert good and parser.set_builder_config(builder.create_builder_config()) and parser.get_used_vc_plugin_libraries() == []
    tensor = parser.get_layer_output_tensor("conv", 0)
    assert tensor.name == "c" and parser.get_layer_output_tensor("conv", 1) is None and parser.get_layer_output_tensor("none", 0) is None
    network.mark_output(tensor)
    x = sample(1, 3, 6, 6)
    assert run(built(builder, network), x=x)["c"].shape == (1, 4, 6, 6)


@pytest.mark.parametrize(
    ("op", "inputs", "kind", "attributes", "settings"),
    [
        ("Conv", {"x": [1, 4, 9, 9], "w": (6, 2, 3, 3), "b": (6,)}, "IConvolutionLayer",
         {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
         {"num_output_maps": 6, "num_groups": 2, "pre_padding": (1, 0), "post_padding": (2, 1), "stride_nd": (2, 1),
          "dilation_nd": (1, 2)}),
        ("ConvTranspose", {"x": [1, 4, 5, 5], "w": (4, 3, 2, 2)}, "IDeconvolutionLayer", {"strides": [2, 2]}, {"num_output_maps": 3}),
        ("MaxPool", {"x": [1, 2, 7, 7]}, "IPoolingLayer", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]},
         {"type": trt.PoolingType.MAX, "window_size_nd": (3, 2)}),
        ("AveragePool", {"x": [1, 2, 7, 7]}, "IPoolingLayer", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
         {"type": trt.PoolingType.AVERAGE, "average_count_excludes_padding": True}),
        ("GlobalAveragePool", {"x": [2, 3, 4, 5]}, "IReduceLayer", {}, {"op": trt.ReduceOperation.AVG, "axes": 12, "keep_dims": True}),
        ("LeakyRelu", {"x": [3, 4]}, "IActivationLayer", {"alpha": 0.25}, {"type": trt.ActivationType.LEAKY_RELU, "alpha": 0.25}),
        ("Elu", {"x": [3, 4]}, "IActivationLayer", {}, {"type": trt.ActivationType.ELU, "alpha": 1.0}),
        ("Tanh", {"x": [3, 4]}, "IActivationLayer", {}, {"type": trt.ActivationType.TANH}),
        ("Sub", {"x": [3, 4], "w": (1, 4)}, "IElementWiseLayer", {}, {"op": trt.ElementWiseOperation.SUB}),
        ("Softmax", {"x": [3, 4, 2]}, "ISoftMaxLayer", {"axis": -2}, {"axes": 2}),
        ("Transpose", {"x": [3, 4, 2]}, "IShuffleLayer", {"perm": [2, 0, 1]}, {}),
        ("Transpose", {"x": [3, 4]}, "IShuffleLayer", {}, {}), ("MatMul", {"x": [3, 4], "w": (4, 2)}, "IMatrixMultiplyLayer", {}, {}),
        ("Erf", {"x": [3, 4]}, "IUnaryLayer", {}, {"op": trt.UnaryOperation.ERF}), ("Identity", {"x": [3]}, "IIdentityLayer", {}, {}),
        ("Concat", {"x": [3, 4]}, "IConcatenationLayer", {"axis": -1}, {"axis": 1}),
    ],
)  # fmt: skip
def test_nodes_become_layers_of_their_own_classes(builder, op, inputs, kind, attributes, settings):
    weights = {n: sample(*s, seed=4) for n, s in inputs.items() if n != "x"}
    x, names = sample(*inputs["x"]), ["x", "x"] if op == "Concat" else list(inputs)
    model = model_of([helper.make_node(op, names, ["y"], name="it", **attributes)], {"x": inputs["x"]}, {"y": None},
                     [numpy_helper.from_array(a, n) for n, a in weights.items()])  # fmt: skip
    _, network, good = parsed(builder, model)
    layer = network.get_layer(network.num_layers - 1)
    assert good and layer.name == "it"
    layer.__class__ = getattr(trt, kind)
    assert {name: getattr(layer, name) for name in settings} == settings
    if "Conv" in op:
        np.testing.assert_array_equal(layer.kernel, weights["w"].reshape(-1))
    engine = built(builder, network, trt.BuilderFlag.REFIT)
    np.testing.assert_allclose(run(engine, x=x)["y"], reference(model, x=x)["y"], rtol=1e-4, atol=1e-5)
    assert sorted(trt.Refitter(engine, builder.logger).get_all_weights()) == sorted(weights)


def test_the_users_importer_of_an_op_comes_before_a_layer_of_its_class(builder):
    model, x = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [4]}, {"y": [4]}), sample(4)
    with dovetail.importer("Relu").use(lambda net, node: net.op("Neg", node.inputs[0])):
        _, network, good = parsed(builder, model)
        engine = built(builder, network)
    assert good
    np.testing.assert_array_equal(run(engine, x=x)["y"], -x)


# ---- refits ----


@exercises("OnnxParser.get_refit_map")
def test_the_refit_map_says_which_weight_is_what(builder, logger):
    nodes = [
        helper.make_node("ConvTranspose", ["x", "ct", "cb"], ["a"], name="up"), helper.make_node("Mul", ["a", "k"], ["b"], name="mul"),
        helper.make_node("Add", ["b", "k"], ["y"], name="add"),
    ]  # fmt: skip
    rng = np.random.default_rng(3)
    arrays = {"ct": rng.standard_normal((2, 3, 2, 2)), "cb": rng.standard_normal(3), "k": rng.standard_normal((3, 1, 1))}
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    model = model_of(nodes, {"x": [1, 2, 4, 4]}, {"y": [1, 3, 5, 5]}, weights)
    parser, network, good = parsed(builder, model)
    names, layers, roles = parser.get_refit_map()
    role = trt.WeightsRole
    assert good and names == ["ct", "cb", "k", "k_1"] and layers == ["up", "up", "k", "k"]
    assert roles == [role.KERNEL, role.BIAS, role.CONSTANT, role.CONSTANT]
    engine = built(builder, network, trt.BuilderFlag.REFIT)
    refitter = trt.Refitter(engine, logger)
    assert dict(zip(zip(*refitter.get_all(), strict=True), [0] * 9, strict=False)).keys() == set(zip(layers, roles, strict=True))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))
    for name, layer, kind in zip(names[:3], layers, roles, strict=False):
        new = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
        assert refitter.set_weights(layer, kind, np.ascontiguousarray(new))
    assert refitter.refit_cuda_engine(), logger.errors()
    x = sample(1, 2, 4, 4)
    np.testing.assert_allclose(run(engine, x=x)["y"], reference(model, x=x)["y"], rtol=1e-4, atol=1e-4)


@exercises(
    "OnnxParserRefitter", "OnnxParserRefitter.refit_from_bytes", "OnnxParserRefitter.refit_from_file",
    "OnnxParserRefitter.num_errors",
)  # fmt: skip
@pytest.mark.parametrize("road", ["bytes", "file"])
def test_an_engine_takes_the_weights_of_another_model(tmp_path, builder, logger, road):
    _, network, _ = parsed(builder, classifier(batch=1))
    engine, x, other = built(builder, network, trt.BuilderFlag.REFIT), sample(1, 3, 6, 6), classifier(seed=5, batch=1)
    onnx.save(other, tmp_path / "m.onnx")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    roads = {"bytes": parser.refit_from_bytes, "file": parser.refit_from_file}
    assert roads[road](other.SerializeToString() if road == "bytes" else str(tmp_path / "m.onnx")) and parser.num_errors == 0
    assert refitter.refit_cuda_engine()
    np.testing.assert_allclose(run(engine, x=x)["y"], reference(other, x=x)["y"], rtol=1e-4, atol=1e-4)


@exercises(
    "OnnxParserRefitter.load_model_proto", "OnnxParserRefitter.load_initializer", "OnnxParserRefitter.refit_model_proto",
    "OnnxParserRefitter.get_error", "OnnxParserRefitter.clear_errors", "ErrorCode.REFIT_FAILED",
)  # fmt: skip
def test_refits_that_cannot_be(builder, logger):
    _, network, _ = parsed(builder, classifier(batch=1))
    engine = built(builder, network, trt.BuilderFlag.REFIT)
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    less = classifier(batch=1)
    del less.graph.initializer[-1]
    assert not parser.refit_from_bytes(less.SerializeToString())
    error = parser.get_error(0)
    assert error.code() is trt.ErrorCode.REFIT_FAILED and "Failed to refit all the weights." in error.desc() and "k" in error.desc()
    assert str(error).startswith("(refit): REFIT_FAILED: ")
    parser.clear_errors()
    assert parser.num_errors == 0 and not parser.refit_model_proto()
    k = np.full(10, 3, np.float32)
    assert not parser.load_initializer("k", k.ctypes.data, k.nbytes)
    assert parser.load_model_proto(classifier(batch=1).SerializeToString()) and parser.load_initializer("k", k.ctypes.data, k.nbytes)
    assert not parser.load_initializer("none", k.ctypes.data, k.nbytes)
    assert parser.refit_model_proto() and refitter.refit_cuda_engine()
    x = sample(1, 3, 6, 6)
    zero = classifier(batch=1)
    zero.graph.initializer[-1].CopyFrom(numpy_helper.from_array(k, "k"))
    np.testing.assert_allclose(run(engine, x=x)["y"], reference(zero, x=x)["y"], rtol=1e-4, atol=1e-4)


# ---- errors ----


def broken():
    """A model with an op that nobody has, between others."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"), helper.make_node("FooBar", ["a"], ["b"], name="foo"),
        helper.make_node("Sigmoid", ["b"], ["c"], name="after"), helper.make_node("Tanh", ["x"], ["y"], name="beside"),
    ]  # fmt: skip
    return model_of(nodes, {"x": [2, 3]}, {"c": [2, 3], "y": [2, 3]})


@exercises(
    "OnnxParser.get_error", "OnnxParser.clear_errors", "ParserError", "ParserError.code", "ParserError.desc", "ParserError.file",
    "ParserError.line", "ParserError.func", "ParserError.node", "ParserError.node_name", "ParserError.node_operator",
    "ParserError.local_function_stack", "ParserError.local_function_stack_size", "ParserError.__str__", "ParserError.__repr__",
    "ErrorCode.UNSUPPORTED_NODE",
)  # fmt: skip
def test_an_error_names_node_and_cause(builder, logger):
    parser, _, good = parsed(builder, broken())
    assert not good and parser.num_errors == 1
    error = parser.get_error(0)
    assert error.code() is trt.ErrorCode.UNSUPPORTED_NODE
    assert (error.node(), error.node_name(), error.node_operator()) == (1, "foo", "FooBar")
    assert "Plugin not found, are the plugin name, version, and namespace correct?" in error.desc()
    text = "In node 1 with name: foo and operator: FooBar (checkFallbackPluginImporter): UNSUPPORTED_NODE: Plugin not found"
    assert str(error).startswith(text) and repr(error) == str(error) and text in logger.errors()
    assert error.file().endswith(".py") and error.line() == 0 and error.func() == "checkFallbackPluginImporter"
    assert error.local_function_stack() == [] and error.local_function_stack_size() == 0
    parser.clear_errors()
    assert parser.num_errors == 0
    with pytest.raises(IndexError):
        parser.get_error(0)


@pytest.mark.parametrize(
    ("code", "node"),
    cases(
        "ErrorCode", UNSUPPORTED_NODE_ATTR=("Concat", "xx", {"axis": 7}), UNSUPPORTED_NODE_DATATYPE=("Gather", "xx", {}),
        UNSUPPORTED_NODE_INPUT=("Conv", "x", {}), UNSUPPORTED_NODE_SHAPE=("MatMul", "xx", {}), UNSUPPORTED_NODE=("FooBar", "x", {}),
    ),
)  # fmt: skip
def test_codes_say_what_of_a_node_is_wrong(builder, code, node):
    op, inputs, attributes = node
    bad = helper.make_node(op, list(inputs), ["y"], name="bad", **attributes)
    parser, _, good = parsed(builder, model_of([bad], {"x": [2, 3]}, {"y": [2, 3]}))
    assert not good and parser.num_errors == 1 and parser.get_error(0).code() is code is getattr(trt.ErrorCode, code.name)
    assert str(parser.get_error(0)).startswith(f"In node 0 with name: bad and operator: {op} (")


@exercises("ErrorCode.INVALID_NODE")
def test_a_node_that_is_invalid(builder):
    parser, _, good = parsed(builder, model_of([helper.make_node("Relu", ["x"], ["y", "z"], name="bad")], {"x": [2]}, {"y": [2]}))
    assert not good and parser.get_error(0).code() is trt.ErrorCode.INVALID_NODE


def test_an_error_inside_of_a_function_names_it(builder):
    inner = [helper.make_node("NoSuchOp", ["a"], ["b"], name="inside")]
    function = helper.make_function("my", "Wrap", ["a"], ["b"], inner, [helper.make_opsetid("", 17)])
    model = model_of([helper.make_node("Wrap", ["x"], ["y"], name="call", domain="my")], {"x": [2]}, {"y": [2]}, functions=[function])
    parser, _, good = parsed(builder, model)
    error = parser.get_error(0)
    assert not good and error.local_function_stack() == ["Wrap"] and error.local_function_stack_size() == 1
    assert error.node() == 0 and "NoSuchOp" in str(error)


def test_all_that_is_wrong_is_said_at_once(builder):
    model = broken()
    model.graph.node.append(helper.make_node("Other", ["x"], ["z"], name="other"))
    model.graph.node.append(helper.make_node("MatMul", ["x", "x"], ["bad"], name="wrong"))
    parser, _, good = parsed(builder, model)
    found = [(parser.get_error(i).node(), parser.get_error(i).node_name()) for i in range(parser.num_errors)]
    assert not good and found == [(1, "foo"), (4, "other"), (5, "wrong")]


@exercises("ErrorCode.MODEL_DESERIALIZE_FAILED", "ErrorCode.INVALID_GRAPH", "ErrorCode.INVALID_VALUE")
def test_models_that_are_none(builder, logger):
    parser, _, good = parsed(builder, b"no model at all")
    assert not good and parser.get_error(0).code() is trt.ErrorCode.MODEL_DESERIALIZE_FAILED and parser.get_error(0).node() == -1
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, {"nowhere": [2]})
    parser, _, good = parsed(builder, model)
    assert not good and parser.get_error(0).code() is trt.ErrorCode.INVALID_GRAPH and "nowhere" in parser.get_error(0).desc()
    from dovetail.core.env import override

    with override(tensorrt_version="8.6.1.6"):
        implicit = builder.create_network(0)
    parser = trt.OnnxParser(implicit, logger)
    assert not parser.parse(classifier().SerializeToString()) and parser.get_error(0).code() is trt.ErrorCode.INVALID_VALUE
    assert "explicit batch" in logger.errors()
    with pytest.raises(TypeError):
        parser.parse("model.onnx")
    with pytest.raises(TypeError):
        trt.OnnxParser(None, logger)


# ---- what is supported ----


@exercises("OnnxParser.supports_operator", "get_nv_onnx_parser_version")
def test_operators(builder, logger):
    parser = trt.OnnxParser(builder.create_network(1), logger)
    assert all(parser.supports_operator(op) for op in ("Conv", "Relu", "If", "Einsum", "HardSwish", "BitShift"))
    assert not parser.supports_operator("FooBar") and trt.get_nv_onnx_parser_version() == 101601
    with dovetail.importer("FooBar").use(lambda net, node: net.op("Relu", node.inputs[0])):
        assert parser.supports_operator("FooBar")


@exercises(
    "OnnxParser.supports_model", "OnnxParser.supports_model_v2", "OnnxParser.num_subgraphs", "OnnxParser.is_subgraph_supported",
    "OnnxParser.get_subgraph_nodes",
)  # fmt: skip
def test_subgraphs_are_the_runs_of_nodes_that_can_be_parsed(builder, logger):
    parser = trt.OnnxParser(builder.create_network(1), logger)
    assert not parser.supports_model_v2(broken().SerializeToString()) and parser.num_errors == 1
    assert [list(parser.get_subgraph_nodes(i)) for i in range(parser.num_subgraphs)] == [[0], [2, 3]]
    assert parser.is_subgraph_supported(1) and not parser.is_subgraph_supported(2) and parser.get_subgraph_nodes(7) == []
    assert parser.supports_model(broken().SerializeToString()) == (False, [([0], True), ([2, 3], True)])
    assert parser.supports_model(classifier().SerializeToString()) == (True, [([0, 1, 2, 3, 4], True)]) and parser.num_errors == 0
    assert not parser.supports_model_v2(b"none") and parser.num_subgraphs == 0


# ---- flags ----


@exercises("OnnxParser.flags", "OnnxParser.set_flag", "OnnxParser.get_flag", "OnnxParser.clear_flag", "OnnxParserFlag.NATIVE_INSTANCENORM")
def test_flags(builder, logger):
    parser = trt.OnnxParser(builder.create_network(1), logger)
    flag = trt.OnnxParserFlag
    assert parser.get_flag(flag.NATIVE_INSTANCENORM) and parser.flags == 1
    parser.clear_flag(flag.NATIVE_INSTANCENORM)
    assert parser.flags == 0
    parser.set_flag(flag.ENABLE_PLUGIN_OVERRIDE)
    assert parser.get_flag(flag.ENABLE_PLUGIN_OVERRIDE) and parser.flags == 1 << flag.ENABLE_PLUGIN_OVERRIDE
    parser.flags = 1 << 20
    assert parser.flags == 1 << flag.ENABLE_PLUGIN_OVERRIDE and "expected some of" in logger.errors()
    parser.flags = 1
    assert parser.get_flag(flag.NATIVE_INSTANCENORM) and parser.parse(classifier().SerializeToString())


@exercises(
    "OnnxParserFlag.REPORT_CAPABILITY_DLA", "OnnxParserFlag.ADJUST_FOR_DLA", "OnnxParserFlag.ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA"
)
def test_flags_for_what_is_not_here_fail_the_parse(builder, logger):
    for name in ("REPORT_CAPABILITY_DLA", "ADJUST_FOR_DLA", "ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA"):
        parser = trt.OnnxParser(builder.create_network(1), logger)
        parser.set_flag(getattr(trt.OnnxParserFlag, name))
        assert not parser.parse(classifier().SerializeToString()) and name in str(parser.get_error(0))


# ---- importers and plugins of the user's ----


def test_importers_of_the_user_are_heeded(builder):
    with dovetail.importer("FooBar").use(lambda net, node: net.op("Neg", node.inputs[0])):
        _, network, good = parsed(builder, broken())
        assert good
        engine = built(builder, network)
    x = sample(2, 3)
    np.testing.assert_allclose(run(engine, x=x)["c"], 1 / (1 + np.exp(np.maximum(x, 0))), rtol=1e-5, atol=1e-6)


def test_an_unknown_op_becomes_a_plugin_of_dovetail(builder, logger):
    @dovetail.plugin("AddAmount")
    def add_amount(x, *, amount: float = 1.0):
        return (x + np.float32(amount)).astype(np.float32)

    node = helper.make_node("AddAmount", ["x"], ["y"], name="custom", amount=2.5)
    _, network, good = parsed(builder, model_of([node], {"x": [3]}, {"y": [3]}))
    assert good and "Searching for plugin: AddAmount, plugin_version: 1, plugin_namespace: " in logger.text()
    assert "Successfully created plugin: AddAmount" in logger.text()
    x = sample(3)
    np.testing.assert_allclose(run(built(builder, network), x=x)["y"], x + np.float32(2.5), rtol=1e-6)


class Shift(V3):
    """Adds its fields to its input."""

    name = "ShiftBy"
    fields = ("amount", "more")
    amount, more = np.array([1], np.int32), np.array([10, 20, 30], np.int32)

    def compute(self, x, y):
        y[:] = x + self.amount.sum() + self.more.sum()


def test_an_unknown_op_becomes_a_plugin_whose_fields_are_its_attributes(builder, logger):
    creator = V3Creator(Shift)
    node = helper.make_node("ShiftBy", ["x"], ["y"], name="shift", amount=5, ignored="text")
    with registered(creator):
        parser, network, good = parsed(builder, model_of([node], {"x": [4]}, {"y": [4]}))
        assert good and parser.supports_operator("ShiftBy"), logger.errors()
        assert "Searching for plugin: ShiftBy, plugin_version: 1, plugin_namespace: " in logger.text()
        assert "Successfully created plugin: ShiftBy" in logger.text() and "Attribute more not found in plugin node!" in logger.text()
        assert creator.asked[0] == ("shift", trt.TensorRTPhase.BUILD)
        assert network.get_layer(0).name == "shift" and network.get_layer(0).type is trt.LayerType.PLUGIN_V3
        x = sample(4)
        np.testing.assert_allclose(run(built(builder, network), x=x)["y"], x + 5 + 60, rtol=1e-6)
        node.attribute.extend([helper.make_attribute("more", [1, 2])])
        _, network, _ = parsed(builder, model_of([node], {"x": [4]}, {"y": [4]}))
        np.testing.assert_allclose(run(built(builder, network), x=x)["y"], x + 5 + 3, rtol=1e-6)
    assert not parsed(builder, model_of([node], {"x": [4]}, {"y": [4]}))[2]


class Slow(Shift):
    """In the place of an op that there is."""

    name = "Relu"
    fields = ()

    def compute(self, x, y):
        y[:] = -x


@exercises("OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE")
def test_a_plugin_takes_the_place_of_an_op_where_that_is_wanted(builder, logger):
    model, x = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [4]}, {"y": [4]}), sample(4)
    with registered(V3Creator(Slow)):
        for override, expected in ((False, np.maximum(x, 0)), (True, -x)):
            network = builder.create_network(1)
            parser = trt.OnnxParser(network, logger)
            if override:
                parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
            assert parser.parse(model.SerializeToString())
            np.testing.assert_array_equal(run(built(builder, network), x=x)["y"], expected)


def test_addresses_must_be_those_of_enough_memory(builder, logger):
    parser = trt.OnnxParser(builder.create_network(1), logger)
    assert parser.load_model_proto(classifier().SerializeToString())
    buffer = (ctypes.c_float * 10)(*range(10))
    assert parser.load_initializer("k", ctypes.addressof(buffer), 40) and not parser.load_initializer("k", ctypes.addressof(buffer), 36)
