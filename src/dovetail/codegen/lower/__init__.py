"""Lowering: IR ops to loop-IR expressions, one module per family, composed per fusion."""
