"""The two sides of a difference: an ONNX model or an engine, as far as each part of the comparison needs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dovetail.api.bindings import bindings
from dovetail.api.building import build
from dovetail.api.engine import Engine
from dovetail.api.loading import load
from dovetail.api.weight_sources import open_weights
from dovetail.builder import optimise
from dovetail.core.errors import BindingError, UsageError
from dovetail.engine.file import EngineFile
from dovetail.engine.plan import Plan, digest
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import ModelSource, OnnxSource, read_model, read_tensor
from dovetail.ir.parser import parse_module
from dovetail.model.description import describe_value, weight_tensors
from dovetail.model.edit.stripping import digest as model_digest
from dovetail.model.edit.stripping import stripped
from dovetail.model.graph_difference import NodeView, model_nodes, module_nodes
from dovetail.model.layers import plain_dim
from dovetail.model.model import Model

Array = np.ndarray[Any, Any]
Side: TypeAlias = "ModelSide | EngineSide"

_ZIP = b"PK\x03\x04"


class ModelSide:
    """An ONNX model."""

    kind = "ONNX model"

    def __init__(self, source: ModelSource, name: str) -> None:
        self.name = name
        proto, folder = read_model(source)
        self.source = source if isinstance(source, OnnxSource) else Model(proto, folder)
        self.proto = proto
        self._weights: Mapping[str, Array] | None = None

    @property
    def plan(self) -> Plan | None:
        """A model has none."""
        return None

    def weights(self) -> Mapping[str, Array]:
        """Initializers and constants of nodes by name."""
        if self._weights is None:
            if self.hashes():
                kept = [t for t in weight_tensors(self.proto.graph) if t.name not in self.hashes()]
                self._weights = {t.name: read_tensor(t, self.source.folder) for t in kept}
            else:
                found = open_weights(self.source)
                self._weights = {name: found[name] for name in found}
        return self._weights

    def hashes(self) -> Mapping[str, str]:
        """Digest by name, of those whose values were stripped."""
        return stripped(self.proto)

    def digest(self, array: Array) -> str:
        """What `hashes` would have for an array."""
        return model_digest(array)

    def ports(self) -> dict[str, list[dict[str, Any]]]:
        """Inputs and outputs."""
        graph = self.proto.graph
        known = {t.name for t in graph.initializer}
        return {
            "inputs": [describe_value(v) for v in graph.input if v.name not in known],
            "outputs": [describe_value(v) for v in graph.output],
        }

    def opsets(self) -> dict[str, int]:
        """Version by domain."""
        return {o.domain or "ai.onnx": o.version for o in self.proto.opset_import}

    def nodes(self) -> list[NodeView]:
        """The model's own nodes."""
        return model_nodes(self.proto)

    def optimised(self, like: EngineSide) -> list[NodeView]:
        """The nodes of the graph that a build of an engine like the other one starts from."""
        names = {v["name"] for v in self.ports()["inputs"]}
        shapes = {p["name"]: p["shape"] for p in like.ports()["inputs"] if p["name"] in names and p["shape"] is not None}
        module = import_onnx(self.source, shapes)
        module.meta["strict_fp32"] = like.requested.get("strict_fp32", False)
        optimise(module)
        return module_nodes(module)

    def runnable(self, threads: int | None, trust: bool) -> Any:
        """What `compare` takes."""
        return self.source

    def engine(self, threads: int | None, trust: bool) -> Engine:
        """The model, built with default options."""
        return build(self.source, threads=threads)


class EngineSide:
    """An engine, or a file of one."""

    kind = "engine"

    def __init__(self, source: Engine | EngineFile, name: str) -> None:
        self.name = name
        self._source = source
        self._engine = source if isinstance(source, Engine) else None
        self._plan = source.plan if isinstance(source, Engine) else source.plan(source.targets[0])

    @property
    def plan(self) -> Plan:
        """The plan; of a file with several targets the first one's."""
        return self._plan

    @property
    def requested(self) -> Mapping[str, Any]:
        """What was asked of the build."""
        report: Any = self.plan.meta.get("report")
        return report.get("requested", {}) if isinstance(report, dict) else {}

    def weights(self) -> Mapping[str, Array]:
        """The initializers that it holds."""
        if isinstance(self._source, Engine):
            found: Mapping[str, Array] = self._source.weights()
        else:
            stored = self._source.weights()
            found = self._source.fixed_weights() if stored is None else stored
        return {name: array for name, array in found.items() if not name.startswith("~")}

    def hashes(self) -> Mapping[str, str]:
        """Digest by name, of weights that a file does not hold, too."""
        if isinstance(self._source, Engine):
            return {}
        return {name: found for name, found in self._source.hashes.items() if not name.startswith("~")}

    def digest(self, array: Array) -> str:
        """What `hashes` would have for an array."""
        return digest(array)

    def ports(self) -> dict[str, list[dict[str, Any]]]:
        """Inputs and outputs, as the caller passes them."""

        def described(ports: Any) -> list[dict[str, Any]]:
            found = bindings(ports)
            shapes = [None if p.shape is None else [plain_dim(d) for d in p.shape] for p in found]
            return [{"name": p.name, "dtype": p.dtype.name, "shape": shape} for p, shape in zip(found, shapes, strict=True)]

        return {"inputs": described(self.plan.inputs), "outputs": described(self.plan.outputs)}

    def nodes(self) -> list[NodeView]:
        """The nodes of the graph that it was compiled from."""
        return module_nodes(parse_module(self._source.graph))

    def optimised(self, like: EngineSide) -> list[NodeView]:
        """The same: an engine keeps that graph."""
        return self.nodes()

    def runnable(self, threads: int | None, trust: bool) -> Any:
        """What `compare` takes."""
        return self.engine(threads, trust)

    def engine(self, threads: int | None, trust: bool) -> Engine:
        """The engine, opened."""
        if self._engine is None:
            assert isinstance(self._source, EngineFile)
            self._engine = load(self._source.path, threads=threads, trust=trust)
        return self._engine


