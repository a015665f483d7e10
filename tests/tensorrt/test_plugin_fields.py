"""Fields of plugins, shape expressions, and descriptions of tensors."""

import ml_dtypes
import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.plugins.attributes import decode, encode
from dovetail.tensorrt.plugin_fields import from_records, to_records
from tests.tensorrt.coverage import cases, exercises

KINDS = cases(
    "PluginFieldType",
    FLOAT16=np.float16, FLOAT32=np.float32, FLOAT64=np.float64, INT8=np.int8, INT16=np.int16, INT32=np.int32, INT64=np.int64,
    BF16=ml_dtypes.bfloat16, FP8=ml_dtypes.float8_e4m3fn, INT4=ml_dtypes.int4, FP4=ml_dtypes.float4_e2m1fn,
)  # fmt: skip


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@exercises("PluginField.data", "PluginField.name", "PluginField.size", "PluginField.type")
def test_data_are_arrays_of_the_field_type_and_survive_an_engine(kind, dtype):
    field = trt.PluginField("x", np.array([[1, 2], [-2, 0]], np.float64), kind)
    assert field.data.dtype == dtype and field.data.astype(np.float32).tolist() == [1, 2, -2, 0]
    assert (field.name, field.size, field.type) == ("x", 4, kind)
    (back,) = from_records(decode(encode({"f": to_records([field])}))["f"])
    assert back.type == kind and back.data.dtype == dtype and back.data.tobytes() == field.data.tobytes()


@exercises("PluginFieldType.CHAR", "PluginFieldType.UNKNOWN", "PluginFieldType.DIMS")
def test_text_bytes_and_dims():
    for given in ("wrap", b"wrap", np.frombuffer(b"wrap", np.int8), np.frombuffer(b"wrap", np.uint8)):
        field = trt.PluginField("mode", given, trt.PluginFieldType.CHAR)
        assert field.data.tobytes().decode() == "wrap" and field.size == 4
    raw = trt.PluginField("raw", np.array([1.5, 2], np.float16).tobytes())
    assert raw.type == trt.PluginFieldType.UNKNOWN and raw.size == 4
    assert np.frombuffer(raw.data.tobytes(), np.float16).tolist() == [1.5, 2]
    assert bytes(trt.PluginField("raw", b"\0\1").data) == b"\0\1"
    dims = trt.PluginField("d", trt.Dims([2, 3]), trt.PluginFieldType.DIMS)
    assert dims.data == [(2, 3)]
    kept = from_records(decode(encode({"f": to_records([field, raw, dims])}))["f"])
    assert [f.name for f in kept] == ["mode", "raw", "d"] and kept[0].data.tobytes() == b"wrap" and kept[2].data == [(2, 3)]
    assert kept[1].data.tobytes() == raw.data.tobytes()


def test_fields_take_what_can_be_an_array_and_refuse_the_rest():
    assert trt.PluginField("n", 3, trt.PluginFieldType.INT32).data.tolist() == [3]
    assert trt.PluginField("n", b"\1\0\2\0", trt.PluginFieldType.INT16).data.tolist() == [1, 2]
    empty = trt.PluginField("n")
    assert empty.data is None and empty.size == 0 and trt.PluginField().name == ""
    empty.name, empty.type, empty.size = "m", trt.PluginFieldType.INT8, 2
    empty.data = [4]
    assert (empty.name, empty.size, empty.data.tolist()) == ("m", 1, [4])
    for wrong in (b"\1\0\2", object(), ["a"]):
        with pytest.raises(TypeError, match="'n'"):
            trt.PluginField("n", wrong, trt.PluginFieldType.INT16)
    with pytest.raises(TypeError, match="type"):
        trt.PluginField("n", 1, "INT32")


@exercises(
    "PluginFieldCollection", "PluginFieldCollection_", "PluginFieldCollection.append", "PluginFieldCollection.clear",
    "PluginFieldCollection.extend", "PluginFieldCollection.insert", "PluginFieldCollection.pop",
)  # fmt: skip
def test_collections_are_lists_of_fields():
    a, b, c = (trt.PluginField(n, 1, trt.PluginFieldType.INT8) for n in "abc")
    fields = trt.PluginFieldCollection([a])
    fields.append(c)
    fields.insert(1, b)
    assert [f.name for f in fields] == ["a", "b", "c"] and len(fields) == 3 and fields[-1] is c
    assert fields.pop() is c and fields.pop(0) is a
    fields.extend([a, c])
    assert [f.name for f in fields] == ["b", "a", "c"]
    fields.clear()
    assert not fields and isinstance(fields, trt.PluginFieldCollection_)
    for change in (fields.append, lambda x: fields.insert(0, x), lambda x: fields.extend([x]), lambda x: trt.PluginFieldCollection([x])):
        with pytest.raises(TypeError, match="PluginField"):
            change("a")


