"""TopK by rank and by radix: exact, with ties to the lower position, in any layout.

*Rank*: each element counts those before it in the order; those with a rank below k are written there. One kernel, work that grows
with the square of the axis. *Radix*: one program per row finds the key of the k-th element digit by digit from histograms and keeps the
positions of what is not below it; a second kernel ranks the k kept ones. Elements are compared as integer keys whose order is
theirs: -0 equals 0, and NaN is the largest value.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.codegen import scalar
from dovetail.codegen.index import power_of_two
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Emitted, Operand, Step
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div, product
from dovetail.core.dtypes import I32, U64, DType
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.writer import Rows, Writer, scaled

RANK, RADIX = "rank", "radix"
_ROWS, _COLUMNS = 64, 64  # of one block of comparisons; half as many columns of 64 bits
_SHORT, _COMPARED = 32, 4096  # rows up to this long are ranked many at a time, with so many comparisons per program
_CHUNK = 2048  # elements that a program of the radix form reads at a time; half as many of 64 bits
_DIGIT = 8


@dataclass(frozen=True)
class TopK:
    """A TopK: operands with their layouts.

    Attributes:
        x: the input.
        values, indices: the results.
        axis, k, largest: as in the op.
    """

    x: TensorType
    values: TensorType
    indices: TensorType
    axis: int
    k: Dim
    largest: bool

    @property
    def extent(self) -> Dim:
        """Elements to choose from."""
        return self.x.shape[self.axis]

    @property
    def axes(self) -> tuple[tuple[int, Dim], ...]:
        """The other axes: a row for each of their positions."""
        return tuple((a, d) for a, d in enumerate(self.x.shape) if a != self.axis)

    @property
    def rows(self) -> Dim:
        """How many rows there are."""
        return product(d for _, d in self.axes)


def key_bits(dtype: DType) -> int:
    """Width of the keys of a type."""
    return 64 if dtype.bits == 64 or dtype.name == "u32" else 32


def key(value: str, dtype: DType, largest: bool) -> tuple[list[str], str]:
    """(statements, expression): the signed integer whose order, from largest down, is that of the elements; `value` is a variable.

    Statements define variables that start with the value's name.
    """
    name = f"{value}_k"
    bits = key_bits(dtype)
    wide = f"tl.int{bits}"
    if dtype.is_float:
        most = (1 << (bits - 1)) - 1
        lines = [
            f"{value}_w = {value}.to(tl.float{bits})",
            f"{name} = tl.where({value}_w == 0, 0.0, {value}_w).to({wide}, bitcast=True)",
            f"{name} = tl.where({name} < 0, {name} ^ {most}, {name})",
            f"{name} = tl.where({value}_w != {value}_w, {most}, {name})",
        ]
    elif dtype == U64:
        lines = [f"{name} = {value}.to(tl.int64, bitcast=True) ^ {-(1 << 63)}"]
    else:
        lines = [f"{name} = {value}.to({wide})"]
    return lines, name if largest else f"(-1 - {name})"


def emit(shape: TopK, form: str, target: CudaTarget, tactic: str) -> Emitted:
    """The kernels of one form."""
    config: Config = (("form", form),)
    if form == RANK and isinstance(shape.extent, int) and shape.extent <= _SHORT:
        return Emitted((_step(_short(shape, shape.extent, target, tactic, config)),))
    if form == RANK:
        return Emitted((_step(_rank(shape, shape.extent, False, target, tactic, config)),))
    kept = shape.rows * shape.k * 4
    first = _radix(shape, target, tactic, config)
    second = _rank(shape, shape.k, True, target, tactic, config)
    return Emitted((_step(first), _step(second)), (kept,))


def _step(kernel: Kernel) -> Step:
    return Step(kernel, tuple(Operand(p.role, p.index) for p in kernel.params))


class _Row:
    """Addresses of one row of each operand."""

    def __init__(self, shape: TopK, w: Writer, lines: list[str]) -> None:
        self.shape, self.w, self.lines = shape, w, lines
        self.rows = Rows("row", shape.axes)

    def base(self, operand: Operand, type_: TensorType) -> str:
        """Address of the row's first element."""
        offset = self.rows.offset(self.w, type_.placement.strides(type_.shape), self.lines)
        name = self.w.fresh("base")
        self.lines.append(f"{name} = {self.w.pointer(operand, type_)} + {offset if offset != '0' else 'row * 0'}")
        return name

    def at(self, base: str, type_: TensorType, index: str) -> str:
        """Address of elements along the axis."""
        step = scaled(self.w, index, type_.placement.strides(type_.shape)[self.shape.axis])
        return f"{base} + {step if step != '0' else f'{index} * 0'}"


