"""The plan: everything that the runtime needs to run a compiled model, as plain data.

A plan holds three programs over one set of kernels:

- `weights_program` turns the original initializers into packed weights. It runs at load and again
  on refit.
- `shapes_program` computes what depends on shape symbols. It runs when the shapes of a call are
  bound.
- `main` runs on every call.

A `Program` is a list of buffers and a list of segments; a segment is native (a table of kernel
steps run in one call), host (one call of a NumPy reference) or control (If, Loop or Scan over
programs of their own). Buffer ids are local to their program. Programs share data by *name*: a
`weight` buffer is the initializer of that name, a `packed` buffer is the output of that name of the
weights program, a `shape` buffer the output of that name of the shapes program.

Every size, offset and dimension is a postfix program over symbols (`Postfix`), as
`core.dims.to_program` writes it. Memory is not assigned here: `engine.memory` derives lifetimes
from the segments and places buffers at binding.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dovetail.core.dims import Dim, to_program
from dovetail.core.dtypes import DType

FORMAT_VERSION = 1
"""Version of the plan and container format; a reader refuses a newer one."""

_SERIAL_BYTES = 1 << 20

Postfix = tuple[int | str, ...]
"""A dimension as a postfix program of `core.dims`: ints, "$N" for symbol N, and operators."""

BufferKind = Literal["weight", "packed", "shape", "input", "output", "arena", "workspace", "counters", "host"]
ControlKind = Literal["If", "Loop", "Scan"]
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True)
class DimAttr:
    """A dimension in a host step's attributes; becomes an int when the segment is bound."""

    program: Postfix


Attr = None | bool | int | float | str | DType | DimAttr | tuple["Attr", ...]
"""An attribute of a host step."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of memory of one program.

    `id` is its position in `Program.buffers`; `size` counts elements of `dtype` (a workspace is
    `u8`). Kinds:

    - `weight`, `packed`, `shape`: read-only, found by `name` (see the module docstring); raw
      `weight` buffers are aligned to their element only, the others to 64 bytes.
    - `input`: the caller's array, read in place, aligned to its element only. `output`: fresh or
      bound by the caller.
    - `arena`: placed by lifetime; contents are undefined before the first write. `workspace`: the
      same, live during the steps that name it only.
    - `counters`: zero when a context is made, and zero again after each step that uses it (CUDA).
    - `host`: allocated by the host or control step that writes it: data-dependent sizes, strings,
      sequences. `size` may mention the symbols that the writer defines.

    `alias` is the id of another buffer whose storage this one shares (in-place results; an `output`
    that aliases an `input` updates the caller's array). The lifetimes of both are joined; it must
    not be larger than the other.
    """

    id: int
    kind: BufferKind
    dtype: str
    size: Postfix
    name: str = ""
    alias: int | None = None


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as a view of a buffer; shape, strides and offset count elements of `dtype`.

    `strides` None means row-major dense. `shape` None is an opaque host object (a sequence) and
    needs a `host` buffer.
    """

    buffer: int
    dtype: str
    shape: tuple[Postfix, ...] | None
    strides: tuple[Postfix, ...] | None = None
    offset: Postfix = (0,)


@dataclass(frozen=True, slots=True)
class Port:
    """A named input or output of a program, dense in memory.

    `order` () means that the caller's array is the tensor. Else it names the caller's axes from outermost to innermost in
    memory, and axis i of the tensor is axis order[i] of the caller's array: (0, 2, 3, 1) for images with channels last.
    """

    name: str
    tensor: TensorRef
    order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorMapArg:
    """What a tensor descriptor describes: shape and strides in elements (the last stride is 1), and the tile of one copy."""

    shape: tuple[Postfix, ...]
    strides: tuple[Postfix, ...]
    block: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Arg:
    """One pointer argument of a kernel: a buffer and an offset in bytes; with `map`, a tensor descriptor at that address."""

    buffer: int
    offset: Postfix = (0,)
    map: TensorMapArg | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call of a native segment: `kernel(tid, nt, args, dims)`.

    Steps of one `lane` follow one another; `waits` names steps of other lanes of the segment, by
    position, that must be over first. What a step does not follow from may run beside it (see
    `engine.order`). `max_threads` 0 means the whole team. `origin` holds the names of the ONNX nodes.
    `grid` counts the programs of a CUDA kernel along three axes.
    """

    kernel: str
    args: tuple[Arg, ...]
    dims: tuple[Postfix, ...] = ()
    max_threads: int = 0
    origin: tuple[str, ...] = ()
    tactic: str = ""
    grid: tuple[Postfix, ...] = ()
    lane: int = 0
    waits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SymbolDef:
    """How a host or control step defines a symbol.

    `output` None: element `index` of the first input, flattened (BindSymbols). Otherwise the extent
    of axis `index` of that output.
    """

    symbol: str
    index: int
    output: int | None = None


