"""The interfaces that clients implement: what is abstract, what is called by default, what they say of themselves."""

import inspect

import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt import calibrator, hooks
from dovetail.tensorrt.hooks import call
from dovetail.tensorrt.logger import Reporter
from tests.tensorrt.coverage import exercises
from tests.tensorrt.test_logger import Kept

# Interface -> its methods without a default, with arguments.
ABSTRACT = {
    "IProfiler": {"report_layer_time": ("layer", 1.0)},
    "IProgressMonitor": {"phase_start": ("p", None, 3), "step_complete": ("p", 0), "phase_finish": ("p",)},
    "IErrorRecorder": {
        "get_num_errors": (),
        "num_errors": (),
        "get_error_code": (0,),
        "get_error_desc": (0,),
        "has_overflowed": (),
        "clear": (),
        "report_error": (trt.ErrorCodeTRT.SUCCESS, ""),
    },
    "IDebugListener": {"process_debug_tensor": (0, trt.TensorLocation.HOST, trt.float32, trt.Dims(), "x", 0)},
    "IGpuAllocator": {
        "allocate": (1, 1, 0),
        "deallocate": (1,),
        "free": (1,),
        "allocate_async": (1, 1, 0, 0),
        "deallocate_async": (1, 0),
    },
    "IGpuAsyncAllocator": {
        "allocate": (1, 1, 0),
        "deallocate": (1,),
        "allocate_async": (1, 1, 0, 0),
        "deallocate_async": (1, 0),
    },
    "IOutputAllocator": {
        "reallocate_output": ("y", 0, 1, 1),
        "reallocate_output_async": ("y", 0, 1, 1, 0),
        "notify_shape": ("y", trt.Dims()),
    },
    "IStreamReader": {"read": (1,)},
    "IStreamReaderV2": {"read": (1, 0), "seek": (0, trt.SeekPosition.SET)},
    "IStreamWriter": {"write": (b"",)},
    "IInt8Calibrator": {
        "get_batch_size": (),
        "get_batch": (["x"],),
        "read_calibration_cache": (),
        "write_calibration_cache": (memoryview(b""),),
        "get_algorithm": (),
    },
    "IAlgorithmSelector": {"select_algorithms": (None, []), "report_algorithms": ([], [])},
}


@pytest.mark.parametrize("name", ABSTRACT)
def test_what_a_subclass_does_not_define_is_a_pure_virtual_function(name):
    hook = getattr(trt, name)()
    for method, arguments in ABSTRACT[name].items():
        with pytest.raises(RuntimeError, match=r'Tried to call pure virtual function "I\w+::\w+"'):
            getattr(hook, method)(*arguments)
    methods = {n for n, f in inspect.getmembers(type(hook), inspect.isfunction) if not n.startswith("_")}
    assert methods - set(ABSTRACT[name]) <= {"reallocate", "free"}


@pytest.mark.parametrize("name", [n for n in ABSTRACT if n != "IProfiler"])
@exercises("IVersionedInterface", "IVersionedInterface.api_language", "IVersionedInterface.interface_info")
def test_interfaces_say_their_kind_version_and_language(name):
    class Client(getattr(trt, name)):
        pass

    client = Client()
    kind = "IGpuAllocator" if name == "IGpuAsyncAllocator" else name
    assert isinstance(client, trt.IVersionedInterface) and client.api_language is trt.APILanguage.PYTHON
    assert client.interface_info == trt.InterfaceInfo(kind, 1, 0)


@exercises("InterfaceInfo", "InterfaceInfo.kind", "InterfaceInfo.major", "InterfaceInfo.minor", "APILanguage.PYTHON")
def test_interface_info_reads():
    info = trt.IStreamWriter().interface_info
    assert (info.kind, info.major, info.minor) == (
        "IStreamWriter",
        1,
        0,
    ) and trt.IStreamWriter().api_language == trt.APILanguage.PYTHON


@exercises("Profiler", "Profiler.report_layer_time")
def test_the_profiler_prints(capsys):
    assert isinstance(trt.Profiler(), trt.IProfiler)
    trt.Profiler().report_layer_time("conv1 + relu", 0.25)
    assert capsys.readouterr().out == "conv1 + relu: 0.25ms\n"


def test_an_allocator_of_any_age_serves_every_call():
    class Eight(trt.IGpuAllocator):
        freed = 0

        def allocate(self, size, alignment, flags):
            return size + alignment

        def free(self, memory):
            self.freed = memory

    class Ten(trt.IGpuAllocator):
        freed = 0

        def allocate(self, size, alignment, flags):
            return size + alignment

        def deallocate(self, memory):
            self.freed = memory
            return True

    class Async(trt.IGpuAsyncAllocator):
        freed = 0

        def allocate_async(self, size, alignment, flags, stream):
            assert stream in (0, 5)
            return size + alignment

        def deallocate_async(self, memory, stream):
            assert stream in (0, 5)
            self.freed = memory
            return True

    for allocator in (Eight(), Ten(), Async()):
        assert allocator.allocate(16, 4, 0) == allocator.allocate_async(16, 4, 0, 5) == 20
        assert allocator.reallocate(1, 1, 1) == 0
        for i, (give, arguments) in enumerate((("deallocate", ()), ("deallocate_async", (5,)))):
            assert getattr(allocator, give)(i + 1, *arguments) is True and allocator.freed == i + 1
        allocator.free(9)
        assert allocator.freed == 9


