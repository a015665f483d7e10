"""cuDNN's backend interface through ctypes: descriptors with attributes, graphs of operations, engines, execution plans.

Numbers are those of cuDNN 9's public header `cudnn_graph.h`; the backend descriptors are made to be stable across versions.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from dovetail.core.errors import DeviceError
from dovetail.device.cuda import shared_library


class Kind(IntEnum):
    """cudnnBackendDescriptorType_t."""

    POINTWISE = 0
    CONVOLUTION = 1
    ENGINE = 2
    ENGINE_CONFIG = 3
    HEURISTIC = 4
    PLAN = 5
    OPERATION_CONVOLUTION_FORWARD = 10
    OPERATION_POINTWISE = 13
    GRAPH = 15
    VARIANT_PACK = 16
    TENSOR = 17
    OPERATION_SDPA_FORWARD = 41


class Type(IntEnum):
    """cudnnBackendAttributeType_t."""

    HANDLE = 0
    DATA_TYPE = 1
    BOOLEAN = 2
    INT64 = 3
    FLOAT = 4
    DOUBLE = 5
    VOID_PTR = 6
    CONVOLUTION_MODE = 7
    HEURISTIC_MODE = 8
    NUMERICAL_NOTE = 11
    POINTWISE_MODE = 14
    DESCRIPTOR = 15
    CHAR = 24


class Name(IntEnum):
    """cudnnBackendAttributeName_t."""

    POINTWISE_MODE = 0
    POINTWISE_MATH_PREC = 1
    POINTWISE_RELU_UPPER_CLIP = 4
    CONVOLUTION_COMP_TYPE = 100
    CONVOLUTION_CONV_MODE = 101
    CONVOLUTION_DILATIONS = 102
    CONVOLUTION_FILTER_STRIDES = 103
    CONVOLUTION_POST_PADDINGS = 104
    CONVOLUTION_PRE_PADDINGS = 105
    CONVOLUTION_SPATIAL_DIMS = 106
    HEURISTIC_MODE = 200
    HEURISTIC_GRAPH = 201
    HEURISTIC_RESULTS = 202
    ENGINE_CONFIG_ENGINE = 300
    PLAN_HANDLE = 400
    PLAN_ENGINE_CONFIG = 401
    PLAN_WORKSPACE_SIZE = 402
    PLAN_JSON = 405
    CONVOLUTION_FORWARD_ALPHA = 700
    CONVOLUTION_FORWARD_BETA = 701
    CONVOLUTION_FORWARD_DESC = 702
    CONVOLUTION_FORWARD_W = 703
    CONVOLUTION_FORWARD_X = 704
    CONVOLUTION_FORWARD_Y = 705
    OPERATION_POINTWISE_DESC = 750
    OPERATION_POINTWISE_X = 751
    OPERATION_POINTWISE_B = 752
    OPERATION_POINTWISE_Y = 753
    GRAPH_HANDLE = 800
    GRAPH_OPS = 801
    TENSOR_BYTE_ALIGNMENT = 900
    TENSOR_DATA_TYPE = 901
    TENSOR_DIMENSIONS = 902
    TENSOR_STRIDES = 903
    TENSOR_UNIQUE_ID = 906
    TENSOR_IS_VIRTUAL = 907
    TENSOR_IS_BY_VALUE = 908
    PACK_UNIQUE_IDS = 1000
    PACK_DATA_POINTERS = 1001
    PACK_WORKSPACE = 1003
    ENGINE_NUMERICAL_NOTE = 1303
    SDPA_Q = 2800
    SDPA_K = 2801
    SDPA_V = 2802
    SDPA_O = 2803
    SDPA_SCALE = 2805


class Note(IntEnum):
    """cudnnBackendNumericalNote_t, those that matter."""

    TENSOR_CORE = 0
    DOWN_CONVERT_INPUTS = 1
    REDUCED_PRECISION_REDUCTION = 2
    FFT = 3
    NONDETERMINISTIC = 4
    WINOGRAD = 5
    WINOGRAD_4X4 = 6
    WINOGRAD_6X6 = 7
    WINOGRAD_13X13 = 8


HEURISTIC_MODES = (3, 2)
"""cudnnBackendHeurMode_t: A, then FALLBACK."""

DATA_TYPES = {"f32": 0, "f16": 2, "bf16": 9}
"""cudnnDataType_t by our names."""

_MAX_CONFIGS, _MAX_NOTES = 64, 16

_C_TYPES: dict[Type, Any] = {
    Type.HANDLE: ctypes.c_void_p, Type.BOOLEAN: ctypes.c_bool, Type.INT64: ctypes.c_int64, Type.FLOAT: ctypes.c_float,
    Type.DOUBLE: ctypes.c_double, Type.VOID_PTR: ctypes.c_void_p, Type.DESCRIPTOR: ctypes.c_void_p, Type.CHAR: ctypes.c_char,
}  # fmt: skip
"""What is no enum (a C int)."""


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library with its signatures.

    Raises:
        DeviceError: it is not installed.
    """
    # Engines call these two; they find what is loaded already, wherever it lies.
    for helper in ("cublaslt", "nvrtc"):
        if shared_library.missing(helper) is None:
            shared_library.load(helper)
    lib = shared_library.load("cudnn")
    pointer, out = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    signatures: dict[str, list[Any]] = {
        "cudnnCreate": [out], "cudnnSetStream": [pointer, pointer], "cudnnBackendCreateDescriptor": [ctypes.c_int, out],
        "cudnnBackendDestroyDescriptor": [pointer], "cudnnBackendFinalize": [pointer],
        "cudnnBackendSetAttribute": [pointer, ctypes.c_int, ctypes.c_int, ctypes.c_int64, pointer],
        "cudnnBackendGetAttribute": [pointer, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64), pointer],
        "cudnnBackendExecute": [pointer, pointer, pointer],
    }  # fmt: skip
    for name, arguments in signatures.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    lib.cudnnGetVersion.argtypes, lib.cudnnGetVersion.restype = [], ctypes.c_size_t
    lib.cudnnGetErrorString.argtypes, lib.cudnnGetErrorString.restype = [ctypes.c_int], ctypes.c_char_p
    lib.cudnnGetLastErrorString.argtypes, lib.cudnnGetLastErrorString.restype = [ctypes.c_char_p, ctypes.c_size_t], None
    return lib


