"""Assertions: conditions that hold when the network is built or run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, text
from dovetail.tensorrt.tensor import ITensor


class IAssertionLayer(ILayer):
    """A condition on shapes; where weights and static shapes decide it, a build fails unless it holds."""

    __slots__ = ()
    _layer_type, _label, _acts, _shape_inputs = LayerType.ASSERTION, "Assertion", True, (0,)
    message = Setting[str](text, "", "What is said when it does not hold.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        (condition,) = inputs
        assert condition is not None
        known = net.net.read(condition, f"assertion {self.name}")
        if known is None and condition.contents is not None and all(isinstance(d, int) for d in condition.contents.reshape(-1)):
            known = np.asarray(condition.contents, bool)
        if known is not None and not known.all():
            raise ModelError(f"{self.name}: {self.message}")
        return []


class AddChecks(NetworkBase):
    """The `add_*` method of this family."""

    def add_assertion(self, condition: ITensor, message: str) -> IAssertionLayer | None:
        """Require that all elements of a tensor of type BOOL are true."""
        expect(str, message, "add_assertion: message")
        return self._add(IAssertionLayer, [expect(ITensor, condition, "add_assertion: condition")], outputs=0, message=message)
