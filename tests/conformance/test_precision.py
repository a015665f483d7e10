"""Every node case of the ONNX suite in fp16 and bf16 through the oracle: no operator breaks when its values become narrow."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from dovetail.builder import optimise
from dovetail.builder.verify_engine import distance
from dovetail.frontend.importer import import_onnx
from dovetail.ir.graph import Module
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate
from dovetail.passes.precision import lower_precision, split_casts
from dovetail.passes.simplify import simplify
from tests.conformance.cases import _RANDOM, Case, node_cases

# Inputs around 10^4 that differ in the first digit: no narrow type holds them.
LARGE = ("test_softmax_large_number", "test_logsoftmax_large_number")


def _module(case: Case) -> Module:
    module = import_onnx(case.model)
    optimise(module)
    return module


def _expected(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """(inputs, outputs) in fp32; None where there are none, of which test_oracle tells."""
    try:
        module = _module(case)
        feeds = dict(zip([v.name for v in module.main.inputs], case.data[0][0], strict=True))
        return feeds, evaluate(module, feeds)
    except Exception:
        return None


def _wrong(
    case: Case, precision: str, tolerance: float, feeds: dict[str, np.ndarray], want: dict[str, np.ndarray]
) -> str | None:
    """What is wrong with a case in a precision; None if nothing is."""
    module = _module(case)
    lower_precision(module, precision)
    verify(module)
    simplify(module)
    split_casts(module.main)
    verify(module)
    got = evaluate(module, feeds)
    for name, expected in want.items():
        if isinstance(expected, np.ndarray) and (got[name].dtype, got[name].shape) != (expected.dtype, expected.shape):
            return f"{name} is {got[name].dtype}{got[name].shape}"
        if not (error := distance(got[name], expected)) <= tolerance:
            return f"{name} is off by {error:.1e}"
    return None


@pytest.mark.slow
def test_node_cases_in_lower_precision() -> None:
    failed: dict[str, str] = {}
    total = 0
    for case in node_cases():
        if _RANDOM.match(case.name) or case.name.startswith((*LARGE, "test_image_decoder")):
            continue
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = _expected(case)
            if found is None:
                continue
            total += 1
            for precision, tolerance in (("fp16", 5e-3), ("bf16", 4e-2)):
                try:
                    reason = _wrong(case, precision, tolerance, *found)
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"[:200]
                if reason is not None:
                    failed[f"{case.name} in {precision}"] = reason
    assert failed == {} and total >= 1500
