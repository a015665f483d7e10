"""The gates of LSTM, GRU and RNN as vector C text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dovetail.kernels.cpu.text import Isa


@dataclass(frozen=True)
class Function:
    """An activation with its parameters, as the ops LSTM, GRU and RNN name it."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


def _number(value: float) -> str:
    return f"{float(value).hex()}f"


# (x, alpha, beta, vector type) -> C expression; alpha, beta and numbers are vectors. Source: ONNX LSTM-22, "activations".
_TEXT: dict[str, Callable[[str, str, str, str], str]] = {
    "Relu": lambda x, a, b, v: f"dt_max_{v}({x}, dt_set_{v}(0.0f))",
    "Tanh": lambda x, a, b, v: f"dt_tanh_{v}({x})",
    "Sigmoid": lambda x, a, b, v: f"dt_sigmoid_{v}({x})",
    "Affine": lambda x, a, b, v: f"({a} * {x} + {b})",
    "LeakyRelu": lambda x, a, b, v: f"dt_sel_{v}(dt_lt_{v}({x}, dt_set_{v}(0.0f)), {a} * {x}, {x})",
    "ThresholdedRelu": lambda x, a, b, v: f"dt_sel_{v}(dt_lt_{v}({a}, {x}), {x}, dt_set_{v}(0.0f))",
    "ScaledTanh": lambda x, a, b, v: f"({a} * dt_tanh_{v}({b} * {x}))",
    "HardSigmoid": lambda x, a, b, v: f"dt_min_{v}(dt_max_{v}({a} * {x} + {b}, dt_set_{v}(0.0f)), dt_set_{v}(1.0f))",
    "Elu": lambda x, a, b, v: (
        f"dt_sel_{v}(dt_lt_{v}(dt_set_{v}(0.0f), {x}), {x}, {a} * dt_expm1_{v}(dt_min_{v}({x}, dt_set_{v}(0.0f))))"
    ),
    "Softsign": lambda x, a, b, v: f"({x} / (dt_set_{v}(1.0f) + dt_abs_{v}({x})))",
    "Softplus": lambda x, a, b, v: (
        f"(dt_max_{v}({x}, dt_set_{v}(0.0f)) + dt_log1p_{v}(dt_exp_{v}(-dt_abs_{v}({x}))))"
    ),
}


def activation_reason(functions: tuple[Function, ...]) -> str | None:
    """None if every activation has vector code, else the name of one that has none."""
    return next((f"activation {f.name} has no vector code" for f in functions if f.name not in _TEXT), None)


@dataclass(frozen=True)
class Cell:
    """What one time step computes of the gates' sums.

    Attributes:
        op: "LSTM", "GRU" or "RNN".
        functions: activations f, g, h (f, g; f) of each direction.
        clip: bound of what goes into them (but not into h of LSTM); 0 means none.
        input_forget: the forget gate is 1 - the input gate.
        linear_before_reset: the reset gate multiplies the product, not the state.
        bias, peepholes: whether there are such inputs.
    """

    op: str
    functions: tuple[tuple[Function, ...], ...]
    clip: float = 0.0
    input_forget: bool = False
    linear_before_reset: bool = False
    bias: bool = False
    peepholes: bool = False

    @property
    def gates(self) -> int:
        """Gates in W and R."""
        return {"LSTM": 4, "GRU": 3, "RNN": 1}[self.op]

    @property
    def phases(self) -> tuple[int, ...]:
        """Gates whose products with the state a step computes together; a phase reads what the one before it made."""
        if self.op == "GRU" and not self.linear_before_reset:
            return (2, 1)
        return (self.gates,)

    @property
    def has_cell_state(self) -> bool:
        """Whether there is a second state."""
        return self.op == "LSTM"

    @property
    def separate_bias(self) -> bool:
        """Whether the bias of the hidden gate's product stands apart from the bias of its input."""
        return self.linear_before_reset and self.bias

    @property
    def states(self) -> tuple[str, ...]:
        """Rows of units kept between steps or phases; `hn` becomes `h` after a step."""
        if self.op == "LSTM":
            return ("h", "hn", "c")
        return ("h", "hn", "z", "q") if len(self.phases) == 2 else ("h", "hn")