def _short(shape: TopK, extent: int, target: CudaTarget, tactic: str, config: Config) -> Kernel:
    """Ranks the elements of several short rows at once: experts, boxes' classes."""
    w = Writer(target)
    width = max(2, power_of_two(extent))
    block = _COMPARED // width**2
    lines = [*w.wait, f"row = tl.program_id(0) * {block} + tl.arange(0, {block})", f"i = tl.arange(0, {width})[None, :]"]
    row = _Row(shape, w, lines)
    x = row.base(Operand("in", 0), shape.x)
    lines.append(f"inside = (row < {w.dim(shape.rows)})[:, None] & (i < {extent})")
    lines.append(f"a = tl.load({row.at(f'{x}[:, None]', shape.x, 'i')}, mask=inside, other=0)")
    statements, text = key("a", shape.x.dtype, shape.largest)
    lines += [
        *statements,
        f"ka = {text}",
        "other = ka[:, None, :]",
        "own = ka[:, :, None]",
        f"j = tl.arange(0, {width})",
        "before = (other > own) | ((other == own) & (j[None, None, :] < j[None, :, None]))",
        f"rank = tl.sum((before & (j < {extent})[None, None, :]).to(tl.int32), 2)",
        *w.release,
    ]
    lines += _ranked(shape, w, row, "inside", "(rank * 0 + i)", across="[:, None]")
    return w.kernel(
        lines, grid=(ceil_div(shape.rows, block), 1, 1), warps=4, stages=1, tactic=tactic, config=config,
        flops=shape.rows * width**2, bytes=shape.rows * (extent + 2 * shape.k) * shape.x.dtype.itemsize,
    )  # fmt: skip


def _rank(shape: TopK, count: Dim, kept: bool, target: CudaTarget, tactic: str, config: Config) -> Kernel:
    """Ranks the elements of a row, or (`kept`) those whose positions the radix form has kept."""
    w = Writer(target)
    size = w.dim(count)
    columns = _COLUMNS * 32 // key_bits(shape.x.dtype)
    blocks = w.dim(ceil_div(count, _ROWS))
    lines = [*w.wait, "pid = tl.program_id(0)", f"row = pid // {blocks}", f"i = pid % {blocks} * {_ROWS} + tl.arange(0, {_ROWS})"]
    row = _Row(shape, w, lines)
    x = row.base(Operand("in", 0), shape.x)
    if kept:
        lines.append(f"chosen = {w.pointer(Operand('temp', 0), I32)} + row * {size}")

    def load(index: str, value: str) -> tuple[list[str], str]:
        mask = f", mask={index} < {size}, other=0"
        where = index
        found = []
        if kept:
            where = f"{value}_p"
            found.append(f"{where} = tl.load(chosen + {index}{mask})")
        found.append(f"{value} = tl.load({row.at(x, shape.x, where)}{mask})")
        statements, text = key(value, shape.x.dtype, shape.largest)
        return found + statements, text

    own, own_key = load("i", "a")
    other, other_key = load("j", "b")
    lines += own
    lines += [f"ka = {own_key}", f"rank = tl.zeros(({_ROWS},), tl.int32)", f"for start in range(0, {size}, {columns}):"]
    inner = [
        f"j = start + tl.arange(0, {columns})",
        *other,
        f"kb = {other_key}",
        "before = (kb[None, :] > ka[:, None]) | ((kb[None, :] == ka[:, None]) & (j[None, :] < i[:, None]))",
        f"rank += tl.sum((before & (j < {size})[None, :]).to(tl.int32), 1)",
    ]
    lines += ["    " + line for line in inner]
    lines += w.release
    lines += _ranked(shape, w, row, f"(i < {size})", "a_p" if kept else "i")
    return w.kernel(
        lines, grid=(shape.rows * ceil_div(count, _ROWS), 1, 1), warps=4, stages=1, tactic=tactic, config=config,
        flops=shape.rows * count * count, bytes=shape.rows * (count + 2 * shape.k) * shape.x.dtype.itemsize,
    )  # fmt: skip


def _ranked(shape: TopK, w: Writer, row: _Row, inside: str, position: str, across: str = "") -> list[str]:
    """Stores of the elements `a` at the places that their `rank` says, as far as these belong to the results.

    Args:
        inside: which elements there are.
        position: their places in the row.
        across: how a row's address becomes part of a block.
    """
    values, indices = row.base(Operand("out", 0), shape.values), row.base(Operand("out", 1), shape.indices)
    mask = f"mask={inside} & (rank < {w.dim(shape.k)})"
    return [
        f"tl.store({row.at(f'{values}{across}', shape.values, 'rank')}, a, {mask})",
        f"tl.store({row.at(f'{indices}{across}', shape.indices, 'rank')}, {position}.to(tl.int64), {mask})",
    ]