@dataclass(frozen=True, slots=True)
class NativeSegment:
    """A straight-line table of kernel steps, run in one native call.

    The order is one in which they may run; on a GPU lanes run beside each other. All lanes start with the segment, and it ends
    with the last of them.
    """

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class HostSegment:
    """One call of `reference.lookup(op)(*inputs, **attrs)`.

    None among the inputs is an absent optional input; None among the outputs is a result that
    nobody reads. `op` "BindSymbols" calls nothing: it only defines symbols from its input.
    """

    op: str
    inputs: tuple[TensorRef | None, ...]
    outputs: tuple[TensorRef | None, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    defines: tuple[SymbolDef, ...] = ()
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ControlSegment:
    """If, Loop or Scan. Captures are the last inputs of the segment and of every region, in the
    same order.

    If:   inputs (condition, captures...); regions (then, else) take (captures...) and give the
          outputs.
    Loop: inputs (trip count | None, condition | None, carried..., captures...); the region takes
          (iteration i64, condition bool, carried..., captures...) and gives (condition, carried...,
          scanned...); the outputs are (final carried..., stacked scanned...).
    Scan: inputs (state..., scan inputs..., captures...); the region takes (state..., slices...,
          captures...) and gives (state..., scanned...); the outputs are (final state..., stacked
          scanned...).

    `carried` counts carried values or states, `scan_inputs` the scan inputs. Axes and directions (1
    = reversed) have one entry per scan input and per scan output. Symbols of a region come from the
    enclosing program, and from the declared shapes of the region's own inputs where they are new.
    """

    kind: ControlKind
    regions: tuple[Program, ...]
    inputs: tuple[TensorRef | None, ...]
    outputs: tuple[TensorRef | None, ...]
    carried: int = 0
    scan_inputs: int = 0
    scan_input_axes: tuple[int, ...] = ()
    scan_input_directions: tuple[int, ...] = ()
    scan_output_axes: tuple[int, ...] = ()
    scan_output_directions: tuple[int, ...] = ()
    defines: tuple[SymbolDef, ...] = ()
    origin: tuple[str, ...] = ()


Segment = NativeSegment | HostSegment | ControlSegment


@dataclass(frozen=True, slots=True)
class Tap:
    """A value that can be copied out: `tensor` holds it right after step `step` of segment
    `segment`.

    `step` is 0 for host and control segments. `name` is the user's name of the value.
    """

    name: str
    tensor: TensorRef
    segment: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """Buffers and segments. `inputs` and `outputs` name the tensors that go in and come out, in
    order.

    An output that is not a whole `output` buffer of its own (another kind, strided, or a buffer that
    an earlier output has) is copied out at the end.
    """

    buffers: tuple[Buffer, ...] = ()
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    segments: tuple[Segment, ...] = ()
    taps: tuple[Tap, ...] = ()


@dataclass(frozen=True, slots=True)
class Symbol:
    """A shape symbol of the inputs with its inclusive bounds (`upper` None: no bound)."""

    name: str
    lower: int = 0
    upper: int | None = None


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """An original initializer: its name, dtype and shape; refit speaks these names."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """A weight whose value the build relied on: refit must keep it.

    `sha256` is the hex digest of the weight's bytes, row-major (see `digest`); `reason` names the
    rewrite that read it.
    """

    weight: str
    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class CudaLaunch:
    """What the compiler says of a CUDA kernel, as the launch needs it.

    `threads` per block, `shared` bytes of dynamic shared memory, `scratch` bytes of global memory per block (aligned to
    `scratch_align`), `pdl`: it waits for the kernel ahead of it by itself. `descriptors` has one record per tensor-map parameter, in
    order: `swizzle`, `element` (bytes), `kind` (CUtensorMapDataType) and `box`, the tile of one hardware copy.
    """

    threads: int
    shared: int
    scratch: int = 0
    scratch_align: int = 1
    pdl: bool = False
    cluster: int = 1
    descriptors: tuple[Mapping[str, Json], ...] = ()


@dataclass(frozen=True, slots=True)
class KernelRef:
    """An exported kernel: its entry name, and how many pointers and dims it takes.

    `launch` is given for kernels of a GPU. `library` names the library that a step calls instead ("cublaslt", "cudnn"), and
    `call` says what, as data that `device.cuda` understands.

    `writes` are the positions of the pointers that it writes through; None if it may be any.

    `extents`, where given, bounds what the kernel touches: bytes from each pointer, as postfix
    programs over `d0`, `d1`, ... (its dims). Binding then refuses a step that would leave its
    buffers.
    """

    entry: str
    pointers: int
    dims: int
    extents: tuple[Postfix, ...] | None = None
    launch: CudaLaunch | None = None
    library: str = ""
    call: Mapping[str, Json] = field(default_factory=dict)
    writes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled model for one target, without its weights and its machine code.

    `arch` ("x86_64", "aarch64"; "" = any) and `cpu_flags` (as Linux names them) are what the machine
    must have; they are checked before any kernel is loaded.
    """

    target: str
    main: Program
    symbols: tuple[Symbol, ...] = ()
    weights: tuple[WeightSpec, ...] = ()
    guards: tuple[Guard, ...] = ()
    weights_program: Program = field(default_factory=Program)
    shapes_program: Program = field(default_factory=Program)
    kernels: tuple[KernelRef, ...] = ()
    arch: str = ""
    cpu_flags: tuple[str, ...] = ()
    meta: Mapping[str, Json] = field(default_factory=dict)
    certificate: Mapping[str, Json] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs of the model."""
        return self.main.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs of the model."""
        return self.main.outputs


def postfix(dim: Dim) -> Postfix:
    """The postfix program of a dimension."""
    return (dim,) if isinstance(dim, int) else tuple(to_program(dim))


def attribute(value: object) -> Attr:
    """An IR attribute (scalar, DType, Dim, nested tuples or lists) as a plan attribute."""
    if value is None or isinstance(value, bool | int | float | str | DType | DimAttr):
        return value
    if isinstance(value, tuple | list):
        return tuple(attribute(v) for v in value)
    return DimAttr(tuple(to_program(value)))  # type: ignore[arg-type]  # what is left is an Expr


def digests(arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """`digest` of each, on all CPUs of the machine."""
    if sum(a.nbytes for a in arrays.values()) < _SERIAL_BYTES:
        return {name: digest(array) for name, array in arrays.items()}
    from concurrent.futures import ThreadPoolExecutor  # a trusted, warm start does without it

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(arrays, pool.map(digest, arrays.values()), strict=True))


WEIGHTS_KEY = "weights_program"
"""Where a plan's metadata keep the hash of its weights program and of the kernels that this calls."""


def weights_key(plan: Plan) -> str:
    """The hash under which packed weights are cached, as the builder stated it; empty if it did not."""
    stated = plan.meta.get(WEIGHTS_KEY)
    return stated if isinstance(stated, str) else ""


def digest(array: NDArray[Any]) -> str:
    """Hex SHA-256 of an array's elements, row-major; strings count as their UTF-8 JSON list."""
    if array.dtype == object:
        text = json.dumps([str(v) for v in array.reshape(-1)], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()
    dense = np.asarray(array, order="C").reshape(-1)
    return hashlib.sha256(dense.view(np.uint8).data).hexdigest()