def side(source: ModelSource | Engine | EngineFile, name: str) -> Side:
    """What a source is, by its contents.

    Raises:
        ModelError: no such file, or neither a model nor an engine.
        UsageError: something else.
    """
    if isinstance(source, Engine | EngineFile):
        return EngineSide(source, name)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            with open(path, "rb") as file:
                if file.read(4) == _ZIP:
                    return EngineSide(EngineFile(path), str(path))
        except OSError:
            pass  # reading it as a model says what is wrong with the path
        return ModelSide(source, str(path))
    if isinstance(source, bytes) and source[:4] == _ZIP:
        raise UsageError("diff: got the bytes of an engine, expected its path or dovetail.load(bytes)")
    return ModelSide(source, name)


def same_and_unread(a: Side, b: Side) -> tuple[list[str], list[str]]:
    """Names of weights that stated hashes show to be equal; and of those that differ, where a side does not hold the values."""
    values_a, values_b, hashes_a, hashes_b = a.weights(), b.weights(), a.hashes(), b.hashes()
    equal: list[str] = []
    unread: list[str] = []
    for name in dict.fromkeys([*hashes_a, *hashes_b]):
        x, y = values_a.get(name), values_b.get(name)
        if (x is None) == (y is None):
            # Models and engines hash different things: theirs say nothing of each other.
            known = name in hashes_a and name in hashes_b
            same = known and a.kind == b.kind and hashes_a[name] == hashes_b[name]
            judged = same or (known and x is None)
        else:
            bare, stated, array = (a, hashes_a, y) if x is None else (b, hashes_b, x)
            judged = name in stated and array is not None
            same = array is not None and stated.get(name) == bare.digest(array)
        if judged:
            (equal if same else unread).append(name)
    return equal, unread


def feeds_for(a: Side, b: Side, shapes: Mapping[str, Any] | None, seed: int = 0) -> dict[str, Array] | None:
    """Seeded inputs of given shapes for both; None to let `compare` find some.

    Raises:
        UsageError: shapes of unknown inputs, or inputs that cannot be made up.
        BindingError: their inputs have other names.
    """
    from dovetail.model.equivalence import declared_inputs
    from dovetail.model.sample_inputs import generate

    names_a, names_b = ({p["name"] for p in s.ports()["inputs"]} for s in (a, b))
    if names_a != names_b:
        raise BindingError(f"got inputs {sorted(names_a)} and {sorted(names_b)}, expected the same names")
    given = shapes or _fixed_by_one(a, b)
    if not given:
        return None
    first = next((s for s in (a, b) if isinstance(s, EngineSide)), a)
    if shapes is None:  # the side with open sizes: those of the other one fix them
        first = next((s for s in (a, b) if any(isinstance(d, str) for p in s.ports()["inputs"] for d in p["shape"] or ())), first)
    made: Any = bindings(first.plan.inputs) if isinstance(first, EngineSide) else declared_inputs(first.proto)
    return dict(generate(made, given, seed))


def _fixed_by_one(a: Side, b: Side) -> dict[str, list[int | str]]:
    """Shapes of inputs, where one side fixes a size that the other one leaves open."""
    found = {}
    one, other = ({p["name"]: p["shape"] for p in s.ports()["inputs"]} for s in (a, b))
    for name, shape in one.items():
        second = other[name]
        if shape is not None and second is not None and len(shape) == len(second):
            merged = [y if isinstance(x, str) else x for x, y in zip(shape, second, strict=True)]
            if merged != shape or merged != second:
                found[name] = merged
    return found


def port_changes(a: Side, b: Side) -> list[str]:
    """How inputs and outputs differ, in words; element types of models and engines are compared by width and kind."""
    lines = []
    for group in ("inputs", "outputs"):
        one, other = ({p["name"]: p for p in s.ports()[group]} for s in (a, b))
        word = group[:-1]
        lines += [f"{word} {name} is only in a" for name in one if name not in other]
        lines += [f"{word} {name} is only in b" for name in other if name not in one]
        for name in one:
            if name not in other:
                continue
            if not _same_port(one[name], other[name], a.kind == b.kind):
                lines.append(f"{word} {name}: {_port_text(one[name])} -> {_port_text(other[name])}")
        if [n for n in one if n in other] != [n for n in other if n in one]:
            lines.append(f"{group} are in another order")
    return lines


_SHORT = {
   "float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "string": "str", "float8e4m3fn": "f8e4m3", "float8e5m2": "f8e5m2",
}  # fmt: skip


def _same_port(a: Mapping[str, Any], b: Mapping[str, Any], names_too: bool) -> bool:
    """Whether dtype and shape are the same; open sizes of a model and an engine may be called otherwise."""
    if names_too:
        return bool(_port_text(a) == _port_text(b))
    if _short(a["dtype"]) != _short(b["dtype"]):
        return False
    if a["shape"] is None or b["shape"] is None:
        return True
    pairs = zip(a["shape"], b["shape"], strict=False)
    return len(a["shape"]) == len(b["shape"]) and all(x == y or isinstance(x, str) or isinstance(y, str) for x, y in pairs)


def _short(kind: str) -> str:
    return _SHORT.get(kind) or kind.replace("uint", "u").replace("int", "i")


def _port_text(port: Mapping[str, Any]) -> str:
    return _short(port["dtype"]) + ("?" if port["shape"] is None else "[" + ",".join(map(str, port["shape"])) + "]")

