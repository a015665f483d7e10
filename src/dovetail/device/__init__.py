"""Devices: memory, threads, loading and launching of kernels."""
