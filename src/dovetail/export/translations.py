"""`dovetail.export.symbolic`: translations of operators to ONNX that users write, one function for all exporters of a framework."""

from __future__ import annotations

import difflib
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from dovetail.core.errors import UsageError
from dovetail.core.log import logger
from dovetail.core.optional import require
from dovetail.core.text import counted

F = TypeVar("F", bound=Callable[..., Any])

_log = logger("export")
_lock = threading.RLock()
_table: list[Translation] = []
_WHY = "exporting from PyTorch"

TENSORFLOW = "tf"
"""The namespace of TensorFlow's operators."""


@dataclass(frozen=True, eq=False)
class Translation:
    """A registered function.

    Attributes:
        op: qualified name without overload, such as "aten::add".
        overload: "Tensor"; "" for all.
        low, high: the opsets that it is for; None has no end.
        function: called with an `Ops` and the operator's arguments.
        place: file and line where it is defined.
    """

    op: str
    overload: str
    low: int
    high: int | None
    function: Callable[..., Any]
    place: str

    @property
    def name(self) -> str:
        """As it was registered."""
        return f"{self.op}.{self.overload}" if self.overload else self.op

    def __str__(self) -> str:
        return f"translation of {self.name} ({self.place})"


def symbolic(op: str, opset: tuple[int, int | None] | int = 1, *, replace: bool = False) -> _Registration:
    """Translate an operator of PyTorch or TensorFlow to ONNX by a function of one's own, whichever exporter is used.

        @dovetail.export.symbolic("aten::asinh", opset=12)
        def asinh(op, x):
            return op.Log(op.Add(x, op.Sqrt(op.Add(op.Mul(x, x), 1.0))))

    The function gets `op`, which writes ONNX operators (`op.Mul(x, 2.0)`, `op("my_domain::MyOp", x, alpha=0.5)`; see
    `onnx_calls.Ops`), and the arguments of PyTorch's operator in the order of its schema, with defaults filled in: tensors as
    operands with `dtype` and `shape` as far as they are known, everything else as Python values (numbers, text, lists, None,
    element types as `x.dtype` is). Parameters behind a `*` get the argument of that name. Arguments at the end may be left out,
    while they have their defaults. It returns one operand, or a tuple of them.

    Operators of TensorFlow are in the namespace "tf": `symbolic("tf::Lgamma", opset=9)`. Their function gets the inputs in the order of
    the operator's definition (as `tf.raw_ops` has it), then the attributes, without those that only repeat the types of the inputs.

    It takes the place of PyTorch's own translation, and keeps the operator from being taken apart before it is translated.

    Args:
        op: its qualified name: "aten::asinh", "my_library::my_op"; "aten::add.Tensor" for one overload alone.
        opset: what the function is for, (lowest, highest or None); an int is the lowest. Of several registrations that an export's
            opset fits, the one with the highest lowest is used. The dynamo exporter writes opset 18 and newer: an export to an
            older one asks for 18 here, and is converted afterwards.
        replace: take the place of another function for the same operator and lowest opset, until this one is removed.

    Returns:
        A decorator, which leaves the function as it was and gives it `remove()`. As `with symbolic(op).use(function):` the
        registration ends with the block.

    Raises:
        UsageError: no qualified name, an opset that is none, a function that takes no `op`, or one that is registered already.
    """
    space, _, rest = op.partition("::") if isinstance(op, str) else ("", "", "")
    name, _, overload = rest.partition(".")
    if not space or not name or "::" in rest:
        raise UsageError(f"symbolic: got the operator {op!r}, expected a qualified name such as 'aten::asinh' or 'my_library::my_op'")
    low, high = opset if isinstance(opset, tuple) else (opset, None)
    if type(low) is not int or low < 1 or not (high is None or (type(high) is int and high >= low)):
        raise UsageError(f"symbolic {op}: got opset {opset!r}, expected a number, or (lowest, highest or None)")
    return _Registration(f"{space}::{name}", "" if overload == "default" else overload, low, high, replace)


class _Registration:
    """What `symbolic` returns: a decorator."""

    def __init__(self, op: str, overload: str, low: int, high: int | None, replace: bool) -> None:
        self.op, self.overload, self.low, self.high, self.replace = op, overload, low, high, replace

    def __call__(self, function: F) -> F:
        """Register a function until its `remove()`."""
        registered = self.use(function)
        function.remove = registered.remove  # type: ignore[attr-defined]  # functions take attributes
        return function

    def use(self, function: Callable[..., Any]) -> Registered:
        """Register a function until the end of a `with` block, or `remove()`."""
        parameters = list(inspect.signature(function).parameters.values()) if inspect.isroutine(function) else []
        if not parameters or parameters[0].kind not in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD):
            raise UsageError(f"symbolic {self.op}: got {function!r}, expected a function (op, x, …) of `op` and the operator's arguments")
        code = getattr(function, "__code__", None)
        place = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)
        made = Translation(self.op, self.overload, self.low, self.high, function, place)
        with _lock:
            same = [t for t in _table if (t.op, t.overload, t.low) == (made.op, made.overload, made.low)]
            for old in same:
                if _redefined(old.function, function):
                    _table.remove(old)
                elif not self.replace:
                    raise UsageError(
                        f"symbolic {made.name}: got a second function for opset {made.low} and newer ({place}), expected one, which is at "
                        f"{old.place}; give it another opset, or replace=True"
                    )
            _table.append(made)
        return Registered(made)


