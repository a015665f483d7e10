"""The table of op specifications: what each op takes, infers and is allowed to say."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from dovetail.core.dims import Dim, maximum
from dovetail.core.errors import TypeInferenceError, UnsupportedOpError


class OpKind(Enum):
    """How an op relates its output elements to its input elements; drives fusion and lowering."""

    POINTWISE = "pointwise"  # one output element from one element of each (broadcast) input
    MOVEMENT = "movement"  # every output element is a copy of one input element
    REDUCTION = "reduction"  # axes disappear
    ROW = "row"  # rows along one axis are transformed whole (softmax, norms, cumsum)
    WINDOW = "window"  # a sliding window (pooling, LRN)
    CONTRACTION = "contraction"  # multiply-accumulate (matmul, conv)
    RECURRENT = "recurrent"  # steps over time
    SELECT = "select"  # positions depend on data (gather, scatter, topk)
    CONTROL = "control"  # has regions
    HOST = "host"  # always runs as a reference call


POINTWISE = OpKind.POINTWISE
MOVEMENT = OpKind.MOVEMENT
REDUCTION = OpKind.REDUCTION
ROW = OpKind.ROW
WINDOW = OpKind.WINDOW
CONTRACTION = OpKind.CONTRACTION
RECURRENT = OpKind.RECURRENT
SELECT = OpKind.SELECT
CONTROL = OpKind.CONTROL
HOST = OpKind.HOST

Infer = Callable[..., Any]
F = TypeVar("F", bound=Infer)
REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Attribute:
    """One attribute of an op: its name, declared type (as text) and default (REQUIRED if none)."""

    name: str
    annotation: str
    default: Any

    @property
    def required(self) -> bool:
        """Whether every node must carry this attribute."""
        return self.default is REQUIRED


@dataclass(frozen=True)
class OpSpec:
    """What the compiler knows about one op.

    `infer(*types, **attributes)` gives the output types, always as a tuple, after checking the
    number of inputs and the attribute names against the signature it was declared with.
    """

    name: str
    kind: OpKind
    infer_function: Infer
    inputs: tuple[str, ...]  # names of the fixed inputs, in order
    required_inputs: int  # how many of them (from the first) must be given
    variadic: str | None  # name of the variadic input group, if any
    attributes: dict[str, Attribute]
    doc: str
    impure: bool = False

    def complete(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return `attributes` with defaults filled in; raises TypeInferenceError on a bad name."""
        for name in attributes:
            if name not in self.attributes:
                known = ", ".join(self.attributes) or "none"
                raise TypeInferenceError(
                    f"{self.name}: unknown attribute {name!r}, expected one of: {known}; "
                    "remove it or fix its spelling"
                )
        missing = [a.name for a in self.attributes.values() if a.required and a.name not in attributes]
        if missing:
            raise TypeInferenceError(
                f"{self.name}: missing attribute {missing[0]!r}, got {sorted(attributes)}, expected "
                "every attribute without a default; add it"
            )
        return {
            name: attributes.get(name, attribute.default)
            for name, attribute in self.attributes.items()
        }

    def infer(self, *types: Any, **attributes: Any) -> tuple[Any, ...]:
        """Return the output types for the input `types` (None for an absent optional input)."""
        given = self.complete(attributes)
        if len(types) > len(self.inputs) and self.variadic is None:
            raise TypeInferenceError(
                f"{self.name}: got {len(types)} inputs, expected at most {len(self.inputs)} "
                f"({', '.join(self.inputs)}); remove the extra ones"
            )
        for index in range(self.required_inputs):
            if index >= len(types) or types[index] is None:
                raise TypeInferenceError(
                    f"{self.name}: input {index} ({self.inputs[index]}) is missing, got "
                    f"{len(types)} inputs, expected at least {self.required_inputs}; connect it"
                )
        result = self.infer_function(*types, **given)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


_specs: dict[str, OpSpec] = {}
# Modules of this package that hold no OpSpecs and import layers these must not wait for.
_NOT_FAMILIES = frozenset({"registry", "evaluate", "infer"})


def op(name: str, kind: OpKind, *, impure: bool = False) -> Callable[[F], F]:
    """Declare op `name` by its type inference function.

    Positional parameters are inputs (a default of None makes one optional, `*xs` is variadic),
    keyword-only parameters are attributes. `impure` ops may differ from run to run.
    """

    def register(function: F) -> F:
        if name in _specs:
            raise ValueError(f"ops: op {name!r} is declared twice; remove one of them")
        _specs[name] = _spec_of(name, kind, function, impure)
        return function

    return register


def _spec_of(name: str, kind: OpKind, function: Infer, impure: bool) -> OpSpec:
    inputs: list[str] = []
    required = 0
    variadic: str | None = None
    attributes: dict[str, Attribute] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            variadic = parameter.name
        elif parameter.kind is parameter.KEYWORD_ONLY:
            attributes[parameter.name] = Attribute(
                parameter.name, str(parameter.annotation), parameter.default
            )
        else:
            inputs.append(parameter.name)
            if parameter.default is REQUIRED:
                required = len(inputs)
    return OpSpec(
        name=name,
        kind=kind,
        infer_function=function,
        inputs=tuple(inputs),
        required_inputs=required,
        variadic=variadic,
        attributes=attributes,
        doc=inspect.getdoc(function) or "",
        impure=impure,
    )


@functools.cache  # once; a failed import is not remembered
def _load_families() -> None:
    package = importlib.import_module("dovetail.ops")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        if module not in _NOT_FAMILIES:
            importlib.import_module(f"dovetail.ops.{module}")


def find(name: str) -> OpSpec | None:
    """Return the OpSpec of op `name`, or None if there is no such op."""
    if name not in _specs:
        _load_families()
    return _specs.get(name)


def spec(name: str) -> OpSpec:
    """Return the OpSpec of op `name`; raises UnsupportedOpError if there is none."""
    found = find(name)
    if found is None:
        raise UnsupportedOpError(
            f"ops: unknown op {name!r}, expected one declared with @op; check the spelling or "
            "declare it in dovetail/ops"
        )
    return found


def names() -> tuple[str, ...]:
    """The names of every declared op, sorted."""
    _load_families()
    return tuple(sorted(_specs))


def broadcast(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return the shape that `shapes` broadcast to under NumPy's rules.

    A symbol against a number other than 1 becomes that number; two different symbols become their
    maximum, which is right for every legal binding of non-empty shapes. Raises TypeInferenceError
    on numbers that differ.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dim: Dim = 1
        for shape in shapes:
            if len(shape) >= -axis:
                dim = _broadcast_dim(dim, shape[axis], shapes)
        result.append(dim)
    return tuple(result)


def _broadcast_dim(a: Dim, b: Dim, shapes: Sequence[Sequence[Dim]]) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        text = " and ".join("(" + ", ".join(str(d) for d in shape) + ")" for shape in shapes)
        raise TypeInferenceError(
            f"broadcast: shapes {text} do not match, got {a} against {b}, expected equal sizes or "
            "1; reshape or transpose one of the inputs"
        )
    if isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    return maximum(a, b)
