"""A copy of a model that one edit changes, and how every edit ends: sorted, checked, with types inferred again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TypeProto, numpy_helper

from dovetail.core.errors import ModelError, UnsupportedOpError, UsageError
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import read_tensor
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.names import describe, expect
from dovetail.model.model import Model
from dovetail.model.proto_graph import (
    all_graphs,
    constant_value,
    made_names,
    reads,
    unique_name,
)
from dovetail.model.weights import load_small, with_weights_as_inputs


class Draft:
    """A model's copy, with what edits ask of a graph. `finish` gives the new Model; the first one is never touched.

    Raises:
        UsageError: (every method) names that do not exist, with the nearest ones.
    """

    def __init__(self, model: Model, verb: str) -> None:
        self.source, self.verb = model, verb
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(model.proto)
        self.graph = self.proto.graph
        self.folder = model.folder
        load_small(self.proto, self.folder)  # sizes and axes in other files would be unknown to shape inference
        self._before = with_weights_as_inputs(self.proto)
        self._output_shapes = {v.name: kinds.shape_of(v.type) for v in self.graph.output}

    # ------------------------------------------------------------------ questions
    @cached_property
    def types(self) -> dict[str, TypeProto]:
        """Types of the tensors as they were before the edit."""
        return kinds.infer(self._before)

    def invalid_before(self) -> bool:
        """Whether the model was refused by onnx's tools before the edit, too."""
        try:
            _checker(self._before)
            kinds.infer(self._before, strict=True)
        except (onnx.checker.ValidationError, ModelError):
            return True
        return False

    def import_it(self) -> None:
        """Import the model as a build would, which follows shapes closer than onnx does.

        Raises:
            UsageError: it is refused, and the model before was not.
        """
        self._agree(kinds.infer(self.proto))
        try:
            import_onnx(Model(self.proto, self.folder))
        except UnsupportedOpError:
            return  # nothing can be said of it
        except ModelError as error:
            try:
                import_onnx(self.source)
            except ModelError:
                return
            raise self.fail(f"the result is not valid: {error}") from error

    def fail(self, text: str) -> UsageError:
        """An error of this edit."""
        return UsageError(f"{self.verb}: {text}")

    def weights(self) -> dict[str, onnx.TensorProto]:
        """Initializers of the main graph by name."""
        return {t.name: t for t in self.graph.initializer}

    def inputs(self) -> dict[str, onnx.ValueInfoProto]:
        """Inputs that are no initializers."""
        weights = self.weights()
        return {v.name: v for v in self.graph.input if v.name not in weights}

    def outputs(self) -> dict[str, onnx.ValueInfoProto]:
        """Outputs by name."""
        return {v.name: v for v in self.graph.output}

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor of the main graph."""
        return {name: node for node in self.graph.node for name in node.output if name}

    def users(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes of the main graph that need each tensor, in their bodies too."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in reads(node):
                found.setdefault(name, []).append(node)
        return found

    def names(self, given: Iterable[str], what: str, known: Iterable[str] | None = None) -> list[str]:
        """Names of tensors of the main graph (or of those `known`), each given once."""
        wanted = list(given)
        there = set(made_names(self.graph) if known is None else known)
        for node in self.graph.node:
            if node.name in wanted and node.name not in there:
                raise self.fail(f"{node.name!r} is a node, which makes {', '.join(map(repr, node.output))}; expected a {what}")
        return expect(wanted, made_names(self.graph) if known is None else known, self.verb, what)

    def opset(self, domain: str = "") -> int:
        """The version of a domain; 0 where the model imports none of it."""
        names = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
        return next((o.version for o in self.proto.opset_import if o.domain in names), 0)

    def unique(self, name: str) -> str:
        """`name`, or a variation that no tensor or node anywhere in the model has."""
        if not hasattr(self, "_taken"):
            self._taken: set[str] = set()
            for graph in all_graphs(self.graph):
                self._taken |= {*made_names(graph), *(n.name for n in graph.node), *(name for n in graph.node for name in n.input)}
        return unique_name(name, self._taken)

    def constants(self) -> Callable[[str], np.ndarray[Any, Any] | None]:
        """What gives the value of an initializer that no caller overrides, or of a Constant node; None for all else."""
        weights, producers = self.weights(), self.producers()
        overridden = {v.name for v in self.graph.input} if self.proto.ir_version >= 4 else set()

        def value(name: str) -> np.ndarray[Any, Any] | None:
            if name in weights and name not in overridden:
                return read_tensor(weights[name], self.folder)
            node = producers.get(name)
            return None if node is None else constant_value(node, self.folder)

        return value

    # ------------------------------------------------------------------ changes
    def add_weight(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Add an initializer; its name, made unique."""
        name = self.unique(name)
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        if self.proto.ir_version < 4:  # every initializer had to be listed among the inputs
            kind = kinds.tensor_type(self.graph.initializer[-1].data_type, value.shape)
            self.graph.input.append(kinds.value_info(name, kind))
        return name

    def add_node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", domain: str = "", **attrs: Any
    ) -> onnx.NodeProto:
        """Append a node; `finish` moves it to where it belongs."""
        node = onnx.helper.make_node(op, inputs, outputs, name=self.unique(name or f"{outputs[0]}/{op}"), domain=domain, **attrs)
        self.graph.node.append(node)
        return self.graph.node[-1]

    def rename_result(self, old: str, new: str) -> None:
        """Let the node that makes `old` call it `new`; who reads it is not changed."""
        node = self.producers()[old]
        node.output[list(node.output).index(old)] = new
        for value in self.graph.value_info:
            if value.name == old:
                value.name = new

    def remove_nodes(self, dead: Iterable[onnx.NodeProto]) -> None:
        """Remove nodes of the main graph, by identity."""
        gone = {id(node) for node in dead}
        self.set_nodes([node for node in self.graph.node if id(node) not in gone])

    def set_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Replace the list of nodes; handles of nodes are no longer the graph's afterwards."""
        kept = onnx.GraphProto()
        kept.node.extend(nodes)
        del self.graph.node[:]
        self.graph.node.extend(kept.node)

    def use_domain(self, domain: str, version: int = 1) -> None:
        """Import a domain unless the model does."""
        if not self.opset(domain):
            self.proto.opset_import.append(onnx.helper.make_opsetid(domain, version))

    def replace_dim(self, old: str, new: int | str) -> None:
        """Put a size or another name for a named dimension of inputs and outputs."""
        for value in (*self.graph.input, *self.graph.output):
            shape = kinds.shape_of(value.type)
            if shape is not None and old in shape:
                kinds.set_shape_of(value.type, [new if d == old else d for d in shape])
        self._output_shapes = {v.name: kinds.shape_of(v.type) for v in self.graph.output}

    def forget_types(self, *, outputs: bool = False) -> None:
        """Drop the types of intermediate values, where shapes change; with `outputs` the shapes of outputs, too.

        What an operator without schema makes keeps its element type, which nothing could infer.
        """
        unknown = {
            name
            for node in self.graph.node
            for name in node.output
            if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type)
        }
        for position in reversed(range(len(self.graph.value_info))):
            value = self.graph.value_info[position]
            if value.name not in unknown:
                del self.graph.value_info[position]
        if outputs:
            for value in self.graph.output:
                if value.type.WhichOneof("value") == "tensor_type" and value.name not in unknown:
                    value.type.tensor_type.ClearField("shape")

    def retype_outputs(self) -> None:
        """Give outputs the types that follow from the nodes, where an edit may mean to change them; else what was declared stays."""
        self.sort()
        small = with_weights_as_inputs(self.proto)
        for value in small.graph.output:
            value.ClearField("type")
        found = kinds.infer(small)
        for value in self.graph.output:
            kind = found.get(value.name)
            if kind is not None and kinds.element_of(kind) and kinds.shape_of(kind) is not None:
                value.type.CopyFrom(kind)
                self._name_dims(value)

    def drop_dead(self) -> None:
        """Remove nodes, initializers and types that nothing needs any more."""
        needed = [v.name for v in self.graph.output]
        producers, alive = self.producers(), set[int]()
        while needed:
            node = producers.get(needed.pop())
            if node is not None and id(node) not in alive:
                alive.add(id(node))
                needed += reads(node)
        if len(alive) != len(self.graph.node):
            self.set_nodes([node for node in self.graph.node if id(node) in alive])
        self.drop_unused_weights()

    def drop_unused_weights(self) -> None:
        """Remove initializers that nothing reads, and what is said of tensors that are gone."""
        used = {name for node in self.graph.node for name in reads(node)} | {v.name for v in self.graph.output}
        dead = {t.name for t in self.graph.initializer if t.name not in used}
        _keep(self.graph.initializer, lambda t: t.name in used)
        _keep(self.graph.sparse_initializer, lambda s: s.values.name in used)
        _keep(self.graph.input, lambda v: v.name not in dead)
        made = set(made_names(self.graph))
        _keep(self.graph.value_info, lambda v: v.name in made)
        _keep(self.graph.quantization_annotation, lambda q: q.tensor_name in made)

    def sort(self) -> None:
        """Put nodes where all that they read has been made, else as they were.

        Raises:
            UsageError: they read each other in a circle.
        """
        producers = {name: position for position, node in enumerate(self.graph.node) for name in node.output if name}
        order: list[int] = []
        state = [0] * len(self.graph.node)  # 1 while what it reads is placed, 2 when it is placed
        for start in range(len(self.graph.node)):
            stack = [start]
            while stack:
                position = stack[-1]
                if state[position] == 0:
                    state[position] = 1
                    before = [producers[n] for n in reads(self.graph.node[position]) if n in producers]
                    if any(state[p] == 1 for p in before):
                        node = self.graph.node[position]
                        raise self.fail(f"{describe(node)} would read what is computed from its own result; choose other tensors")
                    stack += [p for p in reversed(before) if state[p] == 0]
                    continue
                stack.pop()
                if state[position] == 1:
                    state[position] = 2
                    order.append(position)
        if order != sorted(order):
            self.set_nodes([self.graph.node[p] for p in order])

    # ------------------------------------------------------------------ the end
    def finish(self) -> Model:
        """The edited model, checked by onnx, with the types of all tensors inferred again.

        Raises:
            UsageError: it would not be valid, and the model before was.
        """
        self.sort()
        inferred = kinds.infer(self.proto)
        self._agree(inferred)
        self._check()
        self._infer(inferred)
        return Model(self.proto, self.folder)

    def _agree(self, inferred: Mapping[str, TypeProto]) -> None:
        problem = next(kinds.contradictions(self.proto, inferred), None)
        if problem is not None and next(kinds.contradictions(self._before, self.types), None) is None:
            raise self.fail(f"the result is not valid: {problem}")

    def _check(self) -> None:
        try:
            _checker(self.proto)
            kinds.infer(self.proto, strict=True)
        except (onnx.checker.ValidationError, ModelError) as error:
            if self.invalid_before():
                return
            raise self.fail(f"the result is not valid: {kinds.tidy(error)}") from error

    def _infer(self, inferred: Mapping[str, TypeProto]) -> None:
        """Write types that were found; what was said before stays where nothing was."""
        skip = {v.name for v in (*self.graph.input, *self.graph.output)} | set(self.weights())
        said = {v.name: v for v in self.graph.value_info}
        for name in made_names(self.graph):
            if name in inferred and name not in skip:
                if name in said:
                    said[name].type.CopyFrom(inferred[name])
                else:
                    self.graph.value_info.append(kinds.value_info(name, inferred[name]))
        for value in self.graph.output:
            if kinds.shape_of(value.type) is None and value.name in inferred:
                value.type.CopyFrom(inferred[value.name])
                self._name_dims(value)

    def _name_dims(self, value: onnx.ValueInfoProto) -> None:
        """Give an output's open dimensions the names that they had; those that onnx makes up (unk__0) say nothing."""
        shape, before = kinds.shape_of(value.type), self._output_shapes.get(value.name)
        if shape is not None:
            said = before if before is not None and len(before) == len(shape) else (None,) * len(shape)
            names = [None if isinstance(b, int) else b for b in said]
            open_dims = [a is None or (isinstance(a, str) and a.startswith("unk__")) for a in shape]
            kinds.set_shape_of(value.type, [n if free else a for a, n, free in zip(shape, names, open_dims, strict=True)])


def _checker(model: onnx.ModelProto) -> None:
    small = with_weights_as_inputs(model)
    # The checker wants shapes of outputs, which nobody can know behind an operator without schema.
    _keep(small.graph.output, lambda v: v.type.WhichOneof("value") != "tensor_type" or v.type.tensor_type.HasField("shape"))
    onnx.checker.check_model(small)


def _keep(field: Any, wanted: Any) -> None:
    for position in reversed(range(len(field))):
        if not wanted(field[position]):
            del field[position]
