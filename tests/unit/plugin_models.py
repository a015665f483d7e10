"""Plugins and ONNX models of them that several tests use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dovetail.plugins import registry


@contextmanager
def own_registry() -> Iterator[None]:
    """What is registered inside is gone afterwards."""
    with registry._lock:
        before, files = dict(registry._plugins), dict(registry._files)
    try:
        yield
    finally:
        with registry._lock:
            for table, kept in ((registry._plugins, before), (registry._files, files)):
                table.clear()
                table.update(kept)


def onnx_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str | None]]],
    outputs: Sequence[str],
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A model with nodes of the domain "user"; outputs declare nothing but their names."""
    graph = helper.make_graph(
        nodes, "plugins",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in (weights or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("user", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def call(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> onnx.NodeProto:
    """A node of the domain "user", named after its op."""
    return helper.make_node(op, inputs, outputs, name=f"/{op.lower()}", domain="user", **attributes)


F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
