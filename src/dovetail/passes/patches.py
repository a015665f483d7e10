"""Convolutions whose windows touch and do not overlap, as products: the patch embedding of vision transformers.

Each window is read once, so gathering all of them is one copy of the image (into which a Cast of the input fuses), and what is left is a
plain matrix product with a long sum.
"""

from __future__ import annotations

from dovetail.core.dims import product, remainder
from dovetail.ir.graph import Node, Time
from dovetail.ir.rewriter import Rewrite, rule

# Below this length of the sum the copy costs more than the product gains; above this many channels a window is long enough as it lies.
_LEAST_SUM, _MOST_CHANNELS = 128, 8


@rule("Conv")
def patches_as_product(node: Node, rewrite: Rewrite) -> str | None:
    """y[n, :, i, j] = W x[n, :, window (i, j)] as a MatMul over the flattened windows."""
    x, w = node.input(0), node.input(1)
    if node.graph.time_of(node) != Time.RUN or x.tensor.rank != 4:
        return "it is no image of a run"
    filters, channels, *window = w.tensor.shape
    attrs = node.attrs
    if tuple(attrs.get("strides", (1, 1))) != tuple(window) or any(p != 0 for p in attrs.get("pads", (0,) * 4)):
        return "its windows overlap, leave gaps or hang over"
    if attrs.get("group", 1) != 1 or tuple(attrs.get("dilations", (1, 1))) != (1, 1):
        return "it is grouped or dilated"
    length = product(w.tensor.shape[1:])
    if not isinstance(length, int) or length < _LEAST_SUM or not isinstance(channels, int) or channels > _MOST_CHANNELS:
        return "its windows are short, or long enough where they lie"
    samples, _, *space = x.tensor.shape
    if any(remainder(extent, size) != 0 for extent, size in zip(space, window, strict=True)):
        return "a rest of the image is left over"
    (height, width), (rows, columns) = node.output.tensor.shape[2:], window
    parted = rewrite.emit("Reshape", x, shape=(samples, channels, height, rows, width, columns))
    gathered = rewrite.emit("Transpose", parted, perm=(0, 2, 4, 1, 3, 5))
    flat = rewrite.emit("Reshape", gathered, shape=(samples, height * width, length))
    turned = rewrite.emit("Transpose", rewrite.emit("Reshape", w, shape=(filters, length)), perm=(1, 0))
    y = rewrite.emit("MatMul", flat, turned)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        y = rewrite.emit("Add", y, node.inputs[2])
    placed = rewrite.emit("Transpose", y, perm=(0, 2, 1))
    rewrite.replace(node, rewrite.emit("Reshape", placed, shape=node.output.tensor.shape))
    return None
