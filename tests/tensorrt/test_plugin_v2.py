"""Plugins of version 2 in engines on the CPU: dynamic and fixed shapes, implicit batches, states, ONNX nodes, faults."""

import json

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Log
from tests.tensorrt.plugins import Runner, built, registered, tensors, view

DYNAMIC = {"x": ((1, 3), (2, 3), (4, 3))}


class Pad(trt.IPluginV2DynamicExt):
    """Repeats the last element of each row."""

    def __init__(self, pads=None):
        trt.IPluginV2DynamicExt.__init__(self)
        self.pads, self.calls = pads, []
        self.num_outputs, self.plugin_namespace, self.plugin_type, self.plugin_version = 1, "", "V2Pad", "1"

    def get_output_datatype(self, index, input_types):
        return input_types[0]

    def get_output_dimensions(self, output_index, inputs, exprBuilder):
        shape = trt.DimsExprs(inputs[0])
        shape[1] = exprBuilder.operation(trt.DimensionOperation.SUM, inputs[0][1], exprBuilder.constant(self.pads))
        return shape

    def serialize(self):
        return json.dumps({"pads": self.pads})

    def configure_plugin(self, inp, out):
        self.shape = tuple(inp[0].desc.dims)

    def supports_format_combination(self, pos, in_out, num_inputs):
        assert num_inputs == 1
        return in_out[pos].format == trt.TensorFormat.LINEAR and in_out[pos].type == trt.float32

    def initialize(self):
        self.calls.append("initialize")

    def terminate(self):
        ended.append(self)

    def destroy(self):
        self.calls.append("destroy")

    def get_workspace_size(self, inp, out):
        return 4 * inp[0].dims[0]

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        assert self.calls == ["initialize"] and self.shape == tuple(input_desc[0].dims)
        view(workspace, (self.shape[0],), np.float32)[...] = 0
        (x,), (y,) = tensors(input_desc, inputs), tensors(output_desc, outputs)
        y[...] = np.pad(x, ((0, 0), (0, self.pads)), "edge")

    def clone(self):
        made = Pad()
        made.__dict__.update(self.__dict__, calls=[])
        return made


ended: list = []


class PadCreator(trt.IPluginCreator):
    def __init__(self):
        trt.IPluginCreator.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = "V2Pad", "", "1"
        kind = trt.PluginFieldType.INT32
        self.field_names = trt.PluginFieldCollection([trt.PluginField(n, np.array([]), kind) for n in ("pads", "mode")])
        self.made = []

    def create_plugin(self, name, fc):
        assert [f.name for f in fc] == ["pads"] and fc[0].type == trt.PluginFieldType.INT32 and fc[0].size == 1
        return Pad(int(fc[0].data[0]))

    def deserialize_plugin(self, name, data):
        self.made.append((name, data))
        return Pad(**json.loads(data))


def padded(network):
    x = network.add_input("x", trt.float32, (-1, 3))
    layer = network.add_plugin_v2([x], Pad(2))
    layer.name = "pad"
    assert layer.type == trt.LayerType.PLUGIN_V2 and layer.plugin.pads == 2
    assert layer.get_output(0).shape == (-1, 5)
    return network.add_activation(layer.get_output(0), trt.ActivationType.RELU).get_output(0)


@exercises(
    "IPluginV2DynamicExt", "IPluginV2DynamicExtBase", "IPluginV2DynamicExt.clone", "IPluginV2DynamicExt.configure_plugin",
    "IPluginV2DynamicExt.destroy", "IPluginV2DynamicExt.enqueue", "IPluginV2DynamicExt.get_output_datatype",
    "IPluginV2DynamicExt.get_output_dimensions", "IPluginV2DynamicExt.get_workspace_size", "IPluginV2DynamicExt.initialize",
    "IPluginV2DynamicExt.serialize", "IPluginV2DynamicExt.supports_format_combination", "IPluginV2DynamicExt.terminate",
    "IPluginCreator", "IPluginCreator.deserialize_plugin", "IPluginCreator.field_names", "INetworkDefinition.add_plugin_v2",
    "IPluginV2Layer", "IPluginV2Layer.plugin", "LayerType.PLUGIN_V2", "IPluginV2", "IPluginV2.plugin_type", "IPluginV2.plugin_version",
    "IPluginV2.plugin_namespace", "IPluginV2.num_outputs",
)  # fmt: skip
def test_a_dynamic_plugin_is_made_again_from_its_bytes_and_ended_with_its_creator():
    creator = PadCreator()
    ended.clear()
    with registered(creator):
        serialized = built(padded, profile=DYNAMIC)
        run = Runner(serialized)
        for rows in (1, 4, 3):
            x = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
            np.testing.assert_array_equal(run(x=x)["y"], np.maximum(np.pad(x, ((0, 0), (0, 2)), "edge"), 0))
        assert set(creator.made) == {("pad", b'{"pads": 2}')} and not ended
    assert ended and all(p.calls == ["initialize", "destroy"] for p in ended)
    log = Log()
    assert trt.Runtime(log).deserialize_cuda_engine(serialized) is None and "V2Pad" in log.errors()[0]


