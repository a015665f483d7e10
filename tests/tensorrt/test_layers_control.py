"""Loops, conditionals and assertions."""

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.core.errors import ModelError
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network

E = trt.ElementWiseOperation


@exercises(
    "INetworkDefinition.add_loop", "ILoop.add_recurrence", "ILoop.add_trip_limit", "ILoop.add_iterator", "ILoop.add_loop_output",
    "ILoop.name", "IRecurrenceLayer.set_input", "ILoopOutputLayer.set_input", "ILoopOutputLayer.axis", "ILoopOutputLayer.kind",
    "IIteratorLayer.axis", "IIteratorLayer.reverse", "ITripLimitLayer.kind", "ILoopBoundaryLayer.loop", "TripLimit.COUNT",
    "LoopOutput.LAST_VALUE", "LoopOutput.CONCATENATE", "LoopOutput.REVERSE",
)  # fmt: skip
def test_loop_by_count():
    suite = Suite()
    array, trips = suite.random(3, 5), 4
    loop = suite.net.add_loop()
    loop.name = "sums"
    limit = loop.add_trip_limit(suite.input(np.int32(trips)), trt.TripLimit.COUNT)
    assert limit.kind is trt.TripLimit.COUNT and limit.loop is loop and loop.name == "sums" and limit.num_outputs == 0
    forward = loop.add_iterator(suite.input(array[:, :4].copy()), 0)
    forward.axis = 1
    backward = loop.add_iterator(suite.input(array.T.copy()))
    backward.reverse = True
    assert (forward.axis, backward.axis, backward.reverse) == (1, 0, True)
    state = loop.add_recurrence(suite.const(np.zeros(3, np.float32)))
    sums = suite.net.add_elementwise(state.get_output(0), forward.get_output(0), E.SUM)
    half = suite.net.add_elementwise(sums.get_output(0), suite.const(np.full(3, 0.5, np.float32)), E.PROD)
    state.set_input(1, half.get_output(0))
    mixed = suite.net.add_elementwise(sums.get_output(0), backward.get_output(0), E.SUB)
    assert half.get_output(0).shape == (3,) and state.get_output(0).dtype is trt.float32
    value, seen, states = np.zeros(3, np.float32), [], []
    for i in range(trips):
        states.append(value)
        total = value + array[:, i]
        seen.append(total - array[:, trips - 1 - i])
        value = total * np.float32(0.5)
    suite.expect(loop.add_loop_output(state.get_output(0), trt.LoopOutput.LAST_VALUE), value)
    suite.expect(loop.add_loop_output(mixed.get_output(0), trt.LoopOutput.LAST_VALUE), seen[-1])
    output = loop.add_loop_output(mixed.get_output(0), trt.LoopOutput.CONCATENATE)
    output.axis = 1
    output.set_input(1, suite.const(np.int32(6)))
    assert output.kind is trt.LoopOutput.CONCATENATE and output.axis == 1
    suite.expect(output, np.stack([*seen, np.zeros(3, np.float32), np.zeros(3, np.float32)], 1))
    output = loop.add_loop_output(state.get_output(0), trt.LoopOutput.REVERSE)
    output.set_input(1, limit.get_input(0))
    suite.expect(output, np.stack(states[::-1]))
    suite.run()


@exercises("TripLimit.WHILE", "ILoop.add_trip_limit", "ILoop.add_recurrence")
def test_loop_by_condition_around_a_loop():
    suite = Suite(1)
    start = np.array(1, np.int32)
    outer, limit = suite.net.add_loop(), suite.const(np.int32(40))
    value = outer.add_recurrence(suite.input(start))
    below = suite.net.add_elementwise(value.get_output(0), limit, E.LESS)
    assert outer.add_trip_limit(below.get_output(0), trt.TripLimit.WHILE).kind is trt.TripLimit.WHILE
    assert outer.add_trip_limit(below.get_output(0), trt.TripLimit.WHILE) is None and suite.log.errors.pop()
    inner = suite.net.add_loop()
    inner.add_trip_limit(suite.const(np.int32(2)), trt.TripLimit.COUNT)
    part = inner.add_recurrence(value.get_output(0))
    weight = suite.const(np.int32(3))
    more = suite.net.add_elementwise(part.get_output(0), weight, E.SUM)
    part.set_input(1, more.get_output(0))
    result = inner.add_loop_output(part.get_output(0), trt.LoopOutput.LAST_VALUE)
    doubled = suite.net.add_elementwise(result.get_output(0), suite.const(np.int32(2)), E.PROD)
    value.set_input(1, doubled.get_output(0))
    count = outer.add_recurrence(suite.const(np.int32(0)))
    count.set_input(1, suite.net.add_elementwise(count.get_output(0), suite.const(np.int32(1)), E.SUM).get_output(0))
    expected, turns = 1, 0
    while expected < 40:
        expected, turns = (expected + 6) * 2, turns + 1
    suite.expect(outer.add_loop_output(value.get_output(0), trt.LoopOutput.LAST_VALUE), np.array(expected, np.int32))
    suite.expect(outer.add_loop_output(count.get_output(0), trt.LoopOutput.LAST_VALUE), np.array(turns, np.int32))
    suite.run()


