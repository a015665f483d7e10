"""Weight sets: immutable, versioned; the original initializers and what the plan packs from them."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.dtypes import dtype
from dovetail.core.errors import PlanFormatError, RefitError
from dovetail.device.cpu import default_threads
from dovetail.device.cpu.memory import Recycler, copy_all
from dovetail.engine.plan import Guard, Plan, Program, WeightSpec, digest, digests
from dovetail.runtime import packed_cache
from dovetail.runtime.partial import weights_of
from dovetail.runtime.program import ProgramRunner, storage_of
from dovetail.runtime.stage import Resources, Stage

Array = NDArray[Any]

_versions = itertools.count(1)
_LISTED = 20  # problems that one error spells out
_PIECE = 4 << 20  # bytes that one thread copies at a time


class WeightSet:
    """One immutable version of all weights.

    `arrays` are the original initializers by name, `raw` and `packed` the memory that buffers of
    these kinds find by name.
    """

    def __init__(
        self, arrays: Mapping[str, Array], packed: Mapping[str, Array], hashes: Mapping[str, str],
        raw: Mapping[str, Array] | None = None,
    ) -> None:  # fmt: skip
        self.version = next(_versions)
        self.arrays = dict(arrays)
        self.raw = {name: storage_of(a) for name, a in arrays.items()} if raw is None else dict(raw)
        self.packed = dict(packed)
        self.hashes = dict(hashes)


@dataclass(frozen=True)
class Stored:
    """What identifies packed weights.

    Attributes:
        program: a hash of the weights program.
        hashes: SHA-256 of each initializer.
        checked: the hashes have been computed from these very arrays, not read from a file.
    """

    program: str
    hashes: Mapping[str, str]
    checked: bool = False


@dataclass(frozen=True)
class Changed:
    """The initializers of a weight set with some replaced.

    Attributes:
        arrays, hashes, raw: as a `WeightSet` has them; hashes of new arrays are not known.
        names: of what is new.
    """

    arrays: dict[str, Array]
    hashes: dict[str, str]
    raw: dict[str, Array]
    names: frozenset[str]


def recycler(weights: WeightSet) -> Recycler:
    """Keeps memory for one more set like this one."""
    return Recycler(sum(a.nbytes for a in (*weights.arrays.values(), *weights.packed.values()) if isinstance(a, np.ndarray)))


def new_token() -> int:
    """A number that no weight set and no result of a shapes program has had before."""
    return next(_versions)


def build(
    plan: Plan,
    arrays: Mapping[str, Array],
    runner: Callable[[], ProgramRunner],
    threads: int,
    stored: Stored | None = None,
) -> WeightSet:
    """Run the weights program over `arrays`; `runner` makes its runner if there is need of one.

    Nothing else runs while an engine opens, so all CPUs of the process take part, or `threads` if
    these are more. With `stored` the result is kept in the cache on disk, and found there the next
    time.

    Raises:
        RefitError: weights are missing or do not fit the plan.
    """
    kept = fitted(plan, arrays)
    known = {} if stored is None else dict(stored.hashes)
    if not plan.weights_program.outputs:
        return WeightSet(kept, {}, known)
    used = sorted(weights_of(plan.weights_program))
    key = None
    if stored is not None and set(used) <= stored.hashes.keys():
        key = packed_cache.key_of([stored.program, [stored.hashes[n] for n in used]])
        cached = packed_cache.read(key, [p.name for p in plan.weights_program.outputs])
        if cached is not None:
            return WeightSet(kept, cached, known)
    raw = {n: storage_of(a) for n, a in kept.items()}
    packed = _pack(runner(), raw, {}, Recycler(0), max(threads, default_threads()))
    if key is not None and stored is not None:
        if not stored.checked:
            _check_hashes(used, kept, known)
        packed_cache.write(key, packed)
    return WeightSet(kept, packed, known, raw)


def refit(
    plan: Plan,
    old: WeightSet,
    changes: Mapping[str, Array],
    runner: Callable[[Collection[str]], ProgramRunner],
    memory: Recycler,
    threads: int,
) -> WeightSet:
    """A new set with some weights replaced; `old` is untouched. Arrays are copied.

    Args:
        runner: gives the runner for what depends on some weights; the rest is taken over from `old`.
        memory: where the new arrays are, and those of older sets were.

    Raises:
        RefitError: unknown name, wrong dtype or shape, or a violated guard.
    """
    new = changed(plan, old, changes, memory, threads)
    packed = _pack(runner(new.names), new.raw, old.packed, memory, threads)
    return WeightSet(new.arrays, {**old.packed, **packed}, new.hashes, new.raw)


def changed(plan: Plan, old: WeightSet, changes: Mapping[str, Any], memory: Recycler, threads: int) -> Changed:
    """The initializers after a refit, the new ones copied by several threads.

    Raises:
        RefitError: unknown name, wrong dtype or shape, or a violated guard.
    """
    given = {name: np.asarray(value) for name, value in changes.items()}
    require(plan, given)
    specs = {spec.name: spec for spec in plan.weights if spec.name in given}
    new = _copies({n: (a, dtype(specs[n].dtype).numpy) for n, a in given.items()}, memory, threads)
    hashes = {n: h for n, h in old.hashes.items() if n not in new}
    raw = old.raw | {n: storage_of(a) for n, a in new.items()}
    return Changed(old.arrays | new, hashes, raw, frozenset(new))


def require(plan: Plan, changes: Mapping[str, Array], others: Sequence[str] = ()) -> None:
    """Check that all of these weights may be replaced so; `others` are problems that were found before.

    Raises:
        RefitError: lists everything that is wrong.
    """
    found = [*others, *problems(plan, changes)]
    if not found:
        return
    if len(found) == 1:
        raise RefitError(f"refit: {found[0]}")
    listing = "".join(f"\n  {p}" for p in found[:_LISTED])
    more = f"\n  and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise RefitError(f"refit: {len(found)} problems, so no weight is changed:{listing}{more}")


def problems(plan: Plan, changes: Mapping[str, Array]) -> list[str]:
    """What keeps each of these weights from being replaced so: unknown name, wrong dtype or shape, violated guards."""
    specs = {spec.name: spec for spec in plan.weights if spec.name in changes}
    guards: dict[str, list[Guard]] = {}
    for guard in plan.guards:
        guards.setdefault(guard.weight, []).append(guard)
    found: list[str] = []
    for name, array in changes.items():
        spec = specs.get(name)
        if spec is None:
            found.append(unknown(plan, name, array, hint=len(found) < _LISTED))
            continue
        want = dtype(spec.dtype).numpy
        if array.shape != spec.shape or not _converts(array.dtype, want):
            found.append(f"weight {name!r}: got {array.dtype} {array.shape}, expected {want} {spec.shape}")
            continue
        broken = [g.reason for g in guards.get(name, ()) if digest(array.astype(want, copy=False)) != g.sha256]
        if broken:
            found.append(
                f"weight {name!r}: got a new value {np.array2string(array.reshape(-1)[:8], threshold=8)}, expected the original one, "
                f"because {' and '.join(broken)}; rebuild the engine from the changed model"
            )
    return found


def unknown(plan: Plan, name: str, array: Array | None = None, *, hint: bool = True) -> str:
    """What is wrong with a name that no weight has, and which names are near: those of the array's shape first."""
    near = []
    if hint:
        names = [s.name for s in plan.weights if not s.name.startswith("~")]
        same = [s.name for s in plan.weights if array is not None and s.shape == array.shape and s.name in names]
        near = list(dict.fromkeys(difflib.get_close_matches(name, same, 2, 0.4) + difflib.get_close_matches(name, names, 3, 0.4)))[:3]
    shapes = {s.name: s for s in plan.weights}
    close = " or ".join(f"{n!r} ({shapes[n].dtype} {shapes[n].shape})" for n in near)
    what = "" if array is None else f" {array.dtype} {array.shape},"
    return f"got the weight {name!r},{what} expected one of {len(shapes)}" + (f"; did you mean {close}?" if close else "")


