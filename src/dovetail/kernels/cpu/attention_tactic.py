"""Attention whole, by the blocked template."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import ANY, ROWS, Config, Emitted, Group, Operand, Step, Tactic, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim
from dovetail.core.dtypes import BOOL, F32, I64
from dovetail.ir.graph import Node
from dovetail.kernels.cpu import attention, pack
from dovetail.kernels.cpu.attention import ADDED, BOOLEAN, NO_MASK, AttentionConfig
from dovetail.kernels.cpu.text import DimTable, Isa
from dovetail.kernels.fused import attention_problem, attributes, broadcast_strides, head_strides


@tactic
class BlockedAttention(Tactic):
    """Scores of a block of queries stay in the thread's scratch between the two products."""

    name = "attention"
    kinds = ("attention",)

    def supports(self, group: Group, target: Target) -> str | None:
        """fp32, one result, nothing fused, head sizes known; masks contiguous along the keys."""
        problem = attention_problem(group)
        if problem is not None:
            return problem
        anchor = group.anchor
        assert anchor is not None
        attrs = attributes(anchor)
        if attrs["softmax_dtype"] not in (None, F32):
            return f"softmax in {attrs['softmax_dtype']}"
        q, k, v = (anchor.input(n).tensor for n in range(3))
        if any(t.dtype != F32 for t in (q, k, v)):
            return f"operands are {q.dtype}, {k.dtype}, {v.dtype}, expected f32"
        heads = (attrs["q_heads"], attrs["kv_heads"])
        depths = [head_strides(t, h)[3] for t, h in ((q, heads[0]), (k, heads[1]), (v, heads[1]))]
        if not all(isinstance(d, int) for d in depths):
            return "head sizes are symbolic"
        return self._mask_reason(anchor)

    @staticmethod
    def _mask_reason(anchor: Node) -> str | None:
        mask = anchor.inputs[3] if len(anchor.inputs) > 3 else None
        lengths = anchor.inputs[4] if len(anchor.inputs) > 4 else None
        if mask is not None and mask.tensor.dtype not in (BOOL, F32):
            return f"the mask is {mask.tensor.dtype}, expected bool or f32"
        if mask is not None and not 2 <= mask.tensor.rank <= 4:
            return f"the mask has rank {mask.tensor.rank}, expected 2 to 4"
        if lengths is not None and lengths.tensor.dtype != I64:
            return f"lengths are {lengths.tensor.dtype}, expected i64"
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Contiguous rows but for the keys, which are packed from any strides."""
        assert group.anchor is not None
        wants = [ROWS] * len(group.inputs)
        key = group.anchor.input(1)
        if key not in (*group.anchor.inputs[:1], *group.anchor.inputs[2:]):
            wants[key.index] = ANY
        return tuple(wants), (ROWS,)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Rows per block: a full register tile, or half of one."""
        assert group.anchor is not None
        isa = Isa.of(target)
        steps = head_strides(group.anchor.input(0).tensor, attributes(group.anchor)["q_heads"])[2]
        rows = attention.default_rows(isa, steps)
        return tuple((("rows", r),) for r in dict.fromkeys((rows, max(1, rows // 2))))

    def _spec(self, group: Group, config: Config, target: Target) -> AttentionConfig:
        anchor = group.anchor
        assert anchor is not None
        attrs = attributes(anchor)
        outer = [None if v is None else group.inputs[v.index].tensor for v in anchor.inputs]
        q, k, v = outer[0], outer[1], outer[2]
        assert q is not None and k is not None and v is not None
        q_strides, heads, steps, depth = head_strides(q, attrs["q_heads"])
        _, key_heads, keys, _ = head_strides(k, attrs["kv_heads"])
        v_strides, _, _, value_depth = head_strides(v, attrs["kv_heads"])
        out_strides = head_strides(group.outputs[0].tensor, attrs["q_heads"])[0]
        assert isinstance(depth, int) and isinstance(value_depth, int)
        mask = outer[3] if len(outer) > 3 else None
        mask_strides: tuple[Dim, Dim, Dim]
        kind, mask_strides, mask_keys = NO_MASK, (0, 0, 0), keys
        mask_batch: Dim | None = None
        if mask is not None:
            kind = BOOLEAN if mask.dtype == BOOL else ADDED
            own = broadcast_strides(mask, 4)
            mask_strides, mask_keys = (own[0], own[1], own[2]), mask.shape[-1]
            if mask.rank == 4 and mask.shape[0] not in (1, q.shape[0]):
                mask_batch = mask.shape[0]
        return AttentionConfig(
            Isa.of(target), q.shape[0], heads, key_heads, steps, keys, depth, value_depth, attrs["scale"], q_strides[:3],
            v_strides[:3], out_strides[:3], int(dict(config)["rows"]), attrs["is_causal"], attrs["past"], attrs["left_window"],
            attrs["right_window"], attrs["softcap"], kind, mask_strides, mask_keys, mask_batch, len(outer) > 4 and outer[4] is not None,
        )  # fmt: skip

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """Packing of the keys, then the attention."""
        anchor = group.anchor
        assert anchor is not None
        spec = self._spec(group, config, target)
        positions = [None if v is None else v.index for v in anchor.inputs]
        k = group.inputs[anchor.input(1).index].tensor
        (batch, head, step, inner), key_heads, _, _ = head_strides(k, attributes(anchor)["kv_heads"])
        packing = pack.PackConfig(((k.shape[0], batch), (key_heads, head)), spec.depth, spec.key_panels, inner, step)
        pack_table, table = DimTable(), DimTable()
        pack_text, text = pack.emit(packing, pack_table), attention.emit(spec, table)
        pack_args = (Operand("in", anchor.input(1).index), Operand("temp", 0))
        extra = [Operand("in", p) for p in positions[3:5] if p is not None]
        args = (
            Operand("in", anchor.input(0).index), Operand("temp", 0), Operand("in", anchor.input(2).index),
            Operand("out", 0), *extra, Operand("workspace", 0),
        )  # fmt: skip
        first = make_kernel(
            pack_text, params=[Param(o.role, o.index) for o in pack_args], dims=pack_table.entries,
            bytes=(k.size + packing.floats) * 4, tactic=self.name, config=config,
        )  # fmt: skip
        products = spec.batch * spec.heads * spec.steps * spec.keys
        second = make_kernel(
            text, params=[Param(o.role, o.index) for o in args], dims=table.entries, workspace_bytes=spec.workspace_bytes,
            flops=products * (2 * spec.depth + 2 * spec.value_depth), bytes=(packing.floats + products) * 4,
            tactic=self.name, config=config,
        )  # fmt: skip
        return Emitted((Step(first, pack_args), Step(second, args)), (packing.floats * 4,))
