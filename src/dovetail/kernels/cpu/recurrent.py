"""Time steps of LSTM, GRU and RNN: products with the state by the register tile, then the gates on the tile just written.

The projection of the inputs has been computed for all steps before (`gemm`); its columns have the order of the packed
weights, so that a panel's gates lie together. Threads share directions and tiles of samples; each walks through time with
its own samples, so that nothing waits and results are the same for every number of threads. Per step and panel of R all tiles of
a thread follow each other: R is read once per step, however many samples there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.codegen.kernel import MAX_THREADS
from dovetail.core.dims import Dim, ceil_div, minimum
from dovetail.kernels.cpu import microkernel
from dovetail.kernels.cpu.epilogue import Access, Epilogue
from dovetail.kernels.cpu.microkernel import Tile
from dovetail.kernels.cpu.recurrent_gates import Cell, gate_code
from dovetail.kernels.cpu.text import DimTable, Isa, partial_functions
from dovetail.ops.packing import recurrent_panels


@dataclass(frozen=True)
class RecurrentConfig:
    """A recurrent layer; all strides in elements.

    Attributes:
        isa: vector shape.
        cell: what a step computes.
        steps, batch: T, B.
        hidden: H.
        directions: 1 or 2; the second runs backwards.
        reverse: whether the first runs backwards.
        vectors: registers of a panel of R.
        y: strides of Y along (T, D, B); units are contiguous.
        finals: strides along (D, B) of Y_h and Y_c.
        initial: strides along (D, B) of the initial h and c, None where they are zero.
        b, p: strides of the bias [D, 2 * gates * H] and of the peepholes [D, 3 * H].
        lengths: (C type, stride) of the sequence lengths, if any.
    """

    isa: Isa
    cell: Cell
    steps: Dim
    batch: Dim
    hidden: int
    directions: int
    reverse: bool
    vectors: int
    y: tuple[Dim, Dim, Dim]
    finals: tuple[tuple[Dim, Dim], ...]
    initial: tuple[tuple[Dim, Dim] | None, ...]
    b: tuple[Dim, Dim] | None = None
    p: tuple[Dim, Dim] | None = None
    lengths: tuple[str, Dim] | None = None

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.isa.lanes

    @property
    def panels(self) -> tuple[int, ...]:
        """Panels of each phase."""
        return recurrent_panels(self.hidden, self.cell.phases, self.vectors, self.isa.lanes)

    @property
    def columns(self) -> int:
        """Columns of one row of projected inputs, padding included."""
        return sum(self.panels) * self.width

    @property
    def pitch(self) -> int:
        """Floats of a row of units, padded to the panels of every phase."""
        return max(n * self.width // g for n, g in zip(self.panels, self.cell.phases, strict=True))

    @property
    def share(self) -> int:
        """Samples that threads take at once.

        A tile of fewer rows sums in other parts than taller ones do; so a sample's tile may depend on the number of threads
        only among those of at least so many rows.
        """
        return min(-(-microkernel.ENOUGH // self.vectors), microkernel.max_rows(self.isa, self.vectors))

    @property
    def heights(self) -> list[int]:
        """All forms of the tile, tallest first: multiples of a share, then what the last share may hold."""
        most, share = microkernel.max_rows(self.isa, self.vectors) // self.share, self.share
        shares = [most, *(n for n in _powers_below(most))]
        rests = _powers_below(share)
        if isinstance(self.batch, int):
            shares = [n for n in shares if n * share <= self.batch]
            rests = [self.batch % share] if self.batch % share else []
        return [n * share for n in shares] + rests or [1]

    @property
    def units(self) -> Dim:
        """Parts that threads may take."""
        return self.directions * ceil_div(self.batch, self.share)

    @property
    def states_bytes(self) -> Dim:
        """Size of the states of all samples."""
        return len(self.cell.states) * self.directions * self.batch * (4 * self.pitch)

    @property
    def scratch(self) -> int:
        """Floats of a thread's workspace: biases in the order of the columns, and rows of units."""
        rows = int(self.cell.separate_bias) + 3 * int(self.cell.peepholes)
        return (self.columns if self.cell.bias else 0) + rows * self.pitch

    @property
    def workspace_bytes(self) -> Dim:
        """Workspace of all threads."""
        return minimum(self.units, MAX_THREADS) * (4 * self.scratch)


