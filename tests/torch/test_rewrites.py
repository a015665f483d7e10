"""The rewrites that failures of exports offer: each computes what it replaces, and exports."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch

import dovetail
from dovetail.export.rewrites import REWRITES

RNG = np.random.default_rng(3)
X = torch.from_numpy(RNG.normal(0, 2, (4, 6)).astype(np.float32))
Y = torch.from_numpy(RNG.normal(0, 2, (4, 6)).astype(np.float32))
POSITIVE = X.abs() + 0.1
HOLES = torch.where(X > 1, float("nan"), X)
EDGES = torch.tensor([-1.0, 0.0, 0.5, 2.0])

# Per operator: what PyTorch computes, a call of the rewrite, the operands, and the tolerance.
CASES = {
    "kthvalue": (lambda x: tuple(torch.kthvalue(x, 2)), lambda f, x: f(x, 2), (X,), 0),
    "median": (lambda x: tuple(torch.median(x, -1)), lambda f, x: f(x), (X,), 0),
    "searchsorted": (lambda x: torch.searchsorted(EDGES, x), lambda f, x: f(EDGES, x), (X,), 0),
    "bucketize": (lambda x: torch.bucketize(x, EDGES), lambda f, x: f(x, EDGES), (X,), 0),
    "hypot": (torch.hypot, lambda f, x, y: f(x, y), (X, Y), 1e-6),
    "dist": (torch.dist, lambda f, x, y: f(x, y), (X, Y), 1e-6),
    "copysign": (torch.copysign, lambda f, x, y: f(x, y), (X, Y), 0),
    "ldexp": (lambda x: torch.ldexp(x, torch.round(x)), lambda f, x: f(x, torch.round(x)), (X,), 1e-6),
    "fmax": (torch.fmax, lambda f, x, y: f(x, y), (HOLES, Y), 0),
    "fmin": (torch.fmin, lambda f, x, y: f(x, y), (HOLES, Y), 0),
    "cumprod": (lambda x: torch.cumprod(x, 1), lambda f, x: f(x, 1), (POSITIVE,), 1e-5),
    "cummax": (lambda x: torch.cummax(x, -1)[0], lambda f, x: f(x)[0], (X,), 0),
    "cummin": (lambda x: torch.cummin(x, -1)[0], lambda f, x: f(x)[0], (X,), 0),
    "erfinv": (torch.erfinv, lambda f, x: f(x), (torch.tanh(X) * 0.99,), 1e-4),
    "i0": (torch.i0, lambda f, x: f(x), (X,), 1e-5),
    "lgamma": (torch.lgamma, lambda f, x: f(x), (POSITIVE * 3,), 1e-4),
    "digamma": (torch.digamma, lambda f, x: f(x), (POSITIVE * 3,), 1e-4),
    "linalg_inv": (torch.linalg.inv, lambda f, x: f(x), (X[:, :4] + 5 * torch.eye(4),), 1e-4),
    "masked_select": (lambda x: torch.masked_select(x, x > 0), lambda f, x: f(x, x > 0), (X,), 0),
}


def test_every_rewrite_of_pytorch_is_tested() -> None:
    assert {f"aten::{name}" for name in CASES} == {name for name in REWRITES if name.startswith("aten::")}


@pytest.mark.parametrize("name", sorted(CASES))
def test_rewrite(name: str) -> None:
    original, call, operands, tolerance = CASES[name]
    scope = {"torch": torch, "math": math}
    exec(REWRITES[f"aten::{name}"].code, scope)
    function = next(v for k, v in scope.items() if callable(v) and k not in ("torch", "math", "__builtins__"))

    class Rewritten(torch.nn.Module):
        if len(operands) == 1:
            def forward(self, x):
                return call(function, x)
        else:
            def forward(self, x, y):
                return call(function, x, y)

    want = original(*operands)
    want = [t.numpy() for t in (want if isinstance(want, tuple) else (want,))]
    model = dovetail.export.pytorch(Rewritten(), operands, exporter="torchscript", opset=17, check=False)
    session = onnxruntime.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), operands, strict=True)})
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
