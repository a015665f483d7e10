"""Whether an exported model computes what TensorFlow does: both on seeded inputs, output by output."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from dovetail.benchmark import peers
from dovetail.core.errors import Error, ExportError, UsageError
from dovetail.export.report import Difference
from dovetail.export.tensorflow_conversion import CUSTOM_DOMAIN
from dovetail.export.tensorflow_graphs import Arrays, Frozen
from dovetail.frontend.importer import import_onnx
from dovetail.model.equivalence import DeclaredInput
from dovetail.model.proto_graph import all_nodes
from dovetail.model.sample_inputs import generate
from dovetail.ops.evaluate import evaluate
from dovetail.ops.samples import sizes_to_try
from dovetail.plugins import registered

TOLERANCE, TOLERANCE_NARROW = 1e-4, 1e-2
"""Relative L2 difference that an output may have: of fp32 and wider, and of fp16 and bf16."""

QUANTISED_STEPS = 2
"""Steps that an 8-bit output of a quantised model may differ by: TFLite rounds after each layer in integers, ONNX in fp32."""


@dataclass(frozen=True)
class Case:
    """What to compare on.

    Attributes:
        samples: the original's inputs by name; None makes seeded ones.
        declared: inputs of the original as the model declares them (the model may lack those that nothing reads); or why no values can
            be made up for them.
        seed: of made-up inputs.
        as_nchw: inputs and outputs of the model that have the channels in front where the original has them last.
        tolerance: relative L2 difference that is accepted; None is that of the type.
    """

    samples: Mapping[str, Any] | None
    declared: Sequence[DeclaredInput] | str
    seed: int = 0
    as_nchw: Sequence[str] = ()
    tolerance: float | None = None

    def limit(self, model: onnx.ModelProto) -> float:
        """The largest relative difference that any output may have."""
        if self.tolerance is not None:
            return self.tolerance
        kinds = {v.type.tensor_type.elem_type for v in model.graph.output}
        return TOLERANCE_NARROW if kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} else TOLERANCE


def compare(frozen: Frozen, model: onnx.ModelProto, case: Case) -> tuple[list[Difference], str, list[str]]:
    """The differences of all outputs, what ran the model, and notes.

    Args:
        frozen: the original.
        model: what was exported from it.
        case: the inputs, and what is accepted.

    Raises:
        ExportError: an output differs by more; nothing is computed of it that could be trusted.
        UsageError: TensorFlow runs the original on no made-up inputs, or samples lack one.
    """
    feeds, want, words = _given(frozen, case) if case.samples is not None else _made_up(frozen, case)
    feeds = {name: np.moveaxis(array, -1, 1) if name in case.as_nchw else array for name, array in feeds.items()}
    got, evaluator, notes = _run(model, {v.name: feeds[v.name] for v in model.graph.input})
    found, bad = [], []
    for value in model.graph.output:
        expected, actual = np.asarray(want[value.name]), np.asarray(got[value.name])
        if value.name in case.as_nchw:
            actual = np.moveaxis(actual, 1, -1)
        row = Difference.between(value.name, words, expected, actual)
        found.append(row)
        if not _close(expected, row, case.tolerance, frozen.tflite is not None):
            bad.append(f"{row.output} {row.relative_l2:.3g} (largest absolute {row.max_abs:.3g})")
    if bad:
        raise ExportError(
            f"{frozen.name}: the ONNX model does not compute what TensorFlow does: relative L2 difference of {', '.join(bad)} "
            f"({words}, {evaluator}), expected at most {case.limit(model):g}; nothing was written; "
            "--tolerance accepts more, another --opset may help"
        )
    return found, evaluator, notes


def _given(frozen: Frozen, case: Case) -> tuple[Arrays, Arrays, str]:
    """The samples, in TensorFlow's order of axes, and its outputs for them."""
    assert case.samples is not None
    wanted = [frozen.names.get(tensor, tensor) for tensor in frozen.inputs]
    missing = sorted(set(wanted) - set(case.samples))
    if missing:
        raise UsageError(f"samples: got {sorted(case.samples)}, expected {sorted(wanted)}; add {missing}")
    feeds = {name: np.asarray(case.samples[name]) for name in wanted}
    feeds = {name: np.moveaxis(array, 1, -1) if name in case.as_nchw else array for name, array in feeds.items()}
    try:
        return feeds, frozen.run(feeds), "the given inputs"
    except Exception as error:  # TensorFlow has its own kinds
        raise UsageError(f"{frozen.name}: TensorFlow does not run it on the given inputs ({' '.join(str(error).split())[:300]})") from error


