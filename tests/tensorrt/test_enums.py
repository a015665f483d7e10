"""Enums behave as pybind11's do and have the numbers of TensorRT 10."""

import copy
import pickle

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt import enums
from dovetail.tensorrt.enum_type import Enum, Flag, Member, expect, members
from tests.tensorrt.coverage import UNION, exercises

KINDS = sorted(
    {n for n in dir(trt) if isinstance(getattr(trt, n), type) and issubclass(getattr(trt, n), Enum)}
    - {"ResizeMode", "SliceMode"}
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=exercises(*(x for x in (n, f"{n}.name", f"{n}.value") if x in UNION))) for n in KINDS],
)
def test_members_read_as_pybind11_has_them(name):
    kind = getattr(trt, name)
    assert kind.__name__ == name and kind.__doc__
    assert list(getattr(kind, "__entries")) == list(kind.__members__)
    listed = {n.split(".")[1] for n in UNION if n.startswith(name + ".")} - {"name", "value", "itemsize"}
    assert set(kind.__members__) == listed
    for key, member in kind.__members__.items():
        assert getattr(kind, key) is member and kind(member.value) is member and kind(member) is member
        assert type(member) is kind and int(member) == member.value == hash(member)
        assert kind.__members__[member.name] is member
        assert str(member) == f"{name}.{member.name}" and repr(member) == f"<{name}.{member.name}: {member.value}>"
        assert pickle.loads(pickle.dumps(member)) is member and copy.deepcopy(member) is member
        assert 1 << int(member) == 1 << member == 2**member.value
        assert member != member.value and member == kind(int(member))
    numbers = sorted({m.value for m in kind.__members__.values()})
    assert sorted(kind.__members__.values()) == sorted(kind.__members__.values(), key=int)
    if name not in ("PluginCreatorVersion", "FieldType"):
        assert numbers == list(range(len(numbers)))


def test_there_are_all_of_them():
    # 74 kinds, of which ResizeMode and SliceMode are second names; Severity is the loggers' own.
    assert len(KINDS) + 2 + 1 == 74
    assert trt.ResizeMode is trt.InterpolationMode and trt.SliceMode is trt.SampleMode
    assert not hasattr(trt, "Severity")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64 INT4 FP4 E8M0"),
        ("TensorFormat", "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32 DHWC8 CDHW32 HWC DLA_LINEAR DLA_HWC4 HWC16 DHWC"),
        ("WeightsRole", "KERNEL BIAS SHIFT SCALE CONSTANT ANY"),
        ("TensorLocation", "DEVICE HOST"),
        ("TensorIOMode", "NONE INPUT OUTPUT"),
        ("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED"),
        (
            "NetworkDefinitionCreationFlag",
            "EXPLICIT_BATCH STRONGLY_TYPED PREFER_JIT_PYTHON_PLUGINS PREFER_AOT_PYTHON_PLUGINS",
        ),
        ("CalibrationAlgoType", "LEGACY_CALIBRATION ENTROPY_CALIBRATION ENTROPY_CALIBRATION_2 MINMAX_CALIBRATION"),
        ("PreviewFeature", "PROFILE_SHARING_0806 ALIASED_PLUGIN_IO_10_03 RUNTIME_ACTIVATION_RESIZE_10_10"),
        ("PluginFieldType", "FLOAT16 FLOAT32 FLOAT64 INT8 INT16 INT32 CHAR DIMS UNKNOWN BF16 INT64 FP8 INT4 FP4"),
        (
            "BuilderFlag",
            "FP16 INT8 DEBUG GPU_FALLBACK REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS SAFETY_SCOPE OBEY_PRECISION_CONSTRAINTS "
            "PREFER_PRECISION_CONSTRAINTS DIRECT_IO REJECT_EMPTY_ALGORITHMS VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME FP8 "
            "ERROR_ON_TIMING_CACHE_MISS BF16 DISABLE_COMPILATION_CACHE STRIP_PLAN REFIT_IDENTICAL WEIGHT_STREAMING INT4 "
            "REFIT_INDIVIDUAL STRICT_NANS MONITOR_MEMORY FP4 EDITABLE_TIMING_CACHE DISTRIBUTIVE_INDEPENDENCE",
        ),
        (
            "LayerType",
            "CONVOLUTION CAST ACTIVATION POOLING LRN SCALE SOFTMAX DECONVOLUTION CONCATENATION ELEMENTWISE PLUGIN UNARY PADDING "
            "SHUFFLE REDUCE TOPK GATHER MATRIX_MULTIPLY RAGGED_SOFTMAX CONSTANT IDENTITY PLUGIN_V2 SLICE SHAPE PARAMETRIC_RELU RESIZE "
            "TRIP_LIMIT RECURRENCE ITERATOR LOOP_OUTPUT SELECT FILL QUANTIZE DEQUANTIZE CONDITION CONDITIONAL_INPUT "
            "CONDITIONAL_OUTPUT SCATTER EINSUM ASSERTION ONE_HOT NON_ZERO GRID_SAMPLE NMS REVERSE_SEQUENCE NORMALIZATION PLUGIN_V3 "
            "SQUEEZE UNSQUEEZE CUMULATIVE DYNAMIC_QUANTIZE ATTENTION_INPUT ATTENTION_OUTPUT ROTARY_EMBEDDING KV_CACHE_UPDATE MOE "
            "DIST_COLLECTIVE",
        ),
        ("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE"),
    ],
)
def test_numbers_that_clients_store_or_shift_by(kind, names):
    numbered = getattr(enums, kind)
    assert [numbered(i).name for i in range(len(names.split()))] == names.split()


