"""Random small ONNX models, the same for the same seed.

A model grows node by node. Each addition is imported and run by the references on its own, at every sample size, twice: once on the
values so far and once on their *twins*, which carry rounding errors. What fails, grows too large or is not finite is
not added, nor what turns a rounding error into another result (a comparison of nearly equal numbers, an index of the largest).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dovetail.core import dims
from dovetail.core.dims import Dim, Expr, sym
from dovetail.core.errors import Error
from dovetail.frontend.importer import import_onnx
from dovetail.ir.types import TensorType
from dovetail.ops.evaluate import evaluate
from tests.fuzz.case import Array, Case, Value, label, make_model, reads

Nodes = list[onnx.NodeProto]
F32, F16, F64 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64)
I64, I32, BOOL = np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_)
SIZES = ({"N": 3, "M": 5}, {"N": 1, "M": 2}, {"N": 6, "M": 1})
EMPTY = {"N": 0, "M": 4}
_MOST_ELEMENTS = 3000
_LARGEST = {"f": 1e4, "i": 1 << 24, "u": 255, "b": 1}
_SHAPES: tuple[tuple[Dim | str, ...], ...] = (
    ("N", 4, 6, 5), ("N", 3, 8, 8), (2, 8, 5, 7), (1, 16, 6, 6), ("N", 8, 9), ("N", "M", 6), ("N", "M", 16), (2, 5, 8), ("N", 12),
    ("N", 17), (3, 7), (1, 33), (1, 1, 6), (9,), ("N",), ("M", 4), (), (1,), (4, 1), (0, 4), (1, 4, 1, 5), (2, 3, 2, 4, 3),
)  # fmt: skip


class Generator:
    """One model in the making; proposals (`operators.py`) draw from it and hand back nodes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.seed, self.opset = seed, self.rng.choice([17, 18, 21])
        self.symbolic = self.rng.random() < 0.6
        sizes = list(SIZES) if self.symbolic else [SIZES[0]]
        self.sizes = sizes + [EMPTY] * (self.symbolic and self.rng.random() < 0.15)
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.weights: list[str] = []
        self.nodes: Nodes = []
        self.refused: Counter[str] = Counter()
        self.count = 0

    # ------------------------------------------------------------------ names, nodes, new tensors
    def name(self, prefix: str = "v") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> onnx.NodeProto:
        return helper.make_node(op, list(inputs), [self.name() for _ in range(outputs)], **attrs)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def draw(self, kind: np.dtype[Any], shape: Sequence[int]) -> Array:
        """Random elements: a few equal ones among integers, floats in the range in which functions bend."""
        if kind == BOOL:
            return self.numbers.integers(0, 2, shape).astype(BOOL)
        if kind.kind in "iu":
            return self.numbers.integers(0 if kind.kind == "u" else -4, 6, shape).astype(kind)
        return self.numbers.uniform(-2, 2, shape).astype(kind)

    def weight(self, array: Array) -> str:
        """A new initializer."""
        name = self.name("w")
        self.values[name] = Value(name, array.shape, (array,) * len(self.sizes), (array,) * len(self.sizes))
        self.weights.append(name)
        return name

    def ints(self, *numbers: int) -> str:
        """Integers as a constant tensor of one axis."""
        return self.weight(np.array(numbers, np.int64))

    def input(self, kind: np.dtype[Any], shape: tuple[Dim, ...]) -> str:
        """A new graph input."""
        name = self.name("x")
        arrays = tuple(self.draw(kind, [dims.evaluate(d, s) if isinstance(d, Expr) else d for d in shape]) for s in self.sizes)
        self.values[name] = Value(name, shape, arrays, tuple(self._rounded(a) for a in arrays))
        self.inputs.append(name)
        return name

    def fresh(self, kind: np.dtype[Any], shape: Sequence[Dim]) -> str:
        """A new tensor of the shape: an initializer where it is static, or an input."""
        known = [d for d in shape if isinstance(d, int)]
        if len(known) == len(shape) and self.chance(0.7):
            return self.weight(self.draw(kind, known))
        if all(isinstance(d, int) or (str(d).isidentifier() and str(d) in "NM") for d in shape):
            return self.input(kind, tuple(shape))
        return self.weight(self.draw(kind, [d if isinstance(d, int) else 1 for d in shape]))

    # ------------------------------------------------------------------ values that are there
    def pick(self, accept: Callable[[Value], bool]) -> Value | None:
        """A value so far, recent ones rather; now and then an initializer."""
        found = [v for v in self.values.values() if accept(v) and (v.name not in self.weights or self.chance(0.04))]
        if not found:
            return None
        return self.rng.choice(found[-3:] if self.chance(0.65) else found)

    def floats(self, rank: int | None = None, least: int = 0) -> Value | None:
        """A float value of a rank, or of `least` axes or more."""
        return self.pick(lambda v: v.dtype.kind == "f" and (v.rank == rank if rank is not None else v.rank >= least))

    def partner(self, value: Value, kind: np.dtype[Any] | None = None) -> str:
        """An operand that broadcasts with a value: itself, another, an initializer or an input, perhaps with fewer axes."""
        kind = value.dtype if kind is None else kind
        if kind == value.dtype and self.chance(0.08):
            return value.name
        if self.chance(0.5):
            other = self.pick(lambda v: v.dtype == kind and v is not value and _broadcast(v.shape, value.shape))
            if other is not None:
                return other.name
        shape = list(value.shape)
        if self.chance(0.5):
            shape = [1 if self.chance(0.4) else d for d in shape][self.rng.randint(0, len(shape)) :]
        if self.chance(0.1):
            shape = self.rng.choice([[], [1], [1] * len(value.shape), [1, *value.shape]])
        return self.fresh(kind, shape)

    # ------------------------------------------------------------------ growing
    def add(self, nodes: Nodes) -> bool:
        """Take nodes up, unless they fail or are not to be judged; then why is counted in `refused`."""
        made = {n for node in nodes for n in node.output if n}
        outer = [n for n in dict.fromkeys(name for node in nodes for name in reads(node)) if n not in made]
        weights = [self.values[n] for n in outer if n in self.weights]
        inputs = [self.values[n] for n in outer if n not in self.weights]
        names = [n for node in nodes for n in node.output if n]
        back = {label(d): d for v in inputs for d in v.shape if isinstance(d, Expr)}
        try:
            with np.errstate(all="ignore"):
                module = import_onnx(make_model(nodes, inputs, weights, names, self.opset))
                arrays = [evaluate(module, {v.name: v.arrays[i] for v in inputs}) for i in range(len(self.sizes))]
                twins = [evaluate(module, {v.name: v.twins[i] for v in inputs}) for i in range(len(self.sizes))]
        except Error as error:
            self.refused[f"{nodes[-1].op_type}: {str(error).splitlines()[-1][:160]}"] += 1
            return False
        found = []
        for name, out in zip(names, module.main.outputs, strict=True):
            if not isinstance(out.type, TensorType):
                return False
            fresh = {s for d in out.tensor.shape for s in dims.symbols(d)} - set(back)
            back |= {s: sym(self.name("u")) for s in sorted(fresh)}
            shape = tuple(dims.substitute(d, back) for d in out.tensor.shape)
            exact = tuple(np.asarray(a[name]) for a in arrays)
            rounded = tuple(np.asarray(t[name]) for t in twins)
            why = _unfit(exact, rounded)
            if why:
                self.refused[f"{nodes[-1].op_type}: {why}"] += 1
                return False
            found.append(Value(name, shape, exact, tuple(self._rounded(t) for t in rounded)))
        self.values |= {v.name: v for v in found}
        self.nodes += nodes
        return True

    def _rounded(self, array: Array) -> Array:
        """The array with relative errors of a few units in the last place, and with those that sums make."""
        if array.dtype.kind != "f" or not array.size:
            return array
        eps = max(5e-7, float(np.finfo(array.dtype).eps))
        wide = array.astype(np.float64)
        spread = 0.1 * np.abs(wide).max() * (wide != 0)
        return np.asarray((wide + eps * self.numbers.uniform(-1, 1, wide.shape) * (np.abs(wide) + spread)).astype(array.dtype))

    def case(self) -> Case:
        """The model as it stands, with outputs chosen among all values."""
        used = {n for node in self.nodes for n in reads(node)}
        made = [n for node in self.nodes for n in node.output if n]
        ends = [n for n in made if n not in used]
        self.rng.shuffle(ends)
        if self.chance(0.3):  # the others are dead
            ends = ends[: self.rng.randint(1, 4)]
        outputs = ends
        if self.chance(0.4):
            outputs += self.rng.sample(made, min(2, len(made)))
        if self.chance(0.06):
            outputs += self.rng.choice([self.inputs, self.weights or self.inputs])[:1]
        outputs = list(dict.fromkeys(outputs))
        kept = {*used, *outputs}
        listed = frozenset(n for n in self.weights if self.chance(0.02))
        return Case(
            self.seed, self.opset, self.values, tuple(n for n in self.inputs if n in kept), tuple(n for n in self.weights if n in kept),
            tuple(self.nodes), tuple(outputs), len(self.sizes), listed,
        )  # fmt: skip


