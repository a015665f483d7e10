"""LSTM, GRU and RNN whose inputs are projected already: one program per direction and sample walks through time.

A program multiplies the rows of R by its state, a block of units at a time and all gates of a unit together, and keeps its states in
temporary buffers that only it touches: steps need no other synchronisation than among its own threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dovetail.codegen import triton_scalar
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Emitted, Operand, Step
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.writer import Writer, scaled

_UNITS, _DEPTH, _WARPS = 32, 64, 8  # of one block of a product
_COPIED = 1024

Function = tuple[str, float, float]
"""An activation with alpha and beta, as the ops name it."""

# (x, alpha, beta) -> expression. Source: ONNX LSTM-22, "activations".
_TEXT: dict[str, Callable[[str, str, str], str]] = {
    "Relu": lambda x, a, b: f"tl.maximum({x}, 0.0)",
    "Tanh": lambda x, a, b: f"libdevice.tanh({x})",
    "Sigmoid": lambda x, a, b: f"tl.sigmoid({x})",
    "Affine": lambda x, a, b: f"({a} * {x} + {b})",
    "LeakyRelu": lambda x, a, b: f"tl.where({x} >= 0, {x}, {a} * {x})",
    "ThresholdedRelu": lambda x, a, b: f"tl.where({x} > {a}, {x}, 0.0)",
    "ScaledTanh": lambda x, a, b: f"({a} * libdevice.tanh({b} * {x}))",
    "HardSigmoid": lambda x, a, b: f"tl.minimum(tl.maximum({a} * {x} + {b}, 0.0), 1.0)",
    "Elu": lambda x, a, b: f"tl.where({x} > 0, {x}, {a} * libdevice.expm1(tl.minimum({x}, 0.0)))",
    "Softsign": lambda x, a, b: f"({x} / (1.0 + tl.abs({x})))",
    "Softplus": lambda x, a, b: f"(tl.maximum({x}, 0.0) + libdevice.log1p(tl.exp(-tl.abs({x}))))",
}
ACTIVATIONS = frozenset(_TEXT)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Recurrence:
    """A projected LSTM, GRU or RNN.

    Attributes:
        op: "LSTM", "GRU" or "RNN".
        functions: activations of each direction.
        x, r, b, lengths, h, c, p: operands with their layouts, None where absent.
        positions: of these among the group's inputs, by name.
        outputs: Y, Y_h and of LSTM Y_c, with their layouts.
        hidden: units.
        reverse: the first direction runs backwards.
    """

    op: str
    functions: tuple[tuple[Function, ...], ...]
    x: TensorType
    r: TensorType
    b: TensorType | None
    lengths: TensorType | None
    h: TensorType | None
    c: TensorType | None
    p: TensorType | None
    positions: dict[str, int]
    outputs: tuple[TensorType, ...]
    hidden: int
    reverse: bool
    clip: float
    input_forget: bool = False
    linear_before_reset: bool = False

    @property
    def gates(self) -> int:
        """Gates in R."""
        return GATES[self.op]

    @property
    def directions(self) -> int:
        """1 or 2."""
        return len(self.functions)

    @property
    def steps(self) -> Dim:
        """T."""
        return self.x.shape[0]

    @property
    def batch(self) -> Dim:
        """B."""
        return self.x.shape[1]

    @property
    def states(self) -> Dim:
        """Elements of one state of all directions and samples."""
        return self.batch * (self.directions * self.hidden)


def emit(shape: Recurrence, target: CudaTarget, tactic: str) -> Emitted:
    """One kernel; temporary buffers: the hidden state twice, and the cell's (or the reset product and the update gate)."""
    kernel = _Text(shape, target).kernel(tactic)
    step = Step(kernel, tuple(Operand(p.role, p.index) for p in kernel.params))
    return Emitted((step,), (8 * shape.states, 8 * shape.states))


