"""What all graphs of one model share while they are imported, and how a node's errors read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from dovetail.core.errors import ModelError, ShapeError, TypeInferenceError, UnsupportedOpError
from dovetail.core.log import logger
from dovetail.core.text import counted
from dovetail.frontend.protos import domain_of
from dovetail.ir.graph import Graph, Module, Value
from dovetail.ir.types import Type

if TYPE_CHECKING:
    from dovetail.frontend.importer import ImportContext

_log = logger("import")

# What reading a node whose attributes have other types, lengths or ranges than ONNX's may raise.
_MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


class Failure(Exception):
    """How importers end without a result; never seen outside of the frontend."""


class Unsupported(Failure):
    """An importer gave up on a node: (reason, hint)."""


class Poisoned(Failure):
    """A node reads a value that could not be imported; its own problem is reported already."""


class Failed:
    """Stands for the outputs of a node that could not be imported."""


FAILED = Failed()
NO_WAY = ("no importer, no function body and no plugin", "write an importer or a plugin, or export with other ops")


DRAWING = "dovetail.drawing_of"
"""Metadata key of the models that `dovetail view --export` writes: the engine that they show."""


class Body(ABC):
    """The body of a region that is no GraphProto, but traced into the IR by other means."""

    name: str

    @abstractmethod
    def region(self, outer: ImportContext, types: Sequence[Type], captures: list[Value]) -> Graph:
        """A region whose inputs are of the given types, then the captures; outer values that these lack are appended to them."""

    @abstractmethod
    def inline(self, outer: ImportContext) -> list[Value]:
        """The results of a body without inputs, computed in the graph around it."""


class Session:
    """What all graphs of one model share."""

    def __init__(self, model: onnx.ModelProto, folder: Path | None) -> None:
        self.model, self.folder = model, folder
        self.module = Module(Graph())
        self.opsets = {domain_of(o.domain): o.version for o in model.opset_import}
        self.functions = {(domain_of(f.domain), f.name, getattr(f, "overload", "")): f for f in model.functions}
        self.ir_version = model.ir_version
        self.problems: list[str] = []
        self.symbols: set[str] = set()
        self.guarded: set[tuple[str, str]] = set()
        self.constants: dict[Value, np.ndarray[Any, Any]] = {}
        self.sizes: dict[str, int] = {}  # symbols that depend on weights alone, as far as they were needed
        drawn = next((p.value for p in model.metadata_props if p.key == DRAWING), None)
        if drawn is not None:
            raise ModelError(
                f"model: got a drawing of the engine {drawn!r} (dovetail view --export), which holds no weights, expected a model; "
                "take the one that the engine was built from"
            )
        newest = onnx.defs.onnx_opset_version()
        if self.opsets.get("", newest) > newest:
            raise ModelError(f"model: got ai.onnx opset {self.opsets['']}, expected at most {newest}; upgrade the onnx package")

    def require_no_problems(self) -> None:
        """Raise UnsupportedOpError if nodes could not be imported."""
        if self.problems:
            listing = "\n".join(f"  {p}" for p in self.problems)
            raise UnsupportedOpError(
                f"model: {counted(len(self.problems), 'node')} cannot be imported:\n{listing}",
                tuple(self.problems),
            )

    def mark(self) -> tuple[int, int]:
        """How many weights and guards there are, for `undo`."""
        return len(self.module.weights), len(self.module.guards)

    def undo(self, mark: tuple[int, int]) -> set[str]:
        """Forget the weights and guards that came after a mark; returns the names of the weights."""
        names = list(self.module.weights)[mark[0] :]
        for name in names:
            del self.module.weights[name]
        for guard in self.module.guards[mark[1] :]:
            self.guarded.discard((guard.weight, guard.rewrite))
        del self.module.guards[mark[1] :]
        return set(names)


@contextmanager
def explained(where: str, op_type: str) -> Iterator[None]:
    """Errors of one node as the session reports them, with where they are."""
    try:
        yield
    except Unsupported as error:
        reason, hint = error.args
        problem = f"{where}: {reason}; {hint}"
        raise UnsupportedOpError(problem, (problem,)) from None
    except UnsupportedOpError as error:
        if error.problems:
            raise
        raise UnsupportedOpError(f"{where}: {error}", (f"{where}: {error}",)) from error
    except (TypeInferenceError, ShapeError) as error:
        raise ModelError(f"{where}: {error}") from error
    except _MALFORMED as error:
        _log.debug("%s", where, exc_info=True)  # a bug of ours looks the same: its trace is here, and is the cause
        raise ModelError(
            f"{where}: got inputs or attributes that do not fit it ({type(error).__name__}: {error}), expected "
            f"{op_type} as ONNX defines it; check the model with onnx.checker; "
            "if that accepts it, please report it with the trace that DOVETAIL_LOG=import prints"
        ) from error
