"""`tensorrt.plugin`: plugins of decorated functions in engines on the CPU."""

import typing
from types import GenericAlias, SimpleNamespace

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper as oh
import pytest

import dovetail.tensorrt as trt
import dovetail.tensorrt.plugin as trtp
from dovetail.tensorrt.plugin.attributes import element_type
from dovetail.tensorrt.plugin.compiled import CompiledKernel
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Log
from tests.tensorrt.plugins import Runner, built, view

DYNAMIC = {"x": ((1, 3), (2, 3), (4, 3))}


@trtp.register("quick::circ")
def circ_desc(x: trtp.TensorDesc, pads: npt.NDArray[np.int32], mode: str, scale: float, on: bool, raw: bytes) -> trtp.TensorDesc:
    out = x.like()
    for i in range(len(pads) // 2):
        out.shape_expr[x.ndim - i - 1] += int(pads[2 * i] + pads[2 * i + 1])
    return out


@trtp.impl("quick::circ")
def circ(
    x: trtp.Tensor, pads: npt.NDArray[np.int32], mode: str, scale: float, on: bool, raw: bytes, outputs: tuple[trtp.Tensor], stream: int
) -> None:  # fmt: skip
    assert on is True and raw == b"\0a" and stream == 0 and x.dtype == trt.float32 and x.format == trt.TensorFormat.LINEAR
    assert x.scale == 1 and x.strides == (3, 1) and x.numel() == np.prod(tuple(x.shape)) and x.ndim == 2 and not x.is_aliased
    np.asarray(outputs[0])[...] = np.pad(np.asarray(x), ((0, 0), tuple(pads)), mode) * scale


ATTRIBUTES = {"pads": np.array([1, 2], np.int32), "mode": "wrap", "scale": 0.5, "on": True, "raw": b"\0a"}


def padded(network):
    x = network.add_input("x", trt.float32, (-1, 3))
    layer = network.add_plugin(trt.plugin.op.quick.circ(x, **ATTRIBUTES))
    assert layer.get_output(0).shape == (-1, 6)
    return layer.get_output(0)


@exercises(
    "plugin", "plugin.register", "plugin.impl", "plugin.op", "plugin.Tensor", "plugin.TensorDesc", "INetworkDefinition.add_plugin",
    "IPluginV3QuickCore", "IPluginV3QuickBuild", "IPluginV3QuickRuntime", "IPluginCreatorV3Quick", "IPluginCreatorV3Quick.create_plugin",
    "IPluginCreatorV3Quick.name", "IPluginCreatorV3Quick.plugin_namespace", "IPluginCreatorV3Quick.plugin_version",
    "IPluginCreatorV3Quick.field_names", "IPluginV3QuickCore.plugin_name", "IPluginV3QuickCore.plugin_namespace",
    "IPluginV3QuickCore.plugin_version", "IPluginV3QuickBuild.num_outputs",
)  # fmt: skip
def test_a_function_runs_with_its_attributes_after_an_engine_was_saved():
    creator = trt.get_plugin_registry().get_creator("circ", "1", "quick")
    assert (creator.name, creator.plugin_namespace, creator.plugin_version) == ("circ", "quick", "1")
    assert [f.name for f in creator.field_names] == list(ATTRIBUTES)
    with pytest.raises(RuntimeError, match="pure virtual"):
        trt.IPluginCreatorV3Quick().create_plugin("circ", "quick", trt.PluginFieldCollection(), trt.TensorRTPhase.BUILD)
    run = Runner(built(padded, profile=DYNAMIC))
    for rows in (1, 4):
        x = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
        np.testing.assert_array_equal(run(x=x)["y"], np.pad(x, ((0, 0), (1, 2)), "wrap") * np.float32(0.5))


@trtp.register("quick::nonzero")
def nonzero_desc(x: trtp.TensorDesc) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
    upper = x.shape_expr.numel()
    size = trtp.size_tensor(upper // 2, upper)
    assert size.is_size_tensor and size.upper_bound is upper and size.ndim == 0 and size.dtype == trt.int32
    assert size.expr().is_size_tensor and size.expr().is_fake == x.shape_expr[0].is_fake
    with pytest.raises(ValueError, match="size tensor"):
        size.expr() + 1
    return trtp.from_shape_expr((size.expr(), 2), dtype=trt.int64), size


@trtp.impl("quick::nonzero")
def nonzero(x: trtp.Tensor, outputs: tuple[trtp.Tensor, trtp.Tensor], stream: int) -> None:
    found = np.argwhere(np.asarray(x))
    assert outputs[0].is_data_dependent and tuple(outputs[0].shape) == (-1, 2)
    with pytest.raises(ValueError, match="data-dependent"):
        outputs[0].numel()
    view(outputs[0].data_ptr, found.shape, np.int64)[...] = found
    np.asarray(outputs[1])[...] = len(found)


@exercises("plugin.SizeTensorDesc", "plugin.size_tensor", "plugin.from_shape_expr", "plugin.ShapeExpr", "plugin.ShapeExprs")
def test_size_tensors_say_how_large_an_output_is():
    def define(network):
        layer = network.add_plugin(trtp.op.quick.nonzero(network.add_input("x", trt.float32, (-1, 3))))
        return layer.get_output(0), layer.get_output(1)

    run = Runner(built(define, profile=DYNAMIC, outputs=("y", "n")))
    for x in ([[0, 1, 2], [3, 0, 0]], [[0, 0, 0]]):
        found = run(x=np.array(x, np.float32))
        np.testing.assert_array_equal(found["y"], np.argwhere(x))
        assert found["n"] == np.count_nonzero(x)


@trtp.register("quick::accumulate")
def accumulate_desc(a: trtp.TensorDesc, b: trtp.TensorDesc) -> tuple[trtp.TensorDesc]:
    made = a.aliased()
    assert made.is_aliased and made.get_aliased() is a
    with pytest.raises(ValueError, match="immutable"):
        made.dtype = trt.int8
    return (made,)


@trtp.impl("quick::accumulate")
def accumulate(a: trtp.Tensor, b: trtp.Tensor, outputs: tuple[trtp.Tensor], stream: int) -> None:
    assert outputs[0].is_aliased and outputs[0].get_aliased() is a and outputs[0].data_ptr == a.data_ptr and not b.is_aliased
    flat = a.aliased((6,))
    assert flat.get_aliased() is a and flat.strides == (1,)
    array = np.asarray(flat)
    array += np.asarray(b).ravel()


def test_an_output_may_share_the_memory_of_an_input():
    def define(network):
        a, b = (network.add_input(n, trt.float32, (2, 3)) for n in ("a", "b"))
        return network.add_plugin(trtp.op.quick.accumulate(a, b)).get_output(0)

    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 0.5, np.float32)
    np.testing.assert_array_equal(Runner(built(define))(a=a, b=b)["y"], a + b)
    assert a[0, 1] == 1


@trtp.register("quick::tuned")
def tuned_desc(x: trtp.TensorDesc, unused: int) -> trtp.TensorDesc:
    return x.like()


@trtp.autotune("quick::tuned")
def tuned_options(x: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]) -> list[trtp.AutoTuneCombination]:
    assert x.has_shape and x.shape.is_dynamic and x.is_dynamic and x.has_shape_expr and x.format == trt.TensorFormat.LINEAR and x.scale == 1
    assert (x.shape.min, x.shape.opt, x.shape.max) == ((1, 4, 3, 2), (2, 4, 3, 2), (5, 4, 3, 2))
    with pytest.raises(ValueError, match="dynamic"):
        x.numel()
    last = trtp.AutoTuneCombination()
    last.pos([0, 1], "FP16", "HWC")
    last.tactics([7, 9])
    with pytest.raises(ValueError, match="already"):
        last.pos(0, "FP32")
    return [trtp.AutoTuneCombination("INT8, INT8*FP32", "LINEAR"), last]


