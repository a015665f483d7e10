"""Measured times of candidates, kept between builds: `timings.jsonl` in the cache folder.

A key names the group (operators, types, layouts), its sizes, the target, the processor, the number of
threads, and the text of all templates: whatever could change a time or make a name mean other code.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from dovetail.codegen.tactic import Group
from dovetail.codegen.target import Target
from dovetail.core.env import env
from dovetail.core.records import RecordFile
from dovetail.ir.fingerprint import fingerprint
from dovetail.plugins import PLUGINS_KEY, fingerprints

_TEMPLATE_FOLDERS = ("kernels", "codegen")


class TimingCache:
    """Microseconds per candidate, by group. Several processes may share the file."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.records = RecordFile(env().cache / "timings.jsonl" if path is None else path)

    def get(self, key: str) -> dict[str, float]:
        """Known times of a group, by candidate; empty if there are none."""
        record = self.records.get(key)
        times = record.get("us") if record is not None else None
        if not isinstance(times, dict):
            return {}
        return {str(k): float(v) for k, v in times.items() if isinstance(v, int | float) and v > 0}

    def put(
        self, key: str, us: Mapping[str, float], skipped_s: float | None = None, failed: Mapping[str, str] | None = None
    ) -> None:
        """Store the times of a group; `flush` writes them.

        Args:
            skipped_s: a budget in which other candidates had no turn.
            failed: candidates that must not run again, with the reason; those known before stay.
        """
        record: dict[str, object] = {"us": dict(us)}
        if skipped_s is not None:
            record["skipped_s"] = skipped_s
        if known := self.failed(key) | dict(failed or {}):
            record["failed"] = known
        self.records.put(key, record)

    def failed(self, key: str) -> dict[str, str]:
        """Candidates of a group that hung or ended the device's context, with the reason."""
        record = self.records.get(key)
        found = record.get("failed") if record is not None else None
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def skipped(self, key: str) -> float:
        """The largest budget (seconds) in which a group's turn, or that of some candidates, did not come; -1 if that never happened."""
        record = self.records.get(key)
        budget = record.get("skipped_s", -1.0) if record is not None else -1.0
        return float(budget) if isinstance(budget, int | float) else -1.0

    def skip(self, key: str, budget_s: float) -> None:
        """Note that a build with this budget left a group to the rule, so that its like does so again."""
        self.put(key, self.get(key), max(budget_s, self.skipped(key)))

    def merge(self, path: str | os.PathLike[str]) -> int:
        """Take over another file's times; returns how many groups are new or differ.

        Raises:
            UsageError: the file cannot be read.
        """
        return self.records.merge(path)

    def flush(self) -> None:
        """Append what is new to the file."""
        self.records.flush()


def timing_key(group: Group, sizes: Mapping[str, int], target: Target, threads: int) -> str:
    """The key of a group's times on this machine."""
    outer = ";".join(str(v.type) for v in (*group.inputs, *group.outputs))
    parts = (fingerprint(group.body, sizes), outer, str(target), cpu_model(), str(threads), template_version(), *users_code(group))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def users_code(group: Group) -> list[str]:
    """Hashes of the functions behind plugin calls of a group, which print its kernels."""
    return [f for node in group.body.nodes if node.op == "Plugin" for f in fingerprints({PLUGINS_KEY: [node.attrs]})]


@functools.cache
def cpu_model() -> str:
    """The processor as the system names it; "" where it does not."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU part"):
                return value.strip()
    return ""


@functools.cache
def template_version() -> str:
    """A hash of the code that writes kernels."""
    found = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for folder in _TEMPLATE_FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
