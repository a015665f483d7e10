"""The lists and strings that the bindings have names for."""

from __future__ import annotations


class NodeIndices(list[int]):
    """Indices of ONNX nodes."""


class SubGraphCollection(list[tuple[NodeIndices, bool]]):
    """Subgraphs of a model: the indices of their nodes, and whether they are supported."""


class FallbackString(str):
    """A string that may be made of bytes of any encoding, as names in models are.

    Bytes that are no UTF-8 become surrogates, from which `encode("utf-8", "surrogateescape")` gives the bytes again.
    """

    __slots__ = ()

    def __new__(cls, text: str | bytes = "") -> FallbackString:
        """A string of a string or of bytes."""
        return super().__new__(cls, text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text)
