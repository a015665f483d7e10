"""Which layers a loop or a branch holds: those that read, at any distance, what enters it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.tensor import ITensor

if TYPE_CHECKING:
    from dovetail.tensorrt.layer import ILayer, LayerRecord
    from dovetail.tensorrt.network_base import L, NetworkBase


class Construct:
    """A loop or a conditional: a name, and the layers at its border."""

    _exit: ClassVar[type[ILayer]]
    """Layers whose outputs are its results."""

    def __init__(self, network: NetworkBase, name: str) -> None:
        self._network, self._name = network, name
        self._layers: list[LayerRecord] = []

    @property
    def name(self) -> str:
        """The name, for messages."""
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = expect(str, value, f"{type(self).__name__}.name")

    def _add(self, layer_class: type[L], inputs: list[ITensor], outputs: int = 1, **values: Any) -> L | None:
        made = self._network._add(layer_class, inputs, outputs, construct=self, **values)
        if made is not None:
            self._layers.append(made._record)
            self._network._reset()
        return made

    def _of(self, kind: type[ILayer]) -> list[LayerRecord]:
        return [r for r in self._layers if r.kind is kind]

    def _entries(self) -> list[LayerRecord]:
        """The layers whose outputs exist inside only, and layers without outputs that belong to it."""
        return [r for r in self._layers if r.kind is not self._exit]

    def _exits(self) -> list[LayerRecord]:
        """The layers whose outputs are its results."""
        return self._of(self._exit)

    def _outer(self) -> list[ITensor]:
        """What must be known before it is."""
        return outer_tensors(inside_of(self._network, self), self._layers)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._name}>"


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
