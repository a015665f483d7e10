"""Which layers a loop or a branch holds: those that read, at any distance, what enters it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from dovetail.tensorrt.tensor import ITensor

if TYPE_CHECKING:
    from dovetail.tensorrt.layer import LayerRecord
    from dovetail.tensorrt.network_base import NetworkBase


class Construct(Protocol):
    """A loop or a conditional."""

    def _entries(self) -> list[LayerRecord]:
        """The layers whose outputs exist inside only, and layers without outputs that belong to it."""

    def _exits(self) -> list[LayerRecord]:
        """The layers whose outputs are its results."""


def inside_of(network: NetworkBase, construct: Construct) -> frozenset[LayerRecord]:
    """The layers inside of a construct, with those of constructs in it; its own boundaries are not among them."""
    readers: dict[ITensor, list[LayerRecord]] = {}
    for record in network._layers:
        for tensor in record.inputs:
            if tensor is not None:
                readers.setdefault(tensor, []).append(record)
    own = {*construct._entries(), *construct._exits()}
    found: set[LayerRecord] = set()
    pending = [t for record in construct._entries() for t in record.outputs]
    while pending:
        for record in readers.get(pending.pop(), ()):
            if record in own or record in found:
                continue
            added = {record}
            inner: Construct | None = record.values.get("construct")
            if inner is not None:
                added |= {*inner._entries(), *inner._exits(), *inside_of(network, inner)} - own
            for new in added - found:
                pending += new.outputs
            found |= added
    return frozenset(found)


def outer_tensors(inside: Iterable[LayerRecord], own: Iterable[LayerRecord]) -> list[ITensor]:
    """What layers of a construct, its boundaries included, read from outside of it."""
    records = [*inside, *own]
    made = {t for record in records for t in record.outputs}
    return list(dict.fromkeys(t for record in records for t in record.inputs if t is not None and t not in made))