def _converts(given: np.dtype[Any], want: np.dtype[Any]) -> bool:
    """Whether every value has the type wanted, or is a narrower float."""
    if given == want:
        return True
    try:
        both = dtype(given).is_float and dtype(want).is_float
    except (TypeError, ValueError):
        return False
    return both and np.can_cast(given, want, "safe")


def _copies(arrays: Mapping[str, tuple[Array, np.dtype[Any]]], memory: Recycler, threads: int) -> dict[str, Array]:
    """Copies in types that they convert to, in memory of their own."""
    plain = {n: (a, want) for n, (a, want) in arrays.items() if not want.hasobject}
    room = memory.parts([a.size * want.itemsize for a, want in plain.values()])
    copies = {n: m.view(want).reshape(a.shape) for m, (n, (a, want)) in zip(room, plain.items(), strict=True)}
    pieces: list[tuple[Array, Array]] = []
    for name, (source, want) in plain.items():
        if source.dtype == want and source.flags.c_contiguous:
            to, of = storage_of(copies[name]), storage_of(source)
            pieces += [(to[i : i + _PIECE], of[i : i + _PIECE]) for i in range(0, to.nbytes, _PIECE)]
        else:
            pieces.append((copies[name], source))
    shared = threads > 1 and sum(to.nbytes for to, _ in pieces) > _PIECE
    with ThreadPoolExecutor(threads) if shared else nullcontext() as pool:
        copy_all(pieces, pool)
    return {n: copies[n] if n in copies else a.copy() for n, (a, _) in arrays.items()}


