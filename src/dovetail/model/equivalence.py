"""Whether a simplified or edited model computes what the original does: both on seeded inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from dovetail.benchmark import peers
from dovetail.core.dtypes import dtype
from dovetail.core.errors import Error, UnsupportedOpError, UsageError, VerificationError
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import ModelSource, dtype_name, read_model
from dovetail.model.model import Model
from dovetail.model.sample_inputs import Arrays, generate
from dovetail.model.weights import all_tensors, is_external, read_in, stored_bytes
from dovetail.model.writing import PROTO_LIMIT
from dovetail.ops.evaluate import evaluate
from dovetail.ops.samples import sizes_to_try
from dovetail.plugins import registered

_TOLERANCE = 1e-4
MAPPED_LIMIT_BYTES = 512 << 20
"""Weights in files beyond this size are not loaded as a whole to run a model."""

# The result may be this many times as far from the original as rounding moves the original: folding rounds each weight anew.
_CONDITION = 8.0
_ULPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_ROUNDED = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass
class DeclaredInput:
    """An input of a model, as `generate` wants it."""

    name: str
    dtype: Any
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Border:
    """How the inputs and outputs of a result stand to the original's, where an edit changed names, types or order of axes."""

    inputs: Callable[[Arrays], Arrays] = lambda feeds: feeds
    """Inputs of the result from the original's."""
    outputs: Callable[[list[Any]], list[Any]] = lambda values: values
    """Outputs of the original from the result's."""
    tolerance: float = _TOLERANCE


def check(
    original: ModelSource, result: ModelSource, count: int = 1, *, border: Border | None = None, verb: str = "simplify"
) -> float:
    """The largest relative L2 difference of any output over `count` seeded inputs.

    Symbolic sizes are the first that the original takes. Differences above 1e-4 pass where moving the original's inputs and
    weights by a unit in the last place changes the output as much: seeded noise can be far from what a model was trained on.

    Raises:
        UsageError: the original runs at no made-up sizes.
        VerificationError: an output differs in shape, dtype, or by more than that.
    """
    original, result = Model.load(original), Model.load(result)
    # A result with the same border may have sizes where the original has symbols.
    bindings = declared_inputs((result if border is None else original).proto)
    border = border or Border()
    worst = 0.0
    for seed in range(count):
        feeds, expected = run_original(original, bindings, seed, verb)
        actual = border.outputs(evaluate_model(result, border.inputs(feeds)))
        moved: list[Any] | None = None
        for position, value in enumerate(original.proto.graph.output):
            error = difference(expected[position], actual[position])
            if not error <= border.tolerance:
                if moved is None:
                    moved = evaluate_model(_rounded_model(original), _rounded_arrays(feeds))
                floor = difference(expected[position], moved[position])
                if not error <= _CONDITION * floor:
                    raise VerificationError(
                        f"{verb}: output {value.name!r} differs from the original by {error:.3g}, expected at most {border.tolerance:g} "
                        f"(rounding of inputs and weights moves it by {floor:.3g}); nothing was written"
                        + ("; find the rewrite with --skip" if verb == "simplify" else "; --no-check skips this")
                    )
            worst = max(worst, error)
    return worst


def declared_inputs(model: onnx.ModelProto) -> list[DeclaredInput]:
    """The inputs that a model declares, without initializers; a dimension without size and name gets one of its own.

    Raises:
        UsageError: an input that is no numeric tensor of known rank.
    """
    known = {t.name for t in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        if value.type.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
            raise UsageError(f"input {value.name!r} is no tensor of known rank: cannot make up values; pass --no-check")
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}.{axis}"
            for axis, d in enumerate(tensor.shape.dim)
        )
        if dtype_name(tensor.elem_type) == "string":
            raise UsageError(f"input {value.name!r} holds strings: cannot make up values; pass --no-check")
        found.append(DeclaredInput(value.name, dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape))
    return found


