"""Element types, weights and host memory."""

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.core import dtypes
from dovetail.tensorrt.dtypes import nbytes, to_data_type, to_dtype
from dovetail.tensorrt.weights import address, as_weights, prototype, values
from tests.tensorrt.coverage import exercises

NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}
ALIASES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
    "fp8": "FP8",
    "int4": "INT4",
    "fp4": "FP4",
    "e8m0": "E8M0",
}


@pytest.mark.parametrize(("alias", "name"), [pytest.param(a, n, marks=exercises(a)) for a, n in ALIASES.items()])
def test_aliases_are_the_members(alias, name):
    data_type = getattr(trt, alias)
    assert data_type is trt.DataType.__members__[name]
    dtype = to_dtype(data_type)
    assert to_data_type(dtype) is data_type and to_data_type(dtype.numpy) is data_type
    assert data_type.itemsize == dtype.bits / 8
    assert nbytes(data_type, 3) == -(-3 * dtype.bits // 8)


@exercises("nptype", "DataType.itemsize")
def test_numpy_types():
    assert {name: trt.nptype(d) for name, d in trt.DataType.__members__.items() if name in NUMPY} == NUMPY
    for name in set(trt.DataType.__members__) - set(NUMPY):
        with pytest.raises(TypeError, match="Could not resolve"):
            trt.nptype(trt.DataType.__members__[name])
    for wrong in (np.float32, "float32", 0, trt.TensorFormat.LINEAR):
        with pytest.raises(TypeError):
            trt.nptype(wrong)
    assert trt.int4.itemsize == 0.5 and type(trt.float32.itemsize) is int
    for missing in (np.float64, np.uint16, np.complex64, np.dtype("U3"), dtypes.F64):
        with pytest.raises(TypeError, match="DataType: got"):
            to_data_type(missing)


@exercises("volume")
def test_volume():
    assert (
        trt.volume(()) == 1
        and trt.volume([2, 3, 0]) == 0
        and trt.volume(x for x in (2, -1)) == -2
        and trt.volume(trt.Dims3(2, 3, 4)) == 24
    )


@exercises("Weights", "Weights.dtype", "Weights.size", "Weights.nbytes", "Weights.numpy", "Weights.__len__")
def test_weights_of_an_array_share_its_memory_and_keep_it():
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    weights = trt.Weights(array)
    assert (weights.dtype, weights.size, weights.nbytes, len(weights)) == (trt.float16, 6, 12, 6)
    array[1, 2] = 9
    assert (
        weights.numpy().tolist() == [0, 1, 2, 3, 4, 9]
        and np.shares_memory(weights.numpy(), array)
        and address(weights) == array.ctypes.data
    )
    owner = np.ones(4, np.int8)
    held, alive = trt.Weights(owner), weakref.ref(owner)
    del owner
    gc.collect()
    assert alive() is not None and held.numpy().tolist() == [1, 1, 1, 1]
    strided = np.arange(12, dtype=np.int32).reshape(3, 4).T
    assert trt.Weights(a=strided).numpy().tolist() == strided.ravel().tolist()
    assert trt.Weights(np.float32(2.5)).numpy().tolist() == [2.5]


def test_weights_at_an_address_are_read_there():
    memory = np.array([1, 2, 3, 4], np.int32)
    weights = trt.Weights(trt.int32, memory.ctypes.data, 3)
    assert weights.numpy().tolist() == [1, 2, 3] and weights.nbytes == 12
    memory[0] = 7
    assert trt.Weights(type=trt.int32, ptr=memory.ctypes.data, count=1).numpy().tolist() == [7]
    weights.numpy()[1] = 8
    assert memory[1] == 8


def test_empty_weights():
    for weights, kind in (
        (trt.Weights(), trt.float32),
        (trt.Weights(trt.int8), trt.int8),
        (trt.Weights(trt.int8, 0, 0), trt.int8),
        (trt.Weights(np.empty(0, np.float32)), trt.float32),
    ):
        assert (len(weights), weights.nbytes, weights.dtype, address(weights)) == (0, 0, kind, 0)
        assert weights.numpy().size == 0 and weights.numpy().dtype == trt.nptype(kind)


def test_types_that_numpy_lacks_give_the_weights_themselves():
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    weights = trt.Weights(array)
    assert weights.dtype is trt.bfloat16 and weights.numpy() is weights and values(weights).tolist() == [1.5, -2]
    raw = array.view(np.uint16)
    assert values(trt.Weights(trt.bfloat16, raw.ctypes.data, 2)).tolist() == [1.5, -2]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(trt.int4, [1, -1, 7, -8, 3]), (trt.fp4, [0.5, -6.0, 6.0, -0.0, 1.5])],
    ids=["int4", "fp4"],
)
def test_four_bit_weights_lie_two_to_a_byte(kind, expected):
    packed = np.array([0xF1, 0x87, 0x03], np.uint8)
    weights = trt.Weights(kind, packed.ctypes.data, 5)
    assert weights.nbytes == 3 and weights.size == 5
    assert values(weights).astype(np.float32).tolist() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: trt.Weights(np.zeros(2)),
        lambda: trt.Weights([1.0, 2.0]),
        lambda: trt.Weights(np.float32),
        lambda: trt.Weights(trt.float32, 16),
        lambda: trt.Weights(trt.float32, "16", 1),
        lambda: trt.Weights(trt.float32, 16, 1.0),
        lambda: trt.Weights(np.zeros(2, np.float32), 0, 2),
        lambda: trt.Weights(trt.float32, a=np.zeros(2, np.float32), ptr=1, count=1),
    ],
)
def test_other_arguments_are_type_errors(wrong):
    with pytest.raises(TypeError):
        wrong()