@exercises(
    "EngineCapability.DEFAULT",
    "ProfilingVerbosity.DEFAULT",
    "ProfilingVerbosity.VERBOSE",
    "BuilderFlag.WEIGHTLESS",
    "SampleMode.DEFAULT",
)
def test_old_names_are_the_new_members_or_have_numbers_of_their_own():
    assert trt.EngineCapability.DEFAULT is trt.EngineCapability.STANDARD
    assert trt.ProfilingVerbosity.DEFAULT is trt.ProfilingVerbosity.LAYER_NAMES_ONLY
    assert trt.ProfilingVerbosity.VERBOSE is trt.ProfilingVerbosity.DETAILED
    assert trt.BuilderFlag.WEIGHTLESS is trt.BuilderFlag.STRIP_PLAN
    assert trt.SampleMode.DEFAULT is trt.SampleMode.STRICT_BOUNDS
    assert str(trt.SampleMode.DEFAULT) == "SampleMode.STRICT_BOUNDS"
    # What was 1 for explicit precision means strongly typed now.
    assert trt.NetworkDefinitionCreationFlag.EXPLICIT_PRECISION.value > 3
    assert trt.BuilderFlag.STRICT_TYPES.value > 28


def test_flags_combine():
    fp16, int8 = trt.BuilderFlag.FP16, trt.BuilderFlag.INT8
    assert isinstance(fp16, Flag) and type(fp16 | int8) is int
    assert trt.BuilderFlag.REFIT | 1 == 5 == 1 | trt.BuilderFlag.REFIT
    assert trt.BuilderFlag.REFIT & 4 == 4 and trt.BuilderFlag.REFIT ^ 1 == 5 and ~trt.BuilderFlag.REFIT == -5
    flags = 1 << int(fp16) | 1 << int(int8)
    assert flags == 3 and [f for f in trt.BuilderFlag.__members__.values() if flags >> int(f) & 1] == [fp16, int8]
    with pytest.raises(TypeError):
        fp16 | trt.TacticSource.CUDNN
    with pytest.raises(TypeError):
        trt.DataType.FLOAT | 1


def test_members_of_different_enums_differ():
    assert trt.DataType.FLOAT != trt.TensorFormat.LINEAR and trt.DataType.FLOAT != 0 and trt.DataType.FLOAT != "FLOAT"
    assert len({trt.DataType.FLOAT, trt.TensorFormat.LINEAR, trt.float32}) == 2
    assert {trt.float32: "f"}[trt.DataType(0)] == "f"
    with pytest.raises(TypeError):
        trt.DataType.FLOAT < trt.TensorFormat.CHW2  # noqa: B015
    assert np.arange(5)[trt.DataType.INT8] == 2


@pytest.mark.parametrize(
    ("value", "error"), [("FLOAT", TypeError), (0.0, TypeError), (None, TypeError), (True, TypeError), (99, ValueError)]
)
def test_only_numbers_of_the_enum_make_members(value, error):
    with pytest.raises(error, match="DataType: got"):
        trt.DataType(value)


def test_members_do_not_change():
    with pytest.raises(AttributeError):
        trt.DataType.FLOAT.value = 3
    with pytest.raises(AttributeError):
        trt.DataType.FLOAT.note = 3


def test_expect_names_the_argument():
    assert expect(trt.DataType, trt.int8, "where") is trt.int8
    with pytest.raises(TypeError, match=r"IBuilderConfig.set_flag: flag: got 3, expected BuilderFlag"):
        expect(trt.BuilderFlag, 3, "IBuilderConfig.set_flag: flag")
    with pytest.raises(TypeError, match="expected int or str"):
        expect((int, str), 1.0, "where")


def test_a_new_enum_takes_numbers_in_order():
    class Colour(Enum):
        RED, GREEN = members(2)
        BLUE = Member(7)
        AZURE = Member(7)

    assert [m.value for m in Colour.__members__.values()] == [0, 1, 7, 7] and Colour.AZURE.name == "BLUE"
    assert repr(Colour(7)) == "<Colour.BLUE: 7>"
