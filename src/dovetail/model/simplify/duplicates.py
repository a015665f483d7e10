"""What is there twice: nodes that compute the same, and weights that are equal."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import numpy as np
import onnx

from dovetail.frontend.protos import domain_of
from dovetail.model.proto_graph import subgraphs
from dovetail.model.simplify.folding import RANDOM
from dovetail.model.simplify.scope import Scope, describe

# Runtimes fuse a layer with the DequantizeLinear ahead of it only where nothing else reads that one.
_KEPT = RANDOM | {"DequantizeLinear"}
_CHUNK = 8 << 20
_START = 4096  # what differs mostly does here: no need to read a large file


def merge_duplicates(scope: Scope) -> list[str]:
    """Of nodes with the same operator, attributes and inputs, the first stays."""
    seen: dict[Any, onnx.NodeProto] = {}
    replacements: dict[str, str] = {}
    texts, dead = [], []
    for node in scope.graph.node:
        inputs = tuple(replacements.get(name, name) for name in node.input)
        # What a function or a custom operator does is not known: it may draw random numbers.
        if domain_of(node.domain) not in ("", "ai.onnx.ml") or node.op_type in _KEPT or list(subgraphs(node)):
            continue
        if scope.output_names & set(node.output):
            continue
        attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
        key = (domain_of(node.domain), node.op_type, inputs, attributes, tuple(bool(n) for n in node.output))
        first = seen.setdefault(key, node)
        if first is not node:
            replacements |= {old: new for old, new in zip(node.output, first.output, strict=True) if old}
            dead.append(node)
            texts.append(f"{describe(node)} is {describe(first)}")
    scope.remove_nodes(dead)
    scope.replace_all(replacements)
    return texts


def merge_weights(scope: Scope) -> list[str]:
    """Of initializers with the same type and contents, the first stays.

    Float arrays of one number throughout are not told apart by that: ones and zeros of an untrained model differ once it is refitted.
    """
    if scope.initializers_are_inputs:
        return []
    groups: dict[Any, list[onnx.TensorProto]] = defaultdict(list)
    same_start: dict[Any, list[onnx.TensorProto]] = defaultdict(list)
    for tensor in scope.graph.initializer:
        if tensor.name in scope.constants and tensor.name not in scope.output_names and tensor.data_type != onnx.TensorProto.STRING:
            groups[tensor.data_type, tuple(tensor.dims)].append(tensor)
    for key, group in groups.items():
        for tensor in group if len(group) > 1 else ():
            same_start[key, _digest(scope, tensor, _START)].append(tensor)
    replacements: dict[str, str] = {}
    texts = []
    for group in same_start.values():
        first: dict[Any, str] = {}
        for tensor in group if len(group) > 1 and not _is_uniform(scope, group[0]) else ():
            known = first.setdefault(_digest(scope, tensor), tensor.name)
            if known != tensor.name:
                replacements[tensor.name] = known
                texts.append(f"{tensor.name} is {known}")
    scope.replace_all(replacements)
    return texts


def _is_uniform(scope: Scope, tensor: onnx.TensorProto) -> bool:
    """Whether a float array has several elements that are all the same."""
    data = scope.array(tensor.name).reshape(-1)
    if data.dtype.kind in "iub" or data.size < 2 or (data[:_START] != data[0]).any():
        return False
    return all((data[start : start + _CHUNK] == data[0]).all() for start in range(0, data.size, _CHUNK))


def _digest(scope: Scope, tensor: onnx.TensorProto, most: int | None = None) -> str:
    """Equal for tensors of equal contents (up to `most` bytes); each is read once, in pieces."""
    # Weights of two bodies may have one name: only those of the main graph are known by theirs.
    found = scope.readings.digests.get((tensor.name, most)) if scope.outer is None else None
    if found is None:
        data = np.ascontiguousarray(scope.array(tensor.name)).reshape(-1).view(np.uint8)[:most]
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, data.size, _CHUNK):
            digest.update(data[start : start + _CHUNK].data)
        found = digest.hexdigest()
        if scope.outer is None:
            scope.readings.digests[tensor.name, most] = found
    return found