def _redefined(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether a function is another definition of the same: its file or notebook cell has been run again."""
    places = [(getattr(getattr(f, "__code__", None), "co_filename", None), f.__module__, f.__qualname__) for f in (old, new)]
    (old_file, old_module, old_name), (new_file, new_module, new_name) = places
    return old_name == new_name and (old_file == new_file or old_module == new_module)


class Registered:
    """A registered translation; a context manager that removes it."""

    def __init__(self, translation: Translation) -> None:
        self._translation = translation

    def remove(self) -> None:
        """Take the translation away; doing so twice does no harm."""
        with _lock:
            if self._translation in _table:
                _table.remove(self._translation)

    def __enter__(self) -> Registered:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()


def registered() -> tuple[Translation, ...]:
    """All registered translations, the latest last."""
    with _lock:
        return tuple(_table)


def chosen(opset: int) -> list[Translation]:
    """The translations that an export to an opset uses: of each operator and overload the one with the highest lowest opset.

    Of several with the same, it is the latest.
    """
    found: dict[tuple[str, str], Translation] = {}
    for made in registered():
        held = found.get((made.op, made.overload))
        if made.low <= opset and (made.high is None or opset <= made.high) and (held is None or made.low >= held.low):
            found[made.op, made.overload] = made
    return list(found.values())


class Installed(dict[Any, Callable[..., Any]]):
    """What `install` gives: the table for `torch.onnx.export(custom_translation_table=…)`, which the torchscript exporter does not need.

    `used` has the translations that the export has called, in that order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: list[Translation] = []

    @property
    def notes(self) -> list[str]:
        """What a report says of them."""
        counts = Counter(self.used)
        return [f"{made.name}: {counted(n, 'call')} by the translation at {made.place}" for made, n in counts.items()]


@contextmanager
def install(exporter: str, opset: int) -> Iterator[Installed]:
    """Make the registered translations known to an exporter of PyTorch, for an export to an opset.

    Args:
        exporter: "dynamo" or "torchscript".
        opset: what the exporter is told to write.

    Raises:
        UsageError: a translation is registered for an operator of PyTorch's own that it does not have, with the nearest names.
    """
    torch = require("torch", "torch", _WHY)
    known = [made for made in chosen(opset) if not made.op.startswith(f"{TENSORFLOW}::") and _is_known(torch, made)]
    installed = Installed()
    if exporter == "dynamo":
        from dovetail.export.dynamo_writer import fill

        fill(installed, known)
        yield installed
        return
    from dovetail.export.torchscript_writer import registered_at

    with registered_at(opset, known, installed.used):
        yield installed


def translation_table(opset: int) -> Installed:
    """The registered translations as `torch.onnx.export(custom_translation_table=…)` takes them, for an export to an opset.

    Raises:
        UsageError: a translation is registered for an operator of PyTorch's own that it does not have.
    """
    with install("dynamo", opset) as table:
        return table


def _is_known(torch: Any, made: Translation) -> bool:
    """Whether PyTorch has the operator of a translation; one of a library that is not imported may come later.

    Raises:
        UsageError: it is PyTorch's own namespace, where nothing can come later.
    """
    overloads = [s.overload_name for s in torch._C._jit_get_schemas_for_operator(made.op)]
    if overloads and (not made.overload or made.overload in overloads):
        return True
    if overloads:
        named = ", ".join(sorted(name or "default" for name in overloads))
        raise UsageError(f"{made}: got the overload {made.overload!r}, expected one of {named}")
    names = sorted({s.name for s in torch._C._jit_get_all_schemas()})
    close = difflib.get_close_matches(made.op, names, 3)
    hint = f"the nearest are {', '.join(close)}" if close else "see torch.ops"
    if made.op.startswith(("aten::", "prims::", "prim::")):
        raise UsageError(f"{made}: got an operator that PyTorch {torch.__version__} does not have, expected one of its own; {hint}")
    _log.warning("%s is not used: PyTorch has no operator of that name; import the library that defines it, %s", made, hint)
    return False