@exercises("IPluginCreator.create_plugin")
def test_a_node_without_importer_becomes_a_plugin_of_version_2():
    node = oh.make_node("V2Pad", ["x"], ["y"], name="n0", pads=3, unknown="text")
    x, y = (oh.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", ["N", 3]), ("y", None)))
    data = oh.make_model(oh.make_graph([node], "g", [x], [y]), opset_imports=[oh.make_opsetid("", 17)]).SerializeToString()
    log = Log()

    def define(network):
        assert trt.OnnxParser(network, log).parse(data)
        found = network.get_output(0)
        network.unmark_output(found)
        return found

    with registered(PadCreator()):
        run = Runner(built(define, profile=DYNAMIC))
        given = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(run(x=given)["y"], np.pad(given, ((0, 0), (0, 3)), "edge"))
    texts = [text for severity, text in log.messages if severity == trt.Logger.WARNING]
    assert any("Attribute mode not found in plugin node!" in text for text in texts)
    assert any("Searching for plugin: V2Pad, plugin_version: 1" in text for _, text in log.messages)
    assert any("Successfully created plugin: V2Pad" in text for _, text in log.messages)


class Fixed(trt.IPluginV2Ext):
    """Sums rows, and counts the positive elements."""

    def __init__(self, config=None):
        self.plugin_type, self.plugin_version, self.num_outputs = "V2Fixed", "1", 2
        self.config = config or {}

    def get_output_shape(self, index, input_shapes):
        return tuple(input_shapes[0])[:-1]

    def get_output_data_type(self, index, input_types):
        return [trt.float32, trt.int32][index]

    def supports_format(self, dtype, format):
        return dtype in (trt.float32, trt.int32) and format == trt.TensorFormat.LINEAR

    def configure_plugin(self, input_shapes, output_shapes, input_types, output_types, in_broadcast, out_broadcast, format, max_batch_size):
        assert input_types == [trt.float32] and output_types == [trt.float32, trt.int32] and format == trt.TensorFormat.LINEAR
        assert in_broadcast == [False] and out_broadcast == [False] * 2
        self.config = {"shape": list(input_shapes[0]), "out": list(output_shapes[0]), "most": max_batch_size}

    def attach_to_context(self, cudnn, cublas, allocator):
        attached.append(self)

    def detach_from_context(self):
        attached.remove(self)

    def get_workspace_size(self, max_batch_size):
        return 16

    def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
        assert self in attached and workspace
        x = view(inputs[0], (batch_size, *self.config["shape"]), np.float32)
        view(outputs[0], (batch_size, *self.config["out"]), np.float32)[...] = x.sum(-1)
        view(outputs[1], (batch_size, *self.config["out"]), np.int32)[...] = (x > 0).sum(-1)
        return self.status

    status = 0

    def serialize(self):
        return json.dumps(self.config).encode()

    def clone(self):
        return Fixed(self.config)


attached: list = []


class FixedCreator(trt.IPluginCreator):
    name, plugin_version = "V2Fixed", "1"

    def deserialize_plugin(self, name, data):
        return Fixed(json.loads(data))


def fixed(network, shape=(4, 6)):
    layer = network.add_plugin_v2([network.add_input("x", trt.float32, shape)], Fixed())
    return layer.get_output(0), layer.get_output(1)


@exercises(
    "IPluginV2Ext", "IPluginV2Ext.attach_to_context", "IPluginV2Ext.clone", "IPluginV2Ext.configure_plugin",
    "IPluginV2Ext.detach_from_context", "IPluginV2Ext.get_output_data_type", "IPluginV2.get_output_shape", "IPluginV2.supports_format",
    "IPluginV2.get_workspace_size", "IPluginV2.execute_async", "IPluginV2.serialize", "IPluginV2.initialize", "IPluginV2.terminate",
)  # fmt: skip
def test_a_plugin_of_fixed_shapes():
    x = np.random.default_rng(0).integers(-9, 9, (4, 6)).astype(np.float32)
    with registered(FixedCreator()):
        found = Runner(built(fixed, outputs=("y", "n")))(x=x)
        np.testing.assert_array_equal(found["y"], x.sum(-1))
        np.testing.assert_array_equal(found["n"], (x > 0).sum(-1))
        assert attached
        log = Log()
        assert built(lambda n: fixed(n, (-1, 6)), log, {"x": ((1, 6),) * 3}, outputs=("y", "n")) is None
        assert "expected fixed shapes" in "\n".join(log.errors())
    assert not attached


def test_an_implicit_batch_is_hidden_from_the_plugin():
    log = Log()
    builder = trt.Builder(log)
    builder.max_batch_size = 3
    network = builder.create_network()
    network._implicit_batch = True  # what builders of 7 make, where flags ask for no explicit batch
    for name, tensor in zip(("y", "n"), fixed(network, (2, 5)), strict=True):
        tensor.name = name
        network.mark_output(tensor)
    with registered(FixedCreator()):
        made = network._model()
        import dovetail

        engine = dovetail.build(made, tune=False, threads=1, verify="off")
        x = np.random.default_rng(0).integers(-9, 9, (3, 2, 5)).astype(np.float32)
        found = engine.run({"x": x})
    np.testing.assert_array_equal(found["y"], x.sum(-1))


class Tensorwise(trt.IPluginV2IOExt):
    """Doubles images whose channels come last."""

    plugin_type, num_outputs = "V2IO", 1

    def get_output_shape(self, index, input_shapes):
        return input_shapes[0]

    def get_output_data_type(self, index, input_types):
        return input_types[0]

    def supports_format_combination(self, pos, in_out, num_inputs, num_outputs):
        assert (num_inputs, num_outputs) == (1, 1)
        return in_out[pos].format == (trt.TensorFormat.HWC, trt.TensorFormat.LINEAR)[pos] and in_out[pos].type == trt.float32

    def configure_plugin(self, inp, out):
        self.shape = tuple(inp[0].dims)
        assert inp[0].format == trt.TensorFormat.HWC and out[0].format == trt.TensorFormat.LINEAR

    def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
        n, c, h, w = self.shape
        assert workspace == 0
        view(outputs[0], self.shape, np.float32)[...] = 2 * view(inputs[0], (n, h, w, c), np.float32).transpose(0, 3, 1, 2)

    def serialize(self):
        return np.array(self.shape, np.int32).tobytes()

    def clone(self):
        made = Tensorwise()
        made.__dict__.update(self.__dict__)
        return made


def test_a_plugin_that_chooses_formats_tensor_by_tensor_runs_without_a_creator_where_it_was_built():
    import dovetail

    network = trt.Builder(Log()).create_network()
    layer = network.add_plugin_v2([network.add_input("x", trt.float32, (2, 3, 4, 5))], Tensorwise())
    network.mark_output(layer.get_output(0))
    layer.get_output(0).name = "y"
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    engine = dovetail.build(network._model(), tune=False, threads=1, verify="off")
    np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)


