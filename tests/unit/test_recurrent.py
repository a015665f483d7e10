"""Generated LSTM, GRU and RNN against the reference in float64, kernel by kernel, between guard zones."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.builder.select import Choice, select
from dovetail.codegen import vmath
from dovetail.codegen.compiler import compile_c
from dovetail.codegen.lower import reason_not_lowerable
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, evaluate, sym
from dovetail.core.dtypes import F16, F32, I32, I64, DType
from dovetail.device.cpu import aligned_bytes
from dovetail.ir.graph import Value
from dovetail.passes.fuse import fuse
from dovetail.passes.layout import assign_layouts
from dovetail.reference.recurrent import RECURRENT_ACTIVATIONS, activation_parameters
from dovetail.reference.registry import call, lookup
from dovetail.tuner.launch import Placed, place
from tests.unit.ir_builder import Builder

TARGETS = [t for t in map(Target.parse, ("cpu:avx512", "cpu:avx2", "cpu:generic")) if t.supports_host()]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


class Layer:
    """One recurrent op, its arrays, and the kernels chosen for it."""

    def __init__(
        self, op: str, steps: int, batch: int, inputs: int, hidden: int, *, target: Target = TARGETS[0],
        direction: str = "forward", bias: bool = True, lengths: DType | None = None, states: bool = False,
        peepholes: bool = False, functions: tuple[str, ...] = (), parameters: tuple[float, float] = (0.0, 0.0),
        constant: bool = True, symbolic: bool = True, dtype: DType = F32, **attrs: Any,
    ) -> None:  # fmt: skip
        self.op, self.target, self.sizes = op, target, {"T": steps, "B": batch}
        rng = np.random.default_rng(steps * 7919 + batch * 131 + inputs * 17 + hidden)
        d = 2 if direction == "bidirectional" else 1
        t, b = (sym("T"), sym("B")) if symbolic else (steps, batch)
        self.builder = Builder()
        self.arrays: list[np.ndarray | None] = []
        self.values: list[Value | None] = []

        def add(shape: tuple[Dim, ...], there: bool = True, weight: bool = False, kind: DType = dtype) -> None:
            if not there:
                self.arrays.append(None)
                self.values.append(None)
                return
            size = tuple(evaluate(x, self.sizes) for x in shape)
            data = rng.integers(0, steps + 2, size) if kind.is_int else rng.normal(0, 0.6 if not weight else size[-1] ** -0.5, size)
            # Weights that keep products near 1: larger ones make layers chaotic, and rounding errors grow with time.
            self.arrays.append(data.astype(kind.numpy))
            fixed = weight and constant
            self.values.append(self.builder.weight(self.arrays[-1]) if fixed else self.builder.input(*shape, dtype=kind))

        rows = GATES[op] * hidden
        add((t, b, inputs))
        add((d, rows, inputs), weight=True)
        add((d, rows, hidden), weight=True)
        add((d, 2 * rows), bias, weight=True)
        add((b,), lengths is not None, kind=lengths or I32)
        add((d, b, hidden), states)
        if op == "LSTM":
            add((d, b, hidden), states)
            add((d, 3 * hidden), peepholes, weight=True)
        while self.values[-1] is None:
            self.values.pop()
        names = functions or DEFAULT[op] * d
        self.attrs: dict[str, Any] = {
            "hidden_size": hidden, "direction": direction, "activations": names,
            "activation_alpha": (parameters[0],) * len(names), "activation_beta": (parameters[1],) * len(names), **attrs,
        }  # fmt: skip
        outputs = self.builder(op, *self.values, **self.attrs)
        self.module = self.builder.module
        self.module.main.set_outputs(outputs)
        self.module.main.update_times()
        self.log = fuse(self.module, target, reason_not_lowerable)

    def choice(self) -> Choice:
        """What selection makes of it; the layer must be one group."""
        assert not self.log.host
        assign_layouts(self.module, self.target)
        (found,) = select(self.module, self.target).values()
        return found

    def want(self) -> tuple[np.ndarray, ...]:
        """The reference in float64."""
        wide = [a if a is None or a.dtype.kind == "i" else a.astype(np.float64) for a in self.arrays]
        return tuple(lookup(self.op)(*wide, **self.attrs))

    def run(self, choice: Choice, threads: int) -> list[np.ndarray]:
        """Results of a team of so many threads, which are called one after the other."""
        known = {v: a for v, a in zip(self.values, self.arrays, strict=False) if v is not None and a is not None}
        operands: list[Placed] = []
        for value in choice.group.inputs:
            array = known.get(value)
            if array is None:
                pack = value.producer
                assert pack is not None and pack.op == "PackRecurrent"
                (array,) = call(pack.op, [known[pack.input(0)]], pack.attrs)
            operands.append(place(value.tensor, self.sizes, array))
        results = [place(v.tensor, self.sizes) for v in choice.group.outputs]
        emitted = choice.emit(self.target)
        temps = [aligned_bytes(max(64, evaluate(size, self.sizes))) for size in emitted.temps]
        for step in emitted.steps:
            kernel = step.kernel
            room = evaluate(kernel.workspace_bytes, self.sizes)
            workspace = aligned_bytes(room + 64)
            workspace[:] = 0xFF
            places = {"in": operands, "out": results}
            p = (ctypes.c_void_p * len(step.args))(
                *(
                    places[a.role][a.index].address if a.role in places
                    else temps[a.index].ctypes.data if a.role == "temp" else workspace.ctypes.data
                    for a in step.args
                )
            )  # fmt: skip
            d = (ctypes.c_int64 * (len(kernel.dims) + 1))(*(evaluate(n, self.sizes) for n in kernel.dims))
            library = ctypes.CDLL(str(compile_c(vmath.prelude(self.target, kernel.source) + kernel.source, self.target)))
            for tid in range(threads):
                getattr(library, kernel.entry)(ctypes.c_int64(tid), ctypes.c_int64(threads), p, d)
            assert (workspace[room:] == 0xFF).all()
        assert all(r.intact() for r in results)
        return [np.array(r.array) for r in results]

    def check(self, tolerance: float = 3e-6, threads: tuple[int, ...] = (1, 2, 5)) -> None:
        """Agreement with the reference, and equal bits for every team."""
        choice = self.choice()
        assert choice.tactic.name == "recurrent"
        first = self.run(choice, threads[0])
        for got, want in zip(first, self.want(), strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max(initial=0.0)))
        for team in threads[1:]:
            for a, b in zip(first, self.run(choice, team), strict=True):
                assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_directions(op: str, direction: str, target: Target) -> None:
    Layer(op, 5, 7, 6, 19, target=target, direction=direction, lengths=I32, states=True).check()


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gru_variants(bias: bool, linear: bool, target: Target) -> None:
    Layer("GRU", 4, 3, 5, 37, target=target, bias=bias, states=True, linear_before_reset=linear, clip=0.7).check()


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_lstm_peepholes(bias: bool, forget: bool) -> None:
    Layer(
        "LSTM", 4, 3, 5, 33, bias=bias, peepholes=True, states=True, input_forget=forget, clip=0.4, direction="bidirectional",
        lengths=I64,
    ).check()  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"),
    [(1, 1, 1, 1), (3, 1, 2, 2), (2, 13, 3, 16), (2, 5, 17, 31), (6, 2, 1, 65), (0, 2, 3, 4), (2, 0, 3, 4), (1, 64, 4, 8)],
)
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("symbolic", [True, False])
def test_shapes(op: str, steps: int, batch: int, inputs: int, hidden: int, symbolic: bool) -> None:
    Layer(op, steps, batch, inputs, hidden, symbolic=symbolic, states=True).check(threads=(1, 3, 70))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_weights_that_come_as_inputs(op: str) -> None:
    layer = Layer(op, 3, 4, 5, 18, constant=False, direction="bidirectional", peepholes=True)
    layer.check()


@pytest.mark.parametrize("name", sorted(RECURRENT_ACTIVATIONS.values()))
def test_activations(name: str) -> None:
    defaults = (*activation_parameters(name), 0.0, 0.0)[:2]
    Layer("RNN", 3, 2, 4, 9, functions=(name,), parameters=(defaults[0], defaults[1]), clip=2.0).check()
    scaled = tuple(0.7 * x if x else 0.0 for x in defaults)
    Layer("RNN", 3, 2, 4, 9, functions=(name, "Tanh"), parameters=(scaled[0], scaled[1]), direction="bidirectional").check()


def test_every_configuration_computes_the_same() -> None:
    for op in GATES:
        layer = Layer(op, 3, 4, 5, 50)
        choice = layer.choice()
        configs = list(choice.tactic.configs(choice.group, layer.target))
        assert len(configs) > 1
        for config in configs:
            other = Layer(op, 3, 4, 5, 50)
            assert not other.log.host
            assign_layouts(other.module, other.target)
            (found,) = select(other.module, other.target, lambda groups, *_: [(able[0], config, ()) for _, able in groups]).values()  # noqa: B023
            for got, want in zip(other.run(found, 2), other.want(), strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=3e-6)


def test_operands_with_other_strides() -> None:
    """Batch-major input and output: the kernels read and write through the Transposes."""
    b = Builder()
    rng = np.random.default_rng(5)
    x = b.input(sym("B"), sym("T"), 6)
    w, r = (b.weight(rng.normal(0, 0.5, (1, 76, n)).astype(np.float32)) for n in (6, 19))
    attrs = {"hidden_size": 19, "activations": DEFAULT["LSTM"], "activation_alpha": (0.0,) * 3, "activation_beta": (0.0,) * 3}
    y, *_ = b("LSTM", b("Transpose", x, perm=(1, 0, 2)), w, r, **attrs)
    b.graph.set_outputs((b("Transpose", y, perm=(2, 0, 1, 3)),))
    b.graph.update_times()
    fuse(b.module, TARGETS[0], reason_not_lowerable)
    placement = assign_layouts(b.module, TARGETS[0])
    assert not placement.copies
    (choice,) = select(b.module, TARGETS[0]).values()
    data = rng.normal(0, 1, (4, 5, 6)).astype(np.float32)
    layer = Layer("LSTM", 5, 4, 6, 19, bias=False)
    layer.values = [choice.group.inputs[0], w, r]
    layer.arrays = [data.transpose(1, 0, 2), *(b.module.weights[v.name] for v in (w, r))]
    got = layer.run(choice, 2)[0]
    want = lookup("LSTM")(*(a.astype(np.float64) for a in layer.arrays if a is not None), **attrs)[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6)


def test_refusals_say_why() -> None:
    half = Layer("LSTM", 2, 2, 3, 4, dtype=F16)
    assert half.log.host and "f16, expected f32" in half.log.host[0][1]
    b = Builder()
    x, w = b.input(2, 3, 4), b.random(1, 4, 4)
    attrs = {"hidden_size": 4, "activations": ("Tanh",), "activation_alpha": (0.0,), "activation_beta": (0.0,)}
    b.graph.set_outputs(b("RNN", x, w, w, **attrs))
    b.graph.update_times()
    assert "weight and as something else" in fuse(b.module, TARGETS[0], reason_not_lowerable).host[0][1]


def test_packing_puts_gates_side_by_side() -> None:
    w = np.arange(1, 1 + 2 * 6 * 2, dtype=np.float32).reshape(2, 6, 2)  # three gates of two units, depth 2
    (packed,) = call("PackRecurrent", [w], {"phases": (2, 1), "vectors": 2, "lanes": 1})
    gates = w.reshape(2, 3, 2, 2)
    for d in range(2):
        panels = packed[d].reshape(3, 2, 2)  # phase 0: a panel per unit; phase 1: both units
        for unit in range(2):
            np.testing.assert_array_equal(panels[unit], gates[d, :2, unit].T)
        np.testing.assert_array_equal(panels[2], gates[d, 2].T)


@pytest.mark.parametrize(("op", "outputs"), [("LSTM", ["", "h", "c"]), ("GRU", ["y"]), ("RNN", ["y", "h"])])
def test_one_engine_for_all_shapes_agrees_with_onnxruntime(op: str, outputs: list[str]) -> None:
    """From ONNX to results: symbolic steps and batch, lengths, results left out; checked by verification, too."""
    rng = np.random.default_rng(11)
    rows, hidden = GATES[op] * 21, 21
    weights = {
        "W": rng.normal(0, 0.4, (2, rows, 5)), "R": rng.normal(0, 0.2, (2, rows, hidden)), "B": rng.normal(0, 0.4, (2, 2 * rows)),
    }  # fmt: skip
    node = helper.make_node(op, ["X", "W", "R", "B", "L", "H"], outputs, hidden_size=hidden, direction="bidirectional")
    graph = helper.make_graph(
        [node], "recurrent",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, ["t", "b", 5]),
            helper.make_tensor_value_info("L", TensorProto.INT32, ["b"]),
            helper.make_tensor_value_info("H", TensorProto.FLOAT, [2, "b", hidden]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs if n],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    engine = dovetail.build(model, threads=2, verify="full", tune=False)
    assert [g["tactic"] for g in engine.report().json()["groups"]] == ["recurrent"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for steps, batch in ((1, 1), (6, 3), (3, 9)):
        feeds = {
            "X": rng.standard_normal((steps, batch, 5), np.float32), "H": rng.standard_normal((2, batch, hidden), np.float32),
            "L": rng.integers(1, steps + 1, batch).astype(np.int32),
        }  # fmt: skip
        for name, want in zip([n for n in outputs if n], session.run(None, feeds), strict=True):
            np.testing.assert_allclose(engine.run(feeds)[name], want, rtol=0, atol=5e-6)
