"""What clients implement, on running builds and engines: error recorders, allocators, streams, calibrators of each kind."""

import ctypes
import io
import struct

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.core.env import override
from tests.tensorrt import engines
from tests.tensorrt.coverage import cases, exercises
from tests.tensorrt.programs import Messages, deserialized, expected, quick, run, sample, small

# ---- error recorders ----


class Recorder(trt.IErrorRecorder):
    """Keeps the first errors, as clients do."""

    def __init__(self, most=8):
        trt.IErrorRecorder.__init__(self)
        self.kept, self.most, self.lost = [], most, False

    def get_num_errors(self):
        return len(self.kept)

    def get_error_code(self, arg0):
        return self.kept[arg0][0]

    def get_error_desc(self, arg0):
        return self.kept[arg0][1]

    def has_overflowed(self):
        return self.lost

    def clear(self):
        self.kept, self.lost = [], False

    def report_error(self, arg0, arg1):
        if len(self.kept) == self.most:
            self.lost = True
        else:
            self.kept.append((arg0, arg1))
        return False


def refused_arguments(recorder):
    runtime = trt.Runtime(Messages())
    runtime.error_recorder = recorder
    assert runtime.deserialize_cuda_engine(b"no engine") is None


def unsupported_network(recorder):
    builder = trt.Builder(Messages())
    builder.error_recorder = recorder
    config = quick(builder)
    config.engine_capability = trt.EngineCapability.SAFETY
    assert not builder.is_network_supported(small(builder)[0], config)


def run_without_memory(recorder):
    runtime = trt.Runtime(Messages())
    runtime.error_recorder = recorder
    context = runtime.deserialize_cuda_engine(engines.bare()).create_execution_context()
    assert context.set_input_shape("x", (2, 5)) and not context.execute_async_v3(0)


def refit_of_a_fixed_engine(recorder):
    builder = trt.Builder(Messages())
    engine = builder.build_engine(small(builder)[0], quick(builder))
    engine.error_recorder = recorder
    with pytest.raises(TypeError, match="cannot be refitted"):
        trt.Refitter(engine, Messages())


def context_without_weights(recorder):
    builder = trt.Builder(Messages())
    config = quick(builder)
    config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    runtime = trt.Runtime(Messages())
    runtime.error_recorder = recorder
    engine = runtime.deserialize_cuda_engine(builder.build_serialized_network(small(builder)[0], config))
    assert engine.create_execution_context() is None


@exercises(
    "IErrorRecorder", "IErrorRecorder.report_error", "IErrorRecorder.get_num_errors", "IErrorRecorder.num_errors",
    "IErrorRecorder.get_error_code", "IErrorRecorder.get_error_desc", "IErrorRecorder.clear",
)  # fmt: skip
@pytest.mark.parametrize(
    ("code", "fails"),
    cases(
        "ErrorCodeTRT", INVALID_ARGUMENT=refused_arguments, UNSUPPORTED_STATE=unsupported_network, FAILED_EXECUTION=run_without_memory,
        INVALID_STATE=refit_of_a_fixed_engine, FAILED_INITIALIZATION=context_without_weights,
    ),
)  # fmt: skip
def test_failures_are_recorded_with_their_code(code, fails):
    recorder = Recorder()
    fails(recorder)
    assert recorder.get_num_errors() == recorder.num_errors() >= 1
    assert recorder.get_error_code(0) is getattr(trt.ErrorCodeTRT, code.name) and recorder.get_error_desc(0)
    recorder.clear()
    assert recorder.num_errors() == 0


@exercises("IErrorRecorder.MAX_DESC_LENGTH", "IErrorRecorder.has_overflowed")
def test_descriptions_are_cut_and_recorders_may_be_full():
    recorder = Recorder(most=2)
    runtime = trt.Runtime(Messages())
    runtime.error_recorder = recorder
    context = runtime.deserialize_cuda_engine(engines.bare()).create_execution_context()
    for count in range(3):
        assert recorder.has_overflowed() == (count > 2)
        assert not context.set_input_shape("no such input " * 20, (2, 5))
    assert recorder.has_overflowed() and recorder.num_errors() == 2
    assert len(recorder.get_error_desc(0).encode()) == trt.IErrorRecorder.MAX_DESC_LENGTH


