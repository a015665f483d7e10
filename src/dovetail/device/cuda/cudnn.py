"""Convolution with its epilogue, and attention, by cuDNN graphs.

A call is a record with all shapes (`Convolution`, `Attention`). Its execution plan comes from the call itself where the build stored
it, from the cache of this machine, or from the library's heuristics; plans are valid for one version on one kind of device.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dovetail.core.env import env
from dovetail.core.errors import DeviceError
from dovetail.core.log import logger
from dovetail.device.cuda import cudnn_backend as backend
from dovetail.device.cuda import shared_library
from dovetail.device.cuda.cudnn_backend import Descriptor, Kind, Name, Note, Type
from dovetail.device.cuda.driver import Driver, Stream

WORKSPACE_BYTES = 64 << 20
"""What a plan may have; proposals that want more are passed over."""

ACTIVATIONS = {"relu": 100, "tanh": 101, "sigmoid": 102, "gelu_erf": 104, "swish": 106, "gelu": 107, "relu6": 100}
"""cudnnPointwiseMode_t of the activations by our names."""

_ADD = 0
_CROSS_CORRELATION = 1
_RELU6_LIMIT = 6.0
# Results are the same from run to run and as exact as direct sums in fp32.
_FORBIDDEN = frozenset({
    Note.REDUCED_PRECISION_REDUCTION, Note.FFT, Note.NONDETERMINISTIC, Note.WINOGRAD, Note.WINOGRAD_4X4, Note.WINOGRAD_6X6,
    Note.WINOGRAD_13X13,
})  # fmt: skip
_ROUNDING = frozenset({Note.TENSOR_CORE, Note.DOWN_CONVERT_INPUTS})  # of fp32 operands, to TF32
_VIRTUAL = 100  # unique ids of tensors that lie nowhere start here
_log = logger("cudnn")


@dataclass(frozen=True)
class Tensor:
    """Extents and element strides of a tensor, in the order N, C, spatial… or batch, heads, rows, columns."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    alignment: int = 16


@dataclass(frozen=True)
class Convolution:
    """y = activation(conv(x, w) + bias + residual).

    Attributes:
        type: element type of all tensors.
        x, w, y: the images, and the filters [M, C/group, k...].
        bias: whether a row of M numbers is added.
        residual: the image that is added, if any.
        activation: "" or one of `ACTIVATIONS`.
        low, high: padding in front and behind, per spatial axis.
        tf32: whether fp32 operands may be rounded to TF32.
        heuristic: which of the library's proposals to take.
    """

    type: str
    x: Tensor
    w: Tensor
    y: Tensor
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    bias: bool = False
    residual: Tensor | None = None
    activation: str = ""
    tf32: bool = False
    heuristic: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """The pointers of a call, in order."""
        return ("x", "w", *(["bias"] if self.bias else []), *(["residual"] if self.residual is not None else []), "y")

    def operations(self) -> tuple[list[Descriptor], dict[str, int]]:
        """The operations of the graph, and the unique id of each argument."""
        ids = {name: n + 1 for n, name in enumerate(self.arguments)}
        spatial = len(self.strides)
        steps: list[tuple[int, Descriptor | None]] = []
        if self.bias:
            m = self.w.dims[0]
            bias = backend.tensor(ids["bias"], (1, m, *(1,) * spatial), (m, 1, *(m,) * spatial), self.type)
            steps.append((_ADD, bias))
        if self.residual is not None:
            steps.append((_ADD, _tensor(ids["residual"], self.residual, self.type)))
        if self.activation:
            steps.append((ACTIVATIONS[self.activation], None))
        # Results between the operations stay in fp32.
        results = [backend.tensor(_VIRTUAL + n, self.y.dims, _packed(self.y.dims), "f32", virtual=True) for n in range(len(steps))]
        results.append(_tensor(ids["y"], self.y, self.type))
        conv = Descriptor(Kind.CONVOLUTION).set(Name.CONVOLUTION_COMP_TYPE, Type.DATA_TYPE, backend.DATA_TYPES["f32"])
        conv.set(Name.CONVOLUTION_CONV_MODE, Type.CONVOLUTION_MODE, _CROSS_CORRELATION)
        conv.set(Name.CONVOLUTION_SPATIAL_DIMS, Type.INT64, spatial)
        conv.set(Name.CONVOLUTION_DILATIONS, Type.INT64, *self.dilations).set(Name.CONVOLUTION_FILTER_STRIDES, Type.INT64, *self.strides)
        conv.set(Name.CONVOLUTION_PRE_PADDINGS, Type.INT64, *self.low).set(Name.CONVOLUTION_POST_PADDINGS, Type.INT64, *self.high)
        first = Descriptor(Kind.OPERATION_CONVOLUTION_FORWARD).set(Name.CONVOLUTION_FORWARD_DESC, Type.DESCRIPTOR, conv.finalize())
        first.set(Name.CONVOLUTION_FORWARD_X, Type.DESCRIPTOR, _tensor(ids["x"], self.x, self.type))
        first.set(Name.CONVOLUTION_FORWARD_W, Type.DESCRIPTOR, _tensor(ids["w"], self.w, self.type))
        first.set(Name.CONVOLUTION_FORWARD_Y, Type.DESCRIPTOR, results[0])
        first.set(Name.CONVOLUTION_FORWARD_ALPHA, Type.FLOAT, 1.0).set(Name.CONVOLUTION_FORWARD_BETA, Type.FLOAT, 0.0)
        operations = [first.finalize()]
        for n, (mode, operand) in enumerate(steps):
            limit = _RELU6_LIMIT if self.activation == "relu6" and operand is None else None
            operations.append(_pointwise(mode, results[n], operand, results[n + 1], limit))
        return operations, ids


