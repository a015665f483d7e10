"""Layers of every type: what they are called, what an engine of one says of it, and that it gives the shapes that were foreseen."""

import json

import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.programs import Messages, quick

F, I32, BOOL = trt.float32, trt.int32, trt.bool


def const(net, values, dtype=np.float32):
    """A constant tensor."""
    array = np.array(values, dtype)
    return net.add_constant(array.shape, array).get_output(0)


def normal(*shape):
    """Seeded normal values, the same for each network."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def image(net):
    """An input as convolutions take it."""
    return net.add_input("x", F, (1, 4, 6, 6))


def rows(net, *shape):
    """An input of rows."""
    return net.add_input("x", F, shape or (3, 4))


def square(net):
    """A layer that takes its shape from an input's values."""
    layer = net.add_shuffle(rows(net))
    layer.reshape_dims = (4, 3)
    return layer


def fill(net):
    layer = net.add_fill((3, 4), trt.FillOperation.LINSPACE, F)
    layer.set_input(1, const(net, 1.0))
    layer.set_input(2, const(net, [10.0, 0.5]))
    return layer


def resize(net):
    layer = net.add_resize(image(net))
    layer.scales = [1, 1, 2, 2]
    layer.resize_mode = trt.InterpolationMode.LINEAR
    return layer


def loop(net, kind):
    """The sum of x over its rows."""
    x = rows(net)
    turns = net.add_loop()
    limit = turns.add_trip_limit(const(net, 3, np.int32), trt.TripLimit.COUNT)
    each = turns.add_iterator(x)
    state = turns.add_recurrence(const(net, np.zeros(4)))
    state.set_input(1, net.add_elementwise(state.get_output(0), each.get_output(0), trt.ElementWiseOperation.SUM).get_output(0))
    last = turns.add_loop_output(state.get_output(0), trt.LoopOutput.LAST_VALUE)
    return {"TRIP_LIMIT": limit, "ITERATOR": each, "RECURRENCE": state, "LOOP_OUTPUT": last}[kind], last


def either(net, kind):
    """x or -x, as another input says."""
    x, choice = rows(net), net.add_if_conditional()
    condition = choice.set_condition(net.add_input("c", BOOL, ()))
    inside = choice.add_input(x)
    negative = net.add_unary(inside.get_output(0), trt.UnaryOperation.NEG).get_output(0)
    result = choice.add_output(inside.get_output(0), negative)
    return {"CONDITION": condition, "CONDITIONAL_INPUT": inside, "CONDITIONAL_OUTPUT": result}[kind], result


def checked(net):
    x = rows(net)
    layer = net.add_assertion(net.add_unary(net.add_input("c", BOOL, (2,)), trt.UnaryOperation.NOT).get_output(0), "must not be")
    return layer, net.add_identity(x)


def rnn(net):
    layer = net.add_rnn_v2(net.add_input("x", F, (1, 3, 4)), 1, 5, 3, trt.RNNOperation.RELU)
    for is_w, shape in ((True, (5, 4)), (False, (5, 5))):
        layer.set_weights_for_gate(0, trt.RNNGateType.INPUT, is_w, normal(*shape))
        layer.set_bias_for_gate(0, trt.RNNGateType.INPUT, is_w, np.zeros(5, np.float32))
    return layer


def attention(net, kind):
    """Attention of x to itself."""
    x = net.add_input("x", F, (1, 2, 3, 4))
    made = net.add_attention(x, x, x, trt.AttentionNormalizationOp.SOFTMAX, False)
    layers = {layer.type.name: layer for layer in net}
    return layers[kind], made


def cache(net):
    old, new = net.add_input("x", F, (2, 1, 8, 4)), net.add_input("u", F, (2, 1, 3, 4))
    return net.add_kv_cache_update(old, new, const(net, [0, 2], np.int32), trt.KVCacheMode.LINEAR)


def experts(net):
    """Two experts for tokens of four numbers."""
    tokens = net.add_input("x", F, (1, 3, 4))
    chosen, scores = const(net, [[[0], [1], [0]]], np.int32), const(net, [[[1.0], [0.5], [2.0]]])
    layer = net.add_moe(tokens, chosen, scores)
    gate, up, down = const(net, normal(2, 4, 5)), const(net, normal(2, 4, 5)), const(net, normal(2, 5, 4))
    layer.set_gated_weights(gate, up, down, trt.MoEActType.SILU)
    return layer


