"""LSTM, GRU and RNN: one matrix product for all inputs, then the steps."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.kernel import Kernel, Param, make_kernel
from dovetail.codegen.tactic import (
    ANY,
    ROWS,
    Config,
    Emitted,
    Group,
    Operand,
    Pack,
    Step,
    Tactic,
    tactic,
)
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32, I32, I64
from dovetail.ir.graph import Node, Time
from dovetail.ir.types import TensorType
from dovetail.kernels.cpu import contraction, gemm, recurrent, recurrent_pack
from dovetail.kernels.cpu.contraction import Axis
from dovetail.kernels.cpu.gemm import GemmConfig
from dovetail.kernels.cpu.microkernel import max_rows
from dovetail.kernels.cpu.recurrent import RecurrentConfig
from dovetail.kernels.cpu.recurrent_gates import Cell, Function, activation_reason
from dovetail.kernels.cpu.recurrent_pack import RecurrentPackConfig
from dovetail.kernels.cpu.text import DimTable, Isa
from dovetail.kernels.fused import attributes
from dovetail.ops.packing import recurrent_panels

_OPS = ("LSTM", "GRU", "RNN")
_X, _W, _R, _B, _LENGTHS, _H, _C, _P = range(8)
_GATE_FLOPS = 40  # of an activation; an estimate


def _at(node: Node, index: int) -> int | None:
    """Input position of an operand in the group; None where it is absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.index


def _outer(group: Group, index: int) -> TensorType | None:
    """The type, with its layout, of an operand; None where it is absent."""
    assert group.anchor is not None
    position = _at(group.anchor, index)
    return None if position is None else group.inputs[position].tensor


def _strides(type_: TensorType) -> tuple[Dim, ...]:
    return type_.placement.strides(type_.shape)


def _cell(anchor: Node) -> Cell:
    attrs = attributes(anchor)
    names = zip(attrs["activations"], attrs["activation_alpha"], attrs["activation_beta"], strict=True)
    functions = [Function(n, float(a), float(b)) for n, a, b in names]
    per = len(functions) // (2 if attrs["direction"] == "bidirectional" else 1)
    return Cell(
        anchor.op, tuple(tuple(functions[n : n + per]) for n in range(0, len(functions), per)), float(attrs["clip"]),
        bool(attrs.get("input_forget", False)), bool(attrs.get("linear_before_reset", False)),
        _at(anchor, _B) is not None, _at(anchor, _P) is not None,
    )  # fmt: skip


