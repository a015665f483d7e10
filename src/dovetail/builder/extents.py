"""What is too large for the kernels of a GPU is refused by the build, where sizes are known by then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import evaluate, symbols
from dovetail.core.errors import BuildError
from dovetail.device.cuda.driver import MAX_ELEMENTS
from dovetail.ir.graph import Graph, Value


def require_extents(graph: Graph, target: Target, bounds: Mapping[str, Sequence[int | None]]) -> None:
    """Check that no kernel of a GPU has an operand beyond `MAX_ELEMENTS` elements, however small a run is.

    What is too large in some runs only is refused by those.

    Args:
        graph: fused, with layouts.
        bounds: (lower, upper, optimum) of symbols.

    Raises:
        BuildError: names the first such operand.
    """
    if not isinstance(target, CudaTarget):
        return
    for node in graph.nodes:
        if node.op == "Fusion":
            for value in (*node.operands, *node.outputs):
                reach = _reach(value, bounds)
                if reach > MAX_ELEMENTS:
                    raise BuildError(
                        f"{', '.join(node.origin) or node.where}: got a tensor of {value.tensor}, which reaches "
                        f"{reach} elements, expected at most {MAX_ELEMENTS} for a kernel of a GPU; use smaller shapes, "
                        "for example a smaller batch"
                    )
            continue
        for region in node.regions:
            require_extents(region, target, bounds)


def _reach(value: Value, bounds: Mapping[str, Sequence[int | None]]) -> int:
    """Elements from the first to the last of a value in its smallest run; 0 where nothing bounds that."""
    type_ = value.tensor
    dims = (*type_.shape, *type_.placement.strides(type_.shape))
    needed: frozenset[str] = frozenset().union(*map(symbols, dims))
    if not needed <= set(bounds):
        return 0
    sizes = {name: bounds[name][0] or 0 for name in needed}
    found = [evaluate(d, sizes) for d in dims]
    shape, strides = found[: type_.rank], found[type_.rank :]
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True))
