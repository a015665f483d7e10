"""What is grouped with what, and where values lie: small graphs, checked through their printed bodies and strides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dovetail.codegen import tactic as tactic_module
from dovetail.codegen.tactic import CHANNELS_LAST, ROWS, Emitted, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import sym
from dovetail.core.dtypes import F32
from dovetail.ir import Graph, Module, Node, TensorType, Value
from dovetail.ir.verifier import verify
from dovetail.ops.infer import infer
from dovetail.passes.fuse import fuse
from dovetail.passes.layout import Placement, assign_layouts
from dovetail.passes.views import is_channels_last, is_row_major

TARGET = Target.parse("cpu:generic")


class _Template(Tactic):
    """Takes every contraction group; images channels-last, matrices by rows."""

    name = "template"
    kinds = ("conv", "matmul", "pool")

    def supports(self, group: Group, target: Target) -> str | None:
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        want = ROWS if group.kind == "matmul" else CHANNELS_LAST
        filters = group.anchor.input(1).index if group.kind == "conv" and group.anchor is not None else -1
        images = [v.tensor.rank == 4 and i != filters for i, v in enumerate(group.inputs)]
        return tuple(want if image or want == ROWS else "any" for image in images), (want,)

    def emit(self, group: Group, config: Any, target: Target) -> Emitted:
        raise AssertionError("not emitted in these tests")


class _Loop(_Template):
    """Takes every loop group with any strides."""

    name = "loops"
    kinds = ("loop",)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("any",) * len(group.inputs), ("any",)


@pytest.fixture(autouse=True)
def _tactics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tactic_module, "_tactics", [_Template(), _Loop()])
    yield


class _Net:
    """A graph under construction."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.module = Module(self.graph, meta={"output_names": ["y"]})

    def input(self, *shape: Any, name: str = "x") -> Value:
        return self.graph.add_input(name, TensorType(F32, shape))

    def weight(self, *shape: int) -> Value:
        name = f"w{len(self.graph)}"
        return self.graph.add("Constant", (), {"name": name}, types=[TensorType(F32, shape)], names=[name]).output

    def __call__(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        return self.graph.add(op, inputs, attrs, types=infer(op, inputs, attrs), origin=[f"/{op}"]).output

    def conv(self, x: Value, channels: int, kernel: int = 1) -> Value:
        side = kernel // 2
        weight = self.weight(channels, x.tensor.shape[1], kernel, kernel)  # type: ignore[arg-type]
        return self("Conv", x, weight, pads=(side,) * 4, strides=(1, 1), dilations=(1, 1), group=1)

    def compile(self, *outputs: Value) -> Placement:
        self.graph.set_outputs(outputs)
        self.module.meta["output_names"] = [f"y{i}" for i in range(len(outputs))]
        fuse(self.module, TARGET, lambda node: None)
        verify(self.module)
        placement = assign_layouts(self.module, TARGET)
        verify(self.module)
        return placement

    def bodies(self) -> list[list[str]]:
        return [[n.op for n in f.regions[0].nodes] for f in self.fusions()]

    def fusions(self) -> list[Node]:
        return [n for n in self.graph.nodes if n.op == "Fusion"]


def test_convolution_takes_residual_and_activation() -> None:
    net = _Net()
    x = net.conv(net.input(sym("N"), 8, 6, 6), 8)
    placement = net.compile(net("Relu", net("Add", net.conv(x, 8, 3), x)))
    assert ["Conv", "Add", "Relu"] in net.bodies()
    assert len([b for b in net.bodies() if "Conv" in b]) == 2
    assert [name for name, _ in placement.copies] == ["x", net.graph.outputs[0].producer.operands[0].name]  # type: ignore[union-attr]


def test_a_value_with_two_readers_is_not_hidden() -> None:
    net = _Net()
    x = net.conv(net.input(1, 8, 6, 6), 8)
    net.compile(net("Relu", x), net("Neg", x))
    assert ["Conv"] in net.bodies()


def test_diamonds_are_one_loop() -> None:
    net = _Net()
    a = net("Exp", net.input(4, 5))
    net.compile(net("Add", net("Relu", a), net("Neg", a)))
    assert net.bodies() == [["Exp", "Relu", "Neg", "Add"]]


def test_rows_take_their_prologue_but_not_a_contractions_epilogue() -> None:
    net = _Net()
    x = net.input(4, 5)
    net.compile(net("Softmax", net("Exp", x), axis=-1))
    assert net.bodies() == [["Exp", "Softmax"]]
    net = _Net()
    product = net("MatMul", net.input(4, 5), net.weight(5, 6))
    net.compile(net("Softmax", net("Relu", product), axis=-1))
    assert net.bodies() == [["MatMul", "Relu"], ["Softmax"]]


def test_rows_between_convolutions_stay_channels_last() -> None:
    """A normalisation over channels, written for channels-last readers although its only reader is a Transpose."""
    net = _Net()
    x = net.conv(net.input(sym("N"), 8, 6, 6), 16)
    rows = net("Softmax", net("Transpose", x, perm=(0, 2, 3, 1)), axis=-1)
    placement = net.compile(net.conv(net("Transpose", rows, perm=(0, 3, 1, 2)), 8, 3))
    assert [name for name, _ in placement.copies] == ["x", net.graph.outputs[0].producer.operands[0].name]  # type: ignore[union-attr]


def test_concat_parts_are_written_in_place() -> None:
    net = _Net()
    x = net.conv(net.input(sym("N"), 8, 6, 6), 8)
    parts = [net.conv(x, 24), net.conv(x, 40, 3)]
    joined = net("Concat", *parts, axis=1)
    placement = net.compile(net.conv(joined, 8))
    concat = next(n for n in net.graph.nodes if n.op == "Concat")
    assert all(placement.root(v) is concat.output for v in concat.operands)
    assert concat.operands[1].tensor.placement.base((sym("N"), 40, 6, 6)) == 24
    assert all(is_channels_last(v.tensor) for v in concat.operands)
    assert not any("concat" in why for _, why in placement.copies)


def test_concats_of_growing_prefixes_share_one_buffer() -> None:
    net = _Net()
    features = [net.conv(net.input(1, 4, 6, 6), 8)]
    for _ in range(3):
        features.append(net.conv(net("Concat", *features, axis=1), 4, 3))
    last = net("Concat", *features, axis=1)
    placement = net.compile(net("Relu", last))
    concats = [n for n in net.graph.nodes if n.op == "Concat" and len(n.operands) > 1]
    roots = {placement.root(n.output) for n in concats}
    assert len(concats) == 3
    assert len(roots) == 1
    assert not any("concat" in why for _, why in placement.copies)


def test_attention_heads_move_no_data() -> None:
    net = _Net()
    x = net.input(sym("N"), 16, 64)
    heads = net("Transpose", net("Reshape", net("MatMul", x, net.weight(64, 64)), shape=(sym("N"), 16, 4, 16)), perm=(0, 2, 1, 3))
    context = net("MatMul", heads, net.input(sym("N"), 4, 16, 16, name="v"))
    merged = net("Reshape", net("Transpose", context, perm=(0, 2, 1, 3)), shape=(sym("N"), 16, 64))
    placement = net.compile(net("MatMul", merged, net.weight(64, 64)))
    assert placement.copies == []


def test_what_reads_rows_that_lie_apart_writes_for_the_merge_that_follows() -> None:
    net = _Net()
    x = net("Relu", net("Transpose", net.input(sym("N"), 4, 7, 8), perm=(0, 2, 1, 3)))
    placement = net.compile(net("Softmax", net("Reshape", x, shape=(sym("N") * 7, 4, 8)), axis=-1))
    assert placement.copies == [] and is_row_major(net.fusions()[0].output.tensor)
    net = _Net()
    x = net("Relu", net("Transpose", net.input(sym("N"), 4, 7, 8), perm=(0, 2, 1, 3)))
    net.compile(net("Softmax", net("Reshape", x, shape=(sym("N"), 7, 4, 2, 4)), axis=-1))
    assert not is_row_major(net.fusions()[0].output.tensor)  # nothing is merged: all stays in the order in which it comes


def test_outputs_are_dense() -> None:
    net = _Net()
    net.compile(net.conv(net.input(1, 8, 6, 6), 8))
    assert is_row_major(net.graph.outputs[0].tensor)
