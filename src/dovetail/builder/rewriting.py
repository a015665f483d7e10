"""Rewrite rules in a build: the model as rules left it, what a refit must know of them, and who is to blame for wrong outputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.builder.verify_engine import distance, expect
from dovetail.core.errors import Error, UnsupportedOpError
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import (
    Definition,
    ModelSource,
    OnnxSource,
    ShapeOverride,
    converter,
    read_model,
)
from dovetail.ir.graph import Guard, Module
from dovetail.model.rules import Rewriting, Rule, RuleLog, rewrite_proto
from dovetail.ops.evaluate import evaluate

ORIGINAL, REWRITTEN = "the original model", "the model as the rules left it"

_WRONG = 1e-5


class Rewritten(OnnxSource):
    """A model that rules have rewritten."""

    def __init__(self, proto: onnx.ModelProto, folder: Path | None, rewriting: Rewriting) -> None:
        self._proto, self._folder, self.rewriting = proto, folder, rewriting

    @property
    def proto(self) -> onnx.ModelProto:
        """The rewritten model."""
        return self._proto

    @property
    def folder(self) -> Path | None:
        """Where the files of external weights are."""
        return self._folder

    def guard(self, module: Module) -> None:
        """Let a refit refuse other values of the weights that rules relied on."""
        for name, (array, rules) in self.rewriting.reads.items():
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            known = _same_weight(module, name, array)
            if known is None:  # the rewritten model does without it
                known = name
                module.weights[known] = np.asarray(array)
            shown = np.array2string(array.reshape(-1)[:8], threshold=8)
            module.guards += [Guard(known, f"rewrite rule {rule!r}", digest, shown) for rule in rules]


def _same_weight(module: Module, name: str, array: np.ndarray[Any, Any]) -> str | None:
    """The module's name of a weight; those of inner graphs may be numbered there."""
    for known, value in module.weights.items():
        if known.partition("#")[0] == name and value.dtype == array.dtype and np.array_equal(value, array):
            return known
    return None


@dataclass
class Rules:
    """What a build does with rules.

    Attributes:
        source: the model to build: as it was given, where nothing matched.
        log: of the rules; None where none were applied, as to a model that is defined in Python.
        against: what verification holds the engine against, `ORIGINAL` or `REWRITTEN`.
        reason: why it is not the original.
    """

    given: ModelSource
    source: ModelSource
    log: RuleLog | None = None
    shapes: ShapeOverride | None = None
    chosen: Sequence[Rule] = ()
    against: str = ORIGINAL
    reason: str = ""
    identity: str = ""
    _asked: bool = False

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of initializers that the rewritten model does without."""
        return self.source.rewriting.dropped if isinstance(self.source, Rewritten) else ()

    def module(self) -> Module:
        """The model for the oracle: the original one where it can be imported.

        Raises:
            ModelError: not even the rewritten one can be.
        """
        self._asked = True
        if self.against == ORIGINAL:
            try:
                return import_onnx(self.given, self.shapes)
            except UnsupportedOpError as error:
                if not isinstance(self.source, Rewritten):
                    raise
                self.against, self.reason = REWRITTEN, f"the original has operators that nobody here can run ({'; '.join(error.problems)})"
        return import_onnx(self.source, self.shapes)

    def data(self) -> dict[str, Any] | None:
        """For the report."""
        if self.log is None:
            return None
        if isinstance(self.source, Rewritten) and not self._asked:
            self.module()  # known results are not verified again, so nobody has tried yet
        return self.log.json() | {"checked_against": self.against, "reason": self.reason}

    def suspects(self) -> str:
        """After outputs were wrong: which rules change what the model computes; "" if none does, or that cannot be said."""
        if not isinstance(self.source, Rewritten) or self.log is None or self.against != ORIGINAL:
            return ""
        guilty = self._guilty()
        if guilty is None:
            return f"the rewrite rules {', '.join(map(repr, self.log.fired))} are suspects, too: build with --rules none to see"
        if not guilty:
            return ""
        places = [f"{m.rule!r} at {m.nodes[-1]}" for m in self.log.matches if m.rule in guilty]
        return (
            f"the rewrite rule{'s' if len(guilty) > 1 else ''} {', '.join(places[:5])}{' …' if len(places) > 5 else ''} changed what the "
            "model computes: correct the rule, or leave it out (--rules); if that is meant, say what error you accept (--tolerance)"
        )

    def _guilty(self) -> list[str] | None:
        """Rules that change the outputs when applied alone; all of them if only together; None where nothing can be run."""
        expected = expect(import_onnx(self.given, self.shapes), "sample")
        if not expected.outputs:
            return None
        assert isinstance(self.source, Rewritten) and self.log is not None
        if not self._differs(self.source, expected.inputs[0], expected.outputs[0]):
            return []
        guilty = []
        for rule in self.chosen:
            if rule.name in self.log.fired:
                alone = rewritten(self.given, [rule], self.shapes).source
                if isinstance(alone, Rewritten) and self._differs(alone, expected.inputs[0], expected.outputs[0]):
                    guilty.append(rule.name)
        return guilty or list(self.log.fired)

    def _differs(self, source: ModelSource, feed: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
        try:
            with np.errstate(all="ignore"):
                got = evaluate(import_onnx(source, self.shapes), feed)
        except Error:
            return True
        return any(not distance(got[name], value) <= _WRONG for name, value in want.items())


def rewritten(model: ModelSource, rules: Sequence[Rule], shapes: ShapeOverride | None = None) -> Rules:
    """Apply rules to a model that is to be built; the caller's own proto is not touched.

    Models of other libraries become ONNX here, once for the whole build.

    Raises:
        ModelError: it cannot be read.
        RuleError: a rule fails.
    """
    convert = converter(model)
    model = model if convert is None else convert(model)
    if isinstance(model, Definition) or not rules:
        return Rules(model, model, shapes=shapes)
    proto, folder = read_model(model)
    own = isinstance(model, str | bytes | os.PathLike)
    rewriting = rewrite_proto(proto, folder, rules, shapes, copy=not own)
    if not rewriting.log:
        return Rules(model, model, rewriting.log, shapes, rules)
    identity = hashlib.sha256(rewriting.original.encode())
    for name, array in rewriting.lost.items():
        identity.update(name.encode() + np.ascontiguousarray(array).tobytes())
    source = Rewritten(rewriting.proto, folder, rewriting)
    return Rules(model, source, rewriting.log, shapes, rules, identity=identity.hexdigest())


__all__ = ["ORIGINAL", "REWRITTEN", "Rewritten", "Rules", "rewritten"]