# Type -> class, and what makes the layer: of a network, the layer, or the layer and the one whose output is the network's.
LAYERS = {
    "CONVOLUTION": ("IConvolutionLayer", lambda n: n.add_convolution_nd(image(n), 5, (3, 3), normal(5, 4, 3, 3))),
    "DECONVOLUTION": ("IDeconvolutionLayer", lambda n: n.add_deconvolution_nd(image(n), 5, (3, 3), normal(4, 5, 3, 3))),
    "FULLY_CONNECTED": ("IFullyConnectedLayer", lambda n: n.add_fully_connected(image(n), 7, normal(7, 144), normal(7))),
    "CAST": ("ICastLayer", lambda n: n.add_cast(rows(n), I32)),
    "ACTIVATION": ("IActivationLayer", lambda n: n.add_activation(rows(n), trt.ActivationType.TANH)),
    "POOLING": ("IPoolingLayer", lambda n: n.add_pooling_nd(image(n), trt.PoolingType.MAX, (2, 2))),
    "LRN": ("ILRNLayer", lambda n: n.add_lrn(image(n), 3, 0.1, 0.75, 1.0)),
    "SCALE": ("IScaleLayer", lambda n: n.add_scale(image(n), trt.ScaleMode.UNIFORM, np.float32([1]), np.float32([2]), np.float32([1]))),
    "SOFTMAX": ("ISoftMaxLayer", lambda n: n.add_softmax(rows(n))),
    "RAGGED_SOFTMAX": ("IRaggedSoftMaxLayer", lambda n: n.add_ragged_softmax(rows(n, 3, 2, 4), const(n, [[[2], [1]]] * 3, np.int32))),
    "CONCATENATION": ("IConcatenationLayer", lambda n: n.add_concatenation([rows(n), const(n, normal(2, 4))])),
    "ELEMENTWISE": ("IElementWiseLayer", lambda n: n.add_elementwise(rows(n), const(n, normal(1, 4)), trt.ElementWiseOperation.MAX)),
    "UNARY": ("IUnaryLayer", lambda n: n.add_unary(rows(n), trt.UnaryOperation.ABS)),
    "PADDING": ("IPaddingLayer", lambda n: n.add_padding_nd(image(n), (1, 0), (0, 2))),
    "SHUFFLE": ("IShuffleLayer", square),
    "REDUCE": ("IReduceLayer", lambda n: n.add_reduce(rows(n), trt.ReduceOperation.SUM, 2, True)),
    "TOPK": ("ITopKLayer", lambda n: n.add_topk(rows(n), trt.TopKOperation.MIN, 2, 2)),
    "GATHER": ("IGatherLayer", lambda n: n.add_gather(rows(n), const(n, [2, 0], np.int32), 0)),
    "MATRIX_MULTIPLY": (
        "IMatrixMultiplyLayer",
        lambda n: n.add_matrix_multiply(rows(n), trt.MatrixOperation.NONE, const(n, normal(4, 5)), trt.MatrixOperation.NONE),
    ),
    "CONSTANT": ("IConstantLayer", lambda n: n.add_constant((2, 3), normal(2, 3))),
    "IDENTITY": ("IIdentityLayer", lambda n: n.add_identity(rows(n))),
    "SLICE": ("ISliceLayer", lambda n: n.add_slice(rows(n), (0, 1), (2, 2), (1, 2))),
    "SHAPE": ("IShapeLayer", lambda n: n.add_shape(rows(n))),
    "PARAMETRIC_RELU": ("IParametricReLULayer", lambda n: n.add_parametric_relu(rows(n), const(n, normal(1, 4)))),
    "RESIZE": ("IResizeLayer", resize),
    "TRIP_LIMIT": ("ITripLimitLayer", lambda n: loop(n, "TRIP_LIMIT")),
    "RECURRENCE": ("IRecurrenceLayer", lambda n: loop(n, "RECURRENCE")),
    "ITERATOR": ("IIteratorLayer", lambda n: loop(n, "ITERATOR")),
    "LOOP_OUTPUT": ("ILoopOutputLayer", lambda n: loop(n, "LOOP_OUTPUT")),
    "SELECT": ("ISelectLayer", lambda n: n.add_select(n.add_input("c", BOOL, (3, 4)), rows(n), const(n, np.zeros((3, 4))))),
    "FILL": ("IFillLayer", fill),
    "QUANTIZE": ("IQuantizeLayer", lambda n: n.add_quantize(rows(n), const(n, 0.1))),
    "DEQUANTIZE": ("IDequantizeLayer", lambda n: n.add_dequantize(n.add_input("x", trt.int8, (3, 4)), const(n, 0.1))),
    "DYNAMIC_QUANTIZE": ("IDynamicQuantizeLayer", lambda n: n.add_dynamic_quantize(rows(n, 3, 32), 1, 16, trt.fp8, F)),
    "CONDITION": ("IConditionLayer", lambda n: either(n, "CONDITION")),
    "CONDITIONAL_INPUT": ("IIfConditionalInputLayer", lambda n: either(n, "CONDITIONAL_INPUT")),
    "CONDITIONAL_OUTPUT": ("IIfConditionalOutputLayer", lambda n: either(n, "CONDITIONAL_OUTPUT")),
    "SCATTER": (
        "IScatterLayer", lambda n: n.add_scatter(rows(n), const(n, [[1], [0]], np.int32), const(n, normal(2, 4)), trt.ScatterMode.ND)
    ),
    "EINSUM": ("IEinsumLayer", lambda n: n.add_einsum([rows(n), const(n, normal(4, 2))], "ij,jk->ki")),
    "ASSERTION": ("IAssertionLayer", checked),
    "ONE_HOT": ("IOneHotLayer", lambda n: n.add_one_hot(n.add_input("x", I32, (3,)), const(n, [0.0, 1.0]), const(n, 4, np.int32), -1)),
    "NON_ZERO": ("INonZeroLayer", lambda n: n.add_non_zero(rows(n))),
    "GRID_SAMPLE": ("IGridSampleLayer", lambda n: n.add_grid_sample(image(n), const(n, np.zeros((1, 2, 3, 2))))),
    "NMS": ("INMSLayer", lambda n: n.add_nms(n.add_input("x", F, (1, 5, 4)), const(n, normal(1, 5, 2)), const(n, 2, np.int32))),
    "REVERSE_SEQUENCE": ("IReverseSequenceLayer", lambda n: n.add_reverse_sequence(rows(n), const(n, [1, 2, 3, 2], np.int32))),
    "NORMALIZATION": (
        "INormalizationLayer", lambda n: n.add_normalization(rows(n), const(n, np.ones((1, 4))), const(n, np.zeros((1, 4))), 2)
    ),
    "SQUEEZE": ("ISqueezeLayer", lambda n: n.add_squeeze(rows(n, 3, 1, 4), const(n, [1], np.int32))),
    "UNSQUEEZE": ("IUnsqueezeLayer", lambda n: n.add_unsqueeze(rows(n), const(n, [1], np.int32))),
    "CUMULATIVE": (
        "ICumulativeLayer", lambda n: n.add_cumulative(rows(n), const(n, 1, np.int32), trt.CumulativeOperation.SUM, False, True)
    ),
    "RNN_V2": ("IRNNv2Layer", rnn),
    "ATTENTION_INPUT": ("IAttentionInputLayer", lambda n: attention(n, "ATTENTION_INPUT")),
    "ATTENTION_OUTPUT": ("IAttentionOutputLayer", lambda n: attention(n, "ATTENTION_OUTPUT")),
    "ROTARY_EMBEDDING": (
        "IRotaryEmbeddingLayer",
        lambda n: n.add_rotary_embedding(rows(n, 1, 2, 3, 4), const(n, normal(1, 3, 2)), const(n, normal(1, 3, 2)), False, 0),
    ),
    "KV_CACHE_UPDATE": ("IKVCacheUpdateLayer", cache),
    "MOE": ("IMoELayer", experts),
}  # fmt: skip


