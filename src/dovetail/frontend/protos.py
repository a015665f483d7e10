"""Small readings of ONNX protos that importing needs: names, attributes, sparse tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import ModelError
from dovetail.frontend.reader import read_tensor


def free_names(proto: onnx.GraphProto, found: dict[str, None]) -> None:
    """Collect into `found` the outer names that a subgraph reads, in order of first use."""
    bound = {v.name for v in proto.input} | {t.name for t in proto.initializer}
    for node in proto.node:
        for name in node.input:
            if name and name not in bound:
                found[name] = None
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else ():
                inner: dict[str, None] = {}
                free_names(graph, inner)
                found.update({n: None for n in inner if n not in bound})
        bound |= set(node.output)
    for output in proto.output:
        if output.name not in bound:
            found[output.name] = None


def plain(value: Any) -> Any:
    """An attribute as the IR holds it: lists become tuples, NumPy scalars Python numbers."""
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, np.generic):
        return value.item()
    return value


def domain_of(domain: str) -> str:
    """A domain's short name: ai.onnx is the empty one."""
    return "" if domain == "ai.onnx" else domain


def densify(sparse: onnx.SparseTensorProto, folder: Path | None) -> np.ndarray[Any, Any]:
    """A sparse tensor as a dense array.

    Raises:
        ModelError: indices outside the shape.
    """
    values, indices = read_tensor(sparse.values, folder), read_tensor(sparse.indices, folder)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    try:
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except IndexError as error:
        raise ModelError(f"initializer {sparse.values.name!r}: sparse indices leave its shape {tuple(sparse.dims)}") from error
    return dense
