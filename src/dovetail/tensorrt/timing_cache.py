"""`ITimingCache` over Dovetail's timing cache: what candidates of each group took, carried from build to build by the client."""

from __future__ import annotations

import json
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dovetail.core.errors import BuildError
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.host_memory import IHostMemory
from dovetail.tensorrt.logger import Reporter
from dovetail.tuner.timing_cache import TimingCache

_HEADER = b"dovetail timing cache 1 "
_KEY = re.compile(r"[0-9A-Fa-f]{1,64}")


class TimingCacheKey:
    """What identifies a group of operators in a timing cache: hexadecimal digits."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @staticmethod
    def parse(text: str) -> TimingCacheKey:
        """The key of a text, as `str` of a key gives it.

        Raises:
            ValueError: no such text.
        """
        if not _KEY.fullmatch(expect(str, text, "TimingCacheKey.parse: text").removeprefix("0x")):
            raise ValueError(f"TimingCacheKey.parse: got {text!r}, expected up to 64 hexadecimal digits")
        return TimingCacheKey(text.removeprefix("0x").lower())

    def __str__(self) -> str:
        return f"0x{self._text}"

    def __repr__(self) -> str:
        return f"<TimingCacheKey: {self}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TimingCacheKey) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


class TimingCacheValue:
    """The tactic that a timing cache prefers for a group, by its hash, and its time in milliseconds."""

    __slots__ = ("tacticHash", "timingMSec")

    def __init__(self, tacticHash: int = 0, timingMSec: float = 0.0) -> None:
        self.tacticHash = tacticHash
        self.timingMSec = timingMSec

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, TimingCacheValue)
        return same and (self.tacticHash, self.timingMSec) == (other.tacticHash, other.timingMSec)  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"<TimingCacheValue: tactic {self.tacticHash:#x}, {self.timingMSec} ms>"


class ITimingCache:
    """Times that builds have measured; made by `IBuilderConfig.create_timing_cache`."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._records: dict[str, dict[str, Any]] = {}
        self._device = machine()

    def serialize(self) -> IHostMemory:
        """The cache as bytes, from which `IBuilderConfig.create_timing_cache` makes it again; equal caches give equal bytes."""
        lines = [json.dumps({"device": self._device}, sort_keys=True)]
        lines += [json.dumps({"key": key, **self._records[key]}, sort_keys=True) for key in sorted(self._records)]
        body = "\n".join(lines).encode()
        return IHostMemory(_HEADER + struct.pack("<I", zlib.crc32(body)) + body)

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Take over the times of another cache, which win; False, and unchanged, if that one is of another machine.

        Args:
            ignore_mismatch: take them over all the same.
        """
        other = expect(ITimingCache, input_cache, "ITimingCache.combine: input_cache")
        if other._device != self._device and not ignore_mismatch:
            self._reporter.error(f"ITimingCache::combine: the cache is of {other._device}, this one of {self._device}.")
            return False
        self._records |= other._records
        return True

    def reset(self) -> bool:
        """Forget all times; True."""
        self._records.clear()
        return True

    def queryKeys(self) -> list[TimingCacheKey]:
        """The keys of all groups with times."""
        return [TimingCacheKey(key) for key, record in self._records.items() if _times(record)]

    def query(self, key: TimingCacheKey) -> TimingCacheValue:
        """The fastest tactic of a group; one of hash 0 where the cache has none."""
        times = _times(self._records.get(expect(TimingCacheKey, key, "ITimingCache.query: key")._text, {}))
        if not times:
            return TimingCacheValue()
        name = min(times, key=lambda n: times[n])
        return TimingCacheValue(tactic_hash(name), times[name] / 1000)

    def update(self, key: TimingCacheKey, value: TimingCacheValue) -> bool:
        """Make a tactic that the cache knows the one that builds take for a group, with that time.

        The other tactics of the group are forgotten; a tactic of hash 0 forgets the group, so that it is timed again.

        Returns:
            False where the cache has no such group or no such tactic of it.
        """
        name = expect(TimingCacheKey, key, "ITimingCache.update: key")._text
        chosen = expect(TimingCacheValue, value, "ITimingCache.update: value")
        record = self._records.get(name)
        if record is None:
            self._reporter.error(f"ITimingCache::update: there is no entry with the key {key}.")
            return False
        if chosen.tacticHash == 0:
            del self._records[name]
            return True
        found = next((n for n in _times(record) if tactic_hash(n) == chosen.tacticHash), None)
        if found is None:
            self._reporter.error(f"ITimingCache::update: the entry {key} has no tactic {chosen.tacticHash:#x}.")
            return False
        # All others take longer than any that is measured, so that none of them is tried again.
        self._records[name] = {**record, "us": {n: (chosen.timingMSec or 1e-3) * 1000 if n == found else 1e12 for n in _times(record)}}
        return True


def read(data: Any, reporter: Reporter) -> ITimingCache | None:
    """A cache of the bytes of `ITimingCache.serialize`; a new one of no bytes; None, and an error in the log, of others."""
    made = ITimingCache(reporter)
    raw = bytes(data)
    if not raw:
        return made
    start = len(_HEADER) + 4
    if not raw.startswith(_HEADER) or len(raw) < start or struct.unpack("<I", raw[start - 4 : start])[0] != zlib.crc32(raw[start:]):
        reporter.error(f"createTimingCache: got {len(raw)} bytes that are no timing cache of this release; start with an empty one.")
        return None
    first, *rest = (json.loads(line) for line in raw[start:].decode().split("\n"))
    made._device = first["device"]
    made._records = {record.pop("key"): record for record in rest}
    return made


def machine() -> str:
    """The device that times are of, which caches of other devices do not fit."""
    from dovetail.tensorrt.device import device, ordinal
    from dovetail.tuner.timing_cache import cpu_model

    name = device()
    if name == "cpu":
        return f"cpu: {cpu_model()}"
    from dovetail.device.cuda import driver

    return f"cuda: {driver(ordinal(name)).properties.name}"


def tactic_hash(name: str) -> int:
    """The number that stands for a tactic; never 0."""
    return zlib.crc32(name.encode()) or 1


def device_of(cache: ITimingCache) -> str:
    """The device whose times a cache holds."""
    return cache._device


class _Complete(TimingCache):
    """Times that must have every group that is asked for."""

    def get(self, key: str) -> dict[str, float]:
        found = super().get(key)
        if not found and key not in self.records:
            raise BuildError(f"timing cache: got no entry 0x{key}, expected one, as ERROR_ON_TIMING_CACHE_MISS says; clear that flag")
        return found


@contextmanager
def used_by_build(cache: ITimingCache | None, fresh: bool, complete: bool = False) -> Iterator[TimingCache]:
    """The times that a build goes by, and adds to: the client's cache, none at all, or this user's own.

    Args:
        fresh: start with no times and keep none.
        complete: a group without times is an error.
    """
    kind = _Complete if complete else TimingCache
    if cache is None and not fresh:
        yield kind()
        return
    with tempfile.TemporaryDirectory(prefix="dovetail-timings-") as folder:
        times = kind(Path(folder) / "timings.jsonl")
        before: Mapping[str, dict[str, Any]] = {} if cache is None or fresh else cache._records
        for key, record in before.items():
            times.records.put(key, record)
        yield times
        if cache is not None and not fresh:
            cache._records = {key: dict(times.records.get(key) or {}) for key in times.records}




def _times(record: Mapping[str, Any]) -> dict[str, float]:
    """The times of a record, in microseconds by tactic; empty for records of other things."""
    times = record.get("us")
    return {str(k): float(v) for k, v in times.items()} if isinstance(times, dict) else {}
