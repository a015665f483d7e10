"""Benchmarks on an NVIDIA GPU against torch; never part of the tests."""
