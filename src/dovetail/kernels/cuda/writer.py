"""What every Triton template shares: parameters and run-time dims, index arithmetic over merged rows, and the epilogue of a tile.

    w = Writer(target)
    a = w.pointer(Operand("in", 0), group.inputs[0].tensor)       # "p0"
    rows = Rows("rm", ((0, n), (2, h), (3, w)))                     # rm = (image * h + y) * w + x
    lines = [...]
    early, late = tile_epilogue(w, group, rows, (1, "rn"), "acc", "rm < ...", "rn < ...")
    kernel = w.kernel(lines, grid=(...), warps=4, stages=3, tactic="gemm", config=config)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dovetail.codegen import triton_scalar
from dovetail.codegen.index import is_multiple
from dovetail.codegen.kernel import Kernel, Launch, Param, TensorMap, make_triton_kernel
from dovetail.codegen.tactic import Config, Group, Operand
from dovetail.codegen.target import CudaTarget
from dovetail.codegen.triton_epilogue import epilogue_code
from dovetail.core.dims import Dim, evaluate, product, sym, symbols
from dovetail.core.dtypes import DType
from dovetail.ir.graph import Time, Value
from dovetail.ir.types import TensorType
from dovetail.kernels.fused import Side, broadcast_strides, sides

ALIGNMENT = 16
"""Bytes of one wide access; the runtime gives buffers that start at a multiple of it."""

LINE_BYTES, MAX_LINES = 128, 4096
"""What a prefetch asks for, and of how many lines a program does so at most."""


def is_aligned(type_: TensorType) -> bool:
    """Whether the logical element (0, 0, …) of a value lies at a multiple of 16 bytes."""
    return is_multiple(type_.placement.base(type_.shape) * type_.dtype.itemsize, ALIGNMENT)


def known_early(group: Group, position: int) -> bool:
    """Whether a kernel may read an operand before the one ahead of it has ended: another program made it, from weights alone."""
    return group.inputs[position].time == Time.WEIGHT and group.outputs[0].time != Time.WEIGHT


class Writer:
    """One kernel under construction: its parameters by name, in order, and the symbols that its text mentions."""

    def __init__(self, target: CudaTarget) -> None:
        self.target = target
        self.operands: list[Operand] = []
        self._types: list[str] = []
        self._aligned: list[bool] = []
        self._maps: list[TensorMap | None] = []
        self._symbols: dict[str, str] = {}
        self._fresh = 0

    def pointer(self, operand: Operand, type_: TensorType | DType, map: TensorMap | None = None) -> str:
        """A parameter for an operand (the same one for the same operand and map), as its name.

        Args:
            operand: what the kernel gets the address of.
            type_: its type where it is a value, whose layout decides on the alignment; else the element type.
            map: pass a tensor descriptor instead of an address.
        """
        for position, known in enumerate(zip(self.operands, self._maps, strict=True)):
            if known == (operand, map):
                return f"p{position}"
        kind = type_ if isinstance(type_, DType) else type_.dtype
        self.operands.append(operand)
        self._types.append(triton_scalar.pointer_type(kind))
        self._aligned.append(True if isinstance(type_, DType) else is_aligned(type_))
        self._maps.append(map)
        return f"p{len(self.operands) - 1}"

    def dim(self, d: Dim) -> str:
        """A dim as text: a literal, or an expression over run-time parameters."""
        for name in sorted(symbols(d)):
            self._symbols.setdefault(name, f"d{len(self._symbols)}")
        return triton_scalar.dim_text(d, self._symbols)

    def fresh(self, prefix: str) -> str:
        """A new variable name."""
        self._fresh += 1
        return f"{prefix}_{self._fresh}"

    @property
    def wait(self) -> list[str]:
        """What stands before the first access to memory that other kernels use."""
        return ["gdc_wait()"] if self.target.programmatic_launch else []

    @property
    def release(self) -> list[str]:
        """What lets the next kernel start its own preparations."""
        return ["gdc_launch_dependents()"] if self.target.programmatic_launch else []

    def kernel(
        self, body: Sequence[str], *, grid: tuple[Dim, Dim, Dim], warps: int, stages: int, tactic: str, config: Config = (),
        flops: Dim = 0, bytes: Dim = 0, workspace_bytes: Dim = 0, counters: int = 0, helpers: str = "",
    ) -> Kernel:  # fmt: skip
        """The kernel of these statements (indented by their own structure).

        Args:
            helpers: jitted functions in front, named `@ENTRY@_…`.
        """
        names = [f"p{i}" for i in range(len(self.operands))] + list(self._symbols.values())
        text = "\n".join("    " + line for line in body)
        maps = tuple(self._maps) if any(m is not None for m in self._maps) else ()
        return make_triton_kernel(
            f"{helpers}@triton.jit\ndef @ENTRY@({', '.join(names)}):\n{text}\n",
            params=[Param(o.role, o.index) for o in self.operands],
            dims=tuple(sym(name) for name in self._symbols),
            launch=Launch(
                grid, warps, stages, tuple(self._types), tuple(self._aligned), maps, self.target.programmatic_launch, counters
            ),
            workspace_bytes=workspace_bytes, flops=flops, bytes=bytes, tactic=tactic, config=config,
        )  # fmt: skip


@dataclass
class Rows:
    """The rows of a tile: a linear index over some logical axes of the result, the last one fastest.

    Attributes:
        name: variable that holds the linear index of each row of the tile, shape [rows].
        axes: (logical axis, extent), from outermost to innermost.
        parts: variables of the single indices, once something needs them.
    """

    name: str
    axes: tuple[tuple[int, Dim], ...]
    parts: dict[int, str] = field(default_factory=dict)

    @property
    def count(self) -> Dim:
        """How many rows there are."""
        return product(extent for _, extent in self.axes)

    def step(self, strides: Sequence[Dim]) -> Dim | None:
        """The stride of the linear index, where one number says it for all axes."""
        own = [(strides[axis], extent) for axis, extent in self.axes if extent != 1]
        if not own:
            return 0
        even = all(outer == inner * extent for (outer, _), (inner, extent) in pairwise(own))
        return own[-1][0] if even else None

    def split(self, w: Writer, lines: list[str]) -> dict[int, str]:
        """Variables of the indices along each axis; appends what defines them at the first use."""
        if not self.parts:
            rest = self.name
            for position, (axis, extent) in reversed(list(enumerate(self.axes))):
                if extent == 1:
                    self.parts[axis] = "0"
                elif all(e == 1 for _, e in self.axes[:position]):
                    self.parts[axis] = rest
                else:
                    name, quotient = w.fresh("i"), w.fresh("q")
                    lines.append(f"{name} = {rest} % {w.dim(extent)}")
                    lines.append(f"{quotient} = {rest} // {w.dim(extent)}")
                    self.parts[axis], rest = name, quotient
        return self.parts

    def offset(self, w: Writer, strides: Sequence[Dim], lines: list[str]) -> str:
        """The element offset of each row, shape [rows], as text; "0" if they all lie at one place."""
        step = self.step(strides)
        if step is not None:
            return scaled(w, self.name, step)
        parts = self.split(w, lines)
        terms = [scaled(w, parts[axis], strides[axis]) for axis, _ in self.axes]
        kept = [t for t in terms if t != "0"]
        name = w.fresh("o")
        lines.append(f"{name} = {' + '.join(kept) or '0'}")
        return name if kept else "0"


def scaled(w: Writer, index: str, stride: Dim) -> str:
    """`index * stride` as text."""
    if stride == 0 or index == "0":
        return "0"
    return index if stride == 1 else f"{index} * {w.dim(stride)}"


@dataclass(frozen=True)
class TileEpilogue:
    """What stands around the main loop of a template.

    Attributes:
        early: loads of operands known before the run, which may precede the wait for the kernel ahead.
        late: the other loads, the arithmetic and the stores.
    """

    early: list[str]
    late: list[str]


def tile_epilogue(
    w: Writer, group: Group, rows: Rows, column: tuple[int | None, str], acc: str, row_mask: str, column_mask: str,
    base: Sequence[tuple[int, str]] = (), bias: Value | None = None, transposed: bool = False,
    store: Callable[[str], str] | None = None,
) -> TileEpilogue:  # fmt: skip
    """Loads, arithmetic and stores that turn an accumulator tile into the group's results.

    Args:
        w: the kernel.
        group: the group; its anchor's result has the logical axes that `rows`, `column` and `base` name.
        rows, row_mask: the tile's rows, and the text [rows] of which are inside ("" = all).
        column, column_mask: (logical axis, or None for a single column without one; variable [columns]) of the tile's columns, likewise.
        acc: fp32 variable [rows, columns]; [columns, rows] if `transposed`.
        base: (logical axis, scalar variable) of axes that are fixed for a tile: batches.
        bias: the body input that the anchor itself adds along `column`: loaded and added first.
        transposed: the tile lies the other way round.
        store: the statement that writes the only result, given the variable of its compute dtype, instead of a store by pointers.
    """
    anchor = group.anchor
    assert anchor is not None
    early: list[str] = []
    late: list[str] = []
    row_index, column_index = ("[None, :]", "[:, None]") if transposed else ("[:, None]", "[None, :]")
    if bias is not None:
        lines = early if known_early(group, bias.index) else late
        kind = group.inputs[bias.index].tensor
        name = w.pointer(Operand("in", bias.index), kind)
        stride = kind.placement.strides(kind.shape)[-1]
        loaded = w.fresh("b")
        if stride == 0:  # one number for all columns
            lines.append(f"{loaded} = {_widen(f'tl.load({name})', kind.dtype)}")
        else:
            mask = f", mask={column_mask}, other=0" if column_mask else ""
            lines.append(f"{loaded} = {_widen(f'tl.load({name} + {scaled(w, column[1], stride)}{mask})', kind.dtype)}{column_index}")
        late.append(f"{acc} = {acc} + {loaded}")
    names = {anchor.output: acc}
    place = _Place(w, rows, column, row_mask, column_mask, tuple(base), row_index, column_index)
    for side in sides(group):
        known = known_early(group, side.position) and all(side.strides[axis] == 0 for axis, _ in rows.axes)
        names[side.value] = _load(place, group, side, early if known else late)
    code = epilogue_code(group.body, names, prefix=f"{acc}_e")
    late += code.statements
    for position, (value, result) in enumerate(zip(group.outputs, code.results, strict=True)):
        kind = value.tensor
        if store is not None:
            late.append(store(result))
            continue
        name = w.pointer(Operand("out", position), kind)
        offset, mask = place.address(broadcast_strides(kind, anchor.output.tensor.rank), late, whole=True)
        stored = triton_scalar.narrow(result, kind.dtype)
        late.append(f"tl.store({name} + {offset}, {stored}{f', mask={mask}' if mask else ''})")
    return TileEpilogue(early, late)


def _widen(text: str, kind: DType) -> str:
    return triton_scalar.widen(text, kind)


@dataclass(frozen=True)
class _Place:
    """Where a tile lies in the result."""

    w: Writer
    rows: Rows
    column: tuple[int | None, str]
    row_mask: str
    column_mask: str
    base: tuple[tuple[int, str], ...]
    row_index: str
    column_index: str

    def address(self, strides: Sequence[Dim], lines: list[str], whole: bool = False) -> tuple[str, str]:
        """(offset, mask) of a value with these strides along the result's axes.

        Broadcast axes take no index, unless the offsets of the `whole` tile are asked for.
        """
        w = self.w
        terms, masks = [], []
        for axis, name in self.base:
            if strides[axis] != 0:
                terms.append(scaled(w, name, strides[axis]))
        row = self.rows.offset(w, strides, lines)
        across = self.column[0]
        column = scaled(w, self.column[1], 0 if across is None else strides[across])
        if whole:
            row = f"{self.rows.name} * 0" if row == "0" else row
            column = f"{self.column[1]} * 0" if column == "0" else column
        if row != "0":
            terms.append(f"({row}){self.row_index}")
            masks += [f"({self.row_mask}){self.row_index}"] if self.row_mask else []
        if column != "0":
            terms.append(f"({column}){self.column_index}")
            masks += [f"({self.column_mask}){self.column_index}"] if self.column_mask else []
        return "(" + (" + ".join(terms) or "0") + ")", " & ".join(masks)


def _load(place: _Place, group: Group, side: Side, lines: list[str]) -> str:
    kind = group.inputs[side.position].tensor
    name = place.w.pointer(Operand("in", side.position), kind)
    offset, mask = place.address(side.strides, lines)
    loaded = place.w.fresh("s")
    guarded = f", mask={mask}, other=0" if mask else ""
    lines.append(f"{loaded} = {_widen(f'tl.load({name} + {offset}{guarded})', kind.dtype)}")
    return loaded


def sizes_of(dims: Sequence[Dim], given: int) -> dict[str, int]:
    """Values for the symbols of some dims where no better ones are known: `given` for each."""
    return {name: given for d in dims for name in symbols(d)}


def typical(d: Dim, given: int = 1) -> int:
    """A dim as a number for heuristics, its symbols taken as `given`."""
    return evaluate(d, sizes_of([d], given))