def generate(seed: int) -> Case:
    """The model of a seed."""
    return grow(seed).case()


def grow(seed: int) -> Generator:
    """The generator of a seed after its last node."""
    import tests.fuzz.operators_sums  # noqa: F401 - registers its proposals behind those of `operators`
    from tests.fuzz.operators import PROPOSALS

    g = Generator(seed)
    for _ in range(g.rng.randint(1, 3)):
        shape = g.rng.choice(_SHAPES)
        kind = g.rng.choices([F32, I64, BOOL, I32, F16, F64], [30, 2, 1, 1, 1, 1])[0]
        g.input(kind, tuple(_extent(g, d) for d in shape))
    wanted = g.rng.randint(6, 24)
    makers, weights = list(PROPOSALS), list(PROPOSALS.values())
    for _ in range(12 * wanted):
        if len(g.nodes) >= wanted:
            break
        if g.nodes and g.chance(0.04):  # a node that is there twice
            twin = onnx.NodeProto()
            twin.CopyFrom(g.rng.choice(g.nodes))
            twin.output[:] = [g.name() for _ in twin.output]
            proposed: Nodes | None = [twin]
        else:
            proposed = g.rng.choices(makers, weights)[0](g)
        if proposed:
            g.add(_constants_as_nodes(g, proposed))
    return g


