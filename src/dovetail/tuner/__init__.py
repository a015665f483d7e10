"""Measures candidate kernels of a group and chooses among them."""
