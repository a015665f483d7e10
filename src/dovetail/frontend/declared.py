"""The types of a model's inputs: what it declares, with the caller's shapes put in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import onnx

from dovetail.core import dims
from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType
from dovetail.core.errors import ModelError
from dovetail.frontend.reader import element_type
from dovetail.ir.graph import Module
from dovetail.ir.types import SequenceType, TensorType, Type

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
RANGE = re.compile(r"(\d+)\.\.(\d+)(?:@(\d+))?")

MOST_ELEMENTS = 2**48
"""Of an input: more has no memory, and sizes computed from it may leave 64 bits."""


class InputTypes:
    """Reads declared types; new symbols go to `symbols`, their bounds to the module's `symbol_bounds`."""

    def __init__(self, module: Module, symbols: set[str], fresh: Callable[[str], str]) -> None:
        self.module, self.symbols, self.fresh = module, symbols, fresh

    def declared(self, proto: onnx.TypeProto, name: str, override: Sequence[int | str] | None = None) -> Type:
        """The type that a ValueInfoProto declares; unknown dimensions become fresh symbols."""
        which = proto.WhichOneof("value")
        if which == "tensor_type":
            tensor = proto.tensor_type
            kind = element_type(tensor.elem_type, f"input {name!r}")
            if not tensor.HasField("shape"):
                if override is None:
                    raise ModelError(
                        f"input {name!r}: got no rank in the model; give its shape: --shapes '{name}:[…]', in Python shapes={{{name!r}: …}}"
                    )
                return self._tensor(kind, override, name)
            given: list[int | str] = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
            if override is not None:
                if len(override) != len(given):
                    raise ModelError(f"shapes: got {len(override)} dimensions for input {name!r}, expected {len(given)}")
                given = [self._override(new, old) for new, old in zip(override, given, strict=True)]
            return self._tensor(kind, given, name)
        if which == "sequence_type":
            return self._sequence(proto.sequence_type.elem_type, name)
        if which == "optional_type":
            return self._sequence(proto.optional_type.elem_type, name)
        typed = f"; give it one: dovetail edit extract MODEL -o typed.onnx --inputs '{name}' --outputs … --types '{name}:float:[N,3]'"
        raise ModelError(
            f"input {name!r}: got a {which or 'missing'} type, expected a tensor, sequence or optional" + ("" if which else typed)
        )

    def _tensor(self, kind: DType, given: Sequence[int | str], name: str) -> TensorType:
        return TensorType(kind, tuple(self.dim(d, name, i) for i, d in enumerate(given)))

    def _sequence(self, proto: onnx.TypeProto, name: str) -> SequenceType:
        inner = proto.sequence_type.elem_type if proto.WhichOneof("value") == "sequence_type" else proto
        kind = element_type(inner.tensor_type.elem_type, f"input {name!r}")
        # An extent that the model leaves open may differ from element to element: -1 (see ops/sequences.py).
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in inner.tensor_type.shape.dim)
        return SequenceType(TensorType(kind, shape))

    def _override(self, new: int | str, old: int | str) -> int | str:
        # A bound ("1..32") keeps the symbol's own name where it has one.
        if isinstance(new, str) and RANGE.fullmatch(new) and isinstance(old, str) and _IDENTIFIER.fullmatch(old):
            return f"{old}={new}"
        return new

    def dim(self, spec: int | str, name: str, axis: int) -> Dim:
        """One declared extent: a size, a symbol's name, a range "1..32" or "N=1..32"; other text is a fresh symbol."""
        if isinstance(spec, int):
            if spec < 0:
                raise ModelError(f"input {name!r}: got size {spec} on axis {axis}, expected a non-negative size")
            return spec
        if not isinstance(spec, str):  # protobuf hands out bytes where the text is not UTF-8
            raise ModelError(f"input {name!r}: got a dimension name that is not text on axis {axis}; export the model again")
        symbol, _, bound = spec.rpartition("=") if "=" in spec else ("", "", spec)
        found = RANGE.fullmatch(bound)
        if found:
            symbol = symbol or self.fresh(re.sub(r"\W", "_", f"{name}_{axis}"))
            low, high = int(found[1]), int(found[2])
            if low > high:
                raise ModelError(f"shapes: got {bound!r} for input {name!r}, expected low..high")
            self.module.meta.setdefault("symbol_bounds", {})[symbol] = [low, high, int(found[3] or high)]
            self.symbols.add(symbol)
            return dims.sym(symbol)
        if bound.isdigit():
            return int(bound)
        if _IDENTIFIER.fullmatch(bound) and bound not in ("min", "max"):
            self.symbols.add(bound)
            return dims.sym(bound)
        return dims.sym(self.fresh(re.sub(r"\W", "_", f"{name}_{axis}")))
