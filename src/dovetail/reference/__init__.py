"""The NumPy meaning of every op: plain array functions, one module per family."""

from dovetail.reference.registry import call, lookup, names, reference

__all__ = ["call", "lookup", "names", "reference"]