def parameter(name, kind):
    marks = exercises(f"LayerType.{name}", kind, "ILayer.type", "ILayer.name", "ILayer.num_outputs", "ILayer.get_output")
    return pytest.param(name, id=name, marks=marks)


@exercises("INetworkDefinition", "INetworkDefinition.__getitem__", "INetworkDefinition.get_layer", "INetworkDefinition.num_layers")
@exercises("ILayer")
@pytest.mark.parametrize("name", [parameter(name, kind) for name, (kind, _) in LAYERS.items()])
def test_layers_of_each_type_in_networks_and_engines(name):
    logger = Messages()
    builder = trt.Builder(logger)
    network = builder.create_network(1)
    kind, make = LAYERS[name]
    made = make(network)
    layer, last = made if isinstance(made, tuple) else (made, made)
    expected = getattr(trt.LayerType, name)
    assert type(layer) in (getattr(trt, kind), trt.ILayer)
    layer.name = "mine"
    # Networks give layers as ILayer; clients make them their own class.
    at = [network.get_layer(i).name for i in range(network.num_layers)].index("mine")
    found = network[at]
    assert type(found) is trt.ILayer and found.type is expected
    assert all(isinstance(found.get_output(i), trt.ITensor) for i in range(found.num_outputs))
    found.__class__ = getattr(trt, kind)
    assert found == layer and found.name == "mine"
    y = last.get_output(0)
    y.name = "y"
    network.mark_output(y)
    shape, kind_of_y = tuple(y.shape), y.dtype
    config = quick(builder)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    engine = builder.build_engine(network, config)
    assert engine is not None, logger.errors()
    assert [row.type for row in engine._record.layers if row.name == "mine"] == [name]
    assert tuple(engine.get_tensor_shape("y")) == shape and engine.get_tensor_dtype("y") is kind_of_y
    told = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    assert set(told["Bindings"]) == {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    context = engine.create_execution_context()
    memory = {}
    for tensor in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        extents = [8 if d < 0 else d for d in engine.get_tensor_shape(tensor)]
        # A cache is updated where it lies.
        updated = memory.get(engine.get_aliased_input_tensor(tensor))
        memory[tensor] = np.zeros(int(np.prod(extents)) * 8, np.uint8) if updated is None else updated
        assert context.set_tensor_address(tensor, memory[tensor].ctypes.data)
    assert context.execute_async_v3(0), logger.errors()


def ran(builder, network, **inputs):
    """The output `y` of the network's engine."""
    engine = builder.build_engine(network, quick(builder))
    context = engine.create_execution_context()
    y = np.zeros(tuple(engine.get_tensor_shape("y")), np.float32)
    for name, array in {**inputs, "y": y}.items():
        assert context.set_tensor_address(name, array.ctypes.data)
    assert context.execute_async_v3(0)
    return y


@exercises("ILayer.set_input", "ILayer.get_input", "ITensor", "INetworkDefinition.__enter__", "INetworkDefinition.__exit__")
def test_inputs_of_layers_are_replaced():
    builder = trt.Builder(Messages())
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    with pytest.warns(DeprecationWarning), builder.create_network(1) as network:
        given = rows(network)
        negative = network.add_unary(given, trt.UnaryOperation.NEG).get_output(0)
        added = network.add_elementwise(given, const(network, np.ones((1, 4))), trt.ElementWiseOperation.SUM)
        layer = next(found for found in network if found.name == added.name)
        assert isinstance(given, trt.ITensor) and layer.get_input(0) is given
        layer.set_input(0, negative)
        layer.set_input(1, const(network, np.full((3, 1), 5)))
        assert layer.get_input(0) is negative
        y = added.get_output(0)
        y.name = "y"
        network.mark_output(y)
    np.testing.assert_array_equal(ran(builder, network, x=x), 5 - x)


@exercises("ISqueezeLayer.set_input", "IUnsqueezeLayer.set_input")
def test_axes_of_squeezes_are_replaced():
    builder = trt.Builder(Messages())
    network = builder.create_network(1)
    x = normal(1, 3, 1)
    squeeze = network.add_squeeze(rows(network, 1, 3, 1), const(network, [0], np.int32))
    assert tuple(squeeze.get_output(0).shape) == (3, 1)
    squeeze.set_input(1, const(network, [2], np.int32))
    assert tuple(squeeze.get_output(0).shape) == (1, 3)
    unsqueeze = network.add_unsqueeze(squeeze.get_output(0), const(network, [0], np.int32))
    unsqueeze.set_input(1, const(network, [1, 3], np.int32))
    y = unsqueeze.get_output(0)
    y.name = "y"
    network.mark_output(y)
    assert tuple(y.shape) == (1, 1, 3, 1)
    np.testing.assert_array_equal(ran(builder, network, x=x), x.reshape(1, 1, 3, 1))


@exercises("ILoop", "ILoopBoundaryLayer", "IIfConditional", "IIfConditionalBoundaryLayer", "IAttention", "IAttentionBoundaryLayer")
def test_layers_at_borders_belong_to_what_they_bound():
    network = trt.Builder(Messages()).create_network(1)
    state, last = loop(network, "RECURRENCE")
    assert isinstance(state, trt.ILoopBoundaryLayer) and isinstance(state.loop, trt.ILoop) and state.loop is last.loop
    network = trt.Builder(Messages()).create_network(1)
    condition, result = either(network, "CONDITION")
    assert isinstance(condition, trt.IIfConditionalBoundaryLayer) and isinstance(condition.conditional, trt.IIfConditional)
    assert condition.conditional is result.conditional
    network = trt.Builder(Messages()).create_network(1)
    found, made = attention(network, "ATTENTION_OUTPUT")
    found.__class__ = trt.IAttentionOutputLayer
    assert isinstance(found, trt.IAttentionBoundaryLayer) and isinstance(made, trt.IAttention) and found.attention is made