@dataclass(frozen=True)
class Attention:
    """o = softmax(scale q k') v per head, without a mask; fewer key heads serve several query heads each."""

    type: str
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    scale: float
    heuristic: int = 0
    tf32: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """The pointers of a call, in order."""
        return ("q", "k", "v", "o")

    def operations(self) -> tuple[list[Descriptor], dict[str, int]]:
        """The operation of the graph, and the unique id of each argument; "scale" is a number on the host."""
        ids = {name: n + 1 for n, name in enumerate((*self.arguments, "scale"))}
        scale = backend.tensor(ids["scale"], (1,) * 4, (1,) * 4, "f32", by_value=True)
        attention = Descriptor(Kind.OPERATION_SDPA_FORWARD)
        for name, place in zip(self.arguments, (Name.SDPA_Q, Name.SDPA_K, Name.SDPA_V, Name.SDPA_O), strict=True):
            attention.set(place, Type.DESCRIPTOR, _tensor(ids[name], getattr(self, name), self.type))
        return [attention.set(Name.SDPA_SCALE, Type.DESCRIPTOR, scale).finalize()], ids


Call = Convolution | Attention
_CALLS: dict[str, type[Convolution] | type[Attention]] = {"convolution": Convolution, "attention": Attention}


def _tensor(uid: int, given: Tensor, kind: str) -> Descriptor:
    return backend.tensor(uid, given.dims, given.strides, kind, alignment=given.alignment)


