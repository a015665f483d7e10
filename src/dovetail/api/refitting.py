"""Refits: of an engine, for good or for a block, and of an engine file."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.api.recipes import Recipe
from dovetail.api.weight_names import WeightNames, required, resolve
from dovetail.api.weight_sources import WeightSource, open_weights
from dovetail.core.dtypes import dtype
from dovetail.core.errors import RefitError
from dovetail.engine.file import NODE_CONSTANTS, EngineFile, replace_weights
from dovetail.engine.plan import Plan
from dovetail.runtime.weights import fitted, require

if TYPE_CHECKING:
    from dovetail.api.engine import Engine
    from dovetail.runtime.engine import Refitted

Array = np.ndarray[Any, Any]

DROPPED = "dropped_weights"
"""Where an engine's manifest data name the model's weights that it does without."""


class Refit:
    """A refit that was made. It stays, or ends with `undo` or with the `with` block that it opens.

    Attributes:
        names: of the weights that it replaced.
    """

    def __init__(self, engine: Engine, refitted: Refitted, before: Plan) -> None:
        self.names = refitted.names
        self._engine, self._refitted, self._before = engine, refitted, before
        self._undone = False

    def undo(self) -> None:
        """Give these weights the values that they had before; bit for bit, and without packing anything if nothing else has changed."""
        if not self._undone:
            self._engine._restore(self._refitted, self._before)
            self._undone = True

    def __enter__(self) -> Refit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Refit({len(self.names)} weights{', undone' if self._undone else ''})"


def changes_of(
    plan: Plan, graph: Callable[[], str], info: Mapping[str, Any], source: WeightSource, *, names: WeightNames | None,
    strict: bool, ignore: Collection[str],
) -> dict[str, Array]:  # fmt: skip
    """The new values of an engine's weights, checked.

    Args:
        graph: gives the engine's IR text.
        info: its manifest data.

    Raises:
        RefitError: lists all names and shapes that do not fit, and all guards that would break.
    """
    weights = open_weights(source, numbered=any("#" in spec.name for spec in plan.weights))

    def exported() -> Mapping[str, Recipe]:
        from dovetail.api.exported_names import RENAMED, exported_names
        from dovetail.ir.parser import parse_module

        if not any(RENAMED.fullmatch(spec.name) for spec in plan.weights):
            return {}
        return exported_names(parse_module(graph()))

    found = resolve(plan, weights, names=names, ignore=ignore, exported=exported, dropped=info.get(DROPPED, ()))
    problems = found.problems
    if strict:
        absent = [n for n in required(plan, info.get(NODE_CONSTANTS, ())) if n not in found.changes]
        shapes = {s.name: f"{s.dtype} {s.shape}" for s in plan.weights}
        problems += [f"got no value for the weight {n!r}, expected {shapes[n]}, because all are to be replaced (strict)" for n in absent]
    require(plan, found.changes, problems)
    return found.changes


def refit_file(
    engine: str | os.PathLike[str], weights: WeightSource, output: str | os.PathLike[str], *, names: WeightNames | None = None,
    strict: bool = False, ignore: Collection[str] = (),
) -> tuple[str, ...]:  # fmt: skip
    """Write an engine file with other weights; nothing is compiled and no device is needed.

    All targets of the file stay. Kernels that a trusted key has signed are signed again by this machine's key, the others lose their
    signature and are made anew where the file is loaded. A file without weights becomes one with weights, if all are given.

    Args:
        engine: the engine file.
        output: the file to write, whole or not at all; may be the same.
        weights, names, strict, ignore: as of `Engine.refit`.

    Returns:
        The names of the weights that were replaced.

    Raises:
        RefitError: as of `Engine.refit`.
        PlanFormatError: a damaged file.
        OSError: it cannot be written.
    """
    file = EngineFile(Path(engine))
    file.verify()
    whole, changed = all_weights(file, weights, names=names, strict=strict, ignore=ignore)
    replace_weights(file, Path(output), whole)
    return changed


def all_weights(
    file: EngineFile, source: WeightSource, *, names: WeightNames | None = None, strict: bool = False, ignore: Collection[str] = ()
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """All weights of an engine file with those of a source in their place, and the names of these; see `refit_file`.

    Raises:
        RefitError: as of `Engine.refit`; the file holds no weights, and the source not all of them.
    """
    plans = [file.plan(target) for target in file.targets]
    first, stored = plans[0], file.weights()
    changes = changes_of(first, lambda: file.graph, file.info, source, names=names, strict=strict, ignore=ignore)
    for plan in plans[1:]:
        require(plan, changes)
    base = file.fixed_weights() if stored is None else stored
    lacking = [s.name for s in first.weights if s.name not in changes and s.name not in base]
    if lacking:
        raise RefitError(
            f"{file.path}: holds no weights, so all must be given; got no {', '.join(map(repr, lacking[:5]))}"
            + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        )
    whole = fitted(first, base | {n: _as_stated(first, n, a) for n, a in changes.items()})
    return whole, tuple(changes)


def _as_stated(plan: Plan, name: str, array: Array) -> Array:
    """An array in its weight's type."""
    spec = next(s for s in plan.weights if s.name == name)
    return array.astype(dtype(spec.dtype).numpy, copy=False)
