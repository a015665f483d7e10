"""Engines over the hand-written kernels of `native_plans`, and the values they are tried on."""

import numpy as np

from dovetail import runtime
from tests.unit.native_plans import host_binary, kernel_binary

F = np.float32

STEPS = ("k_double", "k_increment", "k_reverse", "k_double", "k_copy")
"""A chain of kernels, for `native_plans.chain`; `expected` is what it computes."""


def engine(program, weights=None, threads=None):
    """An engine of a plan."""
    return runtime.open(
        program, kernels=[kernel_binary()], host=host_binary(), weights=weights, threads=threads
    )


def ramp(n=8):
    """0, 1, 2 …"""
    return np.arange(n, dtype=F)


def expected(x):
    """What the chain `STEPS` computes."""
    return (2 * (2 * x + 1))[::-1]
