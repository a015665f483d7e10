"""Plugins of version 3 in engines on the CPU: shapes, data-dependent outputs, aliases, tactics, formats, states, faults."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Log
from tests.tensorrt.plugins import V3, Runner, V3Creator, built, fields, registered, tensors, view

DYNAMIC = {"x": ((1, 3), (2, 3), (4, 3))}


class Pad(V3):
    """Wraps `pads` elements around the end of each row."""

    name = "V3Pad"
    fields = ("pads",)

    def get_output_shapes(self, inputs, shape_inputs, expr_builder):
        shape = trt.DimsExprs(inputs[0])
        shape[-1 + len(shape)] = expr_builder.operation(trt.DimensionOperation.SUM, inputs[0][1], expr_builder.constant(self.pads[0]))
        return [shape]

    def configure_plugin(self, inp, out):
        self.ranges = [tuple(getattr(d, n)) for d in (inp[0], out[0]) for n in ("min", "opt", "max")] + [tuple(inp[0].desc.dims)]
        Pad.configured = self.ranges

    def on_shape_change(self, inp, out):
        self.told = tuple(inp[0].dims), tuple(out[0].dims), inp[0].type

    def get_workspace_size(self, inp, out):
        return 64

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        assert self.told == (tuple(input_desc[0].dims), tuple(output_desc[0].dims), trt.float32)
        assert not workspace % 256 and not outputs[0] % 256 and stream == 0
        view(workspace, (16,), np.float32)[...] = 1
        (x,), (y,) = tensors(input_desc, inputs), tensors(output_desc, outputs)
        y[...] = np.pad(x, ((0, 0), (0, int(self.pads[0]))), "wrap")


def padded(network):
    x = network.add_input("x", trt.float32, (-1, 3))
    layer = network.add_plugin_v3([x], [], Pad(fields(pads=[2])))
    assert layer.type == trt.LayerType.PLUGIN_V3 and layer.plugin.pads[0] == 2 and layer.get_output(0).shape == (-1, 5)
    return network.add_activation(layer.get_output(0), trt.ActivationType.RELU).get_output(0)


@exercises(
    "IPluginV3", "IPluginV3.get_capability_interface", "IPluginV3.clone", "IPluginV3OneCore.plugin_name", "IPluginV3OneCore.plugin_version",
    "IPluginV3OneCore.plugin_namespace", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneBuild.num_outputs", "IPluginV3OneRuntime",
    "IPluginV3OneBuild.get_output_data_types", "IPluginV3OneBuild.get_output_shapes", "IPluginV3OneBuild.configure_plugin",
    "IPluginV3OneBuild.supports_format_combination", "IPluginV3OneBuild.get_workspace_size", "IPluginV3OneRuntime.enqueue",
    "IPluginV3OneRuntime.on_shape_change", "IPluginV3OneRuntime.get_fields_to_serialize", "IPluginV3OneRuntime.attach_to_context",
    "IPluginCreatorV3One", "IPluginCreatorV3One.create_plugin", "IPluginCreatorV3One.field_names", "INetworkDefinition.add_plugin_v3",
    "IPluginV3Layer", "IPluginV3Layer.plugin", "IPluginCapability", "LayerType.PLUGIN_V3", "IPluginCreatorV3One.plugin_namespace",
    "PluginField",
)  # fmt: skip
def test_a_plugin_of_dynamic_shapes_is_made_again_from_its_fields():
    creator = V3Creator(Pad)
    assert creator.plugin_namespace == ""
    with registered(creator):
        serialized = built(padded, profile=DYNAMIC)
        assert Pad.configured == [(1, 3), (2, 3), (4, 3), (1, 5), (2, 5), (4, 5), (-1, 3)]
        run = Runner(serialized)
        for rows in (1, 4, 3):
            x = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
            np.testing.assert_array_equal(run(x=x)["y"], np.maximum(np.pad(x, ((0, 0), (0, 2)), "wrap"), 0))
        assert creator.asked and all(phase == trt.TensorRTPhase.RUNTIME for _, phase in creator.asked)
    log = Log()
    assert trt.Runtime(log).deserialize_cuda_engine(serialized) is None and "V3Pad" in log.errors()[0]


class Parts(trt.IPluginV3):
    """A plugin whose capabilities are three objects; for runs it has no build."""

    def __init__(self, fc=None, phase=trt.TensorRTPhase.BUILD):
        self.pad, self.phase = Pad(fc), phase
        self.core, self.build, self.run = trt.IPluginV3OneCore(), trt.IPluginV3OneBuild(), trt.IPluginV3OneRuntime()
        self.core.plugin_name, self.core.plugin_version, self.core.plugin_namespace = "V3Parts", "1", ""
        for part, names in (
            (self.build, ("get_output_data_types", "get_output_shapes", "supports_format_combination", "configure_plugin")),
            (self.run, ("on_shape_change", "enqueue", "get_fields_to_serialize")),
        ):
            for name in names:
                setattr(part, name, getattr(self.pad, name))
        self.build.get_workspace_size = lambda inp, out: 64

    def get_capability_interface(self, type):
        asked.add((self.phase, type))
        if type == trt.PluginCapabilityType.CORE:
            return self.core
        if type == trt.PluginCapabilityType.BUILD:
            return self.build if self.phase == trt.TensorRTPhase.BUILD else None
        return self.run if type == trt.PluginCapabilityType.RUNTIME else None

    def clone(self):
        return Parts(self.pad.get_fields_to_serialize(), self.phase)


class PartsCreator(trt.IPluginCreatorV3One):
    name = "V3Parts"

    def create_plugin(self, name, fc, phase):
        made = Parts(fc, phase)
        made.run.attach_to_context = lambda context: made
        made.run.enqueue = _wrap
        return made


def _wrap(input_desc, output_desc, inputs, outputs, workspace, stream):
    assert workspace == 0  # the build part, which wants some, is not there
    (x,), (y,) = tensors(input_desc, inputs), tensors(output_desc, outputs)
    y[...] = np.pad(x, ((0, 0), (0, 2)), "wrap")


asked: set = set()


@exercises(
    "PluginCapabilityType.CORE", "PluginCapabilityType.BUILD", "PluginCapabilityType.RUNTIME", "TensorRTPhase.BUILD",
    "TensorRTPhase.RUNTIME", "IExprBuilder", "IDimensionExpr",
)  # fmt: skip
def test_capabilities_may_be_objects_of_their_own_and_a_run_needs_no_build():
    def define(network):
        layer = network.add_plugin_v3([network.add_input("x", trt.float32, (-1, 3))], [], Parts(fields(pads=[2])))
        return layer.get_output(0)

    with registered(PartsCreator()):
        run = Runner(built(define, profile=DYNAMIC))
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(run(x=x)["y"], np.pad(x, ((0, 0), (0, 2)), "wrap"))
    assert {phase for phase, _ in asked} == {trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME}


class Repeat(V3):
    """Repeats a vector as often as the shape input says."""

    name = "V3Repeat"

    def get_output_shapes(self, inputs, shape_inputs, expr_builder):
        assert len(inputs) == 1 and len(shape_inputs) == 1
        times = shape_inputs[0][0]
        return [trt.DimsExprs([times, inputs[0][0]])]

    def compute(self, x, y):
        y[...] = x


def test_values_of_shape_inputs_decide_shapes():
    def define(network):
        x = network.add_input("x", trt.float32, (-1,))
        z = network.add_input("z", trt.float32, (-1, 2))
        times = network.add_slice(network.add_shape(z).get_output(0), (0,), (1,), (1,)).get_output(0)
        layer = network.add_plugin_v3([x], [times], Repeat())
        assert layer.get_output(0).shape == (-1, -1) and times.is_shape_tensor
        return layer.get_output(0)

    with registered(V3Creator(Repeat)):
        run = Runner(built(define, profile={"x": ((1,), (2,), (4,)), "z": ((1, 2), (2, 2), (5, 2))}))
        for count in (1, 5):
            x = np.arange(3, dtype=np.float32)
            np.testing.assert_array_equal(run(x=x, z=np.zeros((count, 2), np.float32))["y"], np.tile(x, (count, 1)))


class NonZero(V3):
    """Indices of what is not 0, with their number as a size tensor."""

    name = "V3NonZero"

    def __init__(self, fc=None):
        super().__init__(fc)
        self.num_outputs = 2

    def get_output_data_types(self, input_types):
        return [trt.int64, trt.int32]

    def get_output_shapes(self, inputs, shape_inputs, expr_builder):
        upper = expr_builder.operation(trt.DimensionOperation.PROD, inputs[0][0], inputs[0][1])
        likely = expr_builder.operation(trt.DimensionOperation.FLOOR_DIV, upper, expr_builder.constant(2))
        size = expr_builder.declare_size_tensor(1, likely, upper)
        return [trt.DimsExprs([size, expr_builder.constant(2)]), trt.DimsExprs(0)]

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        assert tuple(output_desc[0].dims) == (-1, 2) and tuple(output_desc[1].dims) == ()
        (x,) = tensors(input_desc, inputs)
        found = np.argwhere(x)
        view(outputs[0], found.shape, np.int64)[...] = found
        view(outputs[1], (), np.int32)[...] = len(found) + self.extra


def nonzero(network):
    x = network.add_input("x", trt.float32, (-1, 3))
    layer = network.add_plugin_v3([x], [], NonZero())
    assert layer.num_outputs == 2 and layer.get_output(0).shape == (-1, 2) and layer.get_output(1).dtype == trt.int32
    return layer.get_output(0), layer.get_output(1)


@exercises("IExprBuilder.declare_size_tensor")
def test_outputs_whose_size_the_data_decide():
    NonZero.extra = 0
    with registered(V3Creator(NonZero)):
        log = Log()
        run = Runner(built(nonzero, profile=DYNAMIC, outputs=("y", "n")), log)
        for x in ([[0, 1, 2], [3, 0, 0]], [[0, 0, 0]], np.ones((4, 3))):
            x = np.array(x, np.float32)
            found = run(x=x)
            np.testing.assert_array_equal(found["y"], np.argwhere(x))
            assert found["n"] == np.count_nonzero(x)
        NonZero.extra = 1
        assert run(x=np.ones((4, 3), np.float32)) is None
        assert "upper bound of 12" in log.errors()[-1]
        NonZero.extra = 0


class Accumulate(V3):
    """Adds b to a in place."""

    name = "V3Accumulate"

    def get_aliased_input(self, output_index):
        return 0

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        assert inputs[0] == outputs[0]
        a, b = tensors(input_desc, inputs)
        a += b


@exercises("IPluginV3OneBuildV2", "IPluginV3OneBuildV2.get_aliased_input")
def test_an_output_in_the_memory_of_an_input_leaves_other_readers_the_input():
    def define(network):
        a, b = (network.add_input(n, trt.float32, (2, 3)) for n in ("a", "b"))
        double = network.add_elementwise(a, a, trt.ElementWiseOperation.SUM).get_output(0)
        made = network.add_plugin_v3([double, b], [], Accumulate()).get_output(0)
        return made, network.add_elementwise(double, made, trt.ElementWiseOperation.SUB).get_output(0)

    with registered(V3Creator(Accumulate)):
        a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 0.5, np.float32)
        kept = a.copy()
        found = Runner(built(define, outputs=("y", "d")))(a=a, b=b)
    np.testing.assert_array_equal(found["y"], 2 * kept + b)
    np.testing.assert_array_equal(found["d"], -b)
    np.testing.assert_array_equal(a, kept)


class Scale(V3):
    """Multiplies by the tactic, in the types and formats of the class."""

    name = "V3Scale"
    types, format, tactics = (trt.float32,), trt.TensorFormat.LINEAR, [3, 5]

    def supports_format_combination(self, pos, in_out, num_inputs):
        assert len(in_out) == 2 and num_inputs == 1
        desc = in_out[pos].desc
        return desc.format == self.format and desc.type in self.types and (pos == 0 or desc.type == in_out[0].desc.type)

    def get_valid_tactics(self):
        return self.tactics

    def set_tactic(self, tactic):
        self.tactic = tactic

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        kind = trt.nptype(input_desc[0].type)
        assert input_desc[0].type in self.types and input_desc[0].format == output_desc[0].format == self.format
        count = 2 * 3 * 4 * 5 if self.format in (trt.TensorFormat.LINEAR, trt.TensorFormat.HWC) else 2 * 4 * 4 * 5
        seen.append(view(inputs[0], (count,), kind).copy())
        view(outputs[0], (count,), kind)[...] = seen[-1] * kind(max(self.tactic, 1))


seen: list = []


def scaled(network):
    x = network.add_input("x", trt.float32, (2, 3, 4, 5))
    layer = network.add_plugin_v3([x], [], Scale())
    assert layer.get_output(0).dtype == trt.float32
    return layer.get_output(0)


IMAGE = np.random.default_rng(0).integers(-8, 8, (2, 3, 4, 5)).astype(np.float32)


@exercises("IPluginV3OneRuntime.set_tactic", "IPluginV3OneBuild.get_valid_tactics")
def test_the_first_valid_tactic_is_set():
    with registered(V3Creator(Scale)):
        np.testing.assert_array_equal(Runner(built(scaled))(x=IMAGE)["y"], IMAGE * 3)


@pytest.mark.parametrize(
    ("memory", "stored"),
    [
        (trt.TensorFormat.HWC, IMAGE.transpose(0, 2, 3, 1)),
        (trt.TensorFormat.CHW4, np.pad(IMAGE, ((0, 0), (0, 1), (0, 0), (0, 0))).transpose(0, 2, 3, 1)),
    ],
)
def test_formats_are_those_that_the_plugin_takes(monkeypatch, memory, stored):
    monkeypatch.setattr(Scale, "format", memory)
    with registered(V3Creator(Scale)):
        run = Runner(built(scaled))
        np.testing.assert_array_equal(run(x=IMAGE)["y"], IMAGE * 3)
        np.testing.assert_array_equal(seen[-1], stored.ravel())


def test_a_plugin_of_half_precision_gets_halves_unless_types_are_strong(monkeypatch):
    monkeypatch.setattr(Scale, "types", (trt.float16,))
    with registered(V3Creator(Scale)):
        np.testing.assert_array_equal(Runner(built(scaled))(x=IMAGE)["y"], IMAGE * 3)
        assert seen[-1].dtype == np.float16
        log = Log()
        assert built(scaled, log, flags=1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)) is None
        assert "could not find any supported formats for the types FLOAT, FLOAT" in log.errors()[-1]


# ---- faults of clients ----


def _raise(*_):
    raise ValueError("a fault of the client")


BUILD_FAULTS = [
    ("get_output_data_types", _raise, "get_output_data_types"),
    ("get_output_data_types", lambda self, t: None, "list of 1 DataType"),
    ("get_output_data_types", lambda self, t: ["FLOAT"], "list of 1 DataType"),
    ("get_output_shapes", _raise, "get_output_shapes"),
    ("get_output_shapes", lambda self, i, s, b: [(1, 2)], "list of 1 DimsExprs"),
    ("get_output_shapes", lambda self, i, s, b: [], "list of 1 DimsExprs"),
    ("supports_format_combination", _raise, "supports_format_combination"),
    ("supports_format_combination", lambda self, p, d, n: None, "a bool"),
    ("supports_format_combination", lambda self, p, d, n: False, "could not find any supported formats"),
    ("configure_plugin", _raise, "configure_plugin"),
    ("clone", _raise, "clone"),
    ("clone", lambda self: None, "expected a Pad"),
    ("get_valid_tactics", lambda self: [0], "numbers from 1"),
    ("get_valid_tactics", lambda self: 3, "numbers from 1"),
    ("get_aliased_input", lambda self, i: 4, "got input 4"),
    ("get_aliased_input", lambda self, i: 0, "whose memory it shares"),
    ("get_fields_to_serialize", _raise, "get_fields_to_serialize"),
    ("get_fields_to_serialize", lambda self: 1, "a PluginFieldCollection"),
]


@pytest.mark.parametrize(("method", "fault", "message"), BUILD_FAULTS)
def test_faults_of_a_plugin_end_the_build_with_its_name_and_method(monkeypatch, method, fault, message):
    monkeypatch.setattr(Pad, method, fault)
    log = Log()

    def define(network):
        x = network.add_input("x", trt.float32, (2, 3))
        return network.add_plugin_v3([x], [], Pad(fields(pads=[2]))).get_output(0)

    with registered(V3Creator(Pad)):
        assert built(define, log) is None
    text = "\n".join(log.errors())
    assert message in text and "V3Pad" in text and method in text


def test_faults_of_plugins_and_creators_fail_runs_which_go_on_afterwards(monkeypatch):
    creator = V3Creator(Pad)
    with registered(creator):
        log = Log()
        run = Runner(built(padded, profile=DYNAMIC), log)
        x = np.ones((2, 3), np.float32)
        for method in ("enqueue", "on_shape_change"):
            with monkeypatch.context() as patch:
                patch.setattr(Pad, method, _raise)
                # A shape that was not run yet, so that the plugin is told of it.
                assert run(x=np.ones((3, 3), np.float32)) is None
            assert run(x=x) is not None
        assert "Exception caught in enqueue(): ValueError: a fault of the client" in "\n".join(log.errors())
        serialized = built(padded, profile=DYNAMIC)
        monkeypatch.setattr(creator, "create_plugin", lambda *_: None, raising=False)
        trt.get_plugin_registry().deregister_creator(creator)
        trt.get_plugin_registry().register_creator(creator)
        log = Log()
        assert Runner(serialized, log)(x=x) is None and "got None from its creator" in "\n".join(log.errors())


def test_what_is_no_plugin_is_refused():
    log = Log()
    network = trt.Builder(log).create_network()
    x = network.add_input("x", trt.float32, (2, 3))
    with pytest.raises(TypeError, match="plugin"):
        network.add_plugin_v3([x], [], object())
    with pytest.raises(TypeError, match="inputs"):
        network.add_plugin_v3([1], [], Pad(fields(pads=[1])))
    for change, message in (("num_outputs", "num_outputs"), ("plugin_name", "got no name")):
        plugin = Pad(fields(pads=[1]))
        setattr(plugin, change, "" if change == "plugin_name" else 0)
        assert network.add_plugin_v3([x], [], plugin) is None and message in log.errors()[0]

    class NoCore(Pad):
        def get_capability_interface(self, type):
            return None

    assert network.add_plugin_v3([x], [], NoCore(fields(pads=[1]))) is None and "get_capability_interface" in log.errors()[0]


@exercises("IPluginV3OneBuild.get_output_datatypes", "IPluginV3OneBuild.DEFAULT_FORMAT_COMBINATION_LIMIT", "IPluginV3.destroy")
def test_the_names_of_10_0_and_what_is_not_overridden():
    class Old(V3):
        name = "V3Old"
        get_output_data_types = trt.IPluginV3OneBuild.get_output_data_types

        def get_output_datatypes(self, input_types):
            return [trt.int32]

    assert Old().get_output_data_types([trt.float32]) == [trt.int32]
    assert Pad().get_output_datatypes([trt.int8]) == [trt.int8] and Pad.DEFAULT_FORMAT_COMBINATION_LIMIT == 100
    assert Pad().get_aliased_input(0) == -1 and Pad().get_valid_tactics() == [] and Pad().destroy() is None
    bare = trt.IPluginV3OneBuild()
    with pytest.raises(RuntimeError, match="pure virtual"):
        bare.get_output_data_types([])
    with pytest.raises(RuntimeError, match="pure virtual"):
        trt.IPluginV3OneRuntime().enqueue([], [], [], [], 0, 0)
    assert trt.IPluginV3().interface_info.kind == "IPluginV3" and V3Creator(Pad).interface_info.kind == "PLUGIN CREATOR_V3ONE"


# ---- ONNX ----


def model(op, inputs, **attributes):
    node = oh.make_node(op, inputs, ["y"], name="n0", **attributes)
    graph = oh.make_graph(
        [node], "g", [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)]).SerializeToString()


def test_a_node_without_importer_becomes_the_plugin_of_its_name():
    creator, log = V3Creator(Pad), Log()
    with registered(creator, namespace="mine"):
        data = model("V3Pad", ["x"], pads=[2], extra=1.0, plugin_namespace="mine", plugin_version="1")
        builder = trt.Builder(log)
        network = builder.create_network()
        parser = trt.OnnxParser(network, log)
        assert parser.parse(data) and network[0].type == trt.LayerType.PLUGIN_V3
        assert creator.asked == [("n0", trt.TensorRTPhase.BUILD)] and network[0].name == "n0"
        missing = trt.OnnxParser(builder.create_network(), log)
        assert not missing.parse(model("V3Pad", ["x"], pads=[2])) and "Plugin not found" in missing.get_error(0).desc()
    with registered(creator):
        x = np.arange(6, dtype=np.float32).reshape(2, 3)

        def define(network):
            assert trt.OnnxParser(network, log).parse(model("V3Pad", ["x"], pads=[1]))
            found = network.get_output(0)
            network.unmark_output(found)
            return found

        run = Runner(built(define, profile=DYNAMIC))
        np.testing.assert_array_equal(run(x=x)["y"], np.pad(x, ((0, 0), (0, 1)), "wrap"))