def test_memory_that_cannot_be_is_refused():
    for pointer, count in ((0, 1), (16, -1)):
        with pytest.raises(ValueError, match="expected memory that exists"):
            trt.Weights(trt.float32, pointer, count)


def test_a_prototype_is_a_type_and_a_size():
    kind = prototype(trt.float16, 10)
    assert (kind.dtype, kind.size, kind.nbytes, len(kind), address(kind)) == (trt.float16, 10, 20, 10, 0)
    with pytest.raises(ValueError, match="10 elements without memory"):
        kind.numpy()
    assert prototype(trt.float32, -1).size == -1 and prototype(trt.float32, -1).nbytes == 0


def test_arrays_are_taken_for_weights():
    array = np.ones(3, np.float32)
    weights = as_weights(array, "where")
    assert (
        np.shares_memory(values(weights), array)
        and as_weights(weights, "where") is weights
        and len(as_weights(None, "where")) == 0
    )
    with pytest.raises(TypeError, match=r"add_constant: weights: got list, expected Weights or a NumPy array"):
        as_weights([1.0], "INetworkDefinition.add_constant: weights")


@exercises("IHostMemory", "IHostMemory.nbytes", "IHostMemory.dtype", "IHostMemory.__enter__", "IHostMemory.__exit__")
def test_host_memory_is_a_buffer(tmp_path):
    from dovetail.tensorrt.host_memory import IHostMemory

    memory = IHostMemory(b"plan\x00bytes")
    assert memory.nbytes == 10 == len(memory) == len(memoryview(memory)) and memory.dtype is trt.int8
    assert (
        bytes(memory) == b"plan\x00bytes"
        and type(bytes(memory)) is bytes
        and bytearray(memory)[:4] == b"plan"
        and memory[4] == 0
    )
    assert np.frombuffer(memory, np.uint8)[-1] == ord("s")
    (tmp_path / "x.plan").write_bytes(memory)
    assert (tmp_path / "x.plan").read_bytes() == memory
    assert str(memory) == "<IHostMemory: 10 bytes>" and memory and isinstance(memory, trt.IHostMemory)
    with pytest.warns(DeprecationWarning, match="Context managers for TensorRT types are deprecated"), memory as same:
        assert same is memory
