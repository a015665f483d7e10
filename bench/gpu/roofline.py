"""The least time that a model may take on a GPU: what its fused layers compute and move, against the data sheet.

    layer floor     = sum over fused layers of max(operations / peak, bytes / bandwidth)
    practical floor = the same with 65 % of the peak of products and 85 % of the bandwidth, + kernels x 1.3 us

Each fused layer reads its operands and writes its results once through device memory. 1.3 us is what a dependent kernel of a CUDA graph
was measured to cost on an H100 without programmatic launch (0.7 us with it), so that good engines at batch 1 may pass the second floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dovetail.benchmark.flops import node_flops
from dovetail.benchmark.machine import Peaks, peaks
from dovetail.core.dims import evaluate
from dovetail.ir.graph import Module, Node, Time, Value
from dovetail.ir.types import TensorType

LAUNCH_US = 1.3
_PRODUCTS, _BANDWIDTH = 0.65, 0.85


@dataclass(frozen=True)
class Layer:
    """One fused layer: operations on the tensor cores and on the others, and bytes."""

    name: str
    products: int
    pointwise: int
    bytes: int

    def us(self, rates: Peaks, precision: str, products: float = 1.0, bandwidth: float = 1.0) -> float:
        """Its floor at shares of the rates."""
        return max(
            self.products / (rates.tensor[precision] * 1e6 * products), self.pointwise / (rates.cores * 1e6),
            self.bytes / (rates.bandwidth * 1e6 * bandwidth),
        )  # fmt: skip


def layers(module: Module, itemsize: int, sizes: Mapping[str, int]) -> list[Layer]:
    """The fused layers of a module behind the fuse pass that run in every call.

    Args:
        itemsize: bytes of a float of the engine.
    """
    found = []
    for node in module.main.nodes:
        if node.op in ("Constant", "Concat") or node.outputs[0].time != Time.RUN:
            continue
        if node.op != "Fusion":
            continue
        body = node.regions[0]
        products = sum(evaluate(node_flops(n), sizes) + _attention(n, sizes) for n in body.nodes if not _is_depthwise(n))
        depthwise = sum(evaluate(node_flops(n), sizes) for n in body.nodes if _is_depthwise(n))
        pointwise = depthwise + sum(_elements(v, sizes) for n in body.nodes for v in n.outputs if not evaluate(node_flops(n), sizes))
        moved = sum(_moved(node, v, itemsize, sizes) for v in dict.fromkeys(node.operands))
        moved += sum(_bytes(v, itemsize, sizes) for v in node.outputs)
        found.append(Layer(node.origin[0] if node.origin else node.op, products, pointwise, moved))
    return found


def _is_depthwise(node: Node) -> bool:
    return node.op == "Conv" and node.attrs.get("group", 1) > 1 and node.input(1).tensor.shape[1] == 1


def _attention(node: Node, sizes: Mapping[str, int]) -> int:
    """The two products of an Attention node: queries x keys x (head size + value size), twice for multiply-add."""
    if node.op != "Attention":
        return 0
    q, k, y = node.input(0).tensor, node.input(1).tensor, node.outputs[0].tensor
    keys = evaluate(k.shape[-2], sizes)
    return 2 * keys * (evaluate(q.size, sizes) + evaluate(y.size, sizes))


def _elements(value: Value, sizes: Mapping[str, int]) -> int:
    return evaluate(value.tensor.size, sizes) if isinstance(value.type, TensorType) else 0


def _moved(fusion: Node, value: Value, itemsize: int, sizes: Mapping[str, int]) -> int:
    """Bytes read of an operand: of a table that is only gathered from, no more than what is gathered."""
    inner = [b for b, v in zip(fusion.regions[0].inputs, fusion.inputs, strict=True) if v is value]
    readers = [n for b in inner for n in b.consumers]
    if readers and all(n.op == "Gather" and n.inputs[0] in inner for n in readers):
        return min(_bytes(value, itemsize, sizes), sum(_bytes(n.outputs[0], itemsize, sizes) for n in readers))
    return _bytes(value, itemsize, sizes)


def _bytes(value: Value, itemsize: int, sizes: Mapping[str, int]) -> int:
    if not isinstance(value.type, TensorType):
        return 0
    width = itemsize if value.tensor.dtype.is_float else value.tensor.dtype.itemsize
    return _elements(value, sizes) * width


def floors(found: list[Layer], kernels: int, gpu_name: str, precision: str) -> dict[str, Any]:
    """The two floors in milliseconds, and what they were made from; without times for an unknown GPU."""
    operations, moved = sum(x.products + x.pointwise for x in found), sum(x.bytes for x in found)
    data: dict[str, Any] = {"fused_layers": len(found), "gflop": operations / 1e9, "mbytes": moved / 1e6}
    rates = peaks(gpu_name)
    if rates is not None:
        data["layer_ms"] = sum(x.us(rates, precision) for x in found) / 1e3
        data["practical_ms"] = (sum(x.us(rates, precision, _PRODUCTS, _BANDWIDTH) for x in found) + kernels * LAUNCH_US) / 1e3
    return data


def fused_module(model: Any, shapes: Mapping[str, Any], target: Any) -> Module:
    """A model after the passes up to *fuse*, on a target."""
    import dovetail.builder  # registers the tactics
    from dovetail.codegen.lower import reason_not_lowerable
    from dovetail.frontend.importer import import_onnx
    from dovetail.passes.fuse import fuse
    from dovetail.passes.horizontal import merge_siblings
    from dovetail.passes.legalise import legalise
    from dovetail.passes.simplify import simplify

    module = import_onnx(model, shapes)
    module.meta["strict_fp32"] = False
    dovetail.builder.optimise(module)
    legalise(module, target)
    simplify(module)
    merge_siblings(module)
    fuse(module, target, reason_not_lowerable)
    return module