class _Text:
    """The text of one kernel."""

    def __init__(self, shape: Recurrence, target: CudaTarget) -> None:
        self.shape, self.w = shape, Writer(target)
        self.lines: list[str] = []

    def kernel(self, tactic: str) -> Kernel:
        """The kernel, one program per direction and sample."""
        shape, w = self.shape, self.w
        self._start()
        self._copy([("h", "hp"), ("c", "cp")])
        steps = w.dim(shape.steps)
        self.lines += ["tl.debug_barrier()", f"for step in range(0, {steps}):"]
        outer, self.lines = self.lines, []
        self._step(steps)
        self.lines = outer + ["    " + line for line in self.lines]
        self.lines += w.release
        self._final(steps)
        samples = shape.batch * shape.directions
        work = samples * shape.steps * (2 * shape.gates * shape.hidden * shape.hidden)
        moved = shape.directions * (shape.gates * shape.hidden * shape.hidden * shape.r.dtype.itemsize)
        return w.kernel(
            self.lines, grid=(samples, 1, 1), warps=_WARPS, stages=2, tactic=tactic, flops=work,
            bytes=moved + shape.x.size * shape.x.dtype.itemsize,
        )  # fmt: skip

    # ------------------------------------------------------------------ around the steps
    def _start(self) -> None:
        shape, w, lines = self.shape, self.w, self.lines
        batch = w.dim(shape.batch)
        lines += [*w.wait, "pid = tl.program_id(0)", f"direction = pid // {batch}", f"sample = pid % {batch}"]
        lines += [f"one = pid * {shape.hidden}", f"all = {w.dim(shape.states)}"]
        lines.append(f"hp = {w.pointer(Operand('temp', 0), F32)} + one")
        lines.append(f"cp = {w.pointer(Operand('temp', 1), F32)} + one")
        strides = shape.x.placement.strides(shape.x.shape)
        x = w.pointer(Operand("in", shape.positions["x"]), shape.x)
        lines.append(f"xp = {x} + ({scaled(w, 'sample', strides[1])}) + direction * {shape.gates * shape.hidden}")
        r = w.pointer(Operand("in", shape.positions["r"]), shape.r)
        lines.append(f"rp = {r} + direction * {shape.gates * shape.hidden**2}")
        for name, rows in (("b", 2 * shape.gates), ("p", 3)):
            type_: TensorType | None = getattr(shape, name)
            if type_ is not None:
                lines.append(f"{name}p = {w.pointer(Operand('in', shape.positions[name]), type_)} + direction * {rows * shape.hidden}")
        if shape.lengths is not None:
            stride = shape.lengths.placement.strides(shape.lengths.shape)[0]
            pointer = w.pointer(Operand("in", shape.positions["lengths"]), shape.lengths)
            lines.append(f"length = tl.load({pointer} + {scaled(w, 'sample', stride)}).to(tl.int32)")

    def _state(self, type_: TensorType) -> str:
        """Offset of this program's row of a [D, B, H] tensor."""
        strides = type_.placement.strides(type_.shape)
        terms = [scaled(self.w, "direction", strides[0]), scaled(self.w, "sample", strides[1])]
        return " + ".join(t for t in terms if t != "0") or "0"

    def _copy(self, states: list[tuple[str, str]]) -> None:
        """Initial states, zero where none are given."""
        shape, w = self.shape, self.w
        self.lines.append(f"for first in range(0, {shape.hidden}, {_COPIED}):")
        self.lines.append(f"    u = first + tl.arange(0, {_COPIED})")
        for name, to in states:
            type_: TensorType | None = getattr(shape, name)
            value = f"tl.zeros(({_COPIED},), tl.float32)"
            if type_ is not None:
                pointer = w.pointer(Operand("in", shape.positions[name]), type_)
                loaded = f"tl.load({pointer} + {self._state(type_)} + u, mask=u < {shape.hidden}, other=0)"
                value = triton_scalar.widen(loaded, type_.dtype)
            self.lines.append(f"    tl.store({to} + u, {value}, mask=u < {shape.hidden})")

    def _final(self, steps: str) -> None:
        shape, w = self.shape, self.w
        self.lines.append(f"for first in range(0, {shape.hidden}, {_COPIED}):")
        self.lines.append(f"    u = first + tl.arange(0, {_COPIED})")
        sources = [f"hp + ({steps}) % 2 * all", "cp"]
        for index, type_ in enumerate(shape.outputs[1:], 1):
            value = f"tl.load({sources[index - 1]} + u, mask=u < {shape.hidden}, other=0)"
            pointer = w.pointer(Operand("out", index), type_)
            stored = triton_scalar.narrow(value, type_.dtype)
            self.lines.append(f"    tl.store({pointer} + {self._state(type_)} + u, {stored}, mask=u < {shape.hidden})")

    # ------------------------------------------------------------------ one step
    def _step(self, steps: str) -> None:
        shape, w = self.shape, self.w
        backwards = f"{steps} - 1 - step"
        if shape.directions == 2:
            self.lines.append(f"t = tl.where(direction == 0, step, {backwards})")
        else:
            self.lines.append(f"t = {backwards if shape.reverse else 'step'}")
        self.lines += ["old = hp + step % 2 * all", "new = hp + (step + 1) % 2 * all"]
        strides = shape.x.placement.strides(shape.x.shape)
        self.lines.append(f"xt = xp + {scaled(w, 't', strides[0])}")
        if shape.op == "LSTM":
            self._units((0, 1, 2, 3), "old", self._lstm)
        elif shape.op == "RNN":
            self._units((0,), "old", lambda: self._finish(self._apply(0, self._sum(0))))
        elif shape.linear_before_reset:
            self._units((0, 1, 2), "old", self._linear_gru)
        else:
            self._units((0, 1), "old", self._gru_gates)
            self.lines.append("tl.debug_barrier()")
            self._units((2,), "cp", self._gru_output)
        self.lines.append("tl.debug_barrier()")

    def _units(self, gates: tuple[int, ...], state: str, cell: Callable[[], None]) -> None:
        """A loop over blocks of units: the products of some gates with a state, then what the cell makes of them."""
        hidden = self.shape.hidden
        outer, self.lines = self.lines, []
        self.lines += [f"u = first + tl.arange(0, {_UNITS})", f"inside = u < {hidden}"]
        for g in gates:
            self.lines.append(f"sum{g} = tl.zeros(({_UNITS}, {_DEPTH}), tl.float32)")
        self.lines.append(f"for start in range(0, {hidden}, {_DEPTH}):")
        inner = [f"k = start + tl.arange(0, {_DEPTH})", f"s = tl.load({state} + k, mask=k < {hidden}, other=0)[None, :]"]
        mask = f"mask=inside[:, None] & (k < {hidden})[None, :], other=0"
        for g in gates:
            loaded = f"tl.load(rp + ({g * hidden} + u)[:, None] * {hidden} + k[None, :], {mask})"
            inner.append(f"sum{g} += {triton_scalar.widen(loaded, self.shape.r.dtype)} * s")
        self.lines += ["    " + line for line in inner]
        for g in gates:
            self.lines.append(f"g{g} = tl.sum(sum{g}, 1)")
            loaded = f"tl.load(xt + {g * hidden} + u, mask=inside, other=0)"
            self.lines.append(f"x{g} = {triton_scalar.widen(loaded, self.shape.x.dtype)}")
        cell()
        self.lines = [*outer, f"for first in range(0, {hidden}, {_UNITS}):", *("    " + line for line in self.lines)]

    def _bias(self, gate: int, recurrent: bool) -> str:
        """" + bias" of a gate's products with x or with the state."""
        b, hidden = self.shape.b, self.shape.hidden
        if b is None:
            return ""
        row = gate + (self.shape.gates if recurrent else 0)
        return f" + {triton_scalar.widen(f'tl.load(bp + {row * hidden} + u, mask=inside, other=0)', b.dtype)}"

    def _sum(self, gate: int) -> str:
        return f"(g{gate} + x{gate}{self._bias(gate, False)}{self._bias(gate, True)})"

    def _apply(self, which: int, x: str, clip: bool = True) -> str:
        """Activation `which` of the direction, as a variable."""
        shape, name = self.shape, self.w.fresh("a")
        self.lines.append(f"{name} = {x}")
        if clip and shape.clip > 0:
            bound = triton_scalar.literal(shape.clip, F32)
            self.lines.append(f"{name} = tl.minimum(tl.maximum({name}, -{bound}), {bound})")
        texts = []
        for functions in shape.functions:
            function, alpha, beta = functions[which]
            texts.append(_TEXT[function](name, *(f"({triton_scalar.literal(v, F32)})" for v in (alpha, beta))))
        result = self.w.fresh("y")
        same = len(set(texts)) == 1
        self.lines.append(f"{result} = {texts[0]}" if same else f"{result} = tl.where(direction == 0, {texts[0]}, {texts[1]})")
        return result

    def _load(self, address: str) -> str:
        return f"tl.load({address} + u, mask=inside, other=0)"

    def _finish(self, y: str, cell: str = "") -> None:
        """Store the output and the new states; those of a sample that has ended stay."""
        shape, w = self.shape, self.w
        hidden = y
        if shape.lengths is not None:
            self.lines += ["live = t < length", f"kept = tl.where(live, {y}, {self._load('old')})"]
            hidden = "kept"
            if cell:
                self.lines.append(f"{cell} = tl.where(live, {cell}, was)")
            self.lines.append(f"shown = tl.where(live, {y}, 0.0)")
            y = "shown"
        self.lines.append(f"tl.store(new + u, {hidden}, mask=inside)")
        if cell:
            self.lines.append(f"tl.store(cp + u, {cell}, mask=inside)")
        out = shape.outputs[0]
        strides = out.placement.strides(out.shape)
        terms = [scaled(w, n, s) for n, s in zip(("t", "direction", "sample", "u"), strides, strict=True)]
        place = " + ".join(t for t in terms if t != "0")
        stored = triton_scalar.narrow(y, out.dtype)
        self.lines.append(f"tl.store({w.pointer(Operand('out', 0), out)} + {place}, {stored}, mask=inside)")

    def _peep(self, row: int, state: str) -> str:
        p = self.shape.p
        if p is None:
            return ""
        loaded = f"tl.load(pp + {row * self.shape.hidden} + u, mask=inside, other=0)"
        return f" + {triton_scalar.widen(loaded, p.dtype)} * {state}"

    def _lstm(self) -> None:
        self.lines.append(f"was = {self._load('cp')}")
        i = self._apply(0, self._sum(0) + self._peep(0, "was"))
        keep = f"(1.0 - {i})" if self.shape.input_forget else self._apply(0, self._sum(2) + self._peep(2, "was"))
        self.lines.append(f"cell = {keep} * was + {i} * {self._apply(1, self._sum(3))}")
        o = self._apply(0, self._sum(1) + self._peep(1, "cell"))
        self.lines.append(f"out = {o} * {self._apply(2, 'cell', clip=False)}")
        self._finish("out", "cell")

    def _mix(self, update: str, value: str) -> None:
        self.lines.append(f"out = (1.0 - {update}) * {value} + {update} * {self._load('old')}")
        self._finish("out")

    def _linear_gru(self) -> None:
        update, reset = self._apply(0, self._sum(0)), self._apply(0, self._sum(1))
        raw = f"(g2{self._bias(2, True)})"
        self._mix(update, self._apply(1, f"x2{self._bias(2, False)} + {reset} * {raw}"))

    def _gru_gates(self) -> None:
        update, reset = self._apply(0, self._sum(0)), self._apply(0, self._sum(1))
        self.lines.append(f"tl.store(cp + u, {reset} * {self._load('old')}, mask=inside)")
        self.lines.append(f"tl.store(cp + all + u, {update}, mask=inside)")

    def _gru_output(self) -> None:
        value = self._apply(1, self._sum(2))
        self.lines.append(f"update = {self._load('cp + all')}")
        self._mix("update", value)