def _constants_as_nodes(g: Generator, nodes: Nodes) -> Nodes:
    """Now and then, what the nodes read from an initializer of their own comes from a Constant node."""
    if not g.chance(0.15):
        return nodes
    result = list(nodes)
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in g.weights and g.chance(0.5):
                made = g.node("Constant", [], value=numpy_helper.from_array(g.values[name].arrays[0]))
                node.input[i] = made.output[0]
                result.insert(0, made)
    return result


def _extent(g: Generator, d: Dim | str) -> Dim:
    if isinstance(d, str):
        return sym(d) if g.symbolic else SIZES[0][d]
    return d


def _broadcast(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    return all(m == n or m == 1 or n == 1 for m, n in zip(reversed(a), reversed(b), strict=False))


def _unfit(arrays: Sequence[Array], twins: Sequence[Array]) -> str:
    """Why a result cannot be compared; "" if it can."""
    for array, twin in zip(arrays, twins, strict=True):
        if array.size > _MOST_ELEMENTS or array.ndim > 6 or array.dtype.kind not in _LARGEST:
            return "too large"
        if array.shape != twin.shape:
            return "its shape depends on rounding"
        if not array.size:
            continue
        if array.dtype.kind in "iub":
            if np.abs(array.astype(np.int64)).max() > _LARGEST[array.dtype.kind]:
                return "too large"
            if not np.array_equal(array, twin):
                return "depends on rounding"
            continue
        wide, moved = array.astype(np.float64), twin.astype(np.float64)
        if not (np.isfinite(wide).all() and np.isfinite(moved).all()) or np.abs(wide).max() > _LARGEST["f"]:
            return "too large"
        bound = 1e-3 if array.dtype != F16 else 2e-2
        if np.abs(wide - moved).max() > bound * np.abs(wide).max() + 1e-6:
            return "depends on rounding"
    return ""
