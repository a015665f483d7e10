"""TopK, scatters and tables of what data select, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen import scalar
from dovetail.codegen.tactic import ANY, ROW_MAJOR, Config, Emitted, Group, Tactic, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import evaluate, symbols
from dovetail.core.dtypes import I32, I64
from dovetail.kernels.cuda import scatter, tables, topk
from dovetail.kernels.cuda.scatter import Scatter
from dovetail.kernels.cuda.tables import Suppression
from dovetail.kernels.cuda.topk import RADIX, RANK, TopK
from dovetail.kernels.fused import attributes

_TYPICAL_EXTENT = 8192  # of an axis whose length the run decides


def _alone(group: Group) -> str | None:
    """Why a group is more than its anchor; None if it is not."""
    if group.anchor is None or any(node is not group.anchor for node in group.body.nodes):
        return "selections take no epilogue"
    return None


@tactic
class TopKByKeys(Tactic):
    """The k first elements by integer keys: by rank, or by radix and rank."""

    name = "topk"
    device = "cuda"
    kinds = ("select",)

    def supports(self, group: Group, target: Target) -> str | None:
        """A TopK alone, of numbers that have a key."""
        if group.anchor is None or group.anchor.op != "TopK":
            return "the group is not built around a TopK"
        return _alone(group) or topk.reason(group.inputs[0].tensor)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Any strides; dense results."""
        return (ANY,), (ROW_MAJOR, ROW_MAJOR)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Both forms, the cheaper one first; only that one where it is far cheaper."""
        shape = self._shape(group)
        names = {s for d in (shape.rows, shape.extent, shape.k) for s in symbols(d)}
        # Unknown extents are long, unknown numbers of rows few.
        sizes = {s: _TYPICAL_EXTENT if s in symbols(shape.extent) else 1 for s in names}
        rows, extent, k = (max(1, evaluate(d, sizes)) for d in (shape.rows, shape.extent, shape.k))
        several = CudaTarget.of(target).multiprocessors
        times = {form: topk.cost(shape, form, rows, extent, k, several) for form in (RANK, RADIX)}
        best = min(times, key=lambda form: times[form])
        kept = [form for form in sorted(times, key=lambda form: times[form]) if times[form] < 8 * times[best]]
        return tuple((("form", form),) for form in kept)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel, or two by radix."""
        return topk.emit(self._shape(group), str(dict(config)["form"]), CudaTarget.of(target), self.name)

    @staticmethod
    def _shape(group: Group) -> TopK:
        anchor = group.anchor
        assert anchor is not None
        attrs = attributes(anchor)
        x = group.inputs[0].tensor
        values, indices = (v.tensor for v in group.outputs)
        return TopK(x, values, indices, attrs["axis"] % x.rank, attrs["k"], attrs["largest"])


@tactic
class ScatterByOwner(Tactic):
    """Each element of the result finds its updates itself, or by the number of its last one."""

    name = "scatter"
    device = "cuda"
    kinds = ("select",)

    def supports(self, group: Group, target: Target) -> str | None:
        """A ScatterElements or ScatterND alone; reductions of few updates only."""
        if group.anchor is None or group.anchor.op not in ("ScatterElements", "ScatterND"):
            return "the group is not built around a scatter"
        return _alone(group) or scatter.reason(self._shape(group))

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Dense operands."""
        return (ROW_MAJOR,) * len(group.inputs), (ROW_MAJOR,)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel, or three: clear, mark, write."""
        return scatter.emit(self._shape(group), CudaTarget.of(target), self.name)

    @staticmethod
    def _shape(group: Group) -> Scatter:
        anchor = group.anchor
        assert anchor is not None
        attrs = attributes(anchor)
        positions = (anchor.input(0).index, anchor.input(1).index, anchor.input(2).index)
        x, indices, updates = (group.inputs[p].tensor for p in positions)
        axis = attrs["axis"] % x.rank if anchor.op == "ScatterElements" else None
        return Scatter(x, indices, updates, axis, attrs["reduction"], positions)


@tactic
class Tables(Tactic):
    """Counts, then entries at the places that the counts say."""

    name = "table"
    device = "cuda"
    kinds = ("select",)

    def supports(self, group: Group, target: Target) -> str | None:
        """A NonZeroTable or SuppressionTable alone."""
        anchor = group.anchor
        if anchor is None or anchor.op not in ("NonZeroTable", "SuppressionTable"):
            return "the group is not built around a table"
        x = group.inputs[0].tensor
        if anchor.op == "NonZeroTable" and (x.rank == 0 or x.dtype.name not in scalar.DTYPES):
            return f"the input is {x}"
        if anchor.op == "SuppressionTable" and anchor.input(2).tensor.dtype not in (I32, I64):
            return f"the maximum is {anchor.input(2).tensor.dtype}"
        return _alone(group)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Dense operands."""
        return (ROW_MAJOR,) * len(group.inputs), (ROW_MAJOR, ROW_MAJOR)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """Two kernels; one for few elements."""
        anchor = group.anchor
        assert anchor is not None
        gpu = CudaTarget.of(target)
        if anchor.op == "NonZeroTable":
            return tables.non_zero(group.inputs[0].tensor, gpu, self.name)
        operands = [anchor.inputs[i] if i < len(anchor.inputs) else None for i in range(5)]
        positions = tuple(-1 if v is None else v.index for v in operands)
        types = [None if v is None else group.inputs[v.index].tensor for v in operands]
        boxes, scores, most, overlap, floor = types
        assert boxes is not None and scores is not None and most is not None
        attrs = attributes(anchor)
        shape = Suppression(boxes, scores, most, overlap, floor, positions, attrs["center_point_box"], attrs["limit"])
        return tables.suppression(shape, gpu, self.name)
