"""Show or prune the caches: compiled kernels, packed weights, timings. Everything in them can be made again.

    dovetail cache show
    dovetail cache prune --older-than 30          (days since last use)
    dovetail cache prune --max-size 2G
    dovetail cache prune --all
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from dovetail.cli import output
from dovetail.cli.sizes import byte_count
from dovetail.core.env import env
from dovetail.core.text import size_text

_DAY_S, _HOUR_S = 86400.0, 3600.0
# A file this young may belong to a build that is running.
_IN_USE_S = 60.0


@dataclass(frozen=True)
class Entry:
    """One cached file."""

    path: Path
    bytes: int
    last_used: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail cache`."""
    parser.add_argument("action", choices=("show", "prune"))
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="prune what was not used for so long")
    parser.add_argument("--max-size", type=byte_count, metavar="SIZE", help="prune the least recently used until it fits")
    parser.add_argument("--all", action="store_true", help="prune everything")
    parser.add_argument("--json", action="store_true", help="print one JSON object with stable keys")


def run(args: argparse.Namespace) -> int:
    """Show or prune."""
    root = env().cache
    entries = list_entries(root)
    if args.action == "show":
        sections = _sections(root, entries)
        data = {"path": str(root), "bytes": sum(e.bytes for e in entries), "sections": sections}
        rows = [[name, s["files"], size_text(s["bytes"])] for name, s in sections.items()]
        output.show(args, data, f"{root}\n{output.table(['section', 'files', 'size'], rows)}" if rows else f"{root}: empty")
        return 0
    now = time.time()
    chosen = [e for e in entries if not _scratch(e, now)] if args.all else choose(entries, args.older_than, args.max_size, now)
    removed = remove(root, chosen)
    left = sum(e.bytes for e in entries) - sum(e.bytes for e in removed)
    freed = sum(e.bytes for e in removed)
    data = {"path": str(root), "removed_files": len(removed), "removed_bytes": freed, "left_bytes": left}
    output.show(args, data, f"{root}: removed {len(removed)} files, {size_text(freed)}; {size_text(left)} left")
    return 0


def list_entries(root: Path) -> list[Entry]:
    """All files of the cache, least recently used first; links are not followed."""
    entries = []
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            try:
                info = path.lstat()
            except FileNotFoundError:  # another process pruned it meanwhile
                continue
            entries.append(Entry(path, info.st_size, max(info.st_atime, info.st_mtime)))
    return sorted(entries, key=lambda e: (e.last_used, e.path))


def choose(entries: list[Entry], older_than_days: float | None, max_bytes: int | None, now: float) -> list[Entry]:
    """What to prune: too old, or over the size (least recently used first); without limits, older than 30 days."""
    if older_than_days is None and max_bytes is None:
        older_than_days = 30.0
    total = sum(e.bytes for e in entries)
    chosen = []
    for entry in entries:
        if now - entry.last_used < _IN_USE_S:
            continue
        old = older_than_days is not None and now - entry.last_used > older_than_days * _DAY_S
        if old or (max_bytes is not None and total > max_bytes):
            chosen.append(entry)
            total -= entry.bytes
    return chosen


def remove(root: Path, entries: list[Entry]) -> list[Entry]:
    """Delete files and the folders that become empty; returns what was deleted."""
    removed = []
    for entry in entries:
        try:
            entry.path.unlink()
        except FileNotFoundError:
            continue
        removed.append(entry)
    for folder, _, _ in os.walk(root, topdown=False):
        if Path(folder) != root and not any(Path(folder).iterdir()):
            with contextlib.suppress(OSError):  # another process put something there, or removed it, just now
                Path(folder).rmdir()
    return removed


def _scratch(entry: Entry, now: float) -> bool:
    """Whether a compiler that is running may be at work on a file."""
    return entry.path.parent.name.startswith("compile-") and now - entry.last_used < _HOUR_S


def _sections(root: Path, entries: list[Entry]) -> dict[str, dict[str, int]]:
    sections: dict[str, dict[str, int]] = {}
    for entry in entries:
        section = sections.setdefault(entry.path.relative_to(root).parts[0], {"files": 0, "bytes": 0})
        section["files"] += 1
        section["bytes"] += entry.bytes
    return dict(sorted(sections.items()))
