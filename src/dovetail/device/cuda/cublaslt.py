"""Matrix products by cuBLASLt, called through its C interface.

A call is described by data (see `Description`); the numbers that may depend on shapes come in as dims, in the order of `DIMS`.
cuBLASLt counts columns first: the row-major product D = A B is computed as the column-major D' = B' A', with B in its first place.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dovetail.core.errors import DeviceError
from dovetail.device.cuda import shared_library
from dovetail.device.cuda.driver import Driver, Stream

DIMS = ("m", "n", "k", "lda", "ldb", "ldc", "ldd", "batch", "stride_a", "stride_b", "stride_c", "stride_d")
"""The run-time dims of a call: extents, distances of rows, number of products, distances of matrices, in elements."""

WORKSPACE_BYTES = 32 << 20
"""What an algorithm may have; NVIDIA recommends this much on compute capability 9.0."""

TYPES = {"f32": 0, "f16": 2, "bf16": 14}
"""cudaDataType_t by our names."""

EPILOGUES = {"": 1, "relu": 2, "bias": 4, "relu_bias": 6, "gelu": 32, "gelu_bias": 36}
"""cublasLtEpilogue_t; its GELU is the tanh formula."""

_COMPUTE_F32, _COMPUTE_TF32 = 68, 77
_LAYOUT_BATCH_COUNT, _LAYOUT_BATCH_OFFSET = 5, 6
_DESC_TRANSA, _DESC_TRANSB, _DESC_EPILOGUE, _DESC_BIAS_POINTER, _DESC_BIAS_TYPE = 3, 4, 7, 8, 26
_PREF_WORKSPACE, _PREF_REDUCTION, _PREF_ALIGNMENT = 1, 3, 5  # the alignments of A, B, C, D follow each other
_REDUCE_IN_COMPUTE_TYPE = 2  # partial sums in fp32, added in a fixed order
_ASSUMED_BIAS = 256  # an address that only says how a bias is aligned

_STATUS = {
    1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR", 13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED", 16: "LICENSE_ERROR",
}  # fmt: skip


class Algorithm(ctypes.Structure):
    """cublasLtMatmulAlgo_t: opaque, valid for one version of the library on one kind of device."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", Algorithm), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int), ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )  # fmt: skip


@dataclass(frozen=True)
class Description:
    """What a call computes: D = activation(A B + C + bias), all rows contiguous.

    Attributes:
        type, out: element types of the operands A, B and of C, bias, D.
        transa, transb: whether A (B) lies transposed in memory: its columns are contiguous.
        epilogue: one of `EPILOGUES`.
        residual: whether C is added.
        tf32: whether fp32 operands may be rounded to TF32.
        alignment: bytes that the addresses of A, B, C, D are multiples of.
        heuristic: which of the library's proposals to take.
        algorithm: the proposal taken before, as hex digits, and the library's version that made it; "" and 0 for none.
    """

    type: str
    out: str
    transa: bool = False
    transb: bool = False
    epilogue: str = ""
    residual: bool = False
    tf32: bool = False
    alignment: tuple[int, int, int, int] = (16, 16, 16, 16)
    heuristic: int = 0
    algorithm: str = ""
    version: int = 0

    @property
    def bias(self) -> bool:
        """Whether a bias is added along the columns."""
        return self.epilogue.endswith("bias")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The pointers of a call, in order."""
        return ("a", "b", *(["c"] if self.residual else []), *(["bias"] if self.bias else []), "d")

    def json(self) -> dict[str, Any]:
        """As a plan keeps it."""
        return {
            "op": "matmul", "type": self.type, "out": self.out, "transa": self.transa, "transb": self.transb, "epilogue": self.epilogue,
            "residual": self.residual, "tf32": self.tf32, "alignment": list(self.alignment), "heuristic": self.heuristic,
            **({"algorithm": self.algorithm, "version": self.version} if self.algorithm else {}),
        }  # fmt: skip

    @staticmethod
    def parse(call: Mapping[str, Any]) -> Description:
        """The description that a plan keeps.

        Raises:
            DeviceError: it is none.
        """
        try:
            fields = {k: v for k, v in call.items() if k != "op"} | {"alignment": tuple(int(v) for v in call["alignment"])}
            found = Description(**fields)
            valid = call["op"] == "matmul" and {found.type, found.out} <= set(TYPES) and found.epilogue in EPILOGUES
            valid = valid and len(found.alignment) == 4 and found.heuristic >= 0 and len(found.algorithm) in (0, 128)
            bytes.fromhex(found.algorithm)
        except (KeyError, TypeError, ValueError) as error:
            raise DeviceError(f"cublaslt: got the call {dict(call)!r}, expected a matmul ({error}); build the engine again") from None
        if not valid:
            raise DeviceError(f"cublaslt: got the call {dict(call)!r}, expected a matmul with known types; build the engine again")
        return found


@functools.cache
def _library() -> ctypes.CDLL:
    lib = shared_library.load("cublaslt")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    out = ctypes.POINTER(ctypes.c_void_p)
    attribute = [pointer, ctypes.c_int, pointer, size]
    signatures: dict[str, list[Any]] = {
        "Create": [out], "MatmulDescCreate": [out, ctypes.c_int, ctypes.c_int], "MatmulDescDestroy": [pointer],
        "MatmulDescSetAttribute": attribute, "MatrixLayoutCreate": [out, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64],
        "MatrixLayoutDestroy": [pointer], "MatrixLayoutSetAttribute": attribute, "MatmulPreferenceCreate": [out],
        "MatmulPreferenceDestroy": [pointer], "MatmulPreferenceSetAttribute": attribute,
        "MatmulAlgoGetHeuristic": [*[pointer] * 7, ctypes.c_int, ctypes.POINTER(HeuristicResult), ctypes.POINTER(ctypes.c_int)],
        "MatmulAlgoCheck": [*[pointer] * 6, ctypes.POINTER(Algorithm), ctypes.POINTER(HeuristicResult)],
        "Matmul": [pointer, pointer, pointer, *[pointer] * 4, pointer, *[pointer] * 4, ctypes.POINTER(Algorithm), pointer, size, pointer],
    }  # fmt: skip
    for name, arguments in signatures.items():
        function = getattr(lib, f"cublasLt{name}")
        function.argtypes, function.restype = arguments, ctypes.c_int
    lib.cublasLtGetVersion.argtypes, lib.cublasLtGetVersion.restype = [], size
    return lib


def version() -> int:
    """The library's version, such as 130100.

    Raises:
        DeviceError: it is not installed.
    """
    return int(_library().cublasLtGetVersion())


def _check(status: int, what: str) -> None:
    if status != 0:
        raise DeviceError(
            f"cublaslt: {what} failed with {_STATUS.get(status, 'status')} ({status}), library version {version()}; "
            "build the engine on this machine, or without library tactics"
        )


def _make(name: str, *arguments: Any) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _check(getattr(_library(), f"cublasLt{name}Create")(ctypes.byref(handle), *arguments), f"{name}Create")
    return handle


def _set(name: str, handle: ctypes.c_void_p, attribute: int, value: ctypes._SimpleCData[Any]) -> None:
    function = getattr(_library(), f"cublasLt{name}SetAttribute")
    _check(function(handle, attribute, ctypes.byref(value), ctypes.sizeof(value)), f"{name}SetAttribute {attribute}")


_handles: dict[Driver, ctypes.c_void_p] = {}
_lock = threading.Lock()


def _handle(driver: Driver) -> ctypes.c_void_p:
    """The library's handle for a driver whose context is current; one for the process."""
    with _lock:
        if driver not in _handles:
            _handles[driver] = _make("")
        return _handles[driver]