def _powers_below(limit: int) -> list[int]:
    return [1 << bit for bit in reversed(range(limit.bit_length())) if 1 << bit < limit]


def emit(config: RecurrentConfig, dims: DimTable) -> str:
    """C source of the steps.

    Parameters are the projected inputs, packed R, the outputs, the states, then those of workspace, bias, peepholes,
    lengths, initial h and initial c that there are.
    """
    return _Writer(config, dims).kernel()


class _Writer:
    def __init__(self, config: RecurrentConfig, dims: DimTable) -> None:
        self.config, self.cell, self.isa, self.dims = config, config.cell, config.isa, dims
        count = 2
        self.outputs = [f"OUT{n}" for n in range(1 + len(config.finals))]
        self.slots: dict[str, int] = {"G": 0, "R": 1}
        optional = (
            ("W", bool(config.scratch)), ("BIAS", config.b is not None), ("PEEP", config.p is not None),
            ("LEN", config.lengths is not None), *((f"IN{n}", s is not None) for n, s in enumerate(config.initial)),
        )  # fmt: skip
        for name in (*self.outputs, "S", *(n for n, there in optional if there)):
            self.slots[name] = count
            count += 1

    def text(self, dim: Dim) -> str:
        return self.dims.text(dim)

    # ------------------------------------------------------------------ the whole
    def kernel(self) -> str:
        config, isa = self.config, self.isa
        tail = config.hidden % isa.lanes
        parts = [partial_functions(isa, {tail} - {0})]
        parts += [microkernel.emit(self.tile(rows), isa) for rows in config.heights]
        parts += self.main()
        return "\n".join(parts) + "\n"

    def tile(self, rows: int) -> Tile:
        config = self.config
        return Tile(
            (1, rows), config.vectors, 0, Access("a", ("0", f"{config.pitch}L")), (), f"{config.hidden}L", config.width,
            (Access("o0", ("0", f"{config.width}L")),), (), Epilogue(), self.isa.lanes >= 8,
        )  # fmt: skip

    def main(self) -> list[str]:
        config = self.config
        out = [
            "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
            *(self.pointer(name, slot) for name, slot in self.slots.items()),
            f"  const int64_t T = {self.text(config.steps)}, B = {self.text(config.batch)}, pitch = {config.pitch};",
            f"  const int64_t Q = (B + {config.share - 1}) / {config.share}, U = {config.directions} * Q;",
            f"  const int64_t size = {config.directions} * B * pitch;",
            f"  float raw[{config.heights[0] * config.width}] __attribute__((aligned(64)));",
            "  int64_t u = U * tid / nt;",
            "  const int64_t stop = U * (tid + 1) / nt;",
        ]
        if config.scratch:
            # Threads with work have first parts of their own, and there are no more of them than the workspace has room for.
            out.append(f"  float *const own = W + (nt <= U ? tid : u) * {config.scratch};")
        return [
            *out,
            "  while (u < stop) {",
            "    const int64_t e = u / Q, first = u % Q, end = dt_mini(Q, first + stop - u);",
            f"    const int64_t m0 = first * {config.share}, m1 = dt_mini(B, end * {config.share});",
            f"    const float *const Re = R + e * {sum(config.panels) * config.width * config.hidden};",
            "    u += end - first;",
            *self.constants(),
            *(f"    float *{name}_all = S + {n} * size + e * B * pitch;" for n, name in enumerate(self.cell.states)),
            *self.start(),
            "    for (int64_t s = 0; s < T; s++) {",
            f"      const int64_t t = {self.time()};",
            f"      const float *const Gt = G + (e * T + t) * B * {config.columns};",
            *(line for phase in range(len(self.cell.phases)) for line in self.phase(phase)),
            "      { float *const swap = h_all; h_all = hn_all; hn_all = swap; }",
            "    }",
            *self.finish(),
            "  }",
            "}",
        ]  # fmt: skip

    def pointer(self, name: str, slot: int) -> str:
        if name == "LEN":
            assert self.config.lengths is not None
            return f"  const {self.config.lengths[0]} *LEN = p[{slot}];"
        written = name.startswith("OUT") or name in ("S", "W")
        return f"  {'' if written else 'const '}float *{name} = p[{slot}];"

    def time(self) -> str:
        if self.config.directions == 2:
            return "e ? T - 1 - s : s"
        return "T - 1 - s" if self.config.reverse else "s"

    # ------------------------------------------------------------------ before and after
    def constants(self) -> list[str]:
        """Bias and peepholes of a direction, in the order in which the gates read them."""
        config, cell, hidden = self.config, self.cell, self.config.hidden
        out: list[str] = []
        at = 0
        if config.b is not None:
            out += ["    float *const bias_all = own;", f"    const float *const be = BIAS + e * {self.text(config.b[0])};"]
            at = config.columns
            step, gates = self.text(config.b[1]), cell.gates
            first = column = 0
            for panels, count in zip(config.panels, cell.phases, strict=True):
                units = config.width // count
                for gate in range(first, first + count):
                    own = f"be[({gate * hidden} + n) * {step}]"
                    if not (cell.separate_bias and gate == 2):
                        own += f" + be[({(gates + gate) * hidden} + n) * {step}]"
                    start = column + (gate - first) * units
                    out += [
                        f"    for (int64_t n = 0; n < {panels * units}; n++)",
                        f"      bias_all[{start} + n / {units} * {config.width} + n % {units}] = n < {hidden} ? {own} : 0.0f;",
                    ]
                first, column = first + count, column + panels * config.width
            if cell.separate_bias:
                out += [
                    f"    float *const hidden_bias = own + {at};",
                    f"    for (int64_t n = 0; n < pitch; n++) hidden_bias[n] = n < {hidden} ? be[({5 * hidden} + n) * {step}] : 0.0f;",
                ]
                at += config.pitch
        if config.p is not None:
            step = self.text(config.p[1])
            value = f"PEEP[e * {self.text(config.p[0])} + (g * {hidden} + n) * {step}]"
            out += [
                f"    float *const peep = own + {at};",
                "    for (int64_t g = 0; g < 3; g++) for (int64_t n = 0; n < pitch; n++)",
                f"      peep[g * pitch + n] = n < {hidden} ? {value} : 0.0f;",
            ]
        return out

    def start(self) -> list[str]:
        """The states before the first step; padding is zero."""
        out = ["    for (int64_t m = m0; m < m1; m++) for (int64_t n = 0; n < pitch; n++) {"]
        for index, name in enumerate(("h", "c")[: len(self.config.finals)]):
            strides = self.config.initial[index]
            value = "0.0f"
            if strides is not None:
                place = f"e * {self.text(strides[0])} + m * {self.text(strides[1])} + n"
                value = f"n < {self.config.hidden} ? IN{index}[{place}] : 0.0f"
            out.append(f"      {name}_all[m * pitch + n] = {value};")
        return [*out, "    }"]

    def finish(self) -> list[str]:
        """The states after the last step."""
        out = [f"    for (int64_t m = m0; m < m1; m++) for (int64_t n = 0; n < {self.config.hidden}; n++) {{"]
        for index, name in enumerate(("h", "c")[: len(self.config.finals)]):
            strides = self.config.finals[index]
            place = f"e * {self.text(strides[0])} + m * {self.text(strides[1])} + n"
            out.append(f"      OUT{1 + index}[{place}] = {name}_all[m * pitch + n];")
        return [*out, "    }"]

    # ------------------------------------------------------------------ one phase of a step
    def phase(self, phase: int) -> list[str]:
        config = self.config
        before = sum(config.panels[:phase])
        source = "q_all" if phase else "h_all"
        return [
            f"      for (int64_t j = 0; j < {config.panels[phase]}; j++) {{",
            f"        const float *const Rj = Re + ({before} + j) * {config.width * config.hidden};",
            f"        const float *const Gj = Gt + ({before} + j) * {config.width};",
            *([f"        const float *const bias = bias_all + ({before} + j) * {config.width};"] if config.b else []),
            "        for (int64_t m = m0; m < m1;) {",
            "          int64_t rows = m1 - m;",
            *self.products(source),
            "          for (int64_t k = 0; k < rows; k++) {",
            *self.gates(phase),
            "          }",
            "          m += rows;",
            "        }",
            "      }",
        ]

    def products(self, source: str) -> list[str]:
        """The tallest tile that fits; `rows` becomes its height."""
        out = []
        for n, rows in enumerate(self.config.heights):
            call = f"{self.tile(rows).name}({source} + m * pitch, Rj, raw, d);"
            last = n == len(self.config.heights) - 1
            condition = "" if last else f"if (rows >= {rows}) "
            out.append(f"          {'else ' if n else ''}{condition}{{ {call} rows = {rows}; }}")
        return out

    def gates(self, phase: int) -> list[str]:
        config, isa, count = self.config, self.isa, self.cell.phases[phase]
        step = config.width // count
        final = phase == len(self.cell.phases) - 1
        states = [f"*{name} = {name}_all + (m + k) * pitch" for name in self.cell.states]
        out = [
            f"            float {', '.join(states)};",
            f"            const float *const xr = Gj + (m + k) * {config.columns}, *const row = raw + k * {config.width};",
            f"            const int64_t step = {step};",
        ]
        if final:
            y = self.config.y
            place = f"t * {self.text(y[0])} + e * {self.text(y[1])} + (m + k) * {self.text(y[2])}"
            out.append(f"            float *const yr = OUT0 + {place};")
        live = self.each(count, phase)
        if config.lengths is None or not final:
            return out + live
        length = f"LEN[(m + k) * {self.text(config.lengths[1])}]"
        copy = [f"const {isa.vector} y = dt_set_{isa.vector}(0.0f);", isa.store("hn + unit", isa.load("h + unit"))]
        return [*out, f"            if (t < {length}) {{", *live, "            } else {", *self.vectors(count, copy, True), "            }"]

    def each(self, count: int, phase: int) -> list[str]:
        """The gates of every vector of a row, by direction where these differ."""
        config, final = self.config, phase == len(self.cell.phases) - 1
        texts = [self.vectors(count, gate_code(self.cell, self.isa, phase, e), final) for e in range(config.directions)]
        if len(texts) == 1 or texts[0] == texts[1]:
            return texts[0]
        return ["            if (e == 0) {", *texts[0], "            } else {", *texts[1], "            }"]

    def vectors(self, count: int, code: Sequence[str], final: bool) -> list[str]:
        """A loop over the vectors of units of a panel; what the last phase makes is stored as far as there are units."""
        lanes, hidden = self.isa.lanes, self.config.hidden
        store: list[str] = []
        if final:
            tail = hidden % lanes
            store.append(f"if (unit + {lanes} <= {hidden}) {self.isa.store('yr + unit', 'y')}")
            if tail:
                store.append(f"else if (unit < {hidden}) @ENTRY@_st{tail}(yr + unit, y);")
        return [
            f"            for (int64_t at = 0; at < step; at += {lanes}) {{",
            "              const int64_t unit = j * step + at;",
            *(f"              {line}" for line in (*code, *store)),
            "            }",
        ]