def _radix(shape: TopK, target: CudaTarget, tactic: str, config: Config) -> Kernel:
    """Keeps the positions of the k first elements of a row, in the order of their positions."""
    w = Writer(target)
    bits = key_bits(shape.x.dtype)
    size, k = w.dim(shape.extent), w.dim(shape.k)
    lines = [*w.wait, "row = tl.program_id(0)"]
    row = _Row(shape, w, lines)
    x = row.base(Operand("in", 0), shape.x)
    chosen = w.pointer(Operand("temp", 0), I32)
    statements, text = key("a", shape.x.dtype, shape.largest)
    unsigned = f"tl.uint{bits}"
    chunk = _CHUNK * 32 // bits
    read = [
        f"i = start + tl.arange(0, {chunk})",
        f"a = tl.load({row.at(x, shape.x, 'i')}, mask=i < {size}, other=0)",
        *statements,
        # As an unsigned number of the same order.
        f"u = (({text}) ^ {-(1 << (bits - 1))}).to({unsigned}, bitcast=True)",
    ]
    bins = 1 << _DIGIT
    lines += [
        f"digit = tl.arange(0, {2 * bins})",
        f"need = {k} + tl.full((), 0, tl.int32)",
        f"prefix = tl.full((), 0, {unsigned})",
    ]
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        lines += [f"histogram = tl.zeros(({2 * bins},), tl.int32)", f"for start in range(0, {size}, {chunk}):"]
        same = f" & ((u >> {shift + _DIGIT}) == prefix)" if shift + _DIGIT < bits else ""
        inner = [
            *read,
            # What does not count falls into a bin beyond the digits.
            f"bin = tl.where((i < {size}){same}, ((u >> {shift}) & {bins - 1}).to(tl.int32), {bins})",
            f"histogram += tl.histogram(bin, {2 * bins})",
        ]
        lines += ["    " + line for line in inner]
        lines += [
            f"histogram = tl.where(digit < {bins}, histogram, 0)",
            "reached = tl.cumsum(histogram, 0, reverse=True)",
            "found = tl.max(tl.where(reached >= need, digit, 0), 0)",
            "need = need - tl.sum(tl.where(digit > found, histogram, 0), 0)",
            f"prefix = (prefix << {_DIGIT}) | found.to({unsigned})" if shift + _DIGIT < bits else f"prefix = found.to({unsigned})",
        ]
    lines += ["taken = tl.full((), 0, tl.int32)", "equals = tl.full((), 0, tl.int32)", f"for start in range(0, {size}, {chunk}):"]
    inner = [
        *read,
        f"equal = ((i < {size}) & (u == prefix)).to(tl.int32)",
        "order = equals + tl.cumsum(equal, 0) - equal",
        f"take = (((i < {size}) & (u > prefix)) | ((equal != 0) & (order < need))).to(tl.int32)",
        "place = taken + tl.cumsum(take, 0) - take",
        f"tl.store({chosen} + row * {k} + place, i, mask=(take != 0) & (place < {k}))",
        "equals += tl.sum(equal, 0)",
        "taken += tl.sum(take, 0)",
    ]
    lines += ["    " + line for line in inner]
    lines += w.release
    passes = bits // _DIGIT + 1
    return w.kernel(
        lines, grid=(shape.rows, 1, 1), warps=8, stages=1, tactic=tactic, config=config,
        flops=shape.rows * shape.extent * 8 * passes, bytes=shape.rows * shape.extent * shape.x.dtype.itemsize,
    )  # fmt: skip


def reason(x: TensorType) -> str | None:
    """None if elements of such a type have keys, else why not."""
    if x.dtype.name not in scalar.DTYPES or x.dtype.name == "bool":
        return f"elements are {x.dtype}"
    return None


def cost(shape: TopK, form: str, rows: int, extent: int, k: int, multiprocessors: int) -> float:
    """Microseconds of a form by a simple model, for known sizes."""
    width = key_bits(shape.x.dtype) // 32
    compare = 9000.0 / width  # comparisons of one multiprocessor in a microsecond
    if form == RANK:
        programs = max(1, rows * -(-extent // _ROWS))
        return 2 + -(-programs // (4 * multiprocessors)) * 4 * _ROWS * extent / compare
    passes = key_bits(shape.x.dtype) // _DIGIT + 1
    waves = -(-rows // (2 * multiprocessors))
    second = cost(shape, RANK, rows, k, k, multiprocessors)
    return 3 + waves * passes * -(-extent // _CHUNK) * 1.0 + second

