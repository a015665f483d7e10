"""Stands for the package `cuda` of NVIDIA's Python bindings; what else is installed below that name stays in reach."""

from importlib.machinery import PathFinder

_real = PathFinder.find_spec("cuda")
if _real is not None and _real.submodule_search_locations is not None:
    __path__ += list(_real.submodule_search_locations)