def run_original(
    model: ModelSource, bindings: Sequence[DeclaredInput], seed: int, verb: str = "simplify"
) -> tuple[Arrays, list[Any]]:
    """Seeded inputs, and the model's outputs for them.

    Raises:
        UsageError: it runs at no made-up sizes.
    """
    symbols = sorted({d for b in bindings for d in b.shape if isinstance(d, str)})
    refusal: Exception | None = None
    for sizes in sizes_to_try(symbols, {}):
        shapes = {b.name: tuple(sizes.get(d, d) if isinstance(d, str) else d for d in b.shape) for b in bindings}
        feeds = generate(bindings, shapes, seed)
        try:
            return feeds, evaluate_model(model, feeds)
        except Exception as error:  # each evaluator has its own kinds; the last one is the cause below
            refusal = error
    try:
        import_onnx(model)
    except UnsupportedOpError:
        pass  # the evaluator's reason is the better one: it may know the operator
    except Error as error:
        refusal = error  # the model itself is at fault, which this says in the user's words
    raise UsageError(
        f"{verb}: the original runs on no made-up inputs ({refusal}); "
        + ("name sizes with --shapes, or pass --no-check" if verb == "simplify" else "pass --no-check")
    ) from refusal


def evaluate_model(model: ModelSource, feeds: Arrays) -> list[Any]:
    """Outputs of a model: by ONNX Runtime, by ONNX's evaluator where that is missing.

    Dovetail's references run what has users' operators, and what has more than 512 MiB of weights in files: those stay
    memory-mapped, and one operator after the other reads its own.
    """
    proto, folder = read_model(model)
    named = {p.key.name for p in registered()} & {n.op_type for n in proto.graph.node if not onnx.defs.has(n.op_type, n.domain)}
    mapped = sum(stored_bytes(t) for t in all_tensors(proto) if is_external(t))
    if named or mapped > MAPPED_LIMIT_BYTES:
        values = evaluate(import_onnx(Model(proto, folder)), feeds)
        return [values[value.name] for value in proto.graph.output]
    if mapped:
        loaded = onnx.ModelProto()
        loaded.CopyFrom(proto)
        for tensor in all_tensors(loaded):
            read_in(tensor, folder)
        proto = loaded
    if peers.version("onnxruntime") is None or proto.ByteSize() > PROTO_LIMIT:
        from onnx.reference import ReferenceEvaluator

        return list(ReferenceEvaluator(proto).run(None, feeds))
    results: Any = peers.onnxruntime_run(proto, feeds, 0)()
    return list(results)


def _rounded_model(model: Model) -> Model:
    """The model with every float initializer moved by about a unit in the last place, up or down; those in files stay as they are."""
    moved = model.copy()
    for tensor in moved.proto.graph.initializer:
        if tensor.data_type in _ROUNDED and not is_external(tensor):
            (array,) = _rounded_arrays({tensor.name: onnx.numpy_helper.to_array(tensor)}).values()
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return moved


def _rounded_arrays(arrays: Arrays) -> Arrays:
    rng = np.random.default_rng(0)
    moved = {}
    for name, array in arrays.items():
        step = _ULPS.get(array.dtype.name)
        if step is not None:
            up = rng.integers(0, 2, array.shape, np.uint8).astype(np.bool_)
            wide = array.astype(np.float32)
            array = np.where(up, wide * np.float32(1 + step), wide * np.float32(1 - step)).astype(array.dtype)
        moved[name] = array
    return moved


def difference(want: Any, got: Any) -> float:
    """Relative L2 difference; infinite if shape, dtype or the places of NaN differ."""
    if isinstance(want, list):
        return max(map(difference, want, got), default=0.0) if len(want) == len(got) else float("inf")
    want, got = np.asarray(want), np.asarray(got)
    if want.shape != got.shape or want.dtype != got.dtype:
        return float("inf")
    if want.dtype.kind in "OSUb":
        return 0.0 if np.array_equal(want, got) else float("inf")
    a, b = want.astype(np.float64).reshape(-1), got.astype(np.float64).reshape(-1)
    odd = ~np.isfinite(a)
    if not np.array_equal(a[odd], b[odd], equal_nan=True):
        return float("inf")
    distance, norm = float(np.linalg.norm(a[~odd] - b[~odd])), float(np.linalg.norm(a[~odd]))
    return distance / norm if norm else distance