def gate_code(cell: Cell, isa: Isa, phase: int, direction: int) -> list[str]:
    """Statements for one vector of units of one row after a phase's products.

    They read the C names `row`, `xr`, `bias` (at the panel; gate n is `n * step` further on), the offset `at` of the
    vector in a gate, `unit` (its first unit) and the rows `h`, `hn`, `c`, `z`, `q`, `peep`, `hidden_bias` of units;
    they write the new rows, and set `y` where the phase makes the output.
    """
    return _Code(cell, isa, direction).phase(phase)


class _Code:
    def __init__(self, cell: Cell, isa: Isa, direction: int) -> None:
        self.cell, self.isa, self.functions = cell, isa, cell.functions[direction]

    def phase(self, phase: int) -> list[str]:
        if self.cell.op == "LSTM":
            return self._lstm()
        if self.cell.op == "RNN":
            return [self._set("y", self._apply(0, self._sum(0))), self._store("hn", "y")]
        if self.cell.linear_before_reset:
            return self._linear_gru()
        return self._gru_gates() if phase == 0 else self._gru_output()

    # ------------------------------------------------------------------ cells
    def _lstm(self) -> list[str]:
        def looked(gate: str, row: int, state: str) -> str:
            if not self.cell.peepholes:
                return gate
            weight = self.isa.load(f"peep + {row} * pitch + unit")
            return f"({gate} + {weight} * {state})"

        keep = "one - i" if self.cell.input_forget else self._apply(0, looked(self._sum(2), 2, "old"))
        return [
            self._set("one", f"dt_set_{self.isa.vector}(1.0f)"),
            self._set("old", self._row("c")),
            self._set("i", self._apply(0, looked(self._sum(0), 0, "old"))),
            self._set("keep", keep),
            self._set("now", f"keep * old + i * {self._apply(1, self._sum(3))}"),
            self._store("c", "now"),
            self._set("o", self._apply(0, looked(self._sum(1), 1, "now"))),
            self._set("y", f"o * {self._apply(2, 'now', clip=False)}"),
            self._store("hn", "y"),
        ]

    def _gru_gates(self) -> list[str]:
        return [
            self._store("z", self._apply(0, self._sum(0))),
            self._store("q", f"{self._apply(0, self._sum(1))} * {self._row('h')}"),
        ]

    def _gru_output(self) -> list[str]:
        return [self._set("z1", self._row("z")), *self._mix(self._apply(1, self._sum(0)))]

    def _linear_gru(self) -> list[str]:
        raw = self._part("row", 2)
        if self.cell.bias:
            raw = f"({raw} + {self.isa.load('hidden_bias + unit')})"
        given = self._part("xr", 2) + (f" + {self._part('bias', 2)}" if self.cell.bias else "")
        return [
            self._set("z1", self._apply(0, self._sum(0))),
            self._set("reset", self._apply(0, self._sum(1))),
            *self._mix(self._apply(1, f"({given} + reset * {raw})")),
        ]

    def _mix(self, new: str) -> list[str]:
        one = f"dt_set_{self.isa.vector}(1.0f)"
        return [
            self._set("new", new),
            self._set("y", f"({one} - z1) * new + z1 * {self._row('h')}"),
            self._store("hn", "y"),
        ]

    # ------------------------------------------------------------------ pieces
    def _part(self, array: str, gate: int) -> str:
        return self.isa.load(f"{array} + {gate} * step + at")

    def _sum(self, gate: int) -> str:
        """The gate before its activation."""
        terms = [self._part("row", gate), self._part("xr", gate)]
        if self.cell.bias:
            terms.append(self._part("bias", gate))
        return f"({' + '.join(terms)})"

    def _apply(self, which: int, x: str, clip: bool = True) -> str:
        v, function = self.isa.vector, self.functions[which]
        if clip and self.cell.clip > 0:
            bound = f"dt_set_{v}({_number(self.cell.clip)})"
            x = f"dt_min_{v}(dt_max_{v}({x}, -{bound}), {bound})"
        alpha, beta = (f"dt_set_{v}({_number(n)})" for n in (function.alpha, function.beta))
        # A statement expression names the argument, which some activations read several times.
        return f"({{ const {v} x_ = {x}; {_TEXT[function.name]('x_', alpha, beta, v)}; }})"

    def _row(self, state: str) -> str:
        return self.isa.load(f"{state} + unit")

    def _store(self, state: str, value: str) -> str:
        return self.isa.store(f"{state} + unit", value)

    def _set(self, name: str, value: str) -> str:
        return f"const {self.isa.vector} {name} = {value};"