OPERATIONS = cases(
    "DimensionOperation", SUM=9, PROD=14, MAX=7, MIN=2, SUB=5, EQUAL=0, LESS=0, FLOOR_DIV=3, CEIL_DIV=4,
)  # fmt: skip


@pytest.mark.parametrize(("op", "expected"), OPERATIONS)
@exercises("IExprBuilder.constant", "IExprBuilder.operation", "IDimensionExpr.is_constant", "IDimensionExpr.get_constant_value")
def test_expressions_of_numbers_are_numbers_and_of_symbols_are_not(op, expected):
    from dovetail.core.dims import evaluate, sym
    from dovetail.tensorrt.plugin_expr import exprs

    builder = trt.IExprBuilder()
    a, b = builder.constant(7), builder.constant(np.int32(2))
    found = builder.operation(getattr(trt.DimensionOperation, op.name), a, b)
    assert found.is_constant() and found.get_constant_value() == expected and not found.is_size_tensor()
    assert found.isConstant() and found.getConstantValue() == expected
    (n,) = exprs([sym("n")])
    later = builder.operation(op, n, b)
    assert not n.is_constant() and evaluate(later._dim, {"n": 7}) == expected


@exercises("DimensionOperation.EQUAL", "DimensionOperation.LESS", "IDimensionExpr.isConstant", "IDimensionExpr.getConstantValue")
def test_comparisons_are_1_where_they_hold():
    builder = trt.IExprBuilder()
    two, three = builder.constant(2), builder.constant(3)
    less, equal = trt.DimensionOperation.LESS, trt.DimensionOperation.EQUAL
    holds = [builder.operation(op, a, b) for op, a, b in ((less, two, three), (equal, two, builder.constant(2)))]
    fails = [builder.operation(op, a, b) for op, a, b in ((less, three, two), (less, two, two), (equal, two, three), (equal, three, two))]
    assert [e.getConstantValue() for e in holds] == [1, 1] and [e.getConstantValue() for e in fails] == [0, 0, 0, 0]
    assert all(e.isConstant() for e in holds)


@exercises(
    "DimsExprs", "DimsExprs.__getitem__", "DimsExprs.__len__", "DimsExprs.__setitem__", "IExprBuilder.declare_size_tensor",
    "IDimensionExpr.is_size_tensor",
)  # fmt: skip
def test_shapes_of_expressions():
    builder = trt.IExprBuilder()
    shape = trt.DimsExprs(2)
    assert len(shape) == 2 and [e.get_constant_value() for e in shape] == [0, 0]
    shape[1] = builder.constant(5)
    copy = trt.DimsExprs(shape)
    copy[0] = shape[-1]
    assert [e.get_constant_value() for e in shape] == [0, 5] and [e.get_constant_value() for e in copy] == [5, 5]
    assert len(trt.DimsExprs()) == 0 and len(trt.DimsExprs([builder.constant(1)])) == 1
    size = builder.declare_size_tensor(1, builder.constant(2), builder.constant(8))
    assert size.is_size_tensor() and not size.is_constant() and builder.sizes == {1: (2, 8)}
    with pytest.raises(TypeError, match="DimsExprs"):
        shape[0] = 3
    with pytest.raises(TypeError, match="constant"):
        builder.constant(1.5)
    with pytest.raises(TypeError, match="No constructor"):
        trt.IDimensionExpr()


@exercises(
    "PluginTensorDesc", "PluginTensorDesc.dims", "PluginTensorDesc.type", "PluginTensorDesc.format", "PluginTensorDesc.scale",
    "DynamicPluginTensorDesc", "DynamicPluginTensorDesc.desc", "DynamicPluginTensorDesc.min", "DynamicPluginTensorDesc.opt",
    "DynamicPluginTensorDesc.max",
)  # fmt: skip
def test_descriptions_of_tensors_hold_what_they_are_given():
    desc = trt.PluginTensorDesc()
    assert desc.format == trt.TensorFormat.LINEAR and desc.scale == 1
    desc.dims, desc.type, desc.format, desc.scale = (2, -1), trt.int8, trt.TensorFormat.HWC, 0.5
    assert (desc.dims, desc.type, desc.format, desc.scale) == ((2, -1), trt.int8, trt.TensorFormat.HWC, 0.5)
    bounds = trt.DynamicPluginTensorDesc()
    bounds.desc, bounds.min, bounds.opt, bounds.max = desc, (2, 1), [2, 3], trt.Dims([2, 4])
    assert bounds.desc is desc and (bounds.min, bounds.opt, bounds.max) == ((2, 1), (2, 3), (2, 4))
    for owner, name, wrong in ((desc, "dims", "no"), (desc, "type", 1), (desc, "format", 1), (bounds, "desc", None), (bounds, "max", 3)):
        with pytest.raises(TypeError, match=name):
            setattr(owner, name, wrong)
