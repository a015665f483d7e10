"""MatMul by the packed GEMM template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from dovetail.codegen.kernel import Param, make_kernel
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
from dovetail.core.dims import Dim, product
from dovetail.ir.graph import Node, Time
from dovetail.kernels.cpu import contraction, gemm, pack, pad, tiles
from dovetail.kernels.cpu.contraction import Axis
from dovetail.kernels.cpu.conv import Image
from dovetail.kernels.cpu.fused import epilogue_problem, make_epilogue, type_reason
from dovetail.kernels.cpu.gemm import GemmConfig
from dovetail.kernels.cpu.microkernel import max_rows
from dovetail.kernels.cpu.pad import PadConfig
from dovetail.kernels.cpu.text import DimTable, Isa
from dovetail.kernels.fused import broadcast_strides, in_place, sides


def _operands(group: Group) -> tuple[Node, int, int]:
    """(anchor, input position of a, input position of b)."""
    anchor = group.anchor
    assert anchor is not None
    return anchor, anchor.input(0).index, anchor.input(1).index


@tactic
class PackedGemm(Tactic):
    """C = A B with B in panels: packed at weight time if constant, by a kernel of its own otherwise."""

    name = "gemm"
    kinds = ("matmul",)

    def supports(self, group: Group, target: Target) -> str | None:
        """fp32 products whose operands come from outside the group."""
        if group.anchor is None or group.anchor.op != "MatMul":
            return "the group is not built around a MatMul"
        if any(v.producer is not None for v in group.anchor.operands):
            return "an operand of MatMul is computed inside the group"
        if group.anchor.input(0) is group.anchor.input(1) and group.inputs[group.anchor.input(0).index].time != Time.RUN:
            return "both operands are the same constant"
        return type_reason(group) or epilogue_problem(group)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Rows contiguous everywhere but in B, which is packed from any strides."""
        _, a, b = _operands(group)
        wants = [ROWS] * len(group.inputs)
        if a != b:
            wants[b] = ANY
        return tuple(wants), (ROWS,) * len(group.outputs)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The measured rule first, then the other tiles of the instruction set."""
        isa = Isa.of(target)
        first = self._gemm(group, target, None)
        found = [(first.max_rows, first.vectors)]
        for vectors in (2, 3, 4):
            other = (max_rows(isa, vectors), vectors)
            wide = not isinstance(first.columns, int) or first.columns > isa.lanes * (vectors - 1)
            if wide and other not in found and first.max_rows > 1:
                found.append(other)
        return tuple((("rows", r), ("vectors", v)) for r, v in found)

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """B, where it is constant."""
        _, _, b = _operands(group)
        if group.inputs[b].time != Time.WEIGHT:
            return ()
        spec = self._gemm(group, target, config)
        if group.body.inputs[b].tensor.rank == 1:
            return ()  # a vector of K is its own panel of one column, but needs widening: packed by the kernel
        return (Pack(b, "PackGemmB", (("width", spec.panels.width), ("lanes", spec.pack_lanes))),)

    def _gemm(self, group: Group, target: Target, config: Config | None) -> GemmConfig:
        """The template configuration; `b` strides count packed floats."""
        isa = Isa.of(target)
        anchor, a_at, _ = _operands(group)
        a, b, y = anchor.input(0).tensor, anchor.input(1).tensor, anchor.output.tensor
        a_type = group.inputs[a_at].tensor
        out_types = [v.tensor for v in group.outputs]
        n_batch = max(a.rank, b.rank) - 2
        n_batch = max(0, n_batch)
        has_m, has_n = a.rank > 1, b.rank > 1
        depth = a.shape[-1]
        rows_extent: Dim = a.shape[-2] if has_m else 1
        columns: Dim = b.shape[-1] if has_n else 1
        a_all = broadcast_strides(a_type, max(a.rank, n_batch + 2)) if has_m else (0,) * n_batch + (0, 1)
        out_all = [self._with_matrix_axes(broadcast_strides(t, y.rank), has_m, has_n) for t in out_types]
        found = sides(group)
        side_all = [self._with_matrix_axes(s.strides, has_m, has_n) for s in found]
        row = Axis(rows_extent, a_all[-2], tuple(o[-2] for o in out_all), tuple(s[-2] for s in side_all))
        side_columns = tuple(1 if s[-1] == 1 else 0 for s in side_all)
        shared: list[Axis] = []
        b_batch = self._b_batch(b, n_batch)
        for n in range(n_batch):
            extent = y.shape[n]
            axis = Axis(extent, a_all[n], tuple(o[n] for o in out_all), tuple(s[n] for s in side_all), int(b_batch[n] != 1))
            shared.append(axis)
        tall = max_rows(isa, 2)
        merged = contraction.merge_axes([*(x for x in shared if x.b == 0), row], tall)
        if config is None:
            row_step = merged[-1].a
            probe = GemmConfig(isa, tuple(shared), row, columns, depth, tall, 2)
            if self._crowded(probe) is not None:
                row_step = depth + 16
            tile = gemm.default_tile(isa, merged[-1].extent, columns, depth, row_step)
        else:
            given = dict(config)
            tile = int(given["rows"]), int(given["vectors"])
        spec = GemmConfig(
            isa, (), row, columns, depth, tile[0], tile[1], side_columns, make_epilogue(group, isa, bias=False)
        )
        step: Dim = depth * spec.panels.packed_columns
        batch: list[Axis] = []
        for n in reversed(range(n_batch)):
            batch.insert(0, replace(shared[n], b=step if shared[n].b else 0))
            step = step * b_batch[n]
        return replace(spec, batch=tuple(batch))

    @staticmethod
    def _with_matrix_axes(strides: tuple[Dim, ...], has_m: bool, has_n: bool) -> tuple[Dim, ...]:
        """Strides along [batch..., M, N] of a result that may lack M or N (rank-1 operands)."""
        out = list(strides)
        if not has_n:
            out.append(0)
        if not has_m:
            out.insert(len(out) - 1, 0)
        return tuple(out)

    @staticmethod
    def _b_batch(b: object, n_batch: int) -> tuple[Dim, ...]:
        """Batch extents of b, right-aligned, 1 where it is broadcast."""
        shape = b.shape[:-2]  # type: ignore[attr-defined]
        return (1,) * (n_batch - len(shape)) + tuple(shape)

    @staticmethod
    def _crowded(spec: GemmConfig) -> PadConfig | None:
        """The copy of A that spreads its rows over the cache sets, or None where they are spread already or few."""
        if spec.isa.registers < 32 or not isinstance(spec.columns, int) or not isinstance(spec.depth, int):
            return None
        rows = contraction.merge_axes([*(x for x in spec.batch if x.b == 0), spec.rows], spec.max_rows)
        step = rows[-1].a
        even = all(outer.a == inner.extent * inner.a for outer, inner in pairwise(rows))
        if not even or not isinstance(step, int) or any(x.b != 0 and x.a != 0 for x in spec.batch):
            return None
        extent = product(x.extent for x in rows)
        few = isinstance(extent, int) and extent <= tiles.rows_without_conflict(4 * step)
        if few or spec.depth <= 512 or spec.columns < 384 or tiles.rows_without_conflict(4 * step) >= max_rows(spec.isa, 2):
            return None
        return PadConfig(1, (extent,), spec.depth, ((0, 0),), Image(0, (step,)), pad.dense((extent,), spec.depth + 16))

    @staticmethod
    def _over_copy(spec: GemmConfig, copy: PadConfig) -> GemmConfig:
        """The product reading the copy of A."""
        pitch = copy.y.spatial[0]
        old = contraction.merge_axes([*(x for x in spec.batch if x.b == 0), spec.rows], spec.max_rows)[-1].a

        def moved(axis: Axis) -> Axis:
            return replace(axis, a=axis.a // old * pitch)

        return replace(spec, batch=tuple(map(moved, spec.batch)), rows=moved(spec.rows))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel for a packed B; kernels that pack B at run time and spread A before it where needed."""
        anchor, a_at, b_at = _operands(group)
        spec = self._gemm(group, target, config)
        found = sides(group)
        b = anchor.input(1).tensor
        y = anchor.output.tensor
        copy = self._crowded(spec)
        if copy is not None:
            spec = self._over_copy(spec, copy)
        table = DimTable()
        source = gemm.emit(spec, table)
        # Selection, or the tuner, has put the packed value in B's place.
        packed = group.inputs[b_at].tensor.rank < b.rank
        b_operand = Operand("in", b_at) if packed else Operand("temp", 0)
        a_operand = Operand("in", a_at) if copy is None else Operand("temp", int(not packed))
        outs = [Operand("out", n) for n in range(len(group.outputs))]
        args = (a_operand, b_operand, *outs, *(Operand("in", s.position) for s in found))
        kernel = make_kernel(
            source,
            params=[Param(o.role, o.index) for o in args],
            dims=table.entries,
            flops=y.size * spec.depth * 2,
            bytes=(anchor.input(0).tensor.size + b.size + y.size) * 4,
            tactic=self.name,
            config=config,
        )
        steps = [Step(kernel, args)]
        temps: tuple[Dim, ...] = ()
        if not packed:
            b_type = group.inputs[b_at].tensor
            strides = b_type.placement.strides(b_type.shape)
            batch = tuple(zip(b_type.shape[:-2], strides[:-2], strict=True))
            row, column = (strides[-2], strides[-1]) if b.rank > 1 else (strides[0], 0)
            packing = pack.PackConfig(batch, spec.depth, spec.panels, row, column)
            pack_table = DimTable()
            pack_source = pack.emit(packing, pack_table)
            pack_args = (Operand("in", b_at), Operand("temp", 0))
            first = make_kernel(
                pack_source,
                params=[Param(o.role, o.index) for o in pack_args],
                dims=pack_table.entries,
                bytes=(product(b.shape) + packing.floats) * 4,
                tactic=self.name,
                config=config,
            )
            steps.insert(0, Step(first, pack_args))
            temps = (packing.floats * 4,)
        if copy is not None:
            copy_table = DimTable()
            copy_args = (Operand("in", a_at), a_operand)
            size = copy.y.batch * 4
            first = make_kernel(
                pad.emit(copy, copy_table),
                params=[Param(o.role, o.index) for o in copy_args],
                dims=copy_table.entries,
                bytes=size * 2,
                tactic=self.name,
                config=config,
            )
            steps.insert(0, Step(first, copy_args))
            temps = (*temps, size)
        return Emitted(tuple(steps), temps, in_place(group, found))
