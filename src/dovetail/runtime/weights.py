"""Weight sets: immutable, versioned; the original initializers and what the plan packs from them."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.dtypes import dtype
from dovetail.core.env import env
from dovetail.core.errors import PlanFormatError, RefitError
from dovetail.core.log import logger
from dovetail.device.cpu import default_threads
from dovetail.device.cpu.memory import ALIGNMENT, aligned_empty
from dovetail.engine.plan import ControlSegment, Plan, Program, WeightSpec, digest, digests
from dovetail.runtime.program import ProgramRunner, storage_of
from dovetail.runtime.stage import Resources

Array = NDArray[Any]

_versions = itertools.count(1)
_CACHE_FORMAT = 2


class WeightSet:
    """One immutable version of all weights.

    `arrays` are the original initializers by name, `raw` and `packed` the memory that buffers of
    these kinds find by name.
    """

    def __init__(
        self, arrays: Mapping[str, Array], packed: Mapping[str, Array], hashes: Mapping[str, str]
    ) -> None:
        self.version = next(_versions)
        self.arrays = dict(arrays)
        self.raw = {name: storage_of(a) for name, a in arrays.items()}
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
    key = None if stored is None else _cache_key(plan, stored)
    if key is not None:
        cached = _read_cache(key, plan)
        if cached is not None:
            return WeightSet(kept, cached, known)
    packed = _pack(plan, kept, runner(), max(threads, default_threads()))
    if key is not None and stored is not None:
        if not stored.checked:
            _check_hashes(plan, kept, known)
        _write_cache(key, packed)
    return WeightSet(kept, packed, known)


def refit(
    plan: Plan, old: WeightSet, changes: Mapping[str, Array], runner: ProgramRunner, threads: int
) -> WeightSet:
    """A new set with some weights replaced; `old` is untouched. Arrays are copied.

    Raises:
        RefitError: unknown name, wrong dtype or shape, or a violated guard.
    """
    arrays, hashes = changed(plan, old, changes)
    return WeightSet(arrays, _pack(plan, arrays, runner, threads), hashes)


def changed(
    plan: Plan, old: WeightSet, changes: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, str]]:
    """The initializers after a refit, and the hashes of those that are still known.

    Raises:
        RefitError: unknown name, wrong dtype or shape, or a violated guard.
    """
    arrays = dict(old.arrays)
    specs = {spec.name: spec for spec in plan.weights}
    guards = {g.weight: g for g in plan.guards}
    hashes = dict(old.hashes)
    for name, value in changes.items():
        if name not in specs:
            close = difflib.get_close_matches(name, specs, 3, 0.4)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise RefitError(f"refit: got the weight {name!r}, expected one of {len(specs)}{hint}")
        source = np.asarray(value)
        fitted = _fit(specs[name], {name: source})
        if name in guards and digest(fitted) != guards[name].sha256:
            raise RefitError(
                f"refit: got a new value for {name!r}, expected the original one, because "
                f"{guards[name].reason}; rebuild the engine from the changed model"
            )
        copy = (
            fitted.copy() if fitted.dtype == object else aligned_empty(fitted.shape, fitted.dtype)
        )
        copy[...] = fitted
        arrays[name] = copy
        hashes.pop(name, None)
    return arrays, hashes


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
    plan: Plan, arrays: Mapping[str, Array], runner: ProgramRunner, threads: int
) -> dict[str, Array]:
    if not plan.weights_program.outputs:
        return {}
    resources = Resources({n: storage_of(a) for n, a in arrays.items()}, {}, {})
    stage = runner.stage((), {})
    results = runner.run(stage, (), None, resources, new_token(), threads)
    return by_name(plan.weights_program, results)


def by_name(program: Program, results: Sequence[Array]) -> dict[str, Array]:
    """A program's outputs as memory that buffers find by name; sequences stay what they are."""
    return {
        port.name: value if port.tensor.shape is None else storage_of(value)
        for port, value in zip(program.outputs, results, strict=True)
    }


# --- the cache of packed weights ------------------------------------------------------------------
#
# A file per key: the header's length, the header (JSON), then the packed arrays, each aligned to 64
# bytes and described by the header. It is mapped, not read, so that a warm start
# costs no copy and processes share the pages.


def _cache_key(plan: Plan, stored: Stored) -> str | None:
    """Hash of all that the packed weights depend on; None where a weight's hash is unknown."""
    used = sorted(_weights_of(plan.weights_program))
    if not set(used) <= stored.hashes.keys():
        return None
    parts = [_CACHE_FORMAT, stored.program, [stored.hashes[n] for n in used]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_hashes(plan: Plan, arrays: Mapping[str, Array], hashes: Mapping[str, str]) -> None:
    """Nothing may enter the cache under the hash of something else."""
    found = digests({name: arrays[name] for name in sorted(_weights_of(plan.weights_program))})
    for name, value in found.items():
        if value != hashes[name]:
            raise PlanFormatError(
                f"weight {name!r}: does not match its hash in the manifest; the file is damaged, "
                "copy or build it again"
            )


def _weights_of(program: Program) -> set[str]:
    names = {b.name for b in program.buffers if b.kind == "weight"}
    for segment in program.segments:
        if isinstance(segment, ControlSegment):
            for region in segment.regions:
                names |= _weights_of(region)
    return names


def _cache_path(key: str) -> Path:
    return env().cache / "packed" / f"{key}.bin"


def _read_cache(key: str, plan: Plan) -> dict[str, Array] | None:
    """The packed weights of a key, mapped read-only; None where there is no intact file."""
    try:
        data: Array = np.memmap(_cache_path(key), np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError):
        return None
    try:
        header_size = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + header_size].tobytes())
        if header["key"] != key or header["size"] != data.nbytes:
            raise ValueError("another key or size")
        result = {}
        for port in plan.weights_program.outputs:
            start, size = header["arrays"][port.name]
            if not 0 <= start <= start + size <= data.nbytes or start % ALIGNMENT:
                raise ValueError(f"{port.name} leaves the file")
            result[port.name] = data[start : start + size]
    except (KeyError, TypeError, ValueError) as error:
        logger("runtime").warning("packed weights %s are damaged (%s): packing again", key, error)
        return None
    return result


def _write_cache(key: str, packed: Mapping[str, Array]) -> None:
    """Keep packed weights for the next start; a cache that cannot be written is only slower."""
    arrays: dict[str, tuple[int, int]] = {}
    room = 128 + sum(len(json.dumps(name)) + 48 for name in packed)
    start = end = _padded(8 + len(key) + room, 4096)
    for name, array in packed.items():
        if not isinstance(array, np.ndarray) or array.dtype == object:
            return  # sequences and strings are not worth a format of their own
        arrays[name] = (start, array.nbytes)
        end = start + array.nbytes
        start = _padded(end, ALIGNMENT)
    header = json.dumps({"key": key, "size": end, "arrays": arrays}).encode()
    path = _cache_path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", key[:16], path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for name, (offset, _) in arrays.items():
                    file.seek(offset)
                    file.write(packed[name].data)
                file.truncate(end)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        logger("runtime").warning("packed weights are not cached: %s", error)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
