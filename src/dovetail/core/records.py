"""A file of JSON records by key: timings and verification results that outlive a process.

One line per record, `{"key": …, …}`; the last line of a key wins. Writes append whole lines in one
call, so several processes may share a file and lose nothing; a line that was cut short is skipped.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dovetail.core.errors import UsageError
from dovetail.core.log import logger

Record = Mapping[str, Any]
_log = logger("cache")


class RecordFile:
    """Records by key, read once and appended to by `flush`. Safe with threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._known: dict[str, dict[str, Any]] = {}
        self._new: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if self.path.is_file():
            self._known.update(_read(self.path))

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._known))

    def get(self, key: str) -> Record | None:
        """The record of a key, or None."""
        return self._known.get(key)

    def put(self, key: str, record: Record) -> None:
        """Add or replace a record; `flush` writes it."""
        with self._lock:
            self._known[key] = self._new[key] = dict(record)

    def merge(self, path: str | os.PathLike[str]) -> int:
        """Take over the records of another file; returns how many are new or differ.

        Raises:
            UsageError: the file cannot be read.
        """
        try:
            other = _read(Path(path))
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be read, {error.strerror}; pass a file of records"
            ) from error
        changed = {k: v for k, v in other.items() if self._known.get(k) != v}
        for key, record in changed.items():
            self.put(key, record)
        return len(changed)

    def flush(self) -> None:
        """Append the new records; a folder that cannot be written costs the cache, not the build."""
        with self._lock:
            if not self._new:
                return
            # The leading newline closes a line that an interrupted writer may have left open.
            text = "\n" + "".join(_line(k, r) for k, r in self._new.items())
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(handle, text.encode())
                finally:
                    os.close(handle)
            except OSError as error:
                _log.warning("%s: cannot be written, %s; going on without", self.path, error)
                return
            self._new.clear()

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write all records, sorted by key, to a new file (through a temporary one)."""
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = final.with_name(f"{final.name}.{os.getpid()}.tmp")
        try:
            scratch.write_text("".join(_line(k, self._known[k]) for k in sorted(self._known)))
            os.replace(scratch, final)
        finally:
            scratch.unlink(missing_ok=True)


def _line(key: str, record: Record) -> str:
    return json.dumps({"key": key, **record}, sort_keys=True) + "\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            found[record.pop("key")] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            if line.strip():
                _log.debug("%s: skipped a damaged line of %d characters", path, len(line))
    return found
