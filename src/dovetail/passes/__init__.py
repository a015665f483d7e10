"""Rewrites of the graph, in pipeline order: simplify, recognise, fuse, layout."""
