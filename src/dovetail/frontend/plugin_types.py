"""Result types of plugin calls: from the plugin's shape rule, or from trial runs of its function.

Trial runs take arrays of zeros. Where input shapes are symbolic there are several, at sizes that differ from symbol to
symbol; an extent of a result is then the constant, the input's dim, the product of neighbouring dims or the multiple of a symbol
that agrees with all of them. An extent that depends on values, or that nothing explains, is the run's to define (None). Runs check
what was found here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.core import dims
from dovetail.core.dims import Dim, Expr
from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import Error, ShapeError, TypeInferenceError, UsageError
from dovetail.core.log import logger
from dovetail.ir.types import TensorType
from dovetail.plugins import Plugin

Array = np.ndarray[Any, Any]
Extents = tuple[Dim | None, ...]
Results = tuple[tuple[DType, Extents], ...]
"""Element type and extents of each result; None for an extent that the run defines."""

Bounds = Mapping[str, Sequence[int | None]]

_PATTERNS = ("zeros", "ones", "mixed")
# Sizes of the first, second … symbol; distinct, so that no two symbols look alike, and without common factors.
_TRIALS = ((7, 11, 13, 17, 19, 23), (10, 9, 16, 25, 27, 22), (3, 2, 5, 4, 6, 8), (16, 12, 18, 14, 20, 28), (64, 48, 80, 96, 56, 72))
_WANTED = 3
_log = logger("plugins")


@dataclass(frozen=True)
class Given:
    """One input as types are found for: its type, and its contents where integers are known as dims."""

    type: TensorType
    contents: Array | None = None


def result_types(
    plugin: Plugin, inputs: Sequence[Given | None], attributes: Mapping[str, Any], bounds: Bounds
) -> Results:
    """The types of a plugin's results.

    Args:
        attributes: complete, as the function gets them.
        bounds: (lower, upper, …) of symbols.

    Raises:
        TypeInferenceError: the rule or the trial runs failed, or gave something else than types; names the plugin.
    """
    if plugin.shape_rule is not None:
        return _by_rule(plugin, [None if g is None else g.type for g in inputs], attributes)
    return _Trials(plugin, inputs, attributes, bounds).types()


# --- shape rules ----------------------------------------------------------------------------------


def _by_rule(plugin: Plugin, types: Sequence[TensorType | None], attributes: Mapping[str, Any]) -> Results:
    assert plugin.shape_rule is not None
    where = f"plugin {plugin.key}: its shape rule"
    try:
        found = plugin.shape_rule(*types, **attributes)
    except Error as error:
        raise TypeInferenceError(f"{where}: {error}") from error
    except Exception as error:
        shown = ", ".join("none" if t is None else str(t) for t in types)
        raise TypeInferenceError(f"{where} failed on ({shown}) ({type(error).__name__}: {error}); correct it, or the inputs") from error
    default = next((t.dtype for t in types if t is not None), None)
    several = found if _is_several(found) else (found,)
    return tuple(_result(item, default, f"{where}, result {i}") for i, item in enumerate(several))


def _is_dim(value: Any) -> bool:
    return value is None or isinstance(value, Expr) or (isinstance(value, int | np.integer) and not isinstance(value, bool))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple | list) and _is_dtype(value[1])


def _is_dtype(value: Any) -> bool:
    return isinstance(value, DType | str | np.dtype) or (isinstance(value, type) and issubclass(value, np.generic | bool | int | float))


def _is_several(found: Any) -> bool:
    if isinstance(found, list):
        return not found or not all(map(_is_dim, found))
    return isinstance(found, tuple) and bool(found) and not all(map(_is_dim, found)) and not _is_pair(found)


def _result(item: Any, default: DType | None, where: str) -> tuple[DType, Extents]:
    if isinstance(item, TensorType):
        return item.dtype, item.shape
    shape, kind = item if _is_pair(item) else (item, default)
    if not isinstance(shape, tuple | list) or not all(map(_is_dim, shape)) or kind is None:
        raise TypeInferenceError(
            f"{where}: got {item!r}, expected a type (x.with_shape(…)), a pair (shape, dtype), or a shape of ints, dims and None"
        )
    extents = tuple(int(d) if isinstance(d, np.integer) else d for d in shape)
    if any(isinstance(d, int) and d < 0 for d in extents):
        raise TypeInferenceError(f"{where}: got the shape {extents}, expected extents of 0 or more; None stands for what the data decide")
    try:
        return dtype(kind), extents
    except UsageError as error:
        raise TypeInferenceError(f"{where}: {error}") from error


# --- trial runs -----------------------------------------------------------------------------------


class _Trials:
    """Runs of the function on small arrays, and what explains the shapes of their results."""

    def __init__(self, plugin: Plugin, inputs: Sequence[Given | None], attributes: Mapping[str, Any], bounds: Bounds) -> None:
        self.plugin, self.inputs, self.attributes, self.bounds = plugin, inputs, attributes, bounds
        present = [g for g in inputs if g is not None]
        mentioned = [d for g in present for d in g.type.shape]
        mentioned += [d for g in present if g.contents is not None for d in g.contents.reshape(-1)]
        self.symbols = sorted({s for d in mentioned if isinstance(d, Expr) for s in dims.symbols(d)})
        self.failure: Exception | None = None

    def types(self) -> Results:
        """What all trials agree on.

        Raises:
            TypeInferenceError: too few trials succeeded, or they disagree on more than extents.
        """
        runs: list[tuple[dict[str, int], tuple[Array, ...]]] = []
        variants: list[tuple[Array, ...]] = []
        base = ""
        for sizes in self._sizes():
            if not base:
                found = {p: r for p in _PATTERNS if (r := self._run(sizes, p)) is not None}
                if not found:
                    continue
                base, *others = found
                runs.append((sizes, found[base]))
                variants = [found[p] for p in others]
            elif (results := self._run(sizes, base)) is not None:
                runs.append((sizes, results))
            if len(runs) == _WANTED:
                break
        if len(runs) < min(2, len(self.symbols) + 1):
            raise self._refusal(f"trial runs failed ({type(self.failure).__name__}: {self.failure})") from self.failure
        self._agree([results for _, results in runs] + variants)
        candidates = self._candidates()
        types = []
        for index, first in enumerate(runs[0][1]):
            extents: list[Dim | None] = []
            for axis in range(first.ndim):
                by_data = any(v[index].shape[axis] != first.shape[axis] for v in variants)
                seen = [(sizes, results[index].shape[axis]) for sizes, results in runs]
                extents.append(None if by_data else self._explained(seen, candidates))
            types.append((dtype(first.dtype), tuple(extents)))
        return tuple(types)

    def _refusal(self, what: str) -> TypeInferenceError:
        shown = ", ".join("none" if g is None else str(g.type) for g in self.inputs)
        return TypeInferenceError(
            f"plugin {self.plugin.key}: its result types are not known: {what} on ({shown}) with {dict(self.attributes)}; "
            "correct the inputs or the function, or give it a shape rule (@….shape)"
        )

    def _agree(self, trials: Sequence[tuple[Array, ...]]) -> None:
        kinds = {tuple((str(dtype(r.dtype)), r.ndim) for r in results) for results in trials}
        if len(kinds) > 1:
            raise self._refusal(f"trial runs gave results of different types, {' and '.join(map(str, sorted(kinds)))},")

    def _sizes(self) -> Iterator[dict[str, int]]:
        """Assignments of sizes to the symbols, within their bounds."""
        if not self.symbols:
            yield {}
            return
        for row in _TRIALS:
            sizes = {}
            for i, symbol in enumerate(self.symbols):
                bound = self.bounds.get(symbol, ())
                low = (bound[0] if bound else 0) or 0
                high = bound[1] if len(bound) > 1 else None
                size = row[i % len(row)] + 30 * (i // len(row))
                # Sizes beyond narrow bounds go round, so that symbols still differ.
                sizes[symbol] = max(size, low) if high is None else low + (size - low) % (high - low + 1)
            yield sizes

    def _run(self, sizes: Mapping[str, int], pattern: str) -> tuple[Array, ...] | None:
        """The results at these sizes; None where there are none."""
        try:
            arrays = [None if g is None else self._array(g, sizes, pattern) for g in self.inputs]
            with np.errstate(all="ignore"):
                return self.plugin.run(arrays, {k: _own(v) for k, v in self.attributes.items()})
        except (Error, ValueError) as error:
            self.failure = error
            _log.debug("plugin %s: no trial run at %s with %s: %s", self.plugin.key, dict(sizes), pattern, error)
            return None

    @staticmethod
    def _array(given: Given, sizes: Mapping[str, int], pattern: str) -> Array:
        shape = tuple(dims.evaluate(d, sizes) for d in given.type.shape)
        if min(shape, default=0) < 0:
            raise ShapeError(f"a trial at {dict(sizes)} has the shape {shape}")
        kind = given.type.dtype
        if given.contents is not None and not kind.is_float and kind.kind != "string":
            known = [dims.evaluate(d, sizes) if isinstance(d, Expr) else int(d) for d in given.contents.reshape(-1)]
            return np.array(known, np.int64).astype(kind.numpy).reshape(shape)
        if kind.kind == "string":
            result = np.empty(shape, object)
            result[...] = "" if pattern == "zeros" else "a"
            return result
        if pattern == "mixed":
            count = int(np.prod(shape, dtype=np.int64))
            top = 2 if kind.kind == "bool" else 5
            return (np.arange(count) % top).astype(np.int8).reshape(shape).astype(kind.numpy)
        return np.full(shape, pattern == "ones").astype(kind.numpy)

    def _candidates(self) -> list[Expr]:
        """Dims that an extent of a result may be: those of inputs, then products of neighbouring ones."""
        found: dict[Expr, None] = {}
        shapes = [g.type.shape for g in self.inputs if g is not None]
        contents = [tuple(g.contents.reshape(-1)) for g in self.inputs if g is not None and g.contents is not None]
        for d in (d for shape in (*shapes, *contents) for d in shape):
            if isinstance(d, Expr):
                found[d] = None
        for shape in shapes:
            for start in range(len(shape)):
                for end in range(start + 2, len(shape) + 1):
                    product = dims.product(shape[start:end])
                    if isinstance(product, Expr):
                        found[product] = None
        return list(found)

    def _explained(self, seen: Sequence[tuple[Mapping[str, int], int]], candidates: Sequence[Expr]) -> Dim | None:
        """What an extent is, from what it was at several sizes; None where nothing fits, or several things do."""
        extents = {extent for _, extent in seen}
        if len(extents) == 1:
            return extents.pop()
        fitting = [c for c in candidates if all(dims.evaluate(c, sizes) == extent for sizes, extent in seen)]
        if not fitting and len(seen) >= _WANTED:
            fitting = [line for s in self.symbols if (line := _line(s, seen)) is not None]
        return fitting[0] if len(fitting) == 1 else None


def _line(symbol: str, seen: Sequence[tuple[Mapping[str, int], int]]) -> Expr | None:
    """`a * symbol + b` with whole numbers, a not 0, where that is what was seen."""
    points = [(sizes[symbol], extent) for sizes, extent in seen]
    (x0, y0), (x1, y1) = points[0], points[1]
    if x0 == x1 or (y1 - y0) % (x1 - x0):
        return None
    slope = (y1 - y0) // (x1 - x0)
    offset = y0 - slope * x0
    if any(slope * x + offset != y for x, y in points):
        return None
    found = slope * dims.sym(symbol) + offset
    return found if isinstance(found, Expr) else None


def _own(value: Any) -> Any:
    """A copy of an attribute, which a function may change."""
    if isinstance(value, list):
        return [_own(item) for item in value]
    return {k: _own(v) for k, v in value.items()} if isinstance(value, dict) else value
