"""The cache of plans that were made again for engine files that no trusted key signed.

Making a plan again takes a second for a large model. Its result depends on what the key is made of, and lies where the
compiled objects lie, so it deserves the same trust: `DOVETAIL_CACHE/plans`, one JSON file per key.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.core.env import env
from dovetail.core.errors import PlanFormatError
from dovetail.core.log import logger
from dovetail.engine.codec import dumps, loads
from dovetail.engine.file import EngineFile
from dovetail.engine.plan import Json, Plan
from dovetail.plugins import fingerprints

_FORMAT = 1
_log = logger("load")


@dataclass(frozen=True)
class Remade:
    """A plan made from a file's graph and tactics, with its compiled libraries.

    Attributes:
        plan: the plan, made on this machine.
        graph: canonical IR text.
        source: text of the kernels.
        kernels, host: compiled libraries.
    """

    plan: Plan
    graph: str
    source: str
    kernels: Path
    host: Path | None


def key_of(file: EngineFile, target: str, meta: Mapping[str, Json]) -> str:
    """A hash of all that making a plan again depends on; the file has been verified, `meta` are its plan's metadata."""
    plan = file.container.member(f"{file.folder(target)}/plan.json")
    parts = [
        _FORMAT, _code(), env().cc, target, hashlib.sha256(plan).hexdigest(),
        hashlib.sha256(file.graph.encode()).hexdigest(), sorted(file.hashes.items()), fingerprints(meta),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _code() -> list[tuple[str, int, int]]:
    """Names, sizes and times of this package's modules: other code makes other plans."""
    root = Path(__file__).parent.parent
    files = sorted(root.rglob("*.py"))
    return [(f.relative_to(root).as_posix(), (s := f.stat()).st_size, s.st_mtime_ns) for f in files]


def _path(key: str) -> Path:
    return env().cache / "plans" / f"{key}.json"


def read(key: str) -> Remade | None:
    """What `write` kept, if its libraries are still there; None otherwise."""
    try:
        data = json.loads(_path(key).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("the cached plan %s cannot be read (%s): making it again", key, error)
        return None
    try:
        kernels = env().cache / data["kernels"]
        host = env().cache / data["host"] if data["host"] else None
        if data["key"] != key or not kernels.is_file() or (host is not None and not host.is_file()):
            return None
        return Remade(loads(data["plan"].encode()), str(data["graph"]), str(data["source"]), kernels, host)
    except (AttributeError, KeyError, TypeError, PlanFormatError) as error:
        _log.warning("the cached plan %s is damaged (%s): making it again", key, error)
        return None


def write(key: str, made: Remade) -> None:
    """Keep a plan for the next time; a cache that cannot be written is only slower."""
    root = env().cache
    try:
        document = {
            "key": key, "plan": dumps(made.plan).decode(), "graph": made.graph, "source": made.source,
            "kernels": made.kernels.relative_to(root).as_posix(),
            "host": made.host.relative_to(root).as_posix() if made.host is not None else "",
        }  # fmt: skip
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", key[:16], _path(key).parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file)
            os.replace(temporary, _path(key))
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        _log.warning("the plan made again is not cached: %s", error)