@trtp.impl("quick::tuned")
def tuned(x: trtp.Tensor, outputs: tuple[trtp.Tensor], stream: int, tactic: int) -> None:
    assert x.dtype == outputs[0].dtype == trt.float16 and x.format == trt.TensorFormat.HWC and x.strides == (24, 1, 8, 4)
    np.asarray(outputs[0])[...] = np.asarray(x) * tactic


@exercises("plugin.autotune", "plugin.AutoTuneCombination", "plugin.Shape")
def test_autotune_offers_types_formats_and_tactics():
    def define(network):
        return network.add_plugin(trtp.op.quick.tuned(network.add_input("x", trt.float32, (-1, 4, 3, 2)), unused=1)).get_output(0)

    run = Runner(built(define, profile={"x": ((1, 4, 3, 2), (2, 4, 3, 2), (5, 4, 3, 2))}))
    x = np.random.default_rng(0).integers(-9, 9, (3, 4, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(run(x=x)["y"], 7 * x)


def test_choices_that_go_together_and_free_ones():
    made = trtp.AutoTuneCombination("FP32|FP16, FP32|FP16, FP32*FP16", "LINEAR", [1, 2]).combinations(3)
    full, half = trt.float32, trt.float16
    assert {c.types for c in made} == {(full, full, full), (full, full, half), (half, half, full), (half, half, half)} and len(made) == 4
    assert all(c.formats == (trt.TensorFormat.LINEAR,) * 3 and c.tactics == (1, 2) for c in made)
    for types, layouts, message in (
        ("FP32|FP16, FP32", "LINEAR, HWC, HWC", "layouts"), ("FP32|FP16, FP32|FP16|INT8", None, "equally many"),
        ("FP32|FP16*INT8, FP32", None, "either"), ("F32, FP32", None, "type 'F32'"), ("FP32, FP32", "ROW", "format 'ROW'"),
        ("FP32", None, "expected 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            trtp.AutoTuneCombination(types, layouts).combinations(2)


@exercises("plugin.cdiv", "plugin.max", "plugin.min", "plugin.Shape")
def test_expressions_and_shapes():
    five, two = trtp.ShapeExpr(5), trtp.ShapeExpr(2)
    values = [five + 1, five - two, five * 2, five // two, five == two, two < five]
    values += [trtp.cdiv(five, 2), trtp.max(2, five), trtp.min(five, 2)]
    assert [v.constant_value() for v in values] == [6, 3, 10, 2, 0, 1, 3, 5, 2] and five.is_constant and not five.is_fake
    fake = trtp.ShapeExpr()
    assert fake.is_fake and (fake + 1).is_fake and trtp.cdiv(7, fake).is_fake
    for bad in (lambda: fake.is_constant, fake.constant_value):
        with pytest.raises(RuntimeError, match="fake"):
            bad()
    for function in (trtp.cdiv, trtp.max, trtp.min):
        with pytest.raises(ValueError, match="'int's"):
            function(1, 2)
    shape = trtp.Shape((2, 3))
    shape[1] = 4
    assert shape.numel() == 8 and len(shape) == 2 and list(shape) == [2, 4] and str(shape) == "Shape(2, 4)" and not shape.is_dynamic
    with pytest.raises(ValueError, match="is_dynamic"):
        _ = shape.opt
    with pytest.raises(AttributeError, match="max"):
        _ = trtp.Shape((-1,)).max
    with pytest.raises(ValueError, match="Shape"):
        trtp.Shape([1])


# ---- compiled kernels ----


@trtp.register("quick::add", lazy_register=True)
def add_desc(x: trtp.TensorDesc, block: int) -> trtp.TensorDesc:
    return x.like()


@trtp.aot_impl("quick::add")
def add_compiled(x: trtp.TensorDesc, block: int, outputs: tuple[trtp.TensorDesc]):
    count = x.shape_expr.numel()
    params = trtp.KernelLaunchParams()
    params.grid_x, params.block_x, params.shared_mem = trtp.cdiv(count, block), 128, 64
    arguments = trtp.SymIntExprs(1)
    arguments[0] = trtp.SymInt32(count)
    return "add", "// ptx", params, arguments


@exercises(
    "plugin.aot_impl", "plugin.KernelLaunchParams", "plugin.SymExprs", "plugin.SymIntExprs", "plugin.SymInt32", "plugin.SymInt16",
    "plugin.SymInt8", "ISymExpr", "ISymExpr.dtype", "ISymExpr.expr", "ISymExpr.type", "ISymExprs", "ISymExprs.__getitem__",
    "ISymExprs.__len__", "ISymExprs.__setitem__", "ISymExprs.nbSymExprs", "KernelLaunchParams", "KernelLaunchParams.grid_x",
    "KernelLaunchParams.grid_y", "KernelLaunchParams.grid_z", "KernelLaunchParams.block_x", "KernelLaunchParams.block_y",
    "KernelLaunchParams.block_z", "KernelLaunchParams.shared_mem", "PluginArgType.INT",
)  # fmt: skip
@pytest.mark.parametrize(
    ("made", "kind"),
    [
        pytest.param(lambda: trtp.SymInt8(3), "INT8", marks=exercises("PluginArgDataType.INT8")),
        pytest.param(lambda: trtp.SymInt16(trtp.ShapeExpr(3)), "INT16", marks=exercises("PluginArgDataType.INT16")),
        pytest.param(lambda: trtp.SymInt32(3), "INT32", marks=exercises("PluginArgDataType.INT32")),
    ],
)
def test_arguments_and_launch_parameters_of_compiled_kernels(made, kind):
    scalar = made()
    assert scalar.type == trt.PluginArgType.INT and scalar.dtype == getattr(trt.PluginArgDataType, kind)
    assert scalar.expr.get_constant_value() == 3
    several = trtp.SymExprs(2)
    several[1] = scalar
    assert len(several) == several.nbSymExprs == 2 and several[1] is scalar and isinstance(several, trt.ISymExprs)
    params = trt.KernelLaunchParams()
    params.grid_x = trtp.ShapeExpr(6)
    params.block_x = 128
    sizes = [getattr(params, f"{what}_{axis}").get_constant_value() for what in ("grid", "block") for axis in "xyz"]
    assert sizes == [6, 1, 1, 128, 1, 1] and params.shared_mem.get_constant_value() == 0
    kernel = CompiledKernel.of(("k", b"ptx", params, several))
    back = CompiledKernel.from_bytes(kernel.to_bytes())
    assert (back.name, back.code, back.launch_parts) == ("k", b"ptx", kernel.launch_parts)
    assert back.arguments[1] == ({"INT8": 8, "INT16": 16, "INT32": 32}[kind], [3])


@exercises("IPluginV3QuickAOTBuild", "QuickPluginCreationRequest.STRICT_AOT", "QuickPluginCreationRequest.STRICT_JIT")
def test_compiled_kernels_need_a_gpu_and_are_kept_in_the_state():
    log = Log()
    network = trt.Builder(log).create_network()
    x = network.add_input("x", trt.float32, (-1, 3))
    layer = network.add_plugin(trtp.op.quick.add(x, block=16), aot=True)
    assert isinstance(layer.plugin, trt.IPluginV3QuickAOTBuild) and layer.get_output(0).shape == (-1, 3)
    (field,) = layer.plugin.get_fields_to_serialize()
    kernel = CompiledKernel.from_bytes(field.data.tobytes())
    from dovetail.core.dims import run_program

    assert kernel.name == "add" and run_program(kernel.launch_parts["grid_x"], {"i0_0": 7}) == 2
    assert [(bits, run_program(p, {"i0_0": 7})) for bits, p in kernel.arguments] == [(32, 21)]
    with pytest.raises(RuntimeError, match="compiled for a GPU"):
        kernel.launch([(7, 3)], [0], [0], 0)
    with pytest.raises(ValueError, match="STRICT_JIT"):
        network.add_plugin(trtp.op.quick.add(x, block=16), aot=False)
    with pytest.raises(ValueError, match="STRICT_AOT"):
        network.add_plugin(trtp.op.quick.circ(x, **ATTRIBUTES), aot=True)
    creator = trt.get_plugin_registry().get_creator("add", "1", "quick")
    block = trt.PluginFieldCollection([trt.PluginField("block", 16, trt.PluginFieldType.INT64)])
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    made = creator.create_plugin("add", "quick", block, trt.TensorRTPhase.BUILD, request)
    assert isinstance(made, trt.IPluginV3QuickAOTBuild)
    with pytest.raises(ValueError, match="STRICT_JIT"):
        creator.create_plugin("add", "quick", block, trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_JIT)


@trtp.register("quick::both")
def both_desc(x: trtp.TensorDesc) -> trtp.TensorDesc:
    return x.like()


@trtp.impl("quick::both")
def both(x: trtp.Tensor, outputs: tuple[trtp.Tensor], stream: int) -> None:
    np.asarray(outputs[0])[...] = np.asarray(x)


@trtp.aot_impl("quick::both")
def both_compiled(x: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]):
    return "both", "// ptx", trtp.KernelLaunchParams(), trtp.SymIntExprs(0)


@exercises(
    "QuickPluginCreationRequest.PREFER_AOT", "QuickPluginCreationRequest.PREFER_JIT", "QuickPluginCreationRequest.UNKNOWN",
    "NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS", "NetworkDefinitionCreationFlag.PREFER_JIT_PYTHON_PLUGINS",
)  # fmt: skip
def test_flags_of_the_network_prefer_one_of_two_functions():
    flags, requests = trt.NetworkDefinitionCreationFlag, trt.QuickPluginCreationRequest
    creator = trt.get_plugin_registry().get_creator("both", "1", "quick")
    for flag, request, compiled in (
        (flags.PREFER_AOT_PYTHON_PLUGINS, requests.PREFER_AOT, True), (flags.PREFER_JIT_PYTHON_PLUGINS, requests.PREFER_JIT, False),
    ):  # fmt: skip
        network = trt.Builder(Log()).create_network(1 << int(flag))
        layer = network.add_plugin(trtp.op.quick.both(network.add_input("x", trt.float32, (2,))))
        made = creator.create_plugin("both", "quick", trt.PluginFieldCollection(), trt.TensorRTPhase.BUILD, request)
        assert isinstance(layer.plugin, trt.IPluginV3QuickAOTBuild) == isinstance(made, trt.IPluginV3QuickAOTBuild) == compiled
    with pytest.raises(ValueError, match="preferred"):
        creator.create_plugin("both", "quick", trt.PluginFieldCollection(), trt.TensorRTPhase.BUILD, requests.UNKNOWN)


# ---- ONNX, and what is refused ----


def test_a_node_becomes_the_plugin_with_attributes_of_the_parser_types():
    node = oh.make_node("circ", ["x"], ["y"], name="n0", pads=[2, 0], mode="reflect", scale=2.0, on=1, raw=b"\0a", plugin_namespace="quick")
    x, y = (oh.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", ["N", 3]), ("y", None)))
    data = oh.make_model(oh.make_graph([node], "g", [x], [y]), opset_imports=[oh.make_opsetid("", 17)]).SerializeToString()

    def define(network):
        parser = trt.OnnxParser(network, Log())
        assert parser.parse(data), parser.get_error(0).desc()
        found = network.get_output(0)
        network.unmark_output(found)
        return found

    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    run = Runner(built(define, profile=DYNAMIC))
    np.testing.assert_array_equal(run(x=given)["y"], 2 * np.pad(given, ((0, 0), (2, 0)), "reflect"))


def test_calls_that_do_not_fit_are_refused():
    x = trt.Builder(Log()).create_network().add_input("x", trt.float32, (2, 3))
    for change, message in (
        ({"pads": np.array([1, 2])}, "int64"), ({"mode": 1}, "expected str"), ({"scale": 1}, "expected float"), ({"more": 1}, "attributes"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            trtp.op.quick.circ(x, **{**ATTRIBUTES, **change})
    with pytest.raises(ValueError, match="1 of ITensor"):
        trtp.op.quick.circ(x, x, **ATTRIBUTES)
    with pytest.raises(AttributeError, match="circ"):
        _ = trtp.op.quick.missing
    with pytest.raises(AttributeError, match="nowhere"):
        _ = trtp.op.nowhere


def test_functions_that_do_not_fit_are_refused():
    def described(x: trtp.TensorDesc, n: int) -> trtp.TensorDesc:
        return x

    for name in ("quick", "quick::", "a-b::c"):
        with pytest.raises(ValueError, match="namespace::name"):
            trtp.register(name)(described)
    with pytest.raises(ValueError, match="second time"):
        trtp.register("quick::circ")(described)

    def bare(x, n: int) -> trtp.TensorDesc: ...

    def listed(x: trtp.TensorDesc, n: list) -> trtp.TensorDesc: ...

    def late(n: int, x: trtp.TensorDesc) -> trtp.TensorDesc: ...

    def silent(x: trtp.TensorDesc): ...

    for function, message in ((bare, "without annotation"), (listed, "annotation"), (late, "tensors first"), (silent, "return")):
        with pytest.raises(ValueError, match=message):
            trtp.register("quick::wrong")(function)
    for decorator, function, message in (
        (trtp.impl, lambda x, outputs: None, "parameters"), (trtp.impl, lambda y, outputs, stream: None, "parameters"),
        (trtp.autotune, lambda x, outputs, stream: None, "parameters"), (trtp.aot_impl, lambda x, block, tactic: None, "parameters"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            decorator("quick::circ")(function)

    def other(x: trtp.Tensor, mode: int, outputs: tuple[trtp.Tensor], stream: int) -> None: ...

    with pytest.raises(ValueError, match="'mode'"):
        trtp.impl("quick::circ")(other)
    with pytest.raises(ValueError, match="not registered"):
        trtp.impl("quick::nothing")(other)


@trtp.register("quick::faulty")
def faulty_desc(x: trtp.TensorDesc, at: str) -> trtp.TensorDesc:
    if at == "register":
        raise ValueError("a fault of the client")
    return None if at == "nothing" else x.like()


@trtp.impl("quick::faulty")
def faulty(x: trtp.Tensor, at: str, outputs: tuple[trtp.Tensor], stream: int) -> None:
    raise ValueError("a fault of the client")


def test_faults_of_functions_are_logged():
    def define(at):
        def defined(network):
            return network.add_plugin(trtp.op.quick.faulty(network.add_input("x", trt.float32, (2, 3)), at=at)).get_output(0)

        return defined

    for at, message in (("register", "a fault of the client"), ("nothing", "expected 1 TensorDesc")):
        log = Log()
        assert built(define(at), log) is None and message in "\n".join(log.errors())
    log = Log()
    serialized = built(define("run"), log)
    assert serialized is None or Runner(serialized, log)(x=np.zeros((2, 3), np.float32)) is None
    assert "Exception caught in enqueue(): ValueError: a fault of the client" in "\n".join(log.errors())


def test_arrays_are_known_by_either_form_of_numpys_name_for_them():
    kind = typing.TypeVar("kind", bound=np.generic)
    # As NumPy from 2.5 on has it, where Python knows `type` statements.
    alias = SimpleNamespace(__value__=np.ndarray[tuple[int, ...], np.dtype[kind]])
    assert element_type(GenericAlias(alias, (np.int32,))) == np.int32
    assert element_type(npt.NDArray[np.float16]) == np.float16
    assert element_type(int) is None and element_type(list[int]) is None
