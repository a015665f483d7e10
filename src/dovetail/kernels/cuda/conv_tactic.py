"""Conv by an implicit matrix product over channels-last images."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.tactic import Config, Emitted, Group, Pack, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.ir.graph import Node
from dovetail.kernels.cuda.conv import MAX_TAPS, Tile, implicit_gemm
from dovetail.kernels.cuda.conv_config import (
    dense_tiles,
    grouped_tiles,
    rank,
    with_fetch,
    with_prefetch,
)
from dovetail.kernels.cuda.conv_prologue import producer_reason
from dovetail.kernels.cuda.conv_shape import Convolution, conv_reason, convolution_of, image_layouts
from dovetail.kernels.fused import attributes, in_place, sides

_KEEP = 18


def filter_packs(conv: Convolution) -> tuple[Pack, ...]:
    """Filters [M, C/group, k...] as [M, k..., C/group], then as a matrix; those of one tap are that already."""
    if conv.window.taps == 1:
        return ()
    rank_ = conv.window.rank + 2
    perm = (0, *range(2, rank_), 1)
    shape = (conv.filters, conv.window.taps * conv.depth)
    return (
        Pack(conv.weights, "Transpose", (("perm", perm),)),
        Pack(conv.weights, "Reshape", (("shape", shape),)),
    )  # fmt: skip


def epilogue_operands(group: Group) -> int:
    """Tensors of the result's size that a group's epilogue reads or writes."""
    assert group.anchor is not None
    shape = group.anchor.output.tensor.shape
    return len(group.outputs) + sum(s.value.tensor.shape == shape for s in sides(group))


@tactic
class ImplicitGemm(Tactic):
    """Convolution, grouped or not, 1 to 3 spatial axes."""

    name = "implicit_gemm"
    device = "cuda"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Floats with filters known before the run."""
        reason = conv_reason(group, prologue=True)
        if reason is not None:
            return reason
        conv = convolution_of(group)
        if any(k > MAX_TAPS for k in conv.window.kernel):
            return f"an axis of the filters has more than {MAX_TAPS} taps"
        assert group.anchor is not None
        plain = group.anchor.input(0).producer is None
        if not plain and (conv.window.taps > 1 or conv.groups > 1 or any(conv.window.padded)):
            return "the image is computed inside the group, and once per tap"
        return None

    def prologue(self, anchor: Node, producer: Node, target: Target) -> str | None:
        """Cheap pointwise nodes ahead of a 1x1 convolution that read one image and operands of its channels."""
        attrs, taps = attributes(anchor), anchor.input(1).tensor.shape[2:]
        if any(k != 1 for k in taps) or attrs["group"] != 1 or any(p != 0 for p in attrs["pads"]):
            return "it would be computed once per tap"
        return producer_reason(anchor, producer)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The tiles that a model of the machine ranks highest."""
        conv, cuda = convolution_of(group), CudaTarget.of(target)
        tiles = dense_tiles(conv, cuda) if conv.groups == 1 else grouped_tiles(conv, cuda)
        operands = epilogue_operands(group)
        best = with_fetch(conv, rank(conv, tiles, cuda, operands, _KEEP), operands)
        return [t.config for t in with_prefetch(conv, best, cuda)]

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The filters, channels inside."""
        return filter_packs(convolution_of(group))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        kernel = implicit_gemm(group, Tile.of(config), CudaTarget.of(target), self.name)
        return single(kernel, in_place(group, sides(group)))

    def relative_error(self) -> float:
        """Sums in another order than the reference's."""
        return 1e-5