def _packed(dims: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense image with channels innermost."""
    strides = [0] * len(dims)
    strides[1], at = 1, dims[1]
    for axis in (*range(len(dims) - 1, 1, -1), 0):
        strides[axis], at = at, at * dims[axis]
    return tuple(strides)


def _pointwise(mode: int, x: Descriptor, operand: Descriptor | None, y: Descriptor, limit: float | None) -> Descriptor:
    what = Descriptor(Kind.POINTWISE).set(Name.POINTWISE_MODE, Type.POINTWISE_MODE, mode)
    what.set(Name.POINTWISE_MATH_PREC, Type.DATA_TYPE, backend.DATA_TYPES["f32"])
    if limit is not None:
        what.set(Name.POINTWISE_RELU_UPPER_CLIP, Type.DOUBLE, limit)
    made = Descriptor(Kind.OPERATION_POINTWISE).set(Name.OPERATION_POINTWISE_DESC, Type.DESCRIPTOR, what.finalize())
    made.set(Name.OPERATION_POINTWISE_X, Type.DESCRIPTOR, x)
    if operand is not None:
        made.set(Name.OPERATION_POINTWISE_B, Type.DESCRIPTOR, operand)
    return made.set(Name.OPERATION_POINTWISE_Y, Type.DESCRIPTOR, y).finalize()


def describe(call: Call) -> dict[str, Any]:
    """A call as a plan keeps it."""
    op = next(name for name, kind in _CALLS.items() if isinstance(call, kind))
    return {"op": op} | cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(call))))


def parse(data: Mapping[str, Any]) -> Call:
    """The call that a plan keeps.

    Raises:
        DeviceError: it is none.
    """
    try:
        fields = {k: _field(v) for k, v in data.items() if k not in ("op", "plan", "version")}
        call = _CALLS[data["op"]](**fields)
        valid = call.type in backend.DATA_TYPES and call.heuristic >= 0
        valid = valid and (not isinstance(call, Convolution) or call.activation in ("", *ACTIVATIONS))
        operands = [getattr(call, name) for name in call.arguments if name != "bias"]
        valid = valid and all(isinstance(t, Tensor) and len(t.dims) == len(t.strides) for t in operands)
    except (KeyError, TypeError, ValueError) as error:
        raise DeviceError(
            f"cudnn: got the call {dict(data)!r}, expected a convolution or attention ({error}); build the engine again"
        ) from None
    if not valid:
        raise DeviceError(f"cudnn: got the call {dict(data)!r}, expected known types and activations; build the engine again")
    return call


def _field(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Tensor(tuple(map(int, value["dims"])), tuple(map(int, value["strides"])), int(value["alignment"]))
    return tuple(map(int, value)) if isinstance(value, list | tuple) else value


_handles: dict[Driver, ctypes.c_void_p] = {}
_lock = threading.Lock()


def _handle(driver: Driver) -> int:
    """The library's handle for a driver whose context is current; one for the process."""
    with _lock:
        if driver not in _handles:
            _handles[driver] = _new_handle()
        return _handles[driver].value or 0


def _new_handle() -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    backend.check(backend.library().cudnnCreate(ctypes.byref(made)), "creating a handle")
    return made


def version() -> int:
    """The library's version.

    Raises:
        DeviceError: it is not installed.
    """
    return backend.version()


class Ready:
    """A call with its execution plan; may be queued any number of times, from any thread."""

    def __init__(self, driver: Driver, data: Mapping[str, Any], handle: int = 0) -> None:
        """`handle` is one of the calling thread's own, in the place of the process's."""
        self.call = parse(data)
        self._handle = handle or _handle(driver)
        self._scale = ctypes.c_float(getattr(self.call, "scale", 0.0))
        self._ids = {name: n + 1 for n, name in enumerate(self.call.arguments)}
        if isinstance(self.call, Attention):
            self._ids["scale"] = len(self._ids) + 1
        path = _cached(driver, self.call)
        stored = str(data.get("plan", "")).encode() if data.get("version") == version() else b""
        plan = self._restored(stored) or self._restored(_read(path))
        if plan is None:
            plan = self._proposed()
            _write(path, plan.get_text(Name.PLAN_JSON))
        self._plan = plan
        (size,) = plan.get(Name.PLAN_WORKSPACE_SIZE, Type.INT64)
        self.workspace = int(size)

    def _restored(self, text: bytes) -> Descriptor | None:
        if not text:
            return None
        try:
            return backend.plan_from_json(self._handle, text)
        except DeviceError as error:
            _log.info("a stored plan does not fit, the heuristics are asked again: %s", error)
            return None

    def _proposed(self) -> Descriptor:
        call = self.call
        operations, self._ids = call.operations()
        exact = call.type == "f32" and not call.tf32
        configs = backend.engine_configs(backend.graph(self._handle, operations), _FORBIDDEN | (_ROUNDING if exact else frozenset()))
        if len(configs) <= call.heuristic:
            raise DeviceError(
                f"cudnn: got {len(configs)} engines for {describe(call)!r}, expected more than {call.heuristic}; build the engine again on "
                "this machine"
            )
        plan = backend.plan_of(self._handle, configs[call.heuristic])
        (size,) = plan.get(Name.PLAN_WORKSPACE_SIZE, Type.INT64)
        if size > WORKSPACE_BYTES:
            raise DeviceError(
                f"cudnn: engine {call.heuristic} wants {size} bytes of workspace, expected at most {WORKSPACE_BYTES}; build again"
            )
        return plan

    def recorded(self) -> dict[str, Any]:
        """The call with its execution plan, for an engine file."""
        text = self._plan.get_text(Name.PLAN_JSON).decode()
        return describe(self.call) | {"plan": text, "version": version()}

    def launch(self, pointers: Sequence[int], workspace: int, stream: Stream) -> None:
        """Queue the call; see its `arguments` for the pointers.

        Raises:
            DeviceError: the library refuses it.
        """
        at = dict(zip(self.call.arguments, pointers, strict=True))
        if "scale" in self._ids:
            at["scale"] = ctypes.addressof(self._scale)
        pack = Descriptor(Kind.VARIANT_PACK).set(Name.PACK_UNIQUE_IDS, Type.INT64, *(self._ids[name] for name in at))
        pack.set(Name.PACK_DATA_POINTERS, Type.VOID_PTR, *at.values())
        pack.set(Name.PACK_WORKSPACE, Type.VOID_PTR, workspace or None).finalize()
        lib = backend.library()
        with _lock:  # a handle has one stream at a time
            backend.check(lib.cudnnSetStream(self._handle, stream), "choosing a stream")
            status = lib.cudnnBackendExecute(self._handle, self._plan.handle, pack.handle)
        backend.check(status, "executing a plan")


def _cached(driver: Driver, call: Call) -> Path:
    """Where this machine keeps the plan of a call."""
    found = driver.properties
    key = json.dumps([describe(call), version(), found.name, found.capability, found.driver_version], sort_keys=True)
    return env().cache / "cudnn" / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _write(path: Path, text: bytes) -> None:
    """Keep a plan for the next process; a cache that cannot be written costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", "plan-", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        _log.info("cannot keep a plan in %s: %s", path.parent, error)


_ready = shared_library.PreparedCalls[Ready]()


def prepare(driver: Driver, call: Mapping[str, Any], dims: Sequence[int]) -> Ready:
    """The call that an engine's plan describes; equal calls of a process share one execution plan.

    Raises:
        DeviceError: no library, or it does not do what is asked.
    """
    if dims:
        raise DeviceError(f"cudnn: got {len(dims)} dims, expected none, as calls hold their shapes; build the engine again")
    key = (driver, json.dumps(dict(call), sort_keys=True))
    return _ready.get(key, lambda: Ready(driver, call))


def warm(driver: Driver, calls: Iterable[Mapping[str, Any]], jobs: int | None = None) -> None:
    """Make execution plans in several threads, so that `prepare` finds them in the cache: compiling one can take a second.

    Calls that the library has no plan for are passed over; `prepare` says so when it is asked.
    """
    distinct = list({json.dumps(dict(c), sort_keys=True): c for c in calls}.values())
    if not distinct:
        return
    backend.library()
    handles = threading.local()

    def make(call: Mapping[str, Any]) -> None:
        with driver.active():
            if not hasattr(handles, "own"):
                handles.own = _new_handle()
            try:
                Ready(driver, call, handles.own.value or 0)
            except DeviceError as error:
                _log.debug("%s", error)

    with ThreadPoolExecutor(max(1, min(jobs or env().jobs, len(distinct)))) as pool:
        list(pool.map(make, distinct))