def test_an_output_allocator_without_streams_serves_those_with():
    class Eight(trt.IOutputAllocator):
        def reallocate_output(self, tensor_name, memory, size, alignment):
            return memory + size

    assert Eight().reallocate_output_async("y", 100, 7, 1, 3) == 107


def test_an_error_recorder_counts_by_either_name():
    class Recorder(trt.IErrorRecorder):
        def get_num_errors(self):
            return 3

    assert Recorder().num_errors() == 3 and trt.IErrorRecorder.MAX_DESC_LENGTH == 127


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("IInt8LegacyCalibrator", "LEGACY_CALIBRATION"),
        ("IInt8EntropyCalibrator", "ENTROPY_CALIBRATION"),
        ("IInt8EntropyCalibrator2", "ENTROPY_CALIBRATION_2"),
        ("IInt8MinMaxCalibrator", "MINMAX_CALIBRATION"),
    ],
)
def test_a_calibrator_knows_its_algorithm(name, algorithm):
    kind = getattr(trt, name)
    assert issubclass(kind, trt.IInt8Calibrator)
    assert kind().get_algorithm() is getattr(trt.CalibrationAlgoType, algorithm) and kind().interface_info.kind == name
    with pytest.raises(RuntimeError, match="get_batch_size"):
        kind().get_batch_size()


def test_a_legacy_calibrator_has_defaults():
    legacy = trt.IInt8LegacyCalibrator()
    assert legacy.get_quantile() == legacy.get_regression_cutoff() == 0.5
    assert legacy.read_histogram_cache(4) is None and legacy.write_histogram_cache(b"", 0) is None


def test_algorithms_tell_what_they_are():
    info = calibrator.IAlgorithmIOInfo(trt.float16, trt.Dims([12, 4, 1]), vectorized_dim=1, components_per_element=2)
    variant = calibrator.IAlgorithmVariant(implementation=5, tactic=-7)
    algorithm = calibrator.IAlgorithm(variant, [info, info], 0.5, 1024)
    assert algorithm.algorithm_variant == calibrator.IAlgorithmVariant(5, -7) and hash(variant) == hash(
        algorithm.algorithm_variant
    )
    assert (algorithm.timing_msec, algorithm.workspace_size) == (0.5, 1024)
    assert algorithm.get_algorithm_io_info(1) is info and algorithm.get_algorithm_io_info(
        2
    ) is None is algorithm.get_algorithm_io_info(-1)
    assert (info.tensor_format, info.strides, info.dtype) == (trt.TensorFormat.LINEAR, (12, 4, 1), trt.float16)
    with pytest.raises(AttributeError):
        variant.tactic = 3
    context = calibrator.IAlgorithmContext(
        "conv", [[trt.Dims([1]), trt.Dims([2]), trt.Dims([4])], [trt.Dims([3])] * 3], 1
    )
    assert (context.name, context.num_inputs, context.num_outputs) == ("conv", 1, 1)
    assert context.get_shape(0) == [(1,), (2,), (4,)] and context.get_shape(1)[0] == (3,) and context.get_shape(2) == []


def test_what_a_hook_raises_is_logged_and_is_a_failure():
    logger = Kept()

    class Monitor(trt.IProgressMonitor):
        def step_complete(self, phase_name, step):
            if step == 1:
                raise ValueError("no such step")
            return step < 5

    monitor = Monitor()
    ask = [
        call(Reporter(logger), "step_complete", monitor.step_complete, "p", step, default=False) for step in (0, 1, 5)
    ]
    assert ask == [True, False, False]
    assert logger.lines == [
        (trt.Logger.ERROR, "Error Code 7: Exception caught in step_complete(): ValueError: no such step")
    ]
    with pytest.raises(KeyboardInterrupt):
        call(Reporter(logger), "read", _interrupted, default=None)


def _interrupted():
    raise KeyboardInterrupt


METHODS = ("append", "clear", "count", "extend", "insert", "pop", "remove")


@exercises("FallbackString", "NodeIndices", "SubGraphCollection")
@exercises(*(f"{c}.{m}" for c in ("NodeIndices", "SubGraphCollection") for m in METHODS))
def test_containers_are_lists_and_strings():
    for kind, (a, b, c) in (
        (trt.NodeIndices, (3, 1, 2)),
        (trt.SubGraphCollection, (([0], True), ([1, 2], False), ([], True))),
    ):
        items = kind([a, b])
        items.append(b)
        items.extend([c, c])
        items.insert(0, c)
        assert items == [c, a, b, b, c, c] and items.count(b) == 2 and items.pop() == c
        items.remove(a)
        assert list(items) == [c, b, b, c]
        items.clear()
        assert not items
    assert (
        trt.FallbackString(b"caf\xe9").encode("utf-8", "surrogateescape") == b"caf\xe9"
        and trt.FallbackString("é") == "é"
    )


def test_every_interface_here_is_exported():
    for module in (hooks, calibrator):
        interfaces = {
            n for n, c in vars(module).items() if inspect.isclass(c) and n[0] == "I" and c.__module__ == module.__name__
        }
        assert interfaces <= set(dir(trt))
