"""Dtypes, symbolic dimensions, errors, environment and logging: imports nothing of ours."""
