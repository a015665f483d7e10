"""What tests of rewrite rules share: small graphs, rules that are not registered, and outputs before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dovetail.frontend.importer import import_onnx
from dovetail.model.model import Model
from dovetail.model.rules import Rule, RuleLog, apply_rules
from dovetail.model.rules.definition import define
from dovetail.ops.evaluate import evaluate

FLOAT = onnx.TensorProto.FLOAT


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], outputs: list[str], weights: dict[str, Any] | None = None,
    opset: int = 17, domains: tuple[str, ...] = (), kind: int = FLOAT,
) -> onnx.ModelProto:  # fmt: skip
    """A model; outputs have no declared shape."""
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=n, type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=kind))) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node, named after its first output; inputs and outputs are words, "-" is an absent one."""
    names = [["" if n == "-" else n for n in words.split()] for words in (inputs, outputs)]
    return helper.make_node(op_type, *names, name=f"n_{names[1][0]}", **attributes)


def rule(pattern: Callable[..., Any], replacement: Callable[..., Any], name: str = "rule") -> Rule:
    """A rule that is in no table."""
    return define([pattern], replacement, name)


def applied(model: onnx.ModelProto, *rules: Rule | str) -> RuleLog:
    """Apply these rules alone."""
    return apply_rules(Model.load(model), ["none", *rules])


def operators(model: onnx.ModelProto) -> list[str]:
    """Types of the main graph's nodes, constants left out."""
    return [n.op_type for n in model.graph.node if n.op_type != "Constant"]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def outputs(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """What a model computes, by the references."""
    return evaluate(import_onnx(model), feeds)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Any], error: float = 0.0) -> None:
    """Outputs are equal, or at most `error` apart."""
    want, got = outputs(before, feeds), outputs(after, feeds)
    assert want.keys() == got.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        if error:
            np.testing.assert_allclose(got[name], array, rtol=error, atol=error)
        else:
            np.testing.assert_array_equal(got[name], array)