@dataclass(frozen=True)
class Matrix:
    """A column-major matrix as cuBLASLt sees it: rows, columns, distance of columns, and of matrices."""

    rows: int
    columns: int
    leading: int
    stride: int


def matrices(call: Description, dims: Sequence[int]) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """The library's A, B, C and D: our B, A, C and D read by columns."""
    at = dict(zip(DIMS, dims, strict=True))
    m, n, k = at["m"], at["n"], at["k"]
    first = Matrix(k, n, at["ldb"], at["stride_b"]) if call.transb else Matrix(n, k, at["ldb"], at["stride_b"])
    second = Matrix(m, k, at["lda"], at["stride_a"]) if call.transa else Matrix(k, m, at["lda"], at["stride_a"])
    result = Matrix(n, m, at["ldd"], at["stride_d"])
    added = Matrix(n, m, at["ldc"], at["stride_c"]) if call.residual else result
    return first, second, added, result


class Matmul:
    """A product that is ready to be queued; any number of times, from any thread."""

    def __init__(self, driver: Driver, call: Description, dims: Sequence[int]) -> None:
        self._lib = _library()
        self._call = call
        self._lock = threading.Lock()
        self._layouts: list[ctypes.c_void_p] = []
        self._handle = _handle(driver)
        batch = dims[DIMS.index("batch")]
        self._empty = batch == 0 or dims[0] == 0 or dims[1] == 0
        compute = _COMPUTE_TF32 if call.tf32 and call.type == "f32" else _COMPUTE_F32
        self._desc = _make("MatmulDesc", compute, TYPES["f32"])
        self.workspace = 0
        self._algorithm = Algorithm()
        if self._empty:
            return
        # Our B is the library's A: by columns it is n x k as it lies, k x n if it lies transposed.
        _set("MatmulDesc", self._desc, _DESC_TRANSA, ctypes.c_int32(int(call.transb)))
        _set("MatmulDesc", self._desc, _DESC_TRANSB, ctypes.c_int32(int(call.transa)))
        _set("MatmulDesc", self._desc, _DESC_EPILOGUE, ctypes.c_uint32(EPILOGUES[call.epilogue]))
        if call.bias:
            _set("MatmulDesc", self._desc, _DESC_BIAS_TYPE, ctypes.c_int32(TYPES[call.out]))
            _set("MatmulDesc", self._desc, _DESC_BIAS_POINTER, ctypes.c_void_p(_ASSUMED_BIAS))
        for matrix, kind in zip(matrices(call, dims), (call.type, call.type, call.out, call.out), strict=True):
            layout = _make("MatrixLayout", TYPES[kind], matrix.rows, matrix.columns, matrix.leading)
            self._layouts.append(layout)
            _set("MatrixLayout", layout, _LAYOUT_BATCH_COUNT, ctypes.c_int32(batch))
            _set("MatrixLayout", layout, _LAYOUT_BATCH_OFFSET, ctypes.c_int64(matrix.stride))
        self._choose(dims)
        self._alpha, self._beta = ctypes.c_float(1.0), ctypes.c_float(1.0 if call.residual else 0.0)

    def _choose(self, dims: Sequence[int]) -> None:
        """Take the recorded algorithm if this library still knows it, else what its heuristic proposes."""
        call = self._call
        if call.algorithm and call.version == version():
            ctypes.memmove(ctypes.byref(self._algorithm), bytes.fromhex(call.algorithm), ctypes.sizeof(Algorithm))
            result = HeuristicResult()
            status = self._lib.cublasLtMatmulAlgoCheck(
                self._handle, self._desc, *self._layouts, ctypes.byref(self._algorithm), ctypes.byref(result)
            )
            if status == 0 and result.workspace <= WORKSPACE_BYTES:
                self.workspace = int(result.workspace)
                return
        found = self._proposals(call.heuristic + 1)
        if len(found) <= call.heuristic:
            shown = ", ".join(f"{k}={v}" for k, v in zip(DIMS, dims, strict=True))
            raise DeviceError(
                f"cublaslt: got {len(found)} algorithms for {call.type} matmul {shown}, expected more than {call.heuristic}; "
                "build the engine again on this machine"
            )
        chosen = found[call.heuristic]
        self._algorithm, self.workspace = chosen.algo, int(chosen.workspace)

    def _proposals(self, count: int) -> list[HeuristicResult]:
        preference = _make("MatmulPreference")
        try:
            _set("MatmulPreference", preference, _PREF_WORKSPACE, ctypes.c_uint64(WORKSPACE_BYTES))
            _set("MatmulPreference", preference, _PREF_REDUCTION, ctypes.c_uint32(_REDUCE_IN_COMPUTE_TYPE))
            a, b, c, d = self._call.alignment
            for place, value in enumerate((b, a, c, d)):
                _set("MatmulPreference", preference, _PREF_ALIGNMENT + place, ctypes.c_uint32(value))
            results, found = (HeuristicResult * count)(), ctypes.c_int()
            status = self._lib.cublasLtMatmulAlgoGetHeuristic(
                self._handle, self._desc, *self._layouts, preference, count, results, ctypes.byref(found)
            )
        finally:
            self._lib.cublasLtMatmulPreferenceDestroy(preference)
        if status == 15:  # not supported: no algorithm at all
            return []
        _check(status, "MatmulAlgoGetHeuristic")
        return [r for r in results[: found.value] if r.state == 0]

    def recorded(self) -> dict[str, Any]:
        """The call with the algorithm that was chosen, for a plan."""
        return self._call.json() | {"algorithm": bytes(self._algorithm).hex(), "version": version()}

    def launch(self, pointers: Sequence[int], workspace: int, stream: Stream) -> None:
        """Queue the product; see `Description.arguments` for the pointers.

        Raises:
            DeviceError: the library refuses it.
        """
        if self._empty:
            return
        at = dict(zip(self._call.arguments, pointers, strict=True))
        with self._lock:
            if self._call.bias:
                _set("MatmulDesc", self._desc, _DESC_BIAS_POINTER, ctypes.c_void_p(at["bias"]))
            first, second, added, result = self._layouts
            status = self._lib.cublasLtMatmul(
                self._handle, self._desc, ctypes.byref(self._alpha), at["b"], first, at["a"], second, ctypes.byref(self._beta),
                at.get("c", at["d"]), added, at["d"], result, ctypes.byref(self._algorithm), workspace or None, self.workspace, stream,
            )  # fmt: skip
        _check(status, "Matmul")

    def __del__(self) -> None:
        lib = getattr(self, "_lib", None)
        if lib is None:
            return
        for layout in self._layouts:
            lib.cublasLtMatrixLayoutDestroy(layout)
        if getattr(self, "_desc", None):
            lib.cublasLtMatmulDescDestroy(self._desc)


_ready = shared_library.PreparedCalls[Matmul]()


def prepare(driver: Driver, call: Mapping[str, Any], dims: Sequence[int]) -> Matmul:
    """The product that a plan describes, for these dims (`DIMS`); wants the device's context to be current.

    Raises:
        DeviceError: no library, or it does not do what is asked.
    """
    if len(dims) != len(DIMS):
        raise DeviceError(f"cublaslt: got {len(dims)} dims, expected {len(DIMS)} ({', '.join(DIMS)}); build the engine again")
    parsed = Description.parse(call)
    return _ready.get((driver, parsed, tuple(dims)), lambda: Matmul(driver, parsed, dims))