# ---- allocators ----


class Heap:
    """Memory of the C library's."""

    def __init__(self):
        super().__init__()
        self.blocks, self.asked, self.streams = {}, [], []

    def get(self, size, alignment):
        self.asked.append(size)
        block = ctypes.create_string_buffer(size + alignment)
        address = -(-ctypes.addressof(block) // alignment) * alignment
        self.blocks[address] = block
        return address


class OfEight(Heap, trt.IGpuAllocator):
    """As it was implemented up to 9: `free` instead of `deallocate`."""

    def allocate(self, size, alignment, flags):
        return self.get(size, alignment)

    def free(self, memory):
        del self.blocks[memory]


class Ordered(Heap, trt.IGpuAsyncAllocator):
    """As since 10: in the order of a stream."""

    def allocate_async(self, size, alignment, flags, stream):
        self.streams.append(stream)
        return self.get(size, alignment)

    def deallocate_async(self, memory, stream):
        self.streams.append(stream)
        del self.blocks[memory]
        return True


@exercises("Runtime.gpu_allocator")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(OfEight, marks=exercises("IGpuAllocator", "IGpuAllocator.free", "IGpuAllocator.deallocate")),
        pytest.param(
            Ordered,
            marks=exercises(
                "IGpuAsyncAllocator", *(f"IGpuAsyncAllocator.{n}" for n in ("allocate", "deallocate", "allocate_async", "deallocate_async"))
            ),
        ),
    ],
)
def test_contexts_run_in_memory_of_allocators_of_both_kinds(kind):
    heap = kind()
    runtime = trt.Runtime(Messages())
    runtime.gpu_allocator = heap
    engine = runtime.deserialize_cuda_engine(engines.image())
    context = engine.create_execution_context()
    assert heap.blocks and heap.asked == [engine.device_memory_size]
    x = sample(2, 3, 6, 5)
    want = engine._engine.run({"x": x})["y"]
    context.set_input_shape("x", x.shape)
    kept = {name: np.zeros(tuple(context.get_tensor_shape(name)), np.float32) for name in ("y", "raw")}
    for name, array in {"x": x, **kept}.items():
        context.set_tensor_address(name, array.ctypes.data)
    assert context.execute_async_v3(0)
    np.testing.assert_array_equal(kept["y"], want)
    (address,) = heap.blocks
    assert any(ctypes.string_at(address, heap.asked[0]))      # the values between layers lie there
    del context
    assert not heap.blocks and set(heap.streams) == ({0} if kind is Ordered else set())


@exercises("IGpuAllocator.allocate_async", "IGpuAllocator.deallocate_async", "IGpuAllocator.reallocate")
def test_old_allocators_serve_streams_and_do_not_move_blocks():
    heap = OfEight()
    address = heap.allocate_async(100, 256, 0, 7)
    assert address in heap.blocks and address % 256 == 0 and heap.asked == [100]
    assert heap.reallocate(address, 256, 200) == 0 and address in heap.blocks
    assert heap.deallocate_async(address, 7) and not heap.blocks


# ---- streams ----


class Writer(trt.IStreamWriter):
    """Collects what it gets in pieces of so many bytes at most."""

    def __init__(self, most):
        trt.IStreamWriter.__init__(self)
        self.data, self.most = b"", most

    def write(self, data):
        self.data += bytes(data)[: self.most]
        return min(len(data), self.most)


class Reader(trt.IStreamReaderV2):
    """Reads from a file, and counts."""

    def __init__(self, data):
        trt.IStreamReaderV2.__init__(self)
        self.file = io.BytesIO(data)

    def read(self, num_bytes, stream):
        return self.file.read(num_bytes)

    def seek(self, offset, where):
        self.file.seek(offset, {trt.SeekPosition.SET: 0, trt.SeekPosition.CUR: 1, trt.SeekPosition.END: 2}[where])
        return True