def version() -> int:
    """The library's version, such as 91900.

    Raises:
        DeviceError: it is not installed.
    """
    return int(library().cudnnGetVersion())


def check(status: int, what: str) -> None:
    """Raise DeviceError with what the library says unless a call succeeded."""
    if status == 0:
        return
    lib = library()
    text = ctypes.create_string_buffer(512)
    lib.cudnnGetLastErrorString(text, len(text))
    label = lib.cudnnGetErrorString(status).decode(errors="replace")
    said = " ".join(text.value.decode(errors="replace").split())
    raise DeviceError(
        f"cudnn: {what} failed with {label} ({status}{', ' + said if said else ''}), library version {version()}; "
        "build the engine on this machine, or without library tactics"
    )


class Descriptor:
    """A backend descriptor; destroyed with its last reference. What it was made from lives as long."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._lib = library()
        self._handle = ctypes.c_void_p()
        self._keep: list[object] = []
        check(self._lib.cudnnBackendCreateDescriptor(kind, ctypes.byref(self._handle)), f"creating a {kind.name} descriptor")

    @property
    def handle(self) -> int:
        """The opaque pointer."""
        return self._handle.value or 0

    def set(self, name: Name, type_: Type, *values: Any) -> Descriptor:
        """Set an attribute to one or several values; descriptors are given as such."""
        self._keep += [v for v in values if isinstance(v, Descriptor)]
        plain = [v.handle if isinstance(v, Descriptor) else v for v in values]
        array = (_C_TYPES.get(type_, ctypes.c_int) * len(plain))(*plain)
        check(self._lib.cudnnBackendSetAttribute(self._handle, name, type_, len(plain), array), f"setting {name.name}")
        return self

    def set_text(self, name: Name, text: bytes) -> Descriptor:
        """Set an attribute of characters."""
        check(self._lib.cudnnBackendSetAttribute(self._handle, name, Type.CHAR, len(text), text), f"setting {name.name}")
        return self

    def finalize(self) -> Descriptor:
        """Check the attributes and make the descriptor usable.

        Raises:
            DeviceError: the library does not support what it describes.
        """
        check(self._lib.cudnnBackendFinalize(self._handle), f"finalizing a {self.kind.name} descriptor")
        return self

    def get(self, name: Name, type_: Type, most: int = 1) -> list[Any]:
        """Up to `most` values of an attribute."""
        array, count = (_C_TYPES.get(type_, ctypes.c_int) * most)(), ctypes.c_int64()
        check(self._lib.cudnnBackendGetAttribute(self._handle, name, type_, most, ctypes.byref(count), array), f"reading {name.name}")
        return list(array[: min(count.value, most)])

    def get_text(self, name: Name) -> bytes:
        """An attribute of characters."""
        count = ctypes.c_int64()
        get = self._lib.cudnnBackendGetAttribute
        check(get(self._handle, name, Type.CHAR, 0, ctypes.byref(count), None), f"reading the length of {name.name}")
        text = ctypes.create_string_buffer(count.value)
        check(get(self._handle, name, Type.CHAR, count.value, ctypes.byref(count), text), f"reading {name.name}")
        return text.raw[: count.value].rstrip(b"\0")

    def get_descriptors(self, name: Name, kind: Kind, most: int) -> list[Descriptor]:
        """Up to `most` descriptors of an attribute."""
        made = [Descriptor(kind) for _ in range(most)]
        array, count = (ctypes.c_void_p * most)(*(d.handle for d in made)), ctypes.c_int64()
        status = self._lib.cudnnBackendGetAttribute(self._handle, name, Type.DESCRIPTOR, most, ctypes.byref(count), array)
        check(status, f"reading {name.name}")
        return made[: min(count.value, most)]

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._lib.cudnnBackendDestroyDescriptor(self._handle)
            self._handle = ctypes.c_void_p()


def tensor(
    uid: int, dims: Sequence[int], strides: Sequence[int], kind: str, *, alignment: int = 16, virtual: bool = False, by_value: bool = False
) -> Descriptor:
    """A tensor: strides in elements; a virtual one lies nowhere, one by value is a number on the host."""
    made = Descriptor(Kind.TENSOR)
    made.set(Name.TENSOR_UNIQUE_ID, Type.INT64, uid).set(Name.TENSOR_DATA_TYPE, Type.DATA_TYPE, DATA_TYPES[kind])
    made.set(Name.TENSOR_DIMENSIONS, Type.INT64, *dims).set(Name.TENSOR_STRIDES, Type.INT64, *strides)
    made.set(Name.TENSOR_BYTE_ALIGNMENT, Type.INT64, alignment)
    if virtual:
        made.set(Name.TENSOR_IS_VIRTUAL, Type.BOOLEAN, True)
    if by_value:
        made.set(Name.TENSOR_IS_BY_VALUE, Type.BOOLEAN, True)
    return made.finalize()


def graph(handle: int, operations: Sequence[Descriptor]) -> Descriptor:
    """A graph of operations that tensors connect."""
    made = Descriptor(Kind.GRAPH).set(Name.GRAPH_HANDLE, Type.HANDLE, handle)
    return made.set(Name.GRAPH_OPS, Type.DESCRIPTOR, *operations).finalize()


def engine_configs(of: Descriptor, forbidden: frozenset[Note]) -> list[Descriptor]:
    """What the library proposes for a graph, best first, without engines that have a forbidden note."""
    found: list[Descriptor] = []
    for mode in HEURISTIC_MODES:
        heuristic = Descriptor(Kind.HEURISTIC).set(Name.HEURISTIC_GRAPH, Type.DESCRIPTOR, of)
        heuristic.set(Name.HEURISTIC_MODE, Type.HEURISTIC_MODE, mode)
        try:
            proposals = heuristic.finalize().get_descriptors(Name.HEURISTIC_RESULTS, Kind.ENGINE_CONFIG, _MAX_CONFIGS)
        except DeviceError:
            continue  # one mode knows nothing of this graph; the other may
        for config in proposals:
            (engine,) = config.get_descriptors(Name.ENGINE_CONFIG_ENGINE, Kind.ENGINE, 1)
            notes = engine.get(Name.ENGINE_NUMERICAL_NOTE, Type.NUMERICAL_NOTE, _MAX_NOTES)
            if not forbidden & set(notes):
                found.append(config)
    return found


def plan_of(handle: int, config: Descriptor) -> Descriptor:
    """The execution plan of an engine configuration; may compile code."""
    made = Descriptor(Kind.PLAN).set(Name.PLAN_HANDLE, Type.HANDLE, handle)
    return made.set(Name.PLAN_ENGINE_CONFIG, Type.DESCRIPTOR, config).finalize()


def plan_from_json(handle: int, text: bytes) -> Descriptor:
    """The execution plan that another process wrote down."""
    return Descriptor(Kind.PLAN).set(Name.PLAN_HANDLE, Type.HANDLE, handle).set_text(Name.PLAN_JSON, text).finalize()
