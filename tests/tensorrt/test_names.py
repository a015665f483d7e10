"""How much of the union of TensorRT 8.2 to 11.1 exists, and how much of it tests observe."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dovetail
import dovetail.tensorrt as trt
from dovetail.core.env import override
from dovetail.core.errors import UsageError
from dovetail.tensorrt import exports
from dovetail.tensorrt.names import ABSENT, LEFT_OUT
from tests.tensorrt.coverage import (
    COUNTED,
    UNION,
    _claims,
    _runs,
    _tests,
    cases,
    exercised,
    exercises,
    exposed,
    report,
    watch,
)


def test_shares(record_property):
    record_property("summary", report())
    here, seen = set(exposed()), exercised()
    assert seen <= here, "a test claims what does not exist"
    assert len(here) >= 0.98 * len(COUNTED) and len(seen) >= 0.9 * len(COUNTED), report("")


def test_left_out_names_are_of_the_union_and_absent_ones_are_absent():
    assert set(LEFT_OUT) <= set(UNION)
    assert len(LEFT_OUT) < 0.03 * len(UNION)
    for name, why in ABSENT.items():
        assert not hasattr(trt, name)
        with pytest.raises(AttributeError, match=why[:20]):
            getattr(trt, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'NoSuchName'$"):
        trt.NoSuchName  # noqa: B018


def test_every_exported_name_is_defined_where_the_table_says_and_is_tensorrts():
    for name in exports.HOMES:
        assert getattr(trt, name) is not None
    assert set(exports.HOMES) - set(UNION) <= {"install", "uninstall", "IPluginV2IOExt"}, "names of our own"
    assert dir(trt) == sorted({*exports.HOMES, "__version__"})
    everything: dict[str, object] = {}
    exec("from dovetail.tensorrt import *", everything)
    assert everything["bool"] is trt.DataType.BOOL


def test_import_is_cheap():
    program = (
        "import sys, numpy; before = set(sys.modules); import dovetail.tensorrt as trt; new = set(sys.modules) - before;"
        "assert not {n for n in new if n.split('.')[0] not in ('dovetail', '__future__')}, new; assert len(new) < 12, new;"
        "[getattr(trt, n) for n in ('DataType', 'Dims', 'Weights', 'Logger', 'IHostMemory', '__version__')];"
        "assert 'onnx' not in sys.modules and 'dovetail.api' not in sys.modules"
    )
    source = str(Path(dovetail.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r}); {program}"], check=True)


@exercises("__version__")
def test_version_is_a_late_10_and_can_be_overridden():
    assert trt.__version__ == "10.16.1.11"
    assert tuple(int(part) for part in trt.__version__.split(".")) > (10, 16)
    with override(tensorrt_version="8.6.1"):
        assert trt.__version__ == "8.6.1"
    assert trt.__version__ == "10.16.1.11"


@pytest.mark.parametrize(("text", "version"), [("8.6.1", "8.6.1"), ("", "10.16.1.11"), ("11.1.0.2", "11.1.0.2")])
def test_version_comes_from_the_environment(monkeypatch, text, version):
    from dovetail.core import env

    monkeypatch.setenv("DOVETAIL_TENSORRT_VERSION", text)
    assert env._read().tensorrt_version == version
    monkeypatch.setenv("DOVETAIL_TENSORRT_VERSION", "newest")
    with pytest.raises(UsageError, match="DOVETAIL_TENSORRT_VERSION: got 'newest'"):
        env._read()


def test_claims_are_checked():
    """The watch itself: what is used, what is not, what is overridden, what does not exist; and it leaves no trace."""
    finish = watch(["Dims.__len__", "Dims.__eq__", "DimsHW.h", "Permutation.__len__", "DataType.HALF"])
    dims = trt.DimsHW(3, 4)
    dims.h = 5
    assert len(dims) == 2
    assert finish() == ["DataType.HALF", "Permutation.__len__", "Dims.__eq__"]

    class Profiler(trt.IProfiler):
        def report_layer_time(self, layer_name, ms):
            pass

    assert watch(["IProfiler.report_layer_time"])() == []
    assert watch(["CaffeParser", "CaffeParser.parse"])() == ["CaffeParser", "CaffeParser.parse"]
    assert trt.DataType.HALF is trt.float16
    assert isinstance(vars(trt.DimsHW)["h"], property)
    with pytest.raises(ValueError, match="NoSuch"):
        exercises("NoSuch.name")


def test_a_watched_attribute_can_still_be_set_on_an_instance():
    class Client(trt.IOutputAllocator):
        def __init__(self):
            self.tensorrt_version = 8

    finish = watch(["IOutputAllocator.tensorrt_version"])
    client = Client()
    assert client.tensorrt_version == 8 and trt.IOutputAllocator.tensorrt_version == 1
    del client.tensorrt_version
    assert client.tensorrt_version == 1 and finish() == []


def test_claims_are_read_from_marks():
    """Of functions, parameters, classes and modules; not of tests that do not run here."""
    module = ModuleType("module")
    first, rest = cases("BoundingBoxFormat", CORNER_PAIRS=1)[0], cases("TripLimit", COUNT=1, WHILE=2)
    assert first.values == (trt.BoundingBoxFormat.CORNER_PAIRS, 1) and first.id == "CORNER_PAIRS"

    @exercises("Dims.__len__")
    @pytest.mark.parametrize(("kind", "value"), [first, (trt.TripLimit.COUNT, 3)])
    def test_a():
        pass

    @pytest.mark.gpu
    @exercises("Dims.__str__")
    def test_b():
        pass

    class TestC:
        pytestmark = exercises("DimsHW.h")

        @exercises("DimsHW.w")
        @pytest.mark.parametrize("x", [pytest.param(1, marks=[pytest.mark.xfail, *rest[0].marks]), pytest.param(2, marks=rest[1].marks)])
        def test_d(self):
            pass

        @pytest.mark.skipif(sys.version_info > (3, 0), reason="never")
        @exercises("Permutation")
        def test_e(self):
            pass

    vars(module).update(test_a=test_a, test_b=test_b, TestC=TestC, pytestmark=exercises("Dims"))
    found = {name for marks in _tests(module) if _runs(marks) for mark in marks for name in _claims(mark)}
    assert found == {"Dims", "Dims.__len__", "BoundingBoxFormat.CORNER_PAIRS", "DimsHW.h", "DimsHW.w", "TripLimit.WHILE"}


def test_the_union_has_known_ends():
    assert UNION["BuilderFlag.FP16"][1].startswith("11") and UNION["OnnxParser.get_refit_map"] == ["7.2", "7.2"]
    assert len(COUNTED) > 1700