def test_loops_that_are_not_whole():
    for build, message in (
        (lambda loop, net: None, "got no trip limit"),
        (lambda loop, net: loop.add_trip_limit(net.add_input("n", trt.int32, ()), trt.TripLimit.COUNT), "got no input 1"),
    ):
        net, _ = network()
        loop = net.add_loop()
        state = loop.add_recurrence(net.add_input("x", trt.float32, (2,)))
        build(loop, net)
        net.mark_output(loop.add_loop_output(state.get_output(0), trt.LoopOutput.LAST_VALUE).get_output(0))
        with pytest.raises(ModelError, match=message):
            net._model()
    net, log = network()
    loop = net.add_loop()
    loop.add_trip_limit(net.add_input("n", trt.int32, ()), trt.TripLimit.COUNT)
    state = loop.add_recurrence(net.add_input("x", trt.float32, (2,)))
    state.set_input(1, state.get_output(0))
    net.mark_output(net.add_identity(state.get_output(0)).get_output(0))
    with pytest.raises(ModelError, match="outside of"):
        net._model()
    output = loop.add_loop_output(state.get_output(0), trt.LoopOutput.CONCATENATE)
    assert not output.get_output(0).shape._valid and "expected the length" in log.errors.pop()


@pytest.mark.parametrize("decision", [True, False])
@exercises(
    "INetworkDefinition.add_if_conditional", "IIfConditional.set_condition", "IIfConditional.add_input", "IIfConditional.add_output",
    "IIfConditional.name", "IIfConditionalBoundaryLayer.conditional",
)  # fmt: skip
def test_conditional(decision):
    suite = Suite(2)
    array = suite.random(2, 3)
    choice = suite.net.add_if_conditional()
    choice.name = "either"
    condition = choice.set_condition(suite.input(np.array(not decision)))
    assert condition == choice.set_condition(suite.input(np.array(decision))) and choice.name == "either"
    entering = choice.add_input(suite.input(array, dynamic=True))
    assert entering.conditional is choice and entering.get_output(0).shape == (-1, -1)
    weights = suite.const(suite.random(3, 3))
    product = suite.net.add_matrix_multiply(entering.get_output(0), trt.MatrixOperation.NONE, weights, trt.MatrixOperation.NONE)
    negative = suite.net.add_unary(entering.get_output(0), trt.UnaryOperation.NEG)
    lines = choice.add_output(product.get_output(0), negative.get_output(0))
    signs = choice.add_output(entering.get_output(0), suite.net.add_unary(negative.get_output(0), trt.UnaryOperation.SIGN).get_output(0))
    matrix = np.asarray(suite.net.get_layer(2 if suite.net[2].type is trt.LayerType.CONSTANT else 0)._record.values["weights"].numpy())
    suite.expect(lines, array @ matrix.reshape(3, 3) if decision else -array)
    suite.expect(signs, array if decision else np.sign(-array))
    suite.run()


def test_a_loop_with_weights_in_a_branch():
    suite = Suite(5)
    net, array = suite.net, suite.random(1, 3, 4)
    choice = net.add_if_conditional()
    choice.set_condition(suite.input(np.array(True)))
    entering = choice.add_input(suite.input(array)).get_output(0)

    def times(tensor):
        layer = net.add_convolution_nd(tensor, 3, (1, 3), w3)
        layer.padding_nd = (0, 1)
        return layer.get_output(0)

    # Both branches read the same weights, one of them in a loop.
    w3 = suite.random(3, 3, 1, 3)
    shaped = net.add_shuffle(entering)
    shaped.reshape_dims = (1, 3, 1, 4)
    loop = net.add_loop()
    loop.add_trip_limit(suite.const(np.int32(3)), trt.TripLimit.COUNT)
    state = loop.add_recurrence(shaped.get_output(0))
    state.set_input(1, times(state.get_output(0)))
    last = loop.add_loop_output(state.get_output(0), trt.LoopOutput.LAST_VALUE).get_output(0)
    assert net.set_weights_name(w3, "shared")
    value = array.reshape(1, 3, 1, 4)
    for _ in range(3):
        wide = np.pad(value, [(0, 0)] * 3 + [(1, 1)])
        value = sum(np.einsum("nchw,kc->nkhw", wide[..., i : i + 4], w3[:, :, 0, i]) for i in range(3))
    suite.expect(choice.add_output(last, times(shaped.get_output(0))), value, 1e-4)
    assert list(net._weights().values()).count("shared") == 2
    suite.run()


@exercises("INetworkDefinition.add_assertion", "IAssertionLayer.message")
def test_assertion():
    net, _ = network()
    x = net.add_input("x", trt.float32, (2, 3))
    shape = net.add_shape(x).get_output(0)
    wanted = net.add_constant((2,), np.array([2, 4], np.int64)).get_output(0)
    layer = net.add_assertion(net.add_elementwise(shape, wanted, E.EQUAL).get_output(0), "")
    layer.message = "rows of four"
    assert layer.message == "rows of four" and layer.num_outputs == 0
    net.mark_output(net.add_identity(x).get_output(0))
    with pytest.raises(ModelError, match="rows of four"):
        net._model()
    x.shape = (2, 4)
    assert list(net._model().outputs) == ["(Unnamed Layer* 4) [Identity]_output"]
