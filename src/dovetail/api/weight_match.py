"""`dovetail.match_weights`: what each weight of a model is in the state dict that it was exported from, found by its contents."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dovetail.api.recipes import Recipe, WeightName
from dovetail.api.weight_names import WeightMap, required
from dovetail.api.weight_sources import WeightSource, open_weights
from dovetail.engine.file import NODE_CONSTANTS
from dovetail.engine.plan import digest
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import ModelSource, is_model

if TYPE_CHECKING:
    from dovetail.api.engine import Engine
    from dovetail.ir.graph import Module

Array = np.ndarray[Any, Any]

_TOLERANCE = 1e-5  # relative L2 distance of what an exporter computed in fp32
_EPSILONS = (1e-5, 1e-3, 1e-6, 1e-4, 1e-12, 1e-8)
_LIKELY = 1e-3
_MAX_RANK = 5


def match_weights(model: Engine | ModelSource, source: WeightSource) -> WeightMap:
    """Find what each weight of a model is in the state dict that it was exported from.

    Contents decide: a weight is an array of the source if it is equal bit for bit, as it is or transposed or with its axes merged;
    a part or a concatenation of such; or, up to rounding, a weight with its batch normalisation folded in, or its weight
    normalisation resolved. Names decide only between arrays of equal contents. What is found holds for later state dicts of the
    same model: `engine.refit(trained, names=match_weights(engine, original))`.

    Args:
        model: an engine that still has the weights of the export, or the ONNX model.
        source: the state dict (or file) that it was exported from.

    Raises:
        RefitError: the source cannot be read.
        ModelError: the model cannot.
    """
    module, weights, wanted = _of_model(model) if is_model(model) else _of_engine(cast("Engine", model))
    values = open_weights(source)
    found = match_arrays({n: weights[n] for n in wanted}, values, _modules(module))
    found.unused = tuple(n for n in found.unused if n not in weights)
    return found


def match_arrays(wanted: Mapping[str, Array], values: Mapping[str, Array], modules: Mapping[str, Sequence[str]] | None = None) -> WeightMap:
    """What each array is among others, by its contents; see `match_weights`.

    Args:
        wanted: arrays to find.
        values: where to find them.
        modules: paths of the modules whose nodes read a wanted array.
    """
    search = _Search({n: values[n] for n in values if values[n].dtype != object}, modules or {})
    found: dict[str, WeightName] = {}
    ambiguous: dict[str, list[str]] = {}
    rules = (search.equal, search.parts, search.concats, search.weight_norms, search.folded)
    for name, array in wanted.items():
        for rule in rules:
            candidates = list(dict.fromkeys(rule(name, array)))
            # What is the same everywhere (zeros, ones) may be equal by chance: names must say so.
            if len(candidates) == 1 and not _uniform(array):
                found[name] = candidates[0]
            elif candidates:
                nearest = search.nearest(name, candidates)
                if nearest is None:
                    ambiguous[name] = [str(c) for c in candidates]
                else:
                    found[name] = nearest
            if candidates:
                break
    used = {n for recipe in found.values() if isinstance(recipe, Recipe) for n in recipe.inputs}
    missing = [n for n in wanted if n not in found and n not in ambiguous]
    return WeightMap(found, missing, ambiguous, [n for n in values if n not in used])


def _of_engine(engine: Engine) -> tuple[Module, Mapping[str, Array], list[str]]:
    from dovetail.ir.parser import parse_module

    return parse_module(engine.graph), engine.weights(), required(engine.plan, engine.info.get(NODE_CONSTANTS, ()))


def _of_model(model: ModelSource) -> tuple[Module, Mapping[str, Array], list[str]]:
    module = import_onnx(Path(model) if isinstance(model, str | os.PathLike) else model)
    fixed = {g.weight for g in module.guards}.union(module.meta.get(NODE_CONSTANTS, ()))
    return module, module.weights, [n for n in module.weights if n not in fixed and not n.startswith("~")]


def _modules(module: Module) -> Mapping[str, Sequence[str]]:
    from dovetail.api.exported_names import modules_of

    return modules_of(module)


@dataclass
class _Norm:
    """The arrays of one batch normalisation, by their names."""

    gamma: str
    beta: str
    mean: str
    variance: str


@dataclass
class _Search:
    """The arrays of a source, by what they hold.

    `modules` are the paths of the modules whose nodes read a weight.
    """

    arrays: dict[str, Array]
    modules: Mapping[str, Sequence[str]]
    _digests: dict[str, str] = field(default_factory=dict)

    # ------------------------------------------------------------------ equal contents
    @cached_property
    def _by_elements(self) -> dict[tuple[str, int], list[str]]:
        """Names by type and number of elements."""
        found: dict[tuple[str, int], list[str]] = defaultdict(list)
        for name, array in self.arrays.items():
            found[array.dtype.str, array.size].append(name)
        return found

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = digest(self.arrays[name])
        return self._digests[name]

    def equal(self, name: str, array: Array) -> Iterator[Recipe]:
        """The same elements: as they are, transposed, or in another shape."""
        same = self._by_elements.get((array.dtype.str, array.size), [])
        if not same:
            return
        wanted = digest(array)
        for other in same:
            given = self.arrays[other]
            if self._digest(other) == wanted:
                yield Recipe("arrange", (other,), shape=None if given.shape == array.shape else array.shape)
                continue
            for axes in _transpositions(given, array):
                if np.array_equal(given.transpose(axes), array):
                    yield Recipe("arrange", (other,), axes=axes)
                    break

    def parts(self, name: str, array: Array) -> Iterator[Recipe]:
        """One of several equal parts of a larger array, such as the query of a packed projection."""
        if array.ndim not in (1, 2) or _uniform(array):
            return
        for other, given in self.arrays.items():
            if given.dtype != array.dtype or given.ndim != array.ndim or given.size <= array.size or given.size % array.size:
                continue
            count = given.size // array.size
            extent = given.shape[0] // count
            if extent * count != given.shape[0]:
                continue
            for axes in (None, (1, 0)) if array.ndim == 2 else (None,):
                if (array.shape if axes is None else array.shape[::-1]) != (extent, *given.shape[1:]):
                    continue
                for i in range(count):
                    part = given[i * extent : (i + 1) * extent]
                    if np.array_equal(part if axes is None else part.T, array):
                        yield Recipe("part", (other,), axes=axes, axis=0, start=i * extent, stop=(i + 1) * extent)

    def concats(self, name: str, array: Array) -> Iterator[Recipe]:
        """Arrays side by side, as they are or all transposed."""
        for axes in (None, (1, 0)) if array.ndim == 2 else (None,):
            turned = array if axes is None else array.T
            names = self._side_by_side(turned) if array.ndim in (1, 2) and not _uniform(array) else None
            if names:
                yield Recipe("concat", tuple(names), axes=axes, axis=0)

    def _side_by_side(self, array: Array) -> list[str] | None:
        """The arrays that make up another one along its first axis, if each is the only one that fits."""
        names: list[str] = []
        at = 0
        while at < len(array):
            fitting = [
                other
                for other, given in self.arrays.items()
                if given.dtype == array.dtype and given.ndim == array.ndim and given.shape[1:] == array.shape[1:]
                and 0 < len(given) < len(array) and np.array_equal(given, array[at : at + len(given)])
            ]  # fmt: skip
            if len(fitting) != 1:
                return None
            names.append(fitting[0])
            at += len(self.arrays[fitting[0]])
        return names

    # ------------------------------------------------------------------ computed by the exporter
    def weight_norms(self, name: str, array: Array) -> Iterator[Recipe]:
        """A direction with its magnitude: `weight_v` and `weight_g`, or the originals of a parametrization."""
        for magnitude, direction in self._magnitudes:
            recipe = Recipe("weight_norm", (magnitude, direction))
            for axes in _transpositions(self.arrays[direction], array, identity=True):
                turned = replace(recipe, axes=None if axes == tuple(range(len(axes))) else axes)
                if self._close(turned, array):
                    yield turned
                    break

    @cached_property
    def _magnitudes(self) -> list[tuple[str, str]]:
        pairs = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
        return [
            (n, n[: -len(g)] + v) for n in self.arrays for g, v in pairs if n.endswith(g) and n[: -len(g)] + v in self.arrays
        ]

    def folded(self, name: str, array: Array) -> Iterator[Recipe]:
        """A weight or bias with a batch normalisation folded into it."""
        if array.dtype.kind != "f":
            return
        for norm in self._norms:
            channels = len(self.arrays[norm.variance])
            if array.ndim == 1 and len(array) == channels:
                yield from self._folded_biases(norm, array)
            elif array.ndim > 1 and channels in array.shape[:2]:
                yield from self._folded_weights(norm, array, channels)

    @cached_property
    def _norms(self) -> list[_Norm]:
        found = []
        for name in self.arrays:
            if name.endswith("running_var"):
                path = name[: -len("running_var")]
                norm = _Norm(f"{path}weight", f"{path}bias", f"{path}running_mean", name)
                if all(n in self.arrays for n in (norm.gamma, norm.beta, norm.mean)):
                    found.append(norm)
        return found

    def _folded_biases(self, norm: _Norm, array: Array) -> Iterator[Recipe]:
        inputs = (norm.beta, norm.gamma, norm.mean, norm.variance)
        owned = {norm.beta, norm.gamma, norm.mean}
        same = self._by_elements.get((array.dtype.str, array.size), [])
        biases = [(n,) for n in same if n.endswith("bias") and n not in owned]
        for eps in _EPSILONS:
            for bias in [(), *biases]:
                recipe = Recipe("folded_bias", (*inputs, *bias), eps=eps)
                if self._close(recipe, array):
                    yield recipe
                    return

    def _folded_weights(self, norm: _Norm, array: Array, channels: int) -> Iterator[Recipe]:
        for other in self._by_elements.get((array.dtype.str, array.size), []):
            given = self.arrays[other]
            for axes in _transpositions(given, array, identity=True):
                for axis in (0, 1):
                    if given.ndim <= axis or given.shape[axis] != channels:
                        continue
                    turned = None if axes == tuple(range(given.ndim)) else axes
                    recipe = Recipe("folded_weight", (other, norm.gamma, norm.variance), axes=turned, axis=axis)
                    likely = (replace(recipe, eps=e) for e in _EPSILONS)
                    eps = next((r.eps for r in likely if self._close_in_part(r, array) and self._close(r, array)), None)
                    if eps is not None:
                        yield replace(recipe, eps=eps)
                        return

    def _close_in_part(self, recipe: Recipe, array: Array) -> bool:
        """Whether a folded weight may be close: one element of each channel. Few weights are, and large ones take long to compute."""
        weight = self.arrays[recipe.inputs[0]]
        across = recipe.axis if recipe.axes is None else recipe.axes.index(recipe.axis)
        first = [x[tuple(slice(None) if i == axis else 0 for i in range(x.ndim))] for x, axis in ((weight, recipe.axis), (array, across))]
        parts = {name: self.arrays[name] for name in recipe.inputs[1:]} | {recipe.inputs[0]: first[0]}
        with np.errstate(all="ignore"):
            made = replace(recipe, axes=None, axis=0)(parts)
            return bool(np.linalg.norm(made - first[1]) <= _LIKELY * max(float(np.linalg.norm(first[1])), 1e-30))

    def _close(self, recipe: Recipe, array: Array) -> bool:
        with np.errstate(all="ignore"):
            made = recipe(self.arrays)
            if made.shape != array.shape:
                return False
            norm = float(np.linalg.norm(array.astype(np.float64)))
            return float(np.linalg.norm(made.astype(np.float64) - array)) <= _TOLERANCE * max(norm, 1e-30)

    # ------------------------------------------------------------------ equal contents, several names
    def nearest(self, name: str, candidates: list[Recipe]) -> Recipe | None:
        """Of candidates with equal contents the one that names speak for, if there is one."""
        paths = self.modules.get(name, ())
        for wanted in (name, *(f"{path}.{name.rpartition('.')[2]}" for path in paths)):
            same = [c for c in candidates if _without_wrappers(c.inputs[0]) == wanted]
            if len(same) == 1:
                return same[0]
        for path in paths:
            inside = [c for c in candidates if all(_without_wrappers(n).startswith(f"{path}.") for n in c.inputs)]
            if len(inside) == 1:
                return inside[0]
            # A normalisation follows the layer that it is folded into.
            after = [(self._distance(path, c), c) for c in candidates if len(c.inputs) > 2]
            ranked = sorted(((d, c) for d, c in after if d is not None), key=lambda pair: pair[0])
            if ranked and (len(ranked) == 1 or ranked[0][0] < ranked[1][0]):
                return ranked[0][1]
        return None

    def _distance(self, path: str, recipe: Recipe) -> int | None:
        """How far behind a module's arrays those of a recipe are in the source; None where they stand before it."""
        own = [i for i, n in enumerate(self.arrays) if _without_wrappers(n).startswith(f"{path}.")]
        order = {n: i for i, n in enumerate(self.arrays)}
        places = [order[n] - own[-1] for n in recipe.inputs if order[n] not in own] if own else []
        return sum(places) if places and min(places) > 0 else None


def _uniform(array: Array) -> bool:
    return bool(array.size < 2 or np.all(array == array.reshape(-1)[0]))


def _without_wrappers(name: str) -> str:
    from dovetail.api.weight_names import WRAPPERS

    return ".".join(p for p in name.split(".") if p not in WRAPPERS)


def _transpositions(given: Array, wanted: Array, identity: bool = False) -> Iterator[tuple[int, ...]]:
    """The orders of axes that give the wanted shape."""
    if given.ndim != wanted.ndim or given.ndim > _MAX_RANK or sorted(given.shape) != sorted(wanted.shape):
        return
    for axes in permutations(range(given.ndim)):
        if (identity or axes != tuple(range(given.ndim))) and tuple(given.shape[a] for a in axes) == wanted.shape:
            yield axes
