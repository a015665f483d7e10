"""An edited model held against the original, where the meaning must stay: both run on seeded inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import Error, UsageError, VerificationError
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.layout import LAYOUTS, inverse
from dovetail.model.edit.stripping import digest
from dovetail.model.equivalence import (
    Border,
    check,
    declared_inputs,
    difference,
    evaluate_model,
    run_original,
)
from dovetail.model.model import Model
from dovetail.model.sample_inputs import Arrays
from dovetail.model.weights import stored_bytes

_MOST_BYTES = 2 << 30
_NARROW_TOLERANCE = 2e-2  # values rounded to fp16 or bf16 on the way in, out or in the weights
_BATCH_TOLERANCE = 1e-4


def too_large(model: Model) -> bool:
    """Whether the weights are more than 2 GiB, beyond which two runs take longer than anybody waits for a rename."""
    return sum(stored_bytes(t) for t in model.proto.graph.initializer) > _MOST_BYTES


def same(original: Model, result: Model, verb: str, *, border: Border | None = None) -> float:
    """The largest relative L2 difference of an output between two models.

    Raises:
        VerificationError: they compute different things.
        UsageError: one of them cannot be run here.
    """
    return _guarded(verb, lambda: check(original, result, verb=verb, border=border or Border()))


def _guarded(verb: str, run: Callable[[], float]) -> float:
    try:
        return run()
    except Error:
        raise
    except Exception as error:  # ONNX Runtime and onnx's evaluator have errors of their own
        raise UsageError(
            f"{verb}: the result cannot be run here to compare it ({' '.join(str(error).split())[:300]}); "
            "nothing was written; --no-check writes it all the same"
        ) from error


def renamed(names: Mapping[str, str]) -> Border:
    """The border after inputs got other names."""
    return Border(inputs=lambda feeds: {names.get(name, name): value for name, value in feeds.items()})


def transposed(original: Model, layouts: Mapping[str, str]) -> Border:
    """The border after inputs and outputs got other layouts."""
    orders = {name: LAYOUTS[layout.upper()] for name, layout in layouts.items()}
    outputs = [v.name for v in original.proto.graph.output]

    def there(feeds: Arrays) -> Arrays:
        return {n: np.ascontiguousarray(np.transpose(x, orders[n])) if n in orders else x for n, x in feeds.items()}

    def back(values: list[Any]) -> list[Any]:
        return [np.transpose(x, inverse(orders[n])) if n in orders else x for n, x in zip(outputs, values, strict=True)]

    return Border(there, back)


def same_cast(original: Model, result: Model) -> float:
    """The largest difference after inputs, outputs or weights got other element types, on inputs that both types hold.

    Raises:
        VerificationError: it is more than rounding to the narrower types does.
        UsageError: one of them cannot be run here.
    """
    return _guarded("set-dtype", lambda: _same_cast(original, result))


def _same_cast(before: Model, after: Model) -> float:
    wanted = {v.name: _numpy(v) for v in (*after.proto.graph.input, *after.proto.graph.output)}
    drawn, _ = run_original(before, declared_inputs(before.proto), 0, "set-dtype")
    given = {}
    for name, value in drawn.items():
        whole = value.dtype.kind not in "iub" and np.dtype(wanted[name]).kind in "iub"
        given[name] = (np.abs(np.rint(value * 2)) if whole else value).astype(wanted[name])
    expected = evaluate_model(before, {name: value.astype(drawn[name].dtype) for name, value in given.items()})
    worst = 0.0
    for value, want, got in zip(before.proto.graph.output, expected, evaluate_model(after, given), strict=True):
        got = np.asarray(got).astype(np.asarray(want).dtype)
        rounded = np.asarray(want).astype(wanted[value.name]).astype(got.dtype)
        error = difference(rounded, got)
        if not error <= _NARROW_TOLERANCE:
            raise VerificationError(
                f"set-dtype: output {value.name!r} differs from the original by {error:.3g}, expected at most {_NARROW_TOLERANCE:g}; "
                "nothing was written; --no-check skips this"
            )
        worst = max(worst, error)
    return worst


def _numpy(value: onnx.ValueInfoProto) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(kinds.element_of(value.type))


def with_more_inputs(original: Model, names: Iterable[str]) -> Border:
    """The border after weights became inputs."""
    values = {name: np.array(original.weights[name]) for name in names}
    return Border(inputs=lambda feeds: {**feeds, **values})


def first_outputs(count: int) -> Border:
    """The border after outputs were added at the end."""
    return Border(outputs=lambda values: values[:count])


def chosen_outputs(original: Model, result: Model) -> Border:
    """The border of the *original*, seen from a result that has fewer outputs."""
    position = {v.name: i for i, v in enumerate(original.proto.graph.output)}
    order = [position[v.name] for v in result.proto.graph.output]
    return Border(outputs=lambda values: [values[i] for i in order])


def same_batches(original: Model, result: Model, inputs: Iterable[str], new: int | str) -> float | None:
    """The largest difference of the result on some samples from the original on each of them; None where sizes do not fit.

    The result runs once on what the original runs on in turn, so that samples that are mixed up show.

    Raises:
        VerificationError: they differ.
        UsageError: one of them cannot be run here.
    """
    return _guarded_optional("batch", lambda: _same_batches(original, result, set(inputs), new))


def _guarded_optional(verb: str, run: Callable[[], float | None]) -> float | None:
    found: list[float | None] = []

    def once() -> float:
        found.append(run())
        return 0.0

    _guarded(verb, once)
    return found[0]


def _same_batches(original: Model, result: Model, batched: set[str], new: int | str) -> float | None:
    bindings = declared_inputs(original.proto)
    old = next(b.shape[0] for b in bindings if b.name in batched)
    if isinstance(old, str):
        return check(original, result, verb="batch")
    if isinstance(new, int) and new % old:
        return None
    runs = 2 if isinstance(new, str) else new // old
    feeds, expected = run_original(original, bindings, 0, "batch")
    given, wanted = [feeds], [expected]
    for seed in range(1, runs):
        drawn, _ = run_original(original, bindings, seed, "batch")
        drawn |= {name: value for name, value in feeds.items() if name not in batched}
        given.append(drawn)
        wanted.append(evaluate_model(original, drawn))
    together = {n: np.concatenate([g[n] for g in given]) if n in batched else x for n, x in feeds.items()}
    worst = 0.0
    for position, (value, got) in enumerate(zip(original.proto.graph.output, evaluate_model(result, together), strict=True)):
        parts = [w[position] for w in wanted]
        expected_value = np.concatenate(parts) if np.ndim(parts[0]) else parts[0]
        error = difference(expected_value, got)
        if not error <= _BATCH_TOLERANCE:
            raise VerificationError(
                f"batch: output {value.name!r} for {runs} batches at once is not what the original gives for each (it differs by "
                f"{error:.3g}); nothing was written; the model mixes its samples, or holds the old batch in a constant"
            )
        worst = max(worst, error)
    return worst


def same_weights(before: Mapping[str, str], written: Model) -> int:
    """How many weights of a written model have the digests that they had `before`, read from their files.

    Raises:
        VerificationError: one differs.
    """
    for name, wanted in before.items():
        if digest(written.weights[name]) != wanted:
            raise VerificationError(f"weight {name!r} is not the original's in the new file; the disk may be full or damaged")
    return len(before)