class Oldest(trt.IPluginV2):
    plugin_type, plugin_version = "V2Oldest", "1"
    size = 0

    def get_output_shape(self, index, input_shapes):
        return trt.Dims([input_shapes[0][0] * 2])

    def supports_format(self, dtype, format):
        return dtype == trt.float32 and format == trt.TensorFormat.LINEAR

    def configure_with_format(self, input_shapes, output_shapes, dtype, format, max_batch_size):
        assert dtype == trt.float32 and format == trt.TensorFormat.LINEAR and max_batch_size == 1
        self.size = output_shapes[0][0]

    def execute_async(self, batch_size, inputs, outputs, workspace, stream_handle):
        view(outputs[0], (self.size,), np.float32)[...] = np.tile(view(inputs[0], (self.size // 2,), np.float32), 2)

    def serialize(self):
        return bytes([self.size])

    def clone(self):
        made = Oldest()
        made.size = self.size
        return made


class OldestCreator(trt.IPluginCreator):
    name = "V2Oldest"

    def deserialize_plugin(self, name, data):
        made = Oldest()
        made.size = data[0]
        return made


@exercises(
    "IPluginV2.configure_with_format", "IPluginV2.clone", "IPluginV2.destroy", "IPluginV2.serialization_size", "IPluginV2.tensorrt_version",
    "IPluginCreator.tensorrt_version", "IPluginV2DynamicExt.get_serialization_size", "IPluginV2DynamicExt.FORMAT_COMBINATION_LIMIT",
)  # fmt: skip
def test_a_plugin_of_the_oldest_interface_and_what_interfaces_say_of_themselves():
    def define(network):
        return network.add_plugin_v2([network.add_input("x", trt.float32, (3,))], Oldest()).get_output(0)

    with registered(OldestCreator()):
        x = np.arange(3, dtype=np.float32)
        np.testing.assert_array_equal(Runner(built(define))(x=x)["y"], np.tile(x, 2))
    assert Oldest().serialization_size == 1 and Pad(12).get_serialization_size() == len('{"pads": 12}')
    major = int(trt.__version__.split(".")[0])
    assert Oldest().tensorrt_version // 10000 == OldestCreator().tensorrt_version // 10000 == major
    assert Pad.FORMAT_COMBINATION_LIMIT == 100 and Oldest().destroy() is None
    assert OldestCreator().interface_info.kind == "PLUGIN CREATOR_V1"


# ---- faults of clients ----


def _raise(*_):
    raise ValueError("a fault of the client")


BUILD_FAULTS = [
    ("get_output_datatype", _raise),
    ("get_output_datatype", lambda self, i, t: "FLOAT"),
    ("get_output_dimensions", _raise),
    ("get_output_dimensions", lambda self, o, i, b: (1, 2)),
    ("supports_format_combination", _raise),
    ("supports_format_combination", lambda self, p, d, n: 1),
    ("configure_plugin", _raise),
    ("clone", lambda self: Fixed()),
    ("serialize", lambda self: 3),
    ("serialize", _raise),
]


@pytest.mark.parametrize(("method", "fault"), BUILD_FAULTS)
def test_faults_of_a_plugin_end_the_build_with_its_name_and_method(monkeypatch, method, fault):
    log = Log()

    def define(network):
        return network.add_plugin_v2([network.add_input("x", trt.float32, (2, 3))], Pad(2)).get_output(0)

    with registered(PadCreator()):
        monkeypatch.setattr(Pad, method, fault)
        assert built(define, log) is None
    text = "\n".join(log.errors())
    assert "V2Pad" in text and method in text


@pytest.mark.parametrize(
    ("kind", "method", "fault", "message"),
    [
        (Pad, "enqueue", _raise, "Exception caught in enqueue(): ValueError: a fault of the client"),
        (Pad, "get_workspace_size", lambda self, i, o: "many", "a number of bytes"),
        (Pad, "initialize", lambda self: 1, "initialize: got 1"),
        (PadCreator, "deserialize_plugin", _raise, "its creator failed: ValueError: a fault of the client"),
        (PadCreator, "deserialize_plugin", lambda self, n, d: None, "got None from its creator"),
    ],
)
def test_faults_in_a_run_are_logged_and_the_run_fails(monkeypatch, kind, method, fault, message):
    creator, log = PadCreator(), Log()
    with registered(creator):
        serialized = built(padded, profile=DYNAMIC)
    monkeypatch.setattr(kind, method, fault)
    with registered(creator):
        assert Runner(serialized, log)(x=np.ones((2, 3), np.float32)) is None
        assert message in "\n".join(log.errors())


def test_a_status_other_than_0_fails_the_run(monkeypatch):
    log = Log()
    with registered(FixedCreator()):
        run = Runner(built(fixed, outputs=("y", "n")), log)
        monkeypatch.setattr(Fixed, "status", 3)
        assert run(x=np.ones((4, 6), np.float32)) is None and "execute_async: got 3" in "\n".join(log.errors())


def test_what_is_no_plugin_is_refused():
    network = trt.Builder(Log()).create_network()
    x = network.add_input("x", trt.float32, (2, 3))
    with pytest.raises(TypeError, match="plugin"):
        network.add_plugin_v2([x], None)
    with pytest.raises(RuntimeError, match="pure virtual"):
        trt.IPluginV2DynamicExt().enqueue([], [], [], [], 0, 0)
    with pytest.raises(RuntimeError, match="pure virtual"):
        trt.IPluginCreator().deserialize_plugin("x", b"")