def _made_up(frozen: Frozen, case: Case) -> tuple[Arrays, Arrays, str]:
    """Seeded inputs in TensorFlow's order of axes, its outputs for them, and the sizes in words."""
    assert not isinstance(case.declared, str)
    symbols = sorted({d for b in case.declared for d in b.shape if isinstance(d, str)})
    refusal: Exception | None = None
    for sizes in sizes_to_try(symbols, {}):
        feeds = _feeds(case.declared, sizes, case.seed)
        feeds = {name: np.moveaxis(array, 1, -1) if name in case.as_nchw else array for name, array in feeds.items()}
        try:
            outputs = frozen.run(feeds)
        except Exception as error:  # TensorFlow has its own kinds; the last one is the cause below
            refusal = error
            continue
        words = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed sizes"
        return feeds, outputs, f"seed {case.seed}, {words}"
    text = " ".join(str(refusal).split())[:300]
    raise UsageError(
        f"{frozen.name}: TensorFlow runs it on no made-up inputs ({text}); give sizes with --shapes or inputs with --inputs X.npz, "
        "or pass --no-check"
    ) from refusal


def _feeds(bindings: Sequence[DeclaredInput], sizes: Mapping[str, int], seed: int) -> Arrays:
    shapes = {b.name: tuple(sizes.get(d, d) if isinstance(d, str) else d for d in b.shape) for b in bindings}
    feeds: Arrays = generate(bindings, shapes, seed)
    for name, array in feeds.items():
        if array.dtype in (np.uint8, np.int8):
            # Pictures and quantised values: small numbers would say little.
            limits, rng = np.iinfo(array.dtype), np.random.default_rng([seed, zlib.crc32(name.encode())])
            feeds[name] = np.asarray(rng.integers(limits.min, limits.max + 1, array.shape, array.dtype))
    return feeds


def without_meaning(model: onnx.ModelProto) -> list[str]:
    """The operators that stayed TensorFlow's and that no plugin computes."""
    known = {p.key.name for p in registered()}
    return sorted({n.op_type for n in all_nodes(model.graph) if n.domain == CUSTOM_DOMAIN} - known)


def _run(model: onnx.ModelProto, feeds: Arrays) -> tuple[Arrays, str, list[str]]:
    """Outputs by name, what computed them, and notes: ONNX Runtime where it is installed, else Dovetail's references."""
    names = [value.name for value in model.graph.output]
    standard = all(n.domain in ("", "ai.onnx.ml") for n in model.graph.node)
    if standard and peers.version("onnxruntime") is not None and model.ByteSize() < 1 << 31:
        try:
            made: Any = peers.onnxruntime_run(model, feeds, 0)()
            return dict(zip(names, made, strict=True)), "ONNX Runtime", []
        except Exception as error:  # its own kinds; ours says more of what is wrong
            notes = [f"ONNX Runtime does not run it: {' '.join(str(error).split())[:200]}"]
    else:
        notes = []
    try:
        results = evaluate(import_onnx(model), feeds)
        return {name: np.asarray(results[name]) for name in names}, "Dovetail's references", notes
    except Error as error:
        if not standard:
            raise
        notes.append(f"Dovetail does not run it: {error}")
    from onnx.reference import ReferenceEvaluator

    return dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True)), "ONNX's reference evaluator", notes


def _close(want: np.ndarray[Any, Any], row: Difference, tolerance: float | None, quantised: bool) -> bool:
    if tolerance is None and quantised and want.dtype in (np.uint8, np.int8):
        return row.max_abs <= QUANTISED_STEPS
    if tolerance is None:
        tolerance = TOLERANCE if want.dtype.itemsize > 2 or want.dtype.kind in "iub" else TOLERANCE_NARROW
    return row.relative_l2 <= tolerance