@exercises("IStreamWriter", "IStreamWriter.write", "IStreamReaderV2", "IStreamReaderV2.seek")
@pytest.mark.parametrize(
    ("where", "offset"), cases("SeekPosition", SET=lambda size: 8, CUR=lambda size: 5, END=lambda size: -size)
)
def test_an_engine_behind_a_header_is_written_and_read(where, offset):
    logger = Messages()
    builder = trt.Builder(logger)
    network, weights = small(builder)
    writer = Writer(777)
    assert builder.build_serialized_network_to_stream(network, quick(builder), writer)
    reader = Reader(b"MYHEADER" + writer.data)
    assert reader.read(3, 0) == b"MYH"
    assert reader.seek(offset(len(writer.data)), getattr(trt.SeekPosition, where.name))
    engine = trt.Runtime(logger).deserialize_cuda_engine(reader)
    x = sample(2, 8)
    np.testing.assert_allclose(run(engine, x=x)["y"], expected(x, weights), rtol=1e-5, atol=1e-5)
    assert deserialized(writer.data, logger).num_io_tensors == 2


# ---- calibrators ----


def batches_of(base):
    """A calibrator of a kind that keeps its batches and its cache."""

    class Batches(base):
        def __init__(self, batches, cache=None):
            base.__init__(self)
            self.batches, self.cache, self.sizes = list(batches), cache, 0

        def get_batch_size(self):
            self.sizes += 1
            return 4

        def get_batch(self, names):
            assert names == ["x"]
            self.current = self.batches.pop(0) if self.batches else None
            return None if self.current is None else [self.current.ctypes.data]

        def read_calibration_cache(self):
            return self.cache

        def write_calibration_cache(self, cache):
            self.cache = bytes(cache)

    return Batches


KINDS = {
    "IInt8EntropyCalibrator2": "EntropyCalibration2", "IInt8EntropyCalibrator": "EntropyCalibration",
    "IInt8MinMaxCalibrator": "MinMaxCalibration", "IInt8LegacyCalibrator": "LegacyCalibration",
}  # fmt: skip
CLASSES = {kind: batches_of(getattr(trt, kind)) for kind in KINDS}
METHODS = ("", ".get_algorithm", ".get_batch", ".get_batch_size", ".read_calibration_cache", ".write_calibration_cache")


@exercises("IBuilderConfig.int8_calibrator")
@pytest.mark.parametrize("kind", [pytest.param(k, marks=exercises(*(f"{k}{m}" for m in METHODS)), id=k) for k in KINDS])
def test_calibrators_of_each_kind_see_implicit_batches_once(kind):
    made = CLASSES[kind]
    x = sample(4, 3, 2, 2)
    with override(tensorrt_version="8.6.1.6"):
        builder = trt.Builder(Messages())
        builder.max_batch_size = 4
        network = builder.create_network()
        assert network.has_implicit_batch_dimension
        y = network.add_activation(network.add_input("x", trt.float32, (3, 2, 2)), trt.ActivationType.RELU).get_output(0)
        y.name = "y"
        network.mark_output(y)
        config = quick(builder)
        config.set_flag(trt.BuilderFlag.INT8)
        config.int8_calibrator = calibrator = made([x, x * 3])
        assert config.int8_calibrator is calibrator and builder.build_engine(network, config) is not None
        assert not calibrator.batches and calibrator.sizes >= 1
        header, *lines = calibrator.cache.decode().splitlines()
        assert header == f"TRT-80601-{KINDS[kind]}"
        assert calibrator.get_algorithm().name.replace("_", "") == KINDS[kind].upper()
        scales = {name: struct.unpack(">f", bytes.fromhex(digits))[0] for name, digits in (line.split(": ") for line in lines)}
        most = float(np.abs(x).max()) * 3
        assert set(scales) == {"x", "y"} and 0 < scales["x"] * 127 <= most * 1.001
        if kind == "IInt8MinMaxCalibrator":
            assert scales["x"] * 127 == pytest.approx(most, rel=1e-6)
        config.int8_calibrator = later = made([], calibrator.cache)
        assert builder.build_engine(network, config) is not None and later.sizes == 0 and later.cache == calibrator.cache
