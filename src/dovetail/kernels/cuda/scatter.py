"""ScatterElements and ScatterND without an order of arrival: the same results in every run.

Without a reduction the last update of an element wins. Few updates: each element of the result looks for the last one of its own. Many:
a kernel marks each element with the largest number of an update that goes there (integer maxima do not depend on their order),
another one writes. With a reduction the updates of an element are combined in their order, by the thread that owns it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.codegen import scalar, triton_scalar
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Emitted, Operand, Step
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div, product
from dovetail.core.dtypes import I32, DType
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.writer import Writer

MOST_SEARCHED = 32  # updates that every element of a result may look through
MOST_IN_ORDER = 1024  # updates that one thread may combine one after the other
_BLOCK = 1024

X, INDICES, UPDATES, OUT = Operand("in", 0), Operand("in", 1), Operand("in", 2), Operand("out", 0)


@dataclass(frozen=True)
class Scatter:
    """A scatter of row-major operands.

    ScatterElements: updates have the shape of the indices, whose extents besides the axis may be smaller than the result's.
    ScatterND: result [places, inner], indices [count, width], updates [count, inner].

    Attributes:
        x, indices, updates: operands.
        axis: of ScatterElements, None for ScatterND.
        reduction: none, add, mul, max or min.
        positions: of x, indices and updates among the group's inputs.
    """

    x: TensorType
    indices: TensorType
    updates: TensorType
    axis: int | None
    reduction: str
    positions: tuple[int, int, int]

    @property
    def width(self) -> int:
        """Axes of the result that an index of ScatterND names."""
        last = self.indices.shape[-1]
        assert self.axis is None and isinstance(last, int)
        return last

    @property
    def inner(self) -> Dim:
        """Elements of a slice that moves as one."""
        return product(self.x.shape[self.width :]) if self.axis is None else product(self.x.shape[self.axis + 1 :])

    @property
    def count(self) -> Dim:
        """Updates that may meet: those of one line along the axis, or all slices."""
        return product(self.indices.shape[:-1]) if self.axis is None else self.indices.shape[self.axis]


def reason(shape: Scatter) -> str | None:
    """None if these kernels compute it, else why not."""
    for t in (shape.x, shape.indices):
        if t.dtype.name not in scalar.DTYPES:
            return f"an operand is {t.dtype}"
    if shape.axis is None and shape.width == 0:
        return "indices name no axis"
    if shape.reduction == "none":
        return None
    if shape.x.dtype.name == "bool":
        return "bools are not combined"
    if not isinstance(shape.count, int) or shape.count > MOST_IN_ORDER:
        return f"up to {shape.count} updates of an element are combined one after the other, expected at most {MOST_IN_ORDER}"
    return None


def emit(shape: Scatter, target: CudaTarget, tactic: str) -> Emitted:
    """The kernels of a scatter."""
    if shape.reduction != "none":
        return Emitted((_step(_in_order(shape, target, tactic)),))
    if isinstance(shape.count, int) and shape.count <= MOST_SEARCHED:
        return Emitted((_step(_search(shape, target, tactic)),), in_place=((0, shape.positions[0]),))
    places = shape.x.size if shape.axis is not None else product(shape.x.shape[: shape.width])
    kernels = (_clear(places, target, tactic), _mark(shape, target, tactic), _write(shape, target, tactic))
    return Emitted(tuple(map(_step, kernels)), (places * 4,), ((0, shape.positions[0]),))


def _step(kernel: Kernel) -> Step:
    return Step(kernel, tuple(Operand(p.role, p.index) for p in kernel.params))


class _Lines:
    """A kernel over a linear index, with what all of them need."""

    def __init__(self, target: CudaTarget, tactic: str, total: Dim, block: int = _BLOCK) -> None:
        self.w, self.tactic, self.total, self.block = Writer(target), tactic, total, block
        self.lines = [*self.w.wait, f"e = tl.program_id(0) * {block} + tl.arange(0, {block})"]
        self.inside = f"e < {self.w.dim(total)}"

    def add(self, *lines: str) -> None:
        """Append statements."""
        self.lines += lines

    def kernel(self, bytes: Dim) -> Kernel:
        """The kernel, one program per block."""
        return self.w.kernel(
            [*self.lines, *self.w.release], grid=(ceil_div(self.total, self.block), 1, 1), warps=4, stages=1, tactic=self.tactic,
            bytes=bytes,
        )  # fmt: skip

    def divided(self, index: str, by: Dim) -> tuple[str, str]:
        """(quotient, remainder) of an index as texts."""
        if by == 1:
            return index, f"({index}) * 0"
        return f"({index}) // {self.w.dim(by)}", f"({index}) % {self.w.dim(by)}"

    def position(self, name: str, loaded: str, dtype: DType, extent: Dim) -> None:
        """An index read from memory: negative ones count from the end; always inside the axis, as in gathers."""
        size = self.w.dim(extent)
        self.add(f"{name} = {loaded}.to(tl.int64)")
        if dtype.kind == "int":
            self.add(f"{name} = tl.where({name} < 0, {name} + {size}, {name})")
        self.add(f"{name} = tl.minimum(tl.maximum({name}, 0), {size} - 1).to(tl.int32)")

    def place(self, shape: Scatter, update: str, mask: str = "") -> str:
        """The place that slice `update` of a ScatterND goes to, as a variable."""
        pointer = self.w.pointer(Operand("in", shape.positions[1]), shape.indices)
        guard = f", mask={mask}, other=0" if mask else ""
        total = ""
        for d in range(shape.width):
            part = self.w.fresh("part")
            self.position(part, f"tl.load({pointer} + {update} * {shape.width} + {d}{guard})", shape.indices.dtype, shape.x.shape[d])
            total = f"({total}) * {self.w.dim(shape.x.shape[d])} + {part}" if total else part
        name = self.w.fresh("place")
        self.add(f"{name} = {total}")
        return name


def _operands(shape: Scatter, k: _Lines) -> tuple[str, str, str]:
    """(x, updates, out) parameters."""
    w = k.w
    return (
        w.pointer(Operand("in", shape.positions[0]), shape.x),
        w.pointer(Operand("in", shape.positions[2]), shape.updates),
        w.pointer(OUT, shape.x.with_layout(None)),
    )


def _moved(shape: Scatter) -> Dim:
    return (2 * shape.x.size + shape.updates.size) * shape.x.dtype.itemsize


def _line(
    shape: Scatter, k: _Lines, index: str, extents: tuple[Dim, ...], into: tuple[Dim, ...], hidden: str = ""
) -> tuple[str, str, str]:
    """Of ScatterElements: a linear index over `extents`, split by axis.

    Returns:
        (index along the axis, offset in a tensor of shape `into` with `hidden` along the axis, whether it lies inside of it) as texts.
    """
    assert shape.axis is not None
    rest, along = index, "0"
    offset: list[str] = []
    inside: list[str] = []
    parts: list[str] = []
    for axis in reversed(range(len(extents))):
        if axis == 0:
            own = rest
        else:
            rest, own = k.divided(rest, extents[axis])
        name = k.w.fresh("x")
        k.add(f"{name} = {own}")
        parts.append(name)
    parts.reverse()
    step: Dim = 1
    for axis in reversed(range(len(extents))):
        if axis == shape.axis:
            along = parts[axis]
            offset.append(f"({hidden or f'{index} * 0'}) * {k.w.dim(step)}")
        else:
            offset.append(f"{parts[axis]} * {k.w.dim(step)}")
            if into[axis] != extents[axis]:
                inside.append(f"({parts[axis]} < {k.w.dim(into[axis])})")
        step = step * into[axis]
    return along, " + ".join(offset), " & ".join(inside)


def _search(shape: Scatter, target: CudaTarget, tactic: str) -> Kernel:
    """Each element of the result looks for the last of few updates that goes there."""
    k = _Lines(target, tactic, shape.x.size)
    x, updates, out = _operands(shape, k)
    k.add(f"y = tl.load({x} + e, mask={k.inside}, other=0)")
    if shape.axis is None:
        where, within = k.divided("e", shape.inner)
        k.add(f"where = {where}", f"within = {within}", f"last = tl.full(({k.block},), -1, tl.int32)")
        for m in range(int(_number(shape.count))):
            k.add(f"last = tl.where(where == {k.place(shape, str(m))}, {m}, last)")
        k.add(
            f"new = tl.load({updates} + last * {k.w.dim(shape.inner)} + within, mask=({k.inside}) & (last >= 0), other=0)",
            "y = tl.where(last >= 0, new, y)",
        )
    else:
        along, offset, inside = _line(shape, k, "e", shape.x.shape, shape.indices.shape)
        hit = " & ".join(filter(None, [f"({k.inside})", inside]))
        step = k.w.dim(product(shape.indices.shape[shape.axis + 1 :]))
        indices = k.w.pointer(Operand("in", shape.positions[1]), shape.indices)
        k.add(f"line = {offset}", f"last = tl.full(({k.block},), -1, tl.int32)")
        for m in range(int(_number(shape.count))):
            name = k.w.fresh("to")
            loaded = f"tl.load({indices} + line + {m} * {step}, mask={hit}, other=0)"
            k.position(name, loaded, shape.indices.dtype, shape.x.shape[shape.axis])
            k.add(f"last = tl.where(({name} == {along}) & {hit}, {m}, last)")
        k.add(
            f"new = tl.load({updates} + line + last * {step}, mask=last >= 0, other=0)",
            "y = tl.where(last >= 0, new, y)",
        )
    k.add(f"tl.store({out} + e, y, mask={k.inside})")
    return k.kernel(_moved(shape))


def _number(d: Dim) -> int:
    assert isinstance(d, int)
    return d


def _clear(places: Dim, target: CudaTarget, tactic: str) -> Kernel:
    """No update has come yet."""
    k = _Lines(target, tactic, places)
    k.add(f"tl.store({k.w.pointer(Operand('temp', 0), I32)} + e, tl.full(({k.block},), -1, tl.int32), mask={k.inside})")
    return k.kernel(places * 4)


def _mark(shape: Scatter, target: CudaTarget, tactic: str) -> Kernel:
    """The number of the last update of each place."""
    total = product(shape.indices.shape[:-1]) if shape.axis is None else shape.indices.size
    k = _Lines(target, tactic, total, 256)
    if shape.axis is None:
        place = k.place(shape, "e", k.inside)
    else:
        indices = k.w.pointer(Operand("in", shape.positions[1]), shape.indices)
        k.position("to", f"tl.load({indices} + e, mask={k.inside}, other=0)", shape.indices.dtype, shape.x.shape[shape.axis])
        _, place, _ = _line(shape, k, "e", shape.indices.shape, shape.x.shape, "to")
    marks = k.w.pointer(Operand("temp", 0), I32)
    k.add(f"tl.atomic_max({marks} + {place}, e, mask={k.inside})")
    return k.kernel(shape.indices.size * shape.indices.dtype.itemsize + total * 4)


def _write(shape: Scatter, target: CudaTarget, tactic: str) -> Kernel:
    """Each element of the result takes its update, or that of x."""
    k = _Lines(target, tactic, shape.x.size)
    x, updates, out = _operands(shape, k)
    marks = k.w.pointer(Operand("temp", 0), I32)
    if shape.axis is None:
        where, within = k.divided("e", shape.inner)
        k.add(f"last = tl.load({marks} + {where}, mask={k.inside}, other=-1)")
        k.add(f"source = last * {k.w.dim(shape.inner)} + {within}")
    else:
        k.add(f"last = tl.load({marks} + e, mask={k.inside}, other=-1)")
        k.add("source = last")
    k.add(
        f"y = tl.load({x} + e, mask={k.inside}, other=0)",
        f"new = tl.load({updates} + source, mask=({k.inside}) & (last >= 0), other=0)",
        f"tl.store({out} + e, tl.where(last >= 0, new, y), mask={k.inside})",
    )
    return k.kernel(_moved(shape))


def _in_order(shape: Scatter, target: CudaTarget, tactic: str) -> Kernel:
    """Each element of the result combines its updates in their order."""
    k = _Lines(target, tactic, shape.x.size, 256)
    x, updates, out = _operands(shape, k)
    dtype = shape.x.dtype
    k.add(f"y = {triton_scalar.widen(f'tl.load({x} + e, mask={k.inside}, other=0)', dtype)}")
    count = k.w.dim(shape.count)
    if shape.axis is None:
        where, within = k.divided("e", shape.inner)
        k.add(f"where = {where}", f"within = {within}")
        outer = k.lines
        k.lines = []
        place = k.place(shape, "m")
        k.add(f"hit = ({k.inside}) & (where == {place})", f"source = m * {k.w.dim(shape.inner)} + within")
    else:
        along, offset, inside = _line(shape, k, "e", shape.x.shape, shape.indices.shape)
        indices = k.w.pointer(Operand("in", shape.positions[1]), shape.indices)
        reach = " & ".join(filter(None, [f"({k.inside})", inside]))
        k.add(f"line = {offset}")
        outer = k.lines
        k.lines = []
        step = k.w.dim(product(shape.indices.shape[shape.axis + 1 :]))
        k.position("to", f"tl.load({indices} + line + m * {step}, mask={reach}, other=0)", shape.indices.dtype, shape.x.shape[shape.axis])
        k.add(f"hit = {reach} & (to == {along})", f"source = line + m * {step}")
    k.add(
        f"new = {triton_scalar.widen(f'tl.load({updates} + source, mask=hit, other=0)', dtype)}",
        f"y = tl.where(hit, {triton_scalar.function(shape.reduction, ['y', 'new'], dtype, dtype)}, y)",
    )
    body, k.lines = k.lines, outer
    k.add(f"for m in range({count}):", *("    " + line for line in body))
    k.add(f"tl.store({out} + e, {triton_scalar.narrow('y', dtype)}, mask={k.inside})")
    return k.kernel(_moved(shape))