@tactic
class Recurrent(Tactic):
    """Samples and directions are shared between threads; time is not."""

    name = "recurrent"
    kinds = ("recurrent",)

    def supports(self, group: Group, target: Target) -> str | None:
        """fp32 with known sizes of inputs, states and directions."""
        anchor = group.anchor
        if anchor is None or anchor.op not in _OPS or len(list(group.body.nodes)) != 1:
            return "the group is not one LSTM, GRU or RNN"
        x, w = anchor.input(_X).tensor, anchor.input(_W).tensor
        if not isinstance(w.shape[0], int) or not isinstance(w.shape[2], int):
            return f"directions or input size of {w} are symbolic"
        for value in (*anchor.operands, *anchor.outputs):
            if value.index != _at(anchor, _LENGTHS) or value.producer is not None:
                if value.tensor.dtype != F32:
                    return f"{value.name} is {value.tensor.dtype}, expected f32"
            elif value.tensor.dtype not in (I32, I64):
                return f"lengths are {value.tensor.dtype}, expected i32 or i64"
        weights = [_at(anchor, _W), _at(anchor, _R)]
        if weights[0] == weights[1] or sum(v.index in weights for v in anchor.operands) != 2:
            return "one value is used as a weight and as something else"
        if x.rank != 3:
            return f"the input {x} is not [T, B, I]"
        return activation_reason(tuple(f for functions in _cell(anchor).functions for f in functions))

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Contiguous rows of inputs, states and results; weights and biases are packed from any strides."""
        anchor = group.anchor
        assert anchor is not None
        wants = [ANY] * len(group.inputs)
        for index in (_X, _H, _C):
            position = _at(anchor, index)
            if position is not None:
                wants[position] = ROWS
        return tuple(wants), (ROWS,) * len(group.outputs)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Registers of a panel: whichever wastes fewest columns first, wider ones before narrower ones."""
        assert group.anchor is not None
        isa, cell = Isa.of(target), _cell(group.anchor)
        hidden = attributes(group.anchor)["hidden_size"]
        choices = {(4,): (4, 8), (3,): (3, 6), (2, 1): (4, 2), (1,): (4, 3, 2, 1)}[cell.phases]

        def columns(vectors: int) -> int:
            return sum(recurrent_panels(hidden, cell.phases, vectors, isa.lanes)) * vectors

        return tuple((("vectors", n),) for n in sorted(choices, key=columns))

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The weights that are constant."""
        anchor = group.anchor
        assert anchor is not None
        attrs = (
            ("phases", _cell(anchor).phases), ("vectors", int(dict(config)["vectors"])), ("lanes", Isa.of(target).lanes),
        )  # fmt: skip
        positions = [anchor.input(n).index for n in (_W, _R)]
        return tuple(Pack(p, "PackRecurrent", attrs) for p in positions if group.inputs[p].time == Time.WEIGHT)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """Packing of weights known at run time only, the projection of all inputs, the steps."""
        anchor = group.anchor
        assert anchor is not None
        spec = self._spec(group, config, target)
        steps: list[Step] = []
        temps: list[Dim] = [spec.directions * spec.steps * spec.batch * (4 * spec.columns), spec.states_bytes]
        weights = []
        for index in (_W, _R):
            position = anchor.input(index).index
            if group.inputs[position].tensor.rank < anchor.input(index).tensor.rank:
                weights.append(Operand("in", position))
                continue
            steps.append(self._packing(group, index, spec, config, Operand("temp", len(temps))))
            weights.append(Operand("temp", len(temps)))
            temps.append(self._pack_spec(group, index, spec).floats * 4)
        steps.append(self._projection(group, spec, config, weights[0]))
        steps.append(self._steps(group, spec, config, weights[1]))
        return Emitted(tuple(steps), tuple(temps))

    # ------------------------------------------------------------------ configurations
    def _spec(self, group: Group, config: Config, target: Target) -> RecurrentConfig:
        anchor = group.anchor
        assert anchor is not None
        attrs, cell = attributes(anchor), _cell(anchor)
        x, w = anchor.input(_X).tensor, anchor.input(_W).tensor
        y = _strides(group.outputs[0].tensor)
        states = [_outer(group, n) for n in (_H, _C)[: 1 + cell.has_cell_state]]
        b, p, lengths = (_outer(group, n) for n in (_B, _P, _LENGTHS))
        assert isinstance(w.shape[0], int)

        def pair(type_: TensorType) -> tuple[Dim, Dim]:
            strides = _strides(type_)
            return strides[0], strides[1]

        return RecurrentConfig(
            Isa.of(target), cell, x.shape[0], x.shape[1], attrs["hidden_size"], w.shape[0], attrs["direction"] == "reverse",
            int(dict(config)["vectors"]), (y[0], y[1], y[2]), tuple(pair(v.tensor) for v in group.outputs[1:]),
            tuple(None if s is None else pair(s) for s in states), None if b is None else pair(b),
            None if p is None else pair(p),
            None if lengths is None else ("int64_t" if lengths.dtype == I64 else "int32_t", _strides(lengths)[0]),
        )  # fmt: skip

    @staticmethod
    def _pack_spec(group: Group, index: int, spec: RecurrentConfig) -> RecurrentPackConfig:
        assert group.anchor is not None
        depth = group.anchor.input(index).tensor.shape[2]
        outer = _outer(group, index)
        assert outer is not None and isinstance(depth, int)
        direction, row, column = _strides(outer)
        return RecurrentPackConfig(
            spec.directions, spec.hidden, depth, (direction, row, column), spec.cell.phases, spec.vectors, spec.isa.lanes
        )

    # ------------------------------------------------------------------ kernels
    def _kernel(
        self, text: str, args: Sequence[Operand], table: DimTable, config: Config, flops: Dim, moved: Dim, workspace: Dim = 0
    ) -> Kernel:
        return make_kernel(
            text, params=[Param(o.role, o.index) for o in args], dims=table.entries, workspace_bytes=workspace,
            flops=flops, bytes=moved, tactic=self.name, config=config,
        )  # fmt: skip

    def _packing(self, group: Group, index: int, spec: RecurrentConfig, config: Config, to: Operand) -> Step:
        assert group.anchor is not None
        packing, table = self._pack_spec(group, index, spec), DimTable()
        args = (Operand("in", group.anchor.input(index).index), to)
        return Step(self._kernel(recurrent_pack.emit(packing, table), args, table, config, 0, packing.floats * 8), args)

    def _projection(self, group: Group, spec: RecurrentConfig, config: Config, weights: Operand) -> Step:
        """[D, T, B, columns] = x W^T, columns in the order of the packed weights."""
        assert group.anchor is not None
        outer = _outer(group, _X)
        assert outer is not None
        depth, strides, columns = group.anchor.input(_W).tensor.shape[2], _strides(outer), spec.columns
        directions = Axis(spec.directions, 0, (spec.steps * spec.batch * columns,), b=depth * columns)
        steps = Axis(spec.steps, strides[0], (spec.batch * columns,))
        batch = Axis(spec.batch, strides[1], (columns,))
        extent = contraction.merge_axes((steps, batch), max_rows(spec.isa, spec.vectors))[-1].extent
        tallest = max_rows(spec.isa, spec.vectors)
        rows = min(tallest, max(1, extent)) if isinstance(extent, int) else tallest
        product, table = GemmConfig(spec.isa, (directions, steps), batch, columns, depth, rows, spec.vectors), DimTable()
        text = gemm.emit(product, table)
        args = (Operand("in", group.anchor.input(_X).index), weights, Operand("temp", 0))
        samples = spec.directions * spec.steps * spec.batch
        kernel = self._kernel(
            text, args, table, config, samples * depth * (2 * columns),
            spec.steps * spec.batch * (depth * 4) + spec.directions * depth * (columns * 4) + samples * (columns * 4),
        )  # fmt: skip
        return Step(kernel, args)

    def _steps(self, group: Group, spec: RecurrentConfig, config: Config, weights: Operand) -> Step:
        assert group.anchor is not None
        table = DimTable()
        text = recurrent.emit(spec, table)
        args = [Operand("temp", 0), weights, *(Operand("out", n) for n in range(len(group.outputs))), Operand("temp", 1)]
        if spec.scratch:
            args.append(Operand("workspace", 0))
        for index in (_B, _P, _LENGTHS, _H, _C):
            position = _at(group.anchor, index)
            if position is not None:
                args.append(Operand("in", position))
        samples = spec.directions * spec.steps * spec.batch
        flops = samples * (2 * spec.columns * spec.hidden + (spec.cell.gates + 1) * spec.hidden * _GATE_FLOPS)
        moved = samples * (4 * (spec.columns + spec.hidden)) + spec.directions * (4 * spec.columns * spec.hidden)
        kernel = self._kernel(text, args, table, config, flops, moved, spec.workspace_bytes if spec.scratch else 0)
        return Step(kernel, tuple(args))
