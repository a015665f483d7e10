"""Benchmarks over the model zoo; never part of the tests."""
