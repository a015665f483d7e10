"""Tactics: ways to compute fused groups, one folder per device."""