def fitted(plan: Plan, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The initializers that the plan names, row-major.

    Raises:
        RefitError: weights are missing or do not fit the plan.
    """
    return {spec.name: _fit(spec, arrays) for spec in plan.weights}


def _fit(spec: WeightSpec, arrays: Mapping[str, Array]) -> Array:
    if spec.name not in arrays:
        raise RefitError(
            f"weights: got no {spec.name!r}, expected all initializers of the model; "
            "pass weights= for an engine file without weights"
        )
    array = arrays[spec.name]
    want = dtype(spec.dtype).numpy
    if array.dtype != want or array.shape != spec.shape:
        raise RefitError(
            f"weight {spec.name!r}: got {array.dtype} {array.shape}, expected {want} {spec.shape}"
        )
    return np.asarray(array, order="C")


def _pack(
    runner: ProgramRunner, raw: Mapping[str, Array], packed: Mapping[str, Array], memory: Recycler, threads: int
) -> dict[str, Array]:
    """Results of a weights program, or of a part of one that reads what is packed already."""
    if not runner.program.outputs:
        return {}
    stage = runner.stage((), {})
    results = runner.run(stage, (), _room(runner, stage, memory), Resources(raw, packed, {}), new_token(), threads)
    return by_name(runner.program, results)


def _room(runner: ProgramRunner, stage: Stage, memory: Recycler) -> list[Array | None]:
    """Memory for the results whose sizes are known, side by side."""
    count = len(runner.program.outputs)
    known = [(i, v) for i, v in stage.outputs if v.whole and v.buffer.kind == "output" and v.nbytes == stage.sizes[v.root]]
    room: list[Array | None] = [None] * count
    for (i, view), part in zip(known, memory.parts([v.nbytes for _, v in known]), strict=True):
        assert view.shape is not None
        room[i] = part.view(view.dtype).reshape(view.shape)
    return room


def by_name(program: Program, results: Sequence[Array]) -> dict[str, Array]:
    """A program's outputs as memory that buffers find by name; sequences stay what they are."""
    return {
        port.name: value if port.tensor.shape is None else storage_of(value)
        for port, value in zip(program.outputs, results, strict=True)
    }


def _check_hashes(used: Collection[str], arrays: Mapping[str, Array], hashes: Mapping[str, str]) -> None:
    """Nothing may enter the cache under the hash of something else."""
    for name, value in digests({name: arrays[name] for name in used}).items():
        if value != hashes[name]:
            raise PlanFormatError(
                f"weight {name!r}: does not match its hash in the manifest; the file is damaged, "
                "copy or build it again"
            )
